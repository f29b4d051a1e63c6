//! A virtio device's interrupts: what a device raises, and how its transport carries it to the guest.
//!
//! Lives here: the status register and the way an event takes from there. Not here: whether the driver wants to hear (the used ring says that). Guards S5: the status
//! is part of the saved state; irqfds are not, which is why an activation raises every interrupt anew.
//!
//! With virtio-mmio there is one line, an edge: each raise is a pulse, whether or not the driver has acknowledged the one before. So a driver on an edge-triggered line
//! need neither read the status nor acknowledge it, which would cost an exit each.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicU32, Ordering},
};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::devices::DeviceError;

/// Bit of the interrupt status: the device has used a buffer.
pub const INTERRUPT_USED: u32 = 1;
/// Bit of the interrupt status: the configuration or the device's status has changed.
pub const INTERRUPT_CONFIG: u32 = 2;

/// One device's interrupts. Shared by the transport (vCPU threads) and the device (worker).
#[derive(Debug, Default)]
pub struct Interrupt {
    status: AtomicU32,
    wire: OnceLock<Wire>,
}

/// How a transport carries interrupts to the guest.
#[derive(Debug)]
enum Wire {
    /// One edge-triggered line for all.
    Line(Arc<EventFd>),
}

impl Interrupt {
    /// Quiet, and not wired to any guest yet.
    #[must_use]
    pub fn new() -> Interrupt {
        Interrupt::default()
    }

    /// Wires all interrupts to one edge-triggered line: the eventfd to register as irqfd, without a resample fd. A transport does this once, when it is made.
    ///
    /// # Errors
    /// [`DeviceError::EventFd`].
    pub(crate) fn wire_to_line(&self) -> Result<Arc<EventFd>, DeviceError> {
        let line =
            EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(|source| DeviceError::EventFd { purpose: "a virtio interrupt", source })?;
        let line = Arc::new(line);
        let wired = self.wire.set(Wire::Line(Arc::clone(&line)));
        debug_assert!(wired.is_ok(), "a device has one transport");
        Ok(line)
    }

    /// Tells the driver that buffers of queue `queue` were used.
    pub fn used(&self, queue: usize) {
        match self.wire.get() {
            Some(Wire::Line(line)) => self.pulse(line, INTERRUPT_USED),
            None => tracing::trace!(queue, "an interrupt of a device without a transport"),
        }
    }

    /// Tells the driver that configuration or device status changed.
    pub fn config_changed(&self) {
        match self.wire.get() {
            Some(Wire::Line(line)) => self.pulse(line, INTERRUPT_CONFIG),
            None => tracing::trace!("an interrupt of a device without a transport"),
        }
    }

    /// Raises every interrupt that may have been on its way when the state was taken: of all `queues`, and of the configuration if that had changed.
    pub(crate) fn replay(&self, queues: usize, config: bool) {
        match self.wire.get() {
            Some(Wire::Line(line)) => self.pulse(line, INTERRUPT_USED | if config { INTERRUPT_CONFIG } else { 0 }),
            None => tracing::trace!(queues, "interrupts of a device without a transport"),
        }
    }

    /// Sets bits of the status, then pulses the line.
    fn pulse(&self, line: &EventFd, bits: u32) {
        // The status must be visible before the guest's handler can run.
        self.status.fetch_or(bits, Ordering::SeqCst);
        signal(line);
    }

    /// The status register.
    #[must_use]
    pub fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    /// Clears the acknowledged bits.
    pub fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::SeqCst);
    }

    /// Puts back a saved status (or 0 at a reset) without telling the guest.
    pub(crate) fn set_status(&self, status: u32) {
        self.status.store(status & (INTERRUPT_USED | INTERRUPT_CONFIG), Ordering::SeqCst);
    }
}

fn signal(event: &EventFd) {
    // The only error a write of 1 can meet is a counter at its limit: then the interrupt is pending anyway.
    if let Err(error) = event.write(1) {
        tracing::trace!(%error, "interrupt already pending");
    }
}
