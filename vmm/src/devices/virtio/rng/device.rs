//! The entropy source: filling the guest's buffers.
//!
//! Lives here: one bounded batch of work, save and restore, counters. Not here: waiting (the worker).

use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};
use vm_memory::Bytes;
use vmm_sys_util::eventfd::EventFd;

use super::source::Entropy;
use crate::devices::virtio::counters::{add, counters};
use crate::devices::virtio::queue::{RingError, Segment};
use crate::devices::virtio::{F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1, QUEUE_SIZE_MAX, SavedCore, VirtioCore, VirtioDevice};
use crate::devices::worker::{Batch, WorkerDevice};
use crate::devices::{DeviceError, MachineDevice};
use crate::{DeviceState, GuestMemory};

const DEVICE_TYPE_RNG: u32 = 4;
const QUEUE: usize = 0;

/// Bytes given for one request at most; the device may give less than the buffer holds (section 5.4.6.1). Linux asks for at most this many at a time.
pub const REQUEST_BYTES: usize = 4096;
/// Requests served in one batch: about 0.1 ms when all are of the largest size.
pub const BATCH_REQUESTS: usize = 16;

/// Version of [`RngState`]'s content.
pub const RNG_STATE_VERSION: u16 = 1;

/// Everything about an entropy source that is not in guest memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RngState {
    /// [`RNG_STATE_VERSION`] of the program that wrote it.
    pub version: u16,
    /// Status, features and queue.
    pub core: SavedCore,
}

counters! {
    /// The live counters of an entropy source.
    RngMetrics,
    /// The counters at one moment.
    RngCounts:
    /// Requests served.
    requests,
    /// Bytes given.
    bytes,
    /// Times the host had no entropy to give.
    source_errors,
    /// Hostile or broken rings met; each needs a reset by the driver.
    ring_errors,
}

/// An entropy source. Behind a mutex, shared by the transport (vCPU threads), the worker and whoever saves it.
pub struct RngDevice {
    core: VirtioCore,
    source: Box<dyn Entropy>,
    metrics: Arc<RngMetrics>,
    complained: bool,
    // Scratch, allocated once.
    segments: Vec<Segment>,
    buffer: Box<[u8]>,
}

impl RngDevice {
    /// An entropy source at reset.
    ///
    /// # Errors
    /// [`DeviceError::EventFd`].
    pub fn new(memory: GuestMemory, source: Box<dyn Entropy>) -> Result<RngDevice, DeviceError> {
        Ok(RngDevice {
            core: VirtioCore::new("rng", memory, F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC, 1)?,
            source,
            metrics: Arc::new(RngMetrics::default()),
            complained: false,
            segments: Vec::with_capacity(usize::from(QUEUE_SIZE_MAX)),
            buffer: vec![0; REQUEST_BYTES].into_boxed_slice(),
        })
    }

    /// The counters.
    #[must_use]
    pub fn metrics(&self) -> Arc<RngMetrics> {
        Arc::clone(&self.metrics)
    }

    /// The state. Only when quiesced (see the contract in [`crate::devices`]).
    #[must_use]
    pub fn save(&self) -> RngState {
        RngState { version: RNG_STATE_VERSION, core: self.core.save() }
    }

    /// Puts a saved state into this device, whose guest memory is restored already. Before the first start.
    ///
    /// # Errors
    /// [`DeviceError::StateVersion`] or [`DeviceError::StateMismatch`]; the device is then not to be started.
    pub fn restore(&mut self, state: &RngState) -> Result<(), DeviceError> {
        if state.version != RNG_STATE_VERSION {
            return Err(DeviceError::StateVersion { device: "the entropy source", found: state.version, known: RNG_STATE_VERSION });
        }
        self.core.restore(&state.core)
    }

    /// Last step before the first start, after the interrupt chip is set: signals the queue and raises the interrupt, since neither eventfds nor irqfds are
    /// state.
    pub fn activate(&mut self) {
        self.core.replay_events();
    }

    fn serve(&mut self, leave: &AtomicBool) -> Result<bool, RingError> {
        let Self { core, source, metrics, complained, segments, buffer } = self;
        let (memory, interrupt, queues) = core.parts();
        let queue = &mut queues[QUEUE];
        let mut used = false;
        let mut more = true;
        for _ in 0..BATCH_REQUESTS {
            if leave.load(Ordering::Relaxed) {
                break;
            }
            let Some(head) = queue.pop_or_want_kicks(memory, segments)? else {
                more = false;
                break;
            };
            if segments.iter().any(|segment| !segment.device_writes) {
                return Err(RingError::Direction { queue: QUEUE, head, access: "write" });
            }
            let room: u64 = segments.iter().map(|segment| segment.length as u64).sum();
            if room == 0 {
                return Err(RingError::Length { queue: QUEUE, head, bytes: 0, least: 1, most: u32::MAX as usize });
            }
            let bytes = &mut buffer[..usize::try_from(room).unwrap_or(REQUEST_BYTES).min(REQUEST_BYTES)];
            if let Err(error) = source.fill(bytes) {
                // The request stays in the ring: the device must give at least one byte (section 5.4.6.2). The next kick tries again.
                queue.put_back();
                add(&metrics.source_errors, 1);
                if !std::mem::replace(complained, true) {
                    tracing::warn!(%error, "the host has no random bytes for the guest now; its requests wait");
                }
                more = false;
                break;
            }
            let mut rest = &*bytes;
            for segment in segments.iter() {
                let (part, after) = rest.split_at(rest.len().min(segment.length));
                rest = after;
                if !part.is_empty() {
                    memory.write_slice(part, segment.address).map_err(|source| RingError::Buffer { queue: QUEUE, head, source })?;
                }
            }
            queue.complete(memory, head, bytes.len() as u32)?;
            add(&metrics.requests, 1);
            add(&metrics.bytes, bytes.len() as u64);
            used = true;
        }
        if used && queue.wants_interrupt(memory)? {
            interrupt.used(QUEUE);
        }
        Ok(more)
    }
}

impl VirtioDevice for RngDevice {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE_RNG
    }

    fn core(&self) -> &VirtioCore {
        &self.core
    }

    fn core_mut(&mut self) -> &mut VirtioCore {
        &mut self.core
    }

    /// There is no configuration space.
    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn on_reset(&mut self) {
        self.complained = false;
    }
}

impl WorkerDevice for RngDevice {
    fn kicks(&self) -> Vec<Arc<EventFd>> {
        self.core.kicks()
    }

    fn input(&self) -> Option<RawFd> {
        None
    }

    fn run_batch(&mut self, leave: &AtomicBool) -> Batch {
        if !self.core.is_running() {
            return Batch::default();
        }
        match self.serve(leave) {
            Ok(more) => Batch { more, ..Batch::default() },
            Err(error) => {
                add(&self.metrics.ring_errors, 1);
                self.core.break_device(&error);
                Batch::default()
            }
        }
    }

    fn retry(&mut self) {}
}

impl MachineDevice for RngDevice {
    fn save_state(&self) -> DeviceState {
        DeviceState::Rng(self.save())
    }

    fn restore_state(&mut self, state: &DeviceState) -> Result<(), DeviceError> {
        let DeviceState::Rng(state) = state else {
            return Err(DeviceError::other_kind("the entropy source"));
        };
        self.restore(state)
    }

    fn wake(&mut self) -> Result<(), DeviceError> {
        self.activate();
        Ok(())
    }
}
