//! Between the grant and the guest: older owners are shut out of the shared disks.
//!
//! Lives here: what a node does that has the grant and may not run yet. Not here: how owners are shut out ([`crate::fence`]). Guards S3 and S4 on shared disks: nothing boots or activates before [`Event::Fenced`] for this very
//! grant, nor after a sleep before the record was read again.

use super::{Action, Event, Node, State, Wish};
use crate::fence::Predecessor;
use crate::record::Record;

impl Node {
    /// This node was granted the guest by `record`.
    pub(super) fn granted(&mut self, record: Record, boot: bool, now_ns: u64, actions: &mut Vec<Action>) {
        self.watch_from(now_ns);
        if !self.config.fence {
            return self.run(boot, actions);
        }
        self.state = State::Fencing { boot, fenced: false, sure: true };
        let old = record.unfenced.clone();
        self.report("granted: shutting older owners out of the shared disks", actions);
        actions.push(Action::Fence { record, old });
    }

    fn run(&mut self, boot: bool, actions: &mut Vec<Action>) {
        let generation = self.generation;
        self.state = State::Alone;
        if boot {
            actions.push(Action::Boot { generation });
            self.report("granted: running without a standby", actions);
        } else {
            actions.push(Action::Activate { generation });
            self.report("granted: activating", actions);
        }
    }

    pub(super) fn handle_fencing(&mut self, event: Event, now_ns: u64, actions: &mut Vec<Action>) {
        let State::Fencing { fenced, sure, .. } = &mut self.state else { return };
        match event {
            Event::Fenced { generation } if generation == self.generation => {
                *fenced = true;
                self.run_if_fenced(actions);
            }
            Event::FenceFailed { generation, why } if generation == self.generation => {
                // It may have learned that the grant is over.
                self.watch_at_ns = Some(now_ns);
                self.report(&format!("nobody runs the guest until older owners are shut out of its shared disks: {why}"), actions);
            }
            Event::Stalled { .. } => {
                *sure = false;
                self.ask.forget();
                self.ask.no_pause();
            }
            Event::PrimaryLinked { .. } | Event::StandbyLinked { .. } => actions.push(Action::DropLink),
            _ => {}
        }
    }

    fn run_if_fenced(&mut self, actions: &mut Vec<Action>) {
        if let State::Fencing { boot, fenced: true, sure: true } = self.state {
            self.run(boot, actions);
        }
    }

    pub(super) fn learned_fencing(&mut self, record: Option<Record>, now_ns: u64, actions: &mut Vec<Action>) {
        let State::Fencing { boot, sure, .. } = &mut self.state else { return };
        let boot = *boot;
        let Some(record) = record.filter(|r| r.generation >= self.generation) else {
            *sure = false;
            self.ask.again(now_ns);
            self.report("nobody runs the guest: the record is gone or is older than this node's grant", actions);
            return;
        };
        if record.generation == self.generation && record.is_owned_by(&self.config.me, self.config.instance) {
            *sure = true;
            self.watch_from(now_ns);
            return self.run_if_fenced(actions);
        }
        let reason = format!(
            "{} was granted generation {} before this node's grant of generation {} came to anything",
            record.owner, record.generation, self.generation
        );
        self.watch_at_ns = None;
        if boot {
            self.state = State::Stopped;
            actions.push(Action::Refused { reason: reason.clone() });
            self.report(&reason, actions);
        } else {
            self.stand_down(&reason, actions);
        }
    }

    /// Whom the one who replaces `record` has to shut out: whoever was not yet, and its owner. This node itself, on this very host, needs no shutting out: its disks' locks say that no older process of its host is left. A host of the
    /// same name that is another host does.
    pub(super) fn left_by(&self, record: Option<&Record>) -> Vec<Predecessor> {
        let Some(record) = record.filter(|_| self.config.fence) else { return Vec::new() };
        let mut left: Vec<Predecessor> = Vec::new();
        for old in record.unfenced.iter().cloned().chain([record.owner_left()]) {
            if !old.is(&self.config.me, self.config.host) && !left.contains(&old) {
                left.push(old);
            }
        }
        left
    }

    /// Whether the record still names nodes that this one has shut out.
    pub(super) fn leaves_unfenced(&self) -> bool {
        self.current().is_some_and(|record| !record.unfenced.is_empty())
    }

    /// The swap that says that they are.
    pub(super) fn mark_fenced(&self) -> Option<Wish> {
        let record = self.current()?;
        Some(Wish::Swap { expect: Some(record.clone()), new: Record { unfenced: Vec::new(), ..record.clone() } })
    }
}
