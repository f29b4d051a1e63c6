//! Links between nodes: two connections each, in order within a connection and not between them, delayed, cut, broken.

use disk_buffer::{Identity, Plan};
use failover::{Detector, Event, Verdict};
use types::Generation;
use types::event::Role;

use super::messages::{Channel, Happening, Message};
use super::world::{HEARTBEAT_NS, SILENCE_NS, World};
use super::{MS, NODES};

/// A link. Side 0 is the primary's, side 1 the standby's.
#[derive(Debug)]
pub(super) struct Link {
    pub slots: [usize; 2],
    instances: [u64; 2],
    open: [bool; 2],
    /// When the newest message to each side on each connection arrives.
    newest: [[u64; 2]; 2],
    /// Messages sent to each side on each connection, and taken there.
    sent: [[u64; 2]; 2],
    taken: [[u64; 2]; 2],
}

impl World {
    /// Heartbeats, silence, connecting, and the cores' own deadlines.
    pub(super) fn tick(&mut self, slot: usize) {
        let now = self.now;
        let process = &mut self.processes[slot];
        process.tick_at_ns = u64::MAX;
        let gap = now - process.checked_ns;
        process.checked_ns = now;
        if let Some(detector) = &mut process.detector {
            match detector.check(now) {
                Verdict::Alive | Verdict::Stalled(_) => {}
                Verdict::Closed => self.peer_gone(slot, "connection closed"),
                Verdict::Silent(_) => self.peer_gone(slot, "heartbeats silent"),
            }
        }
        if gap > SILENCE_NS {
            self.node(slot, Event::Stalled { gap_ns: gap });
        }
        self.node(slot, Event::Tick);
        self.pipeline(slot, primary::core::Event::Tick);
        if self.processes[slot].link.is_some() && now >= self.processes[slot].heartbeat_ns {
            self.processes[slot].heartbeat_ns = now + HEARTBEAT_NS;
            self.say(slot, Channel::Control, Message::Heartbeat);
        }
        if self.processes[slot].link.is_none() && self.processes[slot].node.accepts_standby() && now >= self.processes[slot].connect_ns {
            self.processes[slot].connect_ns = now + 4 * MS;
            self.connect(slot);
        }
    }

    pub(super) fn schedule_tick(&mut self, slot: usize) {
        let process = &self.processes[slot];
        if !process.runs() {
            return;
        }
        let mut next = process.checked_ns + HEARTBEAT_NS;
        for deadline in [process.node.deadline_ns(), process.pipeline.deadline_ns()].into_iter().flatten() {
            next = next.min(deadline);
        }
        let next = next.max(self.now + 1000);
        if next < process.tick_at_ns {
            let instance = process.instance;
            self.processes[slot].tick_at_ns = next;
            self.at(next, Happening::Tick { slot, instance });
        }
    }

    fn cut(&self, a: usize, b: usize) -> bool {
        self.now < self.isolated_until[a].max(self.isolated_until[b])
    }

    fn connect(&mut self, from: usize) {
        let slot = (from + 1 + self.rng.between(0, NODES as u64 - 1) as usize) % NODES;
        if self.cut(from, slot) {
            return;
        }
        let (from_instance, generation) = (self.processes[from].instance, self.processes[from].node.generation());
        let travel = self.delay();
        let disk = Box::new(self.disks[from].identity());
        self.later(travel, Happening::Hello { slot, from, from_instance, generation, disk });
    }

    pub(super) fn hello(&mut self, slot: usize, from: usize, from_instance: u64, generation: Generation, disk: &Identity) {
        let process = &self.processes[slot];
        if process.node.role() == Role::Primary && process.node.generation() > generation {
            let newer = Happening::Newer { slot: from, instance: from_instance, generation: process.node.generation() };
            let travel = self.delay();
            self.later(travel, newer);
        }
        if !self.processes[slot].node.accepts_primary() || self.processes[slot].holding.is_some() {
            return;
        }
        let own = self.disks[slot].identity();
        let plan = self.disk_plan(disk, &own);
        match &plan {
            Plan::Refuse(_) => {
                self.oracle.stats.refused_disks += 1;
                return;
            }
            Plan::Full(_) => self.oracle.stats.full_copies += 1,
            Plan::Regions(_) | Plan::Nothing => self.oracle.stats.partial_copies += 1,
        }
        // Before the answer.
        self.disks[slot].join(&plan, disk);
        let link = self.links.len();
        self.links.push(Link {
            slots: [from, slot],
            instances: [from_instance, self.processes[slot].instance],
            open: [true, true],
            newest: [[0; 2]; 2],
            sent: [[0; 2]; 2],
            taken: [[0; 2]; 2],
        });
        self.attach(slot, link);
        self.hold_for(slot, link, generation);
        self.node(slot, Event::PrimaryLinked { generation });
        self.say(slot, Channel::Control, Message::Welcome(Box::new([disk.clone(), own])));
    }

    pub(super) fn attach(&mut self, slot: usize, link: usize) {
        let process = &mut self.processes[slot];
        process.link = Some(link);
        process.detector = Some(Detector::new(HEARTBEAT_NS, SILENCE_NS, self.now));
    }

    fn side(&self, slot: usize, link: usize) -> usize {
        usize::from(self.links[link].slots[1] == slot)
    }

    /// Sends on the process's link, if it has one that is open.
    pub(super) fn say(&mut self, slot: usize, channel: Channel, message: Message) {
        if let Some(link) = self.processes[slot].link {
            let side = self.side(slot, link);
            if self.links[link].open[side] {
                self.send(link, 1 - side, channel, message);
            }
        }
    }

    fn send(&mut self, link: usize, to: usize, channel: Channel, message: Message) {
        let travel = self.delay();
        let newest = &mut self.links[link].newest[to][channel as usize];
        *newest = (self.now + travel).max(*newest + 1);
        let at = *newest;
        let number = self.links[link].sent[to][channel as usize];
        self.links[link].sent[to][channel as usize] += 1;
        self.at(at, Happening::Deliver { link, side: to, message, channel, number });
    }

    pub(super) fn deliver(&mut self, (link, side, channel): (usize, usize, Channel), number: u64, message: Message) {
        let [a, b] = self.links[link].slots;
        if self.cut(a, b) {
            // Nothing is lost: it is sent again when the way is free, still in its order.
            let free = self.isolated_until[a].max(self.isolated_until[b]);
            self.at(free, Happening::Deliver { link, side, message, channel, number });
            return;
        }
        let slot = self.links[link].slots[side];
        if !self.links[link].open[side] || self.processes[slot].instance != self.links[link].instances[side] {
            return;
        }
        let taken = &mut self.links[link].taken[side][channel as usize];
        if number != *taken {
            // Those before it waited as well, for another reason: it is not to overtake them.
            self.later(10_000, Happening::Deliver { link, side, message, channel, number });
            return;
        }
        *taken += 1;
        if let Message::Welcome(disks) = message {
            self.welcomed(slot, link, &disks);
            return;
        }
        if self.processes[slot].link != Some(link) {
            return;
        }
        if let Some(detector) = &mut self.processes[slot].detector {
            detector.heard(self.now);
        }
        match message {
            Message::Welcome(_) | Message::Heartbeat => {}
            Message::Closed => self.peer_gone(slot, "connection closed"),
            Message::Shutdown => self.told_of_end(slot),
            Message::Recorded { generation } => self.node(slot, Event::Recorded { generation }),
            Message::Sight { generation, trouble } if generation == self.processes[slot].node.generation() => {
                self.node(slot, Event::StandbySight { trouble });
            }
            Message::Sight { .. } => {}
            Message::Sync { page, value } => self.sync_part(slot, page, value),
            Message::Block { region, value } => {
                self.disks[slot].sync_block(region, value);
            }
            Message::Durable { generation, epoch } if generation == self.processes[slot].node.generation() => {
                if let Some(epoch) = self.disks[slot].peer_durable(epoch) {
                    let (instance, session) = (self.processes[slot].instance, self.disks[slot].session);
                    let after = self.rng.between(MS / 2, 8 * MS);
                    self.later(after, Happening::Clear { slot, instance, session, epoch });
                }
            }
            Message::Durable { .. } => {}
            Message::Part(part) => self.part(slot, *part),
            Message::Commit { generation, epoch } => {
                self.pipeline(slot, primary::core::Event::Committed { generation, epoch });
            }
        }
    }

    pub(super) fn refuse(&mut self, link: usize) {
        self.links[link].open[0] = false;
        self.send(link, 1, Channel::Control, Message::Closed);
    }

    /// The shell's own reaction to a lost peer.
    pub(super) fn peer_gone(&mut self, slot: usize, cause: &str) {
        self.processes[slot].detector = None;
        self.pipeline(slot, primary::core::Event::LinkLost);
        self.standby_link_lost(slot);
        self.node(slot, Event::PeerGone { cause: cause.to_owned() });
    }

    /// Closes the process's side of its link; the other side is told, if it is there.
    pub(super) fn drop_link(&mut self, slot: usize) {
        self.processes[slot].detector = None;
        if !self.processes[slot].gated {
            self.disks[slot].unlink();
        }
        if let Some(link) = self.processes[slot].link.take() {
            let side = self.side(slot, link);
            if std::mem::take(&mut self.links[link].open[side]) {
                // As a reset or as an orderly end: past what is still on its way, or behind it.
                let channel = if self.rng.permille(500) { Channel::Data } else { Channel::Control };
                self.send(link, 1 - side, channel, Message::Closed);
            }
        }
    }

    /// The network breaks the process's link and tells both sides, each in its own time.
    pub(super) fn break_link(&mut self, slot: usize) {
        if let Some(link) = self.processes[slot].link {
            self.send(link, 0, Channel::Control, Message::Closed);
            self.send(link, 1, Channel::Control, Message::Closed);
        }
    }
}
