//! The first vCPU's registers at a kernel's entry, and the tables in memory that they point to.
//!
//! Not here: what the kernel finds in memory besides.

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::{Bytes as _, GuestAddress};

use super::places::{GDT, PAGE_TABLES, START_INFO, ZERO_PAGE};
use crate::{GuestMemory, VmmError};

/// Where and how the first vCPU begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// By PVH: 32-bit protected mode without paging, EBX at the start info.
    Pvh { address: u64 },
    /// By Linux's 64-bit boot protocol: long mode, memory mapped one to one, RSI at the zero page.
    Long { address: u64 },
}

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// Selectors that the 64-bit boot protocol fixes: __BOOT_CS and __BOOT_DS.
const BOOT_CS: u16 = 0x10;
const BOOT_DS: u16 = 0x18;
/// Null twice, then 64-bit code, then data; both flat.
const GDT_ENTRIES: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];

/// Page table entry: present, writable.
const TABLE: u64 = 0x3;
/// Page directory entry: present, writable, a page of 2 MiB.
const LARGE: u64 = 0x83;
const PAGE: u64 = types::PAGE_SIZE as u64;
/// Gigabytes mapped one to one: all that lies below 4 GiB, where kernel, zero page and command line are.
const MAPPED_GIB: u64 = 4;

/// Writes the descriptor table and the page tables that [`Entry::Long`] needs.
pub(super) fn write_tables(guest: &GuestMemory) -> Result<(), VmmError> {
    let put = |at: u64, value: u64| {
        guest.write_obj(value, GuestAddress(at)).map_err(|_| VmmError::DoesNotFit { what: "boot data", bytes: (2 + MAPPED_GIB) * PAGE })
    };
    for (index, entry) in GDT_ENTRIES.iter().enumerate() {
        put(GDT + index as u64 * 8, *entry)?;
    }
    let pointers = PAGE_TABLES + PAGE;
    for index in 0..512 {
        put(PAGE_TABLES + index * 8, if index == 0 { pointers | TABLE } else { 0 })?;
        let directory = pointers + PAGE + index * PAGE;
        put(pointers + index * 8, if index < MAPPED_GIB { directory | TABLE } else { 0 })?;
    }
    for index in 0..MAPPED_GIB * 512 {
        put(pointers + PAGE + index * 8, index << 21 | LARGE)?;
    }
    Ok(())
}

fn segment(selector: u16, type_: u8, long: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: u8::from(!long),
        s: 1,
        l: u8::from(long),
        g: 1,
        ..Default::default()
    }
}

/// The registers that the entry asks for, changed from those of a vCPU at reset.
pub(crate) fn registers(entry: Entry, mut sregs: kvm_sregs) -> (kvm_regs, kvm_sregs) {
    let (code, data, regs) = match entry {
        Entry::Pvh { address } => {
            sregs.cr0 = CR0_PE | CR0_ET;
            sregs.cr4 = 0;
            sregs.efer = 0;
            (segment(0x8, 11, false), segment(0x10, 3, false), kvm_regs { rip: address, rbx: START_INFO, rflags: 2, ..Default::default() })
        }
        Entry::Long { address } => {
            sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
            sregs.cr3 = PAGE_TABLES;
            sregs.cr4 = CR4_PAE;
            sregs.efer = EFER_LME | EFER_LMA;
            sregs.gdt = kvm_dtable { base: GDT, limit: (GDT_ENTRIES.len() * 8 - 1) as u16, ..Default::default() };
            // No interrupt table: interrupts are off, and a fault before the kernel has its own resets the machine.
            sregs.idt = kvm_dtable::default();
            let code = segment(BOOT_CS, 11, true);
            (code, segment(BOOT_DS, 3, false), kvm_regs { rip: address, rsi: ZERO_PAGE, rflags: 2, ..Default::default() })
        }
    };
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment { limit: 0x67, type_: 11, present: 1, selector: 0x20, ..Default::default() };
    (regs, sregs)
}
