//! The machine: a KVM VM with its vCPUs, memory, boot, devices, and capture and restore of their complete state.
//!
//! Lives here: everything that knows KVM. Not here: epochs, networks between hosts, who may run (floors above). Guards S5 (complete
//! capture: a restored machine cannot be told from the one that was captured) and S7 (what a guest writes ends in an error, not in harm).

pub mod devices;
pub mod sinks;

pub use sinks::{ConsoleSink, FrameSink, SinkFull};

/// Guest memory: mapped once, with a bitmap that notes every write the VMM itself makes.
pub type GuestMemory = vm_memory::GuestMemoryMmap<vm_memory::bitmap::AtomicBitmap>;
