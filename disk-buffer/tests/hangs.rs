//! Media that hang: no error, no answer. At a protected primary, and at a standby, whose copy counts as failed (S2).

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::*;
use disk_buffer::disk::Tuning;
use disk_buffer::engine::faults::{Asked, Faults};
use disk_buffer::mirror::standby::BACKLOG_REQUESTS;
use disk_buffer::{DiskError, DiskEvent, DiskOptions, Plan};
use types::Epoch;
use types::block::{BlockOp, DiskChange, DiskIndex, DiskWrite};

/// Far more than a busy machine keeps a thread waiting.
const HANG: Duration = Duration::from_secs(2);

#[test]
fn a_protected_primarys_disk_that_hangs_makes_it_give_up_its_role_and_one_without_a_standby_waits() {
    let directory = tempfile::tempdir().unwrap();
    let switch = Switch::default();
    let (faults, gate) = hanging(&switch, is_write);
    let hang = HANG;
    let primary = Host::open_with(&options(&image(directory.path(), "one", BYTES)), Tuning { faults, hang, ..tuning() });
    let standby = host(directory.path(), "two", None);
    primary.disk.start_primary().unwrap();
    protect(&primary, &standby);
    // A disk that is slow and answers is none that hangs.
    primary.write(0, 1, 4096);
    std::thread::sleep(hang * 5 / 4);
    primary.write(0, 2, 4096);
    assert!(primary.events.try_recv().is_err());

    switch.throw();
    primary.submit(7, write(4096, 9));
    let event = primary.events.recv_timeout(BOUND).unwrap();

    assert!(matches!(&event, DiskEvent::GiveUp { error, .. } if error.raw_os_error() == Some(libc::ETIMEDOUT)), "{event:?}");
    // Struck out after all: the guest waits, as for any disk.
    primary.disk.struck_out().unwrap();
    assert!(primary.events.recv_timeout(hang * 5 / 4).is_err());
    drop(gate);
    assert_eq!(primary.answers()[0].result, Ok(None));
}

/// A protected primary, whose standby's medium is this one; its options, to open it again.
fn pair(directory: &std::path::Path, faults: Option<Arc<dyn Faults>>) -> (Host, Host, DiskOptions) {
    let primary = host(directory, "one", None);
    let options = options(&image(directory, "two", BYTES));
    let standby = Host::open_with(&options, Tuning { faults, hang: HANG, ..tuning() });
    primary.disk.start_primary().unwrap();
    protect(&primary, &standby);
    standby.wait_durable(1);
    (primary, standby, options)
}

fn is_sync(asked: Asked) -> bool {
    asked == Asked::Sync
}

/// The news that a copy has failed because its medium hangs.
fn until_failed(standby: &Host) {
    let failed = std::iter::from_fn(|| Some(standby.events.recv_timeout(BOUND).unwrap())).find_map(|event| match event {
        DiskEvent::Failed { error, .. } => Some(error),
        DiskEvent::Durable { .. } => None,
        other => panic!("{other:?}"),
    });
    let error = failed.unwrap();
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
    assert!(error.to_string().contains("hangs"), "{error}");
}

#[test]
fn a_standbys_medium_that_hangs_is_one_that_failed_and_the_copy_is_made_good_from_the_change_log() {
    for which in [is_write as fn(Asked) -> bool, is_sync] {
        let directory = tempfile::tempdir().unwrap();
        let switch = Switch::default();
        let (faults, gate) = hanging(&switch, which);
        let (primary, standby, options) = pair(directory.path(), faults);
        primary.disk.peer_durable(Epoch(1));
        primary.wait_cleared();
        primary.write(0, 5, 4096);
        switch.throw();

        // One write, and then the guest is quiet: nothing fills up.
        epoch(&primary, &standby, 2);

        until_failed(&standby);
        assert!(matches!(standby.disk.stage(Epoch(3), vec![]), Err(DiskError::Failed { .. })));
        assert!(matches!(standby.disk.activate(BOUND), Err(DiskError::Failed { .. })), "never, and nobody waits");
        assert!(matches!(standby.disk.identity(), Err(DiskError::Failed { .. })), "no primary is let in");
        primary.disk.struck_out().unwrap();
        primary.write(0, 6, 4096);
        // Even when the medium answers: what it has lost meanwhile is not known.
        drop(gate);
        assert!(matches!(standby.disk.activate(BOUND), Err(DiskError::Failed { .. })));
        drop(standby);
        let again = Host::open_with(&options, tuning());
        let plan = protect(&primary, &again);
        assert!(matches!(&plan, Plan::Regions(runs) if runs.len() == 1), "{plan:?}");
        again.disk.wait_applied(BOUND).unwrap();
        assert!(again.content() == primary.content());
    }
}

#[test]
fn a_standbys_medium_that_is_slow_and_answers_is_none_that_hangs() {
    let directory = tempfile::tempdir().unwrap();
    let slow = |asked| {
        if is_write(asked) {
            std::thread::sleep(HANG / 8);
        }
        disk_buffer::engine::faults::Strike::Pass
    };
    let (primary, standby, _) = pair(directory.path(), Some(Arc::new(slow)));
    for number in 2..12 {
        primary.write(number * MIB / 2, number as u8, 4096);
        epoch(&primary, &standby, number);
        assert_eq!(standby.disk.wait_applied(BOUND).unwrap(), Epoch(number));
    }
    assert!(!standby.events.try_iter().any(|event| matches!(event, DiskEvent::Failed { .. })));
    assert!(standby.content() == primary.content());
}

#[test]
fn whoever_hands_writes_to_a_standbys_medium_that_hangs_is_not_kept() {
    let directory = tempfile::tempdir().unwrap();
    let switch = Switch::default();
    let (faults, gate) = hanging(&switch, is_write);
    let (_primary, standby, _) = pair(directory.path(), faults);
    switch.throw();
    let write = |_| DiskWrite { disk: DiskIndex(0), offset: 0, change: DiskChange::Data([7; 512].into()) };
    standby.disk.stage(Epoch(2), (0..=BACKLOG_REQUESTS).map(write).collect()).unwrap();

    let kept = standby.disk.commit(Epoch(2));

    assert!(matches!(kept, Err(DiskError::Failed { .. })), "{kept:?}");
    until_failed(&standby);
    drop(gate);
}

#[test]
fn a_takeover_waits_for_a_medium_that_hangs_for_its_bound_and_starts_if_it_answers_in_time() {
    for answers in [true, false] {
        let directory = tempfile::tempdir().unwrap();
        let switch = Switch::default();
        let (faults, gate) = hanging(&switch, is_write);
        let hang = if answers { BOUND } else { HANG };
        let primary = host(directory.path(), "one", None);
        let standby = Host::open_with(&options(&image(directory.path(), "two", BYTES)), Tuning { faults, hang, ..tuning() });
        primary.disk.start_primary().unwrap();
        protect(&primary, &standby);
        standby.wait_durable(1);
        switch.throw();
        primary.write(0, 5, 4096);
        epoch(&primary, &standby, 2);
        drop(primary);
        standby.disk.taking_over();

        let disk = Arc::clone(&standby.disk);
        let asked = Instant::now();
        let activating = std::thread::spawn(move || disk.activate(10 * BOUND));
        if answers {
            drop(gate);
            activating.join().unwrap().unwrap();
            assert_eq!(standby.ask(BlockOp::Read { offset: 0, len: 512 }).result, Ok(Some(vec![5; 512].into())));
        } else {
            let activated = activating.join().unwrap();
            assert!(matches!(activated, Err(DiskError::Failed { .. })), "{activated:?}");
            assert!(asked.elapsed() < BOUND, "{:?}", asked.elapsed());
            drop(gate);
        }
    }
}

#[test]
fn a_takeover_that_waits_for_space_waits_for_no_medium_that_hangs() {
    let directory = tempfile::tempdir().unwrap();
    let switch = Switch::default();
    let (primary, standby, _) = pair(directory.path(), switch.fail(is_write, libc::ENOSPC));
    switch.throw();
    standby.disk.taking_over();
    primary.write(0, 5, 4096);
    epoch(&primary, &standby, 2);
    drop(primary);
    let disk = Arc::clone(&standby.disk);
    let activating = std::thread::spawn(move || disk.activate(BOUND));

    std::thread::sleep(HANG * 3 / 2);
    assert!(!activating.is_finished());
    switch.back();

    activating.join().unwrap().unwrap();
}
