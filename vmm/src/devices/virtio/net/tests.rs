//! What a well-behaved driver can rely on, and what save and restore preserve.

use vm_memory::{Bytes, GuestAddress};

use super::testing::*;
use super::*;
use crate::devices::virtio::F_VERSION_1;
use crate::devices::{DeviceError, lock};

#[test]
fn a_sent_frame_reaches_the_sink_without_its_header_and_is_completed_at_once() {
    for features in [BOTH, F_VERSION_1] {
        let guest = TestGuest::running(features);
        guest.offer_frame(5, &frame(1, 60));
        guest.offer_frame(2, &frame(2, 1514));

        let batch = guest.run();

        assert_eq!(guest.sink.frames(), [frame(1, 60), frame(2, 1514)]);
        assert_eq!(guest.used(TX), [(5, 0), (2, 0)]);
        assert!(!batch.more);
        let counts = lock(&guest.device).metrics().counts();
        assert_eq!((counts.tx_frames, counts.tx_bytes), (2, 60 + 1514));
    }
}

#[test]
fn a_frame_may_lie_in_any_number_of_buffers_even_empty_ones() {
    let guest = TestGuest::running(BOTH);
    let bytes = [&[0; HEADER], &frame(7, 100)[..]].concat();
    guest.memory.write_slice(&bytes, GuestAddress(0x10_0000)).unwrap();
    guest.set_descriptor(TX, 0, 0x10_0000, 5, NEXT, 1);
    guest.set_descriptor(TX, 1, 0x10_0005, 30, NEXT, 2);
    guest.set_descriptor(TX, 2, u64::MAX, 0, NEXT, 3);
    guest.set_descriptor(TX, 3, 0x10_0023, 77, 0, 0);
    guest.make_available(TX, 0);

    guest.run();

    assert_eq!(guest.sink.frames(), [frame(7, 100)]);
}

#[test]
fn a_frame_too_short_for_ethernet_is_dropped_and_completed() {
    let guest = TestGuest::running(BOTH);
    guest.offer_frame(0, &[1; 13]);
    guest.offer_frame(1, &[]);
    guest.run();
    assert!(guest.sink.frames().is_empty());
    assert_eq!(guest.used(TX).len(), 2);
    assert_eq!(lock(&guest.device).metrics().counts().tx_runts, 2);
}

#[test]
fn a_full_sink_leaves_the_frame_in_the_ring_and_a_retry_sends_it_once_and_in_order() {
    use crate::devices::worker::WorkerDevice;
    let guest = TestGuest::running(BOTH);
    guest.sink.set_capacity(1);
    for tag in 0..3 {
        guest.offer_frame(tag.into(), &frame(tag, 60));
    }

    let batch = guest.run();
    assert!(batch.sink_full && !batch.more);
    assert_eq!(guest.used(TX).len(), 1);
    let state = lock(&guest.device).save();

    guest.sink.set_capacity(10);
    assert_eq!(guest.sink.frames().len(), 1, "nothing is sent before the retry");
    assert!(guest.run().sink_full);
    lock(&guest.device).retry();
    assert!(!guest.run().sink_full);
    assert_eq!(guest.sink.frames(), [frame(0, 60), frame(1, 60), frame(2, 60)]);

    // The state saved while the sink was full still has the two frames to send.
    let other = TestGuest::with_memory(guest.memory.clone());
    lock(&other.device).restore(&state).unwrap();
    other.run();
    assert_eq!(other.sink.frames(), [frame(1, 60), frame(2, 60)]);
}

#[test]
fn a_received_frame_is_written_behind_a_header_that_names_one_buffer() {
    for features in [BOTH, F_VERSION_1] {
        let guest = TestGuest::running(features);
        guest.offer_buffer(4, 1526);
        guest.wire.send(&frame(9, 1514)).unwrap();

        let batch = guest.run();

        assert_eq!(guest.used(RX), [(4, 1526)]);
        let bytes = guest.received(4, 1526);
        assert_eq!(bytes[..HEADER], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
        assert_eq!(bytes[HEADER..], frame(9, 1514));
        assert!(!batch.wants_input, "no buffer, no reading");
        let counts = lock(&guest.device).metrics().counts();
        assert_eq!((counts.rx_frames, counts.rx_bytes), (1, 1514));
    }
}

#[test]
fn without_a_buffer_frames_wait_in_the_tap_and_the_driver_is_asked_for_a_kick() {
    let guest = TestGuest::running(BOTH);
    guest.wire.send(&frame(1, 60)).unwrap();
    assert_eq!(guest.run(), crate::devices::worker::Batch::default());
    assert_eq!(guest.avail_event(RX), 0);

    guest.offer_buffer(0, 2048);
    guest.offer_buffer(1, 2048);
    let batch = guest.run();

    assert_eq!(guest.used(RX), [(0, 72)]);
    assert!(batch.wants_input && !batch.more);
}

#[test]
fn a_frame_that_fits_no_buffer_is_dropped_and_the_buffer_stays_the_guests() {
    let guest = TestGuest::running(BOTH);
    guest.offer_buffer(0, 100);
    guest.wire.send(&frame(1, 200)).unwrap();
    guest.wire.send(&vec![1; device::FRAME_MAX + 1]).unwrap();
    guest.wire.send(&frame(2, 88)).unwrap();
    guest.run();
    assert_eq!(guest.used(RX), [(0, 100)]);
    assert_eq!(guest.received(0, 100)[HEADER..], frame(2, 88));
    assert_eq!(lock(&guest.device).metrics().counts().rx_dropped, 2);
}

#[test]
fn a_batch_is_bounded_and_says_that_there_is_more() {
    let mut guest = TestGuest::new();
    guest.rings[TX].size = 256;
    guest.start(BOTH);
    for index in 0..256 {
        guest.set_descriptor(TX, index, 0x10_0000, 72, 0, 0);
        guest.make_available(TX, index);
    }
    assert!(guest.run().more);
    assert_eq!(guest.used(TX).len(), device::BATCH_FRAMES);
    while guest.run().more {}
    assert_eq!(guest.used(TX).len(), 256);
}

#[test]
fn a_batch_that_is_asked_to_leave_takes_nothing_from_ring_or_tap() {
    use crate::devices::worker::WorkerDevice;
    let guest = TestGuest::running(BOTH);
    guest.offer_frame(0, &frame(1, 60));
    guest.offer_buffer(0, 2048);
    guest.wire.send(&frame(2, 60)).unwrap();
    guest.dirty_pages();

    let batch = lock(&guest.device).run_batch(&std::sync::atomic::AtomicBool::new(true));

    assert!(batch.more, "it must come back");
    assert!(guest.sink.frames().is_empty());
    assert!(guest.used(TX).is_empty() && guest.used(RX).is_empty());
    assert!(guest.dirty_pages().is_empty());
}

#[test]
fn the_driver_is_interrupted_only_when_it_wants_to_be() {
    let mut guest = TestGuest::running(BOTH);
    guest.set_used_event(TX, 1);
    guest.offer_frame(0, &frame(0, 60));
    guest.run();
    assert!(!guest.forget_events(), "used index 1 has not passed event 1");
    guest.offer_frame(1, &frame(1, 60));
    guest.run();
    assert!(guest.forget_events());
    guest.offer_frame(2, &frame(2, 60));
    guest.run();
    assert!(!guest.forget_events(), "told once, and not asked again");

    let mut plain = TestGuest::running(F_VERSION_1);
    plain.memory.write_obj(1u16, GuestAddress(plain.rings[TX].available)).unwrap();
    plain.offer_frame(0, &frame(0, 60));
    plain.run();
    assert!(!plain.forget_events());
    plain.memory.write_obj(0u16, GuestAddress(plain.rings[TX].available)).unwrap();
    plain.offer_frame(1, &frame(1, 60));
    plain.run();
    assert!(plain.forget_events());
}

#[test]
fn an_interrupt_is_a_pulse_whether_or_not_the_one_before_was_acknowledged() {
    let mut guest = TestGuest::running(BOTH);
    for index in 0..3 {
        guest.set_used_event(TX, index);
        guest.offer_frame(index, &frame(0, 60));
        guest.run();
        assert!(guest.forget_events());
        assert_eq!(guest.read(0x60), 1);
    }
    guest.write(0x64, 1);
    assert_eq!(guest.read(0x60), 0);
}

#[test]
fn kicks_are_refused_while_the_device_works_and_wanted_when_it_sleeps() {
    let guest = TestGuest::running(F_VERSION_1);
    let flags = |queue: usize| guest.memory.read_obj::<u16>(GuestAddress(guest.rings[queue].used)).unwrap();
    guest.offer_buffer(0, 2048);
    guest.run();
    assert_eq!(flags(RX), 1, "buffers are there: refills need no kick");
    assert_eq!(flags(TX), 0);
    guest.wire.send(&frame(1, 60)).unwrap();
    guest.run();
    assert_eq!(flags(RX), 0, "out of buffers: a refill must kick");
}

#[test]
fn every_byte_the_device_writes_is_in_the_dirty_bitmap() {
    let guest = TestGuest::running(BOTH);
    guest.offer_frame(0, &frame(1, 60));
    guest.dirty_pages();
    guest.run();
    assert_eq!(guest.dirty_pages(), [guest.rings[RX].used, guest.rings[TX].used], "event index of RX, used ring of TX");

    // A frame over a page boundary: both pages, and the used ring.
    let address = HIGH + 0x5000 - 100;
    guest.set_descriptor(RX, 0, address, 300, WRITE, 0);
    guest.make_available(RX, 0);
    guest.wire.send(&frame(2, 200)).unwrap();
    guest.dirty_pages();
    guest.run();
    assert_eq!(guest.dirty_pages(), [guest.rings[RX].used, HIGH + 0x4000, HIGH + 0x5000]);

    guest.run();
    assert!(guest.dirty_pages().is_empty(), "an idle look at the rings writes nothing");
}

#[test]
fn nothing_but_the_bitmaps_pages_changes() {
    let guest = TestGuest::running(BOTH);
    for index in 0..8 {
        guest.offer_frame(index, &frame(index as u8, 60 + usize::from(index) * 90));
        guest.offer_buffer(index, 2048);
        guest.wire.send(&frame(index as u8, 1000)).unwrap();
    }
    let snapshot = || {
        let mut bytes = vec![0; LOW_BYTES + HIGH_BYTES];
        guest.memory.read_slice(&mut bytes[..LOW_BYTES], GuestAddress(0)).unwrap();
        guest.memory.read_slice(&mut bytes[LOW_BYTES..], GuestAddress(HIGH)).unwrap();
        bytes
    };
    let before = snapshot();
    guest.dirty_pages();

    while guest.run().more {}

    let (after, dirty) = (snapshot(), guest.dirty_pages());
    for (index, (old, new)) in before.chunks(4096).zip(after.chunks(4096)).enumerate() {
        let offset = index as u64 * 4096;
        let address = if offset < LOW_BYTES as u64 { offset } else { HIGH + offset - LOW_BYTES as u64 };
        assert!(old == new || dirty.contains(&address), "page {address:#x} changed unnoticed");
    }
    assert_eq!(guest.used(RX).len(), 8);
}

#[test]
fn a_restored_card_goes_on_where_the_saved_one_stopped() {
    let mut guest = TestGuest::running(BOTH);
    for index in 0..3 {
        guest.offer_frame(index, &frame(index as u8, 60));
        guest.offer_buffer(index, 2048);
    }
    guest.wire.send(&frame(8, 60)).unwrap();
    guest.run();
    guest.offer_frame(3, &frame(3, 60));
    let state = lock(&guest.device).save();
    let text = serde_json::to_string(&state).unwrap();
    assert_eq!(serde_json::from_str::<NetState>(&text).unwrap(), state);

    let mut other = TestGuest::with_memory(guest.memory.clone());
    lock(&other.device).restore(&state).unwrap();
    assert_eq!(lock(&other.device).save(), state);
    assert_eq!(other.status(), 15);
    assert_eq!(other.read(0x60), guest.read(0x60));

    other.wire.send(&frame(7, 60)).unwrap();
    assert_eq!(lock(&other.device).activate().unwrap(), 1, "a stale frame is discarded");
    assert!(other.transport.kicks().iter().all(|kick| kick.read().is_ok()), "every queue is signalled");
    assert!(other.transport.irqfd().read().is_ok(), "the interrupt is raised");
    other.wire.send(&frame(6, 60)).unwrap();
    other.run();

    assert_eq!(other.sink.frames(), [frame(3, 60)]);
    assert_eq!(other.used(RX), [(0, 72), (1, 72)]);
    assert_eq!(other.received(1, 72)[HEADER..], frame(6, 60));
    let announced = lock(&other.device).announcements();
    assert_eq!(announced[0][6..12], MAC);
}

#[test]
fn a_fresh_card_activates_without_a_sound() {
    let guest = TestGuest::new();
    assert_eq!(lock(&guest.device).activate().unwrap(), 0);
    assert!(guest.transport.irqfd().read().is_err());
}

#[test]
fn a_state_that_does_not_fit_is_refused_by_name() {
    let guest = TestGuest::running(BOTH);
    let good = serde_json::to_value(lock(&guest.device).save()).unwrap();
    let refused = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut value = good.clone();
        change(&mut value);
        let state: NetState = serde_json::from_value(value).unwrap();
        let other = TestGuest::with_memory(guest.memory.clone());
        let answer = lock(&other.device).restore(&state);
        answer.expect_err("must be refused")
    };
    assert!(matches!(refused(&|it| it["version"] = 2.into()), DeviceError::StateVersion { found: 2, .. }));
    for (pointer, value) in [
        ("/mac", serde_json::json!([2, 0, 0, 0, 0, 1])),
        ("/core/driver_features", u64::MAX.into()),
        ("/core/queues", serde_json::json!([])),
        ("/core/queues/0/registers/size", 17.into()),
        ("/core/queues/1/registers/used", (1u64 << 40).into()),
        ("/learned/ipv4", serde_json::json!(vec![(MAC, "10.0.0.1"); 9])),
    ] {
        let error = refused(&|it| *it.pointer_mut(pointer).unwrap() = value.clone());
        assert!(matches!(error, DeviceError::StateMismatch { .. }), "{pointer}: {error}");
    }
}

#[test]
fn the_card_learns_who_the_guest_is_from_what_it_sends() {
    let guest = TestGuest::running(BOTH);
    let arp = [&[0xff; 6][..], &MAC, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &MAC, &[10, 0, 0, 2], &[0; 6], &[10, 0, 0, 1]].concat();
    guest.offer_frame(0, &arp);
    guest.run();
    assert_eq!(lock(&guest.device).announcements().len(), 2);
}
