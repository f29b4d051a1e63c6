//! A small guest for tests: a driver that programs the card through its registers, a TAP made of a socket pair, and a sink that can be full. No KVM.

use std::ops::{Deref, DerefMut};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use vm_memory::{Bytes, GuestAddress};

use super::{NetConfig, NetDevice};
use crate::devices::lock;
use crate::devices::tap::{FrameSource, Tap};
use crate::devices::virtio::testing::{Registers, set_descriptor, take_dirty_pages};
use crate::devices::virtio::{F_EVENT_IDX, F_VERSION_1, MmioTransport};
use crate::devices::worker::{Batch, WorkerDevice};
use crate::{FrameSink, GuestMemory, SinkFull};

pub(crate) use crate::devices::virtio::testing::{HIGH, HIGH_BYTES, LOW_BYTES, NEXT, Rings, WRITE, memory};

pub(crate) const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
pub(crate) const RX: usize = 0;
pub(crate) const TX: usize = 1;
pub(crate) const HEADER: usize = 12;
pub(crate) const BOTH: u64 = F_VERSION_1 | F_EVENT_IDX;

/// A sink that keeps what it gets, up to a settable number of frames.
pub(crate) struct TestSink {
    frames: Mutex<Vec<Vec<u8>>>,
    arrived: Condvar,
    capacity: AtomicUsize,
}

impl TestSink {
    pub(crate) fn set_capacity(&self, capacity: usize) {
        self.capacity.store(capacity, Ordering::SeqCst);
    }
    pub(crate) fn frames(&self) -> Vec<Vec<u8>> {
        lock(&self.frames).clone()
    }
    pub(crate) fn wait_for(&self, count: usize) -> Vec<Vec<u8>> {
        let mut frames = lock(&self.frames);
        while frames.len() < count {
            let (guard, timeout) = self.arrived.wait_timeout(frames, std::time::Duration::from_secs(10)).unwrap();
            assert!(!timeout.timed_out(), "only {} of {count} frames arrived", guard.len());
            frames = guard;
        }
        frames.clone()
    }
}

impl FrameSink for TestSink {
    fn send(&self, port: u8, frame: &[u8]) -> Result<(), SinkFull> {
        assert_eq!(port, 3);
        let mut frames = lock(&self.frames);
        if frames.len() >= self.capacity.load(Ordering::SeqCst) {
            return Err(SinkFull);
        }
        frames.push(frame.to_vec());
        self.arrived.notify_all();
        Ok(())
    }
}

impl Rings {
    /// Each part on a page of its own, so that dirty pages can be told apart.
    pub(crate) fn standard(queue: usize) -> Rings {
        let base = 0x1_0000 * (queue as u64 + 1);
        Rings { descriptors: base, available: base + 0x2000, used: base + 0x4000, size: 16 }
    }
}

/// A card and its guest's rings, behind whatever transport.
pub(crate) struct Card {
    pub(crate) memory: GuestMemory,
    pub(crate) device: Arc<Mutex<NetDevice>>,
    pub(crate) sink: Arc<TestSink>,
    pub(crate) wire: UnixDatagram,
    pub(crate) rings: [Rings; 2],
}

/// A card on the mmio transport.
pub(crate) struct TestGuest {
    card: Card,
    pub(crate) transport: MmioTransport,
}

impl Deref for TestGuest {
    type Target = Card;
    fn deref(&self) -> &Card {
        &self.card
    }
}

impl DerefMut for TestGuest {
    fn deref_mut(&mut self) -> &mut Card {
        &mut self.card
    }
}

impl TestGuest {
    /// A card at reset.
    pub(crate) fn new() -> TestGuest {
        TestGuest::with_memory(memory())
    }

    /// A card at reset over memory that has a history.
    pub(crate) fn with_memory(memory: GuestMemory) -> TestGuest {
        TestGuest::build(Card::new(memory))
    }

    /// A card with a running driver and a source of its own.
    pub(crate) fn with_source(source: Box<dyn FrameSource>) -> TestGuest {
        let (_, wire) = UnixDatagram::pair().unwrap();
        let mut guest = TestGuest::build(Card::build(memory(), source, wire));
        guest.start(BOTH);
        guest
    }

    fn build(card: Card) -> TestGuest {
        let transport = MmioTransport::new(card.device.clone()).unwrap();
        TestGuest { card, transport }
    }

    /// A card with a running driver.
    pub(crate) fn running(features: u64) -> TestGuest {
        let mut guest = TestGuest::new();
        guest.start(features);
        guest
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

    pub(crate) fn negotiate(&mut self, features: u64) {
        self.write(0x70, 0);
        self.transport.negotiate(features);
    }

    pub(crate) fn set_queue(&mut self, queue: usize, rings: Rings) {
        self.rings[queue] = rings;
        self.transport.enable_queue(queue as u32, rings);
    }

    pub(crate) fn start(&mut self, features: u64) {
        self.negotiate(features);
        for queue in [RX, TX] {
            self.set_queue(queue, self.rings[queue]);
        }
        self.write(0x70, 15);
        self.forget_events();
    }

    /// Consumes pending kicks and interrupts; true if an interrupt was pending.
    pub(crate) fn forget_events(&mut self) -> bool {
        self.transport.forget_events()
    }
}

impl Card {
    /// A card at reset over memory that may have a history.
    pub(crate) fn new(memory: GuestMemory) -> Card {
        let (tap, wire) = UnixDatagram::pair().unwrap();
        tap.set_nonblocking(true).unwrap();
        wire.set_nonblocking(true).unwrap();
        Card::build(memory, Box::new(Tap::from_fd("test", OwnedFd::from(tap)).unwrap()), wire)
    }

    fn build(memory: GuestMemory, source: Box<dyn FrameSource>, wire: UnixDatagram) -> Card {
        let sink = Arc::new(TestSink { frames: Mutex::default(), arrived: Condvar::new(), capacity: AtomicUsize::new(usize::MAX) });
        let device = NetDevice::new(NetConfig { port: 3, mac: MAC }, memory.clone(), sink.clone(), source).unwrap();
        let device = Arc::new(Mutex::new(device));
        Card { memory, device, sink, wire, rings: [Rings::standard(RX), Rings::standard(TX)] }
    }

    pub(crate) fn set_descriptor(&self, queue: usize, index: u16, address: u64, length: u32, flags: u16, next: u16) {
        set_descriptor(&self.memory, self.rings[queue].descriptors, index, address, length, flags, next);
    }

    pub(crate) fn set_avail_index(&self, queue: usize, index: u16) {
        self.rings[queue].set_avail_index(&self.memory, index);
    }

    pub(crate) fn make_available(&self, queue: usize, head: u16) {
        self.rings[queue].make_available(&self.memory, head);
    }

    /// The driver's wish: interrupt me when the used index passes this.
    pub(crate) fn set_used_event(&self, queue: usize, event: u16) {
        let rings = self.rings[queue];
        self.memory.write_obj(event, GuestAddress(rings.available + 4 + 2 * u64::from(rings.size))).unwrap();
    }

    /// The device's wish: kick me when the available index passes this.
    pub(crate) fn avail_event(&self, queue: usize) -> u16 {
        let rings = self.rings[queue];
        self.memory.read_obj(GuestAddress(rings.used + 4 + 8 * u64::from(rings.size))).unwrap()
    }

    /// (id, length) of everything the device has used.
    pub(crate) fn used(&self, queue: usize) -> Vec<(u32, u32)> {
        let rings = self.rings[queue];
        (0..rings.used_index(&self.memory)).map(|position| rings.used(&self.memory, position)).collect()
    }

    /// Offers `frame` for sending in one buffer behind a zero header, descriptor `index`.
    pub(crate) fn offer_frame(&self, index: u16, frame: &[u8]) {
        let address = 0x10_0000 + 0x3000 * u64::from(index);
        self.memory.write_slice(&[&[0; HEADER], frame].concat(), GuestAddress(address)).unwrap();
        self.set_descriptor(TX, index, address, (HEADER + frame.len()) as u32, 0, 0);
        self.make_available(TX, index);
    }

    pub(crate) fn rx_buffer(index: u16) -> u64 {
        HIGH + 0x1000 * u64::from(index)
    }

    /// Offers an empty buffer, descriptor `index`.
    pub(crate) fn offer_buffer(&self, index: u16, length: u32) {
        self.set_descriptor(RX, index, Card::rx_buffer(index), length, WRITE, 0);
        self.make_available(RX, index);
    }

    pub(crate) fn received(&self, index: u16, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.read_slice(&mut bytes, GuestAddress(Card::rx_buffer(index))).unwrap();
        bytes
    }

    pub(crate) fn run(&self) -> Batch {
        lock(&self.device).run_batch(&AtomicBool::new(false))
    }

    /// Page numbers (by address) that the device has written since the last call.
    pub(crate) fn dirty_pages(&self) -> Vec<u64> {
        take_dirty_pages(&self.memory)
    }
}

pub(crate) fn frame(tag: u8, length: usize) -> Vec<u8> {
    let mut frame = vec![tag; length];
    frame[..12].copy_from_slice(&[[0xff; 6], MAC].concat());
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    frame
}
