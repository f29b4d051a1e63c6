//! One device and two hosts: what is held, what is on the device when, and what a takeover finds.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use common::shared::{BYTES, alone, commit, committed_there, epoch, hanging, holding, pair, read, shared, wait_issued};
use common::*;
use disk_buffer::disk::Tuning;
use disk_buffer::engine::faults::{Asked, Faults, Strike};
use disk_buffer::record::Limits;
use disk_buffer::{Cache, Disk, DiskError, DiskEvent, DiskOptions, Plan, Refusal, plan};
use rand::{Rng, SeedableRng};
use types::block::{BlockDone, BlockOp, BlockRequest, DiskIndex};
use types::{Epoch, Generation};

/// The word of what is on the device reaches the standby.
fn hear(primary: &Host, standby: &Host) {
    for event in primary.events.try_iter() {
        let DiskEvent::Issued { generation, epoch, .. } = event else { panic!("{event:?}") };
        standby.disk.issued(generation, epoch);
    }
}

/// The guest reads all of its disk, while other requests of it may be in flight.
fn prove(guest: &mut Guest, host: &Host, what: &str) {
    let model = guest.model.clone();
    for (index, expected) in model.chunks(MIB as usize).enumerate() {
        let (offset, len) = (index as u64 * MIB, expected.len() as u32);
        while host.disk.submit(BlockRequest { tag: u64::MAX, op: BlockOp::Read { offset, len } }).is_err() {
            guest.answered(&host.answers());
        }
        let found = loop {
            let (mine, others): (Vec<_>, Vec<_>) = host.answers().into_iter().partition(|done| done.tag == u64::MAX);
            guest.answered(&others);
            if let Some(done) = mine.into_iter().next() {
                break done.result.unwrap().unwrap();
            }
        };
        let differs = found.iter().zip(expected).position(|(a, b)| a != b);
        assert_eq!(differs.map(|at| index * MIB as usize + at), None, "{what}");
    }
}

/// One life: a guest runs, standbys join, and take over or are struck out.
fn life(seed: u64) {
    let directory = tempfile::tempdir().unwrap();
    let mut guest = Guest::new(vec![0; BYTES as usize], seed);
    guest.discards = false;
    // A medium whose blocks are larger than the guest's sectors, a medium that transfers less than it is asked for, both, or neither.
    let shorts = guest.random.random_bool(0.5);
    let faults: Option<Arc<dyn Faults>> = shorts.then(|| {
        let random = std::sync::Mutex::new(rand::rngs::StdRng::seed_from_u64(seed));
        let short = move |asked| match asked {
            Asked::Read(_, len) | Asked::Write(_, len) if len > 4096 => Strike::Short(random.lock().unwrap().random_range(1..len)),
            _ => Strike::Pass,
        };
        Arc::new(short) as Arc<dyn Faults>
    });
    let unit = if guest.random.random_bool(0.5) { 4096 } else { 512 };
    let tuning = Tuning { unit, faults, ..tuning() };
    let mut primary = alone(directory.path(), tuning.clone());
    let some = |guest: &mut Guest, host: &Host, most: u32| {
        (0..guest.random.random_range(0..most)).for_each(|_| {
            guest.act(host);
        })
    };
    for link in 0..5 {
        some(&mut guest, &primary, 30);
        let (standby, mut copy) = holding(&primary, tuning.clone());
        some(&mut guest, &primary, 20);
        assert!(copy.next_piece().unwrap().is_none());
        drop(copy);
        let mut kept = guest.model.clone();
        let mut released = 0;
        let last = guest.random.random_range(1..7);
        for number in 1..=last {
            some(&mut guest, &primary, 30);
            if guest.random.random_bool(0.1) {
                // A capture that failed.
                primary.disk.seal(Epoch(number)).unwrap();
                some(&mut guest, &primary, 5);
                primary.disk.unseal(Epoch(number));
            }
            kept.clone_from(&guest.model);
            committed_there(&primary, &standby, number);
            some(&mut guest, &primary, 30);
            if guest.random.random_bool(0.7) {
                released = number;
                primary.disk.release(&commit(number));
            }
            if guest.random.random_bool(0.5) {
                hear(&primary, &standby);
            }
            if guest.random.random_bool(0.2) {
                prove(&mut guest, &primary, &format!("seed {seed}, link {link}, epoch {number}: the guest's reads"));
            }
        }
        let what = format!("seed {seed}, link {link}, {last} epochs, {released} released");
        if guest.random.random_bool(0.3) {
            drop(standby);
            primary.disk.struck_out().unwrap();
        } else {
            // An epoch that is not committed: its writes never were.
            let sealed = primary.disk.seal(Epoch(last + 1)).unwrap();
            standby.disk.stage(Epoch(last + 1), sealed.to_vec()).unwrap();
            drop(primary);
            standby.disk.discard_uncommitted();
            standby.disk.activate(BOUND).unwrap();
            primary = standby;
            guest.model = kept;
            guest.in_flight = 0;
            prove(&mut guest, &primary, &format!("{what}: taken over"));
        }
        some(&mut guest, &primary, 10);
        let model = guest.model.clone();
        guest.finish(&primary);
        assert_eq!(primary.ask(BlockOp::Flush).result, Ok(None));
        assert!(primary.content() == model, "{what}: the device after a flush");
        // Another link has another generation, and the word of this one counts no more.
        primary.events.try_iter().for_each(|event| assert!(matches!(event, DiskEvent::Issued { .. }), "{event:?}"));
    }
}

#[test]
fn reads_takeovers_and_the_device_after_a_flush_have_what_the_guest_wrote() {
    for seed in 0..8 {
        life(seed);
    }
}

#[test]
fn a_write_is_answered_at_once_is_on_the_device_after_its_commit_and_is_read_in_between() {
    let directory = tempfile::tempdir().unwrap();
    let (primary, standby) = pair(directory.path(), tuning());

    primary.write(4096, 5, 4096);
    committed_there(&primary, &standby, 2);

    assert_eq!(read(&primary, 4096, 512), [5; 512]);
    assert_eq!(read(&primary, 0, 8192)[4095..4097], [0, 5], "half of it from the device");
    assert_eq!(primary.content()[4096], 0);
    primary.disk.release(&commit(2));
    wait_issued(&primary, 2);
    assert_eq!(primary.content()[4096], 5);
    assert_eq!(standby.disk.oldest_kept(), Some(Epoch(2)));
    standby.disk.issued(Generation(7), Epoch(2));
    assert_eq!(standby.disk.oldest_kept(), None);
}

#[test]
fn what_was_not_held_is_on_the_device_before_the_first_epoch() {
    let directory = tempfile::tempdir().unwrap();
    let slow = Arc::new(AtomicBool::new(true));
    let faults = {
        let slow = Arc::clone(&slow);
        move |asked| {
            while matches!(asked, Asked::Write(..)) && slow.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            Strike::Pass
        }
    };
    let primary = alone(directory.path(), Tuning { faults: Some(Arc::new(faults)), ..tuning() });
    primary.submit(1, BlockOp::Write { offset: 0, data: vec![7; 512].into() });
    let (_standby, mut copy) = holding(&primary, tuning());

    std::thread::scope(|scope| {
        let settled = scope.spawn(move || copy.next_piece());
        std::thread::sleep(Duration::from_millis(20));
        assert!(!settled.is_finished(), "the device does not have it");
        slow.store(false, Ordering::SeqCst);
        assert!(settled.join().unwrap().unwrap().is_none());
    });

    assert_eq!(primary.content()[0], 7);
}

#[test]
fn a_flush_ends_the_epoch_and_is_answered_when_its_writes_are_on_the_device() {
    let directory = tempfile::tempdir().unwrap();
    let synced = Arc::new(AtomicBool::new(false));
    let faults = {
        let synced = Arc::clone(&synced);
        move |asked| {
            if asked == Asked::Sync {
                synced.store(true, Ordering::SeqCst);
            }
            Strike::Pass
        }
    };
    let (primary, standby) = pair(directory.path(), Tuning { faults: Some(Arc::new(faults)), ..tuning() });
    primary.write(0, 5, 512);

    primary.submit(9, BlockOp::Flush);

    primary.waiting.recv_timeout(BOUND).unwrap();
    assert_eq!(primary.done(), []);
    epoch(&primary, &standby, 2);
    assert_eq!(primary.answers(), [BlockDone { tag: 9, result: Ok(None) }]);
    assert_eq!(primary.content()[0], 5);
    assert!(synced.load(Ordering::SeqCst), "the device's cache is flushed as well");
    // Nothing is in front of the next.
    assert_eq!(primary.ask(BlockOp::Flush).result, Ok(None));
    assert!(primary.waiting.try_recv().is_err());
}

#[test]
fn a_takeover_makes_the_writes_that_the_old_primary_died_with_and_its_flush_waits_for_them() {
    let directory = tempfile::tempdir().unwrap();
    let (primary, standby) = pair(directory.path(), tuning());
    primary.write(0, 5, 512);
    committed_there(&primary, &standby, 2);
    primary.write(0, 6, 512);
    drop(primary);
    assert_eq!(standby.content()[0], 0);

    standby.disk.activate(BOUND).unwrap();

    assert_eq!(read(&standby, 0, 512), [5; 512]);
    assert_eq!(standby.ask(BlockOp::Flush).result, Ok(None));
    assert_eq!(standby.content()[0], 5);
}

#[test]
fn a_strike_out_lets_everything_go_and_answers_the_flush_that_waited() {
    let directory = tempfile::tempdir().unwrap();
    let (primary, _standby) = pair(directory.path(), tuning());
    primary.write(0, 5, 512);
    primary.disk.seal(Epoch(2)).unwrap();
    primary.write(512, 6, 512);
    primary.submit(9, BlockOp::Flush);

    primary.disk.struck_out().unwrap();

    assert_eq!(primary.answers(), [BlockDone { tag: 9, result: Ok(None) }]);
    assert_eq!((primary.content()[0], primary.content()[512]), (5, 6));
    primary.write(0, 7, 512);
    assert_eq!(primary.content()[0], 7, "straight through");
    // And another standby can join.
    let (standby, mut copy) = holding(&primary, tuning());
    assert!(copy.next_piece().unwrap().is_none());
    epoch(&primary, &standby, 1);
}

#[test]
fn a_link_that_is_lost_before_the_standby_is_recorded_leaves_a_disk_that_runs_alone() {
    let directory = tempfile::tempdir().unwrap();
    let primary = alone(directory.path(), tuning());
    let (_standby, mut copy) = holding(&primary, tuning());
    primary.write(0, 5, 512);

    primary.disk.unlink();

    assert!(matches!(copy.next_piece(), Err(DiskError::Phase { .. })));
    assert_eq!(primary.ask(BlockOp::Flush).result, Ok(None));
    assert_eq!(primary.content()[0], 5);
}

#[test]
fn the_standby_lets_go_of_a_files_writes_when_they_are_durable_and_not_before() {
    let directory = tempfile::tempdir().unwrap();
    let (holds, syncs) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let faults = {
        let (holds, syncs) = (Arc::clone(&holds), Arc::clone(&syncs));
        move |asked| {
            if asked == Asked::Sync {
                syncs.fetch_add(1, Ordering::SeqCst);
                while holds.load(Ordering::SeqCst) {
                    std::thread::yield_now();
                }
            }
            Strike::Pass
        }
    };
    let (primary, standby) = pair(directory.path(), Tuning { faults: Some(Arc::new(faults)), ..tuning() });
    assert!(syncs.swap(0, Ordering::SeqCst) > 0, "what was not held is durable before the first epoch");

    holds.store(true, Ordering::SeqCst);
    for number in 2..=9 {
        primary.write(number * 4096, number as u8, 4096);
        epoch(&primary, &standby, number);
        while primary.content()[number as usize * 4096] != number as u8 && syncs.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
    }
    assert!(primary.events.recv_timeout(Duration::from_millis(20)).is_err(), "the file has it, and this host's death could undo it");
    holds.store(false, Ordering::SeqCst);
    wait_issued(&primary, 9);

    assert!(syncs.load(Ordering::SeqCst) <= 3, "not once for each epoch");
}

#[test]
fn a_guest_that_ended_has_its_writes_on_the_device_when_its_disk_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let (hangs, tuning) = hanging(tuning());
    let (primary, _standby) = pair(directory.path(), tuning);
    primary.write(0, 5, 512);
    assert!(matches!(primary.disk.finish(BOUND), Err(DiskError::Phase { .. })), "a standby may hold this guest");
    hangs.store(true, Ordering::SeqCst);
    primary.disk.struck_out().unwrap();
    // One that was answered when it was held, and one that was not: it waits for its turn.
    primary.submit(1, BlockOp::Write { offset: 8192, data: vec![6; 512].into() });

    assert!(matches!(primary.disk.finish(Duration::from_millis(20)), Err(DiskError::Slow { .. })));
    assert!(primary.disk.submit(BlockRequest { tag: 2, op: BlockOp::Flush }).is_err(), "nothing more is taken");
    hangs.store(false, Ordering::SeqCst);
    primary.disk.finish(BOUND).unwrap();

    assert_eq!((primary.content()[0], primary.content()[8192]), (5, 6));
}

#[test]
fn a_fenced_node_drops_what_it_holds_and_takes_nothing_any_more() {
    let directory = tempfile::tempdir().unwrap();
    let (primary, standby) = pair(directory.path(), tuning());
    primary.write(0, 5, 512);
    committed_there(&primary, &standby, 2);

    primary.disk.shut();
    primary.disk.release(&commit(2));

    assert!(primary.disk.submit(BlockRequest { tag: 1, op: BlockOp::Flush }).is_err());
    drop(primary);
    assert_eq!(standby.content()[0], 0);
}

#[test]
fn what_is_held_waits_in_the_guests_ring_when_it_is_too_much_until_the_device_has_some() {
    let directory = tempfile::tempdir().unwrap();
    let limits = Limits { soft_bytes: 1 << 20, hard_bytes: 2 << 20, ..Limits::default() };
    let (primary, standby) = pair(directory.path(), Tuning { limits, ..tuning() });
    let write = |offset: u64| BlockOp::Write { offset, data: vec![3; 1 << 20].into() };
    primary.submit(1, write(0));
    primary.pressure.recv_timeout(BOUND).unwrap();
    primary.submit(2, write(MIB));
    assert!(primary.disk.submit(BlockRequest { tag: 3, op: write(2 * MIB) }).is_err());
    assert_eq!(primary.done().len(), 2);

    epoch(&primary, &standby, 2);

    primary.room.recv_timeout(BOUND).unwrap();
    primary.submit(3, write(2 * MIB));
}

#[test]
fn one_process_of_a_host_can_write_and_another_can_follow_it() {
    let directory = tempfile::tempdir().unwrap();
    let primary = alone(directory.path(), tuning());

    let second = Host::open(&shared(&primary.path));
    assert!(matches!(second.disk.start_primary(), Err(DiskError::InUse(_))));
    assert!(matches!(second.disk.claim(Duration::from_millis(30)), Err(DiskError::InUse(_))));
    let mirror = Disk::open(DiskIndex(0), &options(&primary.path));
    assert!(matches!(mirror, Err(DiskError::InUse(_))), "{mirror:?}");

    let (standby, mut copy) = holding(&primary, tuning());
    assert!(copy.next_piece().unwrap().is_none());
    drop(copy);
    epoch(&primary, &standby, 1);
    std::thread::scope(|scope| {
        let activated = scope.spawn(|| standby.disk.activate(BOUND));
        // It waits for a process that is ending.
        drop(primary);
        activated.join().unwrap().unwrap();
    });
}

#[test]
fn a_standby_without_a_committed_epoch_is_not_activated() {
    let directory = tempfile::tempdir().unwrap();
    let primary = alone(directory.path(), tuning());
    let (standby, _copy) = holding(&primary, tuning());
    standby.disk.stage(Epoch(1), Vec::new()).unwrap();
    drop(primary);

    assert!(matches!(standby.disk.activate(BOUND), Err(DiskError::Unfit { .. })));
}

#[test]
fn hosts_that_mean_different_devices_or_modes_are_told_so() {
    let directory = tempfile::tempdir().unwrap();
    let [one, two] = ["one", "two"].map(|name| image(directory.path(), name, BYTES));
    let identity = |options: &DiskOptions| Disk::open(DiskIndex(0), options).unwrap().identity().unwrap();
    let (mine, theirs, mirror) = (identity(&shared(&one)), identity(&shared(&two)), identity(&options(&two)));

    assert_eq!(plan(&mine, &mine), Plan::Nothing);
    let Plan::Refuse(refusal @ Refusal::OtherDevice(_)) = plan(&mine, &theirs) else { panic!("must be refused") };
    assert!(refusal.to_string().contains("same device"), "{refusal}");
    assert!(matches!(plan(&mine, &mirror), Plan::Refuse(Refusal::OtherMode { .. })));
}

#[test]
fn a_shared_disk_is_not_opened_unfenced_or_through_the_page_cache_or_with_half_a_block() {
    let directory = tempfile::tempdir().unwrap();
    let path = image(directory.path(), "device", BYTES + 512);
    let open = |options: DiskOptions| Disk::open_with(DiskIndex(0), &options, Tuning { unit: 4096, ..tuning() }).unwrap_err();

    assert!(matches!(open(DiskOptions { fenced: None, ..shared(&path) }), DiskError::SharedUnfenced(_)));
    assert!(matches!(open(DiskOptions { cache: Cache::Buffered, ..shared(&path) }), DiskError::SharedBuffered(_)));
    assert!(matches!(open(shared(&path)), DiskError::SharedSize { align: 4096, .. }));
}
