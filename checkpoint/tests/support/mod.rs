//! What the tests share: a primary's memory, the encoder in front of it, and a standby that applies what it is sent.
#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::BTreeSet;

use checkpoint::{Assembler, CompleteEpoch, DiskBlock, EncodedPart, Encoder, EncoderConfig, EpochInput, EpochTail, GuestMap, Page, Part};
use types::block::{DiskChange, DiskIndex, DiskWrite};
use types::{Epoch, Generation, Gfn, Output, OutputPort, PAGE_SIZE};

pub const GENERATION: Generation = Generation(3);

/// Bytes of the two disks: the second one ends in the middle of a block.
pub const DISKS: [u64; 2] = [1 << 20, (64 << 10) + 512];

/// Memory with a hole in it, and two disks.
pub fn map(pages: u64) -> GuestMap {
    GuestMap::new([0..pages / 2, 1000..1000 + pages.div_ceil(2)]).with_disks(DISKS)
}

/// How a record names a disk's block.
pub fn block(disk: u8, block: u64) -> Gfn {
    DiskBlock { disk: DiskIndex(disk), block }.name().expect("a small number")
}

/// A SYNC part with two pages and three disk blocks.
pub fn part_with_blocks() -> (GuestMap, Vec<u8>) {
    let gfns = [Gfn(1), Gfn(1001), block(0, 0), block(0, 255), block(1, 16)];
    let mut arena = noise(4, gfns.len() * PAGE_SIZE);
    arena[3 * PAGE_SIZE..4 * PAGE_SIZE].fill(0);
    let mut encoder = encoder(64 << 10, 16);
    let mut out = encoder.part_buffer();
    encoder.sync_part(GENERATION, 0, &gfns, &arena, &mut out).expect("a possible part");
    (map(8), gather(&out, &arena))
}

/// All pages of a map, with content.
pub struct Memory {
    pub map: GuestMap,
    pub pages: Vec<Page>,
}

impl Memory {
    pub fn new(map: GuestMap) -> Memory {
        let pages = vec![[0; PAGE_SIZE]; map.pages() as usize];
        Memory { map, pages }
    }

    pub fn position(&self, gfn: Gfn) -> usize {
        self.map.gfns().position(|other| other == gfn).expect("a page of the guest")
    }

    pub fn page(&mut self, gfn: Gfn) -> &mut Page {
        let at = self.position(gfn);
        &mut self.pages[at]
    }

    pub fn capture(&self, dirty: &BTreeSet<Gfn>) -> (Vec<Gfn>, Vec<u8>) {
        let gfns: Vec<Gfn> = dirty.iter().copied().collect();
        let arena = gfns.iter().flat_map(|gfn| self.pages[self.position(*gfn)]).collect();
        (gfns, arena)
    }

    pub fn apply(&mut self, bytes: &[u8]) {
        let part = Part::reparse(bytes, &self.map.clone()).expect("verified before");
        for record in part.records() {
            record.apply(self.page(record.gfn()));
        }
    }
}

pub fn gather(part: &EncodedPart, arena: &[u8]) -> Vec<u8> {
    let bytes: Vec<u8> = part.slices(arena).flatten().copied().collect();
    assert_eq!(bytes.len(), part.wire_bytes());
    bytes
}

pub fn encoder(slot_bytes: usize, delta_pages: usize) -> Encoder {
    Encoder::new(EncoderConfig { slot_bytes, delta_pages }).expect("a usable slot size")
}

/// All parts of an epoch as they come out of the wire.
pub fn encode_epoch(encoder: &mut Encoder, epoch: Epoch, gfns: &[Gfn], arena: &[u8], tail: &EpochTail) -> Vec<Vec<u8>> {
    let mut tail_bytes = Vec::new();
    tail.encode_into(&mut tail_bytes).expect("a small tail");
    let expected = encoder.parts_for(gfns.len(), tail_bytes.len());
    let mut out = encoder.part_buffer();
    let mut parts = Vec::new();
    let slot_bytes = encoder.slot_bytes();
    let mut making = encoder.epoch(EpochInput { generation: GENERATION, epoch, gfns, arena, tail: &tail_bytes });
    while making.next_part(&mut out).expect("a possible part") {
        assert!(out.wire_bytes() <= slot_bytes, "a part fits its slot");
        parts.push(gather(&out, arena));
    }
    assert_eq!(parts.len(), expected, "the number of slots is known before");
    parts
}

/// Parses and pushes; the assembler owns the bytes, as it owns a staging slot in the standby.
pub fn feed(assembler: &mut Assembler<Vec<u8>>, map: &GuestMap, bytes: Vec<u8>) -> Option<CompleteEpoch<Vec<u8>>> {
    let admitted = {
        let part = Part::parse(&bytes, map).expect("an unaltered part");
        assembler.admit(&part).expect("the part that is due")
    };
    assembler.keep(bytes, admitted).expect("just admitted")
}

pub fn tail(machine: &[u8]) -> EpochTail {
    EpochTail {
        machine: machine.to_vec(),
        output: vec![
            Output { port: OutputPort::Net(0), bytes: vec![0xAA; 60] },
            Output { port: OutputPort::Console, bytes: b"hello".to_vec() },
        ],
        memory: None,
        disks: vec![
            DiskWrite { disk: DiskIndex(0), offset: 4096, change: DiskChange::Data(vec![0xD1; 512].into()) },
            DiskWrite { disk: DiskIndex(1), offset: 0, change: DiskChange::Discard { len: 1024 } },
        ],
    }
}

/// Bytes without a pattern, the same for the same seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    use rand::{RngCore, SeedableRng};
    let mut out = vec![0; len];
    rand::rngs::StdRng::seed_from_u64(seed).fill_bytes(&mut out);
    out
}

/// A small epoch of one part with a raw page, a zero page and a delta in it, its base having been sent before; and its map.
pub fn part_of_every_kind() -> (GuestMap, Vec<u8>) {
    let map = map(8);
    let mut memory = Memory::new(map.clone());
    let mut encoder = encoder(64 << 10, 16);
    let dirty: BTreeSet<Gfn> = [Gfn(1), Gfn(2), Gfn(1001)].into();
    memory.page(Gfn(2)).copy_from_slice(&noise(2, PAGE_SIZE));
    for epoch in 1..=2 {
        // Sent twice: named, then remembered.
        let (gfns, arena) = memory.capture(&[Gfn(2)].into());
        encode_epoch(&mut encoder, Epoch(epoch), &gfns, &arena, &tail(b""));
    }
    memory.page(Gfn(2))[100] ^= 1;
    memory.page(Gfn(2))[3000] ^= 1;
    memory.page(Gfn(1001)).copy_from_slice(&noise(3, PAGE_SIZE));
    let (gfns, arena) = memory.capture(&dirty);
    let mut parts = encode_epoch(&mut encoder, Epoch(3), &gfns, &arena, &tail(b"machine"));
    assert_eq!(parts.len(), 1);
    (map, parts.remove(0))
}
