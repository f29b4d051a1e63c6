//! The standby's half: hold a copy, and take over when its primary is gone and the arbiter grants it.
//!
//! Lives here: what a standby does on its events and on what it learns of the record. Guards S3: it stops committing before it asks.

use types::Generation;

use super::sight::SAME;
use super::{Action, Event, Node, State, Wish};
use crate::record::Record;

impl Node {
    pub(super) fn handle_standby(&mut self, event: Event, actions: &mut Vec<Action>) {
        match (event, &mut self.state) {
            (Event::PrimaryLinked { generation }, State::Waiting) => self.linked(generation, actions),
            (Event::PrimaryLinked { .. }, _) => actions.push(Action::DropLink),
            (Event::Committed { epoch }, State::Standing { committed, recorded }) if epoch.0 > 0 && !*committed => {
                *committed = true;
                if *recorded {
                    self.report("a whole epoch is committed and this standby is recorded", actions);
                }
            }
            (Event::Recorded { generation }, State::Standing { committed, recorded }) if generation == self.generation && !*recorded => {
                *recorded = true;
                let complete = *committed;
                // The record is read now: to see that it is the primary's, and so that a takeover needs one question less.
                self.ask.forget();
                self.ask.no_pause();
                if complete {
                    self.report("this standby is recorded and a whole epoch is committed", actions);
                }
            }
            (Event::PeerGone { cause }, State::Standing { committed: true, .. }) => {
                self.state = State::Seeking;
                self.watch_at_ns = None;
                actions.push(Action::StopCommitting);
                actions.push(Action::DropLink);
                // The grant does not wait for a look that nobody needs any more.
                self.ask.drop_question();
                self.ask.no_pause();
                self.report(&format!("primary lost: {cause}; asking for the grant"), actions);
            }
            (Event::PeerGone { cause }, State::Standing { committed: false, .. }) => {
                self.stand_down(&format!("primary lost before the first whole epoch: {cause}"), actions);
            }
            (Event::Spoilt { reason }, State::Standing { .. } | State::Seeking) => self.stand_down(&reason, actions),
            (Event::PeerShutdown { reason }, State::Standing { .. }) => {
                self.stand_down(&format!("the guest ended on purpose: {reason}"), actions);
            }
            _ => {}
        }
    }

    fn linked(&mut self, generation: Generation, actions: &mut Vec<Action>) {
        self.state = State::Standing { committed: false, recorded: false };
        self.watch_at_ns = None;
        self.sight_unknown();
        self.generation = generation;
        self.ask.forget();
        self.report("a primary is linked and copies its memory", actions);
    }

    /// Back to the start: what is held is worthless or not wanted. Nothing is committed after it.
    pub(super) fn stand_down(&mut self, reason: &str, actions: &mut Vec<Action>) {
        self.state = State::Waiting;
        self.sight_unknown();
        self.watch_at_ns = (self.config.watch_ns > 0).then_some(0);
        self.ask.forget();
        self.ask.no_pause();
        actions.push(Action::StopCommitting);
        actions.push(Action::DropLink);
        actions.push(Action::StandDown { reason: reason.to_owned() });
        self.report(reason, actions);
    }

    /// The swap that grants the guest to this standby, if the record is known and names it.
    pub(super) fn take_over(&self) -> Option<Wish> {
        let record = self.ask.view()?.as_ref()?;
        let named = record.generation == self.generation && record.standby.as_ref() == Some(&self.config.me);
        let new = Record { unfenced: self.left_by(Some(record)), ..self.mine(self.generation.next(), None) };
        named.then(|| Wish::Swap { expect: Some(record.clone()), new })
    }

    pub(super) fn learned_standby(&mut self, record: Option<Record>, now_ns: u64, actions: &mut Vec<Action>) {
        let Some(record) = record.filter(|r| r.generation >= self.generation) else {
            let why = format!("there is no record, or one older than the epochs held here; {SAME}");
            if self.state == State::Seeking {
                self.ask.again(now_ns);
            } else {
                self.watch_from(now_ns);
            }
            return self.unanswered(&why, now_ns, actions);
        };
        let seeking = self.state == State::Seeking;
        if record.generation == self.generation && !seeking {
            self.watch_from(now_ns);
            self.judge(&record, now_ns, actions);
        } else if record.generation == self.generation {
            if record.standby.as_ref() != Some(&self.config.me) {
                // A primary that died with its request under way may yet have recorded us: keep what is held, and look again.
                self.ask.again(now_ns);
                self.report("not activating: the record does not name this standby", actions);
            }
        } else if seeking && record.generation == self.generation.next() && record.is_owned_by(&self.config.me, self.config.instance) {
            self.generation = record.generation;
            self.granted(record, false, now_ns, actions);
        } else {
            self.stand_down(&format!("{} was granted generation {}", record.owner, record.generation), actions);
        }
    }
}
