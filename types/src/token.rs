//! The commit token: the only key that opens held output (S1).

use crate::{Epoch, Generation};

/// Proof that everything up to and including `epoch` may be seen by the world.
///
/// Neither `Clone` nor `Copy`: it is made once, where the proof arises, and consumed by the release it pays for.
#[derive(Debug, PartialEq, Eq)]
pub struct Commit {
    generation: Generation,
    epoch: Epoch,
}

impl Commit {
    /// Made by the primary's pure core, and nowhere else, when the standby has said that it holds all of `epoch`, verified. (Output that leaves because
    /// the arbiter confirmed that no standby is recorded has a proof of its own: `net_buffer::StruckOut`.)
    #[must_use]
    pub fn attest(generation: Generation, epoch: Epoch) -> Commit {
        Commit { generation, epoch }
    }

    /// The generation in which the commit was made.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// The newest epoch that it covers.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }
}
