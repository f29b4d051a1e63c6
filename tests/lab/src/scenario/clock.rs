//! A stock guest's wall clock around each failover (S5): read shortly before and after, judged in the end, when it is known how long the clients had to
//! wait. Not here: CLOCK_MONOTONIC on each processor, which the guest's own probes watch (`agent/clock.rs`).
//!
//! Right after its boot an emulated guest's wall clock is seconds behind (ticks were lost), and it may go at a rate of its own; a failover answers for
//! neither. So it is the *change* that is judged, less what the clock drifts by itself: that is measured between the failover before and this one.

use std::time::{Duration, Instant};

use super::stock;
use crate::error::LabError;
use crate::net::Network;

/// The guest's agent answers within milliseconds; after a failover, within a TCP retransmission.
const BOUND: Duration = Duration::from_secs(10);
/// What a failover may cost the wall clock beyond the blackout.
const MARGIN_NS: i64 = 10_000_000;
/// And no more than this, however long the blackout is: a failover moves the clock on by the time that the guest did not run. Emulated hosts lose ticks and are
/// late, by up to 0.2 s; silence alone counts as death after 1 s and more, which is what a clock that nobody moves would lose.
const MOST_NS: i64 = 800_000_000;
/// A stretch without a failover must be so long to tell a rate: readings are uncertain by some ten milliseconds.
const LEAST_STRETCH: Duration = Duration::from_secs(1);

/// A reading of the guest's wall clock against this machine's.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    offset_ns: i64,
    uncertain_ns: i64,
    at: Instant,
}

/// Reads the guest's wall clock.
///
/// # Errors
/// It does not answer.
pub fn read(network: &Network) -> Result<Reading, LabError> {
    let (offset_ns, trip) = stock::agent(network).clock_offset_ns(BOUND)?;
    // The reading was made some time between question and answer; an answer that waited for its commit was made early in that.
    Ok(Reading { offset_ns, uncertain_ns: (trip / 2) as i64, at: Instant::now() })
}

/// How far the clock went from one reading to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Change {
    moved_ns: i64,
    uncertain_ns: i64,
    within: Duration,
}

impl Change {
    fn between(first: Reading, second: Reading) -> Change {
        Change {
            moved_ns: second.offset_ns - first.offset_ns,
            uncertain_ns: first.uncertain_ns + second.uncertain_ns,
            within: second.at.saturating_duration_since(first.at),
        }
    }

    /// What of it would have come about in `within`.
    fn over(self, within: Duration) -> Change {
        let part = within.as_secs_f64() / self.within.as_secs_f64().max(f64::EPSILON);
        let scaled = |ns: i64| (ns as f64 * part) as i64;
        Change { moved_ns: scaled(self.moved_ns), uncertain_ns: scaled(self.uncertain_ns), within }
    }
}

#[derive(Clone, Copy, Debug)]
struct Failover {
    /// Which of the row's blackouts is its own.
    fault: usize,
    across: Change,
    /// The stretch without a failover before it.
    control: Option<Change>,
}

/// All readings of a course.
#[derive(Debug, Default)]
pub struct Clocks {
    /// The newest after which there was no failover.
    newest: Option<Reading>,
    before: Option<(Reading, Option<Change>)>,
    failovers: Vec<Failover>,
}

impl Clocks {
    /// A reading in quiet times.
    pub fn quiet(&mut self, reading: Reading) {
        self.newest = Some(reading);
    }

    /// A reading shortly before a failover.
    pub fn before(&mut self, reading: Reading) {
        let control = self.newest.map(|newest| Change::between(newest, reading)).filter(|change| change.within >= LEAST_STRETCH);
        self.before = Some((reading, control));
    }

    /// A reading after a failover that is not judged, because nobody knew of it before: what was read so far says nothing about the next.
    pub fn again(&mut self, reading: Reading) {
        self.newest = Some(reading);
        if self.before.is_some() {
            self.before = Some((reading, None));
        }
    }

    /// A reading shortly after it; `fault` is the number of the fault that it came of.
    pub fn after(&mut self, reading: Reading, fault: usize) {
        if let Some((before, control)) = self.before.take() {
            self.failovers.push(Failover { fault, across: Change::between(before, reading), control });
        }
        self.newest = Some(reading);
    }

    /// A line for each failover, and whether its clock was right to within the blackout that clients saw ([`MOST_NS`] of it), plus the margin.
    #[must_use]
    pub fn judged(&self, blackouts_ms: &[f64]) -> Vec<(bool, String)> {
        self.failovers.iter().map(|failover| failover.judged(blackouts_ms.get(failover.fault).copied().unwrap_or(0.0))).collect()
    }
}

impl Failover {
    fn judged(&self, blackout_ms: f64) -> (bool, String) {
        // Without a control the clock is taken to keep time by itself.
        let none = Change { moved_ns: 0, uncertain_ns: 0, within: self.across.within };
        let drift = self.control.map_or(none, |control| control.over(self.across.within));
        let moved = self.across.moved_ns - drift.moved_ns;
        let uncertain = self.across.uncertain_ns + drift.uncertain_ns;
        let allowed = ((blackout_ms * 1e6) as i64).min(MOST_NS) + MARGIN_NS + uncertain;
        let ms = |ns: i64| ns as f64 / 1e6;
        let line = format!(
            "over failover {} the wall clock moved by {:.1} ms, {:.1} ms of it by a drift that it has without one, uncertain by {:.1} ms; blackout {blackout_ms:.1} ms",
            self.fault + 1,
            ms(self.across.moved_ns),
            ms(drift.moved_ns),
            ms(uncertain),
        );
        (moved.abs() <= allowed, line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readings(offsets_ms: [i64; 3]) -> Vec<(bool, String)> {
        let begin = Instant::now();
        let mut times = [0, 10, 12].into_iter();
        let [quiet, before, after] = offsets_ms.map(|ms| Reading {
            offset_ns: ms * 1_000_000,
            uncertain_ns: 1_000_000,
            at: begin + Duration::from_secs(times.next().unwrap_or_default()),
        });
        let mut clocks = Clocks::default();
        clocks.quiet(quiet);
        clocks.before(before);
        clocks.after(after, 0);
        clocks.judged(&[1000.0])
    }

    #[test]
    fn a_clock_that_nobody_moved_on_is_found() {
        assert!(readings([-5000, -5000, -5790])[0].0, "it is late");
        assert!(!readings([-5000, -5000, -6000])[0].0, "it stood still for the blackout");
        assert!(!readings([-5000, -5000, -3900])[0].0, "it went ahead");
    }

    #[test]
    fn what_a_clock_drifts_without_a_failover_is_no_fault_of_one_and_hides_none() {
        assert!(readings([0, 1000, 2005])[0].0, "0.1 of a second each second, and the most that may be lost");
        assert!(!readings([0, 1000, 2100])[0].0, "the same, and 100 ms more");
        assert!(!readings([0, 1000, 100])[0].0, "a drift forward does not hide a step back");
    }

    #[test]
    fn a_failover_is_judged_by_its_own_blackout() {
        let mut clocks = Clocks::default();
        let at = |ms: i64| Reading { offset_ns: ms * 1_000_000, uncertain_ns: 0, at: Instant::now() };
        for (fault, step) in [(0, 0), (1, 500)] {
            clocks.before(at(0));
            clocks.after(at(step), fault);
        }
        let judged = |blackouts: &[f64]| clocks.judged(blackouts).iter().map(|(right, _)| *right).collect::<Vec<_>>();
        assert_eq!(judged(&[1000.0, 100.0]), [true, false]);
        assert_eq!(judged(&[0.0, 500.0]), [true, true]);
    }
}
