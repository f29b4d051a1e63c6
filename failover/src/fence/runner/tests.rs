//! The fencing thread with a fake fence and a real file arbiter: attempts, the confirmed grant, and their end.

use std::sync::Mutex;

use types::NodeId;

use super::*;
use crate::file::FileArbiter;

/// Fails so often, then waits for the word to go on, then succeeds.
struct Fake {
    failures: Mutex<u32>,
    confirm: bool,
    released: Mutex<Vec<bool>>,
}

impl Fence for Fake {
    fn shut_out(&self, _: &[Predecessor], _: &Owner, grant: &dyn Grant) -> Result<(), FenceError> {
        if self.confirm {
            grant.confirm()?;
        }
        let mut failures = self.failures.lock().unwrap();
        if *failures == 0 {
            return Ok(());
        }
        *failures -= 1;
        Err(FenceError::NotReady("not yet".to_owned()))
    }

    fn probe(&self) -> Result<(), FenceError> {
        Ok(())
    }

    fn release(&self, _: &Owner, alone: bool) {
        self.released.lock().unwrap().push(alone);
    }
}

fn record(generation: u64, owner: &str) -> Record {
    Record {
        generation: Generation(generation),
        owner: NodeId(owner.to_owned()),
        host: None,
        instance: 1,
        standby: None,
        unfenced: Vec::new(),
    }
}

fn runner(directory: &std::path::Path, failures: u32, confirm: bool) -> FenceRunner {
    let path = directory.join("record");
    let arbiter: ArbiterMaker = Arc::new(move || Box::new(FileArbiter::new(path.clone(), VmId("vm0".to_owned()))));
    let fence = Fake { failures: Mutex::new(failures), confirm, released: Mutex::default() };
    FenceRunner::new(Arc::new(fence), VmId("vm0".to_owned()), arbiter).with_first_pause(Duration::from_millis(1))
}

fn write(directory: &std::path::Path, old: Option<&Record>, new: &Record) {
    let mut arbiter = FileArbiter::new(directory.join("record"), VmId("vm0".to_owned()));
    assert_eq!(arbiter.swap(old, new).unwrap(), Swap::Done);
}

fn hear(runner: &FenceRunner) -> FenceNews {
    runner.news().recv_timeout(Duration::from_secs(20)).expect("news")
}

#[test]
fn a_fence_that_fails_is_tried_again_and_every_failure_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let mut runner = runner(directory.path(), 2, false);
    runner.start(record(2, "b"), Vec::new()).unwrap();
    for _ in 0..2 {
        assert!(matches!(hear(&runner), FenceNews::Failed { gave_up: false, why, .. } if why.contains("not yet")));
    }
    assert_eq!(hear(&runner), FenceNews::Done { generation: Generation(2) });
}

#[test]
fn a_grant_is_confirmed_at_the_arbiter() {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), None, &record(2, "b"));
    let mut runner = runner(directory.path(), 0, true);
    runner.start(record(2, "b"), Vec::new()).unwrap();
    assert_eq!(hear(&runner), FenceNews::Done { generation: Generation(2) });
}

#[test]
fn a_fence_whose_grant_is_over_ends() {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), None, &record(3, "c"));
    let mut runner = runner(directory.path(), 0, true);
    runner.start(record(2, "b"), Vec::new()).unwrap();
    let FenceNews::Failed { gave_up: true, why, .. } = hear(&runner) else { panic!("over") };
    assert!(why.contains("names c, in generation 3"), "{why}");
}

#[test]
fn an_arbiter_that_does_not_answer_is_asked_again() {
    // No directory, no answer.
    let mut runner = runner(std::path::Path::new("/nonexistent"), 0, true);
    runner.start(record(2, "b"), Vec::new()).unwrap();
    for _ in 0..2 {
        assert!(matches!(hear(&runner), FenceNews::Failed { gave_up: false, .. }));
    }
}

#[test]
fn no_attempt_outlives_its_runner() {
    let directory = tempfile::tempdir().unwrap();
    let mut runner = runner(directory.path(), u32::MAX, false);
    runner.start(record(2, "b"), Vec::new()).unwrap();
    hear(&runner);
    // The thread holds it as well, until it ends.
    let wanted = Arc::downgrade(&runner.wanted);
    drop(runner);
    assert!(wanted.upgrade().is_none());
}

#[test]
fn a_reservation_is_given_up_only_where_no_other_owner_ever_was() {
    let old = vec![Predecessor { node: NodeId("a".to_owned()), host: None }];
    for (generation, old, alone) in [(1, Vec::new(), true), (2, Vec::new(), false), (2, old, false)] {
        let fence = Arc::new(Fake { failures: Mutex::new(0), confirm: false, released: Mutex::default() });
        let arbiter: ArbiterMaker = Arc::new(|| Box::new(crate::memory::MemoryArbiter::default()));
        let mut runner = FenceRunner::new(Arc::clone(&fence) as Arc<dyn Fence>, VmId("vm0".to_owned()), arbiter);
        runner.release();
        runner.start(record(generation, "b"), old).unwrap();
        hear(&runner);
        runner.release();
        assert_eq!(*fence.released.lock().unwrap(), [alone], "generation {generation}");
    }
}
