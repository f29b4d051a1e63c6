//! The role thread: the life of a standby, until it is granted the guest or told to end.
//!
//! Lives here: the loop around `failover::core` and the carrying out of its actions, in order. Not here: decisions. Guards S3: the staging machine is told to stop
//! committing before the arbiter is asked, because that is the order of the core's actions; and a grant becomes a running guest only if this thread has looked at the clock a moment before and seen no sleep, or has read the record since.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use checkpoint::message::{self, Message};
use checkpoint::{CompleteEpoch, GuestMap, GuestShape, VerifyMemory};
use crossbeam::channel::{Receiver, bounded, never, unbounded};
use disk_buffer::Disks;
use failover::client::ArbiterClient;
use failover::core::{Action, Event as RoleEvent, Node};
use failover::fence::FenceRunner;
use failover::{Detector, Verdict};
use transport::tcp::Listener;
use transport::{ControlSender, Slot};
use types::clock::monotonic_ns;
use types::event::{NodeEventKind, Protection, Report};
use types::{Epoch, Generation, NodeId, VmId};
use vmm::Machine;

use crate::activate::{Prepared, prepare};
use crate::apply::{self, Job};
use crate::backlog::Permits;
use crate::control::{self, ControlThread};
use crate::core::{Event, Standby};
use crate::data::{self, DataThread};
use crate::disks;
use crate::error::ReplicaError;
use crate::greet::{self, Door, Linked};
use crate::input::Received;
use crate::shared::{News, Shared};
use crate::witness::Witness;

/// What a standby is told besides its machine.
#[derive(Clone, Debug)]
pub struct ReplicaConfig {
    /// The VM's name.
    pub vm: VmId,
    /// This node's name.
    pub node: NodeId,
    /// What a primary must match.
    pub shape: GuestShape,
    /// Digest of what this node would boot the guest from.
    pub boot: u64,
    /// Time between heartbeats, nanoseconds.
    pub heartbeat_ns: u64,
    /// Silence that means gone, nanoseconds.
    pub bound_ns: u64,
    /// What of memory is compared at every epoch.
    pub verify_memory: VerifyMemory,
}

/// Everything a standby works with.
pub struct Setup {
    /// A machine that never ran.
    pub machine: Machine,
    /// The machine's disks, as its devices will use them.
    pub disks: Arc<Disks>,
    /// The role machine, not started.
    pub node: Node,
    /// The arbiter.
    pub arbiter: ArbiterClient,
    /// Another way to it, for the one who meets primaries.
    pub witness: ArbiterClient,
    /// Shuts older owners out of the shared disks, where there are any.
    pub fence: Option<FenceRunner>,
    /// The replication port.
    pub listener: Listener,
    /// Where events go.
    pub report: Report,
    /// Options.
    pub config: ReplicaConfig,
    /// Takes what the guest wrote to its console, once that is committed here.
    pub console: Option<Box<dyn std::io::Write + Send>>,
}

/// A standby that has become a primary: its machine runs, its node has the grant.
pub struct Activated {
    /// The running machine.
    pub machine: Machine,
    /// The role machine, an unprotected primary.
    pub node: Node,
    /// The arbiter.
    pub arbiter: ArbiterClient,
    /// As in [`Setup`].
    pub fence: Option<FenceRunner>,
    /// When it last looked, before anything of the guest left this node, and had not slept since the record named it: CLOCK_MONOTONIC.
    pub looked_ns: u64,
}

/// How a standby's life ended.
pub enum Outcome {
    /// It took over.
    Activated(Box<Activated>),
    /// It was granted the guest, and the grant was over before the guest was started.
    Fenced(String),
    /// It was told to end.
    Interrupted,
}

struct LinkState {
    number: u64,
    control: Arc<dyn ControlSender>,
    gone: Arc<AtomicBool>,
    detector: Detector,
    sequence: u64,
}

/// What the role thread waits for.
enum Item {
    News(News),
    Role(RoleEvent),
}

struct RoleThread {
    machine: Machine,
    node: Node,
    arbiter: ArbiterClient,
    fence: Option<FenceRunner>,
    config: ReplicaConfig,
    shared: Arc<Shared>,
    door: Arc<Door>,
    link: Option<LinkState>,
    links: u64,
    news: Receiver<News>,
    asked_ns: u64,
    /// When the thread last looked around: a gap means that this process did not run.
    looked_ns: u64,
    activating: Option<Activating>,
    /// Nothing may be started before the record was read.
    held: bool,
    done: Option<Result<Done, ReplicaError>>,
}

/// A machine that waits to be started, and since when, CLOCK_MONOTONIC.
struct Activating {
    prepared: Prepared,
    generation: Generation,
    granted_ns: u64,
    grant_us: u64,
}

/// How the thread's work ended.
enum Done {
    Activated,
    Fenced(String),
}

/// Runs a standby until it has activated or `shutdown` is set.
///
/// # Errors
/// When a thread cannot be had, or when the guest was granted and cannot be activated.
pub fn run(setup: Setup, shutdown: &AtomicBool) -> Result<Outcome, ReplicaError> {
    let Setup { machine, disks, node, arbiter, witness, fence, listener, report, config, console } = setup;
    let (news_tx, news) = unbounded();
    let (apply_tx, jobs) = unbounded();
    let slots = machine.slots().slots();
    let map = GuestMap::new(slots.iter().map(|slot| slot.first.0..slot.first.0 + slot.pages))
        .with_disks(disks.iter().map(|disk| disk.info().bytes));
    let geometry = greet::geometry(map.pages());
    let shared = Shared::new(map, disks, Arc::clone(&report), apply_tx, news_tx);
    disks::attach(&shared);
    {
        let (shared, memory) = (Arc::clone(&shared), Arc::clone(machine.memory()));
        spawn("apply", move || apply::run(shared, memory, console, &jobs))?;
    }
    let door = Arc::new(Door {
        vm: config.vm.clone(),
        node: config.node.clone(),
        shape: config.shape.clone(),
        boot: config.boot,
        verify_memory: config.verify_memory,
        geometry,
        open: AtomicBool::new(true),
        generation: AtomicU64::new(0),
        closed: AtomicBool::new(false),
    });
    {
        let (shared, door) = (Arc::clone(&shared), Arc::clone(&door));
        let witness = Witness::new(witness);
        spawn("greeter", move || greet::run(&shared, &door, witness, &listener))?;
    }
    report(NodeEventKind::Ready);
    let mut role = RoleThread {
        machine,
        node,
        arbiter,
        fence,
        config,
        shared,
        door,
        link: None,
        links: 0,
        news,
        asked_ns: 0,
        looked_ns: monotonic_ns(),
        activating: None,
        held: false,
        done: None,
    };
    role.live(shutdown);
    if role.done.is_none() && (role.activating.is_some() || role.node.protection() == Protection::Fencing) {
        tracing::error!(
            "told to stop between the grant and the guest's start: the guest that was held here is given up, and this node is its owner; start it with `lockstep run`"
        );
    }
    role.door.closed.store(true, Ordering::Release);
    role.drop_link();
    role.shared.apply(Job::Stop);
    let RoleThread { machine, node, arbiter, fence, looked_ns, done, .. } = role;
    match done {
        Some(Ok(Done::Activated)) => Ok(Outcome::Activated(Box::new(Activated { machine, node, arbiter, fence, looked_ns }))),
        Some(Ok(Done::Fenced(reason))) => Ok(Outcome::Fenced(reason)),
        Some(Err(error)) => Err(error),
        None => Ok(Outcome::Interrupted),
    }
}

fn spawn(name: &'static str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, ReplicaError> {
    std::thread::Builder::new().name(name.to_owned()).spawn(body).map_err(|source| ReplicaError::Thread { name, source })
}

impl RoleThread {
    fn live(&mut self, shutdown: &AtomicBool) {
        types::thread::urgent(types::thread::Urgency::Pulse);
        self.raise(RoleEvent::StartStandby);
        let answers = self.arbiter.answers().clone();
        let news = self.news.clone();
        let fenced = self.fence.as_ref().map_or_else(never, |fence| fence.news().clone());
        let mut beat_at = monotonic_ns();
        self.looked_ns = beat_at;
        while self.done.is_none() && !shutdown.load(Ordering::Acquire) {
            let due = beat_at.min(self.node.deadline_ns().unwrap_or(u64::MAX)).saturating_sub(monotonic_ns());
            let item = crossbeam::channel::select! {
                recv(news) -> item => item.ok().map(Item::News),
                recv(answers) -> answer => answer.ok().map(|(id, answer)| Item::Role(RoleEvent::ArbiterReply { id, answer })),
                recv(fenced) -> news => news.ok().map(|news| Item::Role(FenceRunner::event(news))),
                default(Duration::from_nanos(due)) => None,
            };
            let now = monotonic_ns();
            let gap_ns = now.saturating_sub(self.looked_ns + due);
            self.looked_ns = now;
            if self.link.is_none() && gap_ns > self.config.bound_ns {
                // Before anything that came from before a sleep is believed: a grant may be over. (With a link the detector tells.)
                self.raise(RoleEvent::Stalled { gap_ns });
            }
            match item {
                Some(Item::News(item)) => self.hear(item),
                Some(Item::Role(event)) => self.raise(event),
                None => {}
            }
            let now = monotonic_ns();
            if now >= beat_at {
                beat_at = now + self.config.heartbeat_ns;
                self.beat(now);
            }
            if self.node.deadline_ns().is_some_and(|at| now >= at) {
                self.raise(RoleEvent::Tick);
            }
            self.start_if_sure();
        }
    }

    fn raise(&mut self, event: RoleEvent) {
        let mut actions = Vec::new();
        self.node.handle(event, monotonic_ns(), &mut actions);
        for action in actions {
            self.act(action);
        }
        self.door.open.store(self.node.accepts_primary() && self.link.is_none(), Ordering::Release);
        self.door.generation.fetch_max(self.node.generation().0, Ordering::AcqRel);
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Arbiter { id, request } => {
                self.asked_ns = monotonic_ns();
                self.arbiter.ask(id, request);
            }
            Action::Report { role, protection, generation, reason } => {
                tracing::info!(?role, ?protection, %generation, reason, "state");
                (self.shared.report)(NodeEventKind::State { role, protection, generation, reason });
            }
            Action::StopCommitting => {
                self.shared.disks.taking_over();
                if let Err(fault) = self.shared.raise(Event::StopCommitting) {
                    tracing::debug!(%fault, "while stopping to commit");
                }
            }
            Action::TellSight { trouble } => self.tell_sight(trouble),
            Action::DropLink => self.drop_link(),
            Action::StandDown { reason } => {
                tracing::info!(reason, "what this standby held is discarded");
                if let Some(fence) = &self.fence {
                    fence.stop();
                }
                self.shared.apply(Job::Forget(bounded(1).0));
            }
            Action::Fence { record, old } => {
                if let Err(error) = failover::fence::begin(self.fence.as_mut(), record, old) {
                    self.done = Some(Err(error.into()));
                }
            }
            Action::Activate { generation } => self.activate(generation),
            Action::HoldRelease => self.held = true,
            Action::ResumeRelease => self.held = false,
            Action::ShutGate => self.shared.disks.shut(),
            Action::StopGuest { reason } => {
                (self.shared.report)(NodeEventKind::Fenced { reason: reason.clone() });
                self.done = Some(Ok(Done::Fenced(reason)));
            }
            // A primary's actions: a standby's core gives none of them.
            other => tracing::debug!(?other, "not a standby's action"),
        }
    }

    /// The way to the record has become of use, or of none.
    fn tell_sight(&mut self, trouble: Option<String>) {
        if let Some(trouble) = &trouble {
            let text = format!("a failover would have to wait: {trouble}");
            tracing::warn!("{text}");
            (self.shared.report)(NodeEventKind::Warning { text });
        }
        let Some(link) = &self.link else { return };
        let told = Message::Sight { generation: self.node.generation(), trouble };
        let sent = message::encode(&told).map_err(ReplicaError::from).and_then(|bytes| Ok(link.control.send(&bytes)?));
        if let Err(error) = sent {
            // Not acted on here, in the middle of what the core ordered.
            self.shared.tell(News::LinkLost { link: link.number, cause: error.to_string() });
        }
    }

    fn activate(&mut self, generation: Generation) {
        let granted_ns = monotonic_ns();
        let grant_us = granted_ns.saturating_sub(self.asked_ns) / 1000;
        match prepare(&self.shared, &mut self.machine) {
            Ok(prepared) => self.activating = Some(Activating { prepared, generation, granted_ns, grant_us }),
            Err(error) => self.done = Some(Err(error)),
        }
    }

    /// Starts the machine that was prepared, unless this node slept meanwhile, or was busy for so long that it may have: then once the record is read.
    fn start_if_sure(&mut self) {
        if self.activating.is_none() || self.held || self.done.is_some() {
            return;
        }
        let now = monotonic_ns();
        let gap_ns = now.saturating_sub(self.looked_ns);
        self.looked_ns = now;
        if gap_ns > self.config.bound_ns {
            return self.raise(RoleEvent::Confirm { gap_ns });
        }
        let Some(Activating { prepared, generation, granted_ns, grant_us }) = self.activating.take() else { return };
        let started = prepared.start(&self.shared, &mut self.machine);
        let activation_us = monotonic_ns().saturating_sub(granted_ns) / 1000;
        self.done = Some(started.map(|started| {
            tracing::info!(%generation, epoch = %started.epoch, activation_us, grant_us, disks_us = started.disks_us, resent = started.resent, replayed = started.replayed, disk_requests = started.disk_requests, "activated");
            (self.shared.report)(NodeEventKind::Activated { generation, epoch: started.epoch, activation_us, grant_us, disk_requests: started.disk_requests });
            Done::Activated
        }));
    }

    fn hear(&mut self, news: News) {
        match news {
            News::Linked(linked) => self.linked(linked),
            News::LinkLost { link, cause } if self.is_current(link) => self.peer_gone(cause),
            News::FirstEpoch { link, complete, permits, done } if self.is_current(link) => {
                self.first_epoch(complete, permits);
                let _ = done.send(());
            }
            News::Recorded { link, generation } if self.is_current(link) => self.raise(RoleEvent::Recorded { generation }),
            News::Spoilt { reason } => self.raise(RoleEvent::Spoilt { reason }),
            News::PeerShutdown { link, reason } if self.is_current(link) => {
                (self.shared.report)(NodeEventKind::GuestStopped { reason: reason.clone() });
                self.raise(RoleEvent::PeerShutdown { reason });
            }
            News::LinkLost { .. } | News::FirstEpoch { .. } | News::Recorded { .. } | News::PeerShutdown { .. } => {}
        }
    }

    fn is_current(&self, number: u64) -> bool {
        self.link.as_ref().is_some_and(|link| link.number == number)
    }

    /// The first epoch of a link is committed here, so that the role machine knows that there is something to take over with before anybody else does.
    fn first_epoch(&mut self, complete: CompleteEpoch<Slot>, permits: Permits) {
        let Some(link) = &self.link else { return };
        let control = Arc::clone(&link.control);
        let epoch: Epoch = complete.epoch;
        self.raise(RoleEvent::Committed { epoch });
        match self.shared.commit(complete, permits, control.as_ref()) {
            Ok(Some(epoch)) => tracing::info!(%epoch, "the first epoch is committed"),
            Ok(None) => {}
            Err(cause) => self.peer_gone(cause),
        }
    }

    fn peer_gone(&mut self, cause: String) {
        tracing::warn!(cause, "primary gone");
        (self.shared.report)(NodeEventKind::PeerGone { cause: cause.clone() });
        if let Err(fault) = self.shared.raise(Event::LinkLost) {
            tracing::debug!(%fault, "while losing the link");
        }
        self.raise(RoleEvent::PeerGone { cause });
    }

    fn beat(&mut self, now: u64) {
        let heard = self.shared.heard_ns.load(Ordering::Acquire);
        let generation = self.node.generation();
        let Some(link) = &mut self.link else { return };
        link.sequence += 1;
        link.detector.heard(heard);
        let verdict = link.detector.check(now);
        let heartbeat = Message::Heartbeat { generation, sequence: link.sequence };
        if let Verdict::Silent(silent_ns) = verdict {
            return self.peer_gone(format!("heartbeats silent for {} ms", silent_ns / 1_000_000));
        }
        let sent = message::encode(&heartbeat).map_err(ReplicaError::from).and_then(|bytes| Ok(link.control.send(&bytes)?));
        match (sent, verdict) {
            (Err(error), _) => self.peer_gone(error.to_string()),
            (Ok(()), Verdict::Stalled(gap_ns)) => {
                tracing::warn!(gap_ms = gap_ns / 1_000_000, "this node did not run for a while");
                self.raise(RoleEvent::Stalled { gap_ns });
            }
            (Ok(()), Verdict::Alive | Verdict::Closed | Verdict::Silent(_)) => {}
        }
    }

    fn linked(&mut self, linked: Linked) {
        let Linked { hello, link, alive } = linked;
        if self.link.is_some() || !self.node.accepts_primary() {
            return;
        }
        self.links += 1;
        let number = self.links;
        let now = monotonic_ns();
        let generation = hello.generation;
        self.shared.heard_ns.store(now, Ordering::Release);
        let (done, ready) = bounded(1);
        self.shared.apply(Job::Forget(done));
        *self.shared.staging() = Standby::new(generation);
        *self.shared.received() = Received::default();
        let gone = Arc::new(AtomicBool::new(false));
        let data = DataThread {
            shared: Arc::clone(&self.shared),
            link: number,
            generation,
            control: Arc::clone(&link.control_tx),
            gone: Arc::clone(&gone),
            verify: self.config.verify_memory,
            writer: apply::Writer::new(Arc::clone(self.machine.memory()), Arc::clone(&self.shared.disks), self.shared.map.clone()),
            ready,
            alive,
        };
        self.shared.reporter.point(Some(Arc::clone(&link.control_tx)));
        let control = ControlThread { shared: Arc::clone(&self.shared), link: number, gone: Arc::clone(&gone) };
        let detector = Detector::new(self.config.heartbeat_ns, self.config.bound_ns, now);
        self.link = Some(LinkState { number, control: link.control_tx, gone, detector, sequence: 0 });
        if let epochs @ 1.. = self.config.verify_memory.turn(&self.shared.map) {
            tracing::info!(epochs, "memory is compared with the primary's: all of it once in so many epochs");
        }
        self.raise(RoleEvent::PrimaryLinked { generation });
        let spawned = spawn("data", move || data::run(data, link.data))
            .and_then(|_| spawn("control", move || control::run(&control, link.control_rx)));
        if let Err(error) = spawned {
            self.peer_gone(error.to_string());
        }
    }

    fn drop_link(&mut self) {
        self.shared.reporter.point(None);
        if let Some(link) = self.link.take() {
            link.gone.store(true, Ordering::Release);
        }
    }
}
