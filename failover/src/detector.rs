//! When a peer is held to be gone: its connection closed, or its heartbeats silent for too long.
//!
//! Lives here: the arithmetic. Not here: sending heartbeats, and what follows from a verdict ([`crate::core`]). Guards nothing by
//! itself: a wrong verdict costs availability, never S3, because the arbiter decides.

/// Heartbeats are sent this often by default: five of them fit the default bound, so that one late wake-up is no verdict.
pub const DEFAULT_INTERVAL_NS: u64 = 10_000_000;
/// Silence for this long means gone, by default.
pub const DEFAULT_BOUND_NS: u64 = 50_000_000;

/// What a check found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing to say.
    Alive,
    /// The peer's connection is closed.
    Closed,
    /// Nothing was heard for that long, in nanoseconds.
    Silent(u64),
    /// This node itself did not run for that long (nanoseconds): the silence is its own. The time is counted anew from now on, and
    /// the caller must raise [`crate::core::Event::Stalled`].
    Stalled(u64),
}

/// Watches one peer.
#[derive(Clone, Debug)]
pub struct Detector {
    interval_ns: u64,
    bound_ns: u64,
    heard_ns: u64,
    checked_ns: u64,
    closed: bool,
}

impl Detector {
    /// A detector for a link made at `now_ns`. `interval_ns`: how often [`Detector::check`] is called and heartbeats are sent;
    /// `bound_ns`: the silence that means gone, raised to two intervals if it is less.
    #[must_use]
    pub fn new(interval_ns: u64, bound_ns: u64, now_ns: u64) -> Detector {
        let interval_ns = interval_ns.max(1);
        let bound_ns = bound_ns.max(interval_ns.saturating_mul(2));
        Detector { interval_ns, bound_ns, heard_ns: now_ns, checked_ns: now_ns, closed: false }
    }

    /// Anything valid came from the peer.
    pub fn heard(&mut self, now_ns: u64) {
        self.heard_ns = self.heard_ns.max(now_ns);
    }

    /// The transport says that the connection is closed or the queue pair broken.
    pub fn closed(&mut self) {
        self.closed = true;
    }

    /// To be called at least once an interval, after everything received was reported by [`Detector::heard`].
    pub fn check(&mut self, now_ns: u64) -> Verdict {
        let gap = now_ns.saturating_sub(self.checked_ns);
        self.checked_ns = self.checked_ns.max(now_ns);
        if gap > self.bound_ns {
            self.heard_ns = self.heard_ns.max(now_ns);
            return Verdict::Stalled(gap);
        }
        if self.closed {
            return Verdict::Closed;
        }
        let silent = now_ns.saturating_sub(self.heard_ns);
        if silent > self.bound_ns { Verdict::Silent(silent) } else { Verdict::Alive }
    }

    /// When the next check is due.
    #[must_use]
    pub fn deadline_ns(&self) -> u64 {
        self.checked_ns.saturating_add(self.interval_ns)
    }

    /// The silence that means gone, in nanoseconds.
    #[must_use]
    pub fn bound_ns(&self) -> u64 {
        self.bound_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn a_peer_that_beats_is_alive() {
        let mut d = Detector::new(10 * MS, 50 * MS, 0);
        for t in 1..100 {
            d.heard(t * 10 * MS);
            assert_eq!(d.check(t * 10 * MS), Verdict::Alive);
        }
    }

    #[test]
    fn silence_longer_than_the_bound_is_reported_once_past_it() {
        let mut d = Detector::new(10 * MS, 50 * MS, 0);
        for t in 1..=5 {
            assert_eq!(d.check(t * 10 * MS), Verdict::Alive);
        }
        assert_eq!(d.check(60 * MS), Verdict::Silent(60 * MS));
    }

    #[test]
    fn a_closed_connection_is_reported_at_once() {
        let mut d = Detector::new(10 * MS, 50 * MS, 0);
        d.closed();
        assert_eq!(d.check(1), Verdict::Closed);
    }

    #[test]
    fn a_node_that_slept_blames_itself_and_not_its_peer() {
        let mut d = Detector::new(10 * MS, 50 * MS, 0);
        assert_eq!(d.check(500 * MS), Verdict::Stalled(500 * MS));
        assert_eq!(d.check(510 * MS), Verdict::Alive);
    }

    #[test]
    fn a_clock_that_goes_back_is_no_verdict() {
        let mut d = Detector::new(10 * MS, 50 * MS, 100 * MS);
        assert_eq!(d.check(0), Verdict::Alive);
        assert_eq!(d.check(100 * MS), Verdict::Alive);
    }
}
