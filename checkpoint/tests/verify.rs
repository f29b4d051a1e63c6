//! `--verify-memory`: which window an epoch has, and that what a checkpoint missed is found within a turn.

mod support;

use std::collections::BTreeSet;

use checkpoint::verify::MemoryDifference;
use checkpoint::{EpochTail, GuestMap, MemoryDigest, VerifyMemory};
use proptest::prelude::*;
use support::{Memory, noise};
use types::{Epoch, Generation, Gfn, PAGE_SIZE};

/// Memory in two slots: pages 0 to 9 and 100 to 105.
fn two_slots() -> GuestMap {
    GuestMap::new([0..10, 100..106])
}

/// First page and the one after the last, of each range of an epoch's window.
fn ranges(verify: VerifyMemory, epoch: u64) -> Vec<(u64, u64)> {
    // Generation 0 begins at the first page.
    let window = verify.window(&two_slots(), Generation(0), Epoch(epoch)).expect("a window");
    window.ranges().iter().map(|range| (range.start, range.end)).collect()
}

#[test]
fn windows_follow_each_other_through_every_slot_and_begin_again() {
    let verify = VerifyMemory::Window { pages: 7 };
    assert_eq!(verify.turn(&two_slots()), 3);
    assert_eq!(ranges(verify, 1), [(0, 7)]);
    assert_eq!(ranges(verify, 2), [(7, 10), (100, 104)], "over the hole");
    assert_eq!(ranges(verify, 3), [(104, 106)], "what is left");
    assert_eq!(ranges(verify, 4), [(0, 7)]);
}

#[test]
fn all_of_memory_is_one_window_and_so_is_one_that_is_larger_than_memory() {
    for verify in [VerifyMemory::All, VerifyMemory::Window { pages: 16 }, VerifyMemory::Window { pages: u64::MAX }] {
        assert_eq!(verify.turn(&two_slots()), 1);
        for epoch in 1..4 {
            assert_eq!(ranges(verify, epoch), [(0, 10), (100, 106)], "{verify:?}");
        }
    }
    assert_eq!(VerifyMemory::Off.turn(&two_slots()), 0);
    assert_eq!(VerifyMemory::Off.window(&two_slots(), Generation(1), Epoch(1)), None);
}

#[test]
fn generations_begin_in_different_places() {
    let map = GuestMap::new(std::iter::once(0..1000));
    let verify = VerifyMemory::Window { pages: 10 };
    let begins: BTreeSet<u64> =
        (1..=20).map(|generation| verify.window(&map, Generation(generation), Epoch(1)).unwrap().ranges()[0].start / 100).collect();
    assert_eq!(begins.len(), 10, "twenty first windows are in every tenth of memory: {begins:?}");
}

#[test]
fn a_digest_of_another_window_than_the_epochs_is_refused() {
    let window = two_slots().slice(7, 7);
    let tail = |digest: Option<MemoryDigest>| EpochTail { memory: digest, ..EpochTail::default() };
    let of = |map: &GuestMap| Some(MemoryDigest::of_digests(map, |_| 0));
    assert_eq!(tail(of(&window)).check_memory(Some(&window)), Ok(()));
    assert_eq!(tail(None).check_memory(None), Ok(()));
    for wrong in [two_slots(), two_slots().slice(7, 6), two_slots().slice(0, 7), GuestMap::new([7..10, 1000..1004]), GuestMap::new([])] {
        let said = tail(of(&wrong)).check_memory(Some(&window)).unwrap_err().to_string();
        assert!(said.contains("7..a") && said.contains("64..68"), "{said}");
    }
    assert!(tail(None).check_memory(Some(&window)).is_err(), "none");
    assert!(tail(of(&window)).check_memory(None).is_err(), "not asked for");
}

#[test]
fn bytes_that_name_impossible_frames_or_half_a_digest_are_refused() {
    let mut bytes = Vec::new();
    let window = GuestMap::new(std::iter::once(1000..1001));
    let tail = EpochTail { memory: Some(MemoryDigest::of_digests(&window, |_| 7)), ..EpochTail::default() };
    tail.encode_into(&mut bytes).unwrap();
    // Machine, output, one region: first frame 1000 (fb e8 03), 4 bytes of digests; no disk writes.
    assert_eq!(bytes, [0, 0, 1, 1, 0xfb, 0xe8, 0x03, 4, 7, 0, 0, 0, 0]);

    let at_the_end_of_numbers = [&[0, 0, 1, 1, 0xfd][..], &[0xff; 8], &[4, 7, 0, 0, 0, 0]].concat();
    let wild = EpochTail::decode(&at_the_end_of_numbers).unwrap();
    assert!(wild.check_memory(Some(&window)).is_err());
    assert_eq!(wild.memory.unwrap().window().pages(), 0, "no page is read for it");

    let five_bytes = [0, 0, 1, 1, 0xfb, 0xe8, 0x03, 5, 7, 0, 0, 0, 9, 0];
    let said = EpochTail::decode(&five_bytes).unwrap_err().to_string();
    assert!(said.contains("1 bytes are left over"), "{said}");
}

/// A primary that misses one page of one epoch, and a standby that applies what it gets and compares each epoch's window: the epoch after which the difference was seen, counted
/// from that which missed it, and what was said.
fn epochs_until_seen(pages: u64, window: u64, missed: u64, epoch_of_miss: u64) -> Option<(u64, MemoryDifference)> {
    let map = GuestMap::new([0..pages / 2, 1000..1000 + pages.div_ceil(2)]);
    let (mut primary, mut standby) = (Memory::new(map.clone()), Memory::new(map.clone()));
    let verify = VerifyMemory::Window { pages: window };
    let missed = map.gfns().nth(missed as usize).expect("a page of the guest");
    for epoch in 1..=epoch_of_miss + 2 * verify.turn(&map) {
        // One page is written in every epoch, another one at the miss.
        let busy = map.gfns().next().expect("a page");
        let mut dirty = BTreeSet::from([busy]);
        if epoch == epoch_of_miss {
            dirty.insert(missed);
        }
        for gfn in &dirty {
            primary.page(*gfn).copy_from_slice(&noise(epoch, PAGE_SIZE));
        }
        for gfn in dirty.iter().filter(|gfn| epoch != epoch_of_miss || **gfn != missed) {
            *standby.page(*gfn) = *primary.page(*gfn);
        }
        let window = verify.window(&map, Generation(5), Epoch(epoch)).expect("a window");
        let of = |memory: &Memory| MemoryDigest::compute(&window, |gfn| &memory.pages[memory.position(gfn)]);
        if let Err(difference) = of(&standby).compare(&of(&primary)) {
            return Some((epoch - epoch_of_miss + 1, difference));
        }
    }
    None
}

proptest! {
    #[test]
    fn a_page_that_a_checkpoint_missed_is_found_within_a_turn_and_named(pages in 2u64..40, window in 1u64..12, place in 1u64..40, at in 1u64..30) {
        let missed = 1 + place % (pages - 1);
        let map = GuestMap::new([0..pages / 2, 1000..1000 + pages.div_ceil(2)]);

        let (after, difference) = epochs_until_seen(pages, window, missed, at).expect("it is seen");

        prop_assert!(after <= VerifyMemory::Window { pages: window }.turn(&map), "after {after} epochs");
        let named = map.gfns().nth(missed as usize).unwrap();
        prop_assert!(matches!(difference, MemoryDifference::Pages { first, count: 1, .. } if first == named), "{difference}");
    }

    #[test]
    fn a_turn_from_any_epoch_covers_every_page_exactly_once(pages in 1u64..60, window in 1u64..70, generation: u64, from in 1u64..1 << 60) {
        let map = GuestMap::new([0..pages / 2, 1000..1000 + pages.div_ceil(2)]);
        let verify = VerifyMemory::Window { pages: window };

        let mut seen: Vec<Gfn> = (from..from + verify.turn(&map))
            .flat_map(|epoch| verify.window(&map, Generation(generation), Epoch(epoch)).unwrap().gfns().collect::<Vec<_>>())
            .collect();

        seen.sort();
        prop_assert_eq!(seen, map.gfns().collect::<Vec<_>>());
    }
}
