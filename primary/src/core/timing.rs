//! When the open epoch should end, and how often it is worth looking.
//!
//! Lives here: the policy and its arithmetic. Not here: whether an epoch may end at all ([`super::Pipeline`]). Guards nothing: an epoch that
//! ends at another time is as safe.

use types::Epoch;

use super::EndReason;

/// When epochs end. Times in nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// How long output waits at most before its epoch ends while commits are outstanding: then it is better to gather more and pause less often.
    pub output_wait_ns: u64,
    /// How long output waits while no commit is outstanding: long enough for the device to hand over the rest of one burst.
    pub gather_ns: u64,
    /// Dirty pages that end an epoch: 4096 pages pause the guest for about 1.7 ms.
    pub dirty_budget_pages: u64,
    /// Something dirty is sent after so long at the latest: bounds what a failover takes back from a guest that says nothing.
    pub longest_ns: u64,
    /// Epochs captured and not committed at most (each holds a staging slot on either side). When reached the open epoch grows instead.
    pub max_in_flight: usize,
    /// The dirty set is estimated no more often than this.
    pub sample_min_ns: u64,
    /// An idle guest's dirty set is estimated this rarely.
    pub sample_max_ns: u64,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            output_wait_ns: 200_000,
            gather_ns: 15_000,
            dirty_budget_pages: 4096,
            longest_ns: 25_000_000,
            max_in_flight: 4,
            sample_min_ns: 1_000_000,
            sample_max_ns: 100_000_000,
        }
    }
}

/// The first pause after a failed capture; doubles up to the longest interval.
const CAPTURE_RETRY_NS: u64 = 500_000;

/// How far the epochs before the open one are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flights {
    /// All committed.
    None,
    /// All on their way to the standby or there, not all committed.
    Sent,
    /// At least one waits to be encoded or is being so. Another would wait behind it: nothing that the open epoch holds would leave earlier by its end, and
    /// what comes after its end would leave later. So output and age wait; a dirty set that would make the pause long does not, nor does a buffer that gets full.
    Queued,
}

/// The open epoch's clockwork.
#[derive(Debug)]
pub(super) struct Timing {
    policy: Policy,
    opened_ns: u64,
    output_since_ns: Option<u64>,
    pressure: bool,
    /// Output of the next epoch that was reported before the open one was reported captured.
    next_output_since_ns: Option<u64>,
    next_pressure: bool,
    dirty_pages: u64,
    sample_every_ns: u64,
    sample_at_ns: u64,
    not_before_ns: u64,
    retry_ns: u64,
}

impl Timing {
    pub(super) fn new(policy: Policy) -> Timing {
        Timing {
            sample_every_ns: policy.sample_min_ns,
            policy,
            opened_ns: 0,
            output_since_ns: None,
            pressure: false,
            next_output_since_ns: None,
            next_pressure: false,
            dirty_pages: 0,
            sample_at_ns: 0,
            not_before_ns: 0,
            retry_ns: CAPTURE_RETRY_NS,
        }
    }

    pub(super) fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The first epoch of a generation opens.
    pub(super) fn open(&mut self, now_ns: u64) {
        *self = Timing::new(self.policy.clone());
        self.opened_ns = now_ns;
        self.sample_at_ns = now_ns.saturating_add(self.sample_every_ns);
    }

    pub(super) fn output(&mut self, first: bool, pressure: bool, now_ns: u64) {
        if first {
            self.output_since_ns.get_or_insert(now_ns);
        }
        self.pressure |= pressure;
    }

    pub(super) fn next_output(&mut self, first: bool, pressure: bool, now_ns: u64) {
        if first {
            self.next_output_since_ns.get_or_insert(now_ns);
        }
        self.next_pressure |= pressure;
    }

    pub(super) fn dirty(&mut self, pages: u64, now_ns: u64) {
        self.dirty_pages = pages;
        self.sample_every_ns = if pages == 0 {
            self.sample_every_ns.saturating_mul(2).clamp(self.policy.sample_min_ns, self.policy.sample_max_ns)
        } else {
            self.until_half_budget(pages, now_ns)
        };
        self.sample_at_ns = now_ns.saturating_add(self.sample_every_ns);
    }

    /// How long it takes, at the rate of the open epoch, to dirty half of the budget.
    fn until_half_budget(&self, pages: u64, now_ns: u64) -> u64 {
        let elapsed = u128::from(now_ns.saturating_sub(self.opened_ns));
        let half = elapsed * u128::from(self.policy.dirty_budget_pages / 2) / u128::from(pages.max(1));
        let longest = self.policy.longest_ns.max(self.policy.sample_min_ns);
        u64::try_from(half).unwrap_or(u64::MAX).clamp(self.policy.sample_min_ns, longest)
    }

    /// The open epoch was captured with so many pages; the next one is open.
    pub(super) fn captured(&mut self, pages: u64, now_ns: u64) {
        if pages > 0 {
            self.sample_every_ns = self.until_half_budget(pages, now_ns);
        }
        self.opened_ns = now_ns;
        self.dirty_pages = 0;
        self.output_since_ns = self.next_output_since_ns.take();
        self.pressure = std::mem::take(&mut self.next_pressure);
        self.retry_ns = CAPTURE_RETRY_NS;
        self.not_before_ns = 0;
        self.sample_at_ns = now_ns.saturating_add(self.sample_every_ns);
    }

    pub(super) fn capture_failed(&mut self, now_ns: u64) {
        // What was said of the next epoch belongs to this one: nothing was sealed.
        if let Some(since) = self.next_output_since_ns.take() {
            self.output_since_ns.get_or_insert(since);
        }
        self.pressure |= std::mem::take(&mut self.next_pressure);
        self.not_before_ns = now_ns.saturating_add(self.retry_ns);
        self.retry_ns = self.retry_ns.saturating_mul(2).min(self.policy.longest_ns.max(CAPTURE_RETRY_NS));
    }

    /// When the output that is pending now has waited long enough.
    fn output_due_ns(&self, flights: Flights) -> Option<u64> {
        let wait = match flights {
            Flights::None => self.policy.gather_ns.min(self.policy.output_wait_ns),
            Flights::Sent | Flights::Queued => self.policy.output_wait_ns,
        };
        self.output_since_ns.map(|since| since.saturating_add(wait))
    }

    /// Why the open epoch should end now, if it should.
    pub(super) fn end_reason(&self, open: Epoch, flights: Flights, now_ns: u64) -> Option<EndReason> {
        if now_ns < self.not_before_ns {
            return None;
        }
        if open == Epoch::NONE.next() {
            return Some(EndReason::First);
        }
        if self.pressure {
            return Some(EndReason::Pressure);
        }
        if self.dirty_pages >= self.policy.dirty_budget_pages.max(1) {
            return Some(EndReason::Dirty);
        }
        if flights == Flights::Queued {
            return None;
        }
        if self.output_due_ns(flights).is_some_and(|due| now_ns >= due) {
            return Some(EndReason::Output);
        }
        let old = now_ns >= self.opened_ns.saturating_add(self.policy.longest_ns);
        (old && self.dirty_pages > 0).then_some(EndReason::Interval)
    }

    /// Whether the dirty set should be estimated now; the next time is set.
    pub(super) fn sample_due(&mut self, now_ns: u64) -> bool {
        let due = now_ns >= self.sample_at_ns;
        if due {
            self.sample_at_ns = now_ns.saturating_add(self.sample_every_ns.max(1));
        }
        due
    }

    /// When [`Timing::end_reason`] or [`Timing::sample_due`] will have something to say.
    pub(super) fn deadline_ns(&self, open: Epoch, flights: Flights) -> u64 {
        let mut at = self.sample_at_ns;
        if open == Epoch::NONE.next() || self.pressure {
            at = 0;
        }
        if flights != Flights::Queued {
            if let Some(due) = self.output_due_ns(flights) {
                at = at.min(due);
            }
            if self.dirty_pages > 0 {
                at = at.min(self.opened_ns.saturating_add(self.policy.longest_ns));
            }
        }
        at.max(self.not_before_ns)
    }
}
