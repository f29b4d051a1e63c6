//! Which guest frame numbers and which disk blocks exist: the bound against which every record from the wire is checked.
//!
//! Lives here: a small sorted list of ranges, and the sizes of the disks. Not here: memory, disks. Guards S7: no record can name a page outside guest memory or
//! a block outside a disk.

use std::ops::Range;

use types::block::DiskIndex;
use types::{Gfn, PAGE_SIZE};

use crate::wire::{BLOCK_BYTES, DiskBlock};

/// The guest's memory as ranges of page numbers, ascending and disjoint (guest memory has a hole below 4 GiB when it is large).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestMap {
    ranges: Vec<Range<u64>>,
    /// Bytes of each disk, by its index.
    disks: Vec<u64>,
}

impl GuestMap {
    /// Made from ranges of page numbers in any order; empty ones are dropped, touching or overlapping ones joined.
    #[must_use]
    pub fn new(ranges: impl IntoIterator<Item = Range<u64>>) -> GuestMap {
        let mut sorted: Vec<Range<u64>> = ranges.into_iter().filter(|range| !range.is_empty()).collect();
        sorted.sort_by_key(|range| range.start);
        let mut joined: Vec<Range<u64>> = Vec::with_capacity(sorted.len());
        for range in sorted {
            match joined.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => joined.push(range),
            }
        }
        GuestMap { ranges: joined, disks: Vec::new() }
    }

    /// Made from (guest physical address, bytes) of each memory region; a part of a page at an end does not count.
    #[must_use]
    pub fn from_regions(regions: impl IntoIterator<Item = (u64, u64)>) -> GuestMap {
        let page = PAGE_SIZE as u64;
        GuestMap::new(regions.into_iter().map(|(start, bytes)| start.div_ceil(page)..start.saturating_add(bytes) / page))
    }

    /// The same memory, and disks of so many bytes each, in the order of their indices.
    #[must_use]
    pub fn with_disks(self, bytes: impl IntoIterator<Item = u64>) -> GuestMap {
        GuestMap { disks: bytes.into_iter().collect(), ..self }
    }

    /// Whether the disk block exists.
    #[must_use]
    pub fn contains_block(&self, block: DiskBlock) -> bool {
        self.disk_bytes(block.disk).is_some_and(|bytes| block.block < bytes.div_ceil(BLOCK_BYTES as u64))
    }

    /// Size of a disk; `None`: there is no such disk.
    #[must_use]
    pub fn disk_bytes(&self, disk: DiskIndex) -> Option<u64> {
        self.disks.get(usize::from(disk.0)).copied()
    }

    /// Whether the page exists.
    #[must_use]
    #[inline]
    pub fn contains(&self, gfn: Gfn) -> bool {
        self.ranges.iter().any(|range| range.contains(&gfn.0))
    }

    /// Number of pages of guest memory, all ranges together.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.ranges.iter().map(|range| range.end - range.start).sum()
    }

    /// `count` of these pages from the `first`-th on, or as many as there are, without disks.
    #[must_use]
    pub fn slice(&self, first: u64, count: u64) -> GuestMap {
        let end = first.saturating_add(count);
        let mut before = 0;
        let mut ranges = Vec::new();
        for range in &self.ranges {
            let len = range.end - range.start;
            let (from, to) = (first.clamp(before, before + len), end.clamp(before, before + len));
            if from < to {
                ranges.push(range.start + (from - before)..range.start + (to - before));
            }
            before += len;
        }
        GuestMap { ranges, disks: Vec::new() }
    }

    /// The ranges of page numbers, ascending.
    #[must_use]
    pub fn ranges(&self) -> &[Range<u64>] {
        &self.ranges
    }

    /// Every page number, ascending.
    pub fn gfns(&self) -> impl Iterator<Item = Gfn> + '_ {
        self.ranges.iter().flat_map(|range| range.clone().map(Gfn))
    }
}
