//! S2: an epoch is complete only when all of its parts have come, in order, and its last part vouches for them.

mod support;

use std::rc::Rc;

use checkpoint::{AssembleError, Assembler, EpochInput, Part};
use support::{GENERATION, encode_epoch, encoder, feed, gather, map, noise, tail};
use types::{Epoch, Generation, Gfn, PAGE_SIZE};

const PAGES: u64 = 8;

/// An epoch of several parts; the seed makes its pages differ from another's.
fn epoch_parts(epoch: u64, seed: u64) -> Vec<Vec<u8>> {
    let gfns: Vec<Gfn> = map(PAGES).gfns().collect();
    let arena = noise(seed, gfns.len() * PAGE_SIZE);
    encode_epoch(&mut encoder(16384, 0), Epoch(epoch), &gfns, &arena, &tail(&noise(seed, 20000)))
}

fn sync_part(index: u32) -> Vec<u8> {
    let mut encoder = encoder(16384, 0);
    let mut out = encoder.part_buffer();
    let arena = noise(index.into(), PAGE_SIZE);
    encoder.sync_part(GENERATION, index, &[Gfn(0)], &arena, &mut out).unwrap();
    gather(&out, &arena)
}

fn push(assembler: &mut Assembler<Vec<u8>>, bytes: &[u8]) -> Result<bool, AssembleError> {
    let part = Part::parse(bytes, &map(PAGES)).expect("an unaltered part");
    assembler.push(bytes.to_vec(), &part).map(|complete| complete.is_some())
}

fn sync(assembler: &mut Assembler<Vec<u8>>, bytes: &[u8]) -> Result<(), AssembleError> {
    assembler.sync(&Part::parse(bytes, &map(PAGES)).expect("an unaltered part"))
}

#[test]
fn an_epoch_is_complete_with_its_last_part_and_not_before() {
    let mut assembler = Assembler::new(GENERATION);
    for epoch in 1..=3 {
        let parts = epoch_parts(epoch, epoch);
        assert!(parts.len() >= 4, "pages and tail are spread over parts");
        for (i, bytes) in parts.iter().enumerate() {
            let complete = feed(&mut assembler, &map(PAGES), bytes.clone());
            assert_eq!(complete.is_some(), i == parts.len() - 1);
            if let Some(complete) = complete {
                assert_eq!((complete.generation, complete.epoch), (GENERATION, Epoch(epoch)));
                assert_eq!(complete.parts, parts);
                assert_eq!(complete.tail, tail(&noise(epoch, 20000)));
            }
        }
        assert_eq!((assembler.due(), assembler.staged()), (Epoch(epoch + 1), 0));
    }
}

#[test]
fn a_missing_repeated_or_early_part_ends_the_link() {
    let parts = epoch_parts(1, 1);
    let next = epoch_parts(2, 2);
    let orders: [Vec<&Vec<u8>>; 5] =
        [vec![&parts[0], &parts[2]], vec![&parts[0], &parts[0]], vec![&parts[1]], vec![&next[0]], vec![&parts[0], &next[1]]];
    for order in orders {
        let mut assembler = Assembler::new(GENERATION);
        let (last, before) = order.split_last().unwrap();
        before.iter().for_each(|bytes| assert!(!push(&mut assembler, bytes).unwrap()));
        assert!(matches!(push(&mut assembler, last), Err(AssembleError::Sequence { .. })));
        assert_eq!(assembler.staged(), 0, "the torn epoch is dropped");
        assert!(matches!(push(&mut assembler, &parts[0]), Err(AssembleError::Broken)));
    }
}

#[test]
fn a_part_exchanged_for_one_of_the_same_number_is_found_by_the_last() {
    let parts = epoch_parts(1, 1);
    let others = epoch_parts(1, 2);
    let mut assembler = Assembler::new(GENERATION);
    for (i, bytes) in parts[..parts.len() - 1].iter().enumerate() {
        push(&mut assembler, if i == 1 { &others[1] } else { bytes }).unwrap();
    }
    assert!(matches!(push(&mut assembler, parts.last().unwrap()), Err(AssembleError::EpochDigest { .. })));
}

#[test]
fn another_generation_is_refused() {
    let mut assembler = Assembler::new(Generation(GENERATION.0 + 1));
    let error = push(&mut assembler, &epoch_parts(1, 1)[0]).unwrap_err();
    assert!(matches!(error, AssembleError::Generation { theirs: GENERATION, .. }), "{error}");
}

#[test]
fn sync_parts_come_in_order_and_only_before_the_first_epoch() {
    let mut assembler = Assembler::new(GENERATION);
    sync(&mut assembler, &sync_part(0)).unwrap();
    sync(&mut assembler, &sync_part(1)).unwrap();
    push(&mut assembler, &epoch_parts(1, 1)[0]).unwrap();
    assert!(matches!(sync(&mut assembler, &sync_part(2)), Err(AssembleError::LateSync { .. })));

    let mut assembler = Assembler::new(GENERATION);
    assert!(matches!(sync(&mut assembler, &sync_part(1)), Err(AssembleError::Sequence { .. })));
    assert!(matches!(push(&mut assembler, &epoch_parts(1, 1)[0]), Err(AssembleError::Broken)));

    let mut assembler = Assembler::new(GENERATION);
    assert!(matches!(push(&mut assembler, &sync_part(0)), Err(AssembleError::LateSync { .. })));
    let mut assembler = Assembler::new(GENERATION);
    assert!(matches!(sync(&mut assembler, &epoch_parts(1, 1)[0]), Err(AssembleError::NotSync { .. })));
}

#[test]
fn a_standby_that_joins_late_starts_with_any_whole_epoch_and_then_keeps_count() {
    let mut assembler = Assembler::joining(GENERATION);
    sync(&mut assembler, &sync_part(0)).unwrap();
    for bytes in epoch_parts(70, 1) {
        push(&mut assembler, &bytes).unwrap();
    }
    assert_eq!(assembler.due(), Epoch(71));
    assert!(matches!(push(&mut assembler, &epoch_parts(72, 1)[0]), Err(AssembleError::Sequence { .. })));

    let mut assembler = Assembler::joining(GENERATION);
    assert!(matches!(push(&mut assembler, &epoch_parts(70, 1)[1]), Err(AssembleError::Sequence { .. })));
}

#[test]
fn aborting_gives_back_every_handle_of_the_torn_epoch_and_of_no_other() {
    let slot = Rc::new(());
    let map = map(PAGES);
    let mut assembler = Assembler::new(GENERATION);
    let mut complete = None;
    for bytes in epoch_parts(1, 1) {
        complete = assembler.push(Rc::clone(&slot), &Part::parse(&bytes, &map).unwrap()).unwrap();
    }
    let complete = complete.expect("a whole epoch");
    for bytes in &epoch_parts(2, 2)[..3] {
        assert!(assembler.push(Rc::clone(&slot), &Part::parse(bytes, &map).unwrap()).unwrap().is_none());
    }
    assert_eq!(Rc::strong_count(&slot), 1 + complete.parts.len() + 3);
    assert_eq!(assembler.abort(), 3);
    assert_eq!(Rc::strong_count(&slot), 1 + complete.parts.len());
}

#[test]
fn an_admission_counts_once() {
    let map = map(PAGES);
    let parts = epoch_parts(1, 1);
    let mut assembler = Assembler::new(GENERATION);
    let part = Part::parse(&parts[0], &map).unwrap();
    let (first, second) = (assembler.admit(&part).unwrap(), assembler.admit(&part).unwrap());
    assert!(assembler.keep(parts[0].clone(), first).unwrap().is_none());
    assert!(matches!(assembler.keep(parts[0].clone(), second), Err(AssembleError::Broken)));
}

#[test]
fn an_unreadable_tail_is_an_error_and_no_epoch() {
    let mut encoder = encoder(16384, 0);
    let mut out = encoder.part_buffer();
    let input = EpochInput { generation: GENERATION, epoch: Epoch(1), gfns: &[], arena: &[], tail: &[0xFF; 40] };
    assert!(encoder.epoch(input).next_part(&mut out).unwrap());
    let error = push(&mut Assembler::new(GENERATION), &gather(&out, &[])).unwrap_err();
    assert!(matches!(error, AssembleError::Tail { .. }), "{error}");
}
