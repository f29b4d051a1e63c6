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

/// Proof that a part is the one that had to come next. Made by [`Assembler::admit`], spent by [`Assembler::keep`] together with the handle of the
/// part's bytes, which could not be moved while the part was borrowed from it.
#[derive(Debug)]
#[must_use = "an admitted part has to be kept, or its epoch can never be complete"]
pub struct Admitted {
    epoch: Epoch,
    index: u32,
    digest: u64,
    content: Content,
}

#[derive(Debug)]
enum Content {
    /// More parts follow; these bytes of the tail came with this one.
    More(Vec<u8>),
    /// The epoch is complete.
    Last(EpochTail),
}

/// Puts the parts of one link together. `H` owns a part's bytes (a staging slot).
#[derive(Debug)]
pub struct Assembler<H> {
    generation: Generation,
    /// The epoch whose parts are coming, or come next.
    due: Epoch,
    /// The first EPOCH part of the link tells which epoch is due.
    learns_first: bool,
    /// No EPOCH part has come on this link yet.
    syncing: bool,
    chain: EpochChain,
    parts: Vec<H>,
    tail: Vec<u8>,
    sync_parts: u32,
    broken: bool,
}

impl<H> Assembler<H> {
    /// For a link that brings epochs from 1 of `generation`, perhaps after SYNC parts.
    #[must_use]
    pub fn new(generation: Generation) -> Assembler<H> {
        let due = Epoch::NONE.next();
        Assembler {
            generation,
            due,
            learns_first: false,
            syncing: true,
            chain: EpochChain::new(generation, due),
            parts: Vec::new(),
            tail: Vec::new(),
            sync_parts: 0,
            broken: false,
        }
    }

    /// For a link over which a standby joins a generation that has had epochs already: the first part of any epoch may follow the SYNC parts, and
    /// from there on every epoch must follow the one before it.
    #[must_use]
    pub fn joining(generation: Generation) -> Assembler<H> {
        Assembler { learns_first: true, ..Assembler::new(generation) }
    }

    /// Accepts a SYNC part: it is the caller's to apply, at once. SYNC parts may come until the first EPOCH part.
    ///
    /// # Errors
    /// [`AssembleError`]; nothing more is accepted then.
    pub fn sync(&mut self, part: &Part<'_>) -> Result<(), AssembleError> {
        let checked = self.check_sync(part);
        self.broken |= checked.is_err();
        checked
    }

    /// Accepts an EPOCH part. Nothing changes before it is kept.
    ///
    /// # Errors
    /// [`AssembleError`]; the torn epoch is dropped and nothing more is accepted then.
    pub fn admit(&mut self, part: &Part<'_>) -> Result<Admitted, AssembleError> {
        let admitted = self.check_epoch(part);
        if admitted.is_err() {
            self.abort();
            self.broken = true;
        }
        admitted
    }

    /// Takes the handle of an admitted part; returns the epoch when this part completes it.
    ///
    /// # Errors
    /// [`AssembleError::Broken`] when `admitted` is not of the part that is due (it was admitted by another assembler, or two at a time).
    pub fn keep(&mut self, handle: H, admitted: Admitted) -> Result<Option<CompleteEpoch<H>>, AssembleError> {
        let Admitted { epoch, index, digest, content } = admitted;
        if self.broken || !self.is_due(epoch, index) {
            self.abort();
            self.broken = true;
            return Err(AssembleError::Broken);
        }
        if self.learns_first {
            self.learns_first = false;
            self.due = epoch;
            self.chain = EpochChain::new(self.generation, epoch);
        }
        self.syncing = false;
        self.parts.push(handle);
        match content {
            Content::More(tail) => {
                self.tail.extend_from_slice(&tail);
                self.chain.push(digest);
                Ok(None)
            }
            Content::Last(tail) => {
                self.tail.clear();
                self.due = epoch.next();
                self.chain = EpochChain::new(self.generation, self.due);
                let parts = std::mem::take(&mut self.parts);
                Ok(Some(CompleteEpoch { generation: self.generation, epoch, parts, tail }))
            }
        }
    }

    /// [`Assembler::admit`] and [`Assembler::keep`] in one, for a handle that the part does not borrow from.
    ///
    /// # Errors
    /// [`AssembleError`].
    pub fn push(&mut self, handle: H, part: &Part<'_>) -> Result<Option<CompleteEpoch<H>>, AssembleError> {
        let admitted = self.admit(part)?;
        self.keep(handle, admitted)
    }

    /// Drops the torn epoch, if there is one, and returns how many parts it had: the link is gone. Complete epochs are not touched; after
    /// parts were dropped nothing more is accepted (a new link has a new assembler).
    pub fn abort(&mut self) -> usize {
        let torn = std::mem::take(&mut self.parts).len();
        self.tail = Vec::new();
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

    fn is_due(&self, epoch: Epoch, index: u32) -> bool {
        (epoch == self.due || self.learns_first) && index == self.expected_index()
    }

    /// Index of the part that is due. Not truncated: [`MAX_PARTS`] is checked before a part is kept.
    fn expected_index(&self) -> u32 {
        self.parts.len() as u32
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

    fn late_sync(&self) -> AssembleError {
        AssembleError::LateSync { expected_epoch: self.due, expected_index: self.expected_index() }
    }

    fn check_sync(&mut self, part: &Part<'_>) -> Result<(), AssembleError> {
        self.check_link(part)?;
        let header = part.header();
        if header.kind != PartKind::Sync {
            return Err(AssembleError::NotSync { epoch: header.epoch });
        }
        if !self.syncing {
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

    fn check_epoch(&self, part: &Part<'_>) -> Result<Admitted, AssembleError> {
        self.check_link(part)?;
        let header = part.header();
        let (epoch, index, digest) = (header.epoch, header.index, header.digest);
        if header.kind != PartKind::Epoch {
            return Err(self.late_sync());
        }
        if self.parts.len() >= MAX_PARTS as usize {
            return Err(AssembleError::TooManyParts { epoch });
        }
        if !self.is_due(epoch, index) {
            let (expected_epoch, expected_index) = (self.due, self.expected_index());
            return Err(AssembleError::Sequence { epoch, index, expected_epoch, expected_index });
        }
        if self.tail.len() + part.tail().len() > MAX_ENCODED_BYTES {
            return Err(AssembleError::TailTooLarge { epoch });
        }
        let Some(claimed) = part.epoch_digest() else {
            return Ok(Admitted { epoch, index, digest, content: Content::More(part.tail().to_vec()) });
        };
        let chain = if self.learns_first { EpochChain::new(self.generation, epoch) } else { self.chain };
        let found = chain.value();
        if claimed != found {
            return Err(AssembleError::EpochDigest { epoch, claimed, found });
        }
        let tail =
            if self.tail.is_empty() { EpochTail::decode(part.tail()) } else { EpochTail::decode(&[&self.tail, part.tail()].concat()) }
                .map_err(|source| AssembleError::Tail { epoch, source })?;
        Ok(Admitted { epoch, index, digest, content: Content::Last(tail) })
    }
}
