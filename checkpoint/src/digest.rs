//! The digests: xxh3-64 of a part, the chain over an epoch's parts, and 32 bits for a page of `--verify-memory`.
//!
//! Lives here: all that names xxhash. Not here: what is digested when. Guards S2: bytes that changed on the way, and parts that were left out or
//! swapped, are found before anything is committed. xxh3 finds accidents; it is no defence against a forger, who is kept out by the link itself.

use types::{Epoch, Generation};
use xxhash_rust::xxh3::{Xxh3Default, xxh3_64, xxh3_64_with_seed};

use crate::Page;
use crate::wire::{DIGEST_AT, HEADER_BYTES};

/// A part's digest, fed piece by piece so that the pages need not be gathered.
pub struct PartDigest(Xxh3Default);

impl PartDigest {
    /// Starts with the header and record words; the header's digest field is taken as 0 whatever it holds.
    #[must_use]
    pub fn new(head: &[u8]) -> PartDigest {
        let mut state = Xxh3Default::new();
        let (before, rest) = head.split_at(DIGEST_AT.min(head.len()));
        state.update(before);
        state.update(&[0; HEADER_BYTES - DIGEST_AT]);
        state.update(rest.get(HEADER_BYTES - DIGEST_AT..).unwrap_or_default());
        PartDigest(state)
    }

    /// The next bytes of the part.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all that was fed.
    #[must_use]
    pub fn finish(&self) -> u64 {
        self.0.digest()
    }
}

/// The chain over the digests of an epoch's parts, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochChain(u64);

impl EpochChain {
    /// An epoch with no part yet. The numbers are in it, so that a chain fits no other epoch.
    #[must_use]
    pub fn new(generation: Generation, epoch: Epoch) -> EpochChain {
        EpochChain(xxh3_64_with_seed(&generation.0.to_le_bytes(), epoch.0))
    }

    /// Adds the next part's digest.
    pub fn push(&mut self, part_digest: u64) {
        self.0 = xxh3_64_with_seed(&part_digest.to_le_bytes(), self.0);
    }

    /// The epoch digest so far.
    #[must_use]
    pub fn value(self) -> u64 {
        self.0
    }
}

/// Digest of one page for [`crate::MemoryDigest`]: the lower half of its xxh3-64.
#[must_use]
pub fn page_digest(page: &Page) -> u32 {
    xxh3_64(page) as u32
}

/// Digest of any bytes, for descriptions that have to be equal at both ends (such as the CPUID leaves in [`crate::GuestShape`]).
#[must_use]
pub fn bytes_digest(bytes: &[u8]) -> u64 {
    xxh3_64(bytes)
}
