//! Ctrl-C at random moments of a demo: no process, no interface and no file is left behind.
//!
//! That the nodes end when the demo is interrupted in the middle of its start is tried in `cli.rs` too; here it is the moment that varies.

mod program;

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use lockstep_tests::e2e::{Watchdog, lab};
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Exit status of an interrupted demo.
const INTERRUPTED: i32 = 130;
/// Demos interrupted.
const ROUNDS: u64 = 10;
/// The latest moment: the demo has built its world, started its nodes and clients, and killed its primary (with `--seconds 2`) by then.
const LATEST_MS: u64 = 3500;
/// An interrupted demo ends within this time.
const END_BOUND: Duration = Duration::from_secs(10);
/// How often a wait looks.
const TICK: Duration = Duration::from_millis(10);

/// Processes whose environment has `marker` in it.
fn marked(marker: &str) -> Vec<String> {
    let processes = std::fs::read_dir("/proc").expect("/proc").flatten().map(|entry| entry.path());
    // Processes of others, and those that end meanwhile, cannot be read and are not ours.
    let is_marked = |path: &Path| {
        let environment = std::fs::read(path.join("environ")).unwrap_or_default();
        environment.windows(marker.len()).any(|window| window == marker.as_bytes())
    };
    processes.filter(|path| is_marked(path)).map(|path| path.display().to_string()).collect()
}

fn interfaces() -> Vec<String> {
    let entries = std::fs::read_dir("/sys/class/net").expect("interfaces").flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn wait(demo: &mut Child) -> ExitStatus {
    let deadline = Instant::now() + END_BOUND;
    loop {
        if let Some(status) = demo.try_wait().expect("its status") {
            return status;
        }
        assert!(Instant::now() < deadline, "the demo did not end after Ctrl-C");
        std::thread::sleep(TICK);
    }
}

#[test]
fn ctrl_c_at_any_moment_of_a_demo_leaves_nothing() {
    if !lab::available() {
        return;
    }
    let _watchdog = Watchdog::new(Duration::from_secs(180));
    let program = program::lockstep();
    let before = interfaces();
    for seed in 0..ROUNDS {
        let delay = Duration::from_millis(StdRng::seed_from_u64(seed).random_range(0..LATEST_MS));
        let directory = tempfile::tempdir().expect("a directory");
        let marker = format!("TMPDIR={}", directory.path().display());
        let mut command = Command::new(&program);
        command.args(["demo", "--memory", "64M", "--seconds", "2", "--seed", &seed.to_string()]);
        let mut demo = command.env("TMPDIR", directory.path()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("started");

        std::thread::sleep(delay);
        kill(Pid::from_raw(demo.id() as i32), Signal::SIGINT).expect("interrupted");
        let status = wait(&mut demo);

        // Before the program catches signals it dies of this one; a demo that is over says how it went.
        let died_of_it = status.signal() == Some(libc::SIGINT);
        assert!(died_of_it || status.code() == Some(INTERRUPTED) || status.code() == Some(0), "seed {seed}, after {delay:?}: {status}");
        let deadline = Instant::now() + END_BOUND;
        while !marked(&marker).is_empty() {
            assert!(Instant::now() < deadline, "seed {seed}, after {delay:?}: left behind: {:?}", marked(&marker));
            std::thread::sleep(TICK);
        }
        let files: Vec<_> = std::fs::read_dir(directory.path()).expect("listed").flatten().map(|entry| entry.path()).collect();
        assert!(files.is_empty(), "seed {seed}, after {delay:?}: {files:?}");
        assert_eq!(interfaces(), before, "seed {seed}, after {delay:?}");
    }
}
