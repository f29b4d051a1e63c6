//! A node: composes the machine, the primary's and the standby's shells, and the events stream. No mechanism lives here.

mod console;
mod drivers;
mod fence;
mod outlets;

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use checkpoint::{GuestBus, GuestShape};
use disk_buffer::{DiskOptions, Disks};
use failover::client::ArbiterClient;
use failover::core::{Config as RoleConfig, Node};
use failover::fence::FenceRunner;
use failover::fence::runner::ArbiterMaker;
use failover::memory::MemoryArbiter;
use failover::{Arbiter, FileArbiter};
use net_buffer::Limits;
use primary::core::Policy;
use primary::{End, OutputPath, PrimaryConfig, Start};
use replica::{Outcome, ReplicaConfig};
use transport::TransportError;
use types::HostId;
use types::event::{NodeEventKind, Report};
use vmm::{BootConfig, BootImages, CpuLevel, CpuModel, KernelImage, Machine, Sinks};

use crate::config::{self, Console, NodeConfig, Peering};
use outlets::Outlets;

/// How long a guest may take to shut itself down when its node is told to stop. Below the 90 s after which systemd kills a service that does not stop.
const POWER_BUTTON: Duration = Duration::from_secs(60);

/// How a node's life ended in good order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// The guest ended by itself.
    GuestStopped {
        /// How.
        reason: String,
    },
    /// The node was told to stop (a signal).
    Interrupted,
    /// The node lost the right to run and stopped its guest.
    Fenced {
        /// Why.
        reason: String,
    },
    /// This host failed under the guest (a disk), and the standby takes over.
    GaveUp {
        /// Why.
        reason: String,
    },
}

/// Why a node could not go on.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The primary failed.
    #[error("the primary failed")]
    Primary(#[from] primary::PrimaryError),
    /// The standby failed.
    #[error("the standby failed")]
    Replica(#[from] replica::ReplicaError),
    /// The machine cannot be made or booted.
    #[error("cannot make the machine and load its guest")]
    Machine(#[from] vmm::VmmError),
    /// The replication port cannot be had.
    #[error("cannot listen on the replication port")]
    Transport(#[from] TransportError),
    /// The arbiter does not grant the guest to this node.
    #[error("not granted: {0}")]
    Refused(String),
    /// A disk cannot be used.
    #[error("cannot use the disks as they are given")]
    Disk(#[from] disk_buffer::DiskError),
    /// Older owners could not be shut out of the shared disks.
    #[error("cannot shut older owners out of the shared disks")]
    Fence(#[from] failover::fence::FenceError),
    /// The output buffer cannot be made.
    #[error("cannot make the buffer for the guest's output")]
    Output(#[from] net_buffer::BufferError),
    /// A file cannot be opened.
    #[error("opening {what} {path}: {source}; check the path and its permissions")]
    Open {
        /// "events file", "console file".
        what: &'static str,
        /// The path.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The host refuses a thread or random numbers.
    #[error("the host refused {what}: {source}; its limit on threads or open files may be reached (ulimit -u, ulimit -n)")]
    Host {
        /// What.
        what: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// The configuration names the wrong part.
    #[error("this configuration is not that of a {0}")]
    WrongPart(&'static str),
}

/// Runs a primary until its guest ends, it is fenced, or `shutdown` is set.
///
/// # Errors
/// Whatever keeps the machine from being made, booted or protected.
///
/// `abandon_standby`: start although the record names another owner or a standby.
pub fn run_primary(config: &NodeConfig, abandon_standby: bool, shutdown: &AtomicBool) -> Result<Exit, NodeError> {
    let outlets = Outlets::open(config)?;
    if let Some(text) = fence::unused(config) {
        outlets.warn(text);
    }
    let exit = start_primary(config, abandon_standby, &outlets, shutdown);
    outlets.flush();
    exit
}

fn start_primary(config: &NodeConfig, abandon_standby: bool, outlets: &Outlets, shutdown: &AtomicBool) -> Result<Exit, NodeError> {
    let report = Arc::clone(&outlets.report);
    let images = images(config)?;
    let arbiters = arbiters(config);
    let host = failover::host::this_host();
    let fence = fence::of(config, host)?;
    let disks = open_disks(config, fence.is_some())?;
    let mut fence = fence::runner(fence, config, &disks, &arbiters);
    let (mut machine, output) = machine(config, outlets, &disks)?;
    if matches!(config.peering, Peering::Standby { .. }) {
        return Err(NodeError::WrongPart("primary"));
    }
    // Before the grant: a node whose kernel is none must not be recorded as the one that runs the guest.
    machine.boot_images(&images)?;
    let arbiter = client(arbiters())?;
    let mut node = node(config, host);
    // Before the grant, which may take the guest from another host: it must not be taken for a copy that no guest can start from.
    disks.check_start()?;
    // A guest that runs here already keeps its disks. By force, a file's lock may be that of a host that has to be fenced first: then it is taken after that.
    if abandon_standby {
        disks.claim_devices(Duration::ZERO)?
    } else {
        disks.claim(Duration::ZERO)?
    }
    let asking = primary::Asking { node: &mut node, arbiter: &arbiter, fence: fence.as_mut(), report: &report };
    let looked_ns = match primary::start(asking, abandon_standby, shutdown) {
        Start::Granted { looked_ns } => looked_ns,
        other => return not_granted(other),
    };
    types::fault::reach(types::fault::Point::BeforeStart);
    let bound_ns = config.heartbeat.bound.as_nanos() as u64;
    let mut confirm = |looked_ns| {
        let asking = primary::Asking { node: &mut node, arbiter: &arbiter, fence: fence.as_mut(), report: &report };
        primary::confirm(asking, looked_ns, bound_ns, shutdown)
    };
    let looked_ns = match confirm(looked_ns) {
        Start::Granted { looked_ns } => looked_ns,
        other => return not_granted(other),
    };
    // This begins a line of data that no other host has: only with a grant that stands.
    disks.start_primary()?;
    let looked_ns = match confirm(looked_ns) {
        Start::Granted { looked_ns } => looked_ns,
        other => return not_granted(other),
    };
    machine.start()?;
    // The guest may have run on another host before: switches must not go on sending its frames there.
    for (port, frame) in machine.announcements() {
        if let Some(tap) = machine.tap_writer(port) {
            tap.write_frame(&frame);
        }
    }
    report(NodeEventKind::Ready);
    let machine = Arc::new(machine);
    lead(Leading { config, outlets, machine, images, output, disks, node, arbiter, fence, looked_ns, report }, shutdown)
}

/// The end of a start that did not come to a running guest.
fn not_granted(start: Start) -> Result<Exit, NodeError> {
    match start {
        Start::Refused(reason) => Err(NodeError::Refused(reason)),
        Start::Fenced(reason) => Ok(Exit::Fenced { reason }),
        Start::Interrupted | Start::Granted { .. } => Ok(Exit::Interrupted),
    }
}

/// Runs a standby, and the primary that it becomes on activation, until the guest ends, it is fenced, or `shutdown` is set.
///
/// # Errors
/// Whatever keeps the machine from being made or the standby from listening.
pub fn run_standby(config: &NodeConfig, shutdown: &AtomicBool) -> Result<Exit, NodeError> {
    let outlets = Outlets::open(config)?;
    if let Some(text) = fence::unused(config) {
        outlets.warn(text);
    }
    let exit = start_standby(config, &outlets, shutdown);
    outlets.flush();
    exit
}

fn start_standby(config: &NodeConfig, outlets: &Outlets, shutdown: &AtomicBool) -> Result<Exit, NodeError> {
    let report = Arc::clone(&outlets.report);
    let Peering::Standby { listen, .. } = &config.peering else {
        return Err(NodeError::WrongPart("standby"));
    };
    // Now: after a failover the guest may ask for a reset, and would then not find what it boots from.
    let images = images(config)?;
    let arbiters = arbiters(config);
    let host = failover::host::this_host();
    let fence = fence::of(config, host)?;
    let disks = open_disks(config, fence.is_some())?;
    let fence = fence::runner(fence, config, &disks, &arbiters);
    let (machine, output) = machine(config, outlets, &disks)?;
    let setup = replica::Setup {
        node: node(config, host),
        arbiter: client(arbiters())?,
        witness: client(arbiters())?,
        fence,
        listener: transport::tcp::Listener::bind(listen)?,
        report: Arc::clone(&report),
        config: ReplicaConfig {
            vm: config.vm.clone(),
            node: config.node.clone(),
            shape: shape(config, &machine),
            boot: images.digest(),
            heartbeat_ns: config.heartbeat.interval.as_nanos() as u64,
            bound_ns: config.heartbeat.bound.as_nanos() as u64,
            verify_memory: config.verify_memory,
        },
        machine,
        console: outlets.committed_console(),
        disks: Arc::clone(&disks),
    };
    match replica::run(setup, shutdown)? {
        Outcome::Interrupted => Ok(Exit::Interrupted),
        Outcome::Fenced(reason) => Ok(Exit::Fenced { reason }),
        Outcome::Activated(active) => {
            let replica::Activated { machine, node, arbiter, fence, looked_ns } = *active;
            let machine = Arc::new(machine);
            lead(Leading { config, outlets, machine, images, output, disks, node, arbiter, fence, looked_ns, report }, shutdown)
        }
    }
}

struct Leading<'a> {
    config: &'a NodeConfig,
    outlets: &'a Outlets,
    machine: Arc<Machine>,
    images: Arc<BootImages>,
    output: Arc<OutputPath>,
    disks: Arc<Disks>,
    node: Node,
    arbiter: ArbiterClient,
    fence: Option<FenceRunner>,
    looked_ns: u64,
    report: Report,
}

/// The life of a primary whose machine runs.
fn lead(leading: Leading<'_>, shutdown: &AtomicBool) -> Result<Exit, NodeError> {
    let Leading { config, outlets, machine, images, output, disks, node, arbiter, fence, looked_ns, report } = leading;
    if config.console == Console::Stdio {
        console_input(&machine)?;
    }
    outlets.type_at(&machine);
    drivers::watch(&machine, config.machine.bus, &report)?;
    let standby = match &config.peering {
        Peering::Alone => None,
        Peering::Primary { standby, .. } | Peering::Standby { standby, .. } => *standby,
    };
    let epochs = &config.epochs;
    let setup = primary::Setup {
        config: PrimaryConfig {
            vm: config.vm.clone(),
            node: config.node.clone(),
            shape: shape(config, &machine),
            standby,
            heartbeat_ns: config.heartbeat.interval.as_nanos() as u64,
            bound_ns: config.heartbeat.bound.as_nanos() as u64,
            policy: Policy {
                output_wait_ns: epochs.output_wait.as_nanos() as u64,
                dirty_budget_pages: epochs.dirty_budget_pages,
                longest_ns: epochs.longest_interval.as_nanos() as u64,
                max_in_flight: usize::from(epochs.max_in_flight),
                ..Policy::default()
            },
            delta_pages: (config.delta_cache_bytes / types::PAGE_SIZE as u64) as usize,
            verify_memory: config.verify_memory,
            power_button_ns: match &config.machine.kernel {
                // It knows no power button.
                config::Kernel::BuiltIn => 0,
                config::Kernel::File(_) => POWER_BUTTON.as_nanos() as u64,
            },
        },
        machine,
        images,
        output,
        disks,
        node,
        arbiter,
        fence,
        looked_ns,
        report,
    };
    Ok(match primary::run(setup, shutdown)? {
        End::GuestStopped(reason) => Exit::GuestStopped { reason },
        End::Fenced(reason) => Exit::Fenced { reason },
        End::GaveUp(reason) => Exit::GaveUp { reason },
        End::Interrupted => Exit::Interrupted,
    })
}

/// What the guest boots from, at its start and at each reset.
fn images(config: &NodeConfig) -> Result<Arc<BootImages>, NodeError> {
    let kernel = match &config.machine.kernel {
        config::Kernel::BuiltIn => KernelImage::Bytes(guest::IMAGE),
        config::Kernel::File(path) => KernelImage::Path(path.clone()),
    };
    let boot = BootConfig { kernel, initramfs: config.machine.initramfs.clone(), cmdline: config.machine.cmdline.clone() };
    Ok(Arc::new(BootImages::open(&boot)?))
}

/// The disks, opened, and each host's own copies locked. `fenced`: older owners of shared ones will be shut out before this process writes to them.
fn open_disks(config: &NodeConfig, fenced: bool) -> Result<Arc<Disks>, NodeError> {
    let fenced = fenced.then(disk_buffer::Fenced::attest);
    let options: Vec<DiskOptions> = config.machine.disks.iter().map(|disk| DiskOptions { fenced, ..disk_options(disk) }).collect();
    Ok(Arc::new(Disks::open(&options)?))
}

fn disk_options(disk: &config::DiskConfig) -> DiskOptions {
    DiskOptions {
        path: disk.path.clone(),
        log: disk.log.clone(),
        serial: Some(disk.serial.clone()),
        read_only: disk.read_only,
        mode: match disk.mode {
            config::DiskMode::Mirror => disk_buffer::Mode::Mirror,
            config::DiskMode::Shared => disk_buffer::Mode::Shared,
        },
        overwrite: disk.resync == config::Resync::Full,
        ..DiskOptions::default()
    }
}

fn machine(config: &NodeConfig, outlets: &Outlets, disks: &Disks) -> Result<(Machine, Arc<OutputPath>), NodeError> {
    let output = OutputPath::new(Limits::default(), outlets.console())?;
    let sinks = Sinks {
        frames: Arc::clone(&output) as Arc<dyn vmm::FrameSink>,
        console: Arc::clone(&output) as Arc<dyn vmm::ConsoleSink>,
        disks: primary::backends(disks),
    };
    let shape = &config.machine;
    let machine = Machine::new(
        &vmm::MachineConfig {
            memory: vmm::MemoryConfig {
                bytes: shape.memory.bytes(),
                backing: match shape.backing {
                    config::Backing::Anonymous => vmm::Backing::Anonymous,
                    config::Backing::Memfd => vmm::Backing::Memfd,
                    config::Backing::Hugepages => vmm::Backing::HugePages,
                },
            },
            vcpus: shape.vcpus,
            nets: shape.nets.iter().map(|net| vmm::NetConfig { tap: net.tap.clone(), mac: net.mac }).collect(),
            rng: shape.rng,
            bus: match shape.bus {
                config::Bus::Pci => vmm::Bus::Pci,
                config::Bus::Mmio => vmm::Bus::Mmio,
            },
            cpu: match shape.cpu {
                config::CpuModel::Host => CpuModel::Host,
                config::CpuModel::X8664V1 => CpuModel::Level(CpuLevel::V1),
                config::CpuModel::X8664V2 => CpuModel::Level(CpuLevel::V2),
                config::CpuModel::X8664V3 => CpuModel::Level(CpuLevel::V3),
            },
            dirty: match config.dirty_tracking {
                config::DirtyTracking::Auto => dirty_tracking::Choice::Auto,
                config::DirtyTracking::Bitmap => dirty_tracking::Choice::Bitmap,
                config::DirtyTracking::Ring => dirty_tracking::Choice::Ring,
            },
        },
        sinks,
    )?;
    // Before there are sockets: when this process is killed its peer must see that before its memory is freed and its machine taken apart.
    if let Err(error) = transport::prompt_death::hold(machine.descriptors()) {
        tracing::warn!(%error, "should this process be killed, its peer will notice only after its memory is freed");
    }
    output.connect((0..shape.nets.len() as u8).filter_map(|port| machine.tap_writer(port)).collect());
    Ok((machine, output))
}

fn shape(config: &NodeConfig, machine: &Machine) -> GuestShape {
    GuestShape {
        memory_bytes: config.machine.memory.bytes(),
        vcpus: u32::from(config.machine.vcpus),
        nets: config.machine.nets.iter().map(|net| net.mac).collect(),
        bus: match config.machine.bus {
            config::Bus::Mmio => GuestBus::Mmio,
            config::Bus::Pci => GuestBus::Pci,
        },
        rng: config.machine.rng,
        cpu: machine.cpu(),
    }
}

fn node(config: &NodeConfig, host: Option<HostId>) -> Node {
    // Tells this process from an earlier one of the same name; a repeat would take two starts in the same nanosecond with the same seed.
    let instance = rand::random();
    Node::new(RoleConfig { host, fence: fence::paths(config).next().is_some(), ..RoleConfig::new(config.node.clone(), instance) })
}

/// What makes a way to the arbiter for whoever asks it on a thread of its own.
fn arbiters(config: &NodeConfig) -> ArbiterMaker {
    match &config.peering {
        Peering::Alone => {
            let arbiter = MemoryArbiter::default();
            Arc::new(move || Box::new(arbiter.clone()) as Box<dyn Arbiter>)
        }
        Peering::Primary { arbiter: config::Arbiter::File(path), .. } | Peering::Standby { arbiter: config::Arbiter::File(path), .. } => {
            let (path, vm) = (path.clone(), config.vm.clone());
            Arc::new(move || Box::new(FileArbiter::new(path.clone(), vm.clone())) as Box<dyn Arbiter>)
        }
    }
}

fn client(arbiter: Box<dyn Arbiter>) -> Result<ArbiterClient, NodeError> {
    ArbiterClient::spawn(arbiter).map_err(|source| NodeError::Host { what: "a thread for the arbiter", source })
}

/// Bytes from standard input to the guest's serial port, until either ends.
fn console_input(machine: &Arc<Machine>) -> Result<(), NodeError> {
    let machine = Arc::downgrade(machine);
    let body = move || {
        let mut bytes = [0; 256];
        while let Ok(count) = std::io::stdin().lock().read(&mut bytes) {
            let (true, Some(machine)) = (count > 0, machine.upgrade()) else { break };
            let taken = machine.console_input(&bytes[..count]);
            if taken < count {
                tracing::warn!(dropped = count - taken, "console input dropped: the guest does not read it");
            }
        }
    };
    let spawned = std::thread::Builder::new().name("console".to_owned()).spawn(body);
    spawned.map(drop).map_err(|source| NodeError::Host { what: "a thread for the console", source })
}
