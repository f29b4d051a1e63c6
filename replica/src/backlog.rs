//! How much of the disks' committed writes waits to be handed to the disks.
//!
//! A standby whose disks are slower than its primary's may not commit as fast as the primary writes: what is committed has to be applied before the guest can be taken over, and it is
//! kept in memory until then. So the data thread waits here before a commit, and the primary's guest waits for its commits.
//!
//! Lives here: the count. Not here: what the disks themselves have queued, which they bound in the same way.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Bytes that may wait: what a disk of 500 MB/s writes in 64 ms, so that a takeover is not delayed by more.
const BYTES: usize = 32 << 20;

/// The count.
#[derive(Default)]
pub(crate) struct Backlog {
    bytes: Mutex<usize>,
    less: Condvar,
}

impl Backlog {
    /// Waits until there is room, then counts `bytes` in; `false`: `still` said that nobody waits for it any more. An epoch larger than the bound gets in when nothing else waits.
    pub(crate) fn enter(&self, bytes: usize, poll: Duration, still: impl Fn() -> bool) -> bool {
        let mut waiting = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        while *waiting > 0 && bytes > 0 && *waiting + bytes > BYTES {
            if !still() {
                return false;
            }
            waiting = self.less.wait_timeout(waiting, poll).unwrap_or_else(PoisonError::into_inner).0;
        }
        *waiting += bytes;
        true
    }

    /// `bytes` have been handed to the disks, or will never be.
    pub(crate) fn leave(&self, bytes: usize) {
        let mut waiting = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        *waiting = waiting.saturating_sub(bytes);
        self.less.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLL: Duration = Duration::from_millis(1);

    #[test]
    fn what_is_too_much_waits_until_there_is_room_and_one_epoch_always_gets_in() {
        let backlog = Backlog::default();
        assert!(backlog.enter(2 * BYTES, POLL, || false), "alone");
        assert!(backlog.enter(0, POLL, || false), "without writes");
        assert!(!backlog.enter(1, POLL, || false));
        backlog.leave(2 * BYTES);
        assert!(backlog.enter(BYTES, POLL, || false));

        std::thread::scope(|scope| {
            let entered = scope.spawn(|| backlog.enter(1, POLL, || true));
            backlog.leave(BYTES);
            assert!(entered.join().unwrap());
        });
    }
}
