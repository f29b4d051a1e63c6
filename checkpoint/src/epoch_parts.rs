//! Cutting an epoch, or a stretch of the first copy, into parts.
//!
//! Lives here: how many pages and how much tail each part gets. Not here: the encoding of a part (`encode`). Guards S6: an epoch that is not
//! made to its end makes the encoder forget what the standby holds, so that no later delta builds on parts that were never sent.

use types::{Epoch, Generation, Gfn, PAGE_SIZE};

use crate::encode::{EncodeError, EncodedPart, Encoder, PartInput};
use crate::wire::{EPOCH_DIGEST_BYTES, HEADER_BYTES, PartKind};

/// A whole epoch, as it was captured.
#[derive(Clone, Copy, Debug)]
pub struct EpochInput<'a> {
    /// The generation in which the guest runs.
    pub generation: Generation,
    /// The epoch, from 1.
    pub epoch: Epoch,
    /// The dirty pages, strictly ascending.
    pub gfns: &'a [Gfn],
    /// Their contents: page `i` at `i * 4096`.
    pub arena: &'a [u8],
    /// The encoded tail ([`crate::EpochTail::encode_into`]). The epoch digest is added by the encoder.
    pub tail: &'a [u8],
}

/// The parts of one epoch, made one after the other. Dropped before the last one was made, it makes the encoder forget (see there).
#[must_use = "an epoch whose parts are not all made is lost"]
pub struct EpochParts<'a> {
    encoder: &'a mut Encoder,
    input: EpochInput<'a>,
    index: u32,
    pages_done: usize,
    tail_done: usize,
    done: bool,
}

impl Encoder {
    /// Begins an epoch. Its parts are made one after the other; all of them have to reach the standby, in order, before the next epoch is begun.
    pub fn epoch<'a>(&'a mut self, input: EpochInput<'a>) -> EpochParts<'a> {
        EpochParts { encoder: self, input, index: 0, pages_done: 0, tail_done: 0, done: false }
    }

    /// Makes part `index` of the first copy, from at most [`Encoder::pages_per_part`]`(0)` pages and disk blocks.
    ///
    /// # Errors
    /// [`EncodeError`].
    pub fn sync_part(
        &mut self,
        generation: Generation,
        index: u32,
        gfns: &[Gfn],
        arena: &[u8],
        out: &mut EncodedPart,
    ) -> Result<(), EncodeError> {
        let input = PartInput { kind: PartKind::Sync, generation, epoch: Epoch::NONE, index, last: false, gfns, arena, tail: &[] };
        self.encode_part(&input, out)
    }

    /// Number of parts, and so of slots, that an epoch of this many pages and bytes of tail takes.
    #[must_use]
    pub fn parts_for(&self, pages: usize, tail_len: usize) -> usize {
        let (mut pages, mut tail, mut parts) = (pages, tail_len, 0);
        loop {
            let (take_pages, take_tail, last) = share(self, pages, tail);
            parts += 1;
            pages -= take_pages;
            tail -= take_tail;
            if last {
                return parts;
            }
        }
    }
}

/// What the next part takes of the pages and the tail that are left, and whether it is the last. The pages go first; the tail starts in
/// the part in which they end.
fn share(encoder: &Encoder, pages: usize, tail: usize) -> (usize, usize, bool) {
    let whole = tail + EPOCH_DIGEST_BYTES;
    let body = encoder.slot_bytes() - HEADER_BYTES;
    if whole <= body && pages <= encoder.pages_per_part(whole) {
        return (pages, tail, true);
    }
    let full = encoder.pages_per_part(0);
    if pages >= full {
        return (full, 0, false);
    }
    // The pages end here, but not the tail. It takes what room they leave for certain, and at least the digest is left for the next part.
    let room = body - pages * (crate::wire::RECORD_BYTES + PAGE_SIZE);
    (pages, room.min(tail), false)
}

impl EpochParts<'_> {
    /// The part that was made last ends the epoch: once it is sent, the standby can commit.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Makes the next part in `out`; `false` when the last one has been made before. The arena ranges of its pieces are relative to the
    /// whole epoch's arena.
    ///
    /// # Errors
    /// [`EncodeError`]: the epoch cannot be sent; its dirty set goes back and the standby must be synchronised anew.
    pub fn next_part(&mut self, out: &mut EncodedPart) -> Result<bool, EncodeError> {
        if self.done {
            return Ok(false);
        }
        let EpochInput { generation, epoch, gfns, arena, tail } = self.input;
        if arena.len() != gfns.len() * PAGE_SIZE {
            return Err(EncodeError::Arena { gfns: gfns.len(), arena_bytes: arena.len() });
        }
        let (pages, tail_len, last) = share(self.encoder, gfns.len() - self.pages_done, tail.len() - self.tail_done);
        let arena_at = self.pages_done * PAGE_SIZE;
        let part = PartInput {
            kind: PartKind::Epoch,
            generation,
            epoch,
            index: self.index,
            last,
            gfns: &gfns[self.pages_done..self.pages_done + pages],
            arena: &arena[arena_at..arena_at + pages * PAGE_SIZE],
            tail: &tail[self.tail_done..self.tail_done + tail_len],
        };
        self.encoder.encode_part(&part, out)?;
        out.shift_arena(arena_at);
        self.index += 1;
        self.pages_done += pages;
        self.tail_done += tail_len;
        self.done = last;
        Ok(true)
    }
}

impl Drop for EpochParts<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.encoder.forget();
        }
    }
}
