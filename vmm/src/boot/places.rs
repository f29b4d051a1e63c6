//! Where boot data lies in the first megabyte, and the memory map that the guest is told.
//!
//! Not here: what is written there; the addresses of devices ([`crate::layout`]).

use crate::{
    layout::{KVM_PAGES, PCI_ECAM},
    memory,
};

/// End of conventional memory, and start of extended memory: between them a PC has its legacy devices' windows and its firmware.
pub(crate) const CONVENTIONAL_END: u64 = 0x9_fc00;
/// See [`CONVENTIONAL_END`].
pub(crate) const EXTENDED_START: u64 = 0x10_0000;

/// ACPI tables, and at the very end the reset vector: in the firmware's place, where a kernel that was told nothing looks for them too (ACPI 6.5,
/// 5.2.5.1).
pub(crate) const ACPI: std::ops::Range<u64> = 0xe_0000..EXTENDED_START;

/// The boot data: below 640 KiB, where no kernel is loaded (checked).
pub(crate) const START_INFO: u64 = 0x6000;
pub(crate) const MODULES: u64 = 0x6040;
pub(crate) const GDT: u64 = 0x6400;
pub(crate) const MEMORY_MAP: u64 = 0x7000;
pub(crate) const ZERO_PAGE: u64 = 0x8000;
/// Six pages: one PML4, one PDPT, four directories of 2 MiB pages.
pub(crate) const PAGE_TABLES: u64 = 0x9000;
pub(crate) const CMDLINE: u64 = 0x2_0000;
/// Longest command line, with its NUL: what Linux takes on x86.
pub(crate) const CMDLINE_MAX: usize = 2048;
/// All of the boot data.
pub(crate) const BOOT_DATA: std::ops::Range<u64> = START_INFO..CMDLINE + CMDLINE_MAX as u64;

/// What a range of the memory map is; the numbers are those of the E820 and PVH protocols.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum RangeKind {
    Ram = 1,
    Reserved = 2,
}

/// The memory map that the guest is told: start, length, kind, ascending.
pub(crate) fn memory_map(bytes: u64, pci: bool) -> Vec<(u64, u64, RangeKind)> {
    let mut map = vec![(0, CONVENTIONAL_END, RangeKind::Ram), (CONVENTIONAL_END, EXTENDED_START - CONVENTIONAL_END, RangeKind::Reserved)];
    let ram = memory::ranges(bytes).into_iter().map(|(start, size)| {
        let first = start.max(EXTENDED_START);
        (first, start + size - first, RangeKind::Ram)
    });
    map.extend(ram);
    let reserved = |range: std::ops::Range<u64>| (range.start, range.end - range.start, RangeKind::Reserved);
    if pci {
        // Linux uses memory-mapped configuration space early only where the memory map says so (pci_mmcfg_check_reserved).
        map.push(reserved(PCI_ECAM));
    }
    map.push(reserved(KVM_PAGES));
    map.sort_by_key(|(start, ..)| *start);
    map
}

/// Whether `len` bytes from `start` on lie in one piece of guest memory of `memory_bytes` bytes.
pub(crate) fn in_memory(start: u64, len: u64, memory_bytes: u64) -> bool {
    start
        .checked_add(len)
        .is_some_and(|end| memory::ranges(memory_bytes).iter().any(|(first, size)| start >= *first && end <= first + size))
}

/// What `start..start + len` would overwrite of the machine's own data, if anything.
pub(crate) fn collision(start: u64, len: u64) -> Option<&'static str> {
    let overlaps = |range: std::ops::Range<u64>| start < range.end && start.saturating_add(len) > range.start;
    if overlaps(BOOT_DATA) {
        Some("the boot data")
    } else if overlaps(ACPI) {
        Some("the ACPI tables")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn the_memory_map_is_ascending_and_its_ram_is_the_guests_memory_but_for_the_firmwares_place() {
        for bytes in [64 << 20, 3 * GIB, 6 * GIB] {
            for pci in [false, true] {
                let map = memory_map(bytes, pci);
                assert!(map.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0), "{map:x?}");
                let ram: u64 = map.iter().filter(|range| range.2 == RangeKind::Ram).map(|range| range.1).sum();
                assert_eq!(ram, bytes - (EXTENDED_START - CONVENTIONAL_END));
            }
        }
        let high = memory_map(6 * GIB, true).pop();
        assert_eq!(high, Some((4 * GIB, 3 * GIB, RangeKind::Ram)));
    }

    #[test]
    fn what_the_machine_writes_itself_is_guarded_and_nothing_else() {
        assert_eq!(collision(ZERO_PAGE, 1), Some("the boot data"));
        assert_eq!(collision(0, START_INFO), None);
        assert_eq!(collision(0, START_INFO + 1), Some("the boot data"));
        assert_eq!(collision(0xf_ffff, 4096), Some("the ACPI tables"));
        assert_eq!(collision(EXTENDED_START, 1 << 20), None);
        assert!(in_memory(3 * GIB - 1, 1, 4 * GIB) && !in_memory(3 * GIB - 1, 2, 4 * GIB) && !in_memory(u64::MAX, 2, 4 * GIB));
    }
}
