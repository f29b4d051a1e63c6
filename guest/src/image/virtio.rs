//! virtio-mmio version 2 and its split queues: finding a device, negotiating, and the memory both sides share.
//!
//! Queues, descriptors and buffers are statics of the image or of its heap: their addresses are their physical ones. Notifications are
//! suppressed by the flags both ways. Not here: frames (`net`), disk requests (`blk`).

use core::sync::atomic::{Ordering, compiler_fence};

use crate::cpu::{self, mmio_read, mmio_write};

/// Entries of a queue, and buffers behind it.
pub const QUEUE: usize = 256;
/// Bytes of a buffer: header and one Ethernet frame, two to a page.
pub const BUFFER: usize = 2048;

const MAGIC: u64 = 0x000;
const VERSION: u64 = 0x004;
const DEVICE_ID: u64 = 0x008;
const VENDOR_ID: u64 = 0x00c;
const DEVICE_FEATURES: u64 = 0x010;
const DEVICE_FEATURES_SELECT: u64 = 0x014;
const DRIVER_FEATURES: u64 = 0x020;
const DRIVER_FEATURES_SELECT: u64 = 0x024;
const QUEUE_SELECT: u64 = 0x030;
const QUEUE_SIZE_MOST: u64 = 0x034;
const QUEUE_SIZE: u64 = 0x038;
const QUEUE_READY: u64 = 0x044;
const QUEUE_NOTIFY: u64 = 0x050;
const INTERRUPT_STATUS: u64 = 0x060;
const INTERRUPT_ACK: u64 = 0x064;
const STATUS: u64 = 0x070;
const QUEUE_DESCRIPTORS: u64 = 0x080;
const QUEUE_AVAILABLE: u64 = 0x090;
const QUEUE_USED: u64 = 0x0a0;
const CONFIG: u64 = 0x100;

const MAGIC_VALUE: u32 = 0x7472_6976;
/// QEMU drives the interrupt line from the status register, so it must be acknowledged. A VMM with an irqfd pulses the line each time,
/// and acknowledging would be an exit for nothing.
const VENDOR_QEMU: u32 = 0x554d_4551;
const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
/// Descriptor flag: another one follows.
pub const HAS_NEXT: u16 = 1;
/// Descriptor flag: the device writes the buffer.
pub const DEVICE_WRITES: u16 = 2;

#[repr(C)]
#[derive(Clone, Copy)]
struct Descriptor {
    address: u64,
    length: u32,
    flags: u16,
    next: u16,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct UsedElement {
    id: u32,
    length: u32,
}

/// A queue's rings, as both sides see them.
#[repr(C, align(4096))]
pub struct Rings {
    descriptors: [Descriptor; QUEUE],
    available_flags: u16,
    available_index: u16,
    available: [u16; QUEUE],
    _pad: [u16; 2],
    used_flags: u16,
    used_index: u16,
    used: [UsedElement; QUEUE],
}

/// Rings, and a buffer for each descriptor.
#[repr(C, align(4096))]
pub struct Shared {
    rings: Rings,
    buffers: Buffers,
}

#[repr(C, align(4096))]
struct Buffers([[u8; BUFFER]; QUEUE]);

impl Shared {
    /// All zero, as memory is before a device is set up.
    pub const fn new() -> Shared {
        Shared {
            rings: Rings {
                descriptors: [Descriptor { address: 0, length: 0, flags: 0, next: 0 }; QUEUE],
                available_flags: 0,
                available_index: 0,
                available: [0; QUEUE],
                _pad: [0; 2],
                used_flags: 0,
                used_index: 0,
                used: [UsedElement { id: 0, length: 0 }; QUEUE],
            },
            buffers: Buffers([[0; BUFFER]; QUEUE]),
        }
    }
}

/// The driver's side of a queue's rings.
pub struct Ring {
    rings: *mut Rings,
    index: u32,
    base: u64,
    /// Next available index to publish.
    available: u16,
    /// Next used index to look at.
    used: u16,
}

impl Ring {
    /// Writes a descriptor that is not the device's now.
    pub fn describe(&mut self, id: u16, address: u64, length: u32, flags: u16, next: u16) {
        // SAFETY: the descriptor is the driver's.
        unsafe {
            let slot = &raw mut (*self.rings).descriptors[usize::from(id) % QUEUE];
            slot.write_volatile(Descriptor { address, length, flags, next });
        }
    }

    /// Changes which descriptor follows one that is not the device's now.
    pub fn link(&mut self, id: u16, next: u16) {
        // SAFETY: the descriptor is the driver's.
        unsafe { (&raw mut (*self.rings).descriptors[usize::from(id) % QUEUE].next).write_volatile(next) };
    }

    /// Gives the chain that starts at a descriptor to the device.
    pub fn offer(&mut self, head: u16) {
        // SAFETY: slot and index are written only here, the index last, which x86 keeps in order.
        unsafe {
            (&raw mut (*self.rings).available[usize::from(self.available) % QUEUE]).write_volatile(head);
            self.available = self.available.wrapping_add(1);
            compiler_fence(Ordering::Release);
            (&raw mut (*self.rings).available_index).write_volatile(self.available);
        }
    }

    /// Whether the device has handed a chain back.
    pub fn has_used(&self) -> bool {
        // SAFETY: a field that the device writes, read in one instruction.
        unsafe { (&raw const (*self.rings).used_index).read_volatile() != self.used }
    }

    /// Takes a chain back: its head and the bytes that the device wrote.
    pub fn take(&mut self) -> Option<(u16, u32)> {
        if !self.has_used() {
            return None;
        }
        compiler_fence(Ordering::Acquire);
        // SAFETY: the device wrote this element before it moved the index past it.
        let element = unsafe { (&raw const (*self.rings).used[usize::from(self.used) % QUEUE]).read_volatile() };
        self.used = self.used.wrapping_add(1);
        Some(((element.id as usize % QUEUE) as u16, element.length))
    }

    /// Asks the device to interrupt, or not to, when it hands chains back.
    pub fn set_interrupts(&mut self, wanted: bool) {
        // SAFETY: only the driver writes this field.
        unsafe { (&raw mut (*self.rings).available_flags).write_volatile(u16::from(!wanted)) };
        cpu::fence();
    }

    /// Tells the device that there is something new, unless it has said that it looks anyway.
    pub fn kick(&mut self) {
        cpu::fence();
        // SAFETY: a field that the device writes; then a device register.
        unsafe {
            if (&raw const (*self.rings).used_flags).read_volatile() & 1 == 0 {
                mmio_write(self.base + QUEUE_NOTIFY, self.index);
            }
        }
    }
}

/// The driver's side of a queue in which each descriptor is a chain with a buffer of its own.
pub struct Queue {
    ring: Ring,
    shared: *mut Shared,
}

impl Queue {
    /// The buffer of a descriptor.
    pub fn buffer(&mut self, id: u16) -> &mut [u8; BUFFER] {
        // SAFETY: the driver owns a buffer from the moment the device hands it back until it is offered again, and `&mut self` keeps the
        // borrow from outliving that.
        unsafe { &mut (*self.shared).buffers.0[usize::from(id) % QUEUE] }
    }

    /// Gives a buffer's first `length` bytes to the device.
    pub fn offer(&mut self, id: u16, length: u32) {
        // SAFETY: the descriptor is not the device's now.
        unsafe {
            let slot = &raw mut (*self.shared).rings.descriptors[usize::from(id) % QUEUE].length;
            if slot.read() != length {
                // Receive buffers keep their length: not writing it saves a dirty page.
                slot.write_volatile(length);
            }
        }
        self.ring.offer(id);
    }

    /// Whether the device has handed a buffer back.
    pub fn has_used(&self) -> bool {
        self.ring.has_used()
    }

    /// Takes a buffer back: its descriptor and the bytes that the device wrote.
    pub fn take(&mut self) -> Option<(u16, u32)> {
        self.ring.take()
    }

    /// Asks the device to interrupt, or not to, when it hands buffers back.
    pub fn set_interrupts(&mut self, wanted: bool) {
        self.ring.set_interrupts(wanted);
    }

    /// Tells the device that there are new buffers, unless it has said that it looks anyway.
    pub fn kick(&mut self) {
        self.ring.kick();
    }
}

/// A virtio device that has been found and accepted.
pub struct Device {
    base: u64,
    acknowledge: bool,
}

impl Device {
    /// Looks for a device of this kind at `base`, and negotiates `VERSION_1` and the features named. `None`: another device, or none.
    pub fn find(base: u64, kind: u32, features: u32) -> Option<Device> {
        let device = Device { base, acknowledge: true };
        if device.read(MAGIC) != MAGIC_VALUE || device.read(VERSION) != 2 || device.read(DEVICE_ID) != kind {
            return None;
        }
        let acknowledge = device.read(VENDOR_ID) == VENDOR_QEMU;
        device.write(STATUS, 0);
        device.write(STATUS, ACKNOWLEDGE);
        device.write(STATUS, ACKNOWLEDGE | DRIVER);
        device.write(DEVICE_FEATURES_SELECT, 0);
        let offered = device.read(DEVICE_FEATURES);
        device.write(DRIVER_FEATURES_SELECT, 0);
        device.write(DRIVER_FEATURES, offered & features);
        device.write(DRIVER_FEATURES_SELECT, 1);
        device.write(DRIVER_FEATURES, 1);
        device.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        (device.read(STATUS) & FEATURES_OK != 0).then_some(Device { base, acknowledge })
    }

    /// Sets up a queue over memory that both sides see. `None` when the device has no queue of [`QUEUE`] entries there.
    ///
    /// # Safety
    /// `rings` must be zero, live as long as the device and belong to this queue alone.
    pub unsafe fn ring(&self, index: u32, rings: *mut Rings) -> Option<Ring> {
        self.write(QUEUE_SELECT, index);
        if self.read(QUEUE_SIZE_MOST) < QUEUE as u32 {
            return None;
        }
        // SAFETY: addresses of fields, nothing is read.
        let (descriptors, available, used) =
            unsafe { (&raw const (*rings).descriptors, &raw const (*rings).available_flags, &raw const (*rings).used_flags) };
        self.write(QUEUE_SIZE, QUEUE as u32);
        for (register, address) in [
            (QUEUE_DESCRIPTORS, descriptors.expose_provenance()),
            (QUEUE_AVAILABLE, available.expose_provenance()),
            (QUEUE_USED, used.expose_provenance()),
        ] {
            self.write(register, address as u32);
            self.write(register + 4, (address as u64 >> 32) as u32);
        }
        self.write(QUEUE_READY, 1);
        Some(Ring { rings, index, base: self.base, available: 0, used: 0 })
    }

    /// The same with a buffer for each descriptor, which have `flags`.
    ///
    /// # Safety
    /// As for [`Device::ring`].
    pub unsafe fn queue(&self, index: u32, shared: *mut Shared, flags: u16) -> Option<Queue> {
        // SAFETY: the caller's promise.
        let ring = unsafe { self.ring(index, &raw mut (*shared).rings)? };
        let mut queue = Queue { ring, shared };
        for id in 0..QUEUE {
            // SAFETY: the address of a field, nothing is read.
            let address = unsafe { (&raw const (*shared).buffers.0[id]).expose_provenance() as u64 };
            queue.ring.describe(id as u16, address, BUFFER as u32, flags, 0);
        }
        Some(queue)
    }

    /// Lets the device begin.
    pub fn start(&self) {
        self.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    }

    /// Lowers the interrupt line where the device keeps it up.
    pub fn acknowledge_interrupt(&self) {
        if self.acknowledge {
            let status = self.read(INTERRUPT_STATUS);
            if status != 0 {
                self.write(INTERRUPT_ACK, status);
            }
        }
    }

    /// A byte of the device's configuration.
    pub fn config(&self, offset: u64) -> u8 {
        let address = self.base + CONFIG + offset;
        let value: u32;
        // SAFETY: a device register, read by a byte as the specification asks for byte fields.
        unsafe { core::arch::asm!("movzx {0:e}, byte ptr [{1}]", out(reg) value, in(reg) address, options(nostack, preserves_flags)) };
        value as u8
    }

    fn read(&self, register: u64) -> u32 {
        // SAFETY: a register of the window that the command line named.
        unsafe { mmio_read(self.base + register) }
    }

    fn write(&self, register: u64, value: u32) {
        // SAFETY: as above; queue addresses are those of statics set aside for the device.
        unsafe { mmio_write(self.base + register, value) };
    }
}
