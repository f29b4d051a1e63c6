//! A shared device that fails, hangs, or refuses this node: what becomes of the guest's writes.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::shared::{alone, epoch, failing, hanging, holding, pair, read};
use common::*;
use disk_buffer::disk::Tuning;
use disk_buffer::engine::faults::{Asked, Strike};
use disk_buffer::{DiskError, DiskEvent, Hooks, Plan};
use types::Epoch;
use types::block::{BlockDone, BlockError, BlockOp, BlockRequest};

#[test]
fn a_file_that_cannot_be_made_durable_is_a_disk_that_failed() {
    let directory = tempfile::tempdir().unwrap();
    let switch = Arc::new(AtomicBool::new(false));
    let on = Arc::clone(&switch);
    let faults = move |asked| if asked == Asked::Sync && on.load(Ordering::SeqCst) { Strike::Fail(libc::EIO) } else { Strike::Pass };
    let (primary, standby) = pair(directory.path(), Tuning { faults: Some(Arc::new(faults)), ..tuning() });
    switch.store(true, Ordering::SeqCst);

    primary.write(0, 5, 512);
    epoch(&primary, &standby, 2);

    assert!(matches!(primary.events.recv_timeout(BOUND).unwrap(), DiskEvent::GiveUp { .. }));
    assert_eq!(standby.disk.oldest_kept(), Some(Epoch(2)), "the standby makes it again");
}

#[test]
fn a_disk_that_has_lost_a_write_takes_none_for_a_standby_and_brings_none_in() {
    let directory = tempfile::tempdir().unwrap();
    let (switch, faulty) = failing(libc::EREMOTEIO);
    let primary = alone(directory.path(), faulty);
    let (standby, mut copy) = holding(&primary, tuning());
    assert!(copy.next_piece().unwrap().is_none());
    epoch(&primary, &standby, 1);
    // A copy that was begun before the loss is no way around it.
    switch.0.store(true, Ordering::SeqCst);
    primary.write(0, 5, 512);
    primary.disk.struck_out().unwrap();
    let flush = primary.ask(BlockOp::Flush).result;
    assert_eq!(flush, Err(BlockError::Io(libc::EREMOTEIO)));
    switch.0.store(false, Ordering::SeqCst);

    let refused = primary.disk.identity().unwrap_err();
    assert!(matches!(refused, DiskError::Failed { .. }), "{refused}");
    assert!(matches!(primary.disk.begin_copy(&Plan::Nothing, &standby.identity()), Err(DiskError::Failed { .. })));

    let write = BlockOp::Write { offset: 0, data: vec![1; 512].into() };
    assert_eq!(primary.ask(write).result, Err(BlockError::Io(libc::EREMOTEIO)));
}

#[test]
fn a_device_that_fails_under_a_protected_primary_leaves_the_guest_and_its_writes_to_the_standby() {
    let directory = tempfile::tempdir().unwrap();
    let (switch, faulty) = failing(libc::EIO);
    let (primary, standby) = pair(directory.path(), faulty);
    primary.write(0, 5, 512);
    primary.write(8192, 6, 512);
    primary.submit(9, BlockOp::Flush);
    switch.throw();

    epoch(&primary, &standby, 2);

    let event = primary.events.recv_timeout(BOUND).unwrap();
    assert!(matches!(&event, DiskEvent::GiveUp { error, .. } if error.raw_os_error() == Some(libc::EIO)), "{event:?}");
    assert_eq!(primary.done(), [], "the flush is not answered");
    assert_eq!(read(&primary, 0, 512), [5; 512], "the guest's reads are right to its end");
    drop(primary);
    standby.disk.activate(BOUND).unwrap();
    // The device submits what was in flight again.
    assert_eq!(standby.ask(BlockOp::Flush).result, Ok(None));
    assert_eq!((standby.content()[0], standby.content()[8192]), (5, 6));
}

#[test]
fn a_device_that_fails_a_lone_guests_answered_write_gives_errors_from_then_on() {
    let directory = tempfile::tempdir().unwrap();
    let (switch, faulty) = failing(libc::EREMOTEIO);
    let (primary, _standby) = pair(directory.path(), faulty);
    primary.write(0, 5, 512);
    primary.submit(9, BlockOp::Flush);
    switch.throw();

    primary.disk.struck_out().unwrap();

    let error = Err(BlockError::Io(libc::EREMOTEIO));
    assert_eq!(primary.answers(), [BlockDone { tag: 9, result: error.clone() }]);
    switch.back();
    for op in [BlockOp::Flush, BlockOp::Read { offset: 0, len: 512 }, BlockOp::Write { offset: 0, data: vec![1; 512].into() }] {
        assert_eq!(primary.ask(op).result, error.clone());
    }
}

#[test]
fn a_device_that_hangs_under_a_protected_primary_has_it_give_up_its_role() {
    let directory = tempfile::tempdir().unwrap();
    let (hangs, tuning) = hanging(Tuning { hang: Duration::from_millis(50), ..tuning() });
    let (primary, standby) = pair(directory.path(), tuning);
    primary.write(0, 5, 512);
    hangs.store(true, Ordering::SeqCst);

    epoch(&primary, &standby, 2);

    assert!(matches!(primary.events.recv_timeout(BOUND).unwrap(), DiskEvent::GiveUp { .. }));
    hangs.store(false, Ordering::SeqCst);
}

#[test]
fn a_node_whose_write_the_device_refuses_for_a_newer_owner_says_so_and_answers_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (switch, faulty) = failing(libc::EBADE);
    for protected in [true, false] {
        switch.back();
        let (primary, standby) = pair(directory.path(), faulty.clone());
        if !protected {
            primary.disk.struck_out().unwrap();
        }
        switch.throw();

        primary.submit(1, BlockOp::Write { offset: 0, data: vec![1; 512].into() });
        if protected {
            epoch(&primary, &standby, 2);
        }

        assert!(matches!(primary.events.recv_timeout(BOUND).unwrap(), DiskEvent::ShutOut { .. }));
        assert_eq!(primary.done().len(), usize::from(protected), "what was not held has no answer");
        assert!(primary.disk.submit(BlockRequest { tag: 2, op: BlockOp::Flush }).is_err());

        // Whoever had the disk at that moment may not have been the one who runs the guest.
        let (tell, told) = std::sync::mpsc::channel();
        let event = Box::new(move |event| tell.send(event).unwrap());
        primary.disk.attach(Hooks { room: Box::new(|| {}), pressure: Box::new(|| {}), waiting: Box::new(|| {}), event });
        assert!(matches!(told.recv_timeout(BOUND).unwrap(), DiskEvent::ShutOut { .. }));
    }
}
