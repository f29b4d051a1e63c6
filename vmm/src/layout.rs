//! The address map below 4 GiB and the interrupt lines, as guest and machine agree on them.
//!
//! Lives here: every number that more than one part must know (setup, boot data, ACPI tables, PCI). Not here: guest memory's own ranges ([`crate::memory`]). Part of
//! the guest's shape: a change here needs a new [`crate::MACHINE_STATE_VERSION`].
//!
//! | from | to | what |
//! |---|---|---|
//! | 0 | 0xc000_0000 | memory |
//! | 0xd000_0000 | | virtio-mmio windows, 4 KiB each |
//! | 0xe000_0000 | 0xe010_0000 | PCI configuration space of bus 0 (ECAM) |
//! | 0xe100_0000 | 0xf000_0000 | PCI memory BARs |
//! | 0xfec0_0000 | | IOAPIC |
//! | 0xfee0_0000 | | LAPICs, and where MSIs are written |
//! | 0xfffb_c000 | 0xffff_ffff | KVM's own pages on VT-x |
//! | 0x1_0000_0000 | | memory |

use std::ops::Range;

use crate::devices::virtio::mmio::MMIO_LENGTH;

/// First virtio-mmio window; one of 4 KiB for each device from here on.
pub const MMIO_BASE: u64 = 0xd000_0000;
/// Interrupt line of the first virtio-mmio device.
pub const MMIO_FIRST_GSI: u32 = 5;
/// The interrupt of the ACPI event device, where PCs have their system control interrupt. No other device has this line.
pub const SCI_GSI: u32 = 9;
/// The IOAPIC's last pin: lines from here on exist only as message-signalled interrupts.
pub const LAST_PIN: u32 = 23;

/// Virtio devices that fit on the mmio bus: a line each, but the ACPI event device's.
pub const MMIO_DEVICES: usize = (LAST_PIN - MMIO_FIRST_GSI) as usize;
/// Virtio devices that fit on the PCI bus: all but the host bridge's place.
pub const PCI_SLOTS: usize = 31;

/// PCI configuration space, memory mapped: bus 0 alone, 32 devices of 8 functions of 4 KiB.
pub const PCI_ECAM: Range<u64> = 0xe000_0000..0xe010_0000;
/// Where PCI functions' memory BARs lie.
pub const PCI_BARS: Range<u64> = 0xe100_0000..0xf000_0000;
/// Where KVM's IOAPIC is.
pub const IOAPIC: u32 = 0xfec0_0000;
/// Where KVM's LAPICs are.
pub const LAPIC: u32 = 0xfee0_0000;
/// KVM's own pages on VT-x: the identity map of real mode, and its task segment.
pub const KVM_PAGES: Range<u64> = 0xfffb_c000..0xfffc_0000;

/// The I/O ports of PCI's configuration mechanism 1: address and data.
pub const PCI_PORTS: Range<u64> = 0xcf8..0xd00;

/// Where one virtio-mmio device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmioWindow {
    /// First address of its registers, of which there are [`MMIO_LENGTH`] bytes.
    pub base: u64,
    /// Its interrupt line, edge-triggered.
    pub gsi: u32,
}

/// The place of virtio-mmio device `index`; none when the IOAPIC's pins are used up.
#[must_use]
pub fn mmio_window(index: usize) -> Option<MmioWindow> {
    let gsi = (MMIO_FIRST_GSI..=LAST_PIN).filter(|gsi| *gsi != SCI_GSI).nth(index)?;
    Some(MmioWindow { base: MMIO_BASE + index as u64 * MMIO_LENGTH, gsi })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mmio_windows_are_apart_and_their_lines_are_the_ioapics_but_the_sci() {
        let windows: Vec<_> = (0..).map_while(mmio_window).collect();
        assert_eq!(windows.len(), MMIO_DEVICES);
        assert_eq!(windows[0], MmioWindow { base: 0xd000_0000, gsi: 5 });
        assert!(windows.windows(2).all(|pair| pair[0].base + MMIO_LENGTH == pair[1].base && pair[0].gsi < pair[1].gsi));
        assert!(windows.iter().all(|window| window.gsi != SCI_GSI && window.gsi <= LAST_PIN));
    }
}
