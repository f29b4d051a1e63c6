//! Media that fail, fill up, transfer less than asked, or are slow: a clear answer or a change of state, never a panic, never silence.

mod common;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use common::*;
use disk_buffer::disk::Tuning;
use disk_buffer::engine::faults::{Asked, Strike};
use disk_buffer::record::Limits;
use disk_buffer::{CopyState, DiskError, DiskEvent, DiskOptions};
use rand::{Rng, SeedableRng};
use types::block::{BlockError, BlockOp, BlockRequest, REQUESTS_MAX};
use types::{Commit, Epoch, Generation};

#[test]
fn a_disk_that_fails_alone_gives_the_guest_an_error_and_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let switch = Switch::default();
    let host = host(directory.path(), "one", switch.fail(is_write, libc::EIO));
    host.disk.start_primary().unwrap();
    host.write(0, 1, 4096);
    switch.throw();
    assert_eq!(host.ask(write(0, 2)).result, Err(BlockError::Io(libc::EIO)));
    let read = host.ask(BlockOp::Read { offset: 0, len: 512 }).result.unwrap().unwrap();
    assert_eq!(read[0], 1);
}

#[test]
fn a_flush_that_failed_once_never_succeeds_again() {
    let directory = tempfile::tempdir().unwrap();
    let fail_once = AtomicBool::new(true);
    let faults =
        move |asked| if asked == Asked::Sync && fail_once.swap(false, Ordering::SeqCst) { Strike::Fail(libc::EIO) } else { Strike::Pass };
    let host = host(directory.path(), "one", Some(Arc::new(faults)));
    host.disk.start_primary().unwrap();
    for _ in 0..3 {
        assert_eq!(host.ask(BlockOp::Flush).result, Err(BlockError::Io(libc::EIO)));
    }
}

#[test]
fn a_protected_primarys_failed_request_stays_in_flight_and_the_standby_can_serve_it() {
    let directory = tempfile::tempdir().unwrap();
    let switch = Switch::default();
    let (primary, standby) = protected(directory.path(), switch.fail(is_write, libc::EIO), None);
    switch.throw();
    primary.submit(7, write(4096, 9));
    let event = primary.events.recv_timeout(BOUND).unwrap();
    assert!(matches!(&event, DiskEvent::GiveUp { error, .. } if error.raw_os_error() == Some(libc::EIO)), "{event:?}");
    assert_eq!(primary.done(), [], "the guest has no answer");
    epoch(&primary, &standby, 2);
    drop(primary);
    standby.disk.activate(BOUND).unwrap();
    // The device submits what was in flight again.
    assert_eq!(standby.ask(write(4096, 9)).result, Ok(None));
    assert_eq!(standby.content()[4096], 9);
}

#[test]
fn a_failed_request_is_answered_after_all_when_no_standby_is_left_to_serve_it() {
    let directory = tempfile::tempdir().unwrap();
    let switch = Switch::default();
    let (primary, _standby) = protected(directory.path(), switch.fail(is_write, libc::EIO), None);
    switch.throw();
    primary.submit(7, write(4096, 9));
    primary.events.recv_timeout(BOUND).unwrap();
    primary.disk.struck_out().unwrap();
    let answers = primary.answers();
    assert_eq!((answers[0].tag, answers[0].result.clone()), (7, Err(BlockError::Io(libc::EIO))));
}

#[test]
fn a_standbys_disk_that_fails_says_so_and_is_never_activated() {
    let directory = tempfile::tempdir().unwrap();
    for which in [is_write as fn(Asked) -> bool, |asked| asked == Asked::Sync] {
        let switch = Switch::default();
        let (primary, standby) = protected(directory.path(), None, switch.fail(which, libc::EIO));
        standby.wait_durable(1);
        switch.throw();
        primary.write(0, 5, 4096);
        let sealed = primary.disk.seal(Epoch(2)).unwrap();
        // Its flush in the background may have failed before.
        let _ = standby.disk.stage(Epoch(2), sealed.to_vec()).and_then(|()| standby.disk.commit(Epoch(2)));
        let event = standby.events.recv_timeout(BOUND).unwrap();
        assert!(matches!(event, DiskEvent::Failed { .. }), "{event:?}");
        assert!(matches!(standby.disk.activate(BOUND), Err(DiskError::Failed { .. })));
        assert!(matches!(standby.disk.stage(Epoch(3), vec![]), Err(DiskError::Failed { .. })));
        assert_eq!(primary.ask(write(0, 6)).result, Ok(None), "the primary's guest notices nothing");
    }
}

#[test]
fn a_copy_fails_when_the_primarys_disk_cannot_be_read() {
    let directory = tempfile::tempdir().unwrap();
    let switch = Switch::default();
    let primary = host(directory.path(), "one", switch.fail(|asked| matches!(asked, Asked::Read(..)), libc::EIO));
    let standby = host(directory.path(), "two", None);
    primary.disk.start_primary().unwrap();
    primary.write(0, 1, 4096);
    switch.throw();
    let (_, mut copy) = join(&primary, &standby);
    let failed = std::iter::from_fn(|| copy.next_piece().transpose()).find_map(Result::err);
    assert!(matches!(failed, Some(DiskError::Io { .. })));
    primary.disk.unlink();
    assert_eq!(primary.ask(write(0, 6)).result, Ok(None));
}

#[test]
fn a_first_write_is_made_after_its_region_is_durably_marked_and_a_second_without_the_log() {
    let directory = tempfile::tempdir().unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    let faults = move |asked| {
        log.lock().unwrap().push(asked);
        Strike::Pass
    };
    let host = host(directory.path(), "one", Some(Arc::new(faults)));
    host.disk.start_primary().unwrap();
    host.write(MIB, 1, 4096);
    host.write(MIB + 4096, 1, 4096);
    let expected = [Asked::LogWrite, Asked::LogSync, Asked::Write(MIB, 4096), Asked::Write(MIB + 4096, 4096)];
    assert_eq!(*seen.lock().unwrap(), expected);
}

#[test]
fn without_the_log_nothing_is_written_but_what_is_there_can_be_read() {
    let directory = tempfile::tempdir().unwrap();
    for which in [(|asked| asked == Asked::LogWrite) as fn(Asked) -> bool, |asked| asked == Asked::LogSync] {
        let switch = Switch::default();
        let host = host(directory.path(), "one", switch.fail(which, libc::ENOSPC));
        host.disk.start_primary().unwrap();
        switch.throw();
        assert_eq!(host.ask(write(5 * MIB, 1)).result, Err(BlockError::Io(libc::ENOSPC)));
        assert_eq!(host.ask(write(5 * MIB, 1)).result, Err(BlockError::Io(libc::ENOSPC)));
        assert_eq!(host.ask(BlockOp::Read { offset: 5 * MIB, len: 512 }).result, Ok(Some(vec![0; 512].into())));
        assert_eq!(host.content()[5 * MIB as usize], 0, "not a byte was written");
    }
}

#[test]
fn transfers_that_come_up_short_and_calls_that_are_interrupted_go_on_where_they_stopped() {
    let directory = tempfile::tempdir().unwrap();
    let random = Mutex::new(rand::rngs::StdRng::seed_from_u64(1));
    let faults = move |_| {
        let mut random = random.lock().unwrap();
        match random.random_range(0..4) {
            0 => Strike::Short(random.random_range(1..5000)),
            1 => Strike::Fail(libc::EINTR),
            2 => Strike::Fail(libc::EAGAIN),
            _ => Strike::Pass,
        }
    };
    let host = host(directory.path(), "one", Some(Arc::new(faults)));
    host.disk.start_primary().unwrap();
    let mut guest = Guest::new(vec![0; BYTES as usize], 3);
    for _ in 0..60 {
        guest.act(&host);
    }
    guest.finish(&host);
    assert!(host.content() == guest.model);
}

#[test]
fn zeros_are_written_by_hand_where_the_file_system_knows_no_other_way() {
    let directory = tempfile::tempdir().unwrap();
    let faults = |asked| if matches!(asked, Asked::Zero(..)) { Strike::Fail(libc::EOPNOTSUPP) } else { Strike::Pass };
    let host = host(directory.path(), "one", Some(Arc::new(faults)));
    host.disk.start_primary().unwrap();
    host.write(0, 7, 1 << 20);
    assert_eq!(host.ask(BlockOp::WriteZeroes { offset: 512, len: 512 << 10, may_unmap: true }).result, Ok(None));
    assert_eq!(host.ask(BlockOp::Discard { offset: 600 << 10, len: 4096 }).result, Ok(None));
    let content = host.content();
    assert!(content[512..512 + (512 << 10)].iter().all(|byte| *byte == 0));
    assert_eq!(
        (content[511], content[512 + (512 << 10)], content[600 << 10]),
        (7, 7, 7),
        "a discard without a way to do it changes nothing"
    );
}

#[test]
fn a_deep_queue_is_bounded_and_every_request_is_answered_once() {
    let directory = tempfile::tempdir().unwrap();
    let gate = Arc::new(AtomicBool::new(false));
    let open = Arc::clone(&gate);
    // Nothing is carried out before the gate opens.
    let faults = move |_| if open.load(Ordering::SeqCst) { Strike::Pass } else { Strike::Fail(libc::EAGAIN) };
    let host = host(directory.path(), "one", Some(Arc::new(faults)));
    host.disk.start_primary().unwrap();
    for tag in 0..REQUESTS_MAX as u64 {
        host.submit(tag, write(tag * 512 % BYTES / 512 * 512, tag as u8));
    }
    assert!(host.disk.submit(BlockRequest { tag: 999, op: BlockOp::Flush }).is_err());
    gate.store(true, Ordering::SeqCst);
    let mut tags: Vec<u64> = Vec::new();
    while tags.len() < REQUESTS_MAX {
        tags.extend(host.answers().into_iter().map(|done| done.tag));
    }
    host.room.recv_timeout(BOUND).unwrap();
    tags.sort_unstable();
    assert_eq!(tags, (0..REQUESTS_MAX as u64).collect::<Vec<_>>());
    host.ask(BlockOp::Flush).result.unwrap();
}

#[test]
fn recorded_writes_press_then_wait_and_go_on_after_a_commit() {
    let directory = tempfile::tempdir().unwrap();
    let limits = Limits { soft_bytes: 1 << 20, soft_writes: 1000, hard_bytes: 2 << 20, hard_writes: 1000 };
    let path = image(directory.path(), "one", BYTES);
    let primary = Host::open_with(&options(&path), Tuning { limits, ..tuning() });
    let standby = host(directory.path(), "two", None);
    primary.disk.start_primary().unwrap();
    protect(&primary, &standby);
    let megabyte = |byte| BlockOp::Write { offset: 0, data: vec![byte; 1 << 20].into() };
    assert_eq!(primary.ask(megabyte(1)).result, Ok(None));
    primary.pressure.recv_timeout(BOUND).unwrap();
    assert_eq!(primary.ask(megabyte(2)).result, Ok(None));
    assert!(primary.disk.submit(BlockRequest { tag: 1, op: megabyte(3) }).is_err());
    assert!(primary.room.try_recv().is_err());
    let sealed = primary.disk.seal(Epoch(2)).unwrap();
    assert_eq!(sealed.len(), 2);
    assert!(primary.disk.submit(BlockRequest { tag: 1, op: megabyte(3) }).is_err(), "sealed is not committed");
    primary.disk.release(&Commit::attest(Generation(1), Epoch(2)));
    primary.room.recv_timeout(BOUND).unwrap();
    assert_eq!(primary.ask(megabyte(3)).result, Ok(None));
}

#[test]
fn a_slow_standby_holds_its_caller_back_and_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let slow = Arc::clone(&count);
    // Every write is turned back a few times.
    let faults = move |asked| {
        if is_write(asked) && !slow.fetch_add(1, Ordering::SeqCst).is_multiple_of(4) { Strike::Fail(libc::EAGAIN) } else { Strike::Pass }
    };
    let (primary, standby) = protected(directory.path(), None, Some(Arc::new(faults)));
    let mut guest = Guest::new(primary.content(), 4);
    for number in 2..8 {
        for _ in 0..150 {
            while !guest.act(&primary) && guest.in_flight > 0 {
                let done = primary.answers();
                guest.answered(&done);
            }
        }
        epoch(&primary, &standby, number);
    }
    assert_eq!(standby.disk.wait_applied(BOUND).unwrap(), Epoch(7));
    assert!(standby.content() == guest.model);
}

#[test]
fn the_log_can_be_elsewhere_and_a_foreign_file_in_its_place_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = image(directory.path(), "one", BYTES);
    let log = directory.path().join("elsewhere");
    let elsewhere = DiskOptions { log: Some(log.clone()), ..options(&path) };
    let host = Host::open(&elsewhere);
    host.disk.start_primary().unwrap();
    assert!(log.exists() && !directory.path().join("one.lockstep").exists());
    assert_eq!(host.disk.identity().unwrap().state, CopyState::Consistent);
    drop(host);
    std::fs::write(&log, vec![b'x'; 10_000]).unwrap();
    let refused = disk_buffer::Disk::open(types::block::DiskIndex(0), &elsewhere);
    assert!(matches!(refused, Err(DiskError::NotALog(_))));
    assert_eq!(std::fs::read(&log).unwrap(), vec![b'x'; 10_000]);
}

#[test]
fn a_full_copy_is_agreed_on_at_once_and_begins_when_the_standby_s_disk_reads_as_zeros() {
    let directory = tempfile::tempdir().unwrap();
    let switch = Switch::default();
    let (faults, gate) = hanging(&switch, |asked| matches!(asked, Asked::Zero(..)));
    let primary = host(directory.path(), "one", None);
    let path = directory.path().join("two");
    std::fs::write(&path, vec![0xee; BYTES as usize]).unwrap();
    let standby = Host::open_with(&DiskOptions { overwrite: true, ..options(&path) }, Tuning { faults, ..tuning() });
    primary.disk.start_primary().unwrap();
    primary.write(4096, 7, 4096);
    switch.throw();

    let (_, broken_off) = join(&primary, &standby);
    assert!(!standby.disk.wait_wiped(std::time::Duration::from_millis(20)).unwrap());
    // The primary goes, and the next one finds a standby that has not begun to be its copy.
    drop(broken_off);
    primary.disk.unlink();
    drop(gate);
    let (_, mut copy) = join(&primary, &standby);
    assert!(standby.disk.wait_wiped(BOUND).unwrap());
    hand_over(&mut copy, &standby);
    copy.record(types::Generation(1)).unwrap();
    epoch(&primary, &standby, 1);
    standby.disk.wait_applied(BOUND).unwrap();

    assert!(standby.content() == primary.content());
}
