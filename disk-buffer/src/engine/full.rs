//! Requests that met a full medium (ENOSPC, EDQUOT): they are held and asked again until there is space, as QEMU holds a whole guest by default (`werror=enospc`).
//!
//! An error would be final to most guests: ext4 gives up a journal for it. A held request costs a guest nothing but time: Linux's virtio_blk has no time limit. Reads, and writes that need no new
//! space, go on; a request that overlaps a held one waits for it, as does a flush that was submitted after it.
//!
//! Lives here: which requests are held, and when they are asked again. Not here: for how long ([`super::Engine::give_up_full`] is the owner's), the ring.

use std::collections::BTreeMap;
use std::time::Duration;

use io_uring::types::Timespec;

use super::faults::Asked;

/// A held request is asked again this often, and whenever space may have become free: nothing that an operator does is noticed later than at once, and it costs nothing.
pub(super) const RETRY_PERIOD: Duration = Duration::from_millis(250);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nothing is asked for it.
    Held,
    /// Asked again.
    Asked,
    /// Its error is on its way to whoever submitted it.
    GivenUp,
}

/// The requests that have met a full medium and are not finished.
#[derive(Debug)]
pub(super) struct Full {
    requests: BTreeMap<u64, Stage>,
    /// For the ring, which reads it when it takes the request for a timeout over.
    pub(super) period: Box<Timespec>,
    /// A timeout is under way.
    pub(super) armed: bool,
    /// The engine ends: nothing is held any more.
    ending: bool,
}

impl Full {
    pub(super) fn new() -> Full {
        Full { requests: BTreeMap::new(), period: Box::new(Timespec::from(RETRY_PERIOD)), armed: false, ending: false }
    }

    /// Whether the request, whose call had this answer, is held instead of being finished.
    pub(super) fn holds(&mut self, id: u64, asked: Asked, errno: i32) -> bool {
        let full = matches!(errno, libc::ENOSPC | libc::EDQUOT) && matches!(asked, Asked::Write(..) | Asked::Zero(..));
        if !full || self.ending || self.requests.get(&id) == Some(&Stage::GivenUp) {
            return false;
        }
        self.requests.insert(id, Stage::Held);
        true
    }

    /// The request is finished. Whether it was among these.
    pub(super) fn finished(&mut self, id: u64) -> bool {
        self.requests.remove(&id).is_some()
    }

    /// None has met a full medium.
    pub(super) fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// Requests that nothing is asked for: they are not in the kernel's hands.
    pub(super) fn held(&self) -> usize {
        self.requests.values().filter(|stage| **stage == Stage::Held).count()
    }

    /// What is held, to be asked again now.
    pub(super) fn ask_again(&mut self) -> Vec<u64> {
        self.take(Stage::Asked)
    }

    /// What is held, to be answered with its error now. `ending`: nothing is held from now on.
    pub(super) fn give_up(&mut self, ending: bool) -> Vec<u64> {
        self.ending |= ending;
        self.take(Stage::GivenUp)
    }

    fn take(&mut self, next: Stage) -> Vec<u64> {
        let held = self.requests.iter_mut().filter(|(_, stage)| **stage == Stage::Held);
        held.map(|(id, stage)| {
            *stage = next;
            *id
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITE: Asked = Asked::Write(0, 512);

    #[test]
    fn only_what_changes_the_disk_and_lacks_space_is_held() {
        let mut full = Full::new();
        assert!(full.holds(1, WRITE, libc::ENOSPC) && full.holds(2, Asked::Zero(0, 512), libc::EDQUOT));
        for (asked, errno) in [(WRITE, libc::EIO), (Asked::Read(0, 512), libc::ENOSPC), (Asked::Sync, libc::ENOSPC)] {
            assert!(!full.holds(3, asked, errno), "{asked:?} {errno}");
        }
        assert_eq!(full.held(), 2);
    }

    #[test]
    fn a_request_is_asked_again_once_at_a_time_and_held_again_when_it_fails_again() {
        let mut full = Full::new();
        assert!(full.holds(1, WRITE, libc::ENOSPC));
        assert_eq!((full.ask_again(), full.held()), (vec![1], 0));
        assert_eq!(full.ask_again(), [], "its call is under way");
        assert!(full.holds(1, WRITE, libc::ENOSPC));
        assert_eq!(full.held(), 1);
        assert!(full.finished(1) && full.is_empty() && !full.finished(1));
    }

    #[test]
    fn what_is_given_up_is_not_held_again_and_at_the_end_nothing_is() {
        let mut full = Full::new();
        assert!(full.holds(1, WRITE, libc::ENOSPC) && full.holds(2, WRITE, libc::ENOSPC));
        full.requests.insert(2, Stage::Asked);
        assert_eq!(full.give_up(false), [1]);
        assert!(!full.holds(1, WRITE, libc::ENOSPC), "its error goes out");
        assert!(full.holds(2, WRITE, libc::ENOSPC), "it was not given up");
        assert_eq!(full.give_up(true), [2]);
        assert!(!full.holds(3, WRITE, libc::ENOSPC));
    }
}
