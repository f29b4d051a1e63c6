//! A function's configuration space: 256 bytes, of which the guest may change some bits (PCI Local Bus 3.0, chapter 6).
//!
//! Lives here: the registers and which of their bits can be written. Not here: what a write causes. Guards S7: whatever is written, of whatever width, only the bits
//! that are the guest's change; and S5: the whole space is its own saved state, of which a restore accepts only the guest's bits.

use crate::devices::DeviceError;

/// Size of conventional configuration space. What ECAM offers beyond reads as zeroes: no extended capabilities.
pub const CONFIG_SIZE: usize = 256;

/// Offset of the command register (16 bits).
pub const COMMAND: usize = 0x04;
/// Offset of the status register (16 bits).
pub const STATUS: usize = 0x06;
/// Offset of base address register 0 (32 bits).
pub const BAR0: usize = 0x10;
/// Bit of the command register: answer at memory BARs.
pub const COMMAND_MEMORY: u16 = 1 << 1;
/// Bit of the status register: an INTx interrupt is pending.
pub const STATUS_INTERRUPT: u16 = 1 << 3;

/// Capability number of MSI-X.
pub const CAP_MSIX: u8 = 0x11;
/// Capability number of what a vendor defines.
pub const CAP_VENDOR: u8 = 0x09;

const CACHE_LINE: usize = 0x0c;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
/// Memory, bus master, parity, SERR and INTx-disable. Bus mastering is kept, not acted on: a virtio device touches memory when its own status says so.
const COMMAND_WRITABLE: u16 = COMMAND_MEMORY | 1 << 2 | 1 << 6 | 1 << 8 | 1 << 10;
const STATUS_CAPABILITIES: u16 = 1 << 4;
/// End of the header: capabilities begin here.
const HEADER_END: usize = 0x40;

/// What a function says it is.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// Vendor and device number.
    pub id: (u16, u16),
    /// Vendor and device number of the subsystem.
    pub subsystem: (u16, u16),
    /// Class, subclass, programming interface: 24 bits.
    pub class: u32,
    /// Revision.
    pub revision: u8,
}

/// Configuration space of one function.
#[derive(Clone, Debug)]
pub struct ConfigSpace {
    bytes: [u8; CONFIG_SIZE],
    writable: [u8; CONFIG_SIZE],
    /// Size of the memory behind BAR 0; 0 when there is none.
    memory: u32,
    /// Where the next capability goes, and where its address does.
    next: usize,
    link: usize,
}

impl ConfigSpace {
    /// A function without BAR and capabilities, decoding nothing.
    #[must_use]
    pub fn new(identity: Identity) -> ConfigSpace {
        let mut space =
            ConfigSpace { bytes: [0; CONFIG_SIZE], writable: [0; CONFIG_SIZE], memory: 0, next: HEADER_END, link: CAPABILITIES };
        space.put(0x00, &identity.id.0.to_le_bytes());
        space.put(0x02, &identity.id.1.to_le_bytes());
        space.put(0x08, &[identity.revision]);
        space.put(0x09, &identity.class.to_le_bytes()[..3]);
        space.put(0x2c, &identity.subsystem.0.to_le_bytes());
        space.put(0x2e, &identity.subsystem.1.to_le_bytes());
        space.writable[COMMAND..COMMAND + 2].copy_from_slice(&COMMAND_WRITABLE.to_le_bytes());
        space.writable[CACHE_LINE] = 0xff;
        space.writable[INTERRUPT_LINE] = 0xff;
        space
    }

    /// Gives the function `size` bytes of memory behind BAR 0 (32 bits, not prefetchable), at `address` to begin with. `size` is a power of two from 16 bytes up.
    pub fn set_memory(&mut self, address: u32, size: u32) {
        assert!(size.is_power_of_two() && size >= 16 && address.is_multiple_of(size), "a BAR the machine itself laid out wrong");
        self.memory = size;
        self.put(BAR0, &address.to_le_bytes());
        self.writable[BAR0..BAR0 + 4].copy_from_slice(&(!(size - 1)).to_le_bytes());
    }

    /// Appends a capability: its number, and its body behind the two bytes of number and link with the bits of it that the guest may write. Returns its offset.
    pub fn add_capability(&mut self, number: u8, body: &[u8], writable: &[u8]) -> usize {
        let at = self.next;
        let end = at + 2 + body.len();
        assert!(end <= CONFIG_SIZE && writable.len() <= body.len(), "capabilities beyond what configuration space holds");
        self.put(self.link, &[at as u8]);
        self.put(at, &[number, 0]);
        self.put(at + 2, body);
        self.writable[at + 2..at + 2 + writable.len()].copy_from_slice(writable);
        self.link = at + 1;
        self.next = end.next_multiple_of(4);
        let status = self.u16(STATUS) | STATUS_CAPABILITIES;
        self.put(STATUS, &status.to_le_bytes());
        at
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// The 16 bits at `at`.
    #[must_use]
    pub fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    /// The 32 bits at `at`.
    #[must_use]
    pub fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes([self.bytes[at], self.bytes[at + 1], self.bytes[at + 2], self.bytes[at + 3]])
    }

    /// Puts `bytes` at `at` whatever the guest may write there: what a function itself changes.
    pub fn set(&mut self, at: usize, bytes: &[u8]) {
        self.put(at, bytes);
    }

    /// Reads as the guest does: zeroes beyond the end.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        data.fill(0);
        let end = CONFIG_SIZE.min(offset.saturating_add(data.len()));
        if offset < end {
            data[..end - offset].copy_from_slice(&self.bytes[offset..end]);
        }
    }

    /// Writes as the guest does: only bits that are its own change.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        for (at, byte) in (offset..CONFIG_SIZE).zip(data) {
            self.bytes[at] = (self.bytes[at] & !self.writable[at]) | (byte & self.writable[at]);
        }
    }

    /// Where the function's memory answers as far as this function is concerned: first address and length.
    #[must_use]
    pub fn memory(&self) -> Option<(u64, u64)> {
        let decoded = self.memory != 0 && self.u16(COMMAND) & COMMAND_MEMORY != 0;
        decoded.then(|| (u64::from(self.u32(BAR0)), u64::from(self.memory)))
    }

    /// The saved state: all of it.
    #[must_use]
    pub fn save(&self) -> Vec<u8> {
        self.bytes.to_vec()
    }

    /// Puts a saved state back.
    ///
    /// # Errors
    /// [`DeviceError::StateMismatch`] if anything but the guest's own bits differs: it is another device's.
    pub fn restore(&mut self, saved: &[u8]) -> Result<(), DeviceError> {
        let mismatch = |reason: String| DeviceError::StateMismatch { device: "PCI function", reason };
        if saved.len() != CONFIG_SIZE {
            return Err(mismatch(format!("{} bytes of configuration space saved, {CONFIG_SIZE} are", saved.len())));
        }
        for (at, byte) in saved.iter().enumerate() {
            if (byte ^ self.bytes[at]) & !self.writable[at] != 0 {
                return Err(mismatch(format!("configuration space differs at {at:#x}: {byte:#x} saved, {:#x} here", self.bytes[at])));
            }
        }
        self.write(0, saved);
        Ok(())
    }
}

/// Whether an access of `len` bytes at `offset` touches the `size` bytes at `at`.
#[must_use]
pub fn touches(offset: usize, len: usize, at: usize, size: usize) -> bool {
    offset < at + size && at < offset.saturating_add(len)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn space() -> ConfigSpace {
        let identity = Identity { id: (0x1af4, 0x1041), subsystem: (0x1af4, 0x40), class: 0x02_0000, revision: 1 };
        let mut space = ConfigSpace::new(identity);
        space.set_memory(0xe100_8000, 0x8000);
        assert_eq!(space.add_capability(CAP_MSIX, &[2, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[0, 0xc0]), 0x40);
        assert_eq!(space.add_capability(CAP_VENDOR, &[1; 15], &[]), 0x4c);
        space
    }

    fn read32(space: &ConfigSpace, at: usize) -> u32 {
        let mut data = [0; 4];
        space.read(at, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn a_function_says_what_it_is_and_lists_its_capabilities() {
        let space = space();
        assert_eq!(read32(&space, 0), 0x1041_1af4);
        assert_eq!(read32(&space, 8), 0x0200_0001);
        assert_eq!(read32(&space, 0x2c), 0x0040_1af4);
        assert_eq!(read32(&space, 4) >> 16 & 0x10, 0x10);
        assert_eq!(read32(&space, 0x34), 0x40);
        assert_eq!(read32(&space, 0x40) & 0xffff, 0x4c11);
        assert_eq!(read32(&space, 0x4c) & 0xffff, 0x0009);
    }

    #[test]
    fn a_bar_can_be_sized_moved_and_decoded_by_the_rules() {
        let mut space = space();
        assert_eq!(space.memory(), None, "nothing is decoded at first");
        space.write(BAR0, &u32::MAX.to_le_bytes());
        assert_eq!(read32(&space, BAR0), 0xffff_8000);
        space.write(BAR0, &0xe200_1234u32.to_le_bytes());
        space.write(COMMAND, &[0xff, 0xff]);
        assert_eq!(space.u16(COMMAND), COMMAND_WRITABLE);
        assert_eq!(space.memory(), Some((0xe200_0000, 0x8000)));
        space.write(COMMAND, &[0]);
        assert_eq!(space.memory(), None);
    }

    #[test]
    fn a_state_of_another_function_is_refused() {
        let mut other = space();
        let mut saved = space().save();
        saved[2] ^= 1;
        assert!(matches!(other.restore(&saved), Err(DeviceError::StateMismatch { .. })));
        assert!(matches!(other.restore(&saved[1..]), Err(DeviceError::StateMismatch { .. })));
    }

    proptest! {
        #[test]
        fn no_write_changes_more_than_the_guests_own_bits_and_every_result_can_be_restored(
            writes in prop::collection::vec((0usize..4200, prop::collection::vec(any::<u8>(), 0..9)), 0..50)
        ) {
            let (before, mut space) = (space(), space());
            for (offset, data) in &writes {
                space.write(*offset, data);
                let mut read = vec![0; data.len()];
                space.read(*offset, &mut read);
            }
            for at in 0..CONFIG_SIZE {
                prop_assert_eq!((space.bytes[at] ^ before.bytes[at]) & !space.writable[at], 0);
            }
            let mut restored = before;
            restored.restore(&space.save()).unwrap();
            prop_assert_eq!(restored.bytes, space.bytes);
        }
    }
}
