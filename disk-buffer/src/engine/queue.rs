//! Which request may be carried out when. Pure: no descriptor, no thread, no data.
//!
//! Requests that overlap, at least one of them writing, are carried out in the order in which they were submitted; a barrier after every writing request submitted before it. A request may also wait
//! for its regions to be marked in the change log. Everything else may go at once and in any order.
//!
//! The scan for overlaps is linear in the requests in flight. They are bounded (256 of the guest, [`crate::mirror::standby::BACKLOG_REQUESTS`] of epochs, a few of a copy), so it costs a microsecond at worst.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

/// A request in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(pub u64);

/// What a request does to the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reads bytes.
    Read(Range<u64>),
    /// Changes bytes.
    Write(Range<u64>),
    /// Waits for every change before it.
    Barrier,
}

#[derive(Debug)]
struct Entry {
    /// Rounded outward.
    span: Range<u64>,
    writes: bool,
    /// What it still waits for.
    blockers: u32,
    /// Who waits for it.
    waiters: Vec<Id>,
    /// Calls of the system that were answered and did not finish it.
    answers: u32,
}

/// The requests in flight of one disk.
#[derive(Debug)]
pub struct Queue {
    grain: u64,
    next: u64,
    entries: BTreeMap<Id, Entry>,
    ready: VecDeque<Id>,
    /// Waiting for an update of the change log, by its number.
    unmarked: BTreeMap<u64, Vec<Id>>,
}

impl Queue {
    /// Requests that share a block of `grain` bytes count as overlapping: the page cache and direct writes work in pages.
    #[must_use]
    pub fn new(grain: u64) -> Queue {
        Queue { grain: grain.max(1), next: 0, entries: BTreeMap::new(), ready: VecDeque::new(), unmarked: BTreeMap::new() }
    }

    /// Takes a request; it waits for update `marked_by` of the change log if one is given.
    pub fn submit(&mut self, access: Access, marked_by: Option<u64>) -> Id {
        let id = Id(self.next);
        self.next += 1;
        let (span, writes, barrier) = match access {
            Access::Read(range) => (self.widen(range), false, false),
            Access::Write(range) => (self.widen(range), true, false),
            Access::Barrier => (0..0, false, true),
        };
        let mut blockers = 0;
        for earlier in self.entries.values_mut() {
            let overlap = earlier.span.start < span.end && span.start < earlier.span.end && (writes || earlier.writes);
            if overlap || barrier && earlier.writes {
                earlier.waiters.push(id);
                blockers += 1;
            }
        }
        if let Some(update) = marked_by {
            self.unmarked.entry(update).or_default().push(id);
            blockers += 1;
        }
        self.entries.insert(id, Entry { span, writes, blockers, waiters: Vec::new(), answers: 0 });
        if blockers == 0 {
            self.ready.push_back(id);
        }
        id
    }

    /// The next request that may be carried out now.
    pub fn next_ready(&mut self) -> Option<Id> {
        self.ready.pop_front()
    }

    /// Update `number` of the change log, and every one before it, is durable.
    pub fn marked(&mut self, number: u64) {
        let later = self.unmarked.split_off(&(number + 1));
        for id in std::mem::replace(&mut self.unmarked, later).into_values().flatten() {
            self.unblock(id);
        }
    }

    /// The requests that wait for the change log, which has failed: they are taken out, and what waited for them may go.
    pub fn give_up_unmarked(&mut self) -> Vec<Id> {
        let ids: Vec<Id> = std::mem::take(&mut self.unmarked).into_values().flatten().collect();
        ids.iter().for_each(|id| self.complete(*id));
        ids
    }

    /// The system has answered one of the request's calls, and there is more to be done for it.
    pub fn moved(&mut self, id: Id) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.answers = entry.answers.wrapping_add(1);
        }
    }

    /// The request that has been in flight for longest, and how many calls were answered for it: while that stays the same, it waits for the medium (or for the change log's).
    #[must_use]
    pub fn oldest(&self) -> Option<(Id, u32)> {
        self.entries.first_key_value().map(|(id, entry)| (*id, entry.answers))
    }

    /// The request has been carried out, or has failed.
    pub fn complete(&mut self, id: Id) {
        if let Some(entry) = self.entries.remove(&id) {
            entry.waiters.into_iter().for_each(|waiter| self.unblock(waiter));
        }
    }

    /// Requests in flight.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// None is in flight.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn unblock(&mut self, id: Id) {
        // One that was given up is gone already.
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.blockers -= 1;
            if entry.blockers == 0 {
                self.ready.push_back(id);
            }
        }
    }

    fn widen(&self, range: Range<u64>) -> Range<u64> {
        range.start / self.grain * self.grain..range.end.next_multiple_of(self.grain)
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
