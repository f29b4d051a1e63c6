//! Virtio: what all virtio devices share.
//!
//! Lives here: the device trait, the driver-visible core (status, features, queues), the interrupt, the queue, the two transports
//! ([`mmio`], [`pci`]) and, each in a folder of its own, the devices. Not here: KVM; ioeventfds and irqfds are plain eventfds until the machine registers them.

pub mod blk;
mod core;
mod counters;
pub mod interrupt;
pub mod mmio;
pub mod net;
pub mod pci;
pub(crate) mod queue;
pub mod rng;
#[cfg(test)]
mod testing;

pub use self::core::{SavedCore, VirtioCore};
pub use interrupt::Interrupt;
pub use mmio::MmioTransport;
pub use pci::{PciState, VirtioPci};
pub use queue::{QUEUE_SIZE_MAX, RingError, SavedQueue};

/// Feature bit: the device follows virtio 1.0 or later.
pub const F_VERSION_1: u64 = 1 << 32;
/// Feature bit: a chain may lie in a table of its own, which takes one descriptor of the ring.
pub const F_INDIRECT_DESC: u64 = 1 << 28;
/// Feature bit: interrupts and kicks are suppressed by event indices.
pub const F_EVENT_IDX: u64 = 1 << 29;

/// Status bit: the guest has seen the device.
pub const STATUS_ACKNOWLEDGE: u32 = 1;
/// Status bit: the guest has a driver for it.
pub const STATUS_DRIVER: u32 = 2;
/// Status bit: the driver is set up.
pub const STATUS_DRIVER_OK: u32 = 4;
/// Status bit: features are agreed.
pub const STATUS_FEATURES_OK: u32 = 8;
/// Status bit: the device met something it cannot recover from; only a reset helps.
pub const STATUS_NEEDS_RESET: u32 = 64;
/// Status bit: the driver has given up.
pub const STATUS_FAILED: u32 = 128;

/// A virtio device behind a transport. The transport calls it on vCPU threads, with the device's lock held.
pub trait VirtioDevice: Send {
    /// Device type of the specification (1 is a network card).
    fn device_type(&self) -> u32;
    /// The part that all devices share.
    fn core(&self) -> &VirtioCore;
    /// The part that all devices share.
    fn core_mut(&mut self) -> &mut VirtioCore;
    /// Reads the device's own configuration space; bytes beyond its end read as zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);
    /// The driver has reset the device: forget what was agreed with the driver before. The core is reset already.
    fn on_reset(&mut self);
}

/// Sets the lower half of an address that a driver writes in two.
fn set_low(address: &mut u64, low: u32) {
    *address = (*address & !0xffff_ffff) | u64::from(low);
}

/// Sets the upper half of an address that a driver writes in two.
fn set_high(address: &mut u64, high: u32) {
    *address = (*address & 0xffff_ffff) | (u64::from(high) << 32);
}
