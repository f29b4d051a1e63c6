//! What a node is told to do, as one typed value: [`NodeConfig`].
//!
//! Lives here: the typed configuration and its default values. Beside it: the options as they are written on the command line or in a file
//! ([`options`]), the file itself ([`mod@file`]), the units ([`units`]) and the step from the one to the other ([`resolve`]). Not here: anything that
//! opens a device. Guards S7 for configuration: whatever reaches the machinery has been parsed, bounded and named.

pub mod disk;
pub mod file;
pub mod options;
mod pairs;
pub mod resolve;
pub mod units;
mod verify;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use checkpoint::VerifyMemory;
use types::{NodeId, VmId};

pub use disk::{DiskConfig, DiskMode, Resync};
pub use options::NodeOptions;
pub use resolve::{ConfigError, Verb};
pub use verify::VerifyOption;

/// Everything a node (one host's process for one VM) needs to know. Made by [`NodeOptions::resolve`]; every value is within its bounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    /// The VM's name: the arbiter's key and part of the handshake.
    pub vm: VmId,
    /// This node's name in the arbiter's record; differs between the two hosts.
    pub node: NodeId,
    /// The machine; must be the same on both hosts.
    pub machine: MachineConfig,
    /// The part this node starts in and whom it talks to.
    pub peering: Peering,
    /// What carries the epochs.
    pub transport: TransportKind,
    /// What makes sure that another host is dead (for `/bin/sh -c`; exit 0: certain), for shared disks that cannot be reserved.
    pub fence_command: Option<String>,
    /// Failure detection.
    pub heartbeat: HeartbeatConfig,
    /// When an epoch ends and how many may be under way.
    pub epochs: EpochConfig,
    /// How dirty pages are found.
    pub dirty_tracking: DirtyTracking,
    /// Bytes of previous page contents the primary keeps to send deltas against; 0 = no deltas.
    pub delta_cache_bytes: u64,
    /// What of guest memory is compared at both ends at every epoch.
    pub verify_memory: VerifyMemory,
    /// Where [`types::event::NodeEvent`]s go, one JSON object a line.
    pub events: Option<Sink>,
    /// Where the guest's serial console goes.
    pub console: Console,
}

/// The virtual machine, which must be the same on every host but for paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineConfig {
    /// What is booted.
    pub kernel: Kernel,
    /// Initial RAM disk.
    pub initramfs: Option<PathBuf>,
    /// Kernel command line.
    pub cmdline: String,
    /// Guest memory.
    pub memory: GuestMemorySize,
    /// Virtual CPUs, 1 to [`MAX_VCPUS`].
    pub vcpus: u8,
    /// What the guest sees of the processor.
    pub cpu: CpuModel,
    /// How virtio devices are attached.
    pub bus: Bus,
    /// Network ports in order; the index is the port's number.
    pub nets: Vec<NetConfig>,
    /// Disks in order; the index is the disk's number (the first is the guest's vda).
    pub disks: Vec<DiskConfig>,
    /// Whether the guest has a source of random numbers (virtio-rng).
    pub rng: bool,
    /// What guest memory is made of.
    pub backing: Backing,
}

/// Most vCPUs a machine may have: the APIC identifiers and the machine tables are laid out for 8 bits, and captures are parallel threads.
pub const MAX_VCPUS: u8 = 32;

/// Most network ports: a frame's port travels in the epoch's tail, and more than a few ports on one guest is a typing error.
pub const MAX_NETS: usize = 8;

/// Most virtio devices on the mmio bus: one line of the I/O APIC each.
pub const MAX_MMIO_DEVICES: usize = vmm::layout::MMIO_DEVICES;

/// What the guest sees of the processor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CpuModel {
    /// All that this host's KVM can give: fastest, and both hosts need the same processor.
    #[default]
    Host,
    /// What every x86-64 processor has: for hosts that are themselves virtual machines with little to offer.
    #[value(name = "x86-64-v1")]
    #[serde(rename = "x86-64-v1")]
    X8664V1,
    /// The psABI's second level (Nehalem, Bulldozer and later).
    #[value(name = "x86-64-v2")]
    #[serde(rename = "x86-64-v2")]
    X8664V2,
    /// The psABI's third level (Haswell, Excavator and later).
    #[value(name = "x86-64-v3")]
    #[serde(rename = "x86-64-v3")]
    X8664V3,
}

/// How virtio devices are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bus {
    /// virtio-pci with MSI-X: what stock kernels carry in every initramfs.
    Pci,
    /// virtio-mmio windows: what the built-in guest drives.
    Mmio,
}

/// `--bus` as it is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BusOption {
    /// mmio for the built-in guest, pci for any other.
    #[default]
    Auto,
    /// virtio-pci.
    Pci,
    /// virtio-mmio.
    Mmio,
}

/// What is booted: `--kernel`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// `guest::IMAGE`, the key-value server that comes with the program.
    BuiltIn,
    /// A kernel file.
    File(PathBuf),
}

/// Guest memory: non-zero, a multiple of [`GuestMemorySize::GRANULE`], no more than the host has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GuestMemorySize(u64);

impl GuestMemorySize {
    /// Guest memory comes in 2 MiB pieces, so that every backing (huge pages too) and every slot boundary fits.
    pub const GRANULE: u64 = 2 << 20;
    /// Less than this holds no kernel, stack and heap.
    pub const MIN: u64 = 16 << 20;

    /// Bytes of guest memory.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.0
    }

    /// Pages of guest memory.
    #[must_use]
    pub fn pages(self) -> u64 {
        self.0 / types::PAGE_SIZE as u64
    }
}

/// One `--net`: a network port of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetConfig {
    /// Name of an existing TAP device on this host (1 to 15 bytes).
    pub tap: String,
    /// The guest's MAC address: unicast, not zero; the same on both hosts.
    pub mac: [u8; 6],
}

/// What guest memory is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backing {
    /// Anonymous private memory (a drill can fork it copy-on-write).
    Anonymous,
    /// A memfd, shareable with other processes.
    Memfd,
    /// Huge pages reserved by the administrator.
    Hugepages,
}

/// How dirty pages are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DirtyTracking {
    /// Whichever fits this host (`lockstep check` says which).
    Auto,
    /// KVM's dirty bitmap with manual protect.
    Bitmap,
    /// KVM's dirty ring.
    Ring,
}

/// What carries the epochs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TransportKind {
    /// TCP through io_uring.
    Tcp,
}

/// The part a node starts in and whom it talks to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peering {
    /// Runs the guest with neither standby nor arbiter.
    Alone,
    /// Runs the guest; `standby` is tried again and again, so it may come up at any time.
    Primary {
        /// Who decides which node may run the guest.
        arbiter: Arbiter,
        /// The standby's replication address.
        standby: Option<SocketAddr>,
    },
    /// Holds the copy.
    Standby {
        /// Who decides which node may run the guest.
        arbiter: Arbiter,
        /// Where the primary is awaited.
        listen: SocketAddr,
        /// After activation, the node that this one protects itself with.
        standby: Option<SocketAddr>,
    },
}

/// Who decides which node may run the guest (S3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arbiter {
    /// An atomically updated file on storage that both nodes see.
    File(PathBuf),
}

/// Failure detection. `bound` is at least twice `interval`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeartbeatConfig {
    /// Time between two heartbeats.
    pub interval: Duration,
    /// Silence after which the peer is held to be gone.
    pub bound: Duration,
}

/// When an epoch ends (whichever comes first) and how many may be under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochConfig {
    /// How long pending output may wait before the epoch is ended.
    pub output_wait: Duration,
    /// Dirty pages at which the epoch is ended.
    pub dirty_budget_pages: u64,
    /// The longest an epoch may last.
    pub longest_interval: Duration,
    /// Epochs captured but not yet committed, at most.
    pub max_in_flight: u8,
}

/// Where a stream of lines goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sink {
    /// Standard output.
    Stdout,
    /// A file or FIFO; created when missing, appended to.
    File(PathBuf),
}

/// Where the guest's serial console goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Console {
    /// Input from standard input, output to standard output.
    Stdio,
    /// Output is dropped.
    None,
    /// Output is appended to a file.
    File(PathBuf),
    /// A Unix socket that `lockstep console` connects to.
    Socket(PathBuf),
}

/// Values used when neither the command line nor the file says otherwise.
pub mod defaults {
    use std::time::Duration;

    /// Guest memory, bytes: enough for the built-in guest and for small distributions.
    pub const MEMORY: u64 = 256 << 20;
    /// The VM's name.
    pub const VM: &str = "vm0";
    /// Two scheduler slices of a loaded host fit between two heartbeats: 8 ms each at the median, measured beside a guest that spins on the only core.
    pub const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(20);
    /// Ten missed heartbeats: a hang is noticed in 0.2 s, a busy host is not mistaken for a dead one.
    pub const DETECTION_BOUND: Duration = Duration::from_millis(200);
    /// With commits outstanding; a fifth of the 1 ms that an answer may take. Without, output leaves at once.
    pub const OUTPUT_WAIT: Duration = Duration::from_micros(200);
    /// 4096 pages: about 1.7 ms of pause at the floor formula.
    pub const DIRTY_BUDGET: u64 = 16 << 20;
    /// An idle guest costs 20 short pauses a second.
    pub const LONGEST_INTERVAL: Duration = Duration::from_millis(50);
    /// Enough to overlap capture, encoding, sending and committing.
    pub const MAX_IN_FLIGHT: u8 = 4;
    /// The hot set of a guest that dirties a few thousand pages an epoch.
    pub const DELTA_CACHE: u64 = 64 << 20;
    /// Log filter: changes of state, and what needs an operator.
    pub const LOG: &str = "info";
}
