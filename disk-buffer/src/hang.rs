//! Whether a medium hangs, by a clock that does not count this process's own sleep. Pure.
//!
//! Lives here: the arithmetic. Not here: who looks and what follows ([`crate::mirror`], [`crate::shared`]). A process that was stopped for a minute (SIGSTOP, a suspended host) finds a request in flight for a minute when it wakes up, and
//! nobody has asked the medium's thread yet: to give a role or a copy up for that would be wrong.

use std::time::{Duration, Instant};

/// How often to look, at most: nobody who waits for half a minute minds a second.
const PERIOD: Duration = Duration::from_secs(1);

/// How often to look with so much patience: at a small one, often enough that no two looks make a hang.
pub(crate) fn period(bound: Duration) -> Duration {
    PERIOD.min(bound / 8)
}

/// Watches one thing that is waited for. `T` says what that is, and how far it has come: as long as it stays the same, nothing has come of it.
#[derive(Debug)]
pub(crate) struct Patience<T> {
    bound: Duration,
    looked: Option<Instant>,
    awaited: Option<T>,
    /// For how long the same was waited for, as far as was watched.
    stuck: Duration,
}

impl<T: PartialEq> Patience<T> {
    pub(crate) fn new(bound: Duration) -> Patience<T> {
        Patience { bound, looked: None, awaited: None, stuck: Duration::ZERO }
    }

    /// A look: this is waited for now, or nothing is. Whether it has been the same for as long as the bound.
    pub(crate) fn hangs(&mut self, now: Instant, awaited: Option<T>) -> bool {
        let since = self.looked.replace(now).map_or(Duration::ZERO, |looked| now.saturating_duration_since(looked));
        let moves = self.awaited != awaited;
        self.awaited = awaited;
        if self.awaited.is_none() || moves {
            self.stuck = Duration::ZERO;
            // Counted from here on.
            return false;
        }
        // A look that comes later than this after the one before did not watch in between.
        self.stuck += since.min(2 * period(self.bound));
        self.stuck >= self.bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Looks once a second; the number of the look that says that the medium hangs.
    fn found(awaited: impl Fn(u32) -> Option<u32>) -> Option<u32> {
        let (start, mut patience) = (Instant::now(), Patience::new(30 * SECOND));
        (0..100).find(|second| patience.hangs(start + *second * SECOND, awaited(*second)))
    }

    #[test]
    fn a_medium_that_answers_nothing_for_the_bound_hangs() {
        assert_eq!(found(|_| Some(7)), Some(30));
    }

    #[test]
    fn a_medium_that_answers_now_and_then_or_is_asked_nothing_does_not_hang() {
        assert_eq!(found(|second| Some(second / 20)), None);
        assert_eq!(found(|_| None), None);
        assert_eq!(found(|second| (second % 20 != 0).then_some(7)), None);
    }

    #[test]
    fn this_processs_own_sleep_is_no_hang_of_the_medium() {
        let (start, mut patience) = (Instant::now(), Patience::new(30 * SECOND));
        patience.hangs(start, Some(7));
        for wake in 1..10 {
            assert!(!patience.hangs(start + wake * 3600 * SECOND, Some(7)), "one look is not thirty");
        }
        // What was answered while it slept is taken as soon as it is awake.
        assert!(!patience.hangs(start + 100 * 3600 * SECOND, Some(8)));
    }
}
