//! From dirty pages to a part: the sender's hot path.
//!
//! Lives here: choosing an encoding for each page, and laying out a part so that raw pages are never copied (the transport gathers them from the
//! capture arena) and nothing is allocated per part. Not here: cutting an epoch into parts (`epoch_parts`), the wire format itself (`wire`).
//! Guards S5 (what the standby will hold is what was captured) and S2 (the digest covers every byte on the wire).

use std::ops::Range;

use types::{Epoch, Generation, Gfn, PAGE_SIZE};

use crate::Page;
use crate::cache::{DEFAULT_DELTA_PAGES, DeltaCache, Sent};
use crate::delta::MAX_DELTA_BYTES;
use crate::digest::{EpochChain, PartDigest};
use crate::wire::{
    CODE_RAW, CODE_ZERO, DiskBlock, EPOCH_DIGEST_BYTES, HEADER_BYTES, MAX_GFN, MAX_PART_BYTES, MAX_PARTS, PartHeader, PartKind,
    RECORD_BYTES, pages_per_part, record_word,
};

/// Smallest slot that makes sense: a header, one page, and room for some tail.
pub const MIN_SLOT_BYTES: usize = 2 * PAGE_SIZE;

/// A part could not be made. The caller made a mistake; the epoch must be given up and the standby synchronised anew.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// The slot size is not usable.
    #[error("staging slots of {slot_bytes} bytes cannot be used: {MIN_SLOT_BYTES} to {MAX_PART_BYTES} are possible")]
    SlotSize {
        /// The size asked for.
        slot_bytes: usize,
    },
    /// The arena does not hold one page for each gfn.
    #[error("{gfns} pages were named, but the arena holds {arena_bytes} bytes")]
    Arena {
        /// Pages named.
        gfns: usize,
        /// Bytes given.
        arena_bytes: usize,
    },
    /// The part could exceed its slot.
    #[error("a part of {pages} pages and {tail} bytes of tail may not fit a slot of {slot_bytes} bytes")]
    TooLarge {
        /// Pages asked for.
        pages: usize,
        /// Tail asked for.
        tail: usize,
        /// The slot.
        slot_bytes: usize,
    },
    /// The gfns of a part are not strictly ascending, or too large for a record; or a disk block is named in an epoch's part.
    #[error("page {gfn} cannot follow page {previous:?} in a part: pages are named once, in ascending order, and disk blocks on SYNC only")]
    Order {
        /// The page.
        gfn: Gfn,
        /// The page before it.
        previous: Option<Gfn>,
    },
    /// Kind, epoch, index, tail and last do not go together.
    #[error("part {index} of epoch {epoch} cannot be made: {reason}")]
    Shape {
        /// The epoch asked for.
        epoch: Epoch,
        /// The index asked for.
        index: u32,
        /// What does not go together.
        reason: &'static str,
    },
}

/// How an encoder is made.
#[derive(Clone, Copy, Debug)]
pub struct EncoderConfig {
    /// Size of the standby's staging slots, bytes: no part is larger.
    pub slot_bytes: usize,
    /// Pages remembered as bases for deltas (4 KiB each); 0: no deltas.
    pub delta_pages: usize,
}

impl EncoderConfig {
    /// Slots of this size, and [`DEFAULT_DELTA_PAGES`].
    #[must_use]
    pub fn new(slot_bytes: usize) -> EncoderConfig {
        EncoderConfig { slot_bytes, delta_pages: DEFAULT_DELTA_PAGES }
    }
}

/// What goes into one part.
#[derive(Clone, Copy, Debug)]
pub struct PartInput<'a> {
    /// SYNC or EPOCH.
    pub kind: PartKind,
    /// The generation in which the guest runs.
    pub generation: Generation,
    /// The epoch; [`Epoch::NONE`] for SYNC.
    pub epoch: Epoch,
    /// Position of the part; the parts of an epoch are made in order, from 0.
    pub index: u32,
    /// The epoch ends with this part: the epoch digest is appended to the tail.
    pub last: bool,
    /// The pages, strictly ascending; on SYNC also disk blocks by their names ([`DiskBlock::name`]).
    pub gfns: &'a [Gfn],
    /// Their contents: page `i` at `i * 4096`.
    pub arena: &'a [u8],
    /// The next bytes of the epoch's encoded tail; empty for SYNC.
    pub tail: &'a [u8],
}

/// A stretch of a part's body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Bytes of the arena: one or more raw pages.
    Arena(Range<usize>),
    /// Bytes of the part's own scratch buffer: deltas, tail.
    Scratch(Range<usize>),
}

/// How the pages (and disk blocks) of a part went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageCounts {
    /// Sent whole.
    pub raw: u32,
    /// Sent as zero pages.
    pub zero: u32,
    /// Sent as deltas.
    pub delta: u32,
    /// Not sent: the standby holds exactly this.
    pub unchanged: u32,
}

impl PageCounts {
    /// All pages of the part.
    #[must_use]
    pub fn total(&self) -> u32 {
        self.raw + self.zero + self.delta + self.unchanged
    }

    /// Adds another part's counts.
    pub fn add(&mut self, other: PageCounts) {
        self.raw += other.raw;
        self.zero += other.zero;
        self.delta += other.delta;
        self.unchanged += other.unchanged;
    }
}

/// One part, ready to be gathered onto the wire: the head, then the pieces in order. Reused from part to part; its buffers are allocated once,
/// by [`Encoder::part_buffer`], and do not move.
#[derive(Debug)]
pub struct EncodedPart {
    head: Vec<u8>,
    scratch: Vec<u8>,
    pieces: Vec<Piece>,
    len: usize,
    counts: PageCounts,
}

impl EncodedPart {
    /// Header and record words.
    #[must_use]
    pub fn head(&self) -> &[u8] {
        &self.head
    }

    /// Deltas and tail: what [`Piece::Scratch`] refers to.
    #[must_use]
    pub fn scratch(&self) -> &[u8] {
        &self.scratch
    }

    /// The body, in wire order. Arena ranges are relative to the arena given to [`Encoder::encode_part`] or, through `EpochParts`, to the epoch's.
    #[must_use]
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Bytes of the whole part on the wire.
    #[must_use]
    pub fn wire_bytes(&self) -> usize {
        self.len
    }

    /// How the pages went.
    #[must_use]
    pub fn counts(&self) -> PageCounts {
        self.counts
    }

    /// The part as slices in wire order, for a gathering write. `arena` is the one the part was made from.
    ///
    /// # Panics
    /// When `arena` is shorter than the one that the part was made from.
    pub fn slices<'a>(&'a self, arena: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        let body = self.pieces.iter().map(move |piece| match piece {
            Piece::Arena(range) => &arena[range.clone()],
            Piece::Scratch(range) => &self.scratch[range.clone()],
        });
        std::iter::once(self.head.as_slice()).chain(body)
    }

    /// Moves the arena ranges by `bytes`: the part was made from a slice that starts there.
    pub(crate) fn shift_arena(&mut self, bytes: usize) {
        for piece in &mut self.pieces {
            if let Piece::Arena(range) = piece {
                *range = range.start + bytes..range.end + bytes;
            }
        }
    }

    fn clear(&mut self) {
        self.head.clear();
        self.head.resize(HEADER_BYTES, 0);
        self.scratch.clear();
        self.pieces.clear();
        self.len = 0;
        self.counts = PageCounts::default();
    }

    fn push_raw(&mut self, start: usize) {
        let page = start..start + PAGE_SIZE;
        match self.pieces.last_mut() {
            Some(Piece::Arena(range)) if range.end == page.start => range.end = page.end,
            _ => self.pieces.push(Piece::Arena(page)),
        }
        self.counts.raw += 1;
    }

    /// The scratch buffer has grown to `end`: the new bytes belong to the body.
    fn push_scratch(&mut self, start: usize, end: usize) {
        match self.pieces.last_mut() {
            Some(Piece::Scratch(range)) if range.end == start => range.end = end,
            _ if start < end => self.pieces.push(Piece::Scratch(start..end)),
            _ => {}
        }
    }

    fn push_record(&mut self, gfn: Gfn, code: u64) {
        self.head.extend_from_slice(&record_word(gfn, code).to_le_bytes());
    }
}

/// Makes parts for one standby. Remembers what that standby holds, so every part that it makes must reach the standby, in order; when one does
/// not (the link is lost, the epoch is given up), [`Encoder::forget`].
pub struct Encoder {
    slot_bytes: usize,
    cache: DeltaCache,
    chain: EpochChain,
    /// Where a page's delta is made before it is known to be small enough.
    delta: [u8; MAX_DELTA_BYTES],
}

impl Encoder {
    /// An encoder for a standby that holds nothing yet.
    ///
    /// # Errors
    /// [`EncodeError::SlotSize`].
    pub fn new(config: EncoderConfig) -> Result<Encoder, EncodeError> {
        let slot_bytes = config.slot_bytes;
        if !(MIN_SLOT_BYTES..=MAX_PART_BYTES).contains(&slot_bytes) {
            return Err(EncodeError::SlotSize { slot_bytes });
        }
        Ok(Encoder {
            slot_bytes,
            cache: DeltaCache::new(config.delta_pages),
            chain: EpochChain::new(Generation(0), Epoch::NONE),
            delta: [0; MAX_DELTA_BYTES],
        })
    }

    /// A buffer for parts, with room for the largest one. Make as many as there are parts in flight.
    #[must_use]
    pub fn part_buffer(&self) -> EncodedPart {
        let pages = pages_per_part(self.slot_bytes, 0);
        EncodedPart {
            head: Vec::with_capacity(HEADER_BYTES + pages * RECORD_BYTES),
            scratch: Vec::with_capacity(self.slot_bytes),
            pieces: Vec::with_capacity(pages + 1),
            len: 0,
            counts: PageCounts::default(),
        }
    }

    /// Size of the standby's slots, bytes.
    #[must_use]
    pub fn slot_bytes(&self) -> usize {
        self.slot_bytes
    }

    /// Pages that fit a part beside `tail_len` bytes of tail, whatever they contain (see [`pages_per_part`]).
    #[must_use]
    pub fn pages_per_part(&self, tail_len: usize) -> usize {
        pages_per_part(self.slot_bytes, tail_len)
    }

    /// Forgets what the standby holds: a part may not have reached it, or it is another one. From here all pages go out whole, and the
    /// standby has to be given all of memory anew.
    pub fn forget(&mut self) {
        self.cache.reset();
    }

    /// Makes one part in `out`. Parts of an epoch are made in order of their index; [`Encoder::epoch`] does that.
    ///
    /// # Errors
    /// [`EncodeError`]: the input is not a possible part. When pages had been encoded by then, everything remembered is forgotten.
    pub fn encode_part(&mut self, input: &PartInput<'_>, out: &mut EncodedPart) -> Result<(), EncodeError> {
        self.check(input)?;
        out.clear();
        let mut previous = None;
        let (pages, _) = input.arena.as_chunks::<PAGE_SIZE>();
        for (i, (gfn, page)) in input.gfns.iter().zip(pages).enumerate() {
            let block = input.kind == PartKind::Sync && DiskBlock::named(*gfn).is_some_and(|block| block.name() == Some(*gfn));
            if !(block || gfn.0 <= MAX_GFN) || previous.is_some_and(|before| before >= *gfn) {
                self.forget();
                return Err(EncodeError::Order { gfn: *gfn, previous });
            }
            previous = Some(*gfn);
            if block {
                Encoder::encode_block(*gfn, page, i * PAGE_SIZE, out);
            } else {
                self.encode_page(*gfn, page, i * PAGE_SIZE, out);
            }
        }
        self.finish(input, out);
        Ok(())
    }

    #[inline]
    fn encode_page(&mut self, gfn: Gfn, page: &Page, at: usize, out: &mut EncodedPart) {
        if is_zero(page) {
            self.cache.sent_zero(gfn);
            out.push_record(gfn, CODE_ZERO);
            out.counts.zero += 1;
            return;
        }
        match self.cache.send(gfn, page, &mut self.delta) {
            Sent::Unchanged => out.counts.unchanged += 1,
            Sent::Raw => {
                out.push_record(gfn, CODE_RAW);
                out.push_raw(at);
            }
            Sent::Delta(bytes) => {
                let start = out.scratch.len();
                // Never reallocates: a page's room is in the slot size.
                out.scratch.extend_from_slice(&self.delta[..bytes]);
                out.push_record(gfn, bytes as u64);
                out.push_scratch(start, start + bytes);
                out.counts.delta += 1;
            }
        }
    }

    /// Blocks of disks are sent whole, and are not remembered: they are sent once or twice, and memory needs the room.
    fn encode_block(name: Gfn, block: &Page, at: usize, out: &mut EncodedPart) {
        if is_zero(block) {
            out.push_record(name, CODE_ZERO);
            out.counts.zero += 1;
        } else {
            out.push_record(name, CODE_RAW);
            out.push_raw(at);
        }
    }

    /// Tail, lengths, digest.
    fn finish(&mut self, input: &PartInput<'_>, out: &mut EncodedPart) {
        let payload: usize = out.pieces.iter().map(|piece| piece_range(piece).len()).sum();
        let tail_at = out.scratch.len();
        out.scratch.extend_from_slice(input.tail);
        if input.index == 0 {
            self.chain = EpochChain::new(input.generation, input.epoch);
        }
        if input.last {
            out.scratch.extend_from_slice(&self.chain.value().to_le_bytes());
        }
        let tail_end = out.scratch.len();
        out.push_scratch(tail_at, tail_end);
        let records = (out.head.len() - HEADER_BYTES) / RECORD_BYTES;
        let mut header = PartHeader {
            kind: input.kind,
            last: input.last,
            index: input.index,
            generation: input.generation,
            epoch: input.epoch,
            records: records as u32,
            payload_bytes: payload as u32,
            tail_bytes: (tail_end - tail_at) as u32,
            digest: 0,
        };
        out.head[..HEADER_BYTES].copy_from_slice(&header.to_bytes());
        let mut digest = PartDigest::new(&out.head);
        for piece in &out.pieces {
            digest.update(match piece {
                Piece::Arena(range) => &input.arena[range.clone()],
                Piece::Scratch(range) => &out.scratch[range.clone()],
            });
        }
        header.digest = digest.finish();
        out.head[..HEADER_BYTES].copy_from_slice(&header.to_bytes());
        out.len = out.head.len() + payload + tail_end - tail_at;
        debug_assert_eq!(out.len as u64, header.part_bytes());
        debug_assert!(out.len <= self.slot_bytes);
        self.chain.push(header.digest);
    }

    fn check(&self, input: &PartInput<'_>) -> Result<(), EncodeError> {
        let (epoch, index) = (input.epoch, input.index);
        let shape = |reason| Err(EncodeError::Shape { epoch, index, reason });
        if input.arena.len() != input.gfns.len() * PAGE_SIZE {
            return Err(EncodeError::Arena { gfns: input.gfns.len(), arena_bytes: input.arena.len() });
        }
        let tail = input.tail.len() + if input.last { EPOCH_DIGEST_BYTES } else { 0 };
        if tail > self.slot_bytes - HEADER_BYTES || input.gfns.len() > self.pages_per_part(tail) {
            return Err(EncodeError::TooLarge { pages: input.gfns.len(), tail, slot_bytes: self.slot_bytes });
        }
        if index >= MAX_PARTS {
            return shape("too many parts");
        }
        match input.kind {
            PartKind::Sync if epoch != Epoch::NONE => shape("a SYNC part belongs to no epoch"),
            PartKind::Sync if input.last || tail != 0 => shape("a SYNC part has no tail"),
            PartKind::Epoch if epoch == Epoch::NONE => shape("epochs are numbered from 1"),
            _ => Ok(()),
        }
    }
}

fn piece_range(piece: &Piece) -> &Range<usize> {
    match piece {
        Piece::Arena(range) | Piece::Scratch(range) => range,
    }
}

/// Whether all bytes are zero; a page that is not says so mostly in its first bytes.
#[must_use]
pub fn is_zero(page: &Page) -> bool {
    /// Bytes looked at between two chances to stop.
    const STRIDE: usize = 256;
    page.as_chunks::<STRIDE>()
        .0
        .iter()
        .all(|stride| stride.as_chunks::<8>().0.iter().fold(0, |or, word| or | u64::from_ne_bytes(*word)) == 0)
}
