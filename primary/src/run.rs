//! A primary's life, from its grant to its end: what it is made of, and how it ends.
//!
//! Lives here: the making of its threads, and the role thread's state. The role thread itself stands in `run/`: `life.rs` (its loop, and being told to stop),
//! `act.rs` (what the core decides, done) and `link.rs` (the standby: found, heard, lost). Not here: decisions, which are `failover::core`'s.

mod act;
mod life;
mod link;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use checkpoint::{GuestMap, GuestShape, VerifyMemory};
use crossbeam::channel::{Receiver, Sender, bounded, unbounded};
use disk_buffer::Disks;
use failover::Detector;
use failover::client::ArbiterClient;
use failover::core::Node;
use failover::fence::FenceRunner;
use transport::ControlSender;
use types::clock::monotonic_ns;
use types::event::Report;
use types::{NodeId, VmId};
use vmm::{BootImages, Machine};

use crate::capture::CaptureBuffer;
use crate::connect::{self, Identity};
use crate::core::{Event, Mode, Pipeline, Policy};
use crate::epoch::{self, EpochThread};
use crate::error::PrimaryError;
use crate::mirror::Mirror;
use crate::output::OutputPath;
use crate::shared::{Made, News, ORDERS, Order, Shared};
use crate::sync::Pool;

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
    /// When this node last looked around and was sure of its grant, before anything of the guest left it: CLOCK_MONOTONIC. A gap since then is a sleep like any other.
    pub looked_ns: u64,
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
    /// When the reset that the guest has asked for is to be carried out.
    reset_at_ns: Option<u64>,
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
    // Every buffer that there is fits.
    let (give, free) = bounded(buffers(setup.config.policy.max_in_flight));
    let mut pipeline = Pipeline::new(setup.config.policy.clone());
    let generation = setup.node.generation();
    // Nobody sleeps yet.
    let _ = pipeline.handle(Event::Mode { mode: Mode::Unprotected, generation }, monotonic_ns(), &mut Vec::new());
    let shared = Shared::new(Made {
        machine: Arc::clone(&setup.machine),
        output: Arc::clone(&setup.output),
        disks: Arc::clone(&setup.disks),
        report: Arc::clone(&setup.report),
        pipeline,
        epoch: orders_tx,
        role: news_tx,
        looked_ns: setup.looked_ns,
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
        reset_at_ns: None,
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
    if let Some(End::GuestStopped(_) | End::Interrupted) = &end {
        // No standby is recorded: nobody can take this guest over.
        crate::last::give_back(&setup.disks, setup.fence.as_ref());
    }
    match (end, broken) {
        (Some(end), _) => Ok(end),
        (None, Some(reason)) => Err(PrimaryError::Guest(reason)),
        (None, None) => Ok(End::Interrupted),
    }
}

/// Capture buffers: one more than can be in flight, because a commit may come before its buffer's completion is reaped.
fn buffers(max_in_flight: usize) -> usize {
    max_in_flight.max(1) + 1
}

/// Makes the capture buffers. Off the role thread, because touching their memory takes a while.
fn make_buffers(machine: &Machine, max_in_flight: usize, give: &Sender<CaptureBuffer>) -> Result<(), PrimaryError> {
    for index in 0..buffers(max_in_flight) {
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
