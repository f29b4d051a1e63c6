//! How often a scenario goes round: its least and most, and the share of the time that the suite has. Pure but for the clock. Not here: what a round is.

use std::time::{Duration, Instant};

use crate::error::LabError;

/// Rounds of a scenario, and what it may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rounds {
    /// With fewer it has proved nothing, and fails.
    pub least: u32,
    /// More are not done in the suite, even when there is time.
    pub most: u32,
    /// In the soak.
    pub soak: u32,
    /// Its share of a budget, in parts of the sum of all shares: what it takes on a quiet machine, seconds.
    pub share: u32,
}

impl Rounds {
    /// As they are, or exactly `count`, or those of the soak.
    #[must_use]
    pub fn chosen(self, count: Option<u32>, soak: bool) -> Rounds {
        match count.or(soak.then_some(self.soak)) {
            Some(count) => Rounds { least: count, most: count, ..self },
            None => self,
        }
    }

    /// Exactly `count` rounds in the suite.
    #[must_use]
    pub const fn exactly(count: u32, soak: u32, share: u32) -> Rounds {
        Rounds { least: count, most: count, soak, share }
    }
}

/// Counts rounds and watches the time.
#[derive(Debug)]
pub struct Turns {
    least: u32,
    most: u32,
    done: u32,
    begun: Instant,
    /// The time it has, from its begin; none: as long as it takes.
    time: Option<Time>,
    /// When the round that is under way was begun.
    round: Option<Instant>,
    longest: Duration,
}

impl Turns {
    /// For a scenario that begins now and has `time`.
    #[must_use]
    pub fn new(Rounds { least, most, .. }: Rounds, time: Option<Time>) -> Turns {
        Turns { least, most, done: 0, begun: Instant::now(), time, round: None, longest: Duration::ZERO }
    }

    /// Rounds that were ended.
    #[must_use]
    pub fn done(&self) -> u32 {
        self.done
    }

    /// The most rounds there can be.
    #[must_use]
    pub fn most(&self) -> u32 {
        self.most
    }

    /// Ends the round before, if there was one; whether another shall be begun. One that the scenario could do without is begun only if the longest
    /// so far would fit in.
    ///
    /// # Errors
    /// All time is used up and the least is not done: [`LabError::TooSlow`].
    pub fn another(&mut self) -> Result<bool, LabError> {
        if let Some(begun) = self.round.take() {
            self.done += 1;
            self.longest = self.longest.max(begun.elapsed());
        }
        if self.done >= self.most {
            return Ok(false);
        }
        if let Some(Time { share, limit }) = self.time {
            let used = self.begun.elapsed();
            if self.done >= self.least && used + self.longest > share {
                return Ok(false);
            }
            if self.done < self.least && used > limit {
                return Err(LabError::TooSlow { done: self.done, least: self.least, share: limit, used });
            }
        }
        self.round = Some(Instant::now());
        Ok(true)
    }
}

/// What a scenario may take, from its begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Time {
    /// For as many rounds as fit in.
    pub share: Duration,
    /// For its least number of rounds, on a machine where they do not fit in: at the cost of those after it.
    pub limit: Duration,
}

/// What is left of the suite's time, dealt out by shares: what one scenario leaves over goes to those after it.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    until: Instant,
    /// A machine half as fast as the one that the shares were measured on still proves the least.
    limit: Instant,
    shares: u32,
}

impl Budget {
    /// `whole` from now on, for scenarios whose shares are `shares`.
    #[must_use]
    pub fn new(whole: Duration, shares: impl Iterator<Item = u32>) -> Budget {
        let now = Instant::now();
        Budget { until: now + whole, limit: now + whole * 2, shares: shares.sum() }
    }

    /// The time of the next scenario, whose share is `share`.
    pub fn deal(&mut self, share: u32) -> Time {
        let now = Instant::now();
        let left = self.until.saturating_duration_since(now);
        let part = left.mul_f64(f64::from(share) / f64::from(self.shares.max(1)));
        self.shares = self.shares.saturating_sub(share);
        Time { share: part, limit: self.limit.saturating_duration_since(now) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUNDS: Rounds = Rounds { least: 2, most: 4, soak: 9, share: 30 };

    fn time(share: u64, limit: u64) -> Option<Time> {
        Some(Time { share: Duration::from_secs(share), limit: Duration::from_secs(limit) })
    }

    fn all(turns: &mut Turns) -> Result<u32, LabError> {
        while turns.another()? {}
        Ok(turns.done())
    }

    #[test]
    fn a_scenario_with_time_goes_its_most_rounds_and_one_without_its_least_or_fails() {
        assert_eq!(all(&mut Turns::new(ROUNDS, None)).expect("rounds"), 4);
        assert_eq!(all(&mut Turns::new(ROUNDS.chosen(None, true), None)).expect("rounds"), 9);
        assert_eq!(all(&mut Turns::new(ROUNDS, time(60, 60))).expect("rounds"), 4);
        assert_eq!(all(&mut Turns::new(ROUNDS, time(0, 60))).expect("rounds"), 2, "the least, beyond its share");
        let error = all(&mut Turns::new(ROUNDS, time(0, 0))).expect_err("too slow");
        assert!(matches!(error, LabError::TooSlow { done: 0, least: 2, .. }), "{error}");
    }

    #[test]
    fn a_round_that_would_not_fit_in_is_left_out_when_it_can_be() {
        let mut turns = Turns::new(ROUNDS, time(60, 60));
        turns.longest = Duration::from_secs(120);
        assert_eq!(all(&mut turns).expect("rounds"), 2);
    }

    #[test]
    fn what_one_scenario_leaves_over_goes_to_the_next() {
        let mut budget = Budget::new(Duration::from_secs(90), [30, 60].into_iter());
        let first = budget.deal(30);
        assert!(first.share <= Duration::from_secs(30) && first.share > Duration::from_secs(29));
        assert!(first.limit > Duration::from_secs(179), "twice the whole for what must be proved");
        assert!(budget.deal(60).share > Duration::from_secs(89));
    }
}
