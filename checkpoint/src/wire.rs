//! The wire format of a part, version 2. Everything is little endian.
//!
//! An epoch is one or more parts; each travels in one staging slot of the standby.
//!
//! ```text
//! part    = header (64 bytes) records (8 bytes each) payload tail
//!
//! header  offset size
//!           0     8   magic "LKSTPART"
//!           8     2   version (2)
//!          10     1   kind: 1 SYNC (memory and disks copied while the guest runs), 2 EPOCH
//!          11     1   flags: bit 0 LAST (the epoch ends with this part; never set on SYNC); the others are 0
//!          12     4   part index: from 0 within an epoch, and from 0 within the whole synchronisation
//!          16     8   generation
//!          24     8   epoch (0 on SYNC)
//!          32     4   number of records
//!          36     4   payload bytes
//!          40     4   tail bytes
//!          44    12   reserved, 0
//!          56     8   digest: xxh3-64 of the whole part with these eight bytes taken as 0
//!
//! record  = gfn << 12 | code, gfns strictly ascending within a part
//!           code 0       raw page, 4096 payload bytes
//!           code 1       zero page, no payload
//!           code n >= 2  delta of n payload bytes (see `delta.rs`) against what the standby holds after all earlier parts
//!           gfn bit 51   set: not a page but a block of 4096 bytes of a virtual disk, on SYNC only: the disk's index in the gfn's bits 43 to 50, the block's
//!                        number below. Code 0 or 1. The last block of a disk whose size is no multiple of 4096 ends in zeros.
//! payload = the records' payload in record order, nothing between
//! tail    = the next bytes of the epoch's encoded `EpochTail` (any EPOCH part may carry some: it may be larger than a slot); in the
//!           LAST part they are followed by the epoch digest, 8 bytes, which chains the digests of all earlier parts of the epoch. The
//!           LAST part's own digest covers that, so a LAST part vouches for the whole epoch.
//! ```
//!
//! Lives here: the header, the record word, the named limits. Not here: page encodings (`encode`, `delta`) and verification (`decode`).
//! Guards S2 and S7: other versions are refused by name, and no length is believed before it is checked.

use types::block::DiskIndex;
use types::{Epoch, Generation, Gfn, PAGE_SIZE};

use crate::decode::WireError;

/// First eight bytes of every part.
pub const MAGIC: [u8; 8] = *b"LKSTPART";
/// The version of the format that this crate speaks, and the only one that it accepts.
pub const VERSION: u16 = 2;
/// Bytes of a part's header.
pub const HEADER_BYTES: usize = 64;
/// Bytes of a record word.
pub const RECORD_BYTES: usize = 8;
/// Bytes of the epoch digest that ends the LAST part.
pub const EPOCH_DIGEST_BYTES: usize = 8;
/// Largest part, bytes: lengths stay far from the 32-bit fields' ends, and a slot of this size would already be a bad choice for latency.
pub const MAX_PART_BYTES: usize = 256 << 20;
/// Most parts in one epoch or one synchronisation: a terabyte guest in 1 MiB slots, with room. More is a runaway peer.
pub const MAX_PARTS: u32 = 1 << 22;
/// Largest guest frame number that a record word can carry: bit 51 tells disk blocks from pages.
pub const MAX_GFN: u64 = DISK_BIT - 1;
/// Bytes of a disk's block on the wire: a page, so that blocks go through the same buffers.
pub const BLOCK_BYTES: usize = PAGE_SIZE;
/// Largest block number that a record word can carry: disks of 32 PiB.
pub const MAX_BLOCK: u64 = (1 << DISK_INDEX_AT) - 1;

const DISK_BIT: u64 = 1 << 51;
const DISK_INDEX_AT: u32 = 43;

/// Record code of a raw page.
pub const CODE_RAW: u64 = 0;
/// Record code of a zero page.
pub const CODE_ZERO: u64 = 1;
/// Bits of a record word that hold the code.
pub const CODE_BITS: u32 = 12;
/// Offset of the digest in the header.
pub(crate) const DIGEST_AT: usize = 56;

const FLAG_LAST: u8 = 1;
const KIND_SYNC: u8 = 1;
const KIND_EPOCH: u8 = 2;

/// What a part is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartKind {
    /// Memory and disks copied while the guest runs, before the first epoch: applied as it comes, nothing can be activated from it.
    Sync,
    /// Part of an epoch: staged until the epoch is complete and verified.
    Epoch,
}

/// A block of a virtual disk: [`BLOCK_BYTES`] bytes from `block * BLOCK_BYTES` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DiskBlock {
    /// Which disk.
    pub disk: DiskIndex,
    /// Which block of it.
    pub block: u64,
}

impl DiskBlock {
    /// How a record names the block: as a gfn that no page has. `None`: beyond [`MAX_BLOCK`].
    #[must_use]
    pub fn name(self) -> Option<Gfn> {
        (self.block <= MAX_BLOCK).then(|| Gfn(DISK_BIT | u64::from(self.disk.0) << DISK_INDEX_AT | self.block))
    }

    /// The block that a record's gfn names; `None` when it names a page.
    #[must_use]
    pub fn named(gfn: Gfn) -> Option<DiskBlock> {
        (gfn.0 & DISK_BIT != 0).then_some(DiskBlock { disk: DiskIndex((gfn.0 >> DISK_INDEX_AT) as u8), block: gfn.0 & MAX_BLOCK })
    }
}

impl std::fmt::Display for DiskBlock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {}", self.block, self.disk)
    }
}

/// The first 64 bytes of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartHeader {
    /// SYNC or EPOCH.
    pub kind: PartKind,
    /// The epoch ends with this part.
    pub last: bool,
    /// Position of the part in its epoch, or in the synchronisation.
    pub index: u32,
    /// The generation in which the guest ran.
    pub generation: Generation,
    /// The epoch; [`Epoch::NONE`] for SYNC.
    pub epoch: Epoch,
    /// Number of record words.
    pub records: u32,
    /// Bytes of payload.
    pub payload_bytes: u32,
    /// Bytes of tail, the epoch digest of a LAST part included.
    pub tail_bytes: u32,
    /// xxh3-64 of the part with this field taken as 0.
    pub digest: u64,
}

impl PartHeader {
    /// The header as it goes onto the wire.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0u8; HEADER_BYTES];
        out[0..8].copy_from_slice(&MAGIC);
        out[8..10].copy_from_slice(&VERSION.to_le_bytes());
        out[10] = match self.kind {
            PartKind::Sync => KIND_SYNC,
            PartKind::Epoch => KIND_EPOCH,
        };
        out[11] = if self.last { FLAG_LAST } else { 0 };
        out[12..16].copy_from_slice(&self.index.to_le_bytes());
        out[16..24].copy_from_slice(&self.generation.0.to_le_bytes());
        out[24..32].copy_from_slice(&self.epoch.0.to_le_bytes());
        out[32..36].copy_from_slice(&self.records.to_le_bytes());
        out[36..40].copy_from_slice(&self.payload_bytes.to_le_bytes());
        out[40..44].copy_from_slice(&self.tail_bytes.to_le_bytes());
        out[DIGEST_AT..].copy_from_slice(&self.digest.to_le_bytes());
        out
    }

    /// Reads a header from the start of `bytes` and checks all that can be checked without the rest of the part.
    ///
    /// # Errors
    /// [`WireError`]: too short, not a part, another version, unknown kind or flags, non-zero reserved bytes, impossible numbers.
    pub fn from_bytes(bytes: &[u8]) -> Result<PartHeader, WireError> {
        let Some(head) = bytes.first_chunk::<HEADER_BYTES>() else {
            return Err(WireError::Length { claimed: HEADER_BYTES as u64, actual: bytes.len() });
        };
        let magic: [u8; 8] = field(head, 0);
        if magic != MAGIC {
            return Err(WireError::Magic { found: magic });
        }
        let version = u16::from_le_bytes(field(head, 8));
        if version != VERSION {
            return Err(WireError::Version { theirs: version, ours: VERSION });
        }
        let kind = match head[10] {
            KIND_SYNC => PartKind::Sync,
            KIND_EPOCH => PartKind::Epoch,
            other => return Err(WireError::Header { field: "kind", value: other.into() }),
        };
        let flags = head[11];
        if flags & !FLAG_LAST != 0 {
            return Err(WireError::Header { field: "flags", value: flags.into() });
        }
        if let Some(byte) = head[44..DIGEST_AT].iter().find(|byte| **byte != 0) {
            return Err(WireError::Header { field: "reserved bytes", value: (*byte).into() });
        }
        let header = PartHeader {
            kind,
            last: flags & FLAG_LAST != 0,
            index: u32::from_le_bytes(field(head, 12)),
            generation: Generation(u64::from_le_bytes(field(head, 16))),
            epoch: Epoch(u64::from_le_bytes(field(head, 24))),
            records: u32::from_le_bytes(field(head, 32)),
            payload_bytes: u32::from_le_bytes(field(head, 36)),
            tail_bytes: u32::from_le_bytes(field(head, 40)),
            digest: u64::from_le_bytes(field(head, DIGEST_AT)),
        };
        header.check()?;
        Ok(header)
    }

    /// Bytes of the whole part, as the header claims them.
    #[must_use]
    pub fn part_bytes(&self) -> u64 {
        HEADER_BYTES as u64 + u64::from(self.records) * RECORD_BYTES as u64 + u64::from(self.payload_bytes) + u64::from(self.tail_bytes)
    }

    fn check(&self) -> Result<(), WireError> {
        if self.index >= MAX_PARTS {
            return Err(WireError::Header { field: "part index", value: self.index.into() });
        }
        let epoch_fits = match self.kind {
            PartKind::Sync => self.epoch == Epoch::NONE,
            PartKind::Epoch => self.epoch != Epoch::NONE,
        };
        if !epoch_fits {
            return Err(WireError::Header { field: "epoch for this kind of part", value: self.epoch.0 });
        }
        if self.kind == PartKind::Sync && (self.last || self.tail_bytes != 0) {
            return Err(WireError::Header { field: "tail of a SYNC part", value: self.tail_bytes.into() });
        }
        if self.last && (self.tail_bytes as usize) < EPOCH_DIGEST_BYTES {
            return Err(WireError::Header { field: "tail of a LAST part", value: self.tail_bytes.into() });
        }
        if self.part_bytes() > MAX_PART_BYTES as u64 {
            return Err(WireError::Header { field: "part bytes", value: self.part_bytes() });
        }
        Ok(())
    }
}

/// `N` bytes of the header from `at`. Both are constants at every call, and inside the array.
fn field<const N: usize>(head: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    let mut out = [0u8; N];
    out.copy_from_slice(&head[at..at + N]);
    out
}

/// The record word of `gfn` with `code`; the caller has checked that it is a page's or a block's name, and the code's twelve bits.
pub(crate) fn record_word(gfn: Gfn, code: u64) -> u64 {
    debug_assert!(gfn.0 < 1 << (64 - CODE_BITS) && code < 1 << CODE_BITS);
    gfn.0 << CODE_BITS | code
}

/// Takes a record word apart: the page, and its code.
pub(crate) fn split_record(word: u64) -> (Gfn, u64) {
    (Gfn(word >> CODE_BITS), word & ((1 << CODE_BITS) - 1))
}

/// Payload bytes of a record with this code.
pub(crate) fn payload_of(code: u64) -> usize {
    match code {
        CODE_RAW => PAGE_SIZE,
        CODE_ZERO => 0,
        delta => delta as usize,
    }
}

/// Pages that fit a part of at most `slot_bytes` whatever they contain, beside `tail_len` bytes of tail (an epoch's LAST part needs
/// [`EPOCH_DIGEST_BYTES`] on top of its share of the tail). 0: the slot is too small.
#[must_use]
pub fn pages_per_part(slot_bytes: usize, tail_len: usize) -> usize {
    slot_bytes.min(MAX_PART_BYTES).saturating_sub(HEADER_BYTES).saturating_sub(tail_len) / (RECORD_BYTES + PAGE_SIZE)
}
