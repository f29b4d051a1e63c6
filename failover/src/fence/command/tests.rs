//! The fencing command with real processes: what it is told, and that nothing it starts outlives its time or its grant.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, Ordering};

use types::{Generation, HostId, NodeId, VmId};

use super::*;

/// A grant that is wanted as long as it says.
#[derive(Default)]
struct Wanted(AtomicBool);

impl Grant for Wanted {
    fn confirm(&self) -> Result<(), FenceError> {
        Ok(())
    }

    fn wanted(&self) -> bool {
        !self.0.load(Ordering::Acquire)
    }
}

fn old() -> Predecessor {
    Predecessor { node: NodeId("a".to_owned()), host: NonZeroU64::new(0xa).map(HostId) }
}

fn me() -> Owner {
    Owner {
        vm: VmId("vm0".to_owned()),
        node: NodeId("b".to_owned()),
        host: NonZeroU64::new(0xb).map(HostId),
        instance: 7,
        generation: Generation(4),
    }
}

fn alive(pid: i32) -> bool {
    // A process that is dead and not yet reaped by whoever adopted it does not count.
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A command whose grandchild writes its number to a file and then sleeps for ever.
fn hanging(directory: &std::path::Path) -> (FenceCommand, std::path::PathBuf) {
    let pid = directory.join("pid");
    let text = format!("sh -c 'echo $$ > {0}.new; mv {0}.new {0}; exec sleep 1000' & wait", pid.display());
    (FenceCommand::new(text), pid)
}

fn grandchild(pid: &std::path::Path) -> i32 {
    until("the grandchild runs", || pid.exists());
    std::fs::read_to_string(pid).unwrap().trim().parse().unwrap()
}

#[test]
fn only_exit_status_zero_is_success() {
    let run = |text: &str| FenceCommand::new(text).run(&old(), &me(), &Wanted::default());
    assert!(run("true").is_ok());
    for text in ["false", "exit 2", "kill -9 $$", "/no/such/agent"] {
        let error = run(text).expect_err(text);
        assert!(matches!(error, FenceError::CommandFailed { .. }) && error.to_string().contains("a is not certainly dead"), "{error}");
    }
}

#[test]
fn the_command_is_told_whom_to_fence() {
    let test = r#"[ "$LOCKSTEP_VM/$LOCKSTEP_NODE@$LOCKSTEP_HOST/$LOCKSTEP_FENCE_NODE@$LOCKSTEP_FENCE_HOST/$LOCKSTEP_GENERATION" = vm0/b@000000000000000b/a@000000000000000a/4 ]"#;
    FenceCommand::new(test).run(&old(), &me(), &Wanted::default()).unwrap();
}

#[test]
fn a_command_that_hangs_is_killed_with_all_it_started() {
    let directory = tempfile::tempdir().unwrap();
    let (command, pid) = hanging(directory.path());
    let command = command.with_limit(Duration::from_millis(600));

    let error = command.run(&old(), &me(), &Wanted::default()).expect_err("late");

    assert!(matches!(error, FenceError::CommandLate { .. }), "{error}");
    let pid = grandchild(&pid);
    until("the grandchild is killed", || !alive(pid));
}

#[test]
fn a_command_that_is_not_wanted_any_more_is_killed() {
    let directory = tempfile::tempdir().unwrap();
    let (command, pid) = hanging(directory.path());
    let wanted = Wanted::default();

    let (error, pid) = std::thread::scope(|scope| {
        let running = scope.spawn(|| command.run(&old(), &me(), &wanted));
        let pid = grandchild(&pid);
        wanted.0.store(true, Ordering::Release);
        (running.join().unwrap().expect_err("not wanted"), pid)
    });

    assert!(matches!(error, FenceError::Unwanted), "{error}");
    until("the grandchild is killed", || !alive(pid));
}

#[test]
fn a_command_that_says_a_lot_does_not_hang_on_it() {
    FenceCommand::new("yes | head -n 100000; yes | head -c 1000000 | tr -d '\\n' >&2").run(&old(), &me(), &Wanted::default()).unwrap();
}
