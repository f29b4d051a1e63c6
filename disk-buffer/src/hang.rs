//! Whether a medium hangs, by a clock that does not count this process's own sleep. Pure.
//!
//! Lives here: the arithmetic. Not here: who looks and what follows ([`crate::mirror`], [`crate::shared`]). A process that was stopped for a minute (SIGSTOP, a suspended host) finds a request in flight for a minute when it wakes up, and
//! nobody has asked the medium's thread yet: to give a role up for that would be wrong.

use std::time::{Duration, Instant};

/// A look that comes so long after the one before did not watch in between: both disks look once a second.
const LATE: Duration = Duration::from_secs(2);

/// Watches one medium.
#[derive(Debug)]
pub(crate) struct Patience {
    bound: Duration,
    looked: Option<Instant>,
    answered: u64,
    /// For how long nothing was answered while something was in flight, as far as was watched.
    stuck: Duration,
}

impl Patience {
    pub(crate) fn new(bound: Duration) -> Patience {
        Patience { bound, looked: None, answered: 0, stuck: Duration::ZERO }
    }

    /// A look: requests are in flight, and so many were answered so far. Whether none was for as long as the bound.
    pub(crate) fn hangs(&mut self, now: Instant, in_flight: bool, answered: u64) -> bool {
        let since = self.looked.replace(now).map_or(Duration::ZERO, |looked| now.saturating_duration_since(looked));
        let moves = std::mem::replace(&mut self.answered, answered) != answered;
        if !in_flight || moves {
            self.stuck = Duration::ZERO;
            // Counted from here on.
            return false;
        }
        self.stuck += since.min(LATE);
        self.stuck >= self.bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Looks once a second; the number of the look that says that the medium hangs.
    fn found(answered: impl Fn(u32) -> u64, in_flight: impl Fn(u32) -> bool) -> Option<u32> {
        let (start, mut patience) = (Instant::now(), Patience::new(30 * SECOND));
        (0..100).find(|second| patience.hangs(start + *second * SECOND, in_flight(*second), answered(*second)))
    }

    #[test]
    fn a_medium_that_answers_nothing_for_the_bound_hangs() {
        assert_eq!(found(|_| 7, |_| true), Some(30));
    }

    #[test]
    fn a_medium_that_answers_now_and_then_or_is_asked_nothing_does_not_hang() {
        assert_eq!(found(|second| u64::from(second / 20), |_| true), None);
        assert_eq!(found(|_| 7, |_| false), None);
        assert_eq!(found(|_| 7, |second| second % 20 != 0), None);
    }

    #[test]
    fn this_processs_own_sleep_is_no_hang_of_the_medium() {
        let (start, mut patience) = (Instant::now(), Patience::new(30 * SECOND));
        patience.hangs(start, true, 7);
        for wake in 1..10 {
            assert!(!patience.hangs(start + wake * 3600 * SECOND, true, 7), "one look is not thirty");
        }
        // What was answered while it slept is taken as soon as it is awake.
        assert!(!patience.hangs(start + 100 * 3600 * SECOND, true, 8));
    }
}
