//! What a standby keeps of a shared disk: the writes of every epoch, until the primary says that they are on the device. Pure.
//!
//! Guards S2 (only committed epochs' writes are ever taken over) and S4 (everything committed is either on the device or here). Bounded: one epoch by the primary's own bound ([`Limits`]), all of them by whoever commits
//! (`replica` waits for room before a commit, as a primary that is too slow at its device makes it wait).

use std::collections::VecDeque;

use types::Epoch;
use types::block::DiskWrite;

use super::newest::newest;
use crate::record::Limits;

/// Why an epoch is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Another one is the next.
    Order {
        /// The next.
        expected: Epoch,
    },
    /// It has more than a primary may hold.
    TooMuch,
}

/// The writes that are kept.
#[derive(Debug)]
pub struct Kept {
    limits: Limits,
    /// Complete epochs that are not committed.
    staged: VecDeque<(Epoch, Vec<DiskWrite>)>,
    staged_last: Epoch,
    /// Committed ones that wrote something and are perhaps not on the device.
    writes: VecDeque<(Epoch, Vec<DiskWrite>)>,
    committed: Epoch,
    on_device: Epoch,
}

impl Kept {
    /// Nothing is kept, and epoch 1 is the next.
    #[must_use]
    pub fn new(limits: Limits) -> Kept {
        Kept {
            limits,
            staged: VecDeque::new(),
            staged_last: Epoch::NONE,
            writes: VecDeque::new(),
            committed: Epoch::NONE,
            on_device: Epoch::NONE,
        }
    }

    /// The writes of a complete epoch.
    ///
    /// # Errors
    /// Why they are not taken.
    pub fn stage(&mut self, epoch: Epoch, writes: Vec<DiskWrite>) -> Result<(), Refused> {
        let expected = self.staged_last.next();
        if epoch != expected {
            return Err(Refused::Order { expected });
        }
        let bytes: usize = writes.iter().map(DiskWrite::payload).sum();
        if bytes > self.limits.hard_bytes || writes.len() > self.limits.hard_writes {
            return Err(Refused::TooMuch);
        }
        self.staged.push_back((epoch, writes));
        self.staged_last = epoch;
        Ok(())
    }

    /// Every epoch up to this one is committed.
    ///
    /// # Errors
    /// For one that was not staged.
    pub fn commit(&mut self, epoch: Epoch) -> Result<(), Refused> {
        if epoch > self.staged_last {
            return Err(Refused::Order { expected: self.staged_last });
        }
        while let Some((now, writes)) = self.staged.pop_front_if(|(staged, _)| *staged <= epoch) {
            self.committed = now;
            // The primary may have said so already: its word does not wait for this.
            if now > self.on_device && !writes.is_empty() {
                self.writes.push_back((now, writes));
            }
        }
        Ok(())
    }

    /// The primary says that every epoch up to this one is on the device: they are its business no more.
    pub fn on_device(&mut self, epoch: Epoch) {
        self.on_device = self.on_device.max(epoch);
        while self.writes.pop_front_if(|(kept, _)| *kept <= epoch).is_some() {}
    }

    /// What is not committed never will be.
    pub fn discard_uncommitted(&mut self) {
        self.staged.clear();
        self.staged_last = self.committed;
    }

    /// Newest committed epoch.
    #[must_use]
    pub fn committed(&self) -> Epoch {
        self.committed
    }

    /// Oldest committed epoch that is kept.
    #[must_use]
    pub fn oldest(&self) -> Option<Epoch> {
        self.writes.front().map(|(epoch, _)| *epoch)
    }

    /// A takeover: the committed writes that may not be on the device, in order, without what later ones of them write over ([`super::newest`] says why).
    #[must_use]
    pub fn take_over(self) -> Vec<DiskWrite> {
        newest(self.writes.into_iter().flat_map(|(_, writes)| writes).collect())
    }
}

#[cfg(test)]
mod tests {
    use types::block::{DiskChange, DiskIndex};

    use super::*;

    fn write(byte: u8) -> DiskWrite {
        DiskWrite { disk: DiskIndex(0), offset: u64::from(byte) * 512, change: DiskChange::Data(vec![byte; 512].into()) }
    }

    fn committed(epochs: u64) -> Kept {
        let mut kept = Kept::new(Limits::default());
        for epoch in 1..=epochs {
            kept.stage(Epoch(epoch), vec![write(epoch as u8)]).unwrap();
            kept.commit(Epoch(epoch)).unwrap();
        }
        kept
    }

    #[test]
    fn a_takeover_has_what_is_committed_and_not_known_to_be_on_the_device_in_order() {
        let mut kept = committed(4);
        kept.stage(Epoch(5), vec![write(5)]).unwrap();
        kept.on_device(Epoch(2));
        kept.discard_uncommitted();

        assert_eq!(kept.oldest(), Some(Epoch(3)));
        assert_eq!(kept.take_over(), [write(3), write(4)]);
    }

    #[test]
    fn a_word_that_overtakes_the_commit_is_kept_for_it() {
        let mut kept = committed(1);
        kept.stage(Epoch(2), vec![write(2)]).unwrap();

        kept.on_device(Epoch(2));
        kept.commit(Epoch(2)).unwrap();

        assert_eq!((kept.committed(), kept.oldest()), (Epoch(2), None));
    }

    #[test]
    fn an_epoch_out_of_order_or_larger_than_a_primary_may_hold_is_refused() {
        let limits = Limits { soft_writes: 1, hard_writes: 2, ..Limits::default() };
        let mut kept = Kept::new(limits);
        assert_eq!(kept.stage(Epoch(2), vec![]), Err(Refused::Order { expected: Epoch(1) }));
        assert_eq!(kept.stage(Epoch(1), vec![write(1); 3]), Err(Refused::TooMuch));
        assert_eq!(kept.commit(Epoch(1)), Err(Refused::Order { expected: Epoch(0) }));
        kept.stage(Epoch(1), vec![write(1); 2]).unwrap();
    }
}
