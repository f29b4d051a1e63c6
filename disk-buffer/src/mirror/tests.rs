//! What a disk does in states that its outside cannot bring about at will.

use std::os::fd::AsRawFd;

use types::block::{BlockDone, BlockOp};

use super::*;
use crate::engine::faults::{Asked, Strike};
use crate::plan::{FullReason, Plan};

const BYTES: u64 = 4 << 20;

fn options(directory: &std::path::Path) -> DiskOptions {
    let path = directory.join("image");
    std::fs::File::create(&path).unwrap().set_len(BYTES).unwrap();
    DiskOptions { path, ..DiskOptions::default() }
}

fn open(options: &DiskOptions, tuning: Tuning) -> Mirror {
    Mirror::open(Opening { index: DiskIndex(0), options, serial: [0; 20], tuning }).unwrap()
}

fn write(offset: u64) -> BlockOp {
    BlockOp::Write { offset, data: vec![1; 4096].into() }
}

#[test]
fn a_request_to_an_engine_that_has_ended_is_answered_with_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let disk = open(&options(directory.path()), Tuning::default());
    disk.start_primary().unwrap();
    disk.inner.engine.stop();

    disk.submit(BlockRequest { tag: 7, op: write(0) }).unwrap();
    disk.submit(BlockRequest { tag: 8, op: BlockOp::Flush }).unwrap();

    let mut done = Vec::new();
    disk.inner.front.take_done(&mut done);
    let error = |tag| BlockDone { tag, result: Err(BlockError::Io(libc::EIO)) };
    assert_eq!(done, [error(7), error(8)]);
    assert_eq!(disk.inner.lock().guest, 0);
}

#[test]
fn a_standbys_copy_that_fails_while_it_is_settled_is_never_called_whole() {
    let directory = tempfile::tempdir().unwrap();
    let options = options(directory.path());
    let held = Arc::new((Mutex::new(true), Condvar::new()));
    let (hold, bell) = (Arc::clone(&held), Arc::clone(&held));
    let faults = move |asked| match asked {
        Asked::Write(..) => {
            drop(hold.1.wait_while(hold.0.lock().unwrap(), |held| *held).unwrap());
            Strike::Fail(libc::ENOSPC)
        }
        _ => Strike::Pass,
    };
    let disk = open(&options, Tuning { faults: Some(Arc::new(faults)), ..Tuning::default() });
    let primary = Identity { id: DataId(1), current: DataId(2), ..disk.identity().unwrap() };
    disk.join(&Plan::Full(FullReason::Empty), &primary, types::Generation(1)).unwrap();
    while disk.inner.engine.in_flight() > 0 {
        std::thread::yield_now();
    }
    disk.sync_block(0, Some(&[1; 4096])).unwrap();
    disk.stage(Epoch(1), Vec::new()).unwrap();
    disk.commit(Epoch(1)).unwrap();
    // The first epoch is there, and the keeper's flush waits behind the copy's write.
    while disk.inner.engine.in_flight() < 2 {
        std::thread::yield_now();
    }

    *bell.0.lock().unwrap() = false;
    bell.1.notify_all();
    while !matches!(disk.inner.lock().phase, Phase::Failed(_)) {
        std::thread::yield_now();
    }
    // With its keeper, which finishes what it had begun.
    drop(disk);

    let again = open(&options, Tuning::default());
    assert_eq!(again.identity().unwrap().state, CopyState::Copying);
}

#[test]
fn no_standby_joins_until_the_line_of_writes_without_the_last_one_has_a_name() {
    let directory = tempfile::tempdir().unwrap();
    let disk = open(&options(directory.path()), Tuning::default());
    disk.start_primary().unwrap();
    let before = disk.identity().unwrap();
    let fd = disk.inner.log.lock().as_ref().unwrap().fd();
    let log = std::fs::OpenOptions::new().read(true).write(true).open(directory.path().join("image.lockstep")).unwrap();
    let blind = std::fs::File::open(directory.path().join("image.lockstep")).unwrap();
    // SAFETY: dup2(2) between descriptors that are open; the log's is of the same file before and after.
    let becomes = |file: &std::fs::File| assert_eq!(unsafe { libc::dup2(file.as_raw_fd(), fd) }, fd);

    becomes(&blind);
    assert!(disk.struck_out().is_err());
    assert!(disk.identity().is_err(), "it is told to nobody");
    let standby = Identity { id: DataId::NONE, current: DataId::NONE, ..before.clone() };
    assert!(matches!(disk.begin_copy(&Plan::Full(FullReason::Empty), &standby), Err(DiskError::Failed { .. })));

    becomes(&log);
    assert_ne!(disk.identity().unwrap().current, before.current);
    disk.begin_copy(&Plan::Full(FullReason::Empty), &standby).unwrap();
}

/// A disk of little patience whose log is being written to a medium that does not answer before the sender is dropped.
fn with_a_log_that_hangs(directory: &std::path::Path) -> (Arc<Mirror>, std::sync::mpsc::Sender<()>) {
    let hang = Duration::from_millis(50);
    let disk = Arc::new(open(&options(directory), Tuning { hang, ..Tuning::default() }));
    let (gate, opened) = std::sync::mpsc::channel::<()>();
    let inner = Arc::clone(&disk.inner);
    std::thread::spawn(move || {
        let mut log = inner.log.lock();
        inner.log.write(log.as_mut().unwrap(), |_| while opened.recv().is_ok() {}).unwrap();
    });
    while disk.inner.log.awaited().is_none() {
        std::thread::yield_now();
    }
    (disk, gate)
}

#[test]
fn a_log_that_hangs_when_a_primary_comes_keeps_nobody_and_the_next_one_hears_why() {
    let directory = tempfile::tempdir().unwrap();
    let primary = Identity { id: DataId(1), current: DataId(2), ..open(&options(directory.path()), Tuning::default()).identity().unwrap() };
    let (disk, gate) = with_a_log_that_hangs(directory.path());

    let joined = disk.join(&Plan::Full(FullReason::Empty), &primary, types::Generation(1));

    assert!(matches!(joined, Err(DiskError::Failed { .. })), "{joined:?}");
    let identity = disk.identity();
    assert!(matches!(identity, Err(DiskError::Failed { .. })), "{identity:?}");
    // What is written after all makes it no standby's copy.
    drop(gate);
    while disk.inner.lock().turning {
        std::thread::yield_now();
    }
    assert!(matches!(disk.inner.lock().phase, Phase::Failed(_)));
}

#[test]
fn a_lone_nodes_log_that_hangs_is_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let (disk, gate) = with_a_log_that_hangs(directory.path());
    let starting = {
        let disk = Arc::clone(&disk);
        std::thread::spawn(move || disk.start_primary())
    };
    std::thread::sleep(Duration::from_millis(150));
    assert!(!starting.is_finished());
    drop(gate);
    starting.join().unwrap().unwrap();
}
