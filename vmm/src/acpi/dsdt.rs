//! The namespace (DSDT): processors, serial port, power button, VM generation ID, their event device, virtio-mmio devices or the PCI host bridge.

use acpi_tables::{
    Aml,
    aml::{
        AddressSpace, AddressSpaceCacheable, And, Device, EISAName, Equal, Field, FieldAccessType, FieldEntry, FieldLockRule,
        FieldUpdateRule, IO, If, Interrupt, Local, Memory32Fixed, Method, Name, Notify, ONE, OpRegion, OpRegionSpace, Package, Path,
        ResourceTemplate, Return, Scope, Store, ZERO,
    },
    sdt::Sdt,
};

use super::{
    EVENT_POWER_BUTTON, EVENTS, EVENTS_GSI, GENERATION_ID, Hardware, PORTS, SLEEP_TYPE_OFF,
    tables::{OEM, OEM_REVISION, OEM_TABLE},
};
use crate::{
    devices::{
        serial::{SERIAL_GSI, SERIAL_PORT, SERIAL_PORTS},
        virtio::mmio::MMIO_LENGTH,
    },
    layout::{self, MmioWindow},
};

/// A table header's length (ACPI 6.5, 5.2.6), and the revision from which on integers have 64 bits.
const HEADER: u32 = 36;
const REVISION: u8 = 2;
/// What a device's notification says: its state has changed (ACPI 6.5, table 5.197: 0x80 for power buttons).
const CHANGED: u8 = 0x80;

/// An edge-triggered, active-high line of one consumer: every interrupt of this machine that is no message.
fn interrupt(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

pub(super) fn dsdt(hardware: &Hardware) -> Vec<u8> {
    let mut dsdt = Sdt::new(*b"DSDT", HEADER, REVISION, OEM, OEM_TABLE, OEM_REVISION);
    let mut append = |part: &dyn Aml| {
        let mut bytes = Vec::new();
        part.to_aml_bytes(&mut bytes);
        dsdt.append_slice(&bytes);
    };
    for vcpu in 0..hardware.vcpus {
        let name = format!("C{vcpu:03X}");
        in_scope(&mut append, &name, &[&Name::new("_HID".into(), &"ACPI0007"), &Name::new("_UID".into(), &vcpu)]);
    }
    serial(&mut append);
    power_button(&mut append);
    generation_id(&mut append);
    events(&mut append);
    ports(&mut append, hardware.pci);
    for (index, device) in hardware.mmio.iter().enumerate() {
        virtio_mmio(&mut append, index as u8, *device);
    }
    if hardware.pci {
        host_bridge(&mut append);
    }
    append(&Name::new("_S5_".into(), &Package::new(vec![&SLEEP_TYPE_OFF, &ZERO, &ZERO, &ZERO])));
    dsdt.as_slice().to_vec()
}

/// A device below the system bus.
fn in_scope(append: &mut impl FnMut(&dyn Aml), name: &str, children: &[&dyn Aml]) {
    let device = Device::new(name.into(), children.to_vec());
    append(&Scope::new("_SB_".into(), vec![&device]));
}

fn serial(append: &mut impl FnMut(&dyn Aml)) {
    let port = SERIAL_PORT as u16;
    in_scope(
        append,
        "COM1",
        &[
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_DDN".into(), &"COM1"),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&IO::new(port, port, 1, SERIAL_PORTS as u8), &interrupt(SERIAL_GSI)])),
        ],
    );
}

fn power_button(append: &mut impl FnMut(&dyn Aml)) {
    in_scope(append, "PWRB", &[&Name::new("_HID".into(), &EISAName::new("PNP0C0C")), &Name::new("_UID".into(), &ZERO)]);
}

/// Microsoft's "Virtual Machine Generation ID": `ADDR` gives the address of 16 bytes, low half first. They change while the guest is switched off alone, so it
/// is never notified.
fn generation_id(append: &mut impl FnMut(&dyn Aml)) {
    let address = Package::new(vec![&GENERATION_ID, &ZERO]);
    in_scope(
        append,
        "VGEN",
        &[
            &Name::new("_HID".into(), &"LCKS0001"),
            &Name::new("_CID".into(), &"VM_Gen_Counter"),
            &Name::new("_DDN".into(), &"VM_Gen_Counter"),
            &Name::new("_UID".into(), &ZERO),
            &Method::new("ADDR".into(), 0, false, vec![&Return::new(&address)]),
        ],
    );
}

/// The generic event device (ACPI 6.5, 5.6.9): its interrupt has the guest read which events have happened, and tell their devices.
fn events(append: &mut impl FnMut(&dyn Aml)) {
    let (happened, field) = (Local(0), Path::new("EVNT"));
    let button = Path::new("\\_SB_.PWRB");
    let tell_button = Notify::new(&button, &CHANGED);
    let no_target = ZERO;
    let pressed = And::new(&no_target, &happened, &EVENT_POWER_BUTTON);
    let is_pressed = Equal::new(&pressed, &EVENT_POWER_BUTTON);
    in_scope(
        append,
        "EVTS",
        &[
            &Name::new("_HID".into(), &"ACPI0013"),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&interrupt(EVENTS_GSI)])),
            &OpRegion::new("EREG".into(), OpRegionSpace::SystemIO, &EVENTS, &ONE),
            &Field::new(
                "EREG".into(),
                FieldAccessType::Byte,
                FieldLockRule::NoLock,
                FieldUpdateRule::WriteAsZeroes,
                vec![FieldEntry::Named(*b"EVNT", 8)],
            ),
            // Reading it clears it: once for all events.
            &Method::new("_EVT".into(), 1, true, vec![&Store::new(&happened, &field), &If::new(&is_pressed, vec![&tell_button])]),
        ],
    );
}

/// What is taken of ports and memory by no other device, so that the guest puts nothing there.
fn ports(append: &mut impl FnMut(&dyn Aml), pci: bool) {
    let ours = IO::new(PORTS.start, PORTS.start, 1, PORTS.len() as u8);
    let ecam = Memory32Fixed::new(true, layout::PCI_ECAM.start as u32, (layout::PCI_ECAM.end - layout::PCI_ECAM.start) as u32);
    let mut taken: Vec<&dyn Aml> = vec![&ours];
    if pci {
        taken.push(&ecam);
    }
    in_scope(
        append,
        "MBRD",
        &[
            &Name::new("_HID".into(), &EISAName::new("PNP0C02")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CRS".into(), &ResourceTemplate::new(taken)),
        ],
    );
}

fn virtio_mmio(append: &mut impl FnMut(&dyn Aml), index: u8, device: MmioWindow) {
    let window = Memory32Fixed::new(true, device.base as u32, MMIO_LENGTH as u32);
    in_scope(
        append,
        &format!("VR{index:02X}"),
        &[
            &Name::new("_HID".into(), &"LNRO0005"),
            &Name::new("_UID".into(), &index),
            &Name::new("_CCA".into(), &ONE),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&window, &interrupt(device.gsi)])),
        ],
    );
}

/// The PCI host bridge: bus 0 alone, memory windows alone, messages instead of interrupt lines (no `_PRT`).
fn host_bridge(append: &mut impl FnMut(&dyn Aml)) {
    let (first, last) = (layout::PCI_BARS.start as u32, (layout::PCI_BARS.end - 1) as u32);
    in_scope(
        append,
        "PCI0",
        &[
            &Name::new("_HID".into(), &EISAName::new("PNP0A08")),
            &Name::new("_CID".into(), &EISAName::new("PNP0A03")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_SEG".into(), &ZERO),
            &Name::new("_BBN".into(), &ZERO),
            &Name::new("_CCA".into(), &ONE),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &AddressSpace::new_bus_number(0u16, 0u16),
                    &AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, first, last, None),
                ]),
            ),
        ],
    );
}
