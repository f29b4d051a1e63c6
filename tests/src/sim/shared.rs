//! A disk that all nodes can write to, and its fence.
//!
//! Lives here: a device with a persistent reservation (one type, one key; a node is a nexus), the steps of `failover::fence` with time between them, so that a node can die or sleep in each gap, and the guest's writes to the
//! device: held until their epoch is committed where there is a standby, then issued some time later, perhaps by a node that slept in between. Not here: their content (`disk.rs` has the mirror's). Defends S3 and S4: no write of
//! an old generation lands after the new one's first.

use std::collections::BTreeSet;

use failover::Event;
use types::Generation;

use super::MS;
use super::faults::Sabotage;
use super::messages::Happening;
use super::world::World;

/// The device.
#[derive(Debug, Default)]
pub(super) struct SharedDisk {
    registered: BTreeSet<usize>,
    holder: Option<usize>,
    /// The newest grant of which a write has landed.
    newest: Generation,
}

impl SharedDisk {
    fn accepts(&self, slot: usize) -> bool {
        self.holder.is_none() || self.registered.contains(&slot)
    }

    /// Reserve, preempt, register, reserve: refused where another has removed this node's registration.
    fn take(&mut self, slot: usize) -> bool {
        if !self.registered.contains(&slot) {
            return false;
        }
        self.registered.retain(|other| *other == slot);
        self.holder = Some(slot);
        true
    }
}

/// The steps of a fence that take their own time.
#[derive(Clone, Copy, Debug)]
pub(super) enum FenceStep {
    Register,
    Confirm,
    Take,
}

impl World {
    /// Granted: older owners are to be shut out.
    pub(super) fn begin_fence(&mut self, slot: usize, generation: Generation) {
        self.processes[slot].fencing = Some(generation);
        self.fence_later(slot, generation, FenceStep::Register);
    }

    fn fence_later(&mut self, slot: usize, generation: Generation, step: FenceStep) {
        let after = self.rng.between(50_000, 2 * MS);
        self.later(after, Happening::Fence { slot, instance: self.processes[slot].instance, generation, step });
    }

    pub(super) fn fence_step(&mut self, slot: usize, generation: Generation, step: FenceStep) {
        if self.processes[slot].fencing != Some(generation) {
            return;
        }
        if self.sabotage == Some(Sabotage::NoFence) {
            return self.fenced(slot, generation);
        }
        if self.rng.permille(self.plan.fail_fence) {
            return self.fence_failed(slot, generation, "no answer");
        }
        match step {
            FenceStep::Register => {
                self.shared.registered.insert(slot);
                self.fence_later(slot, generation, FenceStep::Confirm);
            }
            FenceStep::Confirm => match self.confirms(slot, generation) {
                None => self.fence_failed(slot, generation, "the arbiter gives no answer"),
                Some(true) => self.fence_later(slot, generation, FenceStep::Take),
                Some(false) => {
                    self.processes[slot].fencing = None;
                    self.node(slot, Event::FenceFailed { generation, why: "over".to_owned() });
                }
            },
            FenceStep::Take if self.shared.take(slot) => self.fenced(slot, generation),
            FenceStep::Take => self.fence_failed(slot, generation, "preempted"),
        }
    }

    fn fenced(&mut self, slot: usize, generation: Generation) {
        self.oracle.stats.fenced += 1;
        self.processes[slot].fencing = None;
        self.processes[slot].fenced_in = generation;
        self.node(slot, Event::Fenced { generation });
    }

    fn fence_failed(&mut self, slot: usize, generation: Generation, why: &str) {
        self.node(slot, Event::FenceFailed { generation, why: why.to_owned() });
        let again = self.rng.between(MS / 2, 4 * MS);
        let instance = self.processes[slot].instance;
        self.later(again, Happening::Fence { slot, instance, generation, step: FenceStep::Register });
    }

    /// The guest has written: soon, where nobody holds it back.
    pub(super) fn issue_soon(&mut self, slot: usize) {
        if self.plan.shared {
            let after = self.rng.between(20_000, 2 * MS);
            self.later(after, Happening::Issue { slot, instance: self.processes[slot].instance });
        }
    }

    /// A write reaches the device.
    pub(super) fn issue(&mut self, slot: usize) {
        let process = &self.processes[slot];
        if process.guest.is_none() {
            // Fenced, or ended: what was held is dropped.
            return;
        }
        let generation = process.fenced_in;
        if !self.shared.accepts(slot) {
            self.oracle.stats.shut_out += 1;
            self.node(slot, Event::ShutOut { reason: "reservation conflict".to_owned() });
        } else if generation < self.shared.newest {
            let newest = self.shared.newest;
            self.violate(
                "S3",
                format!("n{slot}'s write of generation {generation} lands on the shared disk after one of generation {newest}"),
            );
        } else {
            self.shared.newest = generation;
        }
    }
}
