//! The primary's half: start, bring a standby in, go on alone, lose.
//!
//! Lives here: what a primary does on its events and on what it learns of the record. Guards S3's two orders (see [`super`]).

use types::NodeId;

use super::sight::Sight;
use super::{Action, Event, Node, Over, State, Wish};
use crate::record::Record;

impl Node {
    pub(super) fn handle_primary(&mut self, event: Event, now_ns: u64, actions: &mut Vec<Action>) {
        match event {
            Event::StandbyLinked { node } => self.standby_linked(node, actions),
            Event::SyncReady => self.sync_ready(actions),
            Event::FirstCommit { epoch } if epoch.0 > 0 => {
                if let State::Opening { committed, .. } = &mut self.state {
                    *committed = true;
                    self.protect_if_complete(actions);
                }
            }
            Event::PeerGone { cause } => self.standby_gone(&cause, actions),
            Event::Stalled { gap_ns } => {
                self.doubt(&format!("did not run for {} ms: output is held until the record is read", gap_ns / 1_000_000), actions);
            }
            Event::Confirm { gap_ns } => {
                let reason =
                    format!("granted: the last look is {} ms ago, so the record is read before the guest is started", gap_ns / 1_000_000);
                self.doubt(&reason, actions);
            }
            Event::NewerGeneration { generation } if generation > self.generation => self.watch_at_ns = Some(now_ns),
            Event::GuestEnded { reason } => self.guest_ended(reason, actions),
            Event::StandbySight { trouble } => self.told_sight(trouble, actions),
            Event::DiskFailed { reason } => self.disk_failed(reason, actions),
            Event::ShutOut { reason } => self.fence(&format!("shut out of a shared disk: {reason}"), actions),
            _ => {}
        }
    }

    /// What this node knows may be over: nothing leaves before the record was read.
    fn doubt(&mut self, reason: &str, actions: &mut Vec<Action>) {
        // Every answer that is already on its way speaks of the time before.
        self.ask.forget();
        self.ask.no_pause();
        if !matches!(self.state, State::Striking | State::Ending) && !self.on_hold {
            self.on_hold = true;
            actions.push(Action::HoldRelease);
            self.report(reason, actions);
        }
    }

    fn standby_linked(&mut self, node: NodeId, actions: &mut Vec<Action>) {
        if self.state != State::Alone || node == self.config.me {
            actions.push(Action::DropLink);
            return;
        }
        let reason = format!("copying memory to {node}");
        self.state = State::Copying { standby: node };
        self.sight_unknown();
        self.report(&reason, actions);
    }

    /// Gate first. The request to record the standby is made after this action, in the same batch.
    fn sync_ready(&mut self, actions: &mut Vec<Action>) {
        if let State::Copying { standby } = &self.state {
            self.state = State::Opening { standby: standby.clone(), recorded: false, committed: false };
            actions.push(Action::Gate);
            self.ask.no_pause();
        }
    }

    fn protect_if_complete(&mut self, actions: &mut Vec<Action>) {
        if let State::Opening { standby, recorded: true, committed: true } = &self.state {
            let standby = standby.clone();
            self.state = State::Protected { standby: standby.clone() };
            if self.give_up_if_asked(actions) {
                return;
            }
            actions.push(Action::Protect);
            self.report_standby(&standby, actions);
        }
    }

    /// What this primary's standby is good for.
    pub(super) fn report_standby(&self, standby: &NodeId, actions: &mut Vec<Action>) {
        let reason = match &self.sight {
            Sight::Clear => format!("{standby} is recorded and has committed"),
            Sight::Unknown => format!("{standby} is recorded and has committed; it has not said yet that it sees the record"),
            Sight::Blind(trouble) => format!("{standby} has committed and could not take over now: {trouble}"),
        };
        self.report(&reason, actions);
    }

    /// Only a standby that is recorded, has committed and sees the record can take over. Before it can, the failed request waits; without one the shell answers it.
    fn disk_failed(&mut self, reason: String, actions: &mut Vec<Action>) {
        if matches!(self.state, State::Protected { .. } | State::Copying { .. } | State::Opening { .. }) {
            self.disk_failed.get_or_insert(reason);
            self.give_up_if_asked(actions);
        }
    }

    /// Gives up for a disk that failed, if the standby can take over by now. Says whether it did.
    pub(super) fn give_up_if_asked(&mut self, actions: &mut Vec<Action>) -> bool {
        let useful = matches!(self.state, State::Protected { .. }) && self.sight == Sight::Clear;
        let Some(reason) = self.disk_failed.take_if(|_| useful) else { return false };
        self.give_up(&reason, actions);
        true
    }

    /// Ends this node's part so that the standby takes over at once: it sees the link closed and was told of no other end.
    fn give_up(&mut self, reason: &str, actions: &mut Vec<Action>) {
        self.state = State::Stopped;
        self.on_hold = false;
        self.watch_at_ns = None;
        actions.push(Action::ShutGate);
        actions.push(Action::GiveUp { reason: reason.to_owned() });
        actions.push(Action::DropLink);
        self.report(&format!("giving up for the standby to take over: {reason}"), actions);
    }

    fn standby_gone(&mut self, cause: &str, actions: &mut Vec<Action>) {
        self.disk_failed = None;
        match &self.state {
            State::Copying { .. } => {
                // Nothing of this generation is committed anywhere and no standby was ever recorded in it: the output stayed open.
                self.state = State::Alone;
                actions.push(Action::DropLink);
                self.report(&format!("standby lost while memory was copied: {cause}"), actions);
            }
            State::Opening { .. } | State::Protected { .. } => {
                self.state = State::Striking;
                actions.push(Action::Hold);
                actions.push(Action::DropLink);
                self.ask.no_pause();
                self.report(&format!("standby lost: {cause}; asking to go on alone"), actions);
            }
            _ => actions.push(Action::DropLink),
        }
    }

    fn guest_ended(&mut self, reason: String, actions: &mut Vec<Action>) {
        match &self.state {
            State::Alone | State::Copying { .. } => {
                if matches!(self.state, State::Copying { .. }) {
                    actions.push(Action::TellShutdown { reason: reason.clone() });
                    actions.push(Action::DropLink);
                }
                self.state = State::Stopped;
                self.report(&reason, actions);
                actions.push(Action::Finished);
            }
            State::Opening { .. } | State::Protected { .. } => {
                self.state = State::Ending;
                self.ask.no_pause();
                actions.push(Action::TellShutdown { reason: reason.clone() });
                self.report(&reason, actions);
            }
            State::Striking => self.state = State::Ending,
            _ => {}
        }
    }

    /// The swap that starts a VM, from the record as known. `None`: not known, or not to be had.
    pub(super) fn claim(&self) -> Option<Wish> {
        let record = self.ask.view()?;
        let generation = record.as_ref().map_or(self.generation, |r| r.generation).next();
        let new = Record { unfenced: self.left_by(record.as_ref()), ..self.mine(generation, None) };
        Some(Wish::Swap { expect: record.clone(), new })
    }

    /// The swap that names the standby.
    pub(super) fn record_standby(&self, standby: &NodeId) -> Option<Wish> {
        let record = self.current()?;
        Some(Wish::Swap { expect: Some(record.clone()), new: self.mine(self.generation, Some(standby.clone())) })
    }

    /// The swap after which no other node can be granted the guest from anything of this generation.
    pub(super) fn strike_out(&self) -> Option<Wish> {
        let record = self.current()?;
        Some(Wish::Swap { expect: Some(record.clone()), new: self.mine(self.generation.next(), None) })
    }

    /// The record as known, if it is this node's in this generation.
    pub(super) fn current(&self) -> Option<&Record> {
        let record = self.ask.view()?.as_ref()?;
        (record.generation == self.generation && record.is_owned_by(&self.config.me, self.config.instance)).then_some(record)
    }

    pub(super) fn learned_starting(&mut self, record: Option<Record>, now_ns: u64, actions: &mut Vec<Action>) {
        let State::Starting { over } = &mut self.state else { return };
        if *over == Over::Anything {
            *over = Over::This(record.clone());
        }
        let (vouched, changed) = match over {
            Over::This(first) => (*first == record, *first != record),
            Over::Anything | Over::Nobody => (false, false),
        };
        let Some(record) = record else { return };
        let me = &self.config.me;
        let generation = record.generation;
        if record.is_owned_by(me, self.config.instance) {
            self.generation = generation;
            return self.granted(record, true, now_ns, actions);
        }
        let here = record.owner_left().is(me, self.config.host);
        let refusal = match &record.standby {
            _ if vouched => return,
            _ if changed => format!(
                "the arbiter's record changed while this start was asked for, to {} in generation {generation}{}: somebody else is alive; \
                 find out who runs this VM, then start this node again",
                record.owner,
                record.standby.as_ref().map(|standby| format!(" with {standby} as its standby")).unwrap_or_default()
            ),
            _ if record.owner == *me && !here => format!(
                "another host of the name {me} (identity {}; this one has {}) owns this VM in generation {generation}: give each host another --node; if this is that host, installed anew, and nothing of the old one runs any more, start \
                 this node with --abandon-standby",
                record.host.map(|host| host.to_string()).unwrap_or_default(),
                self.config.host.map(|host| host.to_string()).unwrap_or_default()
            ),
            Some(standby) if record.owner == *me => format!(
                "{me} ran this VM in generation {generation} with {standby} as its standby, which may hold the running guest: \
                 let it take over and start this node as its standby, or, if {standby} is lost too, start again with --abandon-standby"
            ),
            None if record.owner == *me => return,
            Some(standby) if standby == me => {
                format!("{} runs this VM in generation {generation} and {me} is its standby: start this node as the standby", record.owner)
            }
            _ => format!(
                "{} runs this VM in generation {generation}: start this node as its standby; if {} is dead for good, start \
                 this node with --abandon-standby",
                record.owner, record.owner
            ),
        };
        self.state = State::Stopped;
        self.generation = generation;
        actions.push(Action::Refused { reason: refusal.clone() });
        self.report(&refusal, actions);
    }

    pub(super) fn learned_primary(&mut self, record: Option<Record>, now_ns: u64, actions: &mut Vec<Action>) {
        let Some(record) = record.filter(|r| r.generation >= self.generation) else {
            // Somebody removed the record or put an old one back. That grants nothing to anybody; no answer is no grant.
            self.ask.again(now_ns);
            self.unanswered("the record is gone or is older than this node's grant", now_ns, actions);
            return;
        };
        let mine = record.is_owned_by(&self.config.me, self.config.instance);
        let struck_out = mine && record.generation == self.generation.next() && matches!(self.state, State::Striking | State::Ending);
        if struck_out {
            self.alone_again(&record, now_ns, actions);
        } else if mine && record.generation == self.generation {
            self.confirmed(&record, now_ns, actions);
        } else {
            let reason = format!(
                "{} was granted generation {}; this node's generation {} is over",
                record.owner, record.generation, self.generation
            );
            self.fence(&reason, actions);
        }
    }

    fn confirmed(&mut self, record: &Record, now_ns: u64, actions: &mut Vec<Action>) {
        self.watch_from(now_ns);
        if self.on_hold {
            self.on_hold = false;
            actions.push(Action::ResumeRelease);
            self.report("the record still grants the guest to this node", actions);
        }
        let generation = self.generation;
        if let State::Opening { standby, recorded, .. } = &mut self.state
            && !*recorded
            && record.standby.as_ref() == Some(standby)
        {
            *recorded = true;
            actions.push(Action::TellRecorded { generation });
            self.protect_if_complete(actions);
        }
    }

    fn alone_again(&mut self, record: &Record, now_ns: u64, actions: &mut Vec<Action>) {
        self.generation = record.generation;
        let ending = self.state == State::Ending;
        self.state = if ending { State::Stopped } else { State::Alone };
        if std::mem::take(&mut self.on_hold) {
            actions.push(Action::ResumeRelease);
        }
        actions.push(Action::Ungate { generation: record.generation });
        if ending {
            self.watch_at_ns = None;
            actions.push(Action::DropLink);
            self.report("the guest ended and its standby is released", actions);
            actions.push(Action::Finished);
        } else {
            self.watch_from(now_ns);
            self.report("granted to go on alone: running without a standby", actions);
        }
    }

    /// The loser stops its guest for good and shuts the gate.
    fn fence(&mut self, reason: &str, actions: &mut Vec<Action>) {
        let ending = self.state == State::Ending;
        self.state = State::Stopped;
        self.on_hold = false;
        self.watch_at_ns = None;
        actions.push(Action::ShutGate);
        actions.push(Action::StopGuest { reason: reason.to_owned() });
        actions.push(Action::DropLink);
        self.report(reason, actions);
        if ending {
            actions.push(Action::Finished);
        }
    }
}
