//! What a machine is made of and what it boots: plain data, checked where it is used.

use std::{path::PathBuf, sync::Arc};

use crate::{BlockBackend, ConsoleSink, FrameSink};

/// Shape of a machine. Primary and standby must be made from the same shape (TAP names and backing may differ).
#[derive(Clone, Debug)]
pub struct MachineConfig {
    /// How much guest memory there is, and what it is made of.
    pub memory: MemoryConfig,
    /// Number of vCPUs, 1 to [`crate::MAX_VCPUS`].
    pub vcpus: u8,
    /// What the guest sees of the processor.
    pub cpu: crate::CpuModel,
    /// Network interfaces, at most [`crate::MAX_NETS`].
    pub nets: Vec<NetConfig>,
    /// Whether the guest has an entropy source (virtio-rng).
    pub rng: bool,
    /// How virtio devices meet the guest.
    pub bus: Bus,
    /// How dirty pages are found.
    pub dirty: dirty_tracking::Choice,
}

/// How virtio devices meet the guest. Part of the guest's shape.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Bus {
    /// virtio-mmio: one window and one edge-triggered line for each device. For the built-in guest.
    #[default]
    Mmio,
    /// virtio-pci with MSI-X: one interrupt for each queue, no acknowledgement. For stock kernels.
    Pci,
}

/// Guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryConfig {
    /// Size in bytes, a multiple of the page size.
    pub bytes: u64,
    /// What it is made of.
    pub backing: Backing,
}

/// What guest memory is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backing {
    /// Anonymous and private, with transparent huge pages where the host gives them: touched lazily, and a later drill can fork it copy-on-write.
    #[default]
    Anonymous,
    /// A memfd, shared: another process can map it.
    Memfd,
    /// Huge pages of 2 MiB reserved on the host (`vm.nr_hugepages`).
    HugePages,
}

/// One network interface of the guest, on a TAP of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetConfig {
    /// Name of an existing TAP device.
    pub tap: String,
    /// The guest's MAC address.
    pub mac: [u8; 6],
}

/// What a machine boots.
#[derive(Clone, Debug)]
pub struct BootConfig {
    /// The kernel: a bzImage with a 64-bit entry (as distributions ship it), or an x86-64 ELF image with a PVH entry note.
    pub kernel: KernelImage,
    /// An initial RAM file system.
    pub initramfs: Option<PathBuf>,
    /// Kernel command line. For an image built into the program the machine appends its devices (`virtio_mmio.device=...`) and `lockstep.cpus=N`; any
    /// other kernel is told by ACPI.
    pub cmdline: String,
}

/// Where the kernel comes from.
#[derive(Clone, Debug)]
pub enum KernelImage {
    /// A file.
    Path(PathBuf),
    /// An image built into the program.
    Bytes(&'static [u8]),
}

/// Where a machine's output goes, and who carries out its disk requests.
#[derive(Clone)]
pub struct Sinks {
    /// Frames the guest sends.
    pub frames: Arc<dyn FrameSink>,
    /// Bytes the guest writes to its console.
    pub console: Arc<dyn ConsoleSink>,
    /// The guest's disks in order, at most [`crate::MAX_DISKS`]. Their number and what they tell of themselves are part of the guest's shape.
    pub disks: Vec<Arc<dyn BlockBackend>>,
}

/// Something a machine has to tell while it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MachineEvent {
    /// The guest powered itself off.
    Shutdown,
    /// The guest asked to be reset, or triple-faulted.
    Reset,
    /// KVM could not go on (for instance, an instruction it cannot emulate). The vCPU stands still.
    InternalError {
        /// Which vCPU.
        vcpu: u8,
        /// What KVM said and where the guest was.
        detail: String,
    },
    /// A dirty ring is nearly full and its vCPU stands still until the dirty set is collected.
    DirtyRingFull {
        /// Which vCPU.
        vcpu: u8,
    },
    /// `KVM_RUN` failed. The vCPU stands still.
    VcpuError {
        /// Which vCPU.
        vcpu: u8,
        /// What the kernel said.
        detail: String,
    },
}
