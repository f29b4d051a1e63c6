//! The shell of a primary: the guest, its output, the epochs, as the orders of `failover::core` and `primary::core` say.

use disk_buffer::Identity;
use failover::{Action, Event};
use net_buffer::{BufferError, Held, StruckOut};
use primary::core::{Action as Order, Event as Said, Mode};
use types::{Commit, Epoch, Generation, Output, OutputPort};

use super::MS;
use super::faults::Sabotage;
use super::guest::{Answer, Guest, PAGES};
use super::messages::{Channel, Happening, Message, Part, name};
use super::oracle::Releaser;
use super::process::Capture;
use super::world::World;

/// The step of a first copy in which writes are recorded already.
const LAST_PASS: usize = PAGES + 2;
/// Which pages travel in an epoch's first part; the others travel in its last.
const FIRST_PART: u8 = 0b0011;

impl World {
    fn mode(&mut self, slot: usize, mode: Mode) {
        let generation = self.processes[slot].node.generation();
        self.pipeline(slot, Said::Mode { mode, generation });
    }

    pub(super) fn primary_order(&mut self, slot: usize, action: Action) {
        match action {
            Action::Boot { .. } => {
                let checked = self.oracle.starts(slot, &self.disks[slot], self.is_forced(slot));
                self.check(checked);
                self.force_settled(slot);
                self.new_life();
                self.disks[slot].start_primary(&mut self.rng);
                // A new machine, and a new file system.
                self.disks[slot].format();
                self.processes[slot].guest = Some(Guest::default());
                self.processes[slot].vm_life = self.life;
                self.issue_soon(slot);
                self.mode(slot, Mode::Unprotected);
            }
            Action::Fence { record, .. } => self.begin_fence(slot, record.generation),
            Action::Gate => self.gate(slot),
            Action::TellRecorded { generation } => self.say(slot, Channel::Control, Message::Recorded { generation }),
            Action::Protect => {
                self.oracle.stats.protections += 1;
                let checked = self.oracle.protects(slot, self.processes[slot].node.generation());
                self.check(checked);
                self.mode(slot, Mode::Protected);
            }
            Action::Hold => {
                self.mode(slot, Mode::Held);
                if self.sabotage == Some(Sabotage::UngateBeforeStrikeOut) {
                    self.ungate(slot, self.processes[slot].node.generation());
                }
            }
            Action::Ungate { generation } => {
                self.oracle.stats.strike_outs += 1;
                self.ungate(slot, generation);
            }
            Action::HoldRelease => self.pipeline(slot, Said::HoldRelease(true)),
            Action::ResumeRelease => self.pipeline(slot, Said::HoldRelease(false)),
            Action::TellShutdown { .. } => self.say(slot, Channel::Control, Message::Shutdown),
            Action::ShutGate if self.sabotage == Some(Sabotage::IgnoreFence) => self.ungate(slot, self.processes[slot].node.generation()),
            Action::ShutGate => {
                self.disks[slot].shut();
                let shut = self.processes[slot].buffer.shut();
                self.must(shut.map(|_| ()));
            }
            Action::StopGuest { .. } if self.sabotage == Some(Sabotage::IgnoreFence) => {}
            Action::StopGuest { .. } => {
                self.oracle.stats.fences += 1;
                self.processes[slot].guest = None;
                self.offer_as_standby(slot);
            }
            Action::GiveUp { .. } => {
                self.oracle.stats.give_ups += 1;
                self.processes[slot].guest = None;
                self.offer_as_standby(slot);
            }
            Action::Refused { .. } => {
                self.processes[slot].fencing = None;
                self.oracle.stats.refusals += 1;
                self.force_settled(slot);
                self.offer_as_standby(slot);
            }
            Action::Finished => self.processes[slot].guest = None,
            Action::Arbiter { .. }
            | Action::Report { .. }
            | Action::DropLink
            | Action::StopCommitting
            | Action::TellSight { .. }
            | Action::Activate { .. }
            | Action::StandDown { .. } => {}
        }
    }

    /// A node that lost starts again, as a standby.
    fn offer_as_standby(&mut self, slot: usize) {
        let after = self.rng.between(MS, 20 * MS);
        self.later(after, Happening::Restart { slot, instance: self.processes[slot].instance, primary: false });
    }

    fn gate(&mut self, slot: usize) {
        if self.sabotage == Some(Sabotage::RecordBeforeGate) {
            self.later(4 * MS, Happening::LateGate { slot, instance: self.processes[slot].instance });
        } else {
            self.close_gate(slot);
        }
    }

    pub(super) fn close_gate(&mut self, slot: usize) {
        let generation = self.processes[slot].node.generation();
        let gated = self.processes[slot].buffer.gate(generation);
        self.must(gated);
        self.processes[slot].gated = true;
        if self.sabotage == Some(Sabotage::RecordLate) {
            self.disks[slot].record(generation);
        }
        self.mode(slot, Mode::Gated);
    }

    fn ungate(&mut self, slot: usize, generation: Generation) {
        // What was held goes out as well.
        let process = &mut self.processes[slot];
        if std::mem::take(&mut process.held_shared) | process.captures.iter_mut().any(|c| std::mem::take(&mut c.shared)) {
            self.issue_soon(slot);
        }
        // Before anything is let out.
        self.disks[slot].struck_out(&mut self.rng);
        self.processes[slot].gated = false;
        let mut output = Vec::new();
        let opened = self.processes[slot]
            .buffer
            .open_after_strike_out(StruckOut::attest(generation))
            .map(|batch| batch.write_each(|piece| output.push(Answer::from_bytes(&piece.bytes))));
        self.must(opened.map(|_| ()));
        for answer in output {
            self.release_open(slot, answer);
        }
        self.mode(slot, Mode::Unprotected);
    }

    fn must(&mut self, done: Result<(), BufferError>) {
        if let Err(error) = done {
            self.violate("order", format!("the output buffer refused: {error}"));
        }
    }

    /// Output leaves through the open gate.
    pub(super) fn release_open(&mut self, slot: usize, answer: Answer) {
        self.release(slot, self.processes[slot].node.generation(), None, answer);
    }

    /// Output leaves: the oracle looks at it, and its client may get it.
    fn release(&mut self, slot: usize, generation: Generation, commit: Option<Epoch>, answer: Answer) {
        let process = &self.processes[slot];
        if process.vm_life != self.life {
            if commit.is_none() {
                self.violate("S3", format!("n{slot} released {answer:?} of a VM that was given up"));
            }
            return;
        }
        let by = Releaser { slot, instance: process.instance, generation, commit };
        let checked = self.oracle.released(by, answer);
        self.check(checked);
        if !self.rng.permille(self.plan.lose_frame) {
            let travel = self.delay();
            self.later(travel, Happening::Reply { life: self.life, client: answer.client, seq: answer.seq });
        }
    }

    pub(super) fn serve(&mut self, slot: usize, life: u64, client: usize, seq: u32) {
        let process = &mut self.processes[slot];
        if process.guest_held || process.vm_life != life || process.ended || !self.disks[slot].takes_writes() {
            return;
        }
        let Some(guest) = &mut process.guest else { return };
        let Some(answer) = guest.serve(client, seq) else {
            let owner = self.oracle.record.as_ref().is_some_and(|r| r.instance == process.instance);
            let last = guest.last(client);
            if owner && last.seq < seq {
                self.violate("S4", format!("n{slot} is asked for operation {seq} and knows only {last:?}"));
            }
            return;
        };
        // What is acknowledged is written and flushed.
        self.disks[slot].write_operation(&guest.pages, client);
        let event = match process.buffer.hold(OutputPort::Net(0), &answer.to_bytes()) {
            Held::PassThrough(_) => None,
            Held::Held { first, pressure } => Some(Said::Output { first, pressure }),
            Held::Full => Some(Said::OutputFull),
            Held::Shut => return,
        };
        if self.processes[slot].gated {
            self.processes[slot].held_shared = true;
        } else {
            self.issue_soon(slot);
        }
        match event {
            None => self.release_open(slot, answer),
            Some(event) => self.pipeline(slot, event),
        }
    }

    pub(super) fn welcomed(&mut self, slot: usize, link: usize, [own, disk]: &[Identity; 2]) {
        // An answer to a Hello of another time: its connection is long closed.
        let stale = !self.disks[slot].is_still(own);
        if stale || self.processes[slot].link.is_some() || !self.processes[slot].node.accepts_standby() {
            self.refuse(link);
            return;
        }
        self.attach(slot, link);
        let standby = name(self.links[link].slots[1]);
        self.node(slot, Event::StandbyLinked { node: standby });
        self.mode(slot, Mode::Syncing);
        let plan = self.disk_plan(own, disk);
        self.disks[slot].begin_copy(&plan, disk);
        if let Some(guest) = &mut self.processes[slot].guest {
            guest.dirty = 0;
        }
        self.sync_next(slot, link, 0);
    }

    /// Memory is copied while the guest runs.
    pub(super) fn sync_next(&mut self, slot: usize, link: usize, page: usize) {
        if self.processes[slot].link != Some(link) {
            return;
        }
        let Some(guest) = self.processes[slot].guest else { return };
        // The disk first, then memory, then what was written to the disk meanwhile; after that, with every write recorded, the last of it.
        let generation = self.processes[slot].node.generation();
        let disk = &mut self.disks[slot];
        let passes = [0, PAGES, LAST_PASS].contains(&page);
        let block = if passes { disk.next() } else { None };
        let next = match block {
            Some((region, value)) => {
                self.say(slot, Channel::Data, Message::Block { region, value });
                page
            }
            None if page == LAST_PASS => {
                self.node(slot, Event::SyncReady);
                return;
            }
            None if page >= PAGES => {
                let again = page < LAST_PASS - 1 && disk.next_pass();
                if !again && self.sabotage != Some(Sabotage::RecordLate) {
                    disk.record(generation);
                }
                if again { PAGES } else { LAST_PASS }
            }
            None => {
                self.say(slot, Channel::Data, Message::Sync { page, value: guest.pages[page] });
                page + 1
            }
        };
        let after = self.rng.between(50_000, 800_000);
        self.later(after, Happening::SyncNext { slot, instance: self.processes[slot].instance, link, page: next });
    }

    pub(super) fn pipeline_action(&mut self, slot: usize, order: Order) {
        match order {
            Order::EndEpoch { generation, epoch, .. } => {
                let pause = self.rng.between(20_000, 300_000);
                self.later(pause, Happening::Capture { slot, instance: self.processes[slot].instance, generation, epoch });
            }
            Order::Release(commit) => self.release_commit(slot, commit),
            Order::FirstCommit(epoch) => self.node(slot, Event::FirstCommit { epoch }),
            Order::MergeBack(epoch) => {
                let process = &mut self.processes[slot];
                let back = process.captures.iter().filter(|c| c.epoch == epoch).fold(0, |mask, c| mask | c.mask);
                process.held_shared |= process.captures.iter().any(|c| c.epoch == epoch && c.shared);
                process.captures.retain(|c| c.epoch != epoch);
                if let Some(guest) = &mut process.guest {
                    guest.dirty |= back;
                }
            }
            Order::HoldGuest(_) => {
                self.oracle.stats.guest_holds += 1;
                self.processes[slot].guest_held = true;
            }
            Order::ResumeGuest => self.processes[slot].guest_held = false,
            Order::SampleDirty => {
                let pages = self.processes[slot].guest.map_or(0, |g| u64::from(g.dirty.count_ones()));
                self.pipeline(slot, Said::DirtyEstimate { pages });
            }
            Order::DropLink(fault) => {
                self.drop_link(slot);
                self.node(slot, Event::PeerGone { cause: fault.to_string() });
            }
        }
    }

    fn release_commit(&mut self, slot: usize, commit: Commit) {
        let (generation, epoch) = (commit.generation(), commit.epoch());
        self.disks[slot].release(&commit);
        let mut output = Vec::new();
        let released = self.processes[slot]
            .buffer
            .release(commit)
            .map(|batch| batch.write_each(|piece| output.push(Answer::from_bytes(&piece.bytes))));
        match released {
            // The gate was opened or shut between the order and its execution: nothing is held back for this commit any more.
            Ok(_) | Err(BufferError::WrongGate { .. }) => {}
            Err(error) => self.must(Err(error)),
        }
        for answer in output {
            self.release(slot, generation, Some(epoch), answer);
        }
        if self.sabotage == Some(Sabotage::ClearAtCommit) {
            self.disks[slot].clear(epoch);
        }
        // What the standby has may be issued.
        let committed = self.processes[slot].captures.iter().filter(|c| c.epoch <= epoch && c.shared).count();
        (0..committed).for_each(|_| self.issue_soon(slot));
        self.processes[slot].captures.retain(|c| c.epoch > epoch);
    }

    pub(super) fn capture(&mut self, slot: usize, generation: Generation, epoch: Epoch) {
        let fails = self.rng.permille(self.plan.fail_capture);
        let Some(mut guest) = self.processes[slot].guest else {
            self.pipeline(slot, Said::CaptureFailed { generation, epoch });
            return;
        };
        let sealed = if fails { Err(()) } else { self.processes[slot].buffer.seal(epoch).map_err(|_| ()) };
        let Ok(sealed) = sealed else {
            if self.sabotage == Some(Sabotage::ForgetDirtySet) {
                guest.dirty = 0;
                self.processes[slot].guest = Some(guest);
            }
            self.pipeline(slot, Said::CaptureFailed { generation, epoch });
            return;
        };
        let output = sealed.output().to_vec();
        drop(sealed);
        let Some(writes) = self.disks[slot].seal(epoch) else {
            self.violate("order", format!("n{slot} captures epoch {epoch} and its disk records nothing"));
            return;
        };
        let mask = std::mem::take(&mut guest.dirty);
        let process = &mut self.processes[slot];
        process.guest = Some(guest);
        let shared = std::mem::take(&mut process.held_shared);
        process.captures.push(Capture { generation, epoch, mask, pages: guest.pages, output, writes, shared });
        self.oracle.captured(generation, epoch, guest.pages, self.disks[slot].read());
        self.pipeline(slot, Said::Captured { generation, epoch, pages: u64::from(mask.count_ones()) });
        let start = self.processes[slot].sender_free_ns.max(self.now) + self.rng.between(10_000, 200_000);
        self.processes[slot].sender_free_ns = start;
        self.at(start, Happening::Send { slot, instance: self.processes[slot].instance, generation, epoch });
        if self.sabotage == Some(Sabotage::ReleaseBeforeCommit) {
            self.release_commit(slot, Commit::attest(generation, epoch));
        }
    }

    pub(super) fn send_epoch(&mut self, slot: usize, generation: Generation, epoch: Epoch) {
        let process = &self.processes[slot];
        let Some(capture) = process.captures.iter().find(|c| c.epoch == epoch && c.generation == generation) else { return };
        let (mask, pages, output, writes) = (capture.mask, capture.pages, capture.output.clone(), capture.writes.clone());
        if self.rng.permille(self.plan.fail_send) {
            self.pipeline(slot, Said::SendFailed { generation, epoch });
            return;
        }
        self.pipeline(slot, Said::Sent { generation, epoch });
        let masks = [mask & FIRST_PART, mask & !FIRST_PART];
        for (index, mask) in masks.into_iter().enumerate() {
            let corrupt = self.rng.permille(self.plan.corrupt);
            let mut part = Part { generation, epoch, index, mask, pages, corrupt, output: Vec::new(), writes: Vec::new() };
            if corrupt {
                part.pages[index] ^= 1 << 40;
                part.mask |= 1 << index;
            }
            if index == 1 {
                part.output.clone_from(&output);
            }
            // In the tail, which comes with the last part; the sabotaged standby applies what it finds in the first.
            if index == 1 || self.sabotage == Some(Sabotage::ApplyBeforeCommit) {
                part.writes.clone_from(&writes);
            }
            self.say(slot, Channel::Data, Message::Part(Box::new(part)));
        }
    }
}

/// A released answer, for the standby's re-sending.
pub(super) fn answers(output: &[Output]) -> impl Iterator<Item = Answer> + '_ {
    output.iter().map(|piece| Answer::from_bytes(&piece.bytes))
}
