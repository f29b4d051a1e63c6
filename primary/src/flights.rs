//! The dirty sets of epochs that are captured and not yet committed, so that an epoch that fails gives its set back (S6).
//!
//! Lives here: the sets, recycled, and when each epoch was captured. Not here: the decision that an epoch failed ([`crate::core`]).

use std::collections::VecDeque;

use dirty_tracking::{DirtySet, Layout};
use types::Epoch;

struct Flight {
    epoch: Epoch,
    set: DirtySet,
    resumed_ns: u64,
}

/// Sets in flight, oldest first, and spare ones.
pub(crate) struct Flights {
    layout: Layout,
    flying: VecDeque<Flight>,
    spare: Vec<DirtySet>,
}

impl Flights {
    pub(crate) fn new(layout: &Layout) -> Flights {
        Flights { layout: layout.clone(), flying: VecDeque::new(), spare: Vec::new() }
    }

    /// An empty set for the next capture.
    pub(crate) fn take(&mut self) -> DirtySet {
        self.spare.pop().unwrap_or_else(|| DirtySet::new(&self.layout))
    }

    /// A set that was not needed.
    pub(crate) fn put(&mut self, mut set: DirtySet) {
        set.clear();
        self.spare.push(set);
    }

    /// The epoch is captured; it stays until it is committed or merged back.
    pub(crate) fn captured(&mut self, epoch: Epoch, set: DirtySet, resumed_ns: u64) {
        self.flying.push_back(Flight { epoch, set, resumed_ns });
    }

    /// The epoch and all before it are committed; returns when the epoch was captured.
    pub(crate) fn committed(&mut self, epoch: Epoch) -> Option<u64> {
        let mut resumed = None;
        while self.flying.front().is_some_and(|flight| flight.epoch <= epoch) {
            if let Some(flight) = self.flying.pop_front() {
                resumed = (flight.epoch == epoch).then_some(flight.resumed_ns);
                self.put(flight.set);
            }
        }
        resumed
    }

    /// The epoch will never be committed: its set, for the tracker.
    pub(crate) fn failed(&mut self, epoch: Epoch) -> Option<DirtySet> {
        let at = self.flying.iter().position(|flight| flight.epoch == epoch)?;
        self.flying.remove(at).map(|flight| flight.set)
    }
}

#[cfg(test)]
mod tests {
    use dirty_tracking::Slot;
    use types::Gfn;

    use super::*;

    fn flights() -> Flights {
        Flights::new(&Layout::new(vec![Slot { number: 0, first: Gfn(0), pages: 64, host_address: 0 }]))
    }

    #[test]
    fn a_failed_epoch_gives_back_exactly_its_own_set() {
        let mut flights = flights();
        for n in 1..=3 {
            let mut set = flights.take();
            set.insert(Gfn(n));
            flights.captured(Epoch(n), set, n * 10);
        }

        assert_eq!(flights.committed(Epoch(1)), Some(10));
        assert_eq!(flights.failed(Epoch(2)).unwrap().iter().collect::<Vec<_>>(), [Gfn(2)]);
        assert!(flights.failed(Epoch(1)).is_none(), "a committed epoch has nothing to give back");
        assert!(flights.take().is_empty(), "a recycled set is empty");
    }
}
