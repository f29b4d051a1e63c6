//! How much of what is committed waits: disk writes to be handed to the disks, or kept for shared disks, and with `--verify-memory` pages to be compared.
//!
//! A standby whose disks are slower than its primary's may not commit as fast as the primary writes: what is committed has to be applied before the guest can be taken over, and it is
//! kept in memory until then. The same goes for comparing memory. So the data thread waits here before a commit, and the primary's guest waits for its commits.
//!
//! Lives here: the counts. Not here: what the disks themselves have queued, which they bound in the same way.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Bytes that may wait: what a disk of 500 MB/s writes in 64 ms, so that a takeover is not delayed by more.
pub(crate) const WRITES: usize = 32 << 20;
/// Bytes of writes to shared disks that are committed and perhaps not on them: what a primary may hold, with what a write costs besides its content. A primary that has more is one that has not said what is on the disks
/// already, so it will.
pub(crate) const KEPT: usize = (64 << 20) + 16384 * WRITE_COST;
/// What keeping a write costs besides its content, bytes.
pub(crate) const WRITE_COST: usize = 64;
/// Pages that may wait to be compared: half a millisecond of a takeover.
pub(crate) const COMPARING: usize = 1024;

/// The count of one kind.
pub(crate) struct Backlog {
    limit: usize,
    waiting: Mutex<usize>,
    less: Condvar,
}

/// What one epoch is counted in with.
pub(crate) struct Permits {
    pub(crate) writes: Permit,
    /// Of shared disks: given back when the primary says that the epoch is on them.
    pub(crate) kept: Permit,
    pub(crate) comparing: Permit,
}

/// Bytes or pages that are counted in. They go with their epoch and leave when it is dropped, wherever that is: handed to the disks, not committed after all, or lost with its link.
pub(crate) struct Permit {
    backlog: Arc<Backlog>,
    amount: usize,
}

impl Permit {
    /// Whether anything is counted in with it.
    pub(crate) fn is_for_something(&self) -> bool {
        self.amount > 0
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut waiting = self.backlog.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        *waiting = waiting.saturating_sub(self.amount);
        self.backlog.less.notify_all();
    }
}

impl Backlog {
    /// Of so many bytes or pages at most.
    pub(crate) fn new(limit: usize) -> Arc<Backlog> {
        Arc::new(Backlog { limit, waiting: Mutex::default(), less: Condvar::new() })
    }

    /// Waits until there is room, then counts `amount` in; `None`: `still` said that nobody waits for it any more. An epoch larger than the bound gets in when nothing else waits.
    pub(crate) fn enter(self: &Arc<Self>, amount: usize, poll: Duration, still: impl Fn() -> bool) -> Option<Permit> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        while *waiting > 0 && amount > 0 && *waiting + amount > self.limit {
            if !still() {
                return None;
            }
            waiting = self.less.wait_timeout(waiting, poll).unwrap_or_else(PoisonError::into_inner).0;
        }
        *waiting += amount;
        Some(Permit { backlog: Arc::clone(self), amount })
    }

    /// Waits until nothing is counted in, or `still` says that nobody waits for it any more.
    pub(crate) fn empty(self: &Arc<Self>, poll: Duration, still: impl Fn() -> bool) {
        drop(self.enter(self.limit, poll, still));
    }

    /// What is counted in.
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        *self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLL: Duration = Duration::from_millis(1);

    #[test]
    fn what_is_too_much_waits_until_there_is_room_and_one_epoch_always_gets_in() {
        let backlog = Backlog::new(WRITES);
        let large = backlog.enter(2 * WRITES, POLL, || false).expect("alone");
        assert!(backlog.enter(0, POLL, || false).is_some(), "without writes");
        assert!(backlog.enter(1, POLL, || false).is_none());
        drop(large);
        let full = backlog.enter(WRITES, POLL, || false).expect("alone again");

        std::thread::scope(|scope| {
            let entered = scope.spawn(|| backlog.enter(1, POLL, || true).is_some());
            drop(full);
            assert!(entered.join().unwrap());
        });
        assert_eq!(backlog.waiting(), 0);
    }
}
