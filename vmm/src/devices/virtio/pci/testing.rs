//! A small PCI driver for tests: finds the function by ECAM, walks its capabilities, sets the card up. No KVM.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex};

use crate::GuestMemory;
use crate::devices::pci::{PciRoot, testing::FakeKvm};
use crate::devices::virtio::VirtioPci;
use crate::devices::virtio::net::testing::{Card, RX, Rings, TX, memory};
use crate::devices::{AddressSpace, lock};
use crate::layout::{PCI_BARS, PCI_ECAM};

/// First line of the card's vectors: RX, TX, configuration.
pub(crate) const GSI: u32 = 24;
/// Where the card's BAR is at first.
pub(crate) const BAR: u64 = PCI_BARS.start + 0x8000;
/// Vector that the driver gives each source.
pub(crate) const VECTORS: [(usize, u16); 2] = [(RX, 1), (TX, 2)];

/// Where the capabilities say that structures are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// Offset in the BAR and length, by `cfg_type`.
    pub(crate) structures: [(u32, u32); 6],
    pub(crate) notify_step: u32,
    pub(crate) window_at: u64,
    pub(crate) msix_at: u64,
    pub(crate) table: u32,
    pub(crate) pending: u32,
}

/// A card on the PCI bus, as device 1.
pub(crate) struct PciGuest {
    card: Card,
    pub(crate) kvm: Arc<FakeKvm>,
    pub(crate) function: Arc<Mutex<VirtioPci>>,
    pub(crate) root: Arc<PciRoot>,
    pub(crate) ports: AddressSpace,
    pub(crate) space: AddressSpace,
    pub(crate) bar: u64,
    pub(crate) found: Found,
}

impl Deref for PciGuest {
    type Target = Card;
    fn deref(&self) -> &Card {
        &self.card
    }
}

impl DerefMut for PciGuest {
    fn deref_mut(&mut self) -> &mut Card {
        &mut self.card
    }
}

pub(crate) const COMMON: usize = 1;
pub(crate) const NOTIFY: usize = 2;
pub(crate) const ISR: usize = 3;
pub(crate) const DEVICE: usize = 4;

impl PciGuest {
    /// A card at reset, its capabilities found.
    pub(crate) fn new() -> PciGuest {
        PciGuest::with_memory(memory())
    }

    pub(crate) fn with_memory(memory: GuestMemory) -> PciGuest {
        let card = Card::new(memory);
        let kvm: Arc<FakeKvm> = Arc::default();
        let gsis = [GSI, GSI + 1, GSI + 2];
        let function = VirtioPci::new(card.device.clone(), BAR as u32, kvm.clone(), &gsis, kvm.clone()).unwrap();
        let function = Arc::new(Mutex::new(function));
        let root = Arc::new(PciRoot::new(vec![function.clone()]));
        let (mut ports, mut space) = (AddressSpace::new(), AddressSpace::new());
        root.insert(&mut ports, &mut space).unwrap();
        let mut guest = PciGuest { card, kvm, function, root, ports, space, bar: BAR, found: Found::default() };
        guest.found = guest.walk();
        guest
    }

    /// A card with a running driver that uses MSI-X.
    pub(crate) fn running(features: u64) -> PciGuest {
        let mut guest = PciGuest::new();
        guest.start(features);
        guest
    }

    pub(crate) fn get(&self, address: u64, len: usize) -> u64 {
        let mut data = vec![0; len];
        assert!(self.space.read(address, &mut data));
        data.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    pub(crate) fn put(&self, address: u64, len: usize, value: u64) {
        assert!(self.space.write(address, &value.to_le_bytes()[..len]));
    }

    pub(crate) fn config(&self, offset: u64, len: usize) -> u64 {
        self.get(PCI_ECAM.start + (1 << 15) + offset, len)
    }

    pub(crate) fn set_config(&self, offset: u64, len: usize, value: u64) {
        self.put(PCI_ECAM.start + (1 << 15) + offset, len, value);
    }

    /// Reads a structure's register.
    pub(crate) fn read(&self, structure: usize, offset: u64, len: usize) -> u64 {
        self.get(self.bar + u64::from(self.found.structures[structure].0) + offset, len)
    }

    /// Writes a structure's register.
    pub(crate) fn write(&self, structure: usize, offset: u64, len: usize, value: u64) {
        self.put(self.bar + u64::from(self.found.structures[structure].0) + offset, len, value);
    }

    fn walk(&self) -> Found {
        let mut found = Found::default();
        assert_eq!(self.config(6, 2) & 0x10, 0x10, "the function has capabilities");
        let mut at = self.config(0x34, 1);
        while at != 0 {
            match self.config(at, 1) {
                0x11 => {
                    (found.msix_at, found.table, found.pending) = (at, self.config(at + 4, 4) as u32, self.config(at + 8, 4) as u32);
                    assert_eq!((found.table & 7, found.pending & 7), (0, 0), "both behind BAR 0");
                }
                0x09 => {
                    let (length, kind) = (self.config(at + 2, 1), self.config(at + 3, 1) as usize);
                    assert_eq!(self.config(at + 4, 1), 0, "all behind BAR 0");
                    found.structures[kind] = (self.config(at + 8, 4) as u32, self.config(at + 12, 4) as u32);
                    match kind {
                        NOTIFY => {
                            assert_eq!(length, 20);
                            found.notify_step = self.config(at + 16, 4) as u32;
                        }
                        5 => {
                            assert_eq!(length, 20);
                            found.window_at = at;
                        }
                        _ => assert_eq!(length, 16),
                    }
                }
                other => panic!("capability {other:#x} at {at:#x}"),
            }
            at = self.config(at + 1, 1);
        }
        found
    }

    pub(crate) fn status(&self) -> u64 {
        self.read(COMMON, 0x14, 1)
    }

    pub(crate) fn negotiate(&self, features: u64) {
        self.set_config(4, 2, 6);
        for status in [0, 1, 3] {
            self.write(COMMON, 0x14, 1, status);
        }
        for word in 0..2 {
            self.write(COMMON, 8, 4, word);
            self.write(COMMON, 0xc, 4, features >> (32 * word) & 0xffff_ffff);
        }
        self.write(COMMON, 0x14, 1, 11);
    }

    /// Gives vector `vector` the message `data` and unmasks it.
    pub(crate) fn program(&self, vector: u64, data: u64) {
        let entry = self.bar + u64::from(self.found.table) + 16 * vector;
        self.put(entry, 4, 0xfee0_0000);
        self.put(entry + 4, 4, 0);
        self.put(entry + 8, 4, data);
        self.put(entry + 12, 4, 0);
    }

    pub(crate) fn set_queue(&mut self, queue: usize, rings: Rings) {
        self.rings[queue] = rings;
        self.write(COMMON, 0x16, 2, queue as u64);
        self.write(COMMON, 0x18, 2, u64::from(rings.size));
        for (register, address) in [(0x20, rings.descriptors), (0x28, rings.available), (0x30, rings.used)] {
            self.write(COMMON, register, 4, address & 0xffff_ffff);
            self.write(COMMON, register + 4, 4, address >> 32);
        }
        self.write(COMMON, 0x1c, 2, 1);
    }

    /// As Linux does: MSI-X first, a vector for the configuration and for each queue, queues, DRIVER_OK.
    pub(crate) fn start(&mut self, features: u64) {
        self.negotiate(features);
        self.set_config(self.found.msix_at + 2, 2, 0x8000);
        for vector in 0..3 {
            self.program(vector, 0x40 + vector);
        }
        self.write(COMMON, 0x10, 2, 0);
        for (queue, vector) in VECTORS {
            self.set_queue(queue, self.rings[queue]);
            self.write(COMMON, 0x16, 2, queue as u64);
            self.write(COMMON, 0x1a, 2, vector.into());
            assert_eq!(self.read(COMMON, 0x1a, 2), u64::from(vector));
        }
        self.write(COMMON, 0x14, 1, 15);
        self.take_kicks();
        self.fired();
    }

    /// Signals of each vector since the last look.
    pub(crate) fn fired(&self) -> [u64; 3] {
        let function = lock(&self.function);
        let mut counts = [0; 3];
        for (count, (_, irqfd)) in counts.iter_mut().zip(function.msix().irqfds()) {
            *count = irqfd.read().unwrap_or(0);
        }
        counts
    }

    /// Consumes pending kicks, of each queue whether there was one.
    pub(crate) fn take_kicks(&self) -> Vec<bool> {
        use crate::devices::worker::WorkerDevice;
        lock(&self.device).kicks().iter().map(|kick| kick.read().is_ok()).collect()
    }
}
