//! A takeover with a shared disk that cannot be reserved: nobody runs the guest before the fencing command has said that the old host is dead (S3, S4).
//!
//! Not here: devices with persistent reservations (the lab's storage host), and what the disk holds in every order of events (`disk-buffer`, the simulation).

mod program;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use lockstep::demo::world::Host;
use lockstep_tests::e2e::disks::{FIRST_BLOCK, Stamps, load, prove_disk};
use lockstep_tests::e2e::lab::{self, Guest, Lab, prove_memory};
use lockstep_tests::e2e::{Image, Node, Spec, Watchdog};
use types::Generation;
use types::event::{NodeEventKind, Protection};

/// Bound of a whole test here.
const TEST: Duration = Duration::from_secs(120);
/// Size of the disk: twice what the guest's stream works on.
const BYTES: u64 = 64 << 20;
/// Operations a second of the guest's stream.
const RATE: u32 = 500;
/// How often a wait for a file looks.
const TICK: Duration = Duration::from_millis(10);

/// A lab with one disk that both hosts share, and a fencing command in a file of its directory.
struct Shared {
    lab: Lab,
    image: Image,
}

impl Shared {
    fn new(guest: Guest, command: &str) -> Shared {
        let lab = Lab::new(program::lockstep(), guest);
        let image = Image::new(lab.directory().join("shared.img"), BYTES);
        std::fs::write(lab.directory().join("fence"), format!("cd {}\n{command}\n", lab.directory().display())).expect("a command");
        Shared { lab, image }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.lab.directory().join(name)
    }

    fn spec(&self, spec: Spec) -> Spec {
        let command = format!("fence-command=sh {}", self.file("fence").display());
        spec.disk(&self.image, ",mode=shared").flag(&command)
    }

    fn pair(&self) -> (Node, Node) {
        self.lab.pair(&self.spec(Spec::primary(Host::A, "a")), &self.spec(Spec::standby(Host::B, "b")))
    }

    /// Protected, with acknowledged writes on the disk.
    fn protected(&self) -> (Node, Node, Stamps) {
        let (mut a, b) = self.pair();
        load(&mut self.lab.connect(), RATE);
        let mut stamps = Stamps::new(self.lab.connect());
        a.until_protected(0);
        (0..50).for_each(|block| stamps.write(FIRST_BLOCK + block));
        (a, b, stamps)
    }

    /// The guest goes on from what everybody was told.
    fn proves(&self, stamps: &mut Stamps) {
        let mut guest = self.lab.connect();
        stamps.write(FIRST_BLOCK + 7);
        load(&mut guest, 0);
        assert!(prove_disk(&mut guest) > 0);
        prove_memory(&mut guest);
        stamps.prove();
    }
}

fn until_file(path: &Path) -> String {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match std::fs::read_to_string(path) {
            Ok(text) if text.ends_with('\n') => return text.trim().to_owned(),
            _ => assert!(Instant::now() < deadline, "{} does not come", path.display()),
        }
        std::thread::sleep(TICK);
    }
}

/// Waits until the node says, after `since_ns`, that it is fencing, for that reason; when.
fn until_fencing(node: &mut Node, words: &str, since_ns: u64) -> u64 {
    node.until(words, |e| match &e.what {
        NodeEventKind::State { protection: Protection::Fencing, reason, .. } if e.at_ns > since_ns && reason.contains(words) => {
            Some(e.at_ns)
        }
        _ => None,
    })
}

#[test]
fn a_fencing_command_that_fails_is_tried_again_and_nobody_runs_before_it_succeeds() {
    if !lab::available() {
        return;
    }
    let _watchdog = Watchdog::new(TEST);
    // Fails until it is allowed, and says whom it was to fence.
    let command = r#"echo "$LOCKSTEP_VM $LOCKSTEP_NODE $LOCKSTEP_FENCE_NODE $LOCKSTEP_GENERATION" >>called; [ -e allowed ] || { echo "no answer from the power switch" >&2; exit 1; }"#;
    let shared = Shared::new(Guest::default(), command);
    let (mut a, mut b, mut stamps) = shared.protected();

    a.kill();

    const FAILED: &str = "ended with exit status 1: a is not certainly dead";
    let first = until_fencing(&mut b, FAILED, 0);
    until_fencing(&mut b, FAILED, first);
    assert_eq!(b.activations(), [], "nobody runs the guest");
    shared.lab.until_logged("b", "no answer from the power switch");
    std::fs::write(shared.file("allowed"), "").expect("a file");
    assert_eq!(b.until_activated().generation, Generation(2));
    let called = until_file(&shared.file("called"));
    let calls: Vec<&str> = called.lines().collect();
    assert!(calls.len() >= 3 && calls.iter().all(|call| call.ends_with(" b a 2")), "{calls:?}");
    shared.proves(&mut stamps);
}

#[test]
fn a_node_whose_fencing_command_hangs_still_hears_and_takes_the_command_with_it() {
    if !lab::available() {
        return;
    }
    let _watchdog = Watchdog::new(TEST);
    let shared = Shared::new(Guest::default(), "echo $$ >pid; exec sleep 1000");
    let (mut a, mut b, _stamps) = shared.protected();

    a.kill();

    let pid = until_file(&shared.file("pid"));
    until_fencing(&mut b, "shutting older owners out", 0);
    b.terminate().expect("told to stop");
    assert_eq!(b.until_exit(), Some(0));
    assert_eq!(b.activations(), [], "nobody ran the guest");
    let deadline = Instant::now() + Duration::from_secs(10);
    while std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z ")) {
        assert!(Instant::now() < deadline, "the command outlives the node that started it");
        std::thread::sleep(TICK);
    }
}

#[test]
fn a_primary_that_only_sleeps_is_fenced_before_its_guest_goes_on_elsewhere() {
    if !lab::available() {
        return;
    }
    let _watchdog = Watchdog::new(TEST);
    let shared = Shared::new(Guest { detection: "400ms", ..Guest::default() }, "kill -9 $(cat sleeper)");
    let (mut a, mut b, mut stamps) = shared.protected();
    std::fs::write(shared.file("sleeper"), format!("{}\n", a.pid())).expect("a file");

    a.hang().expect("stopped");

    assert_eq!(b.until_activated().generation, Generation(2));
    a.until_dead();
    shared.proves(&mut stamps);
}

#[test]
fn without_a_fence_neither_node_starts_and_the_remedy_is_told() {
    let directory = tempfile::tempdir().expect("a directory");
    let image = Image::new(directory.path().join("shared.img"), BYTES);
    let arbiter = format!("file:{}", directory.path().join("record").display());
    for part in [&["run", "--net", "tap=none"][..], &["standby", "--net", "tap=none", "--listen", "127.0.0.1:7399"]] {
        let disk = format!("path={},mode=shared", image.path().display());
        let mut command = Command::new(program::lockstep());
        command.args(part).args(["--disk", &disk, "--arbiter", &arbiter, "--memory", "64M", "--console", "none"]);
        let output = command.output().expect("started");
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains("--fence-command") && text.contains("mode=mirror"), "{text}");
    }
    assert!(!directory.path().join("record").exists(), "and no grant is asked for");
}
