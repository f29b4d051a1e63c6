//! How much of the disks' committed writes waits to be handed to the disks.
//!
//! A standby whose disks are slower than its primary's may not commit as fast as the primary writes: what is committed has to be applied before the guest can be taken over, and it is
//! kept in memory until then. So the data thread waits here before a commit, and the primary's guest waits for its commits.
//!
//! Lives here: the count. Not here: what the disks themselves have queued, which they bound in the same way.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Bytes that may wait: what a disk of 500 MB/s writes in 64 ms, so that a takeover is not delayed by more.
const BYTES: usize = 32 << 20;

/// The count.
#[derive(Default)]
pub(crate) struct Backlog {
    bytes: Mutex<usize>,
    less: Condvar,
}

/// Bytes that are counted in. They go with their epoch and leave when it is dropped, wherever that is: handed to the disks, not committed after all, or lost with its link.
pub(crate) struct Permit {
    backlog: Arc<Backlog>,
    bytes: usize,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut waiting = self.backlog.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        *waiting = waiting.saturating_sub(self.bytes);
        self.backlog.less.notify_all();
    }
}

impl Backlog {
    /// Waits until there is room, then counts `bytes` in; `None`: `still` said that nobody waits for it any more. An epoch larger than the bound gets in when nothing else waits.
    pub(crate) fn enter(self: &Arc<Self>, bytes: usize, poll: Duration, still: impl Fn() -> bool) -> Option<Permit> {
        let mut waiting = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        while *waiting > 0 && bytes > 0 && *waiting + bytes > BYTES {
            if !still() {
                return None;
            }
            waiting = self.less.wait_timeout(waiting, poll).unwrap_or_else(PoisonError::into_inner).0;
        }
        *waiting += bytes;
        Some(Permit { backlog: Arc::clone(self), bytes })
    }

    /// Bytes counted in.
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        *self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLL: Duration = Duration::from_millis(1);

    #[test]
    fn what_is_too_much_waits_until_there_is_room_and_one_epoch_always_gets_in() {
        let backlog = Arc::new(Backlog::default());
        let large = backlog.enter(2 * BYTES, POLL, || false).expect("alone");
        assert!(backlog.enter(0, POLL, || false).is_some(), "without writes");
        assert!(backlog.enter(1, POLL, || false).is_none());
        drop(large);
        let full = backlog.enter(BYTES, POLL, || false).expect("alone again");

        std::thread::scope(|scope| {
            let entered = scope.spawn(|| backlog.enter(1, POLL, || true).is_some());
            drop(full);
            assert!(entered.join().unwrap());
        });
        assert_eq!(backlog.waiting(), 0);
    }
}
