//! What a hostile guest can do to its card: break it, with a reason, and nothing more (S7).

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::testing::*;
use crate::devices::lock;
use crate::devices::virtio::{STATUS_NEEDS_RESET, VirtioDevice};
use crate::devices::worker::Batch;

/// The card is broken and silent, says so once, and works again after a reset.
fn assert_broken_until_reset(mut guest: TestGuest, reason: &str) {
    assert_eq!(guest.run(), Batch::default());
    let why = lock(&guest.device).core().broken().expect("the device must be broken").to_owned();
    assert!(why.contains(reason), "{why:?} does not say {reason:?}");
    assert_ne!(guest.status() & STATUS_NEEDS_RESET, 0);
    assert_eq!(lock(&guest.device).metrics().counts().ring_errors, 1);
    assert_eq!(guest.read(0x60) & 2, 2, "a configuration interrupt tells the driver");
    assert!(guest.forget_events());

    let sent = guest.sink.frames().len();
    guest.offer_frame(0, &frame(1, 60));
    guest.run();
    assert_eq!(guest.sink.frames().len(), sent, "a broken card sends nothing");

    let [rx, tx] = [Rings::standard(RX), Rings::standard(TX)];
    for rings in [rx, tx] {
        guest.memory.write_slice(&[0; 0x5000], GuestAddress(rings.descriptors)).unwrap();
    }
    guest.rings = [rx, tx];
    guest.start(BOTH);
    guest.offer_frame(0, &frame(1, 60));
    guest.run();
    assert_eq!(guest.sink.frames().len(), sent + 1, "after a reset it works again");
}

fn sends(prepare: impl FnOnce(&TestGuest), reason: &str) {
    let guest = TestGuest::running(BOTH);
    prepare(&guest);
    assert_broken_until_reset(guest, reason);
}

fn receives(prepare: impl FnOnce(&TestGuest), reason: &str) {
    let guest = TestGuest::running(BOTH);
    prepare(&guest);
    guest.wire.send(&frame(1, 100)).unwrap();
    assert_broken_until_reset(guest, reason);
}

#[test]
fn a_chain_that_loops_breaks_the_card() {
    sends(
        |guest| {
            guest.set_descriptor(TX, 0, 0x10_0000, 20, NEXT, 1);
            guest.set_descriptor(TX, 1, 0x10_0000, 20, NEXT, 0);
            guest.make_available(TX, 0);
        },
        "does not end properly after 16 descriptors",
    );
}

#[test]
fn a_chain_that_points_outside_its_table_breaks_the_card() {
    sends(
        |guest| {
            guest.set_descriptor(TX, 0, 0x10_0000, 20, NEXT, 16);
            guest.make_available(TX, 0);
        },
        "does not end properly",
    );
    sends(|guest| guest.make_available(TX, 999), "does not end properly after 0 descriptors");
}

#[test]
fn an_indirect_table_that_is_wild_breaks_the_card() {
    for (address, length) in [(1u64 << 50, 64), (0x10_0000, 15), (0x10_0000, 0), (u64::MAX - 15, 32), (0x10_0000, !15u32)] {
        sends(
            |guest| {
                guest.set_descriptor(TX, 0, address, length, 4, 0);
                // What an indirect table of the right place would contain: a loop.
                let entry = [&0x10_0000u64.to_le_bytes()[..], &20u32.to_le_bytes(), &[NEXT as u8, 0, 0, 0]].concat();
                guest.memory.write_slice(&entry, GuestAddress(0x10_0000)).unwrap();
                guest.make_available(TX, 0);
            },
            "does not end properly",
        );
    }
}

#[test]
fn a_buffer_outside_memory_breaks_the_card() {
    for address in [LOW_BYTES as u64 - 10, 3 << 30, HIGH + HIGH_BYTES as u64 - 10, u64::MAX - 10, u64::MAX] {
        sends(
            |guest| {
                guest.set_descriptor(TX, 0, address, 100, 0, 0);
                guest.make_available(TX, 0);
            },
            "outside guest memory",
        );
        receives(
            |guest| {
                guest.set_descriptor(RX, 0, address, 2048, WRITE, 0);
                guest.make_available(RX, 0);
            },
            "outside guest memory",
        );
    }
}

#[test]
fn a_chain_of_senseless_length_breaks_the_card() {
    for length in [0, 11, 12 + 9217, u32::MAX] {
        sends(
            |guest| {
                guest.set_descriptor(TX, 0, 0x10_0000, length, 0, 0);
                guest.make_available(TX, 0);
            },
            "make sense",
        );
    }
    receives(
        |guest| {
            guest.set_descriptor(RX, 0, 0x10_0000, 11, WRITE, 0);
            guest.make_available(RX, 0);
        },
        "make sense",
    );
}

#[test]
fn buffers_of_the_wrong_direction_break_the_card() {
    sends(
        |guest| {
            guest.set_descriptor(TX, 0, 0x10_0000, 100, WRITE, 0);
            guest.make_available(TX, 0);
        },
        "may not read",
    );
    receives(
        |guest| {
            guest.set_descriptor(RX, 0, 0x10_0000, 2048, 0, 0);
            guest.make_available(RX, 0);
        },
        "may not write",
    );
}

#[test]
fn an_available_index_that_leaps_breaks_the_card() {
    sends(|guest| guest.set_avail_index(TX, 17), "ring access failed");
    receives(|guest| guest.set_avail_index(RX, 1000), "ring access failed");
}

#[test]
fn a_queue_of_impossible_size_or_place_breaks_the_card_before_it_runs() {
    let good = Rings::standard(TX);
    let mut cases: Vec<(Rings, &str)> = [0, 3, 255, 512, 0x8000].map(|size| (Rings { size, ..good }, "power of two")).to_vec();
    for wild in [1 << 40, LOW_BYTES as u64 - 16, HIGH - 16, !15u64, good.used + 1] {
        cases.push((Rings { descriptors: wild, ..good }, "misaligned or outside"));
        cases.push((Rings { available: wild, ..good }, "misaligned or outside"));
        cases.push((Rings { used: wild, ..good }, "misaligned or outside"));
    }
    cases.push((Rings { available: 0, ..good }, "misaligned or outside"));
    for (rings, reason) in cases {
        let mut guest = TestGuest::new();
        guest.negotiate(BOTH);
        guest.set_queue(TX, rings);
        guest.write(0x70, 15);
        assert_eq!(guest.run(), Batch::default());
        let why = lock(&guest.device).core().broken().unwrap_or("not broken").to_owned();
        assert!(why.contains(reason), "{why:?} does not say {reason:?}");
        assert_ne!(guest.status() & STATUS_NEEDS_RESET, 0);
    }
}

#[test]
fn a_kick_before_the_driver_is_ready_is_counted_and_made_good_later() {
    let mut guest = TestGuest::new();
    guest.write(0x50, TX as u32);
    assert!(guest.transport.kicks()[TX].read().is_ok(), "without an ioeventfd the register signals the worker");
    assert_eq!(guest.run(), Batch::default());
    assert_eq!(lock(&guest.device).metrics().counts().early_kicks, 1);

    guest.negotiate(BOTH);
    guest.set_queue(TX, guest.rings[TX]);
    guest.offer_frame(0, &frame(1, 60));
    assert!(guest.transport.kicks()[TX].read().is_err());
    guest.write(0x70, 15);
    assert!(guest.transport.kicks()[TX].read().is_ok(), "DRIVER_OK looks at every ring");
    guest.run();
    assert_eq!(guest.sink.frames().len(), 1);
}

#[test]
fn a_broken_card_is_still_broken_after_a_failover() {
    let guest = TestGuest::running(BOTH);
    guest.set_avail_index(TX, 1000);
    guest.run();
    let state = lock(&guest.device).save();
    let mut other = TestGuest::with_memory(guest.memory.clone());
    lock(&other.device).restore(&state).unwrap();
    lock(&other.device).activate().unwrap();
    assert_ne!(other.status() & STATUS_NEEDS_RESET, 0);
    assert_eq!(other.read(0x60) & 2, 2);
    assert_eq!(other.run(), Batch::default());
}

/// Values that tend to hurt: small, at the ends of memory, at the ends of the type.
fn nasty() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..64u64,
        (0..0x8_0000u64),
        (LOW_BYTES as u64 - 64..LOW_BYTES as u64 + 64),
        (HIGH - 64..HIGH + 64),
        (HIGH + HIGH_BYTES as u64 - 64..HIGH + HIGH_BYTES as u64 + 64),
        (u64::MAX - 64..=u64::MAX),
        any::<u64>(),
    ]
}

#[derive(Clone, Debug)]
enum Deed {
    Register(u64, u32),
    Descriptor { queue: usize, index: u16, address: u64, length: u32, flags: u16, next: u16 },
    Available { queue: usize, head: u16 },
    Index { queue: usize, index: u16 },
    Poke(u64, u64),
    Arrive(usize),
    Offer { queue: usize, index: u16, length: u32, split: u32 },
    Start,
    Run,
}

fn deed() -> impl Strategy<Value = Deed> {
    let small = || prop_oneof![4 => 0..17u16, 1 => any::<u16>()];
    let address = prop_oneof![8 => 0x10_0000..0x1c_0000u64, 1 => nasty()];
    let length = prop_oneof![8 => 0..2000u32, 1 => 9000..10_000u32, 1 => any::<u32>()];
    let descriptor = (0..2usize, small(), address, length, prop_oneof![1 => 0..8u16, 8 => 0..2u16], any::<u8>(), small());
    prop_oneof![
        1 => ((0..0x110u64), nasty()).prop_map(|(register, value)| Deed::Register(register, value as u32)),
        12 => descriptor.prop_map(|(queue, index, address, length, flags, wrong, next)| {
            // Mostly the right direction: 0 for the queue that the device reads, 2 for the one it writes.
            let direction = if (queue == RX) ^ (wrong < 10) { WRITE } else { 0 };
            Deed::Descriptor { queue, index: index % 16, address, length, flags: flags ^ direction, next }
        }),
        12 => (0..2usize, small()).prop_map(|(queue, head)| Deed::Available { queue, head }),
        12 => (0..2usize, 0..15u16, 12..3000u32, 0..12u32).prop_map(|(queue, index, length, split)| Deed::Offer { queue, index, length, split }),
        1 => (0..2usize, small()).prop_map(|(queue, index)| Deed::Index { queue, index }),
        1 => (0x1_0000..0x2_6000u64, any::<u64>()).prop_map(|(address, value)| Deed::Poke(address, value)),
        8 => (0..3000usize).prop_map(Deed::Arrive),
        4 => Just(Deed::Start),
        16 => Just(Deed::Run),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_ring_and_no_register_makes_the_card_panic_hang_or_write_unnoticed(deeds in prop::collection::vec(deed(), 1..60)) {
        let mut guest = TestGuest::running(BOTH);
        for deed in deeds {
            match deed {
                Deed::Register(register, value) => {
                    guest.read(register);
                    guest.write(register, value);
                }
                Deed::Descriptor { queue, index, address, length, flags, next } =>
                    guest.set_descriptor(queue, index, address, length, flags, next),
                Deed::Available { queue, head } => guest.make_available(queue, head),
                Deed::Index { queue, index } => guest.set_avail_index(queue, index),
                Deed::Poke(address, value) => guest.memory.write_obj(value, GuestAddress(address)).unwrap(),
                // The socket's queue is short; a full one loses the frame like any network.
                Deed::Arrive(length) => drop(guest.wire.send(&vec![7; length])),
                // A proper chain of two buffers, the boundary anywhere in the header.
                Deed::Offer { queue, index, length, split } => {
                    let (address, direction) = (0x10_0000 + 0x1000 * u64::from(index), if queue == RX { WRITE } else { 0 });
                    guest.set_descriptor(queue, index, address, split, NEXT | direction, index + 1);
                    guest.set_descriptor(queue, index + 1, address + u64::from(split), length - split, direction, 0);
                    guest.make_available(queue, index);
                }
                // A driver that begins anew begins with empty rings.
                Deed::Start => {
                    for queue in [RX, TX] {
                        guest.memory.write_slice(&[0; 8], GuestAddress(guest.rings[queue].used)).unwrap();
                        guest.set_avail_index(queue, 0);
                    }
                    guest.start(BOTH);
                }
                Deed::Run => {
                    guest.run();
                }
            }
        }
        let mut page = [0; 4096];
        let dirty = guest.dirty_pages();
        for address in (0..LOW_BYTES as u64).chain(HIGH..HIGH + HIGH_BYTES as u64).step_by(4096) {
            guest.memory.read_slice(&mut page, GuestAddress(address)).unwrap();
            prop_assert!(page == [0; 4096] || dirty.contains(&address), "page {address:#x} changed unnoticed");
        }
        let before = lock(&guest.device).save();
        let other = TestGuest::with_memory(guest.memory.clone());
        let restored = lock(&other.device).restore(&before);
        prop_assert!(restored.is_ok(), "what a guest can do to its card can be restored: {restored:?}");
        other.run();
    }
}
