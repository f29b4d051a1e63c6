//! From verified parts to a complete epoch, or to nothing.
//!
//! Lives here: the order of generations, epochs and parts, and the epoch digest. Not here: what a part contains (`decode`), where it is stored
//! (the handle `H` is the owner's), and commits. Guards S2: a [`CompleteEpoch`] exists only when LAST has come and vouches for all of its parts.

use types::{Epoch, Generation};

use crate::codec::{CodecError, MAX_ENCODED_BYTES};
use crate::decode::Part;
use crate::digest::EpochChain;
use crate::tail::EpochTail;
use crate::wire::{MAX_PARTS, PartKind};

/// A part does not belong where it came. The link must be closed and the torn epoch dropped.
#[derive(Debug, thiserror::Error)]
pub enum AssembleError {
    /// Another generation than the link's.
    #[error("a part of generation {theirs} came over a link of generation {ours}")]
    Generation {
        /// The part's.
        theirs: Generation,
        /// The link's.
        ours: Generation,
    },
    /// Not the part that had to come next.
    #[error("part {index} of epoch {epoch} came where part {expected_index} of epoch {expected_epoch} had to come")]
    Sequence {
        /// The part's epoch.
        epoch: Epoch,
        /// The part's index.
        index: u32,
        /// The epoch that was due.
        expected_epoch: Epoch,
        /// The index that was due.
        expected_index: u32,
    },
    /// A SYNC part after the first epoch began, or in the place of an EPOCH part.
    #[error("a SYNC part came where part {expected_index} of epoch {expected_epoch} had to come")]
    LateSync {
        /// The epoch that was due.
        expected_epoch: Epoch,
        /// The index that was due.
        expected_index: u32,
    },
    /// An EPOCH part was given to [`Assembler::sync`].
    #[error("a part of epoch {epoch} came where a SYNC part had to come")]
    NotSync {
        /// The part's epoch.
        epoch: Epoch,
    },
    /// More parts than any epoch has.
    #[error("epoch {epoch} has more than {MAX_PARTS} parts")]
    TooManyParts {
        /// The epoch.
        epoch: Epoch,
    },
    /// The tail is larger than any tail.
    #[error("the tail of epoch {epoch} exceeds {MAX_ENCODED_BYTES} bytes")]
    TailTooLarge {
        /// The epoch.
        epoch: Epoch,
    },
    /// The parts are not those that the sender made.
    #[error("the digest of epoch {epoch} is {found:#018x}, its last part says {claimed:#018x}: parts are missing or exchanged")]
    EpochDigest {
        /// The epoch.
        epoch: Epoch,
        /// By the last part.
        claimed: u64,
        /// Chained from the parts.
        found: u64,
    },
    /// The tail cannot be read.
    #[error("the tail of epoch {epoch} cannot be read: {source}")]
    Tail {
        /// The epoch.
        epoch: Epoch,
        /// Why.
        source: CodecError,
    },
    /// An earlier part was refused.
    #[error("the link is unusable since an earlier part was refused")]
    Broken,
}

/// An epoch that is whole and verified: it may be committed.
#[derive(Debug)]
pub struct CompleteEpoch<H> {
    /// Its generation.
    pub generation: Generation,
    /// Its number.
    pub epoch: Epoch,
    /// Its parts, in order, to be applied in order.
    pub parts: Vec<H>,
    /// Machine state, output, memory digest.
    pub tail: EpochTail,
}

/// Puts the parts of one link together. `H` owns a part's bytes (a staging slot).
#[derive(Debug)]
pub struct Assembler<H> {
    generation: Generation,
    due: Epoch,
    chain: EpochChain,
    parts: Vec<H>,
    tail: Vec<u8>,
    sync_parts: u32,
    broken: bool,
}

impl<H> Assembler<H> {
    /// For a link on which the standby is new: SYNC parts, then epoch 1 of `generation`.
    #[must_use]
    pub fn new(generation: Generation) -> Assembler<H> {
        Assembler::resuming(generation, Epoch::NONE)
    }

    /// For a link on which `last` is the newest epoch held: `last.next()` comes next. ([`Epoch::NONE`]: as [`Assembler::new`].)
    #[must_use]
    pub fn resuming(generation: Generation, last: Epoch) -> Assembler<H> {
        let due = last.next();
        let chain = EpochChain::new(generation, due);
        Assembler { generation, due, chain, parts: Vec::new(), tail: Vec::new(), sync_parts: 0, broken: false }
    }

    /// Accepts a SYNC part: it is the caller's to apply, at once. SYNC parts may come until the first epoch's first part.
    ///
    /// # Errors
    /// [`AssembleError`].
    pub fn sync(&mut self, part: &Part<'_>) -> Result<(), AssembleError> {
        let checked = self.check_sync(part);
        self.broken |= checked.is_err();
        checked
    }

    /// Accepts an EPOCH part and keeps its handle; returns the epoch when it is complete. On an error the handle and the torn epoch
    /// are dropped and nothing more is accepted.
    ///
    /// # Errors
    /// [`AssembleError`].
    pub fn push(&mut self, handle: H, part: &Part<'_>) -> Result<Option<CompleteEpoch<H>>, AssembleError> {
        let pushed = self.try_push(handle, part);
        if pushed.is_err() {
            self.broken = true;
            self.abort();
        }
        pushed
    }

    /// Drops the torn epoch, if there is one, and returns how many parts it had. What was complete before is not touched.
    pub fn abort(&mut self) -> usize {
        let torn = self.parts.len();
        self.parts = Vec::new();
        self.tail = Vec::new();
        self.chain = EpochChain::new(self.generation, self.due);
        // After parts were dropped the sender's next part cannot fit; a new link starts with a new assembler.
        self.broken |= torn > 0;
        torn
    }

    /// The epoch whose parts are coming, or come next.
    #[must_use]
    pub fn due(&self) -> Epoch {
        self.due
    }

    /// Parts of the unfinished epoch.
    #[must_use]
    pub fn staged(&self) -> usize {
        self.parts.len()
    }

    fn check_link(&self, part: &Part<'_>) -> Result<(), AssembleError> {
        if self.broken {
            return Err(AssembleError::Broken);
        }
        let theirs = part.header().generation;
        if theirs != self.generation {
            return Err(AssembleError::Generation { theirs, ours: self.generation });
        }
        Ok(())
    }

    fn check_sync(&mut self, part: &Part<'_>) -> Result<(), AssembleError> {
        self.check_link(part)?;
        let header = part.header();
        if header.kind != PartKind::Sync {
            return Err(AssembleError::NotSync { epoch: header.epoch });
        }
        if self.due != Epoch::NONE.next() || !self.parts.is_empty() {
            return Err(self.late_sync());
        }
        if header.index != self.sync_parts {
            return Err(AssembleError::Sequence {
                epoch: Epoch::NONE,
                index: header.index,
                expected_epoch: Epoch::NONE,
                expected_index: self.sync_parts,
            });
        }
        self.sync_parts += 1;
        Ok(())
    }

    fn late_sync(&self) -> AssembleError {
        AssembleError::LateSync { expected_epoch: self.due, expected_index: self.parts.len() as u32 }
    }

    fn try_push(&mut self, handle: H, part: &Part<'_>) -> Result<Option<CompleteEpoch<H>>, AssembleError> {
        self.check_link(part)?;
        let header = part.header();
        if header.kind != PartKind::Epoch {
            return Err(self.late_sync());
        }
        let epoch = header.epoch;
        if self.parts.len() >= MAX_PARTS as usize {
            return Err(AssembleError::TooManyParts { epoch });
        }
        let expected_index = self.parts.len() as u32;
        if epoch != self.due || header.index != expected_index {
            let expected_epoch = self.due;
            return Err(AssembleError::Sequence { epoch, index: header.index, expected_epoch, expected_index });
        }
        if self.tail.len() + part.tail().len() > MAX_ENCODED_BYTES {
            return Err(AssembleError::TailTooLarge { epoch });
        }
        self.parts.push(handle);
        let Some(claimed) = part.epoch_digest() else {
            self.tail.extend_from_slice(part.tail());
            self.chain.push(header.digest);
            return Ok(None);
        };
        let found = self.chain.value();
        if claimed != found {
            return Err(AssembleError::EpochDigest { epoch, claimed, found });
        }
        let tail = if self.tail.is_empty() {
            EpochTail::decode(part.tail())
        } else {
            self.tail.extend_from_slice(part.tail());
            EpochTail::decode(&self.tail)
        }
        .map_err(|source| AssembleError::Tail { epoch, source })?;
        self.tail.clear();
        self.due = epoch.next();
        self.chain = EpochChain::new(self.generation, self.due);
        let parts = std::mem::take(&mut self.parts);
        Ok(Some(CompleteEpoch { generation: self.generation, epoch, parts, tail }))
    }
}
