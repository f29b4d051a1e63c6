//! Media that are full: the guest's writes wait for space, unless another host's copy can serve instead.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::*;
use disk_buffer::DiskEvent;
use disk_buffer::disk::Tuning;
use types::Epoch;
use types::block::{BlockError, BlockOp};

fn until_full(host: &Host) -> String {
    loop {
        match host.events.recv_timeout(BOUND).expect("it is told that the disk is full") {
            DiskEvent::Full { text, .. } => return text,
            DiskEvent::Durable { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

/// Nothing more is told for longer than any bound here.
fn nothing_is_given_up(host: &Host) {
    let event = host.events.recv_timeout(Duration::from_millis(400));
    assert!(event.is_err(), "{event:?}");
}

#[test]
fn a_lone_guests_writes_wait_for_space_on_a_full_file_system_while_the_rest_goes_on() {
    on_a_small_file_system(|at| {
        let ballast = at.join("ballast");
        std::fs::write(&ballast, vec![1; 1 << 20]).unwrap();
        let host = host(at, "one", None);
        host.disk.start_primary().unwrap();
        host.write(0, 9, 4096);

        for region in 1..3 {
            host.submit(region, BlockOp::Write { offset: region * MIB, data: vec![7; 1 << 20].into() });
        }

        let text = until_full(&host);
        assert!(text.contains("no space left for") && text.contains("df"), "{text}");
        nothing_is_given_up(&host);
        assert_eq!(host.done(), [], "two mebibytes do not fit, and no write has failed");
        let read = host.ask(BlockOp::Read { offset: 0, len: 512 }).result.unwrap().unwrap();
        assert_eq!(read[0], 9);
        host.write(0, 8, 4096);

        // Space for one of them; then the guest itself gives up the other's place.
        std::fs::remove_file(&ballast).unwrap();
        let first = host.answers();
        assert!(matches!(first[..], [ref one] if one.result == Ok(None)), "{first:?}");
        host.submit(9, BlockOp::Discard { offset: first[0].tag * MIB, len: MIB });
        let mut rest = Vec::new();
        while rest.len() < 2 {
            rest.extend(host.answers());
        }
        assert!(rest.iter().all(|done| done.result == Ok(None)), "{rest:?}");
        assert_eq!(host.ask(BlockOp::Flush).result, Ok(None));
        let second = 3 - first[0].tag;
        assert!(host.content()[(second * MIB) as usize..][..1 << 20].iter().all(|byte| *byte == 7));
    });
}

#[test]
fn any_other_error_is_answered() {
    let directory = tempfile::tempdir().unwrap();
    let switch = Switch::default();
    let host = host(directory.path(), "one", switch.fail(is_write, libc::EIO));
    host.disk.start_primary().unwrap();
    switch.throw();
    assert_eq!(host.ask(write(0, 1)).result, Err(BlockError::Io(libc::EIO)));
}

#[test]
fn a_protected_primary_that_stays_full_gives_up_its_role_and_the_standby_serves_the_write() {
    let directory = tempfile::tempdir().unwrap();
    let switch = Switch::default();
    let (primary, standby) = protected(directory.path(), switch.fail(is_write, libc::ENOSPC), None);
    switch.throw();
    primary.submit(7, write(4096, 9));
    until_full(&primary);
    let event = primary.events.recv_timeout(BOUND).unwrap();
    assert!(matches!(&event, DiskEvent::GiveUp { error, .. } if error.raw_os_error() == Some(libc::ENOSPC)), "{event:?}");
    assert_eq!(primary.done(), [], "the guest has no answer");
    epoch(&primary, &standby, 2);
    drop(primary);
    standby.disk.activate(BOUND).unwrap();
    assert_eq!(standby.ask(write(4096, 9)).result, Ok(None));
}

#[test]
fn two_full_media_at_once_end_in_a_lone_guest_that_waits() {
    let directory = tempfile::tempdir().unwrap();
    let (switch, full) = (Switch::default(), Some(Duration::from_millis(500)));
    let tuning = |faults| Tuning { faults, full: full.unwrap(), ..tuning() };
    let open = |name| Host::open_with(&options(&image(directory.path(), name, BYTES)), tuning(switch.fail(is_write, libc::ENOSPC)));
    let (primary, standby) = (open("one"), open("two"));
    primary.disk.start_primary().unwrap();
    protect(&primary, &standby);
    standby.wait_durable(1);
    switch.throw();

    primary.submit(7, write(4096, 9));
    epoch(&primary, &standby, 2);

    until_full(&standby);
    let event = standby.events.recv_timeout(BOUND).unwrap();
    assert!(matches!(&event, DiskEvent::Failed { error, .. } if error.raw_os_error() == Some(libc::ENOSPC)), "{event:?}");
    until_full(&primary);
    // The primary, which was full first, has not given up its role yet; its standby is struck out, and it never will.
    primary.disk.struck_out().unwrap();
    let event = primary.events.recv_timeout(full.unwrap() * 3);
    assert!(event.is_err(), "{event:?}");
    switch.back();
    let done = primary.answers();
    assert_eq!((done[0].tag, done[0].result.clone()), (7, Ok(None)));
    assert_eq!(primary.content()[4096], 9);
}

#[test]
fn a_standby_that_takes_over_waits_for_space_however_long_it_takes() {
    let directory = tempfile::tempdir().unwrap();
    let switch = Switch::default();
    let (primary, standby) = protected(directory.path(), None, switch.fail(is_write, libc::EDQUOT));
    standby.wait_durable(1);
    switch.throw();
    standby.disk.taking_over();
    primary.write(4096, 9, 4096);
    epoch(&primary, &standby, 2);
    drop(primary);

    std::thread::scope(|scope| {
        // Its bound is long over when there is space.
        let activated = scope.spawn(|| standby.disk.activate(Duration::from_millis(1)));
        until_full(&standby);
        nothing_is_given_up(&standby);
        assert!(!activated.is_finished());
        switch.back();
        activated.join().unwrap().unwrap();
    });

    assert_eq!(standby.content()[4096], 9);
    assert_eq!(standby.disk.wait_applied(BOUND).ok(), None, "a primary's now");
    assert_eq!(standby.ask(write(0, 3)).result, Ok(None));
}

#[test]
fn a_standby_that_serves_a_primary_again_does_not_wait_for_ever() {
    let directory = tempfile::tempdir().unwrap();
    let switch = Switch::default();
    let primary = host(directory.path(), "one", None);
    let standby = host(directory.path(), "two", switch.fail(is_write, libc::ENOSPC));
    primary.disk.start_primary().unwrap();
    // As after a takeover that another node won.
    standby.disk.taking_over();
    protect(&primary, &standby);
    standby.wait_durable(1);
    switch.throw();
    primary.write(4096, 9, 4096);
    epoch(&primary, &standby, 2);
    until_full(&standby);
    assert!(matches!(standby.events.recv_timeout(BOUND).unwrap(), DiskEvent::Failed { .. }));
    assert_eq!(primary.disk.seal(Epoch(3)).unwrap().len(), 0);
}

#[test]
fn a_disk_that_is_let_go_does_not_wait_for_space() {
    let directory = tempfile::tempdir().unwrap();
    let switch = Switch::default();
    let host = host(directory.path(), "one", switch.fail(is_write, libc::ENOSPC));
    host.disk.start_primary().unwrap();
    switch.throw();
    for tag in 0..200 {
        host.submit(tag, write(tag * 4096, 1));
    }
    until_full(&host);
    assert_eq!(
        host.ask(BlockOp::Read { offset: 7 * MIB, len: 512 }).result.unwrap().unwrap()[0],
        0,
        "more are held than the kernel is asked at a time"
    );
    let begun = std::time::Instant::now();
    drop(Arc::into_inner(host.disk));
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
}

#[test]
fn a_host_file_system_that_is_full_under_a_standby_strikes_it_out_and_the_guest_runs_on() {
    on_a_small_file_system(|at| {
        let directory = tempfile::tempdir().unwrap();
        let primary = host(directory.path(), "one", None);
        let standby = host(at, "two", None);
        primary.disk.start_primary().unwrap();
        protect(&primary, &standby);
        standby.wait_durable(1);
        for region in 0..4 {
            assert_eq!(primary.ask(BlockOp::Write { offset: region * MIB, data: vec![1; 1 << 20].into() }).result, Ok(None));
        }
        epoch(&primary, &standby, 2);
        until_full(&standby);
        let event = standby.events.recv_timeout(BOUND).unwrap();
        assert!(matches!(&event, DiskEvent::Failed { error, .. } if error.raw_os_error() == Some(libc::ENOSPC)), "{event:?}");
        primary.disk.struck_out().unwrap();
        assert_eq!(primary.ask(write(0, 6)).result, Ok(None));
    });
}
