//! Address ranges and the devices behind them, for port and memory-mapped I/O.
//!
//! Lives here: lookup and dispatch by the vCPU threads. Not here: the devices, nor who registers ioeventfds. Guards S7: an access that
//! no device claims reads as all ones and writes nothing, as on hardware.

use std::sync::{Arc, Mutex};

use super::lock;

/// A device that answers accesses of the guest.
///
/// Called on a vCPU thread, outside `KVM_RUN`, with the device's lock held; must not block on anything that a paused machine holds.
pub trait BusDevice: Send {
    /// Fills `data` with what is at `offset` from the start of the device's range. `data` is 1, 2, 4 or 8 bytes; the guest chooses.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// Takes what the guest wrote at `offset` from the start of the device's range.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// Why a device could not be given its range. All of these are mistakes in the machine's own layout.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// The range is empty or runs over the end of the address space.
    #[error("range {base:#x}+{len:#x} is empty or ends beyond the address space")]
    BadRange {
        /// First address.
        base: u64,
        /// Bytes.
        len: u64,
    },
    /// Two devices claim the same address.
    #[error("range {base:#x}+{len:#x} overlaps the device at {other:#x}")]
    Overlap {
        /// First address.
        base: u64,
        /// Bytes.
        len: u64,
        /// First address of the device that is there already.
        other: u64,
    },
}

struct Entry {
    base: u64,
    last: u64,
    device: Arc<Mutex<dyn BusDevice>>,
}

/// Sorted, disjoint ranges. Built once, then shared read-only between vCPU threads.
#[derive(Default)]
pub struct AddressSpace {
    entries: Vec<Entry>,
}

impl AddressSpace {
    /// An empty one.
    #[must_use]
    pub fn new() -> AddressSpace {
        AddressSpace::default()
    }

    /// Puts `device` at `base..base+len`.
    ///
    /// # Errors
    /// [`BusError`] if the range is empty, overflows or overlaps another.
    pub fn insert(&mut self, base: u64, len: u64, device: Arc<Mutex<dyn BusDevice>>) -> Result<(), BusError> {
        let last = len.checked_sub(1).and_then(|more| base.checked_add(more)).ok_or(BusError::BadRange { base, len })?;
        let at = self.entries.partition_point(|entry| entry.last < base);
        if let Some(other) = self.entries.get(at).filter(|entry| entry.base <= last) {
            return Err(BusError::Overlap { base, len, other: other.base });
        }
        self.entries.insert(at, Entry { base, last, device });
        Ok(())
    }

    /// Reads through the device at `address`. False, and `data` all ones, if nobody is there or the access runs over the device's end.
    pub fn read(&self, address: u64, data: &mut [u8]) -> bool {
        match self.find(address, data.len()) {
            Some((offset, device)) => {
                lock(device).read(offset, data);
                true
            }
            None => {
                data.fill(0xff);
                false
            }
        }
    }

    /// Writes through the device at `address`. False, and nothing happens, if nobody is there or the access runs over the device's end.
    pub fn write(&self, address: u64, data: &[u8]) -> bool {
        match self.find(address, data.len()) {
            Some((offset, device)) => {
                lock(device).write(offset, data);
                true
            }
            None => false,
        }
    }

    fn find(&self, address: u64, len: usize) -> Option<(u64, &Mutex<dyn BusDevice>)> {
        let at = self.entries.partition_point(|entry| entry.last < address);
        let entry = self.entries.get(at).filter(|entry| entry.base <= address)?;
        let last = address.checked_add((len as u64).checked_sub(1)?)?;
        (last <= entry.last).then(|| (address - entry.base, &*entry.device))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo {
        last: Option<(u64, Vec<u8>)>,
    }

    impl BusDevice for Echo {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }
        fn write(&mut self, offset: u64, data: &[u8]) {
            self.last = Some((offset, data.to_vec()));
        }
    }

    fn echo() -> Arc<Mutex<Echo>> {
        Arc::new(Mutex::new(Echo { last: None }))
    }

    #[test]
    fn an_access_reaches_the_device_that_claims_it_with_its_own_offset() {
        let (low, high) = (echo(), echo());
        let mut bus = AddressSpace::new();
        bus.insert(0x2000, 0x100, high.clone()).unwrap();
        bus.insert(0x1000, 0x100, low.clone()).unwrap();

        let mut data = [0u8; 4];
        assert!(bus.read(0x2010, &mut data));
        assert_eq!(data, [0x10; 4]);
        assert!(bus.write(0x10ff, &[7]));
        assert_eq!(lock(&low).last, Some((0xff, vec![7])));
        assert_eq!(lock(&high).last, None);
    }

    #[test]
    fn an_access_nobody_claims_reads_ones_and_writes_nothing() {
        let device = echo();
        let mut bus = AddressSpace::new();
        bus.insert(0x1000, 0x10, device.clone()).unwrap();

        for (address, len) in [(0xfff, 1), (0x1010, 1), (0x100e, 4), (u64::MAX, 4)] {
            let mut data = vec![0u8; len];
            assert!(!bus.read(address, &mut data), "{address:#x}");
            assert!(data.iter().all(|byte| *byte == 0xff));
            assert!(!bus.write(address, &data));
        }
        assert_eq!(lock(&device).last, None);
    }

    #[test]
    fn ranges_that_are_empty_overflow_or_overlap_are_refused() {
        let mut bus = AddressSpace::new();
        bus.insert(0x1000, 0x100, echo()).unwrap();

        assert_eq!(bus.insert(0, 0, echo()), Err(BusError::BadRange { base: 0, len: 0 }));
        assert!(matches!(bus.insert(u64::MAX, 2, echo()), Err(BusError::BadRange { .. })));
        for (base, len) in [(0x1000, 1), (0x10ff, 1), (0xf00, 0x101), (0, 0x10000)] {
            assert_eq!(bus.insert(base, len, echo()), Err(BusError::Overlap { base, len, other: 0x1000 }));
        }
        bus.insert(0x1100, 1, echo()).unwrap();
        bus.insert(0xfff, 1, echo()).unwrap();
    }
}
