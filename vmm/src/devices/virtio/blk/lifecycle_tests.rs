//! What becomes of requests in flight: when the state is saved, when the driver resets the device, when it takes the queue away.

use types::block::{BlockInfo, BlockOp};

use super::testing::*;
use super::*;
use crate::devices::virtio::{F_VERSION_1, STATUS_NEEDS_RESET};
use crate::devices::{DeviceError, lock};

fn write(guest: &Guest, head: u16) {
    guest.driver.put(data_at(head), &pattern(u64::from(head), 4096));
    guest.offer(head, T_OUT, 8 * u64::from(head), &[(data_at(head), 4096)]);
}

fn state(guest: &Guest) -> BlkState {
    lock(&guest.driver.device).save()
}

#[test]
fn whoever_restores_the_state_carries_out_what_was_in_flight_each_exactly_once() {
    let mut guest = Guest::running(ALL);
    guest.disk.put(0x10_0000, &pattern(99, 4096));
    for head in 0..6 {
        write(&guest, head);
    }
    guest.offer(6, T_IN, 0x10_0000 / 512, &[(data_at(6), 4096)]);
    guest.offer(7, T_FLUSH, 0, &[]);
    guest.driver.run_all();
    // Two are answered, one has reached the medium unanswered, one is answered by the disk but not yet to the guest; one was never taken.
    guest.disk.answer(4);
    guest.disk.answer(0);
    guest.driver.run_all();
    assert_eq!(guest.driver.used(), [(4, 1), (0, 1)]);
    guest.disk.carry_out(0);
    guest.disk.answer(1);
    write(&guest, 8);
    assert_eq!(state(&guest).in_flight, [1, 2, 3, 5, 6, 7]);

    let mut other = guest.taken_over(guest.disk.mirror());
    assert!(other.driver.forget_events(), "the interrupt is raised");
    other.driver.run_all();

    let offsets: Vec<u64> =
        other.disk.log().iter().map(|op| if let BlockOp::Write { offset, .. } = op { offset / 4096 } else { 0 }).collect();
    assert_eq!(offsets, [1, 2, 3, 5, 0, 0, 8], "in their order, then the ring");
    assert_eq!(lock(&other.driver.device).metrics().counts().repeated, 6);
    other.disk.answer(4);
    other.driver.run_all();
    other.disk.answer_all();
    other.driver.run_all();
    let used = other.driver.used();
    assert_eq!(&used[2..], [(6, 4097), (1, 1), (2, 1), (3, 1), (5, 1), (7, 1), (8, 1)], "behind what was answered before");
    assert_eq!(other.driver.bytes(data_at(6), 4096), pattern(99, 4096));
    for head in [0u16, 1, 2, 3, 4, 5, 8] {
        assert_eq!(other.disk.content(4096 * u64::from(head), 4096), pattern(u64::from(head), 4096), "write {head}");
    }
    assert!(state(&other).in_flight.is_empty());

    // The machine that was saved goes on undisturbed.
    guest.driver.run_all();
    guest.disk.answer_all();
    guest.driver.run_all();
    assert_eq!(guest.driver.used().len(), 7);
}

#[test]
fn what_is_to_be_carried_out_anew_is_still_in_flight_in_the_next_state() {
    let guest = Guest::running(ALL);
    for head in 0..5 {
        write(&guest, head);
    }
    guest.driver.run_all();
    let other = guest.taken_over(guest.disk.mirror());
    other.disk.set_capacity(2);
    assert_eq!(state(&other).in_flight, [0, 1, 2, 3, 4]);
    assert!(other.driver.run_all().sink_full);
    assert_eq!(other.disk.pending().len(), 2);
    assert_eq!(state(&other).in_flight, [0, 1, 2, 3, 4]);

    let mut third = other.taken_over(other.disk.mirror());
    third.driver.run_all();
    third.disk.answer_all();
    third.driver.run_all();
    assert_eq!(third.driver.used().iter().map(|used| used.0).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
}

#[test]
fn a_flush_before_an_answer_is_in_flight_as_the_write_it_belongs_to() {
    let mut guest = Guest::running(F_VERSION_1);
    guest.driver.put(data_at(0), &[7; 512]);
    guest.offer_plain(0, T_OUT, 0, &[(header_at(0), 16, false), (data_at(0), 512, false), (status_at(0), 1, true)]);
    guest.driver.run_all();
    guest.disk.answer(0);
    guest.driver.run_all();
    assert_eq!((guest.disk.pending(), state(&guest).in_flight), (vec![BlockOp::Flush], vec![0]));
    let mut other = guest.taken_over(guest.disk.mirror());
    for _ in 0..2 {
        other.driver.run_all();
        other.disk.answer_all();
    }
    other.driver.run_all();
    assert_eq!((other.driver.used(), other.disk.log().len()), (vec![(0, 1)], 2));
    guest.driver.reset();
}

#[test]
fn late_answers_to_a_driver_that_was_reset_touch_nothing_and_hold_back_the_new_one() {
    let mut guest = Guest::running(ALL);
    write(&guest, 0);
    guest.offer(1, T_IN, 0, &[(data_at(1), 4096)]);
    guest.driver.run_all();
    guest.disk.answer(1);
    assert_eq!(guest.disk.pending().len(), 1);

    guest.driver.start(ALL);
    assert!(state(&guest).in_flight.is_empty(), "nothing of the new driver is in flight");
    guest.driver.put(data_at(2), &pattern(2, 4096));
    guest.offer(2, T_OUT, 0, &[(data_at(2), 4096)]);
    guest.driver.dirty_pages();
    guest.driver.run_all();

    assert_eq!(guest.disk.pending().len(), 1, "the new write waits for the old one");
    assert!(guest.driver.used().is_empty());
    assert!(guest.driver.dirty_pages().is_empty(), "an answer to a read of before is not written");
    guest.disk.answer_all();
    guest.driver.run_all();
    guest.disk.answer_all();
    guest.driver.run_all();
    assert_eq!(guest.driver.used(), [(2, 1)]);
    assert_eq!(guest.disk.content(0, 4096), pattern(2, 4096), "the old write did not overtake the new one");
    assert_eq!(guest.counts().late_answers, 2);
    assert_eq!(guest.driver.bytes(data_at(1), 4096), [0; 4096]);
}

#[test]
fn a_reset_between_two_machines_leaves_nothing_to_be_carried_out_anew() {
    let mut guest = Guest::running(ALL);
    write(&guest, 0);
    guest.driver.run_all();
    let mut other = guest.taken_over(guest.disk.mirror());
    other.driver.start(ALL);
    write(&other, 1);
    other.driver.run_all();
    assert_eq!(other.disk.log().len(), 1);
    other.disk.answer_all();
    other.driver.run_all();
    assert_eq!(other.driver.used(), [(1, 1)]);
    guest.driver.reset();
    assert!(guest.taken_over(guest.disk.mirror()).disk.log().is_empty());
}

#[test]
fn a_machine_that_starts_over_forgets_what_it_had_in_flight() {
    let mut guest = Guest::running(ALL);
    write(&guest, 0);
    let started = state(&guest);
    guest.driver.run_all();
    write(&guest, 1);
    lock(&guest.driver.device).restore(&started).unwrap();
    guest.driver.run_all();
    assert_eq!(guest.disk.pending().len(), 1, "what was asked before has to end first");
    guest.disk.answer_all();
    guest.driver.run_all();
    assert_eq!(guest.counts().late_answers, 1);
    guest.disk.answer_all();
    guest.driver.run_all();
    assert_eq!(guest.driver.used(), [(0, 1), (1, 1)], "both are in the restored ring, and each is answered once");
}

#[test]
fn a_queue_that_is_taken_away_gets_no_answers_even_when_it_comes_back() {
    let mut guest = Guest::running(ALL);
    write(&guest, 0);
    guest.driver.run_all();
    guest.driver.write(0x30, 0);
    guest.driver.write(0x44, 0);
    guest.disk.answer_all();
    guest.driver.dirty_pages();
    guest.driver.run_all();
    assert!(guest.driver.dirty_pages().is_empty());

    let mut guest = Guest::running(ALL);
    write(&guest, 0);
    guest.driver.run_all();
    guest.driver.write(0x44, 0);
    guest.driver.put(RINGS.used, &[0; 8]);
    guest.driver.set_avail_index(0);
    guest.driver.write(0x44, 1);
    guest.disk.answer_all();
    guest.driver.run_all();
    assert!(guest.driver.used().is_empty(), "a new life of the queue");
}

#[test]
fn a_broken_disk_is_still_broken_and_silent_after_a_failover() {
    let guest = Guest::running(ALL);
    write(&guest, 0);
    guest.driver.run_all();
    guest.driver.make_available(999);
    guest.driver.run_all();
    assert!(guest.driver.broken().is_some());
    let mut other = guest.taken_over(guest.disk.mirror());
    assert_ne!(other.driver.status() & STATUS_NEEDS_RESET, 0);
    other.driver.dirty_pages();
    other.driver.run_all();
    assert!(other.disk.log().is_empty() && other.driver.dirty_pages().is_empty());
    other.driver.start(ALL);
    assert_eq!(other.carry(0, T_FLUSH, 0, &[]).0, 0);
}

#[test]
fn a_state_survives_a_text_format_and_one_that_does_not_fit_is_refused_by_name() {
    let guest = Guest::running(ALL);
    write(&guest, 3);
    guest.driver.run_all();
    let good = state(&guest);
    let text = serde_json::to_string(&good).unwrap();
    assert_eq!(serde_json::from_str::<BlkState>(&text).unwrap(), good);

    let refused = |state: &BlkState| {
        let other = Guest::over(copy_of(&guest.driver.memory), TestDisk::new(INFO));
        lock(&other.driver.device).restore(state)
    };
    let with = |info: BlockInfo| BlkState { info, ..good.clone() };
    assert!(matches!(refused(&BlkState { version: 9, ..good.clone() }), Err(DeviceError::StateVersion { found: 9, .. })));
    for (state, word) in [
        (with(BlockInfo { bytes: 512, ..INFO }), "512 bytes"),
        (with(BlockInfo { read_only: true, ..INFO }), "read-only"),
        (with(BlockInfo { serial: *b"another-disk\0\0\0\0\0\0\0\0", ..INFO }), "another-disk"),
        (BlkState { in_flight: vec![0; 257], ..good.clone() }, "257 requests"),
    ] {
        let error = refused(&state).expect_err(word).to_string();
        assert!(error.contains(word) && error.contains("configuration"), "{error}");
    }
    refused(&with(BlockInfo { physical_block: 512, ..INFO })).expect("advice may differ");
}
