//! virtio-blk: requests of three descriptors each (header, data, status) in numbered slots, so that nothing is allocated while the disk works.
//!
//! All state is in the rings and in the slots, so there is nothing to redo after a failover: the host carries out anew what was in flight, signals the queue and
//! interrupts. Not here: what is written, and the proof that it is read again (`guest::disk`).

use alloc::boxed::Box;
use alloc::vec::Vec;

use guest::disk::{BUFFER_WORDS, Disk, Drive, Op};
use guest::parameters::Parameters;

use crate::clock;
use crate::virtio::{DEVICE_WRITES, Device, HAS_NEXT, QUEUE, Ring, Rings};
use crate::{apic, cpu};

/// virtio's number for a disk.
const KIND_BLK: u32 = 2;
/// The disk has a cache that can be flushed.
const FEATURE_FLUSH: u32 = 1 << 9;
/// Requests at once, each with 64 KiB: a queue deep enough to be reordered, and 1 MiB of heap.
const SLOTS: usize = 16;
/// Disks looked for: as much heap as a small guest can spare.
const MOST_DISKS: usize = 4;
/// Longest sleep while a command waits: the disk's interrupt comes first, this bounds what a lost one costs.
const WAIT_NS: u64 = 100_000_000;

const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;

/// What a request has besides its data.
#[repr(C)]
struct Frame {
    command: u32,
    reserved: u32,
    sector: u64,
    status: u8,
}

#[repr(C, align(4096))]
struct Buffers([[u64; BUFFER_WORDS]; SLOTS]);

/// A disk's driver.
pub struct Blk {
    device: Device,
    ring: Ring,
    sectors: u64,
    frames: *mut [Frame; SLOTS],
    buffers: *mut Buffers,
    /// A command has set the timer that the server thinks is its own.
    timer_used: bool,
}

/// Zeroed memory of this type that lives as long as the guest. The caller sees to it that all zeroes is a value of it.
fn forever<T>() -> *mut T {
    let memory: Box<core::mem::MaybeUninit<T>> = Box::new_uninit();
    let memory = Box::into_raw(memory).cast::<T>();
    // SAFETY: just allocated for a T.
    unsafe { memory.write_bytes(0, 1) };
    memory
}

/// The disks that the command line names, in its order, started.
pub fn find_all(parameters: &Parameters) -> Vec<Disk<Blk>> {
    let windows = parameters.devices.iter().take_while(|window| window.base != 0);
    let started = windows.filter_map(|window| {
        let device = Device::find(window.base, KIND_BLK, FEATURE_FLUSH)?;
        let rings = forever::<Rings>();
        // SAFETY: memory of this queue alone, for as long as the guest runs.
        let mut ring = unsafe { device.ring(0, rings)? };
        ring.set_interrupts(false);
        let sectors = u64::from_le_bytes(core::array::from_fn(|byte| device.config(byte as u64)));
        let mut blk = Blk { device, ring, sectors, frames: forever(), buffers: forever(), timer_used: false };
        for slot in 0..SLOTS {
            blk.describe(slot);
        }
        apic::route(window.gsi);
        blk.device.start();
        Some(Disk::new(blk))
    });
    started.take(MOST_DISKS).collect()
}

const _: () = assert!(3 * SLOTS <= QUEUE);

impl Blk {
    /// The head of a slot's chain.
    fn head(slot: usize) -> u16 {
        3 * slot as u16
    }

    /// Writes what stays the same in a slot's descriptors.
    fn describe(&mut self, slot: usize) {
        // SAFETY: addresses of fields, nothing is read.
        let (header, status) = unsafe { (&raw const (*self.frames)[slot], &raw const (*self.frames)[slot].status) };
        let (header, status) = (header.expose_provenance() as u64, status.expose_provenance() as u64);
        let head = Blk::head(slot);
        self.ring.describe(head, header, 16, HAS_NEXT, head + 1);
        self.ring.describe(head + 2, status, 1, DEVICE_WRITES, 0);
    }

    /// Asks for an interrupt before the vCPU halts. `false`: something has ended already.
    pub fn arm(&mut self) -> bool {
        self.ring.set_interrupts(true);
        !self.ring.has_used()
    }

    /// Back to polling.
    pub fn disarm(&mut self) {
        self.ring.set_interrupts(false);
    }

    /// To be called after an interrupt.
    pub fn acknowledge_interrupt(&self) {
        self.device.acknowledge_interrupt();
    }

    /// Whether the timer has been set since the last question.
    pub fn take_timer_used(&mut self) -> bool {
        core::mem::take(&mut self.timer_used)
    }
}

impl Drive for Blk {
    fn sectors(&self) -> u64 {
        self.sectors
    }

    fn slots(&self) -> usize {
        SLOTS
    }

    fn buffer(&mut self, slot: usize) -> &mut [u64; BUFFER_WORDS] {
        // SAFETY: the driver owns a slot's buffer while the device has not been given it, which the caller knows, and `&mut self` keeps the borrow from
        // outliving that.
        unsafe { &mut (*self.buffers).0[slot] }
    }

    fn begin(&mut self, slot: usize, op: Op, sector: u64, sectors: u64) {
        let head = Blk::head(slot);
        let (command, flags) = match op {
            Op::Read => (T_IN, DEVICE_WRITES),
            Op::Write => (T_OUT, 0),
            Op::Flush => (T_FLUSH, 0),
        };
        // SAFETY: the slot is not the device's now.
        let buffer = unsafe {
            let frame = &raw mut (*self.frames)[slot];
            (&raw mut (*frame).command).write_volatile(command);
            (&raw mut (*frame).sector).write_volatile(sector);
            (&raw mut (*frame).status).write_volatile(0xff);
            (&raw const (*self.buffers).0[slot]).expose_provenance() as u64
        };
        // A flush has no data: its header is followed by its status.
        self.ring.link(head, if op == Op::Flush { head + 2 } else { head + 1 });
        if op != Op::Flush {
            self.ring.describe(head + 1, buffer, (sectors * 512) as u32, HAS_NEXT | flags, head + 2);
        }
        self.ring.offer(head);
    }

    fn kick(&mut self) {
        self.ring.kick();
    }

    fn take(&mut self) -> Option<(usize, bool)> {
        let (head, _) = self.ring.take()?;
        let slot = usize::from(head / 3) % SLOTS;
        // SAFETY: the device has written the status before it handed the chain back.
        let status = unsafe { (&raw const (*self.frames)[slot].status).read_volatile() };
        Some((slot, status == 0))
    }

    fn wait(&mut self) {
        let seen = cpu::interrupts(0);
        if self.arm() {
            self.timer_used = true;
            apic::set_timer(WAIT_NS);
            cpu::wait(seen);
        }
        self.disarm();
        self.acknowledge_interrupt();
    }

    fn now(&mut self) -> u64 {
        clock::raw_ns(0)
    }
}
