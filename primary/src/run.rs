//! The role thread: the whole life of a primary, from its grant to its end.
//!
//! Lives here: the loop around `failover::core` and the carrying out of its actions, in order. Not here: decisions. Guards S3: the two orders (gate, then
//! record; strike out, then ungate) are the order in which the core gives its actions, and this loop finishes each before it begins the next.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use checkpoint::encode::EncoderConfig;
use checkpoint::message::{self, Message};
use checkpoint::{GuestMap, GuestShape, VerifyMemory};
use crossbeam::channel::{Receiver, Sender, bounded, unbounded};
use disk_buffer::Disks;
use failover::client::ArbiterClient;
use failover::core::{Action as Role, Event as RoleEvent, Node};
use failover::fence::FenceRunner;
use failover::{Detector, Verdict};
use net_buffer::StruckOut;
use transport::ControlSender;
use types::clock::monotonic_ns;
use types::event::{NodeEventKind, Report};
use types::{NodeId, VmId};
use vmm::{BootImages, Machine, MachineEvent};

use crate::capture::CaptureBuffer;
use crate::connect::{self, Identity, Linked};
use crate::control::{self, ControlThread};
use crate::core::{Event, Mode, Pipeline, Policy};
use crate::epoch::{self, EpochThread};
use crate::error::PrimaryError;
use crate::mirror::{self, Mirror};
use crate::output::OutputPath;
use crate::sender::{self, SenderThread};
use crate::shared::{Made, News, ORDERS, Order, Shared};
use crate::sync::{Copying, Pool};

/// Epochs in flight with neither a commit nor a byte that leaves for so long mean that the standby hangs, whatever its heartbeats say. Far above the largest
/// epoch's time on a slow link, which shows in bytes that leave.
const COMMIT_BOUND_NS: u64 = 10_000_000_000;
/// A line of samples this often.
const SAMPLES_NS: u64 = 100_000_000;
/// How long a node that is told to stop waits for the arbiter to release its standby: a file's swap takes milliseconds, an operator waits a second or two.
const LAST_WORD_NS: u64 = 2_000_000_000;

/// What a primary is told besides its machine.
#[derive(Clone, Debug)]
pub struct PrimaryConfig {
    /// The VM's name.
    pub vm: VmId,
    /// This node's name.
    pub node: NodeId,
    /// What a standby must match.
    pub shape: GuestShape,
    /// Where the standby listens, if there is one.
    pub standby: Option<SocketAddr>,
    /// Time between heartbeats, nanoseconds.
    pub heartbeat_ns: u64,
    /// Silence that means gone, nanoseconds.
    pub bound_ns: u64,
    /// When epochs end.
    pub policy: Policy,
    /// Pages remembered for deltas; 0: none.
    pub delta_pages: usize,
    /// What of memory a digest is sent of with every epoch.
    pub verify_memory: VerifyMemory,
    /// For how long a guest whose node is told to stop may shut itself down after its power button was pressed, nanoseconds; 0: it is stopped at once.
    pub power_button_ns: u64,
}

/// Everything a primary works with.
pub struct Setup {
    /// A machine that is booted or restored and runs already.
    pub machine: Arc<Machine>,
    /// Its output path, open.
    pub output: Arc<OutputPath>,
    /// The machine's disks, as its devices use them; started, or activated.
    pub disks: Arc<Disks>,
    /// The role machine: granted as a primary.
    pub node: Node,
    /// What the guest boots from, should it ask for a reset.
    pub images: Arc<BootImages>,
    /// The arbiter.
    pub arbiter: ArbiterClient,
    /// Has shut older owners out of the shared disks, where there are any.
    pub fence: Option<FenceRunner>,
    /// Where events go.
    pub report: Report,
    /// Options.
    pub config: PrimaryConfig,
}

/// How a primary's life ended in good order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The guest ended by itself.
    GuestStopped(String),
    /// The node lost the right to run.
    Fenced(String),
    /// This host failed under the guest, and its standby takes over.
    GaveUp(String),
    /// `shutdown` was set.
    Interrupted,
}

/// What the role thread waits for.
enum Item {
    News(News),
    Answer(RoleEvent),
    Machine(MachineEvent),
}

struct LinkState {
    number: u64,
    control: Arc<dyn ControlSender>,
    gone: Arc<AtomicBool>,
    detector: Detector,
    sequence: u64,
}

struct RoleThread {
    setup: Setup,
    shared: Arc<Shared>,
    wanted: Sender<types::Generation>,
    asked: bool,
    link: Option<LinkState>,
    links: u64,
    give: Sender<CaptureBuffer>,
    end: Option<End>,
    broken: Option<String>,
    /// The guest has ended, and how.
    machine_ended: Option<String>,
    /// Set when the node was told to stop: until when it waits for the arbiter.
    give_up_ns: Option<u64>,
    /// The gate is closed for a standby: what is recorded of disks ends by a strike-out.
    gated: bool,
    /// Set when the guest's power button was pressed: until when the guest may shut itself down.
    power_off_by_ns: Option<u64>,
    /// The link's mirror, until the gate closes.
    mirror: Option<Mirror>,
    news: Receiver<News>,
}

/// Runs a primary whose node has the grant and whose machine runs, until it ends.
///
/// # Errors
/// When the machine, its memory or a thread cannot be had, or the guest fails.
pub fn run(setup: Setup, shutdown: &AtomicBool) -> Result<End, PrimaryError> {
    let (orders_tx, orders) = bounded(ORDERS);
    let (news_tx, news) = unbounded();
    let (give, free) = unbounded();
    let mut pipeline = Pipeline::new(setup.config.policy.clone());
    let generation = setup.node.generation();
    pipeline.handle(Event::Mode { mode: Mode::Unprotected, generation }, monotonic_ns(), &mut Vec::new());
    let shared = Shared::new(Made {
        machine: Arc::clone(&setup.machine),
        output: Arc::clone(&setup.output),
        disks: Arc::clone(&setup.disks),
        report: Arc::clone(&setup.report),
        pipeline,
        epoch: orders_tx,
        role: news_tx,
    });
    attach(&shared);
    crate::disks::attach(&shared);
    let epoch_thread = {
        let verify = setup.config.verify_memory;
        let pool = Pool { free, give: give.clone() };
        let map = GuestMap::new(setup.machine.slots().slots().iter().map(|slot| slot.first.0..slot.first.0 + slot.pages));
        let thread = EpochThread { shared: Arc::clone(&shared), orders, pool, verify, map, images: Arc::clone(&setup.images) };
        spawn("epoch", move || epoch::run(thread))?
    };
    let (wanted, wants) = bounded(1);
    let connector = setup.config.standby.map(|standby| {
        let shared = Arc::clone(&shared);
        let config = &setup.config;
        let (give, max_in_flight) = (give.clone(), config.policy.max_in_flight);
        let identity = Identity {
            vm: config.vm.clone(),
            node: config.node.clone(),
            shape: config.shape.clone(),
            boot: setup.images.digest(),
            verify_memory: config.verify_memory,
        };
        spawn("connector", move || match make_buffers(&shared.machine, max_in_flight, &give) {
            Ok(()) => connect::run(&shared, standby, &identity, &wants),
            Err(error) => shared.tell(News::NoStandby { reason: error.to_string() }),
        })
    });
    let connector = connector.transpose()?;
    let mut role = RoleThread {
        setup,
        shared: Arc::clone(&shared),
        wanted,
        asked: false,
        link: None,
        links: 0,
        give,
        end: None,
        broken: None,
        machine_ended: None,
        give_up_ns: None,
        gated: false,
        power_off_by_ns: None,
        mirror: None,
        news,
    };
    role.live(shutdown);
    let RoleThread { setup, end, broken, link, wanted, .. } = role;
    drop(wanted);
    shared.order(Order::Stop);
    setup.machine.stop();
    if let Some(link) = link {
        link.gone.store(true, Ordering::Release);
    }
    let _ = epoch_thread.join();
    // The connector may be in the middle of an attempt: it ends with the process or with its attempt.
    drop(connector);
    if let (Some(End::GuestStopped(_) | End::Interrupted), Some(fence)) = (&end, &setup.fence) {
        // No standby is recorded: nobody can take this guest over.
        fence.release();
    }
    match (end, broken) {
        (Some(end), _) => Ok(end),
        (None, Some(reason)) => Err(PrimaryError::Guest(reason)),
        (None, None) => Ok(End::Interrupted),
    }
}

/// Makes the capture buffers, one more than can be in flight: a commit may come before its buffer's completion is reaped. Off the role thread, because touching
/// their memory takes a while.
fn make_buffers(machine: &Machine, max_in_flight: usize, give: &Sender<CaptureBuffer>) -> Result<(), PrimaryError> {
    for index in 0..=max_in_flight.max(1) {
        let _ = give.send(CaptureBuffer::new(machine.slots().pages(), index)?);
    }
    Ok(())
}

/// Ties the output path to the pipeline and the machine.
fn attach(shared: &Arc<Shared>) {
    let pipeline = Arc::downgrade(shared);
    let machine = Arc::downgrade(&shared.machine);
    shared.output.attach(
        Box::new(move |event| {
            if let Some(shared) = pipeline.upgrade() {
                shared.raise(event);
            }
        }),
        Box::new(move || {
            if let Some(machine) = machine.upgrade() {
                machine.retry_output();
            }
        }),
    );
}

fn spawn(name: &'static str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, PrimaryError> {
    std::thread::Builder::new().name(name.to_owned()).spawn(body).map_err(|source| PrimaryError::Thread { name, source })
}

impl RoleThread {
    fn live(&mut self, shutdown: &AtomicBool) {
        types::thread::urgent(types::thread::Urgency::Pulse);
        let machine_events = self.setup.machine.events().clone();
        let answers = self.setup.arbiter.answers().clone();
        let news = self.news.clone();
        let mut beat_at = monotonic_ns();
        let mut samples_at = beat_at;
        self.raise(RoleEvent::Tick);
        while self.end.is_none() && self.broken.is_none() {
            let now = monotonic_ns();
            let due = beat_at.min(self.setup.node.deadline_ns().unwrap_or(u64::MAX)).saturating_sub(now);
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
            if now >= samples_at {
                samples_at = now + SAMPLES_NS;
                if let Some(line) = self.shared.stats.line(self.shared.committed(), self.shared.output.held().frames) {
                    (self.shared.report)(line);
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
    fn interrupted(&mut self, now: u64) {
        self.give_up_ns = Some(now + LAST_WORD_NS);
        if self.machine_ended.is_none() {
            let reason = "the primary was told to stop".to_owned();
            self.machine_ended = Some(reason.clone());
            self.raise(RoleEvent::GuestEnded { reason });
        }
    }

    fn raise(&mut self, event: RoleEvent) {
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

    fn act(&mut self, action: Role) {
        match action {
            Role::Arbiter { id, request } => self.setup.arbiter.ask(id, request),
            Role::Report { role, protection, generation, reason } => {
                tracing::info!(?role, ?protection, %generation, reason, "state");
                (self.shared.report)(NodeEventKind::State { role, protection, generation, reason });
            }
            Role::Gate => self.gate(),
            Role::TellRecorded { generation } => self.say(&Message::Recorded { generation }),
            Role::Protect => self.mode(Mode::Protected),
            Role::Hold => self.mode(Mode::Held),
            Role::Ungate { generation } => {
                // First: whatever is said from here on may rest on writes that the standby never gets to know. Bounded: a disk that hangs must not keep the guest's output for ever. No link
                // misses a heartbeat meanwhile; a signal waits.
                if let Err(error) = self.shared.disks.struck_out() {
                    tracing::error!(%error, "a disk's change log cannot tell that the standby is struck out; the guest will see errors of that disk");
                }
                self.gated = false;
                match self.shared.output.open(StruckOut::attest(generation)) {
                    Ok(()) => self.mode(Mode::Unprotected),
                    Err(error) => self.broken = Some(format!("held output cannot be released: {error}")),
                }
                self.hold_release(false);
            }
            Role::HoldRelease => self.hold_release(true),
            Role::ResumeRelease => self.hold_release(false),
            Role::TellShutdown { reason } => self.say(&Message::Shutdown { reason }),
            Role::ShutGate => {
                self.shared.output.shut();
                self.shared.disks.shut();
            }
            Role::StopGuest { reason } => {
                self.setup.machine.stop();
                (self.shared.report)(NodeEventKind::Fenced { reason: reason.clone() });
                self.end = Some(End::Fenced(reason));
            }
            Role::GiveUp { reason } => {
                self.setup.machine.stop();
                (self.shared.report)(NodeEventKind::GaveUp { reason: reason.clone() });
                self.end = Some(End::GaveUp(reason));
            }
            Role::Finished if self.give_up_ns.is_some() => {
                self.end.get_or_insert(End::Interrupted);
            }
            Role::Finished => {
                let reason = self.machine_ended.clone().unwrap_or_default();
                self.end.get_or_insert(End::GuestStopped(reason));
            }
            Role::DropLink => self.drop_link(),
            // Start and takeover are over before a primary lives here.
            Role::Fence { .. }
            | Role::Boot { .. }
            | Role::Refused { .. }
            | Role::Activate { .. }
            | Role::StopCommitting
            | Role::StandDown { .. } => {}
        }
    }

    fn gate(&mut self) {
        let generation = self.setup.node.generation();
        self.gated = true;
        // A frame that hangs in a port for longer than the bound is tried again: the record must not be written before it is out.
        for _ in 0..3 {
            match self.shared.output.gate(generation) {
                Ok(()) => {
                    self.shared.output.mirror_to(self.mirror.take());
                    return self.mode(Mode::Gated);
                }
                Err(error) => tracing::warn!(%error, "closing the output gate"),
            }
        }
        self.broken = Some("the output gate cannot be closed".to_owned());
    }

    fn mode(&mut self, mode: Mode) {
        let generation = self.setup.node.generation();
        self.shared.raise(Event::Mode { mode, generation });
    }

    fn hold_release(&mut self, hold: bool) {
        self.shared.raise(Event::HoldRelease(hold));
    }

    fn say(&mut self, message: &Message) {
        let Some(link) = &self.link else { return };
        let sent = message::encode(message).map_err(PrimaryError::from).and_then(|bytes| Ok(link.control.send(&bytes)?));
        if let Err(error) = sent {
            let (link, cause) = (link.number, error.to_string());
            self.shared.tell(News::LinkLost { link, cause });
        }
    }

    /// Whether this node did not run for longer than its peer waits for it. Then nothing is released before the record is read, and that is settled before the control
    /// thread, which may have woken with a commit in its hands, can see that this thread is awake again.
    fn notice_sleep(&mut self, now: u64) {
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

    fn stalled(&mut self, gap_ns: u64) {
        self.shared.raise(Event::HoldRelease(true));
        self.raise(RoleEvent::Stalled { gap_ns });
    }

    fn beat(&mut self, now: u64) {
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

    fn hear(&mut self, news: News) {
        let ours = |number: u64| self.link.as_ref().is_some_and(|link| link.number == number);
        match news {
            News::Linked(linked) => self.linked(linked),
            News::NoStandby { reason } => tracing::warn!(reason, "no standby"),
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
            News::PeerLeft { .. } => {}
        }
    }

    fn machine(&mut self, event: MachineEvent) {
        let reason = match event {
            MachineEvent::Shutdown => "the guest powered off".to_owned(),
            MachineEvent::Reset => return self.shared.ask_reset(),
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

    fn look_for_standby(&mut self) {
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

    fn drop_link(&mut self) {
        self.mirror = None;
        self.shared.output.mirror_to(None);
        let Some(link) = self.link.take() else { return };
        link.gone.store(true, Ordering::Release);
        self.shared.order(Order::Unlink { copying: !self.gated });
        // The threads end by themselves within a poll; the sockets close with them.
    }
}
