//! The marked regions in memory, and which of them are durable. Pure: it hands out sectors to be written and is told when they are.
//!
//! One update is under way at a time. What is marked meanwhile goes with the next, so that many first writes share one flush of the log.

use std::collections::{BTreeMap, BTreeSet};

use crate::changes::format::{SECTOR_REGIONS, Sector, encode_bitmap};
use crate::regions::RegionSet;

/// One sector to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SectorWrite {
    /// Its number.
    pub number: u32,
    /// Its new content.
    pub sector: Box<Sector>,
}

/// Which regions are marked, which of these durably, and what has to be written to make the others so.
#[derive(Debug)]
pub struct Marks {
    set: RegionSet,
    /// Marked regions that are not durable yet, with the update that makes them so.
    pending: BTreeMap<u32, u64>,
    /// Sectors that differ from the file and are not in the update under way.
    stale: BTreeSet<u32>,
    /// Number of the update under way, or of the next.
    update: u64,
    under_way: bool,
}

impl Marks {
    /// Marks as they are in the log.
    #[must_use]
    pub fn new(set: RegionSet) -> Marks {
        Marks { set, pending: BTreeMap::new(), stale: BTreeSet::new(), update: 1, under_way: false }
    }

    /// The marked regions, durable or not.
    #[must_use]
    pub fn set(&self) -> &RegionSet {
        &self.set
    }

    /// Marks the regions of a range. `None` when all of them are durably marked already; else the number of the update after which they are.
    pub fn mark(&mut self, offset: u64, len: u64) -> Option<u64> {
        let next = self.update + u64::from(self.under_way);
        let mut after = None;
        for region in RegionSet::touched(offset, len) {
            if self.set.insert(region) {
                self.stale.insert(region / SECTOR_REGIONS);
                self.pending.insert(region, next);
            }
            after = after.max(self.pending.get(&region).copied());
        }
        after
    }

    /// Marks every region of a set; as [`Marks::mark`].
    pub fn mark_all(&mut self, other: &RegionSet) -> Option<u64> {
        let next = self.update + u64::from(self.under_way);
        let mut after = None;
        for region in other.iter() {
            if self.set.insert(region) {
                self.stale.insert(region / SECTOR_REGIONS);
                self.pending.insert(region, next);
            }
            after = after.max(self.pending.get(&region).copied());
        }
        after
    }

    /// Clears a region, in the file some time later. The caller knows that both copies hold the same there, durably, and that no write into it is under way.
    pub fn clear(&mut self, region: u32) {
        if self.set.remove(region) {
            self.pending.remove(&region);
            self.stale.insert(region / SECTOR_REGIONS);
        }
    }

    /// Begins an update: the sectors to be written and then made durable. `None` when nothing has changed, or one is under way.
    pub fn begin_update(&mut self) -> Option<Vec<SectorWrite>> {
        if self.under_way || self.stale.is_empty() {
            return None;
        }
        self.under_way = true;
        let stale = std::mem::take(&mut self.stale);
        Some(stale.into_iter().map(|number| SectorWrite { number, sector: Box::new(encode_bitmap(&self.set, number)) }).collect())
    }

    /// The update's sectors are durable. Returns its number: everything that waits for it or for an earlier one may go on.
    pub fn update_durable(&mut self) -> u64 {
        debug_assert!(self.under_way);
        let done = self.update;
        self.under_way = false;
        self.update += 1;
        self.pending.retain(|_, update| *update > done);
        done
    }

    /// Number of the update after which everything marked so far is durably so; `None` when it is.
    #[must_use]
    pub fn pending(&self) -> Option<u64> {
        self.pending.values().max().copied()
    }

    /// Number of the newest update that is durable.
    #[must_use]
    pub fn durable(&self) -> u64 {
        self.update - 1
    }
}

#[cfg(test)]
#[path = "marks_tests.rs"]
mod tests;
