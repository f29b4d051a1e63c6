//! The network card: moving frames between the guest's rings, the sink and the TAP.
//!
//! Lives here: one bounded batch of work in each direction, save and restore. Not here: waiting (the worker), holding back (the sink).
//! Guards S1 (the sink is the only way out), S5 (ring and buffers are written through vm-memory, completely, before a batch ends) and S7
//! (a hostile ring breaks this card with a reason; work per batch is bounded whatever the ring says).

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vm_memory::Bytes;
use vmm_sys_util::eventfd::EventFd;

use super::metrics::{NetMetrics, add};
use super::state::{NET_STATE_VERSION, NetState};
use super::{Learned, Mac, announcements};
use crate::devices::tap::{self, FrameSource};
use crate::devices::virtio::queue::{RingError, Segment};
use crate::devices::virtio::{F_EVENT_IDX, F_VERSION_1, QUEUE_SIZE_MAX, VirtioCore, VirtioDevice};
use crate::devices::worker::{Batch, WorkerDevice};
use crate::devices::{DeviceError, MachineDevice};
use crate::{DeviceState, FrameSink, GuestMemory};

/// Feature bit: the configuration space holds the card's address.
const F_NET_MAC: u64 = 1 << 5;
const DEVICE_TYPE_NET: u32 = 1;

const RX: usize = 0;
const TX: usize = 1;

/// `struct virtio_net_hdr_v1` precedes every frame in a buffer.
const HEADER: usize = 12;
/// Position and value of its `num_buffers` when a frame lies in one buffer.
const NUM_BUFFERS: (usize, u8) = (10, 1);

const ETHERNET_HEADER: usize = 14;
/// Longest frame carried, Ethernet header included: a jumbo frame of 9000 bytes with room for tags.
pub const FRAME_MAX: usize = 9216;

/// Frames per direction in one batch. Small enough that another device or a vCPU's register access waits little (about 0.1 ms); large
/// enough that taking the lock and signalling the guest vanish beside the frames.
pub const BATCH_FRAMES: usize = 64;

/// Stale frames discarded at most at activation: several times the queue of a TAP (500 or 1000 frames), so that a flood cannot hold up a
/// failover.
const DRAIN_MAX: usize = 4096;

/// What distinguishes one card of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetConfig {
    /// Index of the port, as the sink gets to see it.
    pub port: u8,
    /// The card's address.
    pub mac: Mac,
}

/// Frames that wait to be replayed at most: four times what a receive queue holds.
pub const REPLAY_MAX: usize = 4 * QUEUE_SIZE_MAX as usize;

/// A network card. Behind a mutex, shared by the transport (vCPU threads), the worker and whoever saves it.
pub struct NetDevice {
    config: NetConfig,
    core: VirtioCore,
    sink: Arc<dyn FrameSink>,
    source: Box<dyn FrameSource>,
    /// Frames for the guest that come before anything from `source`.
    replayed: VecDeque<Vec<u8>>,
    learned: Learned,
    metrics: Arc<NetMetrics>,
    sink_full: bool,
    source_failed: bool,
    // Scratch, allocated once.
    segments: Vec<Segment>,
    tx_buffer: Box<[u8]>,
    rx_buffer: Box<[u8]>,
}

impl NetDevice {
    /// A card at reset.
    ///
    /// # Errors
    /// [`DeviceError::EventFd`].
    pub fn new(
        config: NetConfig,
        memory: GuestMemory,
        sink: Arc<dyn FrameSink>,
        source: Box<dyn FrameSource>,
    ) -> Result<NetDevice, DeviceError> {
        let name = format!("net{}", config.port);
        let mut rx_buffer = vec![0; HEADER + FRAME_MAX + 1].into_boxed_slice();
        rx_buffer[NUM_BUFFERS.0] = NUM_BUFFERS.1;
        Ok(NetDevice {
            config,
            core: VirtioCore::new(&name, memory, F_VERSION_1 | F_EVENT_IDX | F_NET_MAC, 2)?,
            sink,
            source,
            replayed: VecDeque::new(),
            learned: Learned::default(),
            metrics: Arc::new(NetMetrics::default()),
            sink_full: false,
            source_failed: false,
            segments: Vec::with_capacity(usize::from(QUEUE_SIZE_MAX)),
            tx_buffer: vec![0; HEADER + FRAME_MAX].into_boxed_slice(),
            rx_buffer,
        })
    }

    /// The card's counters.
    #[must_use]
    pub fn metrics(&self) -> Arc<NetMetrics> {
        Arc::clone(&self.metrics)
    }

    /// What the card knows of the guest's addresses.
    #[must_use]
    pub fn learned(&self) -> &Learned {
        &self.learned
    }

    /// The frames that tell the network that the guest is here now. See [`announcements`].
    #[must_use]
    pub fn announcements(&self) -> Vec<Vec<u8>> {
        announcements(self.config.mac, &self.learned)
    }

    /// The card's state. Only when quiesced (see the contract in [`crate::devices`]).
    #[must_use]
    pub fn save(&self) -> NetState {
        NetState { version: NET_STATE_VERSION, mac: self.config.mac, core: self.core.save(), learned: self.learned.clone() }
    }

    /// Puts a saved state into this card, whose guest memory is restored already. Before the first start.
    ///
    /// # Errors
    /// [`DeviceError::StateVersion`] or [`DeviceError::StateMismatch`]; the card is then not to be started.
    pub fn restore(&mut self, state: &NetState) -> Result<(), DeviceError> {
        if state.version != NET_STATE_VERSION {
            return Err(DeviceError::StateVersion { device: "the network card", found: state.version, known: NET_STATE_VERSION });
        }
        let mismatch = |reason: &str| DeviceError::StateMismatch { device: "the network card", reason: reason.to_owned() };
        if state.mac != self.config.mac {
            return Err(mismatch("it has another MAC address"));
        }
        if !state.learned.is_bounded() {
            return Err(mismatch("it knows more addresses than a card can learn"));
        }
        self.core.restore(&state.core)?;
        self.learned = state.learned.clone();
        Ok(())
    }

    /// Last step before the first start, after the interrupt chip is set: discards frames that piled up in the TAP, signals every queue
    /// and raises the interrupt, since neither eventfds nor irqfds are state. Returns the number of frames discarded.
    ///
    /// # Errors
    /// [`DeviceError::Drain`].
    pub fn activate(&mut self) -> Result<usize, DeviceError> {
        let stale = tap::drain(&mut *self.source, DRAIN_MAX).map_err(DeviceError::Drain)?;
        add(&self.metrics.rx_stale, stale as u64);
        self.core.replay_events();
        Ok(stale)
    }

    /// Gives the guest `frame` before anything from the network: what it had been given after the state that it was restored from. At most
    /// [`REPLAY_MAX`] frames, the rest is lost as on any network; false then. Before the first start.
    pub fn replay(&mut self, frame: Vec<u8>) -> bool {
        let room = self.replayed.len() < REPLAY_MAX && frame.len() <= FRAME_MAX;
        if room {
            self.replayed.push_back(frame);
        }
        room
    }

    /// Guest to sink. True if there may be more to send.
    fn transmit(&mut self, leave: &AtomicBool) -> Result<bool, RingError> {
        let Self { core, segments, tx_buffer, metrics, .. } = self;
        let (memory, interrupt, queues) = core.parts();
        let queue = &mut queues[TX];
        let mut completed = 0;
        let mut more = true;
        // Counts looks at the ring, not frames: a guest that moves its index back and forth gets no more of them.
        for _ in 0..BATCH_FRAMES {
            if self.sink_full {
                more = false;
                break;
            }
            if leave.load(Ordering::Relaxed) {
                break;
            }
            let Some(head) = queue.pop_or_want_kicks(memory, segments)? else {
                more = false;
                break;
            };
            let length = gather(memory, segments, tx_buffer, head)?;
            let frame = &tx_buffer[HEADER..length];
            if frame.len() < ETHERNET_HEADER {
                add(&metrics.tx_runts, 1);
            } else if self.sink.send(self.config.port, frame).is_ok() {
                self.learned.observe(frame);
                add(&metrics.tx_frames, 1);
                add(&metrics.tx_bytes, frame.len() as u64);
            } else {
                queue.put_back();
                self.sink_full = true;
                add(&metrics.tx_sink_full, 1);
                continue;
            }
            queue.complete(memory, head, 0)?;
            completed += 1;
        }
        if completed > 0 && queue.wants_interrupt(memory)? {
            interrupt.used(TX);
            add(&metrics.interrupts, 1);
        }
        Ok(more)
    }

    /// TAP to guest.
    fn receive(&mut self, leave: &AtomicBool) -> Result<Batch, RingError> {
        let Self { core, segments, rx_buffer, metrics, source, replayed, sink, config, .. } = self;
        let (memory, interrupt, queues) = core.parts();
        let queue = &mut queues[RX];
        let mut completed = 0;
        let mut outcome = Batch { more: true, wants_input: true, sink_full: false };
        for _ in 0..BATCH_FRAMES {
            if leave.load(Ordering::Relaxed) {
                break;
            }
            // First a buffer, then a frame: so no frame is ever between the TAP and the guest when the batch ends.
            if !queue.has_available(memory)? {
                if queue.want_kicks(memory)? {
                    continue;
                }
                outcome = Batch { more: false, wants_input: false, sink_full: false };
                break;
            }
            queue.refuse_kicks(memory)?;
            let length = match next_frame(replayed, &mut **source, &mut rx_buffer[HEADER..]) {
                Ok(Some(length)) => length,
                Ok(None) => {
                    outcome.more = false;
                    break;
                }
                Err(error) => {
                    add(&metrics.rx_errors, 1);
                    if !self.source_failed {
                        tracing::warn!(port = config.port, %error, "cannot read from the TAP; trying again at the guest's next kick");
                    }
                    self.source_failed = true;
                    outcome = Batch { more: false, wants_input: false, sink_full: false };
                    break;
                }
            };
            self.source_failed = false;
            let Some(head) = queue.pop(memory, segments)? else {
                add(&metrics.rx_dropped, 1);
                continue;
            };
            let Some(written) = scatter(memory, segments, &rx_buffer[..HEADER + length], head)? else {
                queue.put_back();
                add(&metrics.rx_dropped, 1);
                continue;
            };
            queue.complete(memory, head, written)?;
            sink.received(config.port, &rx_buffer[HEADER..HEADER + length]);
            add(&metrics.rx_frames, 1);
            add(&metrics.rx_bytes, length as u64);
            completed += 1;
        }
        if completed > 0 && queue.wants_interrupt(memory)? {
            interrupt.used(RX);
            add(&metrics.interrupts, 1);
        }
        Ok(outcome)
    }

    fn broke(&mut self, error: &RingError) -> Batch {
        add(&self.metrics.ring_errors, 1);
        self.core.break_device(error);
        Batch::default()
    }
}

/// Copies a chain that the guest wants sent into `buffer`. The number of bytes, header included.
/// The next frame for the guest into `buffer`: one to be replayed, or else one from the network.
fn next_frame(replayed: &mut VecDeque<Vec<u8>>, source: &mut dyn FrameSource, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    let Some(frame) = replayed.pop_front() else {
        return source.read_frame(buffer);
    };
    let length = frame.len().min(buffer.len());
    buffer[..length].copy_from_slice(&frame[..length]);
    Ok(Some(length))
}

fn gather(memory: &GuestMemory, segments: &[Segment], buffer: &mut [u8], head: u16) -> Result<usize, RingError> {
    if segments.iter().any(|segment| segment.device_writes) {
        return Err(RingError::Direction { queue: TX, head, access: "read" });
    }
    let bytes: u64 = segments.iter().map(|segment| segment.length as u64).sum();
    if bytes < HEADER as u64 || bytes > buffer.len() as u64 {
        return Err(RingError::Length { queue: TX, head, bytes, least: HEADER, most: buffer.len() });
    }
    let mut at = 0;
    for segment in segments.iter().filter(|segment| segment.length > 0) {
        let end = at + segment.length;
        memory.read_slice(&mut buffer[at..end], segment.address).map_err(|source| RingError::Buffer { queue: TX, head, source })?;
        at = end;
    }
    Ok(at)
}

/// Copies a header and frame into a chain that the guest offered. The number of bytes, or `None` if the chain has no room for it.
fn scatter(memory: &GuestMemory, segments: &[Segment], bytes: &[u8], head: u16) -> Result<Option<u32>, RingError> {
    if segments.iter().any(|segment| !segment.device_writes) {
        return Err(RingError::Direction { queue: RX, head, access: "write" });
    }
    let room: u64 = segments.iter().map(|segment| segment.length as u64).sum();
    if room < HEADER as u64 {
        return Err(RingError::Length { queue: RX, head, bytes: room, least: HEADER, most: u32::MAX as usize });
    }
    if bytes.len() as u64 > room || bytes.len() > HEADER + FRAME_MAX {
        return Ok(None);
    }
    let mut rest = bytes;
    for segment in segments {
        let (part, after) = rest.split_at(rest.len().min(segment.length));
        if part.is_empty() {
            continue;
        }
        memory.write_slice(part, segment.address).map_err(|source| RingError::Buffer { queue: RX, head, source })?;
        rest = after;
    }
    Ok(Some(bytes.len() as u32))
}

impl VirtioDevice for NetDevice {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE_NET
    }

    fn core(&self) -> &VirtioCore {
        &self.core
    }

    fn core_mut(&mut self) -> &mut VirtioCore {
        &mut self.core
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        for (to, byte) in data.iter_mut().zip(self.config.mac.iter().skip(from)) {
            *to = *byte;
        }
    }

    fn on_reset(&mut self) {
        self.sink_full = false;
    }
}

impl WorkerDevice for NetDevice {
    fn kicks(&self) -> Vec<Arc<EventFd>> {
        self.core.kicks()
    }

    fn input(&self) -> Option<RawFd> {
        Some(self.source.as_raw_fd())
    }

    fn run_batch(&mut self, leave: &AtomicBool) -> Batch {
        if !self.core.is_running() {
            add(&self.metrics.early_kicks, 1);
            return Batch::default();
        }
        let sending = match self.transmit(leave) {
            Ok(sending) => sending,
            Err(error) => return self.broke(&error),
        };
        match self.receive(leave) {
            Ok(received) => Batch { more: sending || received.more, sink_full: self.sink_full, ..received },
            Err(error) => self.broke(&error),
        }
    }

    fn retry(&mut self) {
        self.sink_full = false;
    }
}

impl MachineDevice for NetDevice {
    fn save_state(&self) -> DeviceState {
        DeviceState::Net(self.save())
    }

    fn restore_state(&mut self, state: &DeviceState) -> Result<(), DeviceError> {
        let DeviceState::Net(state) = state else {
            return Err(DeviceError::other_kind("the network card"));
        };
        self.restore(state)
    }

    fn wake(&mut self) -> Result<(), DeviceError> {
        self.activate().map(drop)
    }
}
