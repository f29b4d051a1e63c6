//! S5: what the standby holds after an epoch is what the primary had, whatever the pages did and however they were encoded.

mod support;

use std::collections::BTreeSet;

use checkpoint::{Assembler, EncodeError, EpochInput, EpochTail, MemoryDigest, Part, PartKind, Record};
use proptest::prelude::*;
use support::{GENERATION, Memory, encode_epoch, encoder, feed, gather, map, noise, tail};
use types::{Epoch, Gfn, PAGE_SIZE};

const PAGES: u64 = 24;

/// What a guest does to a page in an epoch.
#[derive(Clone, Debug)]
enum Change {
    Zero,
    Noise(u64),
    Sparse(Vec<(usize, u8)>),
    Half(u64),
    Touch,
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        Just(Change::Zero),
        any::<u64>().prop_map(Change::Noise),
        // Contents that come back, so that a base that is out of date would be taken for the page.
        (0u64..3).prop_map(Change::Noise),
        prop::collection::vec((0..PAGE_SIZE, any::<u8>()), 1..40).prop_map(Change::Sparse),
        any::<u64>().prop_map(Change::Half),
        Just(Change::Touch),
    ]
}

#[derive(Clone, Debug)]
enum Step {
    Epoch(Vec<(usize, Change)>),
    /// The epoch is made in part, and the link breaks.
    Torn(Vec<(usize, Change)>, usize),
}

fn step() -> impl Strategy<Value = Step> {
    let changes = || prop::collection::vec((0..PAGES as usize, change()), 0..20);
    prop_oneof![8 => changes().prop_map(Step::Epoch), 1 => (changes(), 0usize..3).prop_map(|(c, n)| Step::Torn(c, n))]
}

fn write(memory: &mut Memory, changes: &[(usize, Change)]) -> BTreeSet<Gfn> {
    let gfns: Vec<Gfn> = memory.map.gfns().collect();
    for (at, change) in changes {
        let page = &mut memory.pages[*at];
        match change {
            Change::Zero => page.fill(0),
            Change::Noise(seed) => page.copy_from_slice(&noise(*seed, PAGE_SIZE)),
            Change::Sparse(writes) => writes.iter().for_each(|(offset, byte)| page[*offset] = *byte),
            Change::Half(seed) => page[..2040].copy_from_slice(&noise(*seed, 2040)),
            Change::Touch => {}
        }
    }
    changes.iter().map(|(at, _)| gfns[*at]).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn the_standby_holds_what_the_primary_had(
        steps in prop::collection::vec(step(), 1..40),
        delta_pages in prop::sample::select(vec![0usize, 1, 4, 8, 1024]),
        slot_bytes in prop::sample::select(vec![8192usize, 16384, 40000, 1 << 20]),
    ) {
        let map = map(PAGES);
        let mut primary = Memory::new(map.clone());
        let mut standby = Memory::new(map.clone());
        let mut encoder = encoder(slot_bytes, delta_pages);
        let mut assembler = Assembler::new(GENERATION);
        let mut epoch = Epoch(1);
        for step in steps {
            match step {
                Step::Epoch(changes) => {
                    let dirty = write(&mut primary, &changes);
                    let (gfns, arena) = primary.capture(&dirty);
                    let sent = tail(&noise(epoch.0, epoch.0 as usize * 700));
                    let parts = encode_epoch(&mut encoder, epoch, &gfns, &arena, &sent);
                    let last = parts.len() - 1;
                    for (i, bytes) in parts.into_iter().enumerate() {
                        let complete = feed(&mut assembler, &map, bytes);
                        prop_assert_eq!(complete.is_some(), i == last);
                        if let Some(complete) = complete {
                            prop_assert_eq!(&complete.tail, &sent);
                            prop_assert_eq!(complete.epoch, epoch);
                            complete.parts.iter().for_each(|part| standby.apply(part));
                        }
                    }
                    epoch = epoch.next();
                }
                Step::Torn(changes, count) => {
                    let dirty = write(&mut primary, &changes);
                    let (gfns, arena) = primary.capture(&dirty);
                    let mut out = encoder.part_buffer();
                    let mut torn = encoder.epoch(EpochInput { generation: GENERATION, epoch, gfns: &gfns, arena: &arena, tail: &[0; 9000] });
                    for _ in 0..count {
                        torn.next_part(&mut out).unwrap();
                    }
                    drop(torn);
                    // Link lost: a standby with old memory gets all of it anew. The encoder knows of an epoch that was not made to its end; that a
                    // whole one did not arrive it has to be told.
                    if count >= encoder.parts_for(gfns.len(), 9000) {
                        encoder.forget();
                    }
                    assembler = Assembler::joining(GENERATION);
                    let all: Vec<Gfn> = map.gfns().collect();
                    for (index, gfns) in all.chunks(encoder.pages_per_part(0)).enumerate() {
                        let (gfns, arena) = primary.capture(&gfns.iter().copied().collect());
                        encoder.sync_part(GENERATION, index as u32, &gfns, &arena, &mut out).unwrap();
                        let bytes = gather(&out, &arena);
                        let part = Part::parse(&bytes, &map).unwrap();
                        prop_assert_eq!(part.header().kind, PartKind::Sync);
                        assembler.sync(&part).unwrap();
                        standby.apply(&bytes);
                    }
                }
            }
            prop_assert!(primary.pages == standby.pages);
        }
    }

    #[test]
    fn a_tail_comes_back_as_it_went(machine in prop::collection::vec(any::<u8>(), 0..5000), frames in 0usize..20, pages in 0u64..50) {
        let mut sent = tail(&machine);
        sent.output = (0..frames).map(|n| types::Output { port: types::OutputPort::Net(n as u8), bytes: noise(n as u64, n * 90) }).collect();
        sent.memory = (pages > 0).then(|| MemoryDigest::of_digests(&map(pages), |gfn| gfn.0 as u32 * 77));
        let mut bytes = Vec::new();
        let written = sent.encode_into(&mut bytes).unwrap();
        prop_assert_eq!(written, bytes.len());
        prop_assert_eq!(EpochTail::decode(&bytes).unwrap(), sent);
    }
}

#[test]
fn a_page_that_changes_a_little_is_sent_as_a_delta_from_its_third_time_on() {
    let (map, bytes) = support::part_of_every_kind();
    let part = Part::parse(&bytes, &map).unwrap();
    let records: Vec<Record> = part.records().collect();
    assert!(matches!(records[0], Record::Zero(Gfn(1))));
    assert!(matches!(records[1], Record::Delta(Gfn(2), delta) if delta.wire_bytes() == 2 * 12));
    assert!(matches!(records[2], Record::Raw(Gfn(1001), page) if page[..] == noise(3, PAGE_SIZE)[..]));
    assert_eq!(records.len(), 3);
}

#[test]
fn disk_blocks_of_a_sync_part_come_back_as_they_went_and_apart_from_the_pages() {
    let (map, bytes) = support::part_with_blocks();
    let part = Part::parse(&bytes, &map).unwrap();
    let sent = noise(4, 5 * PAGE_SIZE);
    let pages: Vec<Gfn> = part.records().map(|record| record.gfn()).collect();
    let blocks: Vec<_> = part.blocks().map(|record| (record.block.disk.0, record.block.block, record.data.map(|data| &data[..]))).collect();
    assert_eq!(pages, [Gfn(1), Gfn(1001)]);
    assert_eq!(blocks, [(0, 0, Some(&sent[2 * PAGE_SIZE..3 * PAGE_SIZE])), (0, 255, None), (1, 16, Some(&sent[4 * PAGE_SIZE..]))]);
}

#[test]
fn a_disk_block_sent_again_is_sent_whole() {
    // A block is never a delta: what the standby's disk holds is not remembered here.
    let mut encoder = encoder(64 << 10, 16);
    let mut out = encoder.part_buffer();
    let arena = noise(1, PAGE_SIZE);
    for index in 0..4 {
        encoder.sync_part(GENERATION, index, &[support::block(0, 5)], &arena, &mut out).unwrap();
        assert_eq!(out.counts().raw, 1);
    }
}

#[test]
fn a_page_that_is_as_the_standby_holds_it_is_not_sent() {
    let mut encoder = encoder(64 << 10, 16);
    let arena = noise(1, PAGE_SIZE);
    let mut out = encoder.part_buffer();
    for index in 0..3 {
        encoder.sync_part(GENERATION, index, &[Gfn(5)], &arena, &mut out).unwrap();
    }
    assert_eq!((out.counts().unchanged, out.wire_bytes()), (1, 64));
}

#[test]
fn a_page_that_never_compresses_is_remembered_ever_more_rarely() {
    let mut cache = checkpoint::cache::DeltaCache::new(1);
    let mut out = [0; 2048];
    let mut remembered = 0;
    for send in 0..1000u64 {
        let page: checkpoint::Page = noise(send, PAGE_SIZE).try_into().unwrap();
        assert_eq!(cache.send(Gfn(0), &page, &mut out), checkpoint::cache::Sent::Raw);
        remembered += u32::from(cache.remembers(Gfn(0)));
    }
    assert!(remembered < 12, "remembered, and so compared, {remembered} times in 1000 sends");
}

#[test]
fn a_content_that_comes_back_after_a_zero_page_is_sent_again() {
    let mut encoder = encoder(64 << 10, 16);
    let mut out = encoder.part_buffer();
    let (content, zero) = (noise(1, PAGE_SIZE), vec![0; PAGE_SIZE]);
    for (index, arena) in [&content, &content, &zero, &content].into_iter().enumerate() {
        encoder.sync_part(GENERATION, index as u32, &[Gfn(5)], arena, &mut out).unwrap();
    }
    assert_eq!(out.counts().raw, 1);
}

#[test]
fn of_two_pages_that_share_a_slot_and_take_turns_one_is_sent_as_deltas() {
    let mut cache = checkpoint::cache::DeltaCache::new(1);
    let mut pages: [checkpoint::Page; 2] = [noise(1, PAGE_SIZE).try_into().unwrap(), noise(2, PAGE_SIZE).try_into().unwrap()];
    let mut deltas = 0;
    for turn in 0..100 {
        let page = &mut pages[turn % 2];
        page[turn] ^= 1;
        let sent = cache.send(Gfn(turn as u64 % 2), page, &mut [0; 2048]);
        deltas += u32::from(matches!(sent, checkpoint::cache::Sent::Delta(_)));
    }
    assert!(deltas >= 48, "{deltas} deltas in 100 sends");
}

#[test]
fn raw_pages_that_lie_together_are_one_piece_of_the_arena() {
    let mut encoder = encoder(1 << 20, 0);
    let gfns: Vec<Gfn> = (0..100).map(Gfn).collect();
    let arena = noise(7, gfns.len() * PAGE_SIZE);
    let mut out = encoder.part_buffer();
    encoder.sync_part(GENERATION, 0, &gfns, &arena, &mut out).unwrap();
    assert_eq!(out.pieces(), [checkpoint::Piece::Arena(0..arena.len())]);
    assert_eq!(out.counts().raw, 100);
}

#[test]
fn no_part_makes_its_buffers_grow() {
    let mut encoder = encoder(64 << 10, 64);
    let mut out = encoder.part_buffer();
    let (head, scratch) = (out.head().as_ptr(), out.scratch().as_ptr());
    let count = encoder.pages_per_part(0);
    let gfns: Vec<Gfn> = (0..count as u64).map(Gfn).collect();
    let mut arena = noise(7, count * PAGE_SIZE);
    for index in 0..6 {
        // Every second page changes in many places, so that raw pages and large deltas alternate.
        for page in arena.chunks_exact_mut(2 * PAGE_SIZE) {
            page[..1600].copy_from_slice(&noise(index, 1600));
            page[PAGE_SIZE..2 * PAGE_SIZE].copy_from_slice(&noise(index + 1, PAGE_SIZE));
        }
        encoder.sync_part(GENERATION, index as u32, &gfns, &arena, &mut out).unwrap();
    }
    assert!(out.counts().delta > 0);
    assert_eq!((out.head().as_ptr(), out.scratch().as_ptr()), (head, scratch));
}

#[test]
fn impossible_parts_are_refused_in_words() {
    let mut encoder = encoder(8192, 16);
    let mut out = encoder.part_buffer();
    let two = noise(1, 2 * PAGE_SIZE);
    let refused = |result: Result<(), EncodeError>| result.unwrap_err().to_string();
    assert!(refused(encoder.sync_part(GENERATION, 0, &[Gfn(1), Gfn(2)], &two, &mut out)).contains("may not fit a slot of 8192 bytes"));
    assert!(refused(encoder.sync_part(GENERATION, 0, &[Gfn(1)], &two, &mut out)).contains("the arena holds 8192 bytes"));
    let mut encoder = support::encoder(1 << 20, 16);
    for gfns in [
        [Gfn(2), Gfn(1)],
        [Gfn(2), Gfn(2)],
        [Gfn(1), Gfn(1 << 52)],
        [support::block(0, 1), Gfn(2)],
        [support::block(0, 1), support::block(0, 1)],
    ] {
        assert!(matches!(encoder.sync_part(GENERATION, 0, &gfns, &two, &mut out), Err(EncodeError::Order { .. })));
    }
    let with_block =
        EpochInput { generation: GENERATION, epoch: Epoch(1), gfns: &[support::block(0, 1)], arena: &two[..PAGE_SIZE], tail: &[] };
    assert!(matches!(encoder.epoch(with_block).next_part(&mut out), Err(EncodeError::Order { .. })));
    let none =
        encoder.epoch(EpochInput { generation: GENERATION, epoch: Epoch::NONE, gfns: &[], arena: &[], tail: &[] }).next_part(&mut out);
    assert!(matches!(none, Err(EncodeError::Shape { .. })));
    for slot_bytes in [0, 4096, usize::MAX] {
        let config = checkpoint::EncoderConfig { slot_bytes, delta_pages: 0 };
        assert!(matches!(checkpoint::Encoder::new(config), Err(EncodeError::SlotSize { .. })));
    }
}

#[test]
fn a_memory_digest_names_the_first_page_that_differs() {
    let map = map(10);
    let ours = MemoryDigest::of_digests(&map, |gfn| gfn.0 as u32);
    let theirs = MemoryDigest::of_digests(&map, |gfn| gfn.0 as u32 + u32::from(gfn.0 >= 1002));
    assert_eq!(ours.compare(&ours), Ok(()));
    let said = ours.compare(&theirs).unwrap_err().to_string();
    assert!(said.contains("page 0x3ea differs") && said.contains("3 pages in all"), "{said}");
    assert!(ours.compare(&MemoryDigest::of_digests(&support::map(12), |_| 0)).unwrap_err().to_string().contains("10 pages here, 12 there"));
}
