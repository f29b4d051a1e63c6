//! How the machine describes itself: ACPI tables (ACPI 6.5), written into guest memory at every boot.
//!
//! Lives here: what there is to describe ([`Hardware`]) and where the tables lie. Beside it: the tables of fixed form ([`tables`]) and the namespace
//! ([`dsdt`]), and the device behind its events ([`events`]). Not here: the other devices.
//!
//! **Hardware-reduced ACPI.** Of the two forms the specification offers, this machine has the reduced one (as Cloud Hypervisor's and Firecracker's): sleep,
//! reset and events are three byte-wide ports of our own instead of the PM1 blocks, PM timer, SCI and 8259s of a PC. There is less state to carry over
//! a failover, Linux leaves the 8254 and 8259 alone (each access to them is an exit), and interrupt lines need no overrides: every GSI is edge-triggered
//! and active high as its device's resources say. The price is that a guest older than Linux 3.4, or one that insists on the 8254, does not fit.

mod dsdt;
pub(crate) mod events;
mod tables;

use vm_memory::{Bytes as _, GuestAddress};

use crate::{
    GuestMemory, MachineEvent, VmmError,
    boot::places,
    layout::{self, MmioWindow},
};

/// Where the root pointer lies: found by whoever scans the firmware's place for it, too.
pub(crate) const RSDP: u64 = places::ACPI.start;
/// Where the VM generation ID lies: 16 bytes in memory that the guest keeps its hands off.
pub(crate) const GENERATION_ID: u64 = places::ACPI.start + 0x40;
/// The other tables, one after another.
const TABLES: u64 = places::ACPI.start + 0x1000;
/// Tables begin at multiples of this.
const ALIGNMENT: u64 = 16;

/// First of the ports that the tables name, and how many there are: [`SLEEP_CONTROL`] to [`EVENTS`].
pub(crate) const PORTS: std::ops::Range<u16> = 0x600..0x604;
/// Sleep control register: bit 5 enters the sleep state in bits 2-4 (ACPI 6.5, 4.8.3.7).
pub(crate) const SLEEP_CONTROL: u16 = 0x600;
/// Sleep status register: nothing ever wakes.
pub(crate) const SLEEP_STATUS: u16 = 0x601;
/// Writing [`RESET_VALUE`] resets the machine.
pub(crate) const RESET: u16 = 0x602;
pub(crate) const RESET_VALUE: u8 = 1;
/// Events that have happened since it was last read, one bit each.
pub(crate) const EVENTS: u16 = 0x603;
pub(crate) const EVENT_POWER_BUTTON: u8 = 1;
/// Interrupt line of the event device.
pub(crate) const EVENTS_GSI: u32 = layout::SCI_GSI;
/// Sleep type of "soft off" in [`SLEEP_CONTROL`] and in the namespace's `_S5_`.
pub(crate) const SLEEP_TYPE_OFF: u8 = 5;

/// Where a PC's firmware is entered in real mode, at ffff:0000.
const RESET_VECTOR: u64 = places::ACPI.end - 16;
/// What lies there: `mov al, 1; mov dx, 0x602; out dx, al`, which resets the machine, and `hlt; jmp` to it. On reduced hardware Linux reboots by EFI
/// and, where there is none, by jumping here; it does not get to the reset register (reboot_init in arch/x86/kernel/reboot.c, efi_reboot_required).
const RESET_CODE: [u8; 9] = [0xb0, RESET_VALUE, 0xba, RESET.to_le_bytes()[0], RESET.to_le_bytes()[1], 0xee, 0xf4, 0xeb, 0xfd];

/// What a machine consists of, as its guest is to see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hardware {
    /// APIC ids 0 to `vcpus - 1`.
    pub vcpus: u8,
    /// virtio-mmio devices.
    pub mmio: Vec<MmioWindow>,
    /// Whether there is a PCI host bridge (bus 0, [`layout::PCI_ECAM`], [`layout::PCI_BARS`]).
    pub pci: bool,
    /// New at each cold start; the same after a reboot and after a failover, where the guest goes on as the one it was.
    pub generation_id: [u8; 16],
}

/// Writes the tables.
pub(crate) fn write(guest: &GuestMemory, hardware: &Hardware) -> Result<(), VmmError> {
    for (address, bytes) in build(hardware) {
        let does_not_fit = || VmmError::DoesNotFit { what: "the ACPI tables", bytes: bytes.len() as u64 };
        if address + bytes.len() as u64 > places::ACPI.end {
            return Err(does_not_fit());
        }
        guest.write_slice(&bytes, GuestAddress(address)).map_err(|_| does_not_fit())?;
    }
    Ok(())
}

/// How writing `data` to `port` ends the machine, if it does.
pub(crate) fn ending(port: u16, data: &[u8]) -> Option<MachineEvent> {
    /// Bit 5 enters the sleep state in bits 2 to 4.
    const OFF: u8 = 1 << 5 | SLEEP_TYPE_OFF << 2;
    match (port, data) {
        (SLEEP_CONTROL, [value, ..]) if value & 0x3c == OFF => Some(MachineEvent::Shutdown),
        (RESET, [RESET_VALUE, ..]) => Some(MachineEvent::Reset),
        _ => None,
    }
}

/// Every table with its address, and the code of the reset vector.
fn build(hardware: &Hardware) -> Vec<(u64, Vec<u8>)> {
    let mut at = TABLES;
    let mut placed = Vec::new();
    let mut place = |bytes: Vec<u8>| {
        let address = at;
        at = (at + bytes.len() as u64).next_multiple_of(ALIGNMENT);
        placed.push((address, bytes));
        address
    };
    let dsdt = place(dsdt::dsdt(hardware));
    let mut roots = vec![place(tables::fadt(dsdt)), place(tables::madt(hardware.vcpus))];
    if hardware.pci {
        roots.push(place(tables::mcfg()));
    }
    let xsdt = place(tables::xsdt(&roots));
    placed.push((GENERATION_ID, hardware.generation_id.to_vec()));
    placed.push((RSDP, tables::rsdp(xsdt)));
    placed.push((RESET_VECTOR, RESET_CODE.to_vec()));
    placed
}

#[cfg(test)]
mod tests;
