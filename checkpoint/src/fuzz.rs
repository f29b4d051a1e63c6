//! Bodies of the fuzz targets: each takes foreign bytes and must return, whatever they are.
//!
//! Lives here: one function per entry point for foreign bytes. Not here: the fuzzer (the `fuzz/` package calls these), and the seeded runs of the
//! tests, which call them too. Guards S7. A violated property panics: that is how a fuzzer sees it.

use types::Generation;

use crate::Page;
use crate::assemble::Assembler;
use crate::codec::MAX_ENCODED_BYTES;
use crate::decode::Part;
use crate::delta::{Delta, PAGE_WORDS, WORD_BYTES};
use crate::digest::PartDigest;
use crate::map::GuestMap;
use crate::tail::EpochTail;
use crate::wire::{BLOCK_BYTES, DIGEST_AT, HEADER_BYTES, PartKind};

/// Pages of the guest that the targets pretend to have: small, so that wild gfns are found outside.
pub const GUEST_PAGES: u64 = 64;
/// Blocks of the guest's disks, for the same reason; the last block of the second disk is not whole.
pub const DISK_BLOCKS: [u64; 2] = [32, 4];

/// Disks of so many blocks.
fn disks() -> [u64; 2] {
    [DISK_BLOCKS[0] * BLOCK_BYTES as u64, DISK_BLOCKS[1] * BLOCK_BYTES as u64 - 512]
}

/// A part: parsed, and once more with the digest made right, so that the checks behind the digest are reached. What is accepted stays inside
/// memory and inside its pages.
pub fn part(bytes: &[u8]) {
    use_part(bytes);
    use_part(&with_right_digest(bytes));
}

/// The same bytes with a correct digest, where they are long enough to have one.
#[must_use]
pub fn with_right_digest(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if let Some((head, body)) = bytes.split_at_mut_checked(HEADER_BYTES) {
        let mut digest = PartDigest::new(head);
        digest.update(body);
        head[DIGEST_AT..].copy_from_slice(&digest.finish().to_le_bytes());
    }
    bytes
}

fn use_part(bytes: &[u8]) {
    let map = GuestMap::new([0..GUEST_PAGES / 2, GUEST_PAGES..GUEST_PAGES + GUEST_PAGES / 2]).with_disks(disks());
    let Ok(part) = Part::parse(bytes, &map) else {
        return;
    };
    let mut records = 0;
    let mut page: Page = [0; types::PAGE_SIZE];
    for record in part.records() {
        assert!(map.contains(record.gfn()), "an accepted record is outside memory");
        record.apply(&mut page);
        records += 1;
    }
    for record in part.blocks() {
        assert!(map.contains_block(record.block), "an accepted block is outside its disk");
        assert_eq!(part.header().kind, PartKind::Sync, "a disk block in an epoch");
        records += 1;
    }
    assert_eq!(records, part.header().records, "an accepted part loses records");
    let mut assembler = Assembler::new(part.header().generation);
    let _ = match part.header().kind {
        PartKind::Sync => assembler.sync(&part).map(|()| None),
        PartKind::Epoch => assembler.push((), &part),
    };
}

/// A control message: what is accepted means the same when it is sent on.
pub fn message(bytes: &[u8]) {
    if let Ok(message) = crate::message::decode(bytes) {
        let again = crate::message::encode(&message).expect("what came in is within the limit");
        assert_eq!(crate::message::decode(&again).expect("our own bytes"), message);
    }
}

/// A tail: as [`message()`].
pub fn tail(bytes: &[u8]) {
    if let Ok(tail) = EpochTail::decode(bytes) {
        let mut again = Vec::new();
        tail.encode_into(&mut again).expect("what came in is within the limit");
        assert!(again.len() <= MAX_ENCODED_BYTES);
        assert_eq!(EpochTail::decode(&again).expect("our own bytes"), tail);
    }
}

/// A delta: every accepted run is inside the page, whole words, ascending.
pub fn delta(bytes: &[u8]) {
    let Ok(delta) = Delta::parse(bytes) else {
        return;
    };
    let mut end = 0;
    for (offset, new) in delta.runs() {
        assert!(offset >= end && offset.is_multiple_of(WORD_BYTES) && new.len().is_multiple_of(WORD_BYTES));
        end = offset + new.len();
        assert!(end <= PAGE_WORDS * WORD_BYTES);
    }
    delta.apply(&mut [0; types::PAGE_SIZE]);
}

/// Eight bytes from `at`, or zeros where there are none.
fn field(bytes: &[u8], at: usize) -> [u8; 8] {
    bytes.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).unwrap_or_default()
}

/// A stream of parts, each preceded by its length (u16), with right digests, on a link of the first part's generation: any order of any parts ends in an
/// error or in whole epochs. Returns how many.
pub fn stream(bytes: &[u8]) -> u64 {
    let map = GuestMap::from_regions([(0, GUEST_PAGES * types::PAGE_SIZE as u64)]).with_disks(disks());
    let mut assembler = Assembler::new(Generation(u64::from_le_bytes(field(bytes, 2 + 16))));
    let mut expected = assembler.due();
    let mut complete_epochs = 0;
    let mut rest = bytes;
    while let Some((len, after)) = rest.split_first_chunk::<2>() {
        let len = usize::from(u16::from_le_bytes(*len)).min(after.len());
        let (one, next) = after.split_at(len);
        rest = next;
        let one = with_right_digest(one);
        let Ok(part) = Part::parse(&one, &map) else {
            break;
        };
        let pushed = match part.header().kind {
            PartKind::Sync => assembler.sync(&part).map(|()| None),
            PartKind::Epoch => assembler.push((), &part),
        };
        match pushed {
            Ok(Some(complete)) => {
                assert_eq!(complete.epoch, expected, "epochs complete in order");
                expected = expected.next();
                complete_epochs += 1;
            }
            Ok(None) => {}
            Err(_) => assert!(matches!(assembler.push((), &part), Err(crate::AssembleError::Broken))),
        }
    }
    complete_epochs
}
