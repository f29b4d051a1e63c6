//! One virtqueue as a device uses it: configuration, popping chains, used elements, notification suppression.
//!
//! Lives here: the strict face over `virtio-queue`, which by itself ends a malformed chain silently. Not here: what the buffers mean.
//! Guards S7 (whatever the guest wrote into its ring is an error with a name, found in bounded work) and S5 (all stores to rings go
//! through vm-memory, so the bitmap sees them).

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use serde::{Deserialize, Serialize};
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::GuestMemory;
use crate::devices::DeviceError;

/// Largest queue offered to a driver, in descriptors. 256 is what Linux uses at most per network queue without asking for more, and it
/// bounds the work that one chain can cause.
pub const QUEUE_SIZE_MAX: u16 = 256;

/// Size of `struct virtq_desc`.
const DESCRIPTOR_BYTES: u64 = 16;

/// `VRING_AVAIL_F_NO_INTERRUPT` of the virtio specification, section 2.7.6.
const AVAIL_NO_INTERRUPT: u16 = 1;

/// What a guest did to its ring. Any of these breaks the device until the driver resets it.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// The queue's size is no power of two within the limit.
    #[error("queue {queue} has size {size}; it must be a power of two from 1 to {QUEUE_SIZE_MAX}")]
    Size {
        /// Queue index.
        queue: usize,
        /// What the driver wrote.
        size: u32,
    },
    /// A part of the ring is misaligned or not in guest memory.
    #[error("queue {queue}: rings at {descriptors:#x}, {available:#x}, {used:#x} are misaligned or outside guest memory")]
    Placement {
        /// Queue index.
        queue: usize,
        /// Address of the descriptor table.
        descriptors: u64,
        /// Address of the available ring.
        available: u64,
        /// Address of the used ring.
        used: u64,
    },
    /// The available index is further ahead than the queue is long, or a ring access failed.
    #[error("queue {queue}: ring access failed: {source}")]
    Ring {
        /// Queue index.
        queue: usize,
        /// What `virtio-queue` says.
        source: virtio_queue::Error,
    },
    /// The chain's descriptors do not end: a loop, an index outside the table, an unreadable indirect table, more than 4 GiB.
    #[error("queue {queue}: the descriptor chain at {head} does not end properly after {descriptors} descriptors")]
    Chain {
        /// Queue index.
        queue: usize,
        /// Index of the chain's head.
        head: u16,
        /// Descriptors that could be followed.
        descriptors: usize,
    },
    /// A buffer has the wrong direction.
    #[error("queue {queue}: the chain at {head} has a buffer that the device may not {access}")]
    Direction {
        /// Queue index.
        queue: usize,
        /// Index of the chain's head.
        head: u16,
        /// "read" or "write".
        access: &'static str,
    },
    /// The chain is not what the device's requests look like.
    #[error("queue {queue}: the chain at {head} is no request: {reason}")]
    Request {
        /// Queue index.
        queue: usize,
        /// Index of the chain's head.
        head: u16,
        /// What is wrong.
        reason: &'static str,
    },
    /// The chain's buffers are together too short or too long.
    #[error("queue {queue}: the chain at {head} has {bytes} bytes; {least} to {most} make sense")]
    Length {
        /// Queue index.
        queue: usize,
        /// Index of the chain's head.
        head: u16,
        /// Bytes in the chain.
        bytes: u64,
        /// Least that makes sense.
        least: usize,
        /// Most that makes sense.
        most: usize,
    },
    /// A buffer is not in guest memory.
    #[error("queue {queue}: the chain at {head} has a buffer outside guest memory: {source}")]
    Buffer {
        /// Queue index.
        queue: usize,
        /// Index of the chain's head.
        head: u16,
        /// What vm-memory says.
        source: vm_memory::GuestMemoryError,
    },
}

/// One buffer of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) address: GuestAddress,
    pub(crate) length: usize,
    pub(crate) device_writes: bool,
}

/// What the driver wrote into a queue's registers, taken as it is until the driver declares the queue ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct QueueRegisters {
    pub(crate) size: u32,
    pub(crate) descriptors: u64,
    pub(crate) available: u64,
    pub(crate) used: u64,
}

impl QueueRegisters {
    fn at_reset() -> QueueRegisters {
        QueueRegisters { size: u32::from(QUEUE_SIZE_MAX), descriptors: 0, available: 0, used: 0 }
    }
}

/// The saved state of one queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedQueue {
    pub(crate) registers: QueueRegisters,
    pub(crate) ready: bool,
    pub(crate) event_idx: bool,
    pub(crate) next_avail: u16,
    pub(crate) next_used: u16,
}

/// What the driver was told last about kicks, so that it is not told again: that would dirty the used ring's page for nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// Nothing since the queue was made ready or restored.
    Nothing,
    /// No kicks.
    Refused,
    /// A kick when the available index passes this.
    WantedAt(u16),
}

/// One queue of a device.
#[derive(Debug)]
pub(crate) struct VirtioQueue {
    index: usize,
    pub(crate) registers: QueueRegisters,
    ring: Queue,
    kick: Arc<EventFd>,
    told: Told,
    life: u64,
}

impl VirtioQueue {
    pub(crate) fn new(index: usize) -> Result<VirtioQueue, DeviceError> {
        let kick = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(|source| DeviceError::EventFd { purpose: "a virtio queue", source })?;
        let ring = new_ring()?;
        Ok(VirtioQueue { index, registers: QueueRegisters::at_reset(), ring, kick: Arc::new(kick), told: Told::Nothing, life: 0 })
    }

    /// The eventfd that the guest's kick writes.
    pub(crate) fn kick(&self) -> &Arc<EventFd> {
        &self.kick
    }

    pub(crate) fn ready(&self) -> bool {
        self.ring.ready()
    }

    /// Changes whenever the driver sets the queue up or takes it away: chains taken in one life are not to be completed in another.
    pub(crate) fn life(&self) -> u64 {
        self.life
    }

    pub(crate) fn reset(&mut self) {
        self.life += 1;
        self.registers = QueueRegisters::at_reset();
        self.told = Told::Nothing;
        self.ring.reset();
    }

    /// The driver declares the queue ready: from here on its addresses are known to be good.
    pub(crate) fn enable(&mut self, memory: &GuestMemory, event_idx: bool) -> Result<(), RingError> {
        let saved = SavedQueue { registers: self.registers, ready: true, event_idx, next_avail: 0, next_used: 0 };
        self.ring = self.build(memory, &saved)?;
        self.told = Told::Nothing;
        self.life += 1;
        Ok(())
    }

    pub(crate) fn disable(&mut self) {
        self.life += 1;
        self.ring.set_ready(false);
    }

    pub(crate) fn save(&self) -> SavedQueue {
        SavedQueue {
            registers: self.registers,
            ready: self.ring.ready(),
            event_idx: self.ring.event_idx_enabled(),
            next_avail: self.ring.next_avail(),
            next_used: self.ring.next_used(),
        }
    }

    pub(crate) fn restore(&mut self, memory: &GuestMemory, saved: &SavedQueue) -> Result<(), RingError> {
        if saved.ready {
            self.ring = self.build(memory, saved)?;
        } else {
            self.ring.reset();
        }
        self.told = Told::Nothing;
        self.registers = saved.registers;
        Ok(())
    }

    fn build(&self, memory: &GuestMemory, saved: &SavedQueue) -> Result<Queue, RingError> {
        let QueueRegisters { size, descriptors, available, used } = saved.registers;
        let size = u16::try_from(size)
            .ok()
            .filter(|size| size.is_power_of_two() && *size <= QUEUE_SIZE_MAX)
            .ok_or(RingError::Size { queue: self.index, size })?;
        let placement = || RingError::Placement { queue: self.index, descriptors, available, used };
        let ring = Queue::try_from(QueueState {
            max_size: QUEUE_SIZE_MAX,
            next_avail: saved.next_avail,
            next_used: saved.next_used,
            event_idx_enabled: saved.event_idx,
            size,
            ready: true,
            desc_table: descriptors,
            avail_ring: available,
            used_ring: used,
        })
        .map_err(|_| placement())?;
        // `virtio-queue` takes an available ring at 0 for "not set".
        if available == 0 || !ring.is_valid(memory) {
            return Err(placement());
        }
        Ok(ring)
    }

    /// True if the driver has made a chain available that the device has not taken. Never true on a queue that is not ready.
    pub(crate) fn has_available(&self, memory: &GuestMemory) -> Result<bool, RingError> {
        if !self.ring.ready() {
            return Ok(false);
        }
        let available = self.ring.avail_idx(memory, Ordering::Acquire).map_err(|source| self.ring_error(source))?;
        Ok(available.0 != self.ring.next_avail())
    }

    /// Takes the next chain: its head, and its buffers in `segments`. `None` when there is none.
    ///
    /// Follows at most as many descriptors as the queue (or an indirect table) has room for, [`QUEUE_SIZE_MAX`] in all.
    pub(crate) fn pop(&mut self, memory: &GuestMemory, segments: &mut Vec<Segment>) -> Result<Option<u16>, RingError> {
        segments.clear();
        if !self.ring.ready() {
            return Ok(None);
        }
        let next = self.ring.iter(memory).map(|mut chains| chains.next());
        let Some(chain) = next.map_err(|source| self.ring_error(source))? else {
            return Ok(None);
        };
        let head = chain.head_index();
        self.chain_at(memory, head, segments)?;
        Ok(Some(head))
    }

    /// Follows the chain at `head`, which was popped at some time before, in this life or before the state was saved. Same bounds as
    /// [`VirtioQueue::pop`].
    pub(crate) fn chain_at(&self, memory: &GuestMemory, head: u16, segments: &mut Vec<Segment>) -> Result<(), RingError> {
        segments.clear();
        let mut table = self.ring.desc_table();
        let mut left = self.ring.size();
        let (mut size, mut index, mut indirect, mut bytes) = (left, head, false, 0u32);
        loop {
            let unfinished = || RingError::Chain { queue: self.index, head, descriptors: segments.len() };
            if left == 0 || index >= size {
                return Err(unfinished());
            }
            let place = table.checked_add(u64::from(index) * DESCRIPTOR_BYTES).ok_or_else(unfinished)?;
            let descriptor: Descriptor = memory.read_obj(GuestAddress(place)).map_err(|_| unfinished())?;
            if descriptor.refers_to_indirect_table() {
                // Virtio 1.2, section 2.7.5.3: one level only, and a whole number of descriptors.
                let entries = u64::from(descriptor.len()) / DESCRIPTOR_BYTES;
                let whole = u64::from(descriptor.len()).is_multiple_of(DESCRIPTOR_BYTES);
                left = u16::try_from(entries).ok().filter(|_| whole && !indirect).ok_or_else(unfinished)?;
                (table, size, index, indirect) = (descriptor.addr().0, left, 0, true);
                continue;
            }
            if segments.len() == usize::from(QUEUE_SIZE_MAX) {
                return Err(unfinished());
            }
            // Section 2.7.5.2: a chain is no longer than 4 GiB in all.
            bytes = bytes.checked_add(descriptor.len()).ok_or_else(unfinished)?;
            segments.push(Segment {
                address: descriptor.addr(),
                length: descriptor.len() as usize,
                device_writes: descriptor.is_write_only(),
            });
            if !descriptor.has_next() {
                return Ok(());
            }
            index = descriptor.next();
            left -= 1;
        }
    }

    /// Puts the chain that [`VirtioQueue::pop`] returned last back, as if it had not been taken.
    pub(crate) fn put_back(&mut self) {
        self.ring.go_to_previous_position();
    }

    /// Gives a chain back to the driver, with the number of bytes written into it.
    pub(crate) fn complete(&mut self, memory: &GuestMemory, head: u16, written: u32) -> Result<(), RingError> {
        self.ring.add_used(memory, head, written).map_err(|source| self.ring_error(source))
    }

    /// The next chain, as [`VirtioQueue::pop`], with kicks refused while there are any. Where there is none the driver is asked for a kick, and what it made available meanwhile is taken: no
    /// chain is left without either. Looks twice at most, however the driver moves its index.
    pub(crate) fn pop_or_want_kicks(&mut self, memory: &GuestMemory, segments: &mut Vec<Segment>) -> Result<Option<u16>, RingError> {
        let mut head = self.pop(memory, segments)?;
        if head.is_none() && self.want_kicks(memory)? {
            head = self.pop(memory, segments)?;
        }
        if head.is_some() {
            self.refuse_kicks(memory)?;
        }
        Ok(head)
    }

    /// Asks the driver for a kick when it next makes a chain available. True if it already has: look again.
    pub(crate) fn want_kicks(&mut self, memory: &GuestMemory) -> Result<bool, RingError> {
        if !self.ring.ready() {
            return Ok(false);
        }
        let wanted = Told::WantedAt(self.ring.next_avail());
        if self.told == wanted {
            return self.has_available(memory);
        }
        self.told = wanted;
        self.ring.enable_notification(memory).map_err(|source| self.ring_error(source))
    }

    /// Tells the driver that kicks are not needed now. With event indices this costs nothing: the index simply stays behind.
    pub(crate) fn refuse_kicks(&mut self, memory: &GuestMemory) -> Result<(), RingError> {
        if self.told == Told::Refused {
            return Ok(());
        }
        self.told = Told::Refused;
        self.ring.disable_notification(memory).map_err(|source| self.ring_error(source))
    }

    /// Whether the driver wants an interrupt for what was completed since the last question.
    pub(crate) fn wants_interrupt(&mut self, memory: &GuestMemory) -> Result<bool, RingError> {
        if self.ring.event_idx_enabled() {
            return self.ring.needs_notification(memory).map_err(|source| self.ring_error(source));
        }
        // The used index must be visible before the driver's wish is read, else both sides wait.
        fence(Ordering::SeqCst);
        let flags: u16 = memory
            .load(GuestAddress(self.ring.avail_ring()), Ordering::Relaxed)
            .map_err(|source| self.ring_error(virtio_queue::Error::GuestMemory(source)))?;
        Ok(u16::from_le(flags) & AVAIL_NO_INTERRUPT == 0)
    }

    fn ring_error(&self, source: virtio_queue::Error) -> RingError {
        RingError::Ring { queue: self.index, source }
    }
}

fn new_ring() -> Result<Queue, DeviceError> {
    Queue::new(QUEUE_SIZE_MAX).map_err(|error| DeviceError::StateMismatch { device: "virtio queue", reason: error.to_string() })
}
