//! The role thread's loop: waits for whatever comes first, and hands it on; and a node that is told to stop.
//!
//! Not here: what is done for the core's decisions (`act.rs`) and for the standby (`link.rs`).

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use failover::core::Event as RoleEvent;
use types::clock::monotonic_ns;
use types::event::NodeEventKind;
use vmm::MachineEvent;

use super::RoleThread;
use crate::core::Event;
use crate::refusals::{LOOK_EVERY_NS, Refusals};
use crate::shared::News;

/// A line of samples this often.
const SAMPLES_NS: u64 = 100_000_000;
/// How long a node that is told to stop waits for the arbiter to release its standby: a file's swap takes milliseconds, an operator waits a second or two.
const LAST_WORD_NS: u64 = 2_000_000_000;

/// What the role thread waits for.
enum Item {
    News(News),
    Answer(RoleEvent),
    Machine(MachineEvent),
}

impl RoleThread {
    pub(super) fn live(&mut self, shutdown: &AtomicBool) {
        types::thread::urgent(types::thread::Urgency::Pulse);
        let machine_events = self.setup.machine.events().clone();
        let answers = self.setup.arbiter.answers().clone();
        let news = self.news.clone();
        let mut beat_at = monotonic_ns();
        let mut samples_at = beat_at;
        let mut refusals = Refusals::of(&self.setup.machine);
        let mut refusals_at = beat_at;
        // The guest runs already.
        self.notice_sleep(beat_at);
        self.raise(RoleEvent::Tick);
        while self.end.is_none() && self.broken.is_none() {
            let now = monotonic_ns();
            let deadlines = [self.setup.node.deadline_ns(), self.reset_at_ns].into_iter().flatten();
            let due = deadlines.fold(beat_at, u64::min).saturating_sub(now);
            let item = crossbeam::channel::select! {
                recv(news) -> news => news.ok().map(Item::News),
                recv(answers) -> answer => answer.ok().map(|(id, answer)| Item::Answer(RoleEvent::ArbiterReply { id, answer })),
                recv(machine_events) -> event => event.ok().map(Item::Machine),
                default(Duration::from_nanos(due)) => None,
            };
            let now = monotonic_ns();
            // Before anything that came from before a sleep is believed.
            self.notice_sleep(now);
            match item {
                Some(Item::News(news)) => self.hear(news),
                Some(Item::Answer(answer)) => self.raise(answer),
                Some(Item::Machine(event)) => self.machine(event),
                None => {}
            }
            if now >= beat_at {
                beat_at = now + self.setup.config.heartbeat_ns;
                self.beat(now);
            }
            if self.setup.node.deadline_ns().is_some_and(|at| now >= at) {
                self.raise(RoleEvent::Tick);
            }
            self.reset_when_due(now);
            if now >= samples_at {
                samples_at = now + SAMPLES_NS;
                let due = self.shared.resets().due(now);
                self.shared.tell_resets(due);
                if let Some(line) = self.shared.stats.line(self.shared.committed(), self.shared.output.held().frames) {
                    (self.shared.report)(line);
                }
            }
            if now >= refusals_at {
                refusals_at = now + LOOK_EVERY_NS;
                for text in refusals.look() {
                    self.warn(text);
                }
            }
            if self.give_up_ns.is_none() {
                self.heed(shutdown, now);
            }
            if self.give_up_ns.is_some_and(|at| now >= at) {
                tracing::warn!("the arbiter did not answer in time: its record still names the standby");
                self.shared.output.shut();
                self.shared.disks.shut();
                return;
            }
            self.look_for_standby();
        }
    }

    /// A node that is told to stop presses its guest's power button first, where the guest may know it; told again, or when the guest takes too long, it
    /// stops.
    fn heed(&mut self, shutdown: &AtomicBool, now: u64) {
        let allowed_ns = self.setup.config.power_button_ns;
        if shutdown.load(Ordering::Acquire) {
            if allowed_ns == 0 || self.power_off_by_ns.is_some() || self.machine_ended.is_some() {
                return self.interrupted(now);
            }
            shutdown.store(false, Ordering::Release);
            tracing::info!(
                seconds = allowed_ns / 1_000_000_000,
                "told to stop: the guest's power button is pressed; once more stops it at once"
            );
            self.setup.machine.press_power_button();
            self.power_off_by_ns = Some(now + allowed_ns);
        } else if self.power_off_by_ns.is_some_and(|at| now >= at) && self.machine_ended.is_none() {
            tracing::warn!("the guest did not shut itself down in time and is stopped");
            self.interrupted(now);
        }
    }

    /// A node that is told to stop takes its guest with it: on purpose, so the standby must not take over, and is struck out of the record, so that the
    /// guest can be started again.
    pub(super) fn interrupted(&mut self, now: u64) {
        self.give_up_ns = Some(now + LAST_WORD_NS);
        if self.machine_ended.is_none() {
            let reason = "the primary was told to stop".to_owned();
            self.machine_ended = Some(reason.clone());
            self.raise(RoleEvent::GuestEnded { reason });
        }
    }

    pub(super) fn raise(&mut self, event: RoleEvent) {
        let mut actions = Vec::new();
        self.setup.node.handle(event, monotonic_ns(), &mut actions);
        for action in actions {
            self.act(action);
            if self.broken.is_some() {
                // An action that failed must not be followed by those that rest on it: no record without a gate.
                return;
            }
        }
    }

    /// A guest that does nothing but reset stands still for a while before it boots again. Its vCPUs have ended; whoever takes it over meanwhile is asked anew.
    fn guest_asks_for_reset(&mut self) {
        let reply = self.shared.resets().asked(monotonic_ns());
        if let Some(resets) = reply.warn {
            self.warn(format!(
                "the guest has reset {resets} times in a row within a second of its boot: it does not start. See its console; it may lack a disk, a driver, \
                 memory or a part of its kernel's command line. It is booted again after ever longer pauses, of up to 5 s"
            ));
        }
        self.reset_at_ns = Some(reply.at_ns);
        self.reset_when_due(monotonic_ns());
    }

    /// Tells an operator, by log and event.
    fn warn(&self, text: String) {
        tracing::warn!("{text}");
        (self.shared.report)(NodeEventKind::Warning { text });
    }

    fn reset_when_due(&mut self, now: u64) {
        if self.reset_at_ns.is_some_and(|at| now >= at) {
            self.reset_at_ns = None;
            self.shared.ask_reset();
        }
    }

    fn machine(&mut self, event: MachineEvent) {
        let reason = match event {
            MachineEvent::Shutdown => "the guest powered off".to_owned(),
            MachineEvent::Reset => return self.guest_asks_for_reset(),
            MachineEvent::DirtyRingFull { .. } => {
                let pages = self.setup.config.policy.dirty_budget_pages;
                return self.shared.raise(Event::DirtyEstimate { pages });
            }
            MachineEvent::InternalError { vcpu, detail } | MachineEvent::VcpuError { vcpu, detail } => {
                // Not told to the standby: it takes over, and may fare better on its host.
                self.shared.output.shut();
                self.shared.disks.shut();
                self.broken = Some(format!("vCPU {vcpu}: {detail}"));
                return;
            }
        };
        if self.machine_ended.is_some() {
            return;
        }
        self.machine_ended = Some(reason.clone());
        (self.shared.report)(NodeEventKind::GuestStopped { reason: reason.clone() });
        self.raise(RoleEvent::GuestEnded { reason });
    }
}
