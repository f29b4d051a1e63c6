//! The operator who forces a start (`--abandon-standby`), and what the operator vouches for.
//!
//! Lives here: the premise. A forced start replaces what the record names, so it cannot keep S3 where that still runs: a primary without a standby lets its output out until it reads the record
//! again. Therefore the operator makes certain that the owner and the standby of the record that the forced node reads are dead, and keeps them down until that node has its answer. With that, S1 to
//! S3 hold as ever: nothing of the abandoned guest is let out by what is still under way from the dead, nor by a node that the record did not name. S4 holds where the forced node is the one
//! that spoke to the clients last, since its disk has all that it told (`Oracle::starts`); what another node's disk lacks is given up by intent. Not here: crashes that nobody meant ([`super::faults`]).

use failover::{Event, Record};

use super::faults::Sabotage;
use super::messages::{Happening, name, slot_of};
use super::process::Life;
use super::world::World;
use super::{MS, NODES};

/// A forced start that has no answer yet.
#[derive(Debug, Default)]
pub(super) struct Forcing {
    /// The node.
    slot: Option<usize>,
    /// It has read the record, and asked for the guest: the operator's word is given.
    vouched: bool,
    /// Who is not started again before it has its answer.
    down: Vec<usize>,
}

impl World {
    /// The operator starts this node as the primary, whatever the record says.
    pub(super) fn force(&mut self, slot: usize) {
        // A node refuses a copy that no guest can start from before it asks the arbiter.
        if self.oracle.record.is_none() || !self.disks[slot].is_fit() {
            return;
        }
        // One forced start at a time: of two the second would replace what the operator has just started.
        if let Some(before) = self.forcing.slot.take().filter(|before| *before != slot) {
            self.cut_power(before);
        }
        self.forcing.slot = Some(slot);
        self.forcing.vouched = false;
        self.begin(slot, Event::StartPrimary { abandon_standby: true });
    }

    /// What a forced node reads names those who are dead for certain.
    pub(super) fn vouch(&mut self, slot: usize, read: Option<&Record>) {
        let Some(record) = read.filter(|_| self.is_forced(slot) && !self.forcing.vouched) else { return };
        if self.sabotage == Some(Sabotage::ForceBesideTheLiving) {
            return;
        }
        for other in (0..NODES).filter(|other| *other != slot) {
            if slot_of(record) == other || record.standby == Some(name(other)) {
                self.cut_power(other);
            }
        }
    }

    /// The node asks for the guest: what it read before is what the operator's word is for.
    pub(super) fn has_vouched(&mut self, slot: usize) {
        self.forcing.vouched |= self.is_forced(slot);
    }

    /// Certain death: nothing of the node runs, nor will by itself.
    fn cut_power(&mut self, slot: usize) {
        if self.processes[slot].life != Life::Dead {
            self.die(slot);
            self.disks[slot].crash(true, &mut self.rng);
        }
        // What would have started it again does not meet it any more.
        self.processes[slot].instance = self.new_instance();
        self.forcing.down.push(slot);
    }

    /// Whether this node was forced to start and has no answer yet.
    pub(super) fn is_forced(&self, slot: usize) -> bool {
        self.forcing.slot == Some(slot)
    }

    /// The forced node has its answer, or will never get one: the others may come back.
    pub(super) fn force_settled(&mut self, slot: usize) {
        if !self.is_forced(slot) {
            return;
        }
        self.forcing.slot = None;
        for down in std::mem::take(&mut self.forcing.down) {
            let back = self.rng.permille(self.plan.come_back);
            let primary = self.rng.permille(self.plan.come_back_primary);
            if back && down != slot {
                let after = self.rng.between(MS, 20 * MS);
                self.later(after, Happening::Restart { slot: down, instance: self.processes[down].instance, primary });
            }
        }
    }
}
