//! The order of locks and fence: no command is run twice because of a lock, and nothing is certain before the last lock is held.

use std::sync::atomic::{AtomicU32, Ordering};

use disk_buffer::{Disk, DiskOptions, Fenced, Mode};
use types::block::DiskIndex;
use types::{NodeId, VmId};

use super::*;

/// Counts how often it was asked.
#[derive(Default)]
struct Counting(AtomicU32);

impl Fence for Counting {
    fn shut_out(&self, _: &[Predecessor], _: &Owner, _: &dyn Grant) -> Result<(), FenceError> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn probe(&self) -> Result<(), FenceError> {
        Ok(())
    }

    fn release(&self, _: &Owner, _: bool) {}
}

/// A grant that stands as long as it is told so.
struct Granted(bool);

impl Grant for Granted {
    fn confirm(&self) -> Result<(), FenceError> {
        if self.0 { Ok(()) } else { Err(FenceError::NoRecord) }
    }

    fn wanted(&self) -> bool {
        true
    }
}

fn me(generation: u64) -> Owner {
    Owner { vm: VmId("vm0".to_owned()), node: NodeId("b".to_owned()), host: None, instance: 7, generation: Generation(generation) }
}

fn disk(path: &std::path::Path) -> Arc<Disk> {
    let options = DiskOptions { path: path.to_owned(), mode: Mode::Shared, fenced: Some(Fenced::attest()), ..DiskOptions::default() };
    Arc::new(Disk::open(DiskIndex(0), &options).expect("a disk"))
}

fn locked(disk: &Arc<Disk>) -> Locked<Counting> {
    let disks = Arc::new(Disks::of(vec![Arc::clone(disk)]));
    Locked { fence: Counting::default(), disks, done: Mutex::default(), bound: Duration::from_millis(20) }
}

#[test]
fn a_file_that_the_dead_hosts_lock_still_covers_is_waited_for_and_the_command_is_not_run_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("shared.img");
    std::fs::File::create(&path).and_then(|file| file.set_len(1 << 20)).expect("an image");
    let (ours, theirs) = (disk(&path), disk(&path));
    theirs.claim(Duration::ZERO).expect("nobody else has it");
    let fence = locked(&ours);

    for _ in 0..3 {
        let error = fence.shut_out(&[], &me(2), &Granted(true)).expect_err("the lock is theirs");
        assert!(matches!(&error, FenceError::StillLocked(why) if why.contains("in use")), "{error}");
    }
    drop(theirs);
    assert!(fence.shut_out(&[], &me(2), &Granted(false)).is_err(), "after a wait the grant is confirmed once more");
    fence.shut_out(&[], &me(2), &Granted(true)).expect("shut out, and locked");

    assert_eq!(fence.fence.0.load(Ordering::Relaxed), 1, "the command is run once");
    assert!(disk(&path).claim(Duration::ZERO).is_err(), "the file is this node's before its guest is activated");
    // Another grant is another matter.
    fence.shut_out(&[], &me(4), &Granted(true)).expect("shut out");
    assert_eq!(fence.fence.0.load(Ordering::Relaxed), 2);
}

#[test]
fn a_fencing_command_that_nothing_would_run_is_told() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("image");
    std::fs::File::create(&path).and_then(|file| file.set_len(1 << 20)).expect("an image");
    let unused = |more: &str, command: Option<&str>| {
        let options = crate::config::NodeOptions {
            net: vec!["tap=tap0,mac=52:54:00:12:34:56".into()],
            disk: vec![format!("path={}{more}", path.display()).parse().expect("a disk")],
            arbiter: Some("file:/srv/vm0".into()),
            fence_command: command.map(Into::into),
            ..Default::default()
        };
        super::unused(&options.resolve(crate::config::Verb::Run).expect("a configuration"))
    };

    assert_eq!(unused(",mode=shared", Some("true")), None);
    assert_eq!(unused("", None), None);
    for more in ["", ",mode=shared,readonly"] {
        assert!(unused(more, Some("true")).is_some_and(|text| text.contains("--fence-command")), "{more}");
    }
}
