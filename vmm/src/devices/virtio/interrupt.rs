//! A virtio device's interrupts: what a device raises, and how its transport carries it to the guest.
//!
//! Lives here: the status register and the way an event takes from there. Not here: whether the driver wants to hear (the used ring says that). Guards S5: the status
//! is part of the saved state; irqfds are not, which is why an activation raises every interrupt anew.
//!
//! With virtio-mmio there is one line, an edge: each raise is a pulse, whether or not the driver has acknowledged the one before. So a driver on an edge-triggered line
//! need neither read the status nor acknowledge it, which would cost an exit each. With virtio-pci each queue has a message of its own, and nothing is acknowledged.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicU16, AtomicU32, Ordering},
};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::devices::{DeviceError, pci::Msix};

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
    /// MSI-X messages, chosen by the driver for each source.
    Messages(Arc<Messages>),
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

    /// Wires the interrupts of `queues` queues and of the configuration to a function's MSI-X table. A transport does this once, when it is made.
    pub(crate) fn wire_to_messages(&self, msix: Msix, queues: usize) -> Arc<Messages> {
        let none = || AtomicU16::new(NO_VECTOR);
        let messages = Arc::new(Messages { msix, config: none(), queues: (0..queues).map(|_| none()).collect() });
        let wired = self.wire.set(Wire::Messages(Arc::clone(&messages)));
        debug_assert!(wired.is_ok(), "a device has one transport");
        messages
    }

    /// Tells the driver that buffers of queue `queue` were used.
    pub fn used(&self, queue: usize) {
        match self.wire.get() {
            Some(Wire::Line(line)) => self.pulse(line, INTERRUPT_USED),
            // The status tells of a queue only to a driver without MSI-X (virtio 1.2, 4.1.4.5.1).
            Some(Wire::Messages(messages)) => {
                if !messages.msix.fire(messages.queue_vector(queue)) {
                    self.status.fetch_or(INTERRUPT_USED, Ordering::SeqCst);
                }
            }
            None => tracing::trace!(queue, "an interrupt of a device without a transport"),
        }
    }

    /// Tells the driver that configuration or device status changed.
    pub fn config_changed(&self) {
        match self.wire.get() {
            Some(Wire::Line(line)) => self.pulse(line, INTERRUPT_CONFIG),
            Some(Wire::Messages(messages)) => {
                self.status.fetch_or(INTERRUPT_CONFIG, Ordering::SeqCst);
                messages.msix.fire(messages.config_vector());
            }
            None => tracing::trace!("an interrupt of a device without a transport"),
        }
    }

    /// Raises every interrupt that may have been on its way when the state was taken: of all `queues`, and of the configuration. Where one line carries all, one pulse
    /// tells a driver of both, and the status, which is state, says whether the configuration `changed`.
    pub(crate) fn replay(&self, queues: usize, changed: bool) {
        match self.wire.get() {
            Some(Wire::Line(line)) => self.pulse(line, INTERRUPT_USED | if changed { INTERRUPT_CONFIG } else { 0 }),
            Some(Wire::Messages(messages)) => {
                (0..queues).for_each(|queue| self.used(queue));
                messages.msix.fire(messages.config_vector());
            }
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

    /// Reads the status and clears it, as a driver's read does on PCI.
    pub(crate) fn take_status(&self) -> u32 {
        self.status.swap(0, Ordering::SeqCst)
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

/// The vector number that stands for none (virtio 1.2, 4.1.4.3).
pub const NO_VECTOR: u16 = 0xffff;

/// Which MSI-X vector the driver has chosen for each source of interrupts.
#[derive(Debug)]
pub struct Messages {
    msix: Msix,
    config: AtomicU16,
    queues: Vec<AtomicU16>,
}

impl Messages {
    /// The table.
    pub(crate) fn msix(&self) -> &Msix {
        &self.msix
    }

    /// The vector of configuration changes.
    pub(crate) fn config_vector(&self) -> u16 {
        self.config.load(Ordering::SeqCst)
    }

    /// The vector of queue `queue`; none of a queue that does not exist.
    pub(crate) fn queue_vector(&self, queue: usize) -> u16 {
        self.queues.get(queue).map_or(NO_VECTOR, |vector| vector.load(Ordering::SeqCst))
    }

    /// Sets the vector of configuration changes; one that does not exist becomes none, which the driver reads back.
    pub(crate) fn set_config_vector(&self, vector: u16) {
        self.config.store(self.existing(vector), Ordering::SeqCst);
    }

    /// The same for queue `queue`.
    pub(crate) fn set_queue_vector(&self, queue: usize, vector: u16) {
        if let Some(of_queue) = self.queues.get(queue) {
            of_queue.store(self.existing(vector), Ordering::SeqCst);
        }
    }

    /// The device was reset: no source has a vector.
    pub(crate) fn reset(&self) {
        self.set_config_vector(NO_VECTOR);
        (0..self.queues.len()).for_each(|queue| self.set_queue_vector(queue, NO_VECTOR));
    }

    fn existing(&self, vector: u16) -> u16 {
        if usize::from(vector) < self.msix.vectors() { vector } else { NO_VECTOR }
    }
}

fn signal(event: &EventFd) {
    // The only error a write of 1 can meet is a counter at its limit: then the interrupt is pending anyway.
    if let Err(error) = event.write(1) {
        tracing::trace!(%error, "interrupt already pending");
    }
}
