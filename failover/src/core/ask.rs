//! One question to the arbiter at a time, given up after a while, asked again with a growing pause.
//!
//! Lives here: bookkeeping of what was asked and of what is known of the record. Not here: what is asked and what follows. Guards S3:
//! after a request whose outcome is unknown nothing counts as known until the record was read again.

use super::{Action, Answer, Config, Request, RequestId};
use crate::record::Record;

#[derive(Clone, Debug)]
struct Pending {
    id: RequestId,
    give_up_ns: u64,
    /// What a swap would make of the record.
    proposed: Option<Record>,
}

/// What an answer came to.
pub(super) enum Outcome {
    /// To a question that was given up: it says nothing.
    Stale,
    /// The record is this (as of some moment after the question was asked).
    Known(Option<Record>),
    /// Nothing is known now.
    Failed(String),
}

/// What a node wants of the arbiter.
pub(super) enum Wish {
    Nothing,
    Read,
    Swap { expect: Option<Record>, new: Record },
}

#[derive(Clone, Debug)]
pub(super) struct Asker {
    next_id: RequestId,
    pending: Option<Pending>,
    /// The record as last answered, unless a request with an unknown outcome came after it.
    view: Option<Option<Record>>,
    retry_at_ns: Option<u64>,
    backoff_ns: u64,
    timeout_ns: u64,
    backoff_first_ns: u64,
    backoff_max_ns: u64,
    lost_in_a_row: u32,
}

impl Asker {
    pub(super) fn new(config: &Config) -> Asker {
        Asker {
            next_id: 1,
            pending: None,
            view: None,
            retry_at_ns: None,
            backoff_ns: config.backoff_first_ns,
            timeout_ns: config.request_timeout_ns.max(1),
            backoff_first_ns: config.backoff_first_ns.max(1),
            backoff_max_ns: config.backoff_max_ns.max(1),
            lost_in_a_row: 0,
        }
    }

    /// The record as far as it is known.
    pub(super) fn view(&self) -> Option<&Option<Record>> {
        self.view.as_ref()
    }

    /// Whether a question may be asked now.
    pub(super) fn idle(&self, now_ns: u64) -> bool {
        self.pending.is_none() && self.retry_at_ns.is_none_or(|at| now_ns >= at)
    }

    pub(super) fn read(&mut self, now_ns: u64, actions: &mut Vec<Action>) {
        self.ask(Request::Read, None, now_ns, actions);
    }

    pub(super) fn swap(&mut self, expect: Option<Record>, new: Record, now_ns: u64, actions: &mut Vec<Action>) {
        self.ask(Request::Swap { expect, new: new.clone() }, Some(new), now_ns, actions);
    }

    fn ask(&mut self, request: Request, proposed: Option<Record>, now_ns: u64, actions: &mut Vec<Action>) {
        let id = self.next_id;
        self.next_id += 1;
        self.retry_at_ns = None;
        self.pending = Some(Pending { id, give_up_ns: now_ns.saturating_add(self.timeout_ns), proposed });
        actions.push(Action::Arbiter { id, request });
    }

    pub(super) fn take(&mut self, id: RequestId, answer: Answer, now_ns: u64) -> Outcome {
        match self.pending.take() {
            Some(pending) if pending.id == id => self.settle(pending, answer, now_ns),
            other => {
                self.pending = other;
                Outcome::Stale
            }
        }
    }

    fn settle(&mut self, pending: Pending, answer: Answer, now_ns: u64) -> Outcome {
        let record = match (answer, pending.proposed) {
            (Answer::Read(record), None) => record,
            (Answer::Done, Some(new)) => {
                self.lost_in_a_row = 0;
                Some(new)
            }
            (Answer::Lost(record), Some(_)) => {
                // The first loss is answered at once with the record just learned. An arbiter that says "lost" again and again is not spun on.
                self.lost_in_a_row += 1;
                if self.lost_in_a_row > 1 {
                    self.back_off(now_ns);
                }
                self.view = Some(record.clone());
                return Outcome::Known(record);
            }
            (Answer::Failed { why }, _) => {
                self.view = None;
                self.back_off(now_ns);
                return Outcome::Failed(why);
            }
            (answer, _) => {
                self.view = None;
                self.back_off(now_ns);
                return Outcome::Failed(format!("the answer {answer:?} does not fit the question"));
            }
        };
        self.backoff_ns = self.backoff_first_ns;
        self.view = Some(record.clone());
        Outcome::Known(record)
    }

    /// Gives up a question that was not answered in time. Says whether one was.
    pub(super) fn expire(&mut self, now_ns: u64) -> bool {
        if self.pending.as_ref().is_some_and(|p| now_ns >= p.give_up_ns) {
            self.forget();
            self.back_off(now_ns);
            return true;
        }
        false
    }

    /// What was known is too old: whatever is answered to an earlier question does not count.
    pub(super) fn forget(&mut self) {
        self.pending = None;
        self.view = None;
    }

    /// A read that is under way is not waited for: what was known before it stands. Never to be called with a swap under way.
    pub(super) fn drop_question(&mut self) {
        debug_assert!(self.pending.as_ref().is_none_or(|pending| pending.proposed.is_none()), "a swap's outcome is not to be forgotten");
        self.pending = None;
    }

    /// What was learned does not help: read again after a pause.
    pub(super) fn again(&mut self, now_ns: u64) {
        self.view = None;
        self.back_off(now_ns);
    }

    /// Ask at once, whatever pause was set before: the question is another.
    pub(super) fn no_pause(&mut self) {
        self.retry_at_ns = None;
        self.backoff_ns = self.backoff_first_ns;
        self.lost_in_a_row = 0;
    }

    fn back_off(&mut self, now_ns: u64) {
        self.retry_at_ns = Some(now_ns.saturating_add(self.backoff_ns));
        self.backoff_ns = self.backoff_ns.saturating_mul(2).min(self.backoff_max_ns);
    }

    pub(super) fn deadline_ns(&self) -> Option<u64> {
        match &self.pending {
            Some(pending) => Some(pending.give_up_ns),
            None => self.retry_at_ns,
        }
    }
}
