//! Whether the standby can reach the record that it would take over by: at the standby, which reads it, and at the primary, which is told.
//!
//! Lives here: how long the record may be out of reach before somebody is told, and what is told. Guards no safety property: whoever runs the guest is decided by swaps
//! alone, output leaves by commits as ever, and nobody is struck out for it. It guards the operator's belief: a standby that cannot ask cannot take over, and
//! `protected` must not be said of it. A pair whose storage was away for a moment stays a pair.

use super::{Action, Node, State};
use crate::record::Record;

/// What is known of the standby's way to the record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Sight {
    /// The standby has not said yet.
    Unknown,
    /// The standby has read the record itself, and it was as it must be.
    Clear,
    /// It cannot, for this reason.
    Blind(String),
}

impl Node {
    /// Standby: a read of the record was answered, and the answer is as it must be.
    pub(super) fn sees(&mut self, actions: &mut Vec<Action>) {
        self.dim_since_ns = None;
        let before = std::mem::replace(&mut self.sight, Sight::Clear);
        // That a node which nobody waits for finds an arbiter is no news.
        if before == Sight::Clear || (before == Sight::Unknown && self.state == State::Waiting) {
            return;
        }
        actions.push(Action::TellSight { trouble: None });
        match self.state {
            State::Standing { committed: true, recorded: true } => {
                self.report("this standby is recorded, has committed a whole epoch and sees the record", actions);
            }
            State::Waiting => self.report("the arbiter answers: waiting for a primary", actions),
            _ => {}
        }
    }

    /// Standby: the record could not be read, or is not as it must be. Told at once where that can be no matter of a moment (nothing was ever read, and no primary waits), else
    /// when it has lasted; then again when the reason is another.
    pub(super) fn dim(&mut self, trouble: &str, now_ns: u64, actions: &mut Vec<Action>) {
        let lasted_ns = now_ns.saturating_sub(*self.dim_since_ns.get_or_insert(now_ns));
        let tell = match &self.sight {
            Sight::Unknown => self.state == State::Waiting || lasted_ns >= self.config.first_sight_ns,
            Sight::Clear => lasted_ns >= self.config.blind_ns,
            Sight::Blind(told) => told != trouble && lasted_ns >= self.config.blind_ns,
        };
        if !tell {
            return;
        }
        self.dim_since_ns = Some(now_ns);
        self.sight = Sight::Blind(trouble.to_owned());
        actions.push(Action::TellSight { trouble: Some(trouble.to_owned()) });
        match self.state {
            State::Waiting => self.report(&format!("no primary is let in: {trouble}"), actions),
            _ => self.report(&format!("this standby could not take over now: {trouble}"), actions),
        }
    }

    /// Standby, recorded: what it makes of the record of its own generation, which its primary says names it.
    pub(super) fn judge(&mut self, record: &Record, now_ns: u64, actions: &mut Vec<Action>) {
        if record.standby.as_ref() == Some(&self.config.me) {
            return self.sees(actions);
        }
        let trouble =
            format!("the record that {me} reads does not name it as {owner}'s standby; {SAME}", me = self.config.me, owner = record.owner);
        self.dim(&trouble, now_ns, actions);
    }

    /// What is known of the last link's standby, or of the time without one, says nothing of what comes now.
    pub(super) fn sight_unknown(&mut self) {
        self.sight = Sight::Unknown;
        self.dim_since_ns = None;
    }

    /// Primary: the standby says whether it sees the record.
    pub(super) fn told_sight(&mut self, trouble: Option<String>, actions: &mut Vec<Action>) {
        let (State::Copying { standby } | State::Opening { standby, .. } | State::Protected { standby }) = &self.state else { return };
        let standby = standby.clone();
        let sight = trouble.map_or(Sight::Clear, Sight::Blind);
        if self.sight == sight {
            return;
        }
        self.sight = sight;
        if matches!(self.state, State::Protected { .. }) {
            self.report_standby(&standby, actions);
            self.give_up_if_asked(actions);
        }
    }
}

/// What to do about a standby that reads another record than its primary.
pub(super) const SAME: &str = "give both nodes the same --arbiter, on storage that both see";

/// What is said of an arbiter that gives no answer.
pub(super) fn unread(why: &str) -> String {
    format!("the arbiter gives no answer to the standby: {why}")
}
