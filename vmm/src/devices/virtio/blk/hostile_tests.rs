//! What a hostile guest can do to its disk: get the specification's error, or break it, with a reason, and nothing more (S7).

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::device::IN_FLIGHT_BYTES_MAX;
use super::testing::*;
use crate::devices::lock;
use crate::devices::virtio::STATUS_NEEDS_RESET;
use crate::devices::virtio::testing::{HIGH_BYTES, INDIRECT, LOW_BYTES, NEXT, WRITE};

#[test]
fn a_request_that_makes_no_sense_gets_the_specifications_error() {
    let mut guest = Guest::running(ALL);
    let end = DISK_BYTES / 512;
    let data = data_at(0);
    for (command, sector, length, status) in [
        (T_IN, end, 512, 1),
        (T_IN, end - 1, 1024, 1),
        (T_OUT, end - 1, 1024, 1),
        (T_IN, u64::MAX, 512, 1),
        (T_OUT, u64::MAX / 512, 512, 1),
        (T_OUT, u64::MAX / 512 + 1, 512, 1),
        (T_IN, 0, 511, 1),
        (T_OUT, 0, 513, 1),
        (T_IN, 0, 0, 1),
        (T_OUT, 0, 0, 1),
        (T_OUT, 0, (1 << 20) + 512, 1),
        (T_DISCARD, 0, 8, 1),
        (T_DISCARD, 0, 32, 1),
        (T_WRITE_ZEROES, 0, 0, 1),
        (2, 0, 512, 2),
        (10, 0, 512, 2),
        (14, 0, 16, 2),
        (0x8000_0000, 0, 512, 2),
        (u32::MAX, 0, 0, 2),
    ] {
        let buffers: &[(u64, u32)] = if length == 0 { &[] } else { &[(data, length)] };
        guest.driver.put(data, &[0; 64]);
        let (got, _) = guest.carry(0, command, sector, buffers);
        assert_eq!(got, status, "command {command} at {sector}, {length} bytes");
    }
    let range = |sector: u64, sectors: u32, flags: u32| [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat();
    for (command, bytes, status) in [
        (T_DISCARD, range(end, 1, 0), 1),
        (T_DISCARD, range(u64::MAX, 1, 0), 1),
        (T_DISCARD, range(0, 0, 0), 1),
        (T_DISCARD, range(0, u32::MAX, 0), 1),
        (T_DISCARD, range(0, 1, 1), 2),
        (T_DISCARD, range(0, 1, 2), 2),
        (T_WRITE_ZEROES, range(end - 1, 2, 1), 1),
        (T_WRITE_ZEROES, range(0, 1, 3), 2),
        (T_WRITE_ZEROES, range(0, 1, u32::MAX), 2),
    ] {
        guest.driver.put(data, &bytes);
        assert_eq!(guest.carry(0, command, 0, &[(data, 16)]).0, status, "command {command}, {bytes:?}");
    }
    assert!(guest.disk.log().is_empty(), "none of it reached the disk");
    assert!(guest.driver.broken().is_none());
    assert_eq!(guest.counts().refused, 28);
}

/// The disk is broken and silent, says so once, and works again after a reset.
fn breaks(prepare: impl FnOnce(&Guest), reason: &str) {
    let mut guest = Guest::running(ALL);
    prepare(&guest);
    guest.driver.run_all();
    guest.disk.answer_all();
    guest.driver.run_all();
    let why = guest.driver.broken().unwrap_or_else(|| panic!("must be broken: {reason}"));
    assert!(why.contains(reason), "{why:?} does not say {reason:?}");
    assert_ne!(guest.driver.status() & STATUS_NEEDS_RESET, 0);
    assert_eq!(guest.counts().ring_errors, 1);
    assert_eq!(guest.driver.read(0x60) & 2, 2, "a configuration interrupt tells the driver");

    let begun = guest.disk.log().len();
    guest.offer(8, T_FLUSH, 0, &[]);
    guest.driver.run_all();
    assert_eq!(guest.disk.log().len(), begun, "a broken disk begins nothing");

    guest.driver.start(ALL);
    assert_eq!(guest.carry(9, T_FLUSH, 0, &[]).0, 0, "after a reset it works again");
}

#[test]
fn a_chain_that_is_no_request_breaks_the_disk() {
    breaks(|guest| guest.offer_plain(0, T_IN, 0, &[(header_at(0), 16, false), (data_at(0), 512, false)]), "no room for the status");
    breaks(|guest| guest.offer_plain(0, T_IN, 0, &[(header_at(0), 16, false), (status_at(0), 0, true)]), "no room for the status");
    breaks(|guest| guest.offer_plain(0, T_IN, 0, &[(header_at(0), 15, false), (status_at(0), 1, true)]), "header is cut short");
    breaks(|guest| guest.offer_plain(0, T_IN, 0, &[(status_at(0), 1, true)]), "header is cut short");
    breaks(
        |guest| guest.offer_plain(0, T_OUT, 0, &[(header_at(0), 16, false), (status_at(0), 1, true), (data_at(0), 512, false)]),
        "behind one to be written",
    );
}

#[test]
fn a_chain_that_does_not_end_breaks_the_disk() {
    breaks(
        |guest| {
            guest.driver.set_descriptor(0, header_at(0), 16, NEXT, 1);
            guest.driver.set_descriptor(1, data_at(0), 512, NEXT | WRITE, 0);
            guest.driver.make_available(0);
        },
        "does not end properly after 256",
    );
    breaks(|guest| guest.driver.make_available(256), "does not end properly after 0");
    for (address, length) in [(table_at(0), 15), (table_at(0), 0), (1 << 50, 48), (u64::MAX - 15, 32), (table_at(0), 16 * 0x1_0000)] {
        breaks(
            |guest| {
                // What a table of the right place would contain: another table.
                guest.driver.set_descriptor_at(table_at(0), 0, table_at(1), 16, INDIRECT, 0);
                guest.driver.set_descriptor(0, address, length, INDIRECT, 0);
                guest.driver.make_available(0);
            },
            "does not end properly",
        );
    }
    breaks(|guest| guest.driver.set_avail_index(300), "");
}

#[test]
fn a_buffer_outside_memory_breaks_the_disk_when_it_is_used() {
    let (out, wild) = ("outside guest memory", 1u64 << 50);
    for place in [wild, LOW_BYTES as u64 - 100, u64::MAX - 10, HIGH + HIGH_BYTES as u64] {
        breaks(|guest| guest.offer(0, T_OUT, 0, &[(place, 512)]), out);
        breaks(|guest| guest.offer(0, T_IN, 0, &[(place, 512)]), out);
    }
    breaks(|guest| guest.offer_plain(0, T_FLUSH, 0, &[(wild, 16, false), (status_at(0), 1, true)]), out);
    breaks(|guest| guest.offer_plain(0, T_FLUSH, 0, &[(header_at(0), 16, false), (wild, 1, true)]), out);
    breaks(|guest| guest.offer_plain(0, T_FLUSH, 0, &[(header_at(0), 16, false), (u64::MAX, 2, true)]), out);
}

#[test]
fn one_chain_offered_without_end_keeps_what_is_in_flight_bounded() {
    let guest = Guest::running(ALL);
    guest.offer(0, T_OUT, 0, &[(0x10_0000, 1 << 20)]);
    for _ in 0..1000 {
        if guest.driver.avail_index() < 200 {
            guest.driver.make_available(0);
        }
        guest.driver.run();
    }
    assert_eq!(guest.disk.pending().len(), IN_FLIGHT_BYTES_MAX >> 20);
}

#[test]
fn a_driver_that_resets_without_end_puts_no_more_in_flight() {
    let mut guest = Guest::running(ALL);
    for round in 0..50 {
        guest.driver.start(ALL);
        for head in 0..20 {
            guest.offer(head, T_OUT, 0, &[(data_at(0), 4096)]);
        }
        guest.driver.run_all();
        assert_eq!(guest.disk.pending().len(), 20, "round {round}");
    }
}

#[derive(Clone, Debug)]
enum Deed {
    Register { register: u64, value: u32 },
    Descriptor { index: u16, address: u64, length: u32, flags: u16, next: u16 },
    Available(u16),
    Index(u16),
    Poke(u64, u64),
    Offer { head: u16, command: u32, sector: u64, length: u32 },
    Start(u64),
    Answer(usize),
    Run,
}

fn address() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0u64..LOW_BYTES as u64, 2 => HIGH..HIGH + HIGH_BYTES as u64, 1 => any::<u64>(), 1 => Just(u64::MAX)]
}

fn deed() -> impl Strategy<Value = Deed> {
    let length = || prop_oneof![Just(512u32), Just(16), Just(1), 0u32..5000, any::<u32>()];
    prop_oneof![
        1 => ((0u64..0x40).prop_map(|word| word * 4), any::<u32>()).prop_map(|(register, value)| Deed::Register { register, value }),
        3 => (0u16..260, address(), length(), 0u16..8, 0u16..260)
            .prop_map(|(index, address, length, flags, next)| Deed::Descriptor { index, address, length, flags, next }),
        3 => (0u16..260).prop_map(Deed::Available),
        1 => any::<u16>().prop_map(Deed::Index),
        2 => (0u64..LOW_BYTES as u64 - 8, any::<u64>()).prop_map(|(at, value)| Deed::Poke(at, value)),
        6 => (0u16..256, prop_oneof![0u32..15, any::<u32>()], prop_oneof![0u64..9000, any::<u64>()], length())
            .prop_map(|(head, command, sector, length)| Deed::Offer { head, command, sector, length }),
        1 => prop_oneof![Just(ALL), Just(PLAIN), Just(1u64 << 32)].prop_map(Deed::Start),
        3 => any::<usize>().prop_map(Deed::Answer),
        4 => Just(Deed::Run),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn no_ring_and_no_register_makes_the_disk_panic_hang_or_write_unnoticed(deeds in prop::collection::vec(deed(), 1..60)) {
        let mut guest = Guest::running(ALL);
        for deed in deeds {
            match deed {
                Deed::Register { register, value } => guest.driver.write(register, value),
                Deed::Descriptor { index, address, length, flags, next } => {
                    guest.driver.set_descriptor(index, address, length, flags, next);
                }
                Deed::Available(head) => guest.driver.make_available(head),
                Deed::Index(index) => guest.driver.set_avail_index(index),
                Deed::Poke(at, value) => guest.driver.memory.write_obj(value, GuestAddress(at)).unwrap(),
                Deed::Offer { head, command, sector, length } => guest.offer(head, command, sector, &[(data_at(head), length)]),
                Deed::Start(features) => guest.driver.start(features),
                Deed::Answer(index) => {
                    let pending = guest.disk.pending().len();
                    if pending > 0 {
                        guest.disk.answer(index % pending);
                    }
                }
                Deed::Run => { guest.driver.run(); }
            }
        }
        for _ in 0..10 {
            guest.driver.run_all();
            guest.disk.answer_all();
        }
        guest.driver.run_all();

        let mut page = [0; 4096];
        let dirty = guest.driver.dirty_pages();
        for address in (0..LOW_BYTES as u64).chain(HIGH..HIGH + HIGH_BYTES as u64).step_by(4096) {
            guest.driver.memory.read_slice(&mut page, GuestAddress(address)).unwrap();
            prop_assert!(page == [0; 4096] || dirty.contains(&address), "page {address:#x} changed unnoticed");
        }
        prop_assert!(guest.driver.memory.num_regions() == 2);
        let state = lock(&guest.driver.device).save();
        let other = Guest::over(copy_of(&guest.driver.memory), guest.disk.mirror());
        let restored = lock(&other.driver.device).restore(&state);
        prop_assert!(restored.is_ok(), "what a guest can do to its disk can be restored: {restored:?}");
        other.driver.run_all();
    }
}
