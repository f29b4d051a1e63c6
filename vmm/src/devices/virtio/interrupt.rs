//! A virtio device's interrupt: the status register and the irqfd behind it.
//!
//! Lives here: raising and acknowledging. Not here: whether the driver wants to hear (the used ring says that). Guards S5: the status is
//! part of the saved state; the irqfd is not, which is why an activation raises the interrupt anew.
//!
//! The line is an edge: each raise is a pulse, whether or not the driver has acknowledged the one before. So a driver on an
//! edge-triggered line need neither read the status nor acknowledge it, which would cost an exit each.

use std::sync::atomic::{AtomicU32, Ordering};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::devices::DeviceError;

/// Bit of the interrupt status: the device has used a buffer.
pub const INTERRUPT_USED: u32 = 1;
/// Bit of the interrupt status: the configuration or the device's status has changed.
pub const INTERRUPT_CONFIG: u32 = 2;

/// One device's interrupt. Shared by the transport (vCPU threads) and the device (worker).
#[derive(Debug)]
pub struct Interrupt {
    status: AtomicU32,
    line: EventFd,
}

impl Interrupt {
    /// A quiet interrupt with an eventfd of its own.
    ///
    /// # Errors
    /// [`DeviceError::EventFd`].
    pub fn new() -> Result<Interrupt, DeviceError> {
        let line =
            EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(|source| DeviceError::EventFd { purpose: "a virtio interrupt", source })?;
        Ok(Interrupt { status: AtomicU32::new(0), line })
    }

    /// The eventfd to register as irqfd, on an edge-triggered line, without a resample fd.
    #[must_use]
    pub fn irqfd(&self) -> &EventFd {
        &self.line
    }

    /// Sets bits of the status, then pulses the line.
    pub fn raise(&self, bits: u32) {
        // The status must be visible before the guest's handler can run.
        self.status.fetch_or(bits, Ordering::SeqCst);
        // The only error a write of 1 can meet is a counter at its limit: then the line is pending anyway.
        if let Err(error) = self.line.write(1) {
            tracing::trace!(%error, "interrupt line already pending");
        }
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

    /// Puts back a saved status (or 0 at a reset) without touching the line.
    pub(crate) fn set_status(&self, status: u32) {
        self.status.store(status & (INTERRUPT_USED | INTERRUPT_CONFIG), Ordering::SeqCst);
    }
}
