# What a newcomer types. Every target installs what it needs on Debian (as root, or with sudo) and says what is missing elsewhere.

CARGO ?= cargo
# Further options for the demo: make demo DEMO="--kill hang --seconds 30"
DEMO ?=
# Debian packages by the command that shows whether they are there.
NEEDED := ip:iproute2 gcc:gcc ld:binutils
# Further options for the lab: make lab-test LAB="--rounds 2 --keep-logs"
LAB ?=
# What the lab's scenarios may take together. One that cannot do its least number of rounds in its share fails as too slow here: then give more.
LAB_BUDGET ?= 15m
# Test threads share /dev/kvm and the cores with the machines under test.
TEST_THREADS ?=

.DEFAULT_GOAL := help
.PHONY: help setup build demo test fmt clippy bench lab-up lab-test lab-soak clean

help:
	@echo "make demo    build, then kill a primary under load and prove that nothing was lost"
	@echo "make test    formatting, lints, all tests (those on KVM where /dev/kvm is), and the lab (as root)"
	@echo "make bench   measure, print the table, write target/bench/report.json and pictures"
	@echo "make lab-test  hosts that really die, in a lab of emulated machines (as root; LAB_FILTER=name,name picks scenarios); lab-soak: longer"
	@echo "make lab-up  two emulated hosts with stock kernels, to try things on (as root; lockstep-lab --help)"
	@echo "make build   the release program: target/release/lockstep"
	@echo "make clean   remove everything that was built"

setup:
	@missing=""; \
	for pair in $(NEEDED); do command -v $${pair%%:*} >/dev/null 2>&1 || PATH="$$PATH:/usr/sbin:/sbin" command -v $${pair%%:*} >/dev/null 2>&1 || missing="$$missing $${pair##*:}"; done; \
	[ -e /usr/include/stdlib.h ] || [ -e /usr/include/x86_64-linux-gnu/stdlib.h ] || missing="$$missing libc6-dev"; \
	if [ -n "$$missing" ]; then \
		if ! command -v apt-get >/dev/null 2>&1; then echo "error: missing:$$missing; install these with your system's package manager" >&2; exit 1; fi; \
		if [ "$$(id -u)" = 0 ]; then sudo=""; elif command -v sudo >/dev/null 2>&1; then sudo=sudo; \
		else echo "error: missing packages:$$missing; as root: apt-get install$$missing" >&2; exit 1; fi; \
		echo "installing:$$missing"; \
		$$sudo apt-get update -qq && $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; \
	fi
	@command -v $(CARGO) >/dev/null 2>&1 || { echo "error: no Rust toolchain; install one of at least 1.95 (rustup does) and make sure that cargo is on the PATH" >&2; exit 1; }

build: setup
	$(CARGO) build --locked --release -p lockstep

# iproute2's ip is in /usr/sbin, which is not on a normal user's PATH.
demo: export PATH := $(PATH):/usr/sbin:/sbin
demo: build
	"$${CARGO_TARGET_DIR:-target}/release/lockstep" demo $(DEMO)

fmt: setup
	$(CARGO) fmt --all --check

clippy: setup
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	$(CARGO) clippy --locked -p guest --features image --profile guest -- -D warnings

# Where there is KVM, a test that cannot use it fails instead of passing by.
test: export PATH := $(PATH):/usr/sbin:/sbin
# What stands in for the database of a stock guest in the tests of its clients.
test: NEEDED += sqlite3:sqlite3
test: setup fmt clippy
	@if [ -e /dev/kvm ]; then export LOCKSTEP_REQUIRE_KVM=1; else echo "no /dev/kvm: the tests on KVM pass by"; fi; \
	$(CARGO) test --locked --workspace -- $(if $(TEST_THREADS),--test-threads=$(TEST_THREADS))
	@if [ -e /dev/kvm ]; then export LOCKSTEP_REQUIRE_KVM=1; fi; $(MAKE) --no-print-directory lab-test

# Further options for the benchmarks: make bench BENCH="--quick --only pause"
bench: export PATH := $(PATH):/usr/sbin:/sbin
bench: NEEDED += redis-benchmark:redis-tools
bench: build
	$(CARGO) run --locked --release -p lockstep-bench -- --out "$${CARGO_TARGET_DIR:-target}/bench" $(BENCH)

# Hosts that stay up. Ends with: target/debug/lockstep-lab down
lab-up: setup
	$(CARGO) build --locked -p lockstep -p lockstep-lab
	"$${CARGO_TARGET_DIR:-target}/debug/lockstep-lab" up $(LAB)

# Writes target/lab/report.json. Without root or /dev/net/tun it says so and skips, unless LOCKSTEP_REQUIRE_KVM is set: then that is a failure.
lab-test: setup
	$(CARGO) build --locked -p lockstep -p lockstep-lab
	"$${CARGO_TARGET_DIR:-target}/debug/lockstep-lab" test $(if $(LAB_BUDGET),--budget $(LAB_BUDGET)) $(LAB)

lab-soak: LAB += --soak
lab-soak: LAB_BUDGET =
lab-soak: lab-test

clean:
	$(CARGO) clean
