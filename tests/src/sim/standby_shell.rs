//! The shell of a standby: staging, committing, applying, activating, as the orders of `failover::core` and `replica::core` say.

use std::collections::VecDeque;

use disk_buffer::{Identity, Plan};
use failover::{Action, Event};
use primary::core::{Mode, Pipeline};
use replica::core::{Action as Order, Event as Said, Standby};
use types::{Epoch, Generation};

use super::MS;
use super::faults::Sabotage;
use super::guest::{Guest, PAGES};
use super::messages::{Channel, Happening, Message, Part, Todo};
use super::primary_shell::answers;
use super::process::{Holding, buffer, policy};
use super::world::World;

/// Output of so many epochs is kept to be sent again: as many as may be in flight.
const RESEND_EPOCHS: usize = 3;

impl World {
    pub(super) fn hold_for(&mut self, slot: usize, link: usize, generation: Generation) {
        self.processes[slot].ended = false;
        self.processes[slot].holding = Some(Holding {
            link,
            core: Standby::new(generation),
            pages: [0; PAGES],
            partial: None,
            staged: VecDeque::new(),
            resend: VecDeque::new(),
            frozen: None,
        });
    }

    fn standby(&mut self, slot: usize, event: Said) {
        let mut actions = Vec::new();
        let process = &mut self.processes[slot];
        if let Some(holding) = &mut process.holding {
            holding.core.handle(event, &mut actions);
            process.todo.extend(actions.into_iter().map(Todo::Standby));
        }
    }

    /// Sabotage: the standby has decided to activate, and the link stays as it was.
    pub(super) fn goes_on_committing(&self, slot: usize) -> bool {
        self.processes[slot].holding.as_ref().is_some_and(|h| h.frozen.is_some())
    }

    pub(super) fn standby_link_lost(&mut self, slot: usize) {
        if self.sabotage != Some(Sabotage::CommitAfterDecision) {
            self.standby(slot, Said::LinkLost);
        }
    }

    pub(super) fn sync_part(&mut self, slot: usize, page: usize, value: u64) {
        self.standby(slot, Said::SyncPart);
        if let Some(holding) = &mut self.processes[slot].holding {
            holding.pages[page] = value;
        }
    }

    /// What a primary's disk and a standby's make necessary; as both of them find out.
    pub(super) fn disk_plan(&self, primary: &Identity, standby: &Identity) -> Plan {
        match disk_buffer::plan(primary, standby) {
            Plan::Regions(_) if self.sabotage == Some(Sabotage::TrustReturning) => Plan::Nothing,
            plan => plan,
        }
    }

    /// A standby's copy, and one that was just activated, is made durable in the background.
    fn settle_soon(&mut self, slot: usize) {
        let after = self.rng.between(MS, 12 * MS);
        let (instance, session) = (self.processes[slot].instance, self.disks[slot].session);
        self.later(after, Happening::Settle { slot, instance, session });
    }

    pub(super) fn settle(&mut self, slot: usize, session: u64) {
        if self.disks[slot].session != session {
            return;
        }
        let news = self.disks[slot].settle();
        let generation = self.processes[slot].holding.as_ref().map(|holding| holding.core.generation());
        if let (Some(epoch), Some(generation)) = (news, generation) {
            self.say(slot, Channel::Control, Message::Durable { generation, epoch });
        }
    }

    pub(super) fn part(&mut self, slot: usize, part: Part) {
        let (generation, epoch) = (part.generation, part.epoch);
        if part.corrupt && self.sabotage != Some(Sabotage::TrustCorrupt) {
            self.standby(slot, Said::Corrupt { what: format!("digest of part {} of epoch {epoch}", part.index) });
            return;
        }
        self.standby(slot, Said::PartVerified { generation, epoch });
        let Some(holding) = &mut self.processes[slot].holding else { return };
        if part.index == 0 {
            if self.sabotage == Some(Sabotage::ApplyBeforeCommit) {
                self.disks[slot].apply(holding.core.committed(), &part.writes);
            }
            holding.partial = Some(part);
            return;
        }
        let Some(first) = holding.partial.take_if(|first| first.epoch == epoch) else {
            self.standby(slot, Said::Corrupt { what: format!("epoch {epoch} lacks a part") });
            return;
        };
        let before = holding.core.committed();
        self.standby(slot, Said::EpochComplete { generation, epoch });
        let Some(holding) = &mut self.processes[slot].holding else { return };
        if holding.core.committed() == epoch && before != epoch {
            holding.resend.push_back(part.output.clone());
            if holding.resend.len() > RESEND_EPOCHS {
                holding.resend.pop_front();
            }
            holding.staged.push_back((epoch, [first, part]));
            self.oracle.standby_committed(generation, epoch);
        }
    }

    pub(super) fn standby_action(&mut self, slot: usize, order: Order) {
        match order {
            Order::Commit { generation, epoch } => {
                self.node(slot, Event::Committed { epoch });
                self.say(slot, Channel::Control, Message::Commit { generation, epoch });
            }
            Order::Apply(epoch) => {
                if let Some(link) = self.processes[slot].holding.as_ref().map(|h| h.link) {
                    let after = self.rng.between(20_000, 400_000);
                    let instance = self.processes[slot].instance;
                    self.later(after, Happening::ApplyDone { slot, instance, link, epoch });
                }
            }
            Order::DiscardTorn(_) => {
                self.oracle.stats.torn += 1;
                if self.sabotage != Some(Sabotage::ActivateTorn)
                    && let Some(holding) = &mut self.processes[slot].holding
                {
                    holding.partial = None;
                }
            }
            Order::DropLink(fault) => {
                self.drop_link(slot);
                self.node(slot, Event::PeerGone { cause: fault.to_string() });
            }
        }
    }

    /// Epochs are applied in order: one whose turn has not come waits for the earlier ones.
    pub(super) fn applied(&mut self, slot: usize, link: usize, epoch: Epoch) {
        let Some(mut holding) = self.processes[slot].holding.as_mut().filter(|h| h.link == link) else { return };
        while holding.staged.front().is_some_and(|(first, _)| *first <= epoch) {
            let Some((applied, parts)) = holding.staged.pop_front() else { return };
            for part in &parts {
                Holding::put(&mut holding.pages, part);
            }
            holding.core.handle(Said::Applied { epoch: applied }, &mut Vec::new());
            let generation = holding.core.generation();
            self.disks[slot].apply(applied, &parts[1].writes);
            let checked = self.oracle.follows(slot, (generation, applied), &self.disks[slot]);
            self.check(checked);
            let Some(again) = self.processes[slot].holding.as_mut() else { return };
            holding = again;
        }
        self.settle_soon(slot);
    }

    pub(super) fn told_of_end(&mut self, slot: usize) {
        self.processes[slot].ended = true;
        self.node(slot, Event::PeerShutdown { reason: "powered off".to_owned() });
    }

    pub(super) fn standby_order(&mut self, slot: usize, action: Action) {
        match action {
            Action::StopCommitting if self.sabotage == Some(Sabotage::CommitAfterDecision) => {
                if let Some(holding) = &mut self.processes[slot].holding {
                    holding.frozen = Some((holding.core.committed(), holding.finished()));
                }
            }
            Action::StopCommitting => {
                self.standby(slot, Said::StopCommitting);
                if self.sabotage == Some(Sabotage::ActivateWithoutGrant)
                    && let Some(holding) = &self.processes[slot].holding
                    && holding.core.activation_point().is_some()
                {
                    let generation = holding.core.generation().next();
                    self.activate(slot, generation);
                }
            }
            Action::Activate { generation } => self.activate(slot, generation),
            // With it goes everything held.
            _ => {
                self.processes[slot].holding = None;
                self.processes[slot].fencing = None;
            }
        }
    }

    fn activate(&mut self, slot: usize, generation: Generation) {
        let Some(mut holding) = self.processes[slot].holding.take() else {
            self.violate("S2", format!("n{slot} is to activate and holds nothing"));
            return;
        };
        if self.processes[slot].ended {
            self.violate("order", format!("n{slot} activates a guest that ended on purpose"));
        }
        let (point, mut pages) = match holding.frozen {
            Some((epoch, pages)) => (Some(epoch), pages),
            None => (holding.core.activation_point(), holding.finished()),
        };
        let Some(point) = point else {
            self.violate("S2", format!("n{slot} is to activate and has nothing to activate from"));
            return;
        };
        if self.sabotage == Some(Sabotage::ActivateTorn)
            && let Some(part) = holding.partial.take().filter(|p| p.epoch == point.next())
        {
            Holding::put(&mut pages, &part);
        }
        let guest = Guest { pages, dirty: 0 };
        for (epoch, parts) in &holding.staged {
            self.disks[slot].apply(*epoch, &parts[1].writes);
        }
        let checked = self.oracle.follows(slot, (holding.core.generation(), point), &self.disks[slot]);
        self.check(checked);
        self.disks[slot].activate(&mut self.rng);
        self.settle_soon(slot);
        let instance = self.processes[slot].instance;
        let checked = self.oracle.activates(slot, instance, generation, (holding.core.generation(), point), guest);
        self.check(checked);
        let process = &mut self.processes[slot];
        process.guest = Some(guest);
        process.vm_life = self.life;
        process.guest_held = false;
        process.captures.clear();
        process.held_shared = false;
        process.buffer = buffer(self.plan.buffer_frames);
        process.pipeline = Pipeline::new(policy());
        // What was committed and may not have been issued is issued again.
        self.issue_soon(slot);
        self.pipeline(slot, primary::core::Event::Mode { mode: Mode::Unprotected, generation });
        for output in holding.resend {
            for answer in answers(&output) {
                self.release_open(slot, answer);
            }
        }
    }
}
