//! The tables of fixed form: RSDP, XSDT, FADT, MADT, MCFG.

use acpi_tables::{
    Aml,
    fadt::{FADTBuilder, Flags, PmProfile},
    gas::{AccessSize, AddressSpace, GAS},
    madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic},
    mcfg::MCFG,
    rsdp::Rsdp,
    xsdt::XSDT,
};

use super::{RESET, RESET_VALUE, SLEEP_CONTROL, SLEEP_STATUS};
use crate::layout;

pub(super) const OEM: [u8; 6] = *b"LOCKST";
pub(super) const OEM_TABLE: [u8; 8] = *b"LOCKSTEP";
pub(super) const OEM_REVISION: u32 = 1;

/// IA-PC boot flags (ACPI 6.5, 5.2.9.3): there is no VGA to probe and no CMOS clock. That the bits for legacy devices and the keyboard controller are
/// not set says that there are none of these either; the serial port is in the namespace.
const NO_VGA: u16 = 1 << 2;
const NO_CMOS_CLOCK: u16 = 1 << 5;

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn port(address: u16) -> GAS {
    GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, u64::from(address))
}

pub(super) fn fadt(dsdt: u64) -> Vec<u8> {
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::Wbinvd)
        // No power or sleep button among the fixed hardware: the power button is a device of the namespace.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup)
        .flag(Flags::HwReducedAcpi)
        .preferred_pm_profile(PmProfile::EnterpriseServer);
    fadt.iapc_boot_arch = (NO_VGA | NO_CMOS_CLOCK).into();
    fadt.reset_reg = port(RESET);
    fadt.reset_value = RESET_VALUE;
    fadt.sleep_control_reg = port(SLEEP_CONTROL);
    fadt.sleep_status_reg = port(SLEEP_STATUS);
    bytes(&fadt.finalize())
}

pub(super) fn madt(vcpus: u8) -> Vec<u8> {
    let mut madt = MADT::new(OEM, OEM_TABLE, OEM_REVISION, LocalInterruptController::Address(layout::LAPIC));
    // APIC ids are below 255: this form serves xAPIC and x2APIC alike (ACPI 6.5, 5.2.12.12 asks for the x2APIC form only above that).
    for vcpu in 0..vcpus {
        madt.add_structure(ProcessorLocalApic::new(vcpu, vcpu, EnabledStatus::Enabled));
    }
    // No 8259s (flag PCAT_COMPAT unset), hence no overrides of their lines: ISA lines are at the GSI of their number, as the resources of the
    // devices in the namespace say.
    madt.add_structure(IoApic::new(0, layout::IOAPIC, 0));
    bytes(&madt)
}

pub(super) fn mcfg() -> Vec<u8> {
    let mut mcfg = MCFG::new(OEM, OEM_TABLE, OEM_REVISION);
    mcfg.add_ecam(layout::PCI_ECAM.start, 0, 0, 0);
    bytes(&mcfg)
}

pub(super) fn xsdt(tables: &[u64]) -> Vec<u8> {
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    tables.iter().for_each(|table| xsdt.add_entry(*table));
    bytes(&xsdt)
}

pub(super) fn rsdp(xsdt: u64) -> Vec<u8> {
    bytes(&Rsdp::new(OEM, xsdt))
}
