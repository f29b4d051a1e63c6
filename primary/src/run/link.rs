//! The standby as the role thread sees it: looked for, linked, heard, found silent, dropped.
//!
//! Lives here: heartbeats, the threads of one link, and the news that the other threads have for the role thread. Guards S3 for a node that slept: that is settled
//! before anything that came from before the sleep is believed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use checkpoint::encode::EncoderConfig;
use checkpoint::message::Message;
use crossbeam::channel::bounded;
use failover::core::Event as RoleEvent;
use failover::{Detector, Verdict};
use types::clock::monotonic_ns;
use types::event::NodeEventKind;

use super::{LinkState, RoleThread, spawn};
use crate::connect::Linked;
use crate::control::{self, ControlThread};
use crate::core::{Event, Mode};
use crate::mirror::{self, Mirror};
use crate::sender::{self, SenderThread};
use crate::shared::{News, Order};
use crate::sync::Copying;

/// Epochs in flight with neither a commit nor a byte that leaves for so long mean that the standby hangs, whatever its heartbeats say. Far above the largest
/// epoch's time on a slow link, which shows in bytes that leave.
const COMMIT_BOUND_NS: u64 = 10_000_000_000;

impl RoleThread {
    pub(super) fn hear(&mut self, news: News) {
        let ours = |number: u64| self.link.as_ref().is_some_and(|link| link.number == number);
        match news {
            News::Linked(linked) => self.linked(linked),
            News::NoStandby { reason } => {
                tracing::warn!(reason, "no standby: the guest runs unprotected");
                (self.shared.report)(NodeEventKind::NoStandby { reason });
            }
            News::SyncReady { link } if ours(link) => self.raise(RoleEvent::SyncReady),
            News::LinkLost { link, cause } if ours(link) => self.peer_gone(cause),
            News::SyncReady { .. } | News::LinkLost { .. } => {}
            News::FirstCommit(epoch) => self.raise(RoleEvent::FirstCommit { epoch }),
            News::Fault(cause) => self.peer_gone(cause),
            News::Stalled { gap_ns } => self.stalled(gap_ns),
            News::Broken(reason) => self.broken = Some(reason),
            News::DiskFailed { reason } => {
                tracing::error!(reason, "a disk failed");
                self.raise(RoleEvent::DiskFailed { reason });
            }
            // Numbers of another generation's epochs mean nothing to the standby of now.
            News::Issued { disk, generation, epoch } if generation == self.setup.node.generation() => {
                self.say(&Message::Issued { generation, disk, epoch });
            }
            News::Issued { .. } => {}
            News::ShutOut { reason } => {
                tracing::error!(reason, "another node has shut this one out of a shared disk");
                self.raise(RoleEvent::ShutOut { reason });
            }
            News::PeerLeft { link, reason } if ours(link) => self.peer_gone(format!("the standby left: {reason}")),
            News::Sight { link, trouble } if ours(link) => self.raise(RoleEvent::StandbySight { trouble }),
            News::PeerLeft { .. } | News::Sight { .. } => {}
        }
    }

    /// Whether this node did not run for longer than its peer waits for it. Then nothing is released before the record is read, and that is settled before the control
    /// thread, which may have woken with a commit in its hands, can see that this thread is awake again.
    pub(super) fn notice_sleep(&mut self, now: u64) {
        let gap_ns = now.saturating_sub(self.shared.looked_ns.load(Ordering::Acquire));
        if gap_ns > self.setup.config.bound_ns {
            if let Some(link) = &mut self.link {
                // Counts the peer's silence anew: it was this node's own.
                link.detector.check(now);
            }
            self.stalled(gap_ns);
        }
        self.shared.looked_ns.store(now, Ordering::Release);
    }

    pub(super) fn stalled(&mut self, gap_ns: u64) {
        self.shared.raise(Event::HoldRelease(true));
        self.raise(RoleEvent::Stalled { gap_ns });
    }

    pub(super) fn beat(&mut self, now: u64) {
        let generation = self.setup.node.generation();
        let heard = self.shared.heard_ns.load(Ordering::Acquire);
        let overdue_ns = self.shared.no_progress_ns(now);
        let Some(link) = &mut self.link else { return };
        link.sequence += 1;
        let sequence = link.sequence;
        link.detector.heard(heard);
        match link.detector.check(now) {
            Verdict::Silent(silent_ns) => return self.peer_gone(format!("heartbeats silent for {} ms", silent_ns / 1_000_000)),
            Verdict::Stalled(gap_ns) => self.stalled(gap_ns),
            Verdict::Alive | Verdict::Closed => {}
        }
        if overdue_ns > COMMIT_BOUND_NS {
            return self.peer_gone(format!("its heartbeats come, but no commit for {} s", overdue_ns / 1_000_000_000));
        }
        self.say(&Message::Heartbeat { generation, sequence });
    }

    fn peer_gone(&mut self, cause: String) {
        tracing::warn!(cause, "standby gone");
        (self.shared.report)(NodeEventKind::PeerGone { cause: cause.clone() });
        self.shared.raise(Event::LinkLost);
        self.raise(RoleEvent::PeerGone { cause });
    }

    pub(super) fn look_for_standby(&mut self) {
        if self.link.is_none() && !self.asked && self.setup.node.accepts_standby() && self.setup.config.standby.is_some() {
            self.asked = self.wanted.try_send(self.setup.node.generation()).is_ok();
        }
    }

    fn linked(&mut self, linked: Linked) {
        self.asked = false;
        if self.link.is_some() || !self.setup.node.accepts_standby() || self.machine_ended.is_some() {
            return;
        }
        self.links += 1;
        let number = self.links;
        let now = monotonic_ns();
        self.shared.heard_ns.store(now, Ordering::Release);
        let gone = Arc::new(AtomicBool::new(false));
        let config = &self.setup.config;
        let slot_bytes = linked.link.data.geometry().slot_bytes as usize;
        let pages_per_part = checkpoint::wire::pages_per_part(EncoderConfig::new(slot_bytes).slot_bytes, 0);
        let (jobs_tx, jobs) = bounded(config.policy.max_in_flight.max(1) + 1);
        let sending = SenderThread {
            shared: Arc::clone(&self.shared),
            link: number,
            jobs,
            give: self.give.clone(),
            gone: Arc::clone(&gone),
            data: linked.link.data,
            delta_pages: config.delta_pages,
        };
        let receiving = ControlThread {
            shared: Arc::clone(&self.shared),
            link: number,
            generation: self.setup.node.generation(),
            gone: Arc::clone(&gone),
            stall_ns: config.bound_ns,
        };
        let detector = Detector::new(config.heartbeat_ns, config.bound_ns, now);
        let link = LinkState { number, control: linked.link.control_tx, gone: Arc::clone(&gone), detector, sequence: 0 };
        let (mirror, copies) = Mirror::new();
        let (generation, control) = (self.setup.node.generation(), Arc::clone(&link.control));
        let control_rx = linked.link.control_rx;
        let spawned = spawn("sender", move || sender::run(sending))
            .and_then(|_| spawn("control", move || control::run(&receiving, control_rx)))
            .and_then(|_| spawn("mirror", move || mirror::run(&copies, generation, &control)));
        self.mirror = Some(mirror);
        if let Err(error) = spawned {
            tracing::error!(%error, "the standby cannot be used");
            gone.store(true, Ordering::Release);
            return;
        }
        self.link = Some(link);
        self.raise(RoleEvent::StandbyLinked { node: linked.node });
        if self.link.is_some() {
            let generation = self.setup.node.generation();
            self.shared.order(Order::Copy(Copying { link: number, generation, jobs: jobs_tx, gone, pages_per_part, plans: linked.plans }));
            self.mode(Mode::Syncing);
        }
    }

    pub(super) fn drop_link(&mut self) {
        self.mirror = None;
        self.shared.output.mirror_to(None);
        let Some(link) = self.link.take() else { return };
        link.gone.store(true, Ordering::Release);
        self.shared.order(Order::Unlink { copying: !self.gated });
        // The threads end by themselves within a poll; the sockets close with them.
    }
}
