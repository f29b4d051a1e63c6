//! ELF kernels (vmlinux), entered by PVH: checks of the image, its loading, the start info.
//!
//! Guards S7: an image comes from a user, may be anything, and ends in an error that says what is wrong with it.

use std::io::Cursor;

use linux_loader::{
    elf,
    loader::{
        KernelLoader as _,
        elf::{
            Elf, PvhBootCapability,
            start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info},
        },
    },
};
use vm_memory::{ByteValued, Bytes as _, GuestAddress};

use super::{
    Loaded, Placed, Unfit,
    places::{self, CMDLINE, MEMORY_MAP, MODULES, START_INFO},
    u16_at, u64_at,
};
use crate::{GuestMemory, VmmError, acpi, memory};

const START_MAGIC: u32 = 0x336e_c578;

/// Smallest and largest sizes of headers that are looked at.
const ELF_HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
/// More program headers than any kernel has; bounds the time spent on a hostile image.
const PROGRAM_HEADERS_MAX: usize = 128;
/// ELF machine number of x86-64.
const EM_X86_64: u32 = 62;

/// A structure of the PVH protocol that is written to guest memory as it is.
#[derive(Clone, Copy, Default)]
#[repr(transparent)]
struct Plain<T: Copy + Default>(T);
// SAFETY: `repr(C)` integers without padding (56 bytes, checked by linux-loader).
unsafe impl ByteValued for Plain<hvm_start_info> {}
// SAFETY: `repr(C)` integers without padding (32 bytes, checked by linux-loader).
unsafe impl ByteValued for Plain<hvm_modlist_entry> {}
// SAFETY: `repr(C)` integers without padding (24 bytes, checked by linux-loader).
unsafe impl ByteValued for Plain<hvm_memmap_table_entry> {}

/// What a checked image takes of memory.
#[derive(Debug, Default)]
struct Taken {
    /// First address behind its last segment.
    end: u64,
    /// Bytes that the file does not hold and that must read as zero: start and length.
    zeros: Vec<(u64, u64)>,
}

/// Loads the image; the entry point's address.
pub(super) fn load(image: &[u8], guest: &GuestMemory, bytes: u64) -> Result<Loaded, Unfit> {
    let taken = check(image, bytes)?;
    let loaded = Elf::load(guest, None, &mut Cursor::new(image), None).map_err(|error| error.to_string())?;
    let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap else {
        return Err("it has no PVH entry note (XEN_ELFNOTE_PHYS32_ENTRY); a Linux kernel needs CONFIG_PVH=y".into());
    };
    if !places::in_memory(entry.0, 1, bytes) {
        return Err(format!("its PVH entry point {:#x} is outside guest memory", entry.0).into());
    }
    // Memory is not empty when a guest is booted again.
    for (start, length) in taken.zeros {
        super::fill_zero(guest, start, length).map_err(|error| error.to_string())?;
    }
    Ok(Loaded { entry: entry.0, end: taken.end })
}

/// Everything that linux-loader takes on trust, or would only answer with a general error.
fn check(image: &[u8], memory_bytes: u64) -> Result<Taken, Unfit> {
    if image.len() < ELF_HEADER {
        return Err("it is truncated: shorter than an ELF header".into());
    }
    if image[4] != 2 || image[5] != 1 {
        return Err("it is not a 64-bit little-endian ELF file".into());
    }
    let machine = u16_at(image, 18);
    if u32::from(machine) != EM_X86_64 {
        return Err(format!("it is for another machine (ELF machine {machine}, x86-64 is {EM_X86_64})").into());
    }
    let (table, size, count) = (u64_at(image, 32), usize::from(u16_at(image, 54)), usize::from(u16_at(image, 56)));
    if size != PROGRAM_HEADER || count == 0 || count > PROGRAM_HEADERS_MAX {
        return Err(
            format!("it has {count} program headers of {size} bytes; a kernel has 1 to {PROGRAM_HEADERS_MAX} of {PROGRAM_HEADER}").into()
        );
    }
    let headers = usize::try_from(table).ok().and_then(|start| image.get(start..start.checked_add(size * count)?));
    let headers = headers.ok_or("it is truncated: the program headers lie beyond its end")?;
    let mut taken = Taken::default();
    for header in headers.chunks_exact(PROGRAM_HEADER) {
        let kind = u32::from(u16_at(header, 0)) | u32::from(u16_at(header, 2)) << 16;
        let (offset, address, file_size, memory_size) = (u64_at(header, 8), u64_at(header, 24), u64_at(header, 32), u64_at(header, 40));
        if kind != elf::PT_LOAD && kind != elf::PT_NOTE {
            continue;
        }
        if offset.checked_add(file_size).is_none_or(|end| end > image.len() as u64) {
            return Err("it is truncated: a segment lies beyond its end".into());
        }
        if kind == elf::PT_LOAD && memory_size > 0 {
            if file_size > memory_size || !places::in_memory(address, memory_size, memory_bytes) {
                let (end, has) = (address.saturating_add(memory_size), memory_bytes >> 20);
                let reason = format!("its segment at {address:#x} of {memory_size} bytes is outside the {has} MiB of guest memory");
                // Beyond the first slot no kernel lies: such an image is damaged, not large.
                return Err(if file_size > memory_size || end > memory::LOW_MEMORY_END {
                    Unfit::Bad(reason)
                } else {
                    Unfit::TooLarge(format!("{reason}; it takes more than {} MiB", end.div_ceil(1 << 20)))
                });
            }
            if let Some(what) = places::collision(address, memory_size) {
                return Err(format!("its segment at {address:#x} overlaps {what}").into());
            }
            taken.end = taken.end.max(address + memory_size);
            taken.zeros.push((address + file_size, memory_size - file_size));
        }
    }
    if taken.end == 0 { Err("it has nothing to load".into()) } else { Ok(taken) }
}

fn put<T: Copy + Default>(guest: &GuestMemory, value: T, at: u64) -> Result<(), VmmError>
where
    Plain<T>: ByteValued,
{
    guest.write_obj(Plain(value), GuestAddress(at)).map_err(|_| VmmError::DoesNotFit { what: "boot data", bytes: size_of::<T>() as u64 })
}

/// Writes what the kernel is told at its entry: memory map, command line, initial RAM file system, ACPI tables.
pub(super) fn write_start_info(guest: &GuestMemory, bytes: u64, pci: bool, module: Option<Placed>) -> Result<(), VmmError> {
    let map = places::memory_map(bytes, pci);
    for (index, (addr, size, kind)) in map.iter().copied().enumerate() {
        let at = MEMORY_MAP + (index * size_of::<hvm_memmap_table_entry>()) as u64;
        put(guest, hvm_memmap_table_entry { addr, size, type_: kind as u32, reserved: 0 }, at)?;
    }
    if let Some(module) = module {
        put(guest, hvm_modlist_entry { paddr: module.address, size: module.bytes, ..Default::default() }, MODULES)?;
    }
    let info = hvm_start_info {
        magic: START_MAGIC,
        version: 1,
        nr_modules: u32::from(module.is_some()),
        modlist_paddr: if module.is_some() { MODULES } else { 0 },
        cmdline_paddr: CMDLINE,
        rsdp_paddr: acpi::RSDP,
        memmap_paddr: MEMORY_MAP,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    put(guest, info, START_INFO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_are_no_kernel_are_refused_by_what_is_wrong_with_them() {
        let memory = 64 << 20;
        let reason = |image: &[u8]| match check(image, memory) {
            Err(Unfit::Bad(reason)) => reason,
            other => panic!("{other:?}"),
        };
        assert!(reason(b"\x7fELF\x02\x01").contains("truncated"));
        let mut image = vec![0u8; 256];
        image[..6].copy_from_slice(b"\x7fELF\x02\x01");
        image[18] = 183;
        assert!(reason(&image).contains("another machine"));
        image[18] = 62;
        assert!(reason(&image).contains("program headers"));
        image[54] = 56;
        image[56] = 1;
        image[32..40].copy_from_slice(&250u64.to_le_bytes());
        assert!(reason(&image).contains("truncated"));
        image[32..40].copy_from_slice(&64u64.to_le_bytes());
        assert!(reason(&image).contains("nothing to load"));
        image[64] = 1;
        image[64 + 40..64 + 48].copy_from_slice(&8u64.to_le_bytes());
        image[64 + 24..64 + 32].copy_from_slice(&(1u64 << 40).to_le_bytes());
        assert!(reason(&image).contains("outside"));
        image[64 + 24..64 + 32].copy_from_slice(&(START_INFO).to_le_bytes());
        assert!(reason(&image).contains("overlaps"));
        image[64 + 24..64 + 32].copy_from_slice(&(u64::MAX - 3).to_le_bytes());
        assert!(reason(&image).contains("outside"));
        image[64 + 24..64 + 32].copy_from_slice(&(1u64 << 30).to_le_bytes());
        assert!(matches!(check(&image, memory), Err(Unfit::TooLarge(reason)) if reason.contains("more than 1025 MiB")));
    }
}
