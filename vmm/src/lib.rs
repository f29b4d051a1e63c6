//! The machine: a KVM VM with its vCPUs, memory, boot, devices, and capture and restore of their complete state.
//!
//! Lives here: everything that knows KVM. Not here: epochs, networks between hosts, who may run (floors above). Guards S5 (complete
//! capture: a restored machine cannot be told from the one that was captured) and S7 (what a guest writes ends in an error, not in harm).

mod acpi;
mod attach;
mod boot;
mod config;
pub mod cpu;
pub mod devices;
mod error;
mod interrupts;
pub mod layout;
mod machine;
mod memory;
mod paused;
mod power;
mod raw;
mod setup;
pub mod sinks;
mod vcpu;
mod vm_state;

pub use acpi::events::PlatformState;
pub use boot::BootImages;
pub use config::{Backing, BootConfig, Bus, KernelImage, MachineConfig, MachineEvent, MemoryConfig, NetConfig, Sinks};
pub use cpu::{CpuLevel, CpuModel};
pub use devices::tap::TapWriter;
pub use error::VmmError;
pub use layout::{MMIO_BASE, MMIO_FIRST_GSI};
pub use machine::Machine;
pub use memory::{HIGH_MEMORY_START, LOW_MEMORY_END};
pub use paused::Paused;
pub use setup::open_kvm;
pub use sinks::{BlockBackend, ConsoleSink, FrameSink, SinkFull};
pub use vcpu::{Ending, VcpuState};
pub use vm_state::{DeviceState, MACHINE_STATE_VERSION, MachineState, TransportState, VirtioState, VmState};

/// Guest memory: mapped once, with a log that notes every write the VMM itself makes.
pub type GuestMemory = vm_memory::GuestMemoryMmap<dirty_tracking::WriteLog>;

/// Most vCPUs a machine may have: the capture barrier and the APIC ids (8 bits) are made for this many.
pub const MAX_VCPUS: u8 = 64;

/// Most disks: more than any guest on one host wants, and few enough that they find a place on a PCI bus beside the other devices.
pub const MAX_DISKS: usize = 16;

/// Most network interfaces; how many virtio devices there can be in all depends on the bus.
pub const MAX_NETS: usize = 16;
