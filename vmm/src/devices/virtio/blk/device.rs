//! The disk: moving requests between the guest's ring and the backend.
//!
//! Lives here: one bounded batch of work, what is in flight, save and restore. Not here: waiting (the worker), the medium (the backend), what a chain means
//! ([`super::request`]). Guards S5 (a request is in flight from the moment it is taken from the ring until its used element is written, and what is in flight is
//! saved; data is copied inside a batch, never in between) and S7 (what a hostile ring can put in flight is bounded in number and bytes).
//!
//! A driver that resets the device, or takes its queue away, while requests are in flight: their answers are dropped when they come, and nothing of the new
//! driver is begun before the last of them has come. So a late write cannot overtake a new one, and no answer touches rings that are not its own.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use types::block::{BlockDone, BlockError, BlockInfo, BlockOp, BlockRequest, DiskIndex, REQUEST_BYTES_MAX, REQUESTS_MAX};
use vmm_sys_util::eventfd::EventFd;

use super::metrics::BlkMetrics;
use super::request::{Chain, ID_BYTES, Kind, Meaning, QUEUE, Room, Status};
use super::space::{self, F_FLUSH, Space};
use super::state::{BLK_STATE_VERSION, BlkState};
use crate::devices::virtio::counters::add;
use crate::devices::virtio::queue::{RingError, Segment};
use crate::devices::virtio::{QUEUE_SIZE_MAX, VirtioCore, VirtioDevice};
use crate::devices::worker::{Batch, WorkerDevice};
use crate::devices::{DeviceError, MachineDevice};
use crate::{BlockBackend, DeviceState, GuestMemory};

const DEVICE_TYPE_BLK: u32 = 2;

/// Requests begun or answered in one batch.
pub const BATCH_REQUESTS: usize = 64;
/// Bytes copied in one batch, give or take one request: about half a millisecond, which another device or a vCPU's register access may have to wait.
pub const BATCH_BYTES: usize = 4 * REQUEST_BYTES_MAX;
/// Data of requests in flight, the room for answers included: more stays in the guest's memory. Enough for sixteen of the largest, which keeps any medium
/// busy, and little beside a guest's memory.
pub const IN_FLIGHT_BYTES_MAX: usize = 16 * REQUEST_BYTES_MAX;

/// A request that the backend has.
#[derive(Debug)]
struct Flight {
    kind: Kind,
    /// Bytes of data.
    len: usize,
    room: Room,
    /// The driver does not flush: to be made durable before it is answered.
    flush_first: bool,
}

/// Something to be submitted that is not in the ring any more.
#[derive(Debug)]
enum Due {
    /// A chain that was in flight when the state was saved.
    Again(u16),
    /// The flush before the answer.
    Flush(Flight),
}

/// What became of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Begun {
    /// The backend has it.
    Submitted,
    /// It was answered on the spot.
    Answered,
    /// Nothing: too much is in flight, or the backend is full.
    HeldUp,
}

/// What is left of a batch.
struct Budget {
    requests: usize,
    bytes: usize,
}

impl Budget {
    fn is_spent(&self) -> bool {
        self.requests == 0 || self.bytes == 0
    }

    fn spend(&mut self, bytes: usize) {
        self.requests = self.requests.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

/// A disk. Behind a mutex, shared by the transport (vCPU threads), the worker and whoever saves it.
pub struct BlkDevice {
    disk: DiskIndex,
    info: BlockInfo,
    space: Space,
    core: VirtioCore,
    backend: Arc<dyn BlockBackend>,
    metrics: Arc<BlkMetrics>,
    next_tag: u64,
    /// By tag, and so in the order in which they were submitted.
    flights: BTreeMap<u64, Flight>,
    /// Requests of a driver that is gone, and their bytes.
    forgotten: BTreeMap<u64, usize>,
    /// Of both.
    bytes_in_flight: usize,
    due: VecDeque<Due>,
    /// Answers taken from the backend and not yet given to the guest.
    answers: VecDeque<BlockDone>,
    /// The queue's life in which the flights were begun.
    life: u64,
    sink_full: bool,
    complained: bool,
    // Scratch, allocated once.
    segments: Vec<Segment>,
    arrived: Vec<BlockDone>,
}

impl BlkDevice {
    /// A disk at reset.
    ///
    /// # Errors
    /// [`DeviceError::EventFd`].
    pub fn new(disk: DiskIndex, memory: GuestMemory, backend: Arc<dyn BlockBackend>) -> Result<BlkDevice, DeviceError> {
        let info = backend.info();
        let core = VirtioCore::new(&disk.to_string(), memory, space::features(&info), 1)?;
        Ok(BlkDevice {
            disk,
            info,
            space: Space::new(&info),
            life: core.queues[QUEUE].life(),
            core,
            backend,
            metrics: Arc::new(BlkMetrics::default()),
            next_tag: 1,
            flights: BTreeMap::new(),
            forgotten: BTreeMap::new(),
            bytes_in_flight: 0,
            due: VecDeque::new(),
            answers: VecDeque::new(),
            sink_full: false,
            complained: false,
            segments: Vec::with_capacity(usize::from(QUEUE_SIZE_MAX)),
            arrived: Vec::new(),
        })
    }

    /// The disk's counters.
    #[must_use]
    pub fn metrics(&self) -> Arc<BlkMetrics> {
        Arc::clone(&self.metrics)
    }

    /// Requests that were taken from the ring and not yet answered.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.flights.len() + self.due.len()
    }

    /// The disk's state. Only when quiesced (see the contract in [`crate::devices`]).
    #[must_use]
    pub fn save(&self) -> BlkState {
        let mut in_flight = Vec::new();
        if self.is_current() {
            in_flight.extend(self.flights.values().map(|flight| flight.room.head()));
            in_flight.extend(self.due.iter().map(|due| match due {
                Due::Again(head) => *head,
                Due::Flush(flight) => flight.room.head(),
            }));
        }
        BlkState { version: BLK_STATE_VERSION, info: self.info, core: self.core.save(), in_flight }
    }

    /// Puts a saved state into this disk, whose guest memory is restored already. Before a start. What was in flight is carried out anew after the
    /// start: reads and writes alike end as they would have.
    ///
    /// # Errors
    /// [`DeviceError::StateVersion`] or [`DeviceError::StateMismatch`]; the disk is then not to be started.
    pub fn restore(&mut self, state: &BlkState) -> Result<(), DeviceError> {
        if state.version != BLK_STATE_VERSION {
            return Err(DeviceError::StateVersion { device: "the disk", found: state.version, known: BLK_STATE_VERSION });
        }
        // What the medium works best in is advice to the guest; all else is a promise.
        if (BlockInfo { physical_block: self.info.physical_block, ..state.info }) != self.info {
            let reason = format!("{} was {}, here it is {}", self.disk, shape(&state.info), shape(&self.info));
            return Err(DeviceError::StateMismatch { device: "the disk", reason });
        }
        if state.in_flight.len() > REQUESTS_MAX {
            let reason = format!("{} requests in flight, at most {REQUESTS_MAX} can be", state.in_flight.len());
            return Err(DeviceError::StateMismatch { device: "the disk", reason });
        }
        // A machine that starts over may have requests in flight: nobody waits for them any more.
        self.forget();
        self.sink_full = false;
        self.core.restore(&state.core)?;
        self.life = self.core.queues[QUEUE].life();
        self.due = state.in_flight.iter().copied().map(Due::Again).collect();
        Ok(())
    }

    /// Last step before the first start, after the interrupt chip is set: signals the queue and raises the interrupt, since neither eventfds nor irqfds are
    /// state.
    pub fn activate(&mut self) {
        self.core.replay_events();
    }

    /// Whether what is in flight belongs to the driver and the rings of now.
    fn is_current(&self) -> bool {
        let queue = &self.core.queues[QUEUE];
        self.core.is_running() && queue.ready() && queue.life() == self.life
    }

    /// The driver is gone: what is in flight will be answered to nobody.
    fn forget(&mut self) {
        let flights = std::mem::take(&mut self.flights);
        self.forgotten.extend(flights.into_iter().map(|(tag, flight)| (tag, flight.len)));
        self.due.clear();
        self.life = self.core.queues[QUEUE].life();
    }

    /// Gives answers to the guest. True if the batch is at its end before they are.
    fn answer(&mut self, leave: &AtomicBool, budget: &mut Budget, used: &mut bool) -> Result<bool, RingError> {
        while !self.answers.is_empty() {
            if budget.is_spent() || leave.load(Ordering::Relaxed) {
                return Ok(true);
            }
            let Some(BlockDone { tag, result }) = self.answers.pop_front() else {
                break;
            };
            if let Some(bytes) = self.forgotten.remove(&tag) {
                self.bytes_in_flight -= bytes;
                add(&self.metrics.late_answers, 1);
                continue;
            }
            let Some(mut flight) = self.flights.remove(&tag) else {
                tracing::error!(disk = %self.disk, tag, "an answer to a request that is not in flight; the disk's backend is broken");
                continue;
            };
            self.bytes_in_flight -= flight.len;
            if result.is_ok() && flight.flush_first {
                flight.flush_first = false;
                self.due.push_back(Due::Flush(flight));
                continue;
            }
            self.finish(&flight, result)?;
            budget.spend(flight.len);
            *used = true;
        }
        Ok(false)
    }

    fn finish(&mut self, flight: &Flight, result: Result<Option<Box<[u8]>>, BlockError>) -> Result<(), RingError> {
        let result = match (result, flight.kind) {
            (Ok(Some(data)), Kind::Read) if data.len() == flight.len => Ok(Some(data)),
            // A backend that answers a read with other than what was asked for has lost it.
            (Ok(_), Kind::Read) => Err(BlockError::Io(libc::EIO)),
            (other, _) => other,
        };
        let metrics = &self.metrics;
        let (status, data) = match &result {
            Ok(data) => {
                match flight.kind {
                    Kind::Read => {
                        add(&metrics.reads, 1);
                        add(&metrics.read_bytes, flight.len as u64);
                    }
                    Kind::Write => {
                        add(&metrics.writes, 1);
                        add(&metrics.write_bytes, flight.len as u64);
                    }
                    Kind::Flush => add(&metrics.flushes, 1),
                    Kind::Discard => add(&metrics.discards, 1),
                    Kind::WriteZeroes { .. } => add(&metrics.write_zeroes, 1),
                }
                (Status::Ok, data.as_deref().unwrap_or_default())
            }
            Err(error) => {
                add(&metrics.disk_errors, 1);
                if !std::mem::replace(&mut self.complained, true) {
                    tracing::warn!(disk = %self.disk, kind = ?flight.kind, %error, "the guest was told of an error of its disk; later ones are only counted");
                }
                (if *error == BlockError::Unsupported { Status::Unsupported } else { Status::IoError }, &[][..])
            }
        };
        let (memory, _, queues) = self.core.parts();
        let written = flight.room.answer(memory, status, data)?;
        queues[QUEUE].complete(memory, flight.room.head(), written)
    }

    /// Begins what is due and then what is in the ring. True if the batch is at its end before they are.
    fn begin(&mut self, leave: &AtomicBool, budget: &mut Budget, used: &mut bool) -> Result<bool, RingError> {
        // First what the driver before had in flight must end.
        while self.forgotten.is_empty() && !self.sink_full {
            if budget.is_spent() || leave.load(Ordering::Relaxed) {
                return Ok(true);
            }
            let begun = match self.due.pop_front() {
                Some(Due::Flush(flight)) => self.flush_for(flight),
                Some(Due::Again(head)) => {
                    let mut segments = std::mem::take(&mut self.segments);
                    let begun = self.core.queues[QUEUE]
                        .chain_at(self.core.memory(), head, &mut segments)
                        .and_then(|()| self.begin_chain(head, &segments, budget));
                    self.segments = segments;
                    let begun = begun?;
                    if begun == Begun::HeldUp {
                        self.due.push_front(Due::Again(head));
                    } else {
                        add(&self.metrics.repeated, 1);
                    }
                    begun
                }
                None => {
                    let Some(begun) = self.begin_next(budget)? else {
                        return Ok(false);
                    };
                    begun
                }
            };
            match begun {
                Begun::Submitted => {}
                Begun::Answered => *used = true,
                Begun::HeldUp => {
                    add(&self.metrics.held_up, 1);
                    return Ok(false);
                }
            }
        }
        Ok(false)
    }

    /// Begins the next chain of the ring; `None` when there is none, and the driver will kick when there is.
    fn begin_next(&mut self, budget: &mut Budget) -> Result<Option<Begun>, RingError> {
        let mut segments = std::mem::take(&mut self.segments);
        let (memory, _, queues) = self.core.parts();
        let begun = match queues[QUEUE].pop_or_want_kicks(memory, &mut segments) {
            Ok(Some(head)) => self.begin_chain(head, &segments, budget).map(Some),
            Ok(None) => Ok(None),
            Err(error) => Err(error),
        };
        self.segments = segments;
        if matches!(begun, Ok(Some(Begun::HeldUp))) {
            self.core.queues[QUEUE].put_back();
        }
        begun
    }

    fn begin_chain(&mut self, head: u16, segments: &[Segment], budget: &mut Budget) -> Result<Begun, RingError> {
        let chain = Chain::split(head, segments)?;
        let (kind, offset, len) = match chain.meaning(self.core.memory(), &self.info)? {
            Meaning::Disk { kind, offset, len } => (kind, offset, len),
            Meaning::Id => {
                add(&self.metrics.get_ids, 1);
                return self.answer_now(&chain, Status::Ok, &{ self.info.serial }, budget);
            }
            Meaning::Refuse(status) => {
                add(&self.metrics.refused, 1);
                return self.answer_now(&chain, status, &[], budget);
            }
        };
        // Only reads and writes have data; what they have is bounded.
        let bytes = if matches!(kind, Kind::Read | Kind::Write) { len as usize } else { 0 };
        if !self.has_room(bytes) {
            return Ok(Begun::HeldUp);
        }
        let op = match kind {
            Kind::Read => BlockOp::Read { offset, len: len as u32 },
            Kind::Write => {
                let mut data: Arc<[u8]> = std::iter::repeat_n(0, bytes).collect();
                if let Some(data) = Arc::get_mut(&mut data) {
                    chain.read_data(self.core.memory(), data)?;
                }
                BlockOp::Write { offset, data }
            }
            Kind::Flush => BlockOp::Flush,
            Kind::Discard => BlockOp::Discard { offset, len },
            Kind::WriteZeroes { may_unmap } => BlockOp::WriteZeroes { offset, len, may_unmap },
        };
        budget.spend(bytes);
        let changes = !matches!(kind, Kind::Read | Kind::Flush);
        let flush_first = changes && !self.core.has_feature(F_FLUSH);
        let flight = Flight { kind, len: bytes, room: Room::of(&chain), flush_first };
        Ok(match self.submit(op, flight) {
            Ok(()) => Begun::Submitted,
            Err(_) => Begun::HeldUp,
        })
    }

    fn flush_for(&mut self, flight: Flight) -> Begun {
        match self.submit(BlockOp::Flush, flight) {
            Ok(()) => Begun::Submitted,
            Err(flight) => {
                self.due.push_front(Due::Flush(flight));
                Begun::HeldUp
            }
        }
    }

    /// Hands a request to the backend, or the flight back when it is full.
    fn submit(&mut self, op: BlockOp, flight: Flight) -> Result<(), Flight> {
        let tag = self.next_tag;
        if self.backend.submit(BlockRequest { tag, op }).is_err() {
            self.sink_full = true;
            return Err(flight);
        }
        self.next_tag += 1;
        self.bytes_in_flight += flight.len;
        self.flights.insert(tag, flight);
        Ok(())
    }

    fn has_room(&self, bytes: usize) -> bool {
        self.in_flight() < REQUESTS_MAX && self.bytes_in_flight + bytes <= IN_FLIGHT_BYTES_MAX
    }

    fn answer_now(&mut self, chain: &Chain<'_>, status: Status, data: &[u8], budget: &mut Budget) -> Result<Begun, RingError> {
        budget.spend(data.len());
        let room = Room::of(chain);
        let (memory, _, queues) = self.core.parts();
        let written = room.answer(memory, status, data)?;
        queues[QUEUE].complete(memory, room.head(), written)?;
        Ok(Begun::Answered)
    }

    fn serve(&mut self, leave: &AtomicBool) -> Result<bool, RingError> {
        let mut budget = Budget { requests: BATCH_REQUESTS, bytes: BATCH_BYTES };
        let mut used = false;
        // Of a driver that is gone only answers to be dropped are left; of one that runs, everything is current.
        let more = self.answer(leave, &mut budget, &mut used)? || (self.is_current() && self.begin(leave, &mut budget, &mut used)?);
        let (memory, interrupt, queues) = self.core.parts();
        if used && queues[QUEUE].wants_interrupt(memory)? {
            interrupt.used(QUEUE);
            add(&self.metrics.interrupts, 1);
        }
        Ok(more)
    }
}

/// A disk's shape in words.
fn shape(info: &BlockInfo) -> String {
    let access = if info.read_only { "read-only" } else { "writable" };
    let serial = String::from_utf8_lossy(&info.serial);
    format!("{} bytes, {access}, in blocks of {}, serial {:?}", info.bytes, info.logical_block, serial.trim_end_matches('\0'))
}

impl VirtioDevice for BlkDevice {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE_BLK
    }

    fn core(&self) -> &VirtioCore {
        &self.core
    }

    fn core_mut(&mut self) -> &mut VirtioCore {
        &mut self.core
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.space.read(offset, data);
    }

    fn on_reset(&mut self) {
        // What is in flight is forgotten by the worker, which notices that the queue's life is another.
        self.sink_full = false;
        self.complained = false;
    }
}

impl WorkerDevice for BlkDevice {
    fn kicks(&self) -> Vec<Arc<EventFd>> {
        self.core.kicks()
    }

    fn input(&self) -> Option<RawFd> {
        Some(self.backend.event())
    }

    fn run_batch(&mut self, leave: &AtomicBool) -> Batch {
        self.backend.take_done(&mut self.arrived);
        if !self.arrived.is_empty() {
            // Where something ended there may be room again.
            self.sink_full = false;
            self.answers.extend(self.arrived.drain(..));
        } else if !self.core.is_running() {
            add(&self.metrics.early_kicks, 1);
        }
        if !self.is_current() {
            self.forget();
        }
        match self.serve(leave) {
            Ok(more) => Batch { more, wants_input: true, sink_full: self.sink_full },
            Err(error) => {
                add(&self.metrics.ring_errors, 1);
                self.core.break_device(&error);
                Batch { more: true, wants_input: true, sink_full: false }
            }
        }
    }

    fn retry(&mut self) {
        self.sink_full = false;
    }
}

impl MachineDevice for BlkDevice {
    fn save_state(&self) -> DeviceState {
        DeviceState::Blk(self.save())
    }

    fn restore_state(&mut self, state: &DeviceState) -> Result<(), DeviceError> {
        let DeviceState::Blk(state) = state else {
            return Err(DeviceError::other_kind("the disk"));
        };
        self.restore(state)
    }

    fn wake(&mut self) -> Result<(), DeviceError> {
        self.activate();
        Ok(())
    }
}

const _: () = assert!(ID_BYTES == 20 && REQUESTS_MAX == QUEUE_SIZE_MAX as usize);
