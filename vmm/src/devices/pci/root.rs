//! The bus: how a guest reaches the configuration space of functions (ECAM and the ports 0xcf8 to 0xcff), and the memory behind their BARs.
//!
//! Lives here: lookup and dispatch, and the host bridge, device 0, which does nothing but be there. Not here: the functions. Guards S7: what is not there reads as all
//! ones, and a BAR answers only inside the window that is kept for BARs.

use std::{
    ops::Range,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

use serde::{Deserialize, Serialize};

use super::{
    PciFunction,
    config::{ConfigSpace, Identity},
};
use crate::{
    devices::{AddressSpace, BusDevice, BusError, DeviceError, lock},
    layout::{PCI_BARS, PCI_ECAM, PCI_PORTS},
};

/// Devices on a bus, the host bridge among them. Each has one function here.
pub const PCI_DEVICES: usize = crate::layout::PCI_SLOTS + 1;

/// Configuration space that ECAM offers for each function.
const ECAM_FUNCTION: u64 = 4096;
/// "QEMU PCIe Host bridge" of Red Hat's numbers: a bridge that no driver looks for and no quirk knows.
const BRIDGE: Identity = Identity { id: (0x1b36, 0x0008), subsystem: (0x1af4, 0x1100), class: 0x06_0000, revision: 0 };
/// Bit 31 of the address port: an access to the data port is one to configuration space.
const ADDRESS_ENABLE: u32 = 1 << 31;
/// What of the address port can be written: enable, bus, device, function, register.
const ADDRESS_WRITABLE: u32 = 0x80ff_fffc;

/// What the bus itself has of state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciRootState {
    /// The address port.
    pub address: u32,
    /// The host bridge's configuration space.
    pub bridge: Vec<u8>,
}

struct HostBridge {
    space: ConfigSpace,
}

impl PciFunction for HostBridge {
    fn read_config(&mut self, offset: usize, data: &mut [u8]) {
        self.space.read(offset, data);
    }
    fn write_config(&mut self, offset: usize, data: &[u8]) {
        self.space.write(offset, data);
    }
    fn memory(&self) -> Option<(u64, u64)> {
        None
    }
    fn read_memory(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn write_memory(&mut self, _offset: u64, _data: &[u8]) {}
}

/// Bus 0. Its functions are fixed when it is made.
pub struct PciRoot {
    bridge: Arc<Mutex<HostBridge>>,
    /// By device number.
    functions: Vec<Arc<Mutex<dyn PciFunction>>>,
    address: AtomicU32,
}

impl PciRoot {
    /// A bus with the host bridge as device 0 and `functions` from device 1 on, at most 31 of them.
    #[must_use]
    pub fn new(functions: Vec<Arc<Mutex<dyn PciFunction>>>) -> PciRoot {
        assert!(functions.len() < PCI_DEVICES, "more devices than a bus has: whoever attaches them counts");
        let bridge = Arc::new(Mutex::new(HostBridge { space: ConfigSpace::new(BRIDGE) }));
        let mut all: Vec<Arc<Mutex<dyn PciFunction>>> = vec![Arc::clone(&bridge) as _];
        all.extend(functions);
        PciRoot { bridge, functions: all, address: AtomicU32::new(0) }
    }

    /// Puts the bus's ways in where guests look for them.
    ///
    /// # Errors
    /// When one of the ranges is taken: a mistake in the machine's own layout.
    pub fn insert(self: &Arc<Self>, ports: &mut AddressSpace, memory: &mut AddressSpace) -> Result<(), BusError> {
        let length = |range: &Range<u64>| range.end - range.start;
        ports.insert(PCI_PORTS.start, length(&PCI_PORTS), Arc::new(Mutex::new(Ports(Arc::clone(self)))))?;
        memory.insert(PCI_ECAM.start, length(&PCI_ECAM), Arc::new(Mutex::new(Ecam(Arc::clone(self)))))?;
        memory.insert(PCI_BARS.start, length(&PCI_BARS), Arc::new(Mutex::new(Bars(Arc::clone(self)))))
    }

    /// The bus's own state. The machine is paused.
    #[must_use]
    pub fn save(&self) -> PciRootState {
        PciRootState { address: self.address.load(Ordering::SeqCst), bridge: lock(&self.bridge).space.save() }
    }

    /// Puts a saved state back. Before the first start.
    ///
    /// # Errors
    /// [`DeviceError::StateMismatch`].
    pub fn restore(&self, saved: &PciRootState) -> Result<(), DeviceError> {
        lock(&self.bridge).space.restore(&saved.bridge)?;
        self.address.store(saved.address & ADDRESS_WRITABLE, Ordering::SeqCst);
        Ok(())
    }

    fn read_config(&self, device: usize, function: usize, offset: usize, data: &mut [u8]) {
        match self.functions.get(device).filter(|_| function == 0) {
            Some(function) => lock(function).read_config(offset, data),
            None => data.fill(0xff),
        }
    }

    fn write_config(&self, device: usize, function: usize, offset: usize, data: &[u8]) {
        if let Some(function) = self.functions.get(device).filter(|_| function == 0) {
            lock(function).write_config(offset, data);
        }
    }

    /// Calls `access` with the function that answers at `address` and the offset in its memory.
    fn at<R>(&self, address: u64, len: usize, access: impl FnOnce(&mut dyn PciFunction, u64) -> R) -> Option<R> {
        let end = address.checked_add(len as u64)?;
        for function in &self.functions {
            let mut function = lock(function);
            let Some((base, size)) = function.memory().filter(is_in_window) else { continue };
            if address >= base && end <= base + size {
                return Some(access(&mut *function, address - base));
            }
        }
        None
    }
}

/// Whether a function's memory lies where memory of functions may lie.
#[must_use]
pub fn is_in_window((base, size): &(u64, u64)) -> bool {
    *base >= PCI_BARS.start && base.checked_add(*size).is_some_and(|end| end <= PCI_BARS.end)
}

struct Ecam(Arc<PciRoot>);

/// Device, function and register that an ECAM offset names; none for an access that runs over a function's end.
fn ecam_target(offset: u64, len: usize) -> Option<(usize, usize, usize)> {
    let register = (offset % ECAM_FUNCTION) as usize;
    let fits = register + len <= ECAM_FUNCTION as usize;
    fits.then_some(((offset >> 15 & 0x1f) as usize, (offset >> 12 & 7) as usize, register))
}

impl BusDevice for Ecam {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match ecam_target(offset, data.len()) {
            Some((device, function, register)) => self.0.read_config(device, function, register, data),
            None => data.fill(0xff),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some((device, function, register)) = ecam_target(offset, data.len()) {
            self.0.write_config(device, function, register, data);
        }
    }
}

struct Ports(Arc<PciRoot>);

/// Offset of the data port's four bytes from the address port.
const DATA: u64 = 4;

impl Ports {
    /// What the data port's byte `offset` stands for now; none while it stands for nothing here.
    fn target(&self, offset: u64) -> Option<(usize, usize, usize)> {
        let address = self.0.address.load(Ordering::SeqCst);
        let here = address & ADDRESS_ENABLE != 0 && address >> 16 & 0xff == 0;
        let register = (address & 0xfc) as usize + offset.checked_sub(DATA)? as usize;
        here.then_some(((address >> 11 & 0x1f) as usize, (address >> 8 & 7) as usize, register))
    }
}

impl BusDevice for Ports {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if offset == 0 && data.len() == 4 {
            data.copy_from_slice(&self.0.address.load(Ordering::SeqCst).to_le_bytes());
        } else if let Some((device, function, register)) = self.target(offset) {
            self.0.read_config(device, function, register, data);
        } else {
            data.fill(0xff);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (0, Ok(address)) = (offset, <[u8; 4]>::try_from(data)) {
            self.0.address.store(u32::from_le_bytes(address) & ADDRESS_WRITABLE, Ordering::SeqCst);
        } else if let Some((device, function, register)) = self.target(offset) {
            self.0.write_config(device, function, register, data);
        }
    }
}

struct Bars(Arc<PciRoot>);

impl BusDevice for Bars {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let answered = self.0.at(PCI_BARS.start + offset, data.len(), |function, offset| function.read_memory(offset, data));
        if answered.is_none() {
            data.fill(0xff);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let _ = self.0.at(PCI_BARS.start + offset, data.len(), |function, offset| function.write_memory(offset, data));
    }
}

#[cfg(test)]
#[path = "root_tests.rs"]
mod tests;
