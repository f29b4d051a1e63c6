//! The machine's devices, and the contract each of them keeps.
//!
//! Lives here: the buses that vCPU threads dispatch on, virtio and its devices, the serial console, TAP access and the one worker
//! thread that moves frames. Not here: where output goes (the sinks of [`crate::sinks`]), when the machine pauses, or what a checkpoint
//! is. Guards S1 (a frame leaves the guest only through a sink), S5 (every write to guest memory passes vm-memory's bitmap) and S7 (a
//! hostile ring breaks its device and nothing else).
//!
//! # Contract
//!
//! Who may call what, and in which state. "Quiesced" means: no vCPU is in `KVM_RUN`, and a [`worker::Quiesced`] guard is held.
//!
//! | state | vCPU threads | device worker | epoch thread |
//! |---|---|---|---|
//! | built | - | parked | `restore`, then `activate` |
//! | running | [`BusDevice::read`]/[`BusDevice::write`] through an [`AddressSpace`] | batches: rings, TAP, sinks, interrupts | [`worker::WorkerHandle::quiesce`] |
//! | quiesced | - | parked: touches neither rings, TAP, sink nor irqfd | `save`; memory and bitmap may be read |
//!
//! 1. **Stop vCPUs first, then quiesce, then read KVM state.** A batch that is just ending may raise an interrupt. Quiescing waits for
//!    one frame at most: a batch looks at the request after each frame.
//! 2. **Save only when quiesced.** Then rings in guest memory, the bitmap, and the saved indices agree with each other.
//! 3. **Restore before the first start**, into a device built from the same configuration; a state that does not fit is refused. A machine's
//!    reset restores, while it is quiesced, the state that the device had when it was built, after the driver's own reset of it; answers to what it had
//!    under way may still come afterwards and must be ignored.
//! 4. **A queue kick is an eventfd, and eventfds are not state**; nor is an interrupt that sits in an irqfd's work queue in the host
//!    kernel while the interrupt chip is being read. So `activate`, called after the interrupt chip is restored and before the first
//!    `KVM_RUN`, signals every queue and raises every interrupt. Drivers tolerate the spurious ones.
//! 5. **Nothing is read from a TAP before the start or while quiesced**; frames that piled up before `activate` are stale and drained.
//! 6. **A full sink is not an error**: the descriptor stays in the ring, the guest sees a slow network, and transmission goes on after
//!    [`worker::WorkerHandle::retry`] or the end of the quiesced state.
//! 7. **A device that met a hostile ring is broken** (`DEVICE_NEEDS_RESET`) until the driver resets it; that too is state and survives a
//!    failover.

pub mod bus;
mod gate;
pub mod pci;
pub mod serial;
pub mod tap;
pub mod virtio;
pub mod worker;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use bus::{AddressSpace, BusDevice, BusError};

use crate::DeviceState;
use virtio::VirtioDevice;
use worker::WorkerDevice;

/// A virtio device as the machine keeps it: besides being driven by the guest and served by the worker it is saved, restored and woken.
pub trait MachineDevice: VirtioDevice + WorkerDevice {
    /// The device's state. Only when quiesced.
    fn save_state(&self) -> DeviceState;
    /// Puts a saved state into this device, whose guest memory is restored already. Before the first start, or (the state it was built with) in a reset.
    ///
    /// # Errors
    /// [`DeviceError::StateVersion`] or [`DeviceError::StateMismatch`]; the device is then not to be started.
    fn restore_state(&mut self, state: &DeviceState) -> Result<(), DeviceError>;
    /// Last step before the first start of a restored device, after the interrupt chip is set: signals every queue and raises every interrupt
    /// ([`virtio::VirtioCore::replay_events`]), since neither eventfds nor irqfds are state, and begins anew what was under way outside of the guest.
    ///
    /// # Errors
    /// When the outside does not answer; the machine is then not to be started.
    fn wake(&mut self) -> Result<(), DeviceError>;
}

/// What can go wrong with a device outside of the guest's reach: building, saving and restoring it.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// An eventfd could not be made.
    #[error("cannot create an eventfd for {purpose}: {source}; raise the limit of open files (ulimit -n)")]
    EventFd {
        /// What it was for.
        purpose: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A saved state was written by another version of this program.
    #[error("the saved state of {device} has version {found}, this program reads version {known}; run the same version on both hosts")]
    StateVersion {
        /// Which device.
        device: &'static str,
        /// Version in the state.
        found: u16,
        /// Version this program writes.
        known: u16,
    },
    /// A saved state contradicts the device it should be put into.
    #[error("the saved state of {device} does not fit: {reason}; both hosts must run the same machine configuration")]
    StateMismatch {
        /// Which device.
        device: &'static str,
        /// What does not fit.
        reason: String,
    },
    /// The TAP could not be drained at activation.
    #[error("cannot read stale frames from the TAP before the start: {0}")]
    Drain(#[source] std::io::Error),
}

impl DeviceError {
    /// A saved state that is not of this kind of device.
    pub(crate) fn other_kind(device: &'static str) -> DeviceError {
        DeviceError::StateMismatch { device, reason: "the state is another kind of device's".to_owned() }
    }
}

/// Locks a mutex whose holder may have panicked: device state is consistent between frames, and a poisoned lock must not take the
/// other devices down with it.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
