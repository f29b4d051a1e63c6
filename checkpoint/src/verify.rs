//! `--verify-memory`: what of guest memory an epoch's end digests, the digests, and their comparison.
//!
//! All of memory at each epoch is thorough and slow. A *window* is digested in the pause at every epoch instead, the next one at the next epoch: after a turn,
//! which takes [`VerifyMemory::turn`] epochs, all of memory was compared. A page that a checkpoint missed is found when the window comes to it, unless the guest
//! has written it again before (then it was sent after all). A turn is counted in epochs, so that of a guest that makes few of them takes long.
//!
//! **Which window** is a pure function of the setting, the layout, the generation and the epoch: nothing has to be agreed or remembered, and a failed capture
//! leaves nothing out. The generation decides where an epoch 1 begins, so that a VM that fails over often does not compare the same beginning each time.
//!
//! Lives here: windows and digests. Not here: reading memory, their place in a tail (`tail`). Guards S5.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use types::{Epoch, Generation, Gfn, PAGE_SIZE};

use crate::Page;
use crate::digest::page_digest;
use crate::map::GuestMap;

/// What is digested at each epoch. The same at both nodes: `Hello` carries it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum VerifyMemory {
    /// Nothing.
    #[default]
    Off,
    /// All of memory.
    All,
    /// So many pages, and the next ones at the next epoch.
    Window {
        /// At least 1.
        pages: u64,
    },
}

/// Two to the 64th divided by the golden ratio: multiples of it, modulo 2^64, spread evenly however many there are (Knuth, The Art of Computer Programming 3, 6.4).
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

impl VerifyMemory {
    /// How many epochs it takes to digest all of `map`; 0: nothing is ever digested.
    #[must_use]
    pub fn turn(self, map: &GuestMap) -> u64 {
        match self {
            VerifyMemory::Off => 0,
            VerifyMemory::All => 1,
            VerifyMemory::Window { pages } => map.pages().div_ceil(pages.max(1)).max(1),
        }
    }

    /// The window of an epoch: its pages, of the memory that `map` is. The last one of a turn may be smaller; none wraps around.
    #[must_use]
    pub fn window(self, map: &GuestMap, generation: Generation, epoch: Epoch) -> Option<GuestMap> {
        let turn = self.turn(map);
        let pages = match self {
            VerifyMemory::Off => return None,
            VerifyMemory::All => map.pages(),
            VerifyMemory::Window { pages } => pages.max(1),
        };
        let spread = generation.0.wrapping_mul(GOLDEN);
        let begin = ((u128::from(spread) * u128::from(turn)) >> 64) as u64;
        // Epochs are numbered from 1.
        let index = (u128::from(begin) + u128::from(epoch.0.saturating_sub(1))) % u128::from(turn);
        Some(map.slice(index as u64 * pages, pages))
    }
}

impl std::fmt::Display for VerifyMemory {
    /// As it is written on the command line.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            VerifyMemory::Off => f.write_str("off"),
            VerifyMemory::All => f.write_str("all"),
            VerifyMemory::Window { pages } => write!(f, "{}K", pages.saturating_mul(PAGE_SIZE as u64) >> 10),
        }
    }
}

/// A digest of every page of a window of guest memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryDigest {
    pub(crate) regions: Vec<RegionDigest>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RegionDigest {
    pub(crate) first: Gfn,
    pub(crate) pages: Vec<u32>,
}

impl RegionDigest {
    /// The page numbers; `None`: there are no such numbers.
    fn range(&self) -> Option<Range<u64>> {
        Some(self.first.0..self.first.0.checked_add(self.pages.len() as u64)?)
    }
}

/// A digest does not cover what it has to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a digest of {pages} pages in {named} regions came where that of the frames {wanted:x?} had to come")]
pub struct WrongWindow {
    /// Regions that it names.
    pub named: usize,
    /// Pages in them.
    pub pages: u64,
    /// The epoch's window.
    pub wanted: Vec<Range<u64>>,
}

/// The first difference between two memories.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemoryDifference {
    /// The memories do not have the same pages.
    #[error("the two memories are laid out differently: {ours} pages here, {theirs} there")]
    Layout {
        /// Pages of this one.
        ours: u64,
        /// Pages of the other.
        theirs: u64,
    },
    /// A page differs.
    #[error("page {first} differs (digest {ours:#010x} here, {theirs:#010x} there), and {count} pages in all")]
    Pages {
        /// The first page that differs.
        first: Gfn,
        /// Its digest here.
        ours: u32,
        /// Its digest there.
        theirs: u32,
        /// How many pages differ.
        count: u64,
    },
}

impl MemoryDigest {
    /// Digests every page of `window`; `page` returns a page's content. (Memory that may not be borrowed: [`MemoryDigest::of_digests`].)
    pub fn compute<'p>(window: &GuestMap, mut page: impl FnMut(Gfn) -> &'p Page) -> MemoryDigest {
        MemoryDigest::of_digests(window, |gfn| page_digest(page(gfn)))
    }

    /// Made from every page's digest ([`page_digest`]), as `digest` returns it.
    pub fn of_digests(window: &GuestMap, mut digest: impl FnMut(Gfn) -> u32) -> MemoryDigest {
        let region =
            |range: &Range<u64>| RegionDigest { first: Gfn(range.start), pages: range.clone().map(|gfn| digest(Gfn(gfn))).collect() };
        MemoryDigest { regions: window.ranges().iter().map(region).collect() }
    }

    /// Number of pages that are digested.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.regions.iter().map(|region| region.pages.len() as u64).sum()
    }

    /// The page numbers of each region, as they came; `None` where they are impossible.
    pub(crate) fn ranges(&self) -> Vec<Option<Range<u64>>> {
        self.regions.iter().map(RegionDigest::range).collect()
    }

    /// The part of guest memory that is digested; regions that are impossible are left out.
    #[must_use]
    pub fn window(&self) -> GuestMap {
        GuestMap::new(self.regions.iter().filter_map(RegionDigest::range))
    }

    /// Compares this memory with the peer's.
    ///
    /// # Errors
    /// [`MemoryDifference`], naming the first page that differs.
    pub fn compare(&self, theirs: &MemoryDigest) -> Result<(), MemoryDifference> {
        if self.ranges() != theirs.ranges() {
            return Err(MemoryDifference::Layout { ours: self.pages(), theirs: theirs.pages() });
        }
        let mut differing = self.digests().zip(theirs.digests()).filter(|((_, ours), (_, theirs))| ours != theirs);
        let Some(((first, ours), (_, theirs))) = differing.next() else {
            return Ok(());
        };
        Err(MemoryDifference::Pages { first, ours, theirs, count: 1 + differing.count() as u64 })
    }

    fn digests(&self) -> impl Iterator<Item = (Gfn, u32)> + '_ {
        self.regions.iter().flat_map(|region| region.pages.iter().zip(region.first.0..).map(|(digest, gfn)| (Gfn(gfn), *digest)))
    }
}
