//! From the bytes of a staging slot to a verified part.
//!
//! Lives here: everything that is checked before anything is applied. Not here: the order of parts (`assemble`), and guest memory (`replica`).
//! Guards S2 (a part is whole and unaltered) and S7 (no bytes can cause a panic or a write outside guest memory and the disks).

use types::{Gfn, PAGE_SIZE};

use crate::Page;
use crate::delta::{Delta, DeltaError};
use crate::digest::PartDigest;
use crate::map::GuestMap;
use crate::wire::{
    CODE_RAW, CODE_ZERO, DiskBlock, EPOCH_DIGEST_BYTES, HEADER_BYTES, PartHeader, PartKind, RECORD_BYTES, payload_of, split_record,
};

/// Bytes are not a part that may be used. The link they came over must be closed: nothing after them can be trusted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The lengths in the header are not the length of the bytes.
    #[error("the part claims {claimed} bytes, but {actual} bytes came")]
    Length {
        /// By the header.
        claimed: u64,
        /// Received.
        actual: usize,
    },
    /// Not a part at all.
    #[error("the bytes are not a Lockstep part: they start with {found:02x?}")]
    Magic {
        /// The first eight bytes.
        found: [u8; 8],
    },
    /// Another version of the format.
    #[error("the peer sends checkpoint format {theirs}, this node understands only format {ours}: run the same release on both hosts")]
    Version {
        /// The peer's.
        theirs: u16,
        /// Ours.
        ours: u16,
    },
    /// A field of the header holds what it cannot hold.
    #[error("the header's {field} cannot be {value}")]
    Header {
        /// Which one.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// The bytes changed on the way.
    #[error("the part's digest is {found:#018x}, its header says {claimed:#018x}: it was damaged on the way")]
    Digest {
        /// By the header.
        claimed: u64,
        /// Computed.
        found: u64,
    },
    /// A record names a page that the guest does not have.
    #[error("the part names page {gfn}, which is outside guest memory")]
    OutsideMemory {
        /// The page.
        gfn: Gfn,
    },
    /// A record names a block that no disk has.
    #[error("the part names block {block}, which is outside that disk")]
    OutsideDisk {
        /// The block.
        block: DiskBlock,
    },
    /// A disk block where only pages can be, or encoded as only a page can be.
    #[error("block {block} came {how}: disk blocks come whole or as zeros, before the first epoch")]
    Block {
        /// The block.
        block: DiskBlock,
        /// What is wrong with it.
        how: &'static str,
    },
    /// Records are not strictly ascending.
    #[error("page {gfn} follows page {previous}: records must ascend")]
    Order {
        /// The page.
        gfn: Gfn,
        /// The one before it.
        previous: Gfn,
    },
    /// The records' payload is not the payload of the header.
    #[error("the records need {needed} payload bytes, the part has {claimed}")]
    Payload {
        /// By the records (up to the one that exceeds it).
        needed: u64,
        /// By the header.
        claimed: u32,
    },
    /// A delta is malformed.
    #[error("the delta of page {gfn} is malformed: {source}")]
    Delta {
        /// The page.
        gfn: Gfn,
        /// What is wrong with it.
        source: DeltaError,
    },
}

/// What happened to one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record<'a> {
    /// It is all zeros.
    Zero(Gfn),
    /// It holds this.
    Raw(Gfn, &'a Page),
    /// It changed in these places.
    Delta(Gfn, Delta<'a>),
}

impl Record<'_> {
    /// The guest page that the record is for; inside guest memory, which was checked with the part.
    #[must_use]
    pub fn gfn(&self) -> Gfn {
        match self {
            Record::Zero(gfn) | Record::Raw(gfn, _) | Record::Delta(gfn, _) => *gfn,
        }
    }

    /// Brings `page`, what the standby holds for this gfn, up to date.
    pub fn apply(&self, page: &mut Page) {
        match self {
            Record::Zero(_) => page.fill(0),
            Record::Raw(_, new) => page.copy_from_slice(*new),
            Record::Delta(_, delta) => delta.apply(page),
        }
    }
}

/// A block of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRecord<'a> {
    /// Which.
    pub block: DiskBlock,
    /// What it holds; `None`: zeros. Of a disk's last block only what is inside the disk counts.
    pub data: Option<&'a Page>,
}

/// A verified part, borrowed from its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part<'a> {
    header: PartHeader,
    records: &'a [u8],
    payload: &'a [u8],
    tail: &'a [u8],
}

impl<'a> Part<'a> {
    /// Verifies everything: magic, version, lengths, digest, that records are ascending, inside `map`'s memory and disks and account for the payload
    /// exactly, and that every delta stays inside its page.
    ///
    /// # Errors
    /// [`WireError`].
    pub fn parse(bytes: &'a [u8], map: &GuestMap) -> Result<Part<'a>, WireError> {
        let part = Part::cut(bytes)?;
        let (head, body) = bytes.split_at(HEADER_BYTES);
        let mut digest = PartDigest::new(head);
        digest.update(body);
        let found = digest.finish();
        if found != part.header.digest {
            return Err(WireError::Digest { claimed: part.header.digest, found });
        }
        part.check_records(map)?;
        Ok(part)
    }

    /// For bytes that [`Part::parse`] has accepted before, when they are applied: as `parse`, but without the digest.
    ///
    /// # Errors
    /// [`WireError`], but for `Digest`.
    pub fn reparse(bytes: &'a [u8], map: &GuestMap) -> Result<Part<'a>, WireError> {
        let part = Part::cut(bytes)?;
        part.check_records(map)?;
        Ok(part)
    }

    /// What the part says of itself; believed, because the digest over it was right.
    #[must_use]
    pub fn header(&self) -> &PartHeader {
        &self.header
    }

    /// The records of guest pages, in ascending order of pages. Disk blocks are in [`Part::blocks`].
    pub fn records(&self) -> impl Iterator<Item = Record<'a>> + use<'a> {
        self.named().map_while(|(gfn, code, own)| {
            // Disk blocks come after all pages.
            DiskBlock::named(gfn).is_none().then_some(match code {
                CODE_ZERO => Record::Zero(gfn),
                CODE_RAW => Record::Raw(gfn, own.first_chunk()?),
                _ => Record::Delta(gfn, Delta::verified(own)),
            })
        })
    }

    /// The disk blocks of a SYNC part, ascending.
    pub fn blocks(&self) -> impl Iterator<Item = BlockRecord<'a>> + use<'a> {
        self.named().filter_map(|(gfn, _, own)| DiskBlock::named(gfn).map(|block| BlockRecord { block, data: own.first_chunk() }))
    }

    /// Every record: what it names, its code, its payload.
    fn named(&self) -> impl Iterator<Item = (Gfn, u64, &'a [u8])> + use<'a> {
        let mut payload = self.payload;
        words(self.records).map_while(move |word| {
            let (gfn, code) = split_record(word);
            let (own, rest) = payload.split_at_checked(payload_of(code))?;
            payload = rest;
            Some((gfn, code, own))
        })
    }

    /// This part's bytes of the epoch's encoded tail, without the epoch digest.
    #[must_use]
    pub fn tail(&self) -> &'a [u8] {
        let digest = if self.header.last { EPOCH_DIGEST_BYTES } else { 0 };
        self.tail.get(..self.tail.len().saturating_sub(digest)).unwrap_or_default()
    }

    /// The epoch digest, in the LAST part.
    #[must_use]
    pub fn epoch_digest(&self) -> Option<u64> {
        if !self.header.last {
            return None;
        }
        self.tail.last_chunk().map(|bytes| u64::from_le_bytes(*bytes))
    }

    /// Header and sections, by the header's lengths.
    fn cut(bytes: &'a [u8]) -> Result<Part<'a>, WireError> {
        let header = PartHeader::from_bytes(bytes)?;
        let wrong = WireError::Length { claimed: header.part_bytes(), actual: bytes.len() };
        if header.part_bytes() != bytes.len() as u64 {
            return Err(wrong);
        }
        let body = bytes.get(HEADER_BYTES..).ok_or(wrong.clone())?;
        let (records, rest) = body.split_at_checked(header.records as usize * RECORD_BYTES).ok_or(wrong.clone())?;
        let (payload, tail) = rest.split_at_checked(header.payload_bytes as usize).ok_or(wrong)?;
        Ok(Part { header, records, payload, tail })
    }

    fn check_block(&self, block: DiskBlock, code: u64, map: &GuestMap) -> Result<(), WireError> {
        if self.header.kind != PartKind::Sync {
            return Err(WireError::Block { block, how: "in an epoch" });
        }
        if code != CODE_RAW && code != CODE_ZERO {
            return Err(WireError::Block { block, how: "as a delta" });
        }
        if map.contains_block(block) { Ok(()) } else { Err(WireError::OutsideDisk { block }) }
    }

    fn check_records(&self, map: &GuestMap) -> Result<(), WireError> {
        let mut payload = self.payload;
        let mut needed = 0;
        let mut previous: Option<Gfn> = None;
        for word in words(self.records) {
            let (gfn, code) = split_record(word);
            if let Some(previous) = previous
                && previous >= gfn
            {
                return Err(WireError::Order { gfn, previous });
            }
            previous = Some(gfn);
            match DiskBlock::named(gfn) {
                None if !map.contains(gfn) => return Err(WireError::OutsideMemory { gfn }),
                None => {}
                Some(block) => self.check_block(block, code, map)?,
            }
            let own_len = payload_of(code);
            needed += own_len as u64;
            let Some((own, rest)) = payload.split_at_checked(own_len) else {
                return Err(WireError::Payload { needed, claimed: self.header.payload_bytes });
            };
            payload = rest;
            if own_len != 0 && own_len != PAGE_SIZE {
                Delta::parse(own).map_err(|source| WireError::Delta { gfn, source })?;
            }
        }
        if !payload.is_empty() {
            return Err(WireError::Payload { needed, claimed: self.header.payload_bytes });
        }
        Ok(())
    }
}

fn words(records: &[u8]) -> impl Iterator<Item = u64> + use<'_> {
    records.as_chunks::<RECORD_BYTES>().0.iter().map(|word| u64::from_le_bytes(*word))
}
