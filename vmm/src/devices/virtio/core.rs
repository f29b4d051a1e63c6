//! What a driver sees of any virtio device: status, features, queues (virtio 1.2, sections 2.1, 2.2 and 3.1).
//!
//! Lives here: the status state machine and feature negotiation. Not here: register offsets (the transport) and frames (the device).
//! Guards S7: a driver that breaks the order is refused or breaks its own device, with a reason that is logged once.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use super::interrupt::Interrupt;
use super::queue::{RingError, SavedQueue, VirtioQueue};
use super::{F_EVENT_IDX, F_VERSION_1, STATUS_DRIVER, STATUS_DRIVER_OK, STATUS_FEATURES_OK, STATUS_NEEDS_RESET};
use crate::GuestMemory;
use crate::devices::DeviceError;

/// The saved state of a [`VirtioCore`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedCore {
    status: u32,
    driver_features: u64,
    device_features_page: u32,
    driver_features_page: u32,
    selected_queue: u32,
    interrupt_status: u32,
    config_generation: u32,
    queues: Vec<SavedQueue>,
}

/// The part that all virtio devices share. The device owns it, so that one lock covers registers and rings.
#[derive(Debug)]
pub struct VirtioCore {
    name: String,
    memory: GuestMemory,
    interrupt: Arc<Interrupt>,
    offered: u64,
    status: u32,
    driver_features: u64,
    pub(crate) device_features_page: u32,
    pub(crate) driver_features_page: u32,
    pub(crate) selected_queue: u32,
    config_generation: u32,
    pub(crate) queues: Vec<VirtioQueue>,
    broken: Option<String>,
    protocol_errors: u64,
}

impl VirtioCore {
    pub(crate) fn new(name: &str, memory: GuestMemory, offered: u64, queues: usize) -> Result<VirtioCore, DeviceError> {
        Ok(VirtioCore {
            name: name.to_owned(),
            memory,
            interrupt: Arc::new(Interrupt::new()),
            offered,
            status: 0,
            driver_features: 0,
            device_features_page: 0,
            driver_features_page: 0,
            selected_queue: 0,
            config_generation: 0,
            queues: (0..queues).map(VirtioQueue::new).collect::<Result<_, _>>()?,
            broken: None,
            protocol_errors: 0,
        })
    }

    /// The device's interrupt.
    #[must_use]
    pub fn interrupt(&self) -> &Arc<Interrupt> {
        &self.interrupt
    }

    /// The guest memory that the rings and buffers are in.
    #[must_use]
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Memory, interrupt and queues, borrowed side by side.
    pub(crate) fn parts(&mut self) -> (&GuestMemory, &Interrupt, &mut [VirtioQueue]) {
        (&self.memory, &self.interrupt, &mut self.queues)
    }

    /// The device status register (virtio 1.2, section 2.1).
    #[must_use]
    pub fn status(&self) -> u32 {
        self.status
    }

    /// True while rings may be touched: the driver is set up and the device is not broken.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.status & (STATUS_DRIVER_OK | STATUS_NEEDS_RESET) == STATUS_DRIVER_OK
    }

    /// Why the device needs a reset, if it does.
    #[must_use]
    pub fn broken(&self) -> Option<&str> {
        self.broken.as_deref()
    }

    /// Accesses by the driver that the specification forbids and that were ignored, since the device was built.
    #[must_use]
    pub fn protocol_errors(&self) -> u64 {
        self.protocol_errors
    }

    /// True if driver and device agreed on this feature.
    #[must_use]
    pub fn has_feature(&self, bit: u64) -> bool {
        self.status & STATUS_FEATURES_OK != 0 && self.driver_features & bit != 0
    }

    pub(crate) fn config_generation(&self) -> u32 {
        self.config_generation
    }

    /// 32 bits of the offered features, chosen by the driver's selector.
    pub(crate) fn offered_features_word(&self) -> u32 {
        feature_word(self.offered, self.device_features_page)
    }

    /// 32 bits of the features that the driver has accepted, chosen by its selector.
    pub(crate) fn driver_features_word(&self) -> u32 {
        feature_word(self.driver_features, self.driver_features_page)
    }

    pub(crate) fn set_driver_features_word(&mut self, word: u32) {
        if self.status & STATUS_FEATURES_OK != 0 {
            return self.protocol_error("features written after FEATURES_OK");
        }
        let word = u64::from(word);
        match self.driver_features_page {
            0 => self.driver_features = (self.driver_features & !0xffff_ffff) | word,
            1 => self.driver_features = (self.driver_features & 0xffff_ffff) | (word << 32),
            // There are no features above bit 63; a driver that sets one asks for what was not offered.
            _ if word == 0 => {}
            _ => self.protocol_error("features above bit 63 written"),
        }
    }

    /// The driver writes a non-zero status. (Zero is a reset, which concerns the whole device.)
    pub(crate) fn set_status(&mut self, status: u32) {
        let before = self.status;
        if before & !STATUS_NEEDS_RESET & !status != 0 {
            return self.protocol_error("status bits cleared without a reset");
        }
        let mut added = status & !before & !STATUS_NEEDS_RESET;
        if added & STATUS_FEATURES_OK != 0 {
            let agreed = before | added;
            let acceptable = self.driver_features & !self.offered == 0 && self.driver_features & F_VERSION_1 != 0;
            if agreed & STATUS_DRIVER == 0 || !acceptable {
                // The specification's way to say no: the bit does not stick, and the driver reads that it did not.
                added &= !STATUS_FEATURES_OK;
                self.protocol_error("features that were not offered, without VERSION_1, or before DRIVER");
            }
        }
        self.status |= added & !STATUS_DRIVER_OK;
        if added & STATUS_DRIVER_OK != 0 {
            if self.status & STATUS_FEATURES_OK == 0 {
                return self.protocol_error("DRIVER_OK before FEATURES_OK");
            }
            self.status |= STATUS_DRIVER_OK;
            // A kick that came too early was ignored, so look at every ring once; this also wakes the worker for the input side.
            self.kick_all();
        }
    }

    /// The driver's reset of everything here. Interrupts and kicks under way are harmless.
    pub(crate) fn reset(&mut self) {
        self.status = 0;
        self.driver_features = 0;
        self.device_features_page = 0;
        self.driver_features_page = 0;
        self.selected_queue = 0;
        self.broken = None;
        self.interrupt.set_status(0);
        for queue in &mut self.queues {
            queue.reset();
        }
    }

    /// The selected queue, if there is one and it may still be configured.
    pub(crate) fn configurable_queue(&mut self) -> Option<&mut VirtioQueue> {
        let locked = self.status & STATUS_DRIVER_OK != 0;
        let selected = usize::try_from(self.selected_queue).ok()?;
        if locked || self.queues.get(selected).is_none_or(VirtioQueue::ready) {
            self.protocol_error("a queue configured that does not exist, is ready or belongs to a running device");
            return None;
        }
        self.queues.get_mut(selected)
    }

    /// The selected queue.
    pub(crate) fn selected_queue(&self) -> Option<&VirtioQueue> {
        self.queues.get(usize::try_from(self.selected_queue).ok()?)
    }

    /// The driver declares the selected queue ready, or takes that back.
    pub(crate) fn set_queue_ready(&mut self, ready: bool) {
        let event_idx = self.has_feature(F_EVENT_IDX);
        let features_ok = self.status & STATUS_FEATURES_OK != 0;
        let Some(queue) = usize::try_from(self.selected_queue).ok().and_then(|selected| self.queues.get_mut(selected)) else {
            return self.protocol_error("a queue that does not exist made ready");
        };
        if !ready {
            queue.disable();
        } else if !features_ok {
            self.protocol_error("a queue made ready before FEATURES_OK");
        } else if !queue.ready()
            && let Err(error) = queue.enable(&self.memory, event_idx)
        {
            self.break_device(&error);
        }
    }

    /// Each queue's kick, in the queues' order.
    pub(crate) fn kicks(&self) -> Vec<Arc<EventFd>> {
        self.queues.iter().map(|queue| Arc::clone(queue.kick())).collect()
    }

    /// Signals the worker as if the guest had kicked every queue.
    pub(crate) fn kick_all(&self) {
        for queue in &self.queues {
            // A full counter means that a kick is pending already.
            if let Err(error) = queue.kick().write(1) {
                tracing::trace!(%error, "kick already pending");
            }
        }
    }

    /// The device gives up until the driver resets it.
    pub(crate) fn break_device(&mut self, error: &RingError) {
        if self.broken.is_some() {
            return;
        }
        let reason = error.to_string();
        tracing::warn!(device = %self.name, %reason, "the guest broke its virtio device; it stays silent until its driver resets it");
        self.broken = Some(reason);
        self.status |= STATUS_NEEDS_RESET;
        self.config_generation = self.config_generation.wrapping_add(1);
        if self.status & STATUS_DRIVER_OK != 0 {
            self.interrupt.config_changed();
        }
    }

    /// Counts and logs an access that the specification forbids. The first is worth a line; a flood of them is not.
    pub(crate) fn protocol_error(&mut self, what: &'static str) {
        self.protocol_errors += 1;
        if self.protocol_errors == 1 {
            tracing::warn!(device = %self.name, what, "the guest's driver does not keep to the virtio specification; the access is ignored");
        } else {
            tracing::trace!(device = %self.name, what, "virtio protocol error");
        }
    }

    pub(crate) fn save(&self) -> SavedCore {
        SavedCore {
            status: self.status,
            driver_features: self.driver_features,
            device_features_page: self.device_features_page,
            driver_features_page: self.driver_features_page,
            selected_queue: self.selected_queue,
            interrupt_status: self.interrupt.status(),
            config_generation: self.config_generation,
            queues: self.queues.iter().map(VirtioQueue::save).collect(),
        }
    }

    pub(crate) fn restore(&mut self, saved: &SavedCore) -> Result<(), DeviceError> {
        let mismatch = |reason: String| DeviceError::StateMismatch { device: "virtio device", reason };
        let foreign = saved.driver_features & !self.offered;
        if saved.status & STATUS_FEATURES_OK != 0 && foreign != 0 {
            return Err(mismatch(format!("the driver uses features {foreign:#x} that this host does not offer")));
        }
        if saved.queues.len() != self.queues.len() {
            return Err(mismatch(format!("{} queues saved, {} here", saved.queues.len(), self.queues.len())));
        }
        for (queue, saved) in self.queues.iter_mut().zip(&saved.queues) {
            queue.restore(&self.memory, saved).map_err(|error| mismatch(error.to_string()))?;
        }
        self.status = saved.status;
        self.driver_features = saved.driver_features;
        self.device_features_page = saved.device_features_page;
        self.driver_features_page = saved.driver_features_page;
        self.selected_queue = saved.selected_queue;
        self.config_generation = saved.config_generation;
        self.broken = (saved.status & STATUS_NEEDS_RESET != 0).then(|| "broken before the state was saved".to_owned());
        self.interrupt.set_status(saved.interrupt_status);
        Ok(())
    }

    /// Before the first start, after the interrupt chip is set: what eventfds and irqfds held on the other host is made good.
    pub(crate) fn replay_events(&self) {
        if self.status & STATUS_DRIVER_OK == 0 {
            return;
        }
        self.kick_all();
        self.interrupt.replay(self.queues.len(), self.status & STATUS_NEEDS_RESET != 0);
    }
}

fn feature_word(features: u64, page: u32) -> u32 {
    match page {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}
