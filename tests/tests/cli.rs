//! Bad input on the command line and in the configuration ends in a clear error: what was given, what is wrong, what to do; never in a
//! panic, never in something half done (S7).

mod program;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use lockstep::demo::namespace::Namespace;
use lockstep::demo::process::NodeProcess;
use lockstep::demo::world::{Host, Place, World};
use types::event::{NodeEvent, NodeEventKind};

/// Exit statuses, as `lockstep --help` promises them.
const FAILED: i32 = 1;
const USAGE: i32 = 2;
const INTERRUPTED: i32 = 130;

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(program::lockstep());
    command.args(arguments).stdin(Stdio::null());
    command
}

fn lockstep(arguments: &[&str]) -> Output {
    command(arguments).output().expect("the program runs")
}

/// Asserts that `output` is a refusal with `status` whose message has every one of `words`.
fn assert_refused(output: &Output, status: i32, words: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is not in: {said}");
    }
}

fn file_with(directory: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = directory.join(name);
    std::fs::write(&path, bytes).expect("a file");
    path
}

/// A network namespace to be wrong in; None where there is no KVM or no right to make one, unless the run demands it.
fn nowhere() -> Option<Namespace> {
    let usable = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").map(drop).map_err(|e| e.to_string());
    match usable.and_then(|()| Namespace::new().map_err(|e| e.to_string())) {
        Ok(namespace) => Some(namespace),
        Err(why) => {
            assert!(std::env::var_os("LOCKSTEP_REQUIRE_KVM").is_none(), "{why}");
            None
        }
    }
}

/// Runs in a namespace without interfaces, with both streams taken.
fn run_in(namespace: &Namespace, arguments: &[&str]) -> Output {
    let mut command = command(arguments);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    namespace.spawn(&mut command).expect("started").wait_with_output().expect("ended")
}

#[test]
fn an_unknown_option_is_refused_with_the_nearest_known_one() {
    assert_refused(&lockstep(&["run", "--memroy", "1G"]), USAGE, &["--memroy", "--memory"]);
    assert_refused(&lockstep(&["rum"]), USAGE, &["rum", "run"]);
}

#[test]
fn an_unknown_key_in_the_file_is_named_with_the_nearest_known_one() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = file_with(directory.path(), "vm.toml", b"vm = \"a\"\nmemroy = \"1G\"\n");
    let path = path.to_str().expect("a path");
    for verb in ["run", "standby"] {
        assert_refused(&lockstep(&[verb, "--config", path]), USAGE, &[path, "\"memroy\"", "\"memory\""]);
    }
}

#[test]
fn a_file_that_is_missing_or_not_toml_is_refused_by_name() {
    let directory = tempfile::tempdir().expect("a directory");
    assert_refused(&lockstep(&["run", "--config", "/nowhere/vm.toml"]), USAGE, &["/nowhere/vm.toml", "No such file"]);
    let path = file_with(directory.path(), "vm.toml", b"vm = = 1");
    assert_refused(&lockstep(&["run", "--config", path.to_str().expect("a path")]), USAGE, &["vm.toml", "line 1"]);
    let path = file_with(directory.path(), "binary.toml", &[0xff, 0xfe, 0]);
    assert_refused(&lockstep(&["run", "--config", path.to_str().expect("a path")]), USAGE, &["binary.toml"]);
}

#[test]
fn memory_that_is_zero_odd_or_more_than_the_host_has_is_refused() {
    for verb in ["run", "demo"] {
        assert_refused(&lockstep(&[verb, "--memory", "0"]), USAGE, &["--memory 0", "256M"]);
        assert_refused(&lockstep(&[verb, "--memory", "255M"]), USAGE, &["255M", "254M or 256M"]);
        assert_refused(&lockstep(&[verb, "--memory", "1024T"]), USAGE, &["1024T", "this host has only"]);
        assert_refused(&lockstep(&[verb, "--memory", "lots"]), USAGE, &["lots", "256M"]);
    }
}

#[test]
fn vcpus_that_cannot_be_are_refused() {
    for verb in ["run", "demo"] {
        assert_refused(&lockstep(&[verb, "--vcpus", "0"]), USAGE, &["--vcpus 0", "1 to"]);
        assert_refused(&lockstep(&[verb, "--vcpus", "1000"]), USAGE, &["--vcpus 1000", "1 to"]);
    }
}

#[test]
fn a_standby_without_an_arbiter_is_refused_on_both_sides() {
    assert_refused(&lockstep(&["run", "--standby", "127.0.0.1:7300"]), USAGE, &["--arbiter", "file:PATH"]);
    assert_refused(&lockstep(&["standby", "--listen", "127.0.0.1:7300"]), USAGE, &["--arbiter", "file:PATH"]);
}

#[test]
fn a_detection_bound_that_cannot_be_is_refused() {
    for verb in ["run", "standby", "demo"] {
        let mut arguments = vec![verb, "--detection-bound", "1ms"];
        if verb == "standby" {
            arguments.extend(["--listen", "127.0.0.1:7300", "--arbiter", "file:/nowhere/record"]);
        }
        assert_refused(&lockstep(&arguments), USAGE, &["--detection-bound 1ms", "40ms"]);
        arguments[2] = "18446744073709551615s";
        assert_refused(&lockstep(&arguments), USAGE, &["--detection-bound 18446744073709551615s", "at most 600s"]);
    }
}

#[test]
fn a_guest_that_the_demos_clients_would_fill_is_refused() {
    assert_refused(&lockstep(&["demo", "--memory", "16M"]), USAGE, &["--memory 16M", "at least", "--clients 4"]);
}

#[test]
fn a_log_filter_that_is_none_is_refused() {
    for verb in ["run", "demo"] {
        assert_refused(&lockstep(&[verb, "--log", "]["]), USAGE, &["--log ][", "info"]);
    }
}

#[test]
fn a_report_that_cannot_be_written_is_refused_before_anything_starts() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().to_str().expect("a path");
    assert_refused(&lockstep(&["demo", "--report", "/nowhere/report.json"]), FAILED, &["/nowhere/report.json", "--report"]);
    assert_refused(&lockstep(&["demo", "--report", path]), FAILED, &[path, "directory"]);
}

#[test]
fn a_full_disk_under_standard_output_is_told() {
    for arguments in [&["check"][..], &["check", "--json"]] {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
        let output = command(arguments).stdout(full).stderr(Stdio::piped()).spawn().expect("started").wait_with_output().expect("ended");
        assert_refused(&output, FAILED, &["standard output", "No space left"]);
    }
}

#[test]
fn check_gives_every_failure_a_remedy_and_an_exit_status() {
    let output = lockstep(&["check", "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    let items = report["items"].as_array().expect("items");
    let unfit = items.iter().any(|item| item["level"] == "fail");
    assert_eq!(output.status.code(), Some(if unfit { 4 } else { 0 }));
    assert_eq!(report["able"], !unfit);
    assert!(items.iter().all(|item| (item["level"] == "ok") == (item["remedy"] == "")), "{items:?}");
}

#[test]
fn a_missing_tap_is_named_and_not_made() {
    let Some(namespace) = nowhere() else { return };
    assert_refused(&run_in(&namespace, &["run", "--console", "none", "--net", "tap=nosuchtap"]), FAILED, &["nosuchtap"]);
    let devices = namespace.run(|| std::fs::read_to_string("/proc/thread-self/net/dev")).expect("a thread").expect("read");
    assert!(!devices.contains("nosuchtap"), "{devices}");
}

/// Sets p_paddr of every program header of an ELF image.
fn place_segments(image: &mut [u8], address: u64) {
    let table = usize::try_from(u64::from_le_bytes(image[32..40].try_into().expect("e_phoff"))).expect("small");
    for header in 0..usize::from(u16::from_le_bytes(image[56..58].try_into().expect("e_phnum"))) {
        let paddr = table + header * 56 + 24;
        image[paddr..paddr + 8].copy_from_slice(&address.to_le_bytes());
    }
}

#[test]
fn a_kernel_that_is_none_is_refused_by_name_before_anything_is_asked_of_the_arbiter() {
    let Some(namespace) = nowhere() else { return };
    let directory = tempfile::tempdir().expect("a directory");
    let in_directory = |name, bytes: &[u8]| file_with(directory.path(), name, bytes);
    let record = directory.path().join("record");
    let arbiter = format!("file:{}", record.display());
    let image = guest::IMAGE;
    let mut wrong_machine = image.to_vec();
    // e_machine: EM_AARCH64.
    wrong_machine[18..20].copy_from_slice(&183u16.to_le_bytes());
    let mut outside = image.to_vec();
    // Beyond any guest's memory.
    place_segments(&mut outside, 1 << 45);
    for path in [
        PathBuf::from("/nowhere/vmlinux"),
        directory.path().to_owned(),
        in_directory("empty", b""),
        in_directory("text", b"this is not a kernel\n"),
        in_directory("truncated-header", &image[..40]),
        in_directory("truncated-body", &image[..image.len() / 2]),
        in_directory("wrong-machine", &wrong_machine),
        in_directory("segments-outside-memory", &outside),
    ] {
        let path = path.to_str().expect("a path");
        let output = run_in(&namespace, &["run", "--console", "none", "--kernel", path, "--arbiter", &arbiter]);
        assert_refused(&output, FAILED, &[path]);
        assert!(!record.exists(), "{path}: a node that cannot start the guest is recorded as its owner");
    }
}

#[test]
fn an_initramfs_that_is_missing_is_refused_by_name() {
    let Some(namespace) = nowhere() else { return };
    let directory = tempfile::tempdir().expect("a directory");
    let kernel = file_with(directory.path(), "vmlinux", guest::IMAGE);
    let kernel = kernel.to_str().expect("a path");
    let output = run_in(&namespace, &["run", "--console", "none", "--kernel", kernel, "--initramfs", "/nowhere/initrd"]);
    assert_refused(&output, FAILED, &["/nowhere/initrd"]);
}

#[test]
fn a_kernel_too_large_for_its_memory_is_refused_with_that_remedy_alone() {
    let Some(namespace) = nowhere() else { return };
    let directory = tempfile::tempdir().expect("a directory");
    let mut image = guest::IMAGE.to_vec();
    place_segments(&mut image, 1 << 30);
    let kernel = file_with(directory.path(), "vmlinux", &image);
    let output = run_in(&namespace, &["run", "--console", "none", "--memory", "64M", "--kernel", kernel.to_str().expect("a path")]);
    assert_refused(&output, FAILED, &["vmlinux", "64 MiB", "--memory"]);
    assert!(!String::from_utf8_lossy(&output.stderr).contains("bzImage"), "{output:?}");
}

#[test]
fn what_a_guest_cannot_start_with_or_a_word_for_the_console_that_is_none_is_a_wrong_command_line() {
    let directory = tempfile::tempdir().expect("a directory");
    let refused = |arguments: &[&str], told: &[&str]| {
        let output = command(arguments).current_dir(directory.path()).stdout(Stdio::piped()).stderr(Stdio::piped()).output();
        assert_refused(&output.expect("started"), USAGE, told);
    };
    refused(&["run", "--console", "none"], &["--net", "tap=NAME"]);
    refused(&["run", "--net", "tap=tap0", "--initramfs", "/boot/initrd.img"], &["--initramfs", "--kernel"]);
    refused(&["run", "--net", "tap=tap0", "--console", "sdtio"], &["sdtio", "stdio, none, file:PATH or socket:PATH"]);
    assert_eq!(directory.path().read_dir().expect("a directory").count(), 0, "and no file of that name is made");
}

#[test]
fn a_busy_tap_is_named_and_its_owner_goes_on() {
    if nowhere().is_none() {
        return;
    }
    let world = World::new().expect("a world");
    let directory = tempfile::tempdir().expect("a directory");
    let arguments = ["run", "--console", "none", "--memory", "64M", "--net", "tap=tap0"];
    let owner_arguments = arguments.map(Into::into);
    let mut owner =
        NodeProcess::start(&world, Host::A, "owner", &program::lockstep(), &owner_arguments, directory.path()).expect("the owner starts");
    let ready = |e: &NodeEvent| matches!(e.what, NodeEventKind::Ready).then_some(());
    owner.wait_for("ready", Duration::from_secs(20), &AtomicBool::new(false), ready).expect("the owner is ready");

    let mut second = command(&arguments);
    second.stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = world.spawn(Place::On(Host::A), &mut second).expect("started").wait_with_output().expect("ended");

    assert_refused(&output, FAILED, &["tap0", "busy"]);
    assert!(owner.exited().is_none());
}

#[test]
fn ctrl_c_ends_the_demo_and_leaves_nothing() {
    if nowhere().is_none() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let mut demo = command(&["demo", "--memory", "64M", "--seconds", "60"]);
    let mut demo = demo.env("TMPDIR", directory.path()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("started");
    let mut said = BufReader::new(demo.stderr.take().expect("its words")).lines();
    let line = said.by_ref().map(|line| line.expect("a line")).find(|line| line.contains("primary: starting")).expect("the nodes start");
    let nodes = children(demo.id());
    assert!(!nodes.is_empty(), "{line}");

    assert!(Command::new("kill").args(["-INT", &demo.id().to_string()]).status().expect("kill").success());
    let rest: Vec<String> = said.map(|line| line.expect("a line")).collect();

    assert_eq!(demo.wait().expect("ended").code(), Some(INTERRUPTED), "{rest:?}");
    assert_eq!(std::fs::read_dir(directory.path()).expect("listed").count(), 0, "the demo's directory is gone");
    for node in nodes {
        assert!(!Path::new(&format!("/proc/{node}")).exists(), "node {node} is gone");
    }
}

/// The children of the main thread of process `pid`.
fn children(pid: u32) -> Vec<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("its children");
    text.split_whitespace().map(|child| child.parse().expect("a number")).collect()
}
