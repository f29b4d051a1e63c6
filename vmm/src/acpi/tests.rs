//! The tables as a guest's parser sees them: pointers that lead to tables, sums that add up, contents that match the machine.

use std::collections::BTreeMap;

use super::*;

fn hardware(vcpus: u8, mmio: usize, pci: bool) -> Hardware {
    Hardware { vcpus, mmio: (0..mmio).filter_map(layout::mmio_window).collect(), pci, generation_id: *b"0123456789abcdef" }
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// Follows the pointers from the RSDP, as a kernel does; every table by its signature.
fn walk(hardware: &Hardware) -> BTreeMap<String, Vec<u8>> {
    let placed: BTreeMap<u64, Vec<u8>> = build(hardware).into_iter().collect();
    let rsdp = &placed[&RSDP];
    assert_eq!((&rsdp[..8], sum(&rsdp[..20]), sum(rsdp), rsdp[15]), (&b"RSD PTR "[..], 0, 0, 2));
    let table = |address: u64| {
        let table = placed[&address].clone();
        assert_eq!(u32::from_le_bytes(table[4..8].try_into().unwrap()) as usize, table.len());
        assert_eq!(sum(&table), 0, "checksum of the table at {address:#x}");
        (String::from_utf8(table[..4].to_vec()).unwrap(), table)
    };
    let xsdt = table(u64_at(rsdp, 24)).1;
    let mut found: BTreeMap<_, _> = xsdt[36..].chunks(8).map(|pointer| table(u64_at(pointer, 0))).collect();
    let dsdt = u64_at(&found["FACP"], 140);
    found.extend([table(dsdt)]);
    found
}

#[test]
fn a_kernel_that_follows_the_pointers_finds_every_table_with_its_sum() {
    let found = walk(&hardware(2, 1, false));
    assert_eq!(found.keys().collect::<Vec<_>>(), ["APIC", "DSDT", "FACP"]);
    let found = walk(&hardware(2, 0, true));
    assert_eq!(found.keys().collect::<Vec<_>>(), ["APIC", "DSDT", "FACP", "MCFG"]);
    assert_eq!(u64_at(&found["MCFG"], 44), layout::PCI_ECAM.start);
}

#[test]
fn the_largest_machine_fits_into_its_place_and_tables_do_not_overlap() {
    let mut placed = build(&hardware(crate::MAX_VCPUS, 24, true));
    placed.sort();
    assert!(placed.windows(2).all(|pair| pair[0].0 + pair[0].1.len() as u64 <= pair[1].0));
    let (last, bytes) = placed.last().unwrap();
    assert!(last + bytes.len() as u64 <= places::ACPI.end);
}

#[test]
fn every_processor_is_in_the_madt_with_the_apic_id_of_its_cpuid_and_in_the_namespace() {
    for vcpus in [1, 2, 16, 64] {
        let found = walk(&hardware(vcpus, 0, false));
        let mut rest = &found["APIC"][44..];
        assert_eq!(found["APIC"][40..44], [0; 4], "no 8259s");
        let mut ids = Vec::new();
        let mut ioapics = 0;
        while !rest.is_empty() {
            match rest[0] {
                0 => ids.push((rest[2], rest[3], rest[4])),
                1 => ioapics += 1,
                other => panic!("unexpected structure {other}"),
            }
            rest = &rest[usize::from(rest[1])..];
        }
        assert_eq!(ids, (0..vcpus).map(|id| (id, id, 1)).collect::<Vec<_>>());
        assert_eq!(ioapics, 1);
        let processors = found["DSDT"].windows(8).filter(|bytes| bytes == b"ACPI0007").count();
        assert_eq!(processors, usize::from(vcpus));
    }
}

#[test]
fn the_fadt_names_the_ports_that_end_the_machine() {
    let fadt = &walk(&hardware(1, 0, false))["FACP"];
    let register = |at: usize| (fadt[at], fadt[at + 1], u64_at(fadt, at + 4));
    assert_eq!(register(116), (1, 8, u64::from(RESET)));
    assert_eq!(fadt[128], RESET_VALUE);
    assert_eq!(register(244), (1, 8, u64::from(SLEEP_CONTROL)));
    assert_eq!(register(256), (1, 8, u64::from(SLEEP_STATUS)));
    let flags = u32::from_le_bytes(fadt[112..116].try_into().unwrap());
    assert_eq!(flags & (1 << 20 | 1 << 10 | 1 << 4), 1 << 20 | 1 << 10 | 1 << 4, "reduced hardware, reset register, no fixed button");
}

#[test]
fn the_namespace_has_what_the_machine_has() {
    let has = |hardware: &Hardware, text: &[u8]| walk(hardware)["DSDT"].windows(text.len()).filter(|bytes| bytes == &text).count();
    assert_eq!(has(&hardware(1, 3, false), b"LNRO0005"), 3);
    assert_eq!(has(&hardware(1, 0, true), b"LNRO0005"), 0);
    assert_eq!(has(&hardware(1, 0, true), b"PCI0"), 1);
    assert_eq!(has(&hardware(1, 0, false), b"PCI0"), 0);
    assert_eq!(has(&hardware(1, 0, false), b"VM_Gen_Counter"), 2);
}

#[test]
fn the_generation_id_lies_where_the_namespace_says() {
    let placed: BTreeMap<u64, Vec<u8>> = build(&hardware(1, 0, false)).into_iter().collect();
    assert_eq!(placed[&GENERATION_ID], b"0123456789abcdef");
    assert_eq!(GENERATION_ID % 8, 0);
}

#[test]
fn only_the_orders_that_the_tables_name_end_the_machine() {
    assert_eq!(ending(SLEEP_CONTROL, &[1 << 5 | 5 << 2]), Some(MachineEvent::Shutdown));
    assert_eq!(ending(RESET, &[RESET_VALUE]), Some(MachineEvent::Reset));
    for (port, data) in
        [(SLEEP_CONTROL, &[5 << 2][..]), (SLEEP_CONTROL, &[1 << 5 | 3 << 2]), (RESET, &[0]), (RESET, &[]), (EVENTS, &[1]), (0, &[1])]
    {
        assert_eq!(ending(port, data), None, "{port:#x} {data:?}");
    }
}

/// For whoever wants to look at the namespace: `iasl -d` reads what this writes, where `LOCKSTEP_DSDT` names a folder.
#[test]
fn the_namespace_can_be_looked_at() {
    let Some(folder) = std::env::var_os("LOCKSTEP_DSDT") else { return };
    for (name, hardware) in [("mmio", hardware(2, 2, false)), ("pci", hardware(16, 0, true))] {
        for (signature, table) in walk(&hardware) {
            std::fs::write(std::path::Path::new(&folder).join(format!("{name}-{signature}.aml")), table).unwrap();
        }
    }
}
