//! What drivers in the tests of virtio devices are made of: memory in two regions, registers, rings; and a small driver of any device with one queue. No KVM.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::GuestMemory;
use crate::devices::virtio::{MmioTransport, VirtioDevice};
use crate::devices::worker::{Batch, WorkerDevice};
use crate::devices::{BusDevice, lock};

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

pub(crate) const LOW_BYTES: usize = 4 << 20;
/// A second region, right behind 4 GiB.
pub(crate) const HIGH: u64 = 1 << 32;
pub(crate) const HIGH_BYTES: usize = 2 << 20;

/// Where one queue's rings are in guest memory.
#[derive(Clone, Copy)]
pub(crate) struct Rings {
    pub(crate) descriptors: u64,
    pub(crate) available: u64,
    pub(crate) used: u64,
    pub(crate) size: u16,
}

impl Rings {
    pub(crate) fn avail_index(&self, memory: &GuestMemory) -> u16 {
        memory.read_obj(GuestAddress(self.available + 2)).unwrap()
    }

    pub(crate) fn set_avail_index(&self, memory: &GuestMemory, index: u16) {
        memory.write_obj(index, GuestAddress(self.available + 2)).unwrap();
    }

    pub(crate) fn make_available(&self, memory: &GuestMemory, head: u16) {
        let index = self.avail_index(memory);
        let slot = u64::from(index % self.size);
        memory.write_obj(head, GuestAddress(self.available + 4 + 2 * slot)).unwrap();
        self.set_avail_index(memory, index.wrapping_add(1));
    }

    pub(crate) fn used_index(&self, memory: &GuestMemory) -> u16 {
        memory.read_obj(GuestAddress(self.used + 2)).unwrap()
    }

    /// (id, length) at a position of the used ring.
    pub(crate) fn used(&self, memory: &GuestMemory, position: u16) -> (u32, u32) {
        let at = self.used + 4 + 8 * u64::from(position % self.size);
        (memory.read_obj(GuestAddress(at)).unwrap(), memory.read_obj(GuestAddress(at + 4)).unwrap())
    }
}

/// Writes a descriptor into a table: a queue's, or an indirect one.
pub(crate) fn set_descriptor(memory: &GuestMemory, table: u64, index: u16, address: u64, length: u32, flags: u16, next: u16) {
    let at = GuestAddress(table + 16 * u64::from(index));
    let bytes = [&address.to_le_bytes()[..], &length.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()].concat();
    memory.write_slice(&bytes, at).unwrap();
}

pub(crate) const RINGS: Rings = Rings { descriptors: 0x1000, available: 0x3000, used: 0x4000, size: 256 };

/// Guest memory that nobody has written to.
pub(crate) fn memory() -> GuestMemory {
    GuestMemory::from_ranges(&[(GuestAddress(0), LOW_BYTES), (GuestAddress(HIGH), HIGH_BYTES)]).unwrap()
}

/// Another machine's memory with the same content.
pub(crate) fn copy_of(memory: &GuestMemory) -> GuestMemory {
    let copy = self::memory();
    for region in memory.iter() {
        let mut bytes = vec![0; region.len() as usize];
        memory.read_slice(&mut bytes, region.start_addr()).unwrap();
        copy.write_slice(&bytes, region.start_addr()).unwrap();
    }
    copy
}

/// Page addresses that the VMM has written since the last call.
pub(crate) fn take_dirty_pages(memory: &GuestMemory) -> Vec<u64> {
    let mut pages = Vec::new();
    for region in memory.iter() {
        let mapping: &vm_memory::MmapRegion<dirty_tracking::WriteLog> = region;
        mapping.bitmap().take(|index, word| {
            for bit in (0..64).filter(|bit| word >> bit & 1 == 1) {
                pages.push(region.start_addr().raw_value() + (index as u64 * 64 + bit) * 4096);
            }
        });
    }
    pages
}

/// A device's registers as a driver uses them (virtio 1.2, section 4.2.2).
pub(crate) trait Registers {
    fn register(&mut self, register: u64) -> u32;
    fn set_register(&mut self, register: u64, value: u32);

    fn status(&mut self) -> u32 {
        self.register(0x70)
    }

    /// From acknowledging the device, which was reset, to FEATURES_OK.
    fn negotiate(&mut self, features: u64) {
        self.set_register(0x70, 1);
        self.set_register(0x70, 3);
        for word in 0..2 {
            self.set_register(0x24, word);
            self.set_register(0x20, (features >> (32 * word)) as u32);
        }
        self.set_register(0x70, 11);
    }

    fn enable_queue(&mut self, queue: u32, rings: Rings) {
        self.set_register(0x30, queue);
        self.set_register(0x38, u32::from(rings.size));
        for (register, address) in [(0x80, rings.descriptors), (0x90, rings.available), (0xa0, rings.used)] {
            self.set_register(register, address as u32);
            self.set_register(register + 4, (address >> 32) as u32);
        }
        self.set_register(0x44, 1);
    }

    /// Consumes pending kicks and interrupts; true if an interrupt was pending.
    fn forget_events(&mut self) -> bool;
}

impl Registers for MmioTransport {
    fn register(&mut self, register: u64) -> u32 {
        let mut data = [0; 4];
        self.read(register, &mut data);
        u32::from_le_bytes(data)
    }

    fn set_register(&mut self, register: u64, value: u32) {
        self.write(register, &value.to_le_bytes());
    }

    fn forget_events(&mut self) -> bool {
        for kick in self.kicks() {
            let _ = kick.read();
        }
        self.irqfd().read().is_ok()
    }
}

/// A driver of one device with one queue.
pub(crate) struct Driver<D> {
    pub(crate) memory: GuestMemory,
    pub(crate) device: Arc<Mutex<D>>,
    pub(crate) transport: MmioTransport,
    pub(crate) rings: Rings,
    /// Position in the used ring up to which the driver has looked.
    seen: u16,
}

impl<D: VirtioDevice + WorkerDevice + 'static> Driver<D> {
    pub(crate) fn new(memory: GuestMemory, device: D) -> Driver<D> {
        let device = Arc::new(Mutex::new(device));
        Driver { memory, transport: MmioTransport::new(Arc::clone(&device)).unwrap(), device, rings: RINGS, seen: 0 }
    }

    pub(crate) fn read(&mut self, register: u64) -> u32 {
        self.transport.register(register)
    }

    pub(crate) fn write(&mut self, register: u64, value: u32) {
        self.transport.set_register(register, value);
    }

    pub(crate) fn status(&mut self) -> u32 {
        self.transport.status()
    }

    pub(crate) fn offered(&mut self) -> u64 {
        self.write(0x14, 0);
        let low = self.read(0x10);
        self.write(0x14, 1);
        u64::from(self.read(0x10)) << 32 | u64::from(low)
    }

    pub(crate) fn reset(&mut self) {
        self.write(0x70, 0);
        // A driver that begins anew begins with empty rings.
        for (at, bytes) in [(self.rings.available, 4), (self.rings.used, 4)] {
            self.memory.write_slice(&vec![0; bytes], GuestAddress(at)).unwrap();
        }
        self.seen = 0;
    }

    pub(crate) fn start(&mut self, features: u64) {
        self.reset();
        self.transport.negotiate(features);
        self.enable_queue();
        self.write(0x70, 15);
        self.forget_events();
    }

    pub(crate) fn enable_queue(&mut self) {
        self.transport.enable_queue(0, self.rings);
    }

    /// Consumes pending kicks and interrupts; true if an interrupt was pending.
    pub(crate) fn forget_events(&mut self) -> bool {
        self.transport.forget_events()
    }

    pub(crate) fn set_descriptor_at(&self, table: u64, index: u16, address: u64, length: u32, flags: u16, next: u16) {
        set_descriptor(&self.memory, table, index, address, length, flags, next);
    }

    pub(crate) fn set_descriptor(&self, index: u16, address: u64, length: u32, flags: u16, next: u16) {
        self.set_descriptor_at(self.rings.descriptors, index, address, length, flags, next);
    }

    /// Writes a chain into consecutive descriptors from `first`: address, length, whether the device writes it.
    pub(crate) fn set_chain(&self, first: u16, buffers: &[(u64, u32, bool)]) {
        self.set_chain_at(self.rings.descriptors, first, buffers);
    }

    pub(crate) fn set_chain_at(&self, table: u64, first: u16, buffers: &[(u64, u32, bool)]) {
        for (index, &(address, length, writable)) in buffers.iter().enumerate() {
            let last = index + 1 == buffers.len();
            let flags = if last { 0 } else { NEXT } | if writable { WRITE } else { 0 };
            let at = first + index as u16;
            self.set_descriptor_at(table, at, address, length, flags, if last { 0 } else { at + 1 });
        }
    }

    pub(crate) fn avail_index(&self) -> u16 {
        self.rings.avail_index(&self.memory)
    }

    pub(crate) fn set_avail_index(&self, index: u16) {
        self.rings.set_avail_index(&self.memory, index);
    }

    pub(crate) fn make_available(&self, head: u16) {
        self.rings.make_available(&self.memory, head);
    }

    pub(crate) fn used_index(&self) -> u16 {
        self.rings.used_index(&self.memory)
    }

    /// (id, length) of what the device has used since the last call.
    pub(crate) fn used(&mut self) -> Vec<(u16, u32)> {
        let mut found = Vec::new();
        while self.seen != self.used_index() {
            let (id, length) = self.rings.used(&self.memory, self.seen);
            found.push((id as u16, length));
            self.seen = self.seen.wrapping_add(1);
        }
        found
    }

    /// How far [`Driver::used`] has looked: the driver's own memory, which moves with its guest.
    pub(crate) fn seen(&self) -> u16 {
        self.seen
    }

    pub(crate) fn set_seen(&mut self, seen: u16) {
        self.seen = seen;
    }

    pub(crate) fn bytes(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    pub(crate) fn put(&self, address: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(address)).unwrap();
    }

    pub(crate) fn run(&self) -> Batch {
        lock(&self.device).run_batch(&AtomicBool::new(false))
    }

    /// Batches until there is nothing more to do.
    pub(crate) fn run_all(&self) -> Batch {
        loop {
            let batch = self.run();
            if !batch.more {
                return batch;
            }
        }
    }

    /// Why the device needs a reset, if it does.
    pub(crate) fn broken(&self) -> Option<String> {
        lock(&self.device).core().broken().map(str::to_owned)
    }

    /// Page addresses that the device, or this driver, has written since the last call.
    pub(crate) fn dirty_pages(&self) -> Vec<u64> {
        take_dirty_pages(&self.memory)
    }
}
