//! virtio-net as smoltcp's device: one buffer per frame, receive buffers handed straight back, transmit buffers reused last-in first-out.
//!
//! The last-in first-out order keeps the pages that a quiet guest dirties few. After a failover the host signals both queues and
//! interrupts; all state is in the rings, so there is nothing to redo.

use guest::parameters::Parameters;
use smoltcp::phy::{Checksum, ChecksumCapabilities, DeviceCapabilities, Medium};
use smoltcp::time::Instant;

use crate::apic;
use crate::virtio::{BUFFER, DEVICE_WRITES, Device, QUEUE, Queue, Shared};

/// virtio's number for a network device.
const KIND_NET: u32 = 1;
/// The device has a MAC address.
const FEATURE_MAC: u32 = 1 << 5;
/// Bytes before each frame: the header of a modern device, all zero here (no offloads).
const HEADER: usize = 12;
/// Largest frame: 1500 bytes and the Ethernet header.
const FRAME: usize = 1514;
/// Receive buffers handed back before the device is told. It looks by itself at each frame; it needs telling only when it has run
/// out, which takes [`QUEUE`] of them.
const RECEIVE_BATCH: u32 = QUEUE as u32 / 2;

static mut RECEIVE: Shared = Shared::new();
static mut TRANSMIT: Shared = Shared::new();

/// The network card.
pub struct Net {
    device: Device,
    receive: Receive,
    transmit: Transmit,
    mac: [u8; 6],
}

struct Receive {
    queue: Queue,
    handed_back: u32,
    frames: u64,
}

struct Transmit {
    queue: Queue,
    free: [u16; QUEUE],
    free_count: usize,
    kick: bool,
    frames: u64,
}

impl Net {
    /// Finds the first network card that the command line names and starts it.
    pub fn find(parameters: &Parameters) -> Option<Net> {
        parameters.devices.iter().take_while(|window| window.base != 0).find_map(|window| {
            let device = Device::find(window.base, KIND_NET, FEATURE_MAC)?;
            // SAFETY: the statics are named nowhere else, and the first card found ends the search.
            let (mut receive, mut transmit) =
                unsafe { (device.queue(0, &raw mut RECEIVE, DEVICE_WRITES)?, device.queue(1, &raw mut TRANSMIT, 0)?) };
            receive.set_interrupts(false);
            transmit.set_interrupts(false);
            for id in 0..QUEUE {
                receive.offer(id as u16, BUFFER as u32);
            }
            let mac = core::array::from_fn(|byte| device.config(byte as u64));
            apic::route(window.gsi);
            device.start();
            receive.kick();
            let free = core::array::from_fn(|id| id as u16);
            Some(Net {
                device,
                receive: Receive { queue: receive, handed_back: 0, frames: 0 },
                transmit: Transmit { queue: transmit, free, free_count: QUEUE, kick: false, frames: 0 },
                mac,
            })
        })
    }

    /// The card's address.
    pub fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// Frames received and sent.
    pub fn frames(&self) -> (u64, u64) {
        (self.receive.frames, self.transmit.frames)
    }

    /// Tells the device what has been queued since the last time.
    pub fn kick(&mut self) {
        if core::mem::take(&mut self.transmit.kick) {
            self.transmit.queue.kick();
        }
        if self.receive.handed_back >= RECEIVE_BATCH {
            self.receive.handed_back = 0;
            self.receive.queue.kick();
        }
    }

    /// Asks for interrupts before the vCPU halts: on frames, and on free transmit buffers when there are none. `false`: something came
    /// in between, do not halt.
    pub fn arm(&mut self) -> bool {
        self.transmit.reclaim();
        let full = self.transmit.free_count == 0;
        self.receive.queue.set_interrupts(true);
        if full {
            self.transmit.queue.set_interrupts(true);
        }
        let came = self.receive.queue.has_used() || (full && self.transmit.queue.has_used());
        !came
    }

    /// Back to polling.
    pub fn disarm(&mut self) {
        self.receive.queue.set_interrupts(false);
        self.transmit.queue.set_interrupts(false);
    }

    /// To be called after an interrupt.
    pub fn acknowledge_interrupt(&self) {
        self.device.acknowledge_interrupt();
    }

    /// Whether no frame can be sent now.
    pub fn is_full(&mut self) -> bool {
        self.transmit.reclaim();
        self.transmit.free_count == 0
    }
}

impl Transmit {
    fn reclaim(&mut self) {
        while let Some((id, _)) = self.queue.take() {
            // The count cannot pass the queue's size unless the device hands a buffer back twice.
            if let Some(slot) = self.free.get_mut(self.free_count) {
                *slot = id;
                self.free_count += 1;
            }
        }
    }
}

/// A received frame.
pub struct RxToken<'a> {
    receive: &'a mut Receive,
    id: u16,
    length: usize,
}

/// Leave to send a frame.
pub struct TxToken<'a>(&'a mut Transmit);

impl smoltcp::phy::RxToken for RxToken<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        let frame = self.receive.queue.buffer(self.id);
        let result = f(frame.get(HEADER..self.length).unwrap_or(&[]));
        self.receive.queue.offer(self.id, BUFFER as u32);
        self.receive.handed_back += 1;
        self.receive.frames += 1;
        result
    }
}

impl smoltcp::phy::TxToken for TxToken<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let transmit = self.0;
        transmit.free_count -= 1;
        let id = transmit.free[transmit.free_count];
        // The header in front stays zero: nothing ever writes it.
        let result = f(&mut transmit.queue.buffer(id)[HEADER..HEADER + length]);
        transmit.queue.offer(id, (HEADER + length) as u32);
        transmit.kick = true;
        transmit.frames += 1;
        result
    }
}

impl smoltcp::phy::Device for Net {
    type RxToken<'a> = RxToken<'a>;
    type TxToken<'a> = TxToken<'a>;

    fn receive(&mut self, _now: Instant) -> Option<(RxToken<'_>, TxToken<'_>)> {
        if self.is_full() {
            return None;
        }
        let (id, length) = self.receive.queue.take()?;
        let length = (length as usize).min(BUFFER);
        Some((RxToken { receive: &mut self.receive, id, length }, TxToken(&mut self.transmit)))
    }

    fn transmit(&mut self, _now: Instant) -> Option<TxToken<'_>> {
        if self.is_full() { None } else { Some(TxToken(&mut self.transmit)) }
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = FRAME;
        capabilities.checksum = ChecksumCapabilities::default();
        capabilities.checksum.ipv4 = Checksum::Both;
        capabilities
    }
}
