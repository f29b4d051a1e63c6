//! What the guest has written and the standby has not committed: kept for the open epoch, sealed in the pause, dropped at the commit. Pure.
//!
//! Not here: when an epoch ends. Bounded: so many bytes or writes end the epoch early ([`Room::Pressure`]), so many more and the guest's next write waits in its ring ([`Room::None`]).

use std::collections::VecDeque;
use std::sync::Arc;

use types::block::DiskWrite;
use types::{Commit, Epoch, Generation};

use crate::error::DiskError;

/// Bounds on what is recorded and not committed, of one disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// From so many bytes in the open epoch on it should end.
    pub soft_bytes: usize,
    /// From so many writes in the open epoch on it should end.
    pub soft_writes: usize,
    /// Never more bytes, in all epochs that are not committed.
    pub hard_bytes: usize,
    /// Never more writes, in all epochs that are not committed.
    pub hard_writes: usize,
}

impl Default for Limits {
    /// What a link of 10 Gbit/s carries in 7 ms, and the requests of 8 full queues; eight times that in all, so that several epochs in flight do not stop the guest.
    fn default() -> Limits {
        Limits { soft_bytes: 8 << 20, soft_writes: 2048, hard_bytes: 64 << 20, hard_writes: 16384 }
    }
}

impl Limits {
    /// Each one's share where so many disks record for the same epoch: together they keep within the bounds of one, because their writes travel in one tail. (A large write always fits.)
    #[must_use]
    pub fn shared_by(self, disks: usize) -> Limits {
        let share = |whole: usize, least: usize| (whole / disks.max(1)).max(least);
        Limits {
            soft_bytes: share(self.soft_bytes, 1),
            soft_writes: share(self.soft_writes, 1),
            hard_bytes: share(self.hard_bytes, types::block::REQUEST_BYTES_MAX),
            hard_writes: share(self.hard_writes, 1),
        }
    }

    /// # Errors
    /// [`DiskError::Limits`] when they contradict each other.
    pub fn validate(self) -> Result<Limits, DiskError> {
        if self.soft_bytes == 0 || self.soft_writes == 0 {
            return Err(DiskError::Limits("a soft limit is zero"));
        }
        if self.soft_bytes > self.hard_bytes || self.soft_writes > self.hard_writes {
            return Err(DiskError::Limits("a soft limit is over its hard limit"));
        }
        if self.hard_bytes < types::block::REQUEST_BYTES_MAX {
            return Err(DiskError::Limits("the hard limit in bytes is smaller than one large write"));
        }
        Ok(self)
    }
}

/// Whether there is room after a write was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// Plenty.
    Enough,
    /// The epoch should end.
    Pressure,
    /// It was not taken.
    None,
}

/// The writes that are not committed.
#[derive(Debug)]
pub struct Record {
    limits: Limits,
    /// Whose commits count. The thread that carries out a release may have been held up over a strike-out and the next standby's epochs, which have the same numbers.
    generation: Generation,
    open: Vec<DiskWrite>,
    open_bytes: usize,
    sealed: VecDeque<(Epoch, Arc<Vec<DiskWrite>>)>,
    last_sealed: Epoch,
    last_released: Epoch,
    bytes: usize,
    writes: usize,
}

impl Record {
    /// Nothing is recorded; the open epoch is the first of this generation's link.
    #[must_use]
    pub fn new(limits: Limits, generation: Generation) -> Record {
        Record {
            limits,
            generation,
            open: Vec::new(),
            open_bytes: 0,
            sealed: VecDeque::new(),
            last_sealed: Epoch::NONE,
            last_released: Epoch::NONE,
            bytes: 0,
            writes: 0,
        }
    }

    /// The epoch that a write would be recorded for now. After an epoch was given up it may be one too high for what is merged back: later is the safe side for those who ask when
    /// something was last written.
    #[must_use]
    pub fn open_epoch(&self) -> Epoch {
        self.last_sealed.next()
    }

    /// Records a write.
    pub fn push(&mut self, write: DiskWrite) -> Room {
        let payload = write.payload();
        if self.bytes + payload > self.limits.hard_bytes || self.writes >= self.limits.hard_writes {
            return Room::None;
        }
        self.open.push(write);
        self.open_bytes += payload;
        self.bytes += payload;
        self.writes += 1;
        if self.open_bytes >= self.limits.soft_bytes || self.open.len() >= self.limits.soft_writes { Room::Pressure } else { Room::Enough }
    }

    /// Whether a write of so many bytes would be taken.
    #[must_use]
    pub fn fits(&self, payload: usize) -> bool {
        self.bytes + payload <= self.limits.hard_bytes && self.writes < self.limits.hard_writes
    }

    /// Nothing of the open epoch's is recorded, and what is sealed leaves as much room as an epoch may take: a guest that was turned away may try again.
    #[must_use]
    pub fn roomy(&self) -> bool {
        self.bytes + self.limits.soft_bytes <= self.limits.hard_bytes && self.writes + self.limits.soft_writes <= self.limits.hard_writes
            || self.bytes == 0
    }

    /// Gives everything recorded so far, and not sealed yet, to `epoch`.
    ///
    /// # Errors
    /// The epoch that may be sealed, if it is not this one.
    pub fn seal(&mut self, epoch: Epoch) -> Result<Arc<Vec<DiskWrite>>, Epoch> {
        // Exactly the next: regions remember the epoch of their last write by this number.
        if epoch != self.last_sealed.next() {
            return Err(self.last_sealed.next());
        }
        let writes = Arc::new(std::mem::take(&mut self.open));
        self.open_bytes = 0;
        self.sealed.push_back((epoch, Arc::clone(&writes)));
        self.last_sealed = epoch;
        Ok(writes)
    }

    /// Gives up `epoch` and every later sealed one: their writes return to the front of the open epoch, in order, and `epoch` may be sealed again.
    pub fn unseal(&mut self, epoch: Epoch) {
        let keep = self.sealed.iter().take_while(|(sealed, _)| *sealed < epoch).count();
        let mut merged: Vec<DiskWrite> = Vec::new();
        for (_, writes) in self.sealed.split_off(keep) {
            merged.extend(Arc::try_unwrap(writes).unwrap_or_else(|shared| shared.to_vec()));
        }
        merged.append(&mut self.open);
        self.open_bytes = merged.iter().map(DiskWrite::payload).sum();
        self.open = merged;
        self.last_sealed = self.sealed.back().map_or(self.last_released, |(newest, _)| *newest);
    }

    /// Everything up to the commit's epoch is the standby's now, and leaves the record, in order. An epoch that was not sealed releases nothing, and neither does a commit of another generation.
    pub fn release(&mut self, commit: &Commit) -> Vec<(Epoch, Arc<Vec<DiskWrite>>)> {
        let mut released = Vec::new();
        let epoch = commit.epoch();
        if commit.generation() != self.generation || epoch > self.last_sealed {
            return released;
        }
        while let Some((sealed, writes)) = self.sealed.pop_front_if(|(sealed, _)| *sealed <= epoch) {
            self.bytes -= writes.iter().map(DiskWrite::payload).sum::<usize>();
            self.writes -= writes.len();
            released.push((sealed, writes));
        }
        self.last_released = self.last_released.max(epoch);
        released
    }

    /// Everything that is recorded, in order: no commit will come for it.
    #[must_use]
    pub fn into_writes(mut self) -> Vec<DiskWrite> {
        let first = self.last_released.next();
        self.unseal(first);
        self.open
    }

    /// Nothing was recorded since the last sealing.
    #[must_use]
    pub fn open_is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Nothing is recorded that is not committed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.writes == 0
    }

    /// Newest epoch that was sealed, and not given up.
    #[must_use]
    pub fn sealed(&self) -> Epoch {
        self.last_sealed
    }

    /// Newest epoch whose commit was given.
    #[must_use]
    pub fn released(&self) -> Epoch {
        self.last_released
    }

    /// Bytes recorded and not committed.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
