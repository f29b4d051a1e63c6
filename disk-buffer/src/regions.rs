//! A set of regions of one disk: what the change log remembers, what a copy still has to carry.
//!
//! Lives here: the bitmap and its short form for the handshake. Not here: where it is stored ([`crate::changes`]). Pure. A set that is too large is always safe, one that is too small
//! never: the short form rounds up.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// Size of a region: the grain in which changes are remembered. 1 MiB is what a disk moves in a few milliseconds; a disk of 1 TiB needs 128 KiB of bits.
pub const REGION_BYTES: u64 = 1 << 20;

/// Largest disk: its bitmap is 8 MiB, and region numbers fit 32 bits with room to spare.
pub const MAX_DISK_BYTES: u64 = 64 << 40;

/// Runs of regions in the short form at most, so that the sets of all disks fit one control message of 64 KiB.
pub const MAX_RUNS: usize = 256;

/// A run of regions: number of the first, how many. The short form of a set is a list of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Number of the first region.
    pub first: u32,
    /// How many regions.
    pub count: u32,
}

/// Regions of a disk of a fixed size.
#[derive(Clone, PartialEq, Eq)]
pub struct RegionSet {
    words: Vec<u64>,
    disk_bytes: u64,
    count: u32,
}

impl std::fmt::Debug for RegionSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RegionSet({} of {})", self.count, self.regions())
    }
}

impl RegionSet {
    /// The empty set for a disk of `disk_bytes` (at most [`MAX_DISK_BYTES`]: the image checks that when it is opened).
    #[must_use]
    pub fn new(disk_bytes: u64) -> RegionSet {
        let regions = disk_bytes.div_ceil(REGION_BYTES);
        RegionSet { words: vec![0; regions.div_ceil(64) as usize], disk_bytes, count: 0 }
    }

    /// Number of regions of the disk.
    #[must_use]
    pub fn regions(&self) -> u32 {
        self.disk_bytes.div_ceil(REGION_BYTES) as u32
    }

    /// Number of regions in the set.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes of the disk that the set covers.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.iter().map(|region| self.extent(region)).map(|range| range.end - range.start).sum()
    }

    /// Whether the region is in the set. A region that the disk does not have is not.
    #[must_use]
    pub fn contains(&self, region: u32) -> bool {
        self.words.get(region as usize / 64).is_some_and(|word| word >> (region % 64) & 1 == 1)
    }

    /// Adds a region; `true` when it was not there. One that the disk does not have is ignored.
    pub fn insert(&mut self, region: u32) -> bool {
        if region >= self.regions() || self.contains(region) {
            return false;
        }
        self.words[region as usize / 64] |= 1 << (region % 64);
        self.count += 1;
        true
    }

    /// Takes a region out; `true` when it was there.
    pub fn remove(&mut self, region: u32) -> bool {
        if !self.contains(region) {
            return false;
        }
        self.words[region as usize / 64] &= !(1 << (region % 64));
        self.count -= 1;
        true
    }

    /// Adds every region of the disk.
    pub fn insert_all(&mut self) {
        self.insert_range(0..self.regions());
    }

    /// Adds a range of regions, a word at a time. What the disk does not have is ignored.
    fn insert_range(&mut self, range: Range<u32>) {
        let range = range.start..range.end.min(self.regions());
        if range.is_empty() {
            return;
        }
        for index in range.start / 64..range.end.div_ceil(64) {
            let bits = |up_to: u32| match up_to.saturating_sub(index * 64) {
                bits @ 0..64 => (1u64 << bits) - 1,
                _ => u64::MAX,
            };
            let word = &mut self.words[index as usize];
            let added = bits(range.end) & !bits(range.start) & !*word;
            *word |= added;
            self.count += added.count_ones();
        }
    }

    /// Takes everything out.
    pub fn clear(&mut self) {
        self.words.fill(0);
        self.count = 0;
    }

    /// Adds what is in `other`, a set of the same disk.
    pub fn merge(&mut self, other: &RegionSet) {
        debug_assert_eq!(self.disk_bytes, other.disk_bytes);
        for (mine, theirs) in self.words.iter_mut().zip(&other.words) {
            *mine |= theirs;
        }
        self.count = self.words.iter().map(|word| word.count_ones()).sum();
    }

    /// The regions in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.words.iter().enumerate().flat_map(|(index, word)| {
            let mut left = *word;
            std::iter::from_fn(move || {
                let bit = left.trailing_zeros();
                (left != 0).then(|| {
                    left &= left - 1;
                    index as u32 * 64 + bit
                })
            })
        })
    }

    /// The bytes of a region of this disk; the last one may be short.
    #[must_use]
    pub fn extent(&self, region: u32) -> Range<u64> {
        let start = (u64::from(region) * REGION_BYTES).min(self.disk_bytes);
        start..(start + REGION_BYTES).min(self.disk_bytes)
    }

    /// The regions that `len` bytes from `offset` touch.
    #[must_use]
    pub fn touched(offset: u64, len: u64) -> Range<u32> {
        if len == 0 {
            return 0..0;
        }
        (offset / REGION_BYTES) as u32..((offset + len - 1) / REGION_BYTES) as u32 + 1
    }

    /// The short form: at most [`MAX_RUNS`] runs in ascending order. Where there are more, the narrowest gaps are counted in.
    #[must_use]
    pub fn runs(&self) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for region in self.iter() {
            match runs.last_mut() {
                Some(run) if run.first + run.count == region => run.count += 1,
                _ => runs.push(Run { first: region, count: 1 }),
            }
        }
        if runs.len() <= MAX_RUNS {
            return runs;
        }
        let mut gaps: Vec<u32> = runs.windows(2).map(|pair| pair[1].first - (pair[0].first + pair[0].count)).collect();
        gaps.sort_unstable();
        // So many gaps are closed that MAX_RUNS runs are left; of those as wide as the widest of them all are.
        let widest = gaps[runs.len() - MAX_RUNS - 1];
        let mut joined: Vec<Run> = Vec::new();
        for run in runs {
            match joined.last_mut() {
                Some(last) if run.first - (last.first + last.count) <= widest => last.count = run.first + run.count - last.first,
                _ => joined.push(run),
            }
        }
        joined
    }

    /// Adds the regions of a short form, whatever it says: it came from outside. What the disk does not have is ignored. More runs than a short form has are no short form: then nothing is
    /// known, which is all regions, and no more is done than for one run.
    pub fn insert_runs(&mut self, runs: &[Run]) {
        if runs.len() > MAX_RUNS {
            return self.insert_all();
        }
        for run in runs {
            self.insert_range(run.first..run.first.saturating_add(run.count));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn set(bytes: u64, regions: &BTreeSet<u32>) -> RegionSet {
        let mut set = RegionSet::new(bytes);
        regions.iter().for_each(|region| {
            set.insert(*region);
        });
        set
    }

    proptest! {
        #[test]
        fn a_set_is_what_was_put_in_and_not_taken_out(
            regions in prop::collection::btree_set(0u32..300, 0..80), out in prop::collection::btree_set(0u32..300, 0..40)
        ) {
            let mut ours = set(300 * REGION_BYTES, &regions);
            out.iter().for_each(|region| { ours.remove(*region); });
            let expected: Vec<u32> = regions.difference(&out).copied().collect();
            prop_assert_eq!(ours.iter().collect::<Vec<_>>(), expected.clone());
            prop_assert_eq!(ours.count() as usize, expected.len());
        }

        #[test]
        fn the_short_form_covers_the_set_and_is_exact_while_it_fits(regions in prop::collection::btree_set(0u32..4000, 0..1200)) {
            let ours = set(4000 * REGION_BYTES, &regions);
            let runs = ours.runs();
            prop_assert!(runs.len() <= MAX_RUNS);
            let mut read = RegionSet::new(4000 * REGION_BYTES);
            read.insert_runs(&runs);
            prop_assert!(regions.iter().all(|region| read.contains(*region)));
            let exact = regions.iter().filter(|region| **region == 0 || !regions.contains(&(**region - 1))).count() <= MAX_RUNS;
            prop_assert!(!exact || read == ours);
        }

        #[test]
        fn a_run_adds_what_its_regions_would_one_by_one(before in prop::collection::btree_set(0u32..300, 0..80), first in 0u32..310, count in 0u32..310) {
            let mut ours = set(300 * REGION_BYTES, &before);
            ours.insert_runs(&[Run { first, count }]);
            let expected: BTreeSet<u32> = before.into_iter().chain(first..(first + count).min(300)).filter(|region| *region < 300).collect();
            prop_assert_eq!(ours.count() as usize, expected.len());
            prop_assert_eq!(ours, set(300 * REGION_BYTES, &expected));
        }
    }

    /// As many runs as fit the largest message, each of them the whole of the largest disk: that is minutes of work, one region after the other.
    #[test]
    fn a_short_form_that_is_none_counts_as_everything_and_costs_next_to_nothing() {
        let mut ours = RegionSet::new(MAX_DISK_BYTES);
        ours.insert_runs(&vec![Run { first: 0, count: u32::MAX }; 10_000]);
        assert_eq!(u64::from(ours.count()), MAX_DISK_BYTES / REGION_BYTES);
    }

    #[test]
    fn a_short_form_from_outside_adds_nothing_that_the_disk_does_not_have() {
        let mut ours = RegionSet::new(3 * REGION_BYTES - 512);
        ours.insert_runs(&[Run { first: 2, count: u32::MAX }, Run { first: u32::MAX, count: u32::MAX }]);
        assert_eq!(ours.iter().collect::<Vec<_>>(), [2]);
        assert_eq!(ours.bytes(), REGION_BYTES - 512);
    }

    #[test]
    fn a_range_touches_every_region_that_it_has_a_byte_in() {
        assert_eq!(RegionSet::touched(REGION_BYTES - 512, 1024), 0..2);
        assert_eq!(RegionSet::touched(REGION_BYTES, REGION_BYTES), 1..2);
        assert_eq!(RegionSet::touched(5, 0), 0..0);
    }
}
