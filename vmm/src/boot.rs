//! Booting by PVH: an ELF image is loaded where it asks to be, and entered in 32-bit protected mode with a pointer to what it needs to know.
//!
//! Lives here: checks of the image, its loading, the start info, the first registers. Not here: the machine around it. Guards S7: an image comes from a
//! user, may be anything, and ends in an error that says what is wrong with it.

use std::{fs, io::Cursor, path::Path};

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
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

use crate::{BootConfig, GuestMemory, KernelImage, VmmError, layout::MmioWindow, memory};

/// Where the boot data lies: below 640 KiB, where no kernel is loaded (checked).
const START_INFO: u64 = 0x6000;
const MODULES: u64 = 0x6040;
const MEMORY_MAP: u64 = 0x7000;
const CMDLINE: u64 = 0x2_0000;
/// Longest command line, with its NUL: what Linux takes on x86.
const CMDLINE_MAX: usize = 2048;
const BOOT_DATA: std::ops::Range<u64> = START_INFO..CMDLINE + CMDLINE_MAX as u64;

const START_MAGIC: u32 = 0x336e_c578;
const MEMMAP_RAM: u32 = 1;
const MEMMAP_RESERVED: u32 = 2;
/// End of conventional memory, and start of extended memory: between them a PC has its legacy devices' windows.
const CONVENTIONAL_END: u64 = 0x9_fc00;
const EXTENDED_START: u64 = 0x10_0000;

/// Smallest and largest sizes of headers that are looked at.
const ELF_HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
/// More program headers than any kernel has; bounds the time spent on a hostile image.
const PROGRAM_HEADERS_MAX: usize = 128;

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

/// Where the first vCPU begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub address: u64,
}

/// Loads kernel, initial RAM file system, command line and start info into guest memory of `bytes` bytes.
pub(crate) fn load(boot: &BootConfig, guest: &GuestMemory, bytes: u64, mmio: &[MmioWindow], vcpus: u8) -> Result<Entry, VmmError> {
    let (name, image) = match &boot.kernel {
        KernelImage::Path(path) => (path.display().to_string(), std::borrow::Cow::Owned(read("kernel", path, bytes)?)),
        KernelImage::Bytes(image) => ("the built-in image".to_owned(), std::borrow::Cow::Borrowed(*image)),
    };
    let bad = |reason: String| VmmError::BadKernel { image: name.clone(), reason };
    check(&image, bytes).map_err(&bad)?;
    let loaded = Elf::load(guest, None, &mut Cursor::new(&image[..]), None).map_err(|error| bad(error.to_string()))?;
    let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap else {
        return Err(bad("it has no PVH entry note (XEN_ELFNOTE_PHYS32_ENTRY); a Linux kernel needs CONFIG_PVH=y".into()));
    };
    if !in_memory(entry.0, 1, bytes) {
        return Err(bad(format!("its PVH entry point {:#x} is outside guest memory", entry.0)));
    }
    let module = match &boot.initramfs {
        Some(path) => Some(load_initramfs(guest, &read("initramfs", path, bytes)?, loaded.kernel_end, bytes)?),
        None => None,
    };
    write_cmdline(guest, &cmdline(&boot.cmdline, mmio, vcpus)?)?;
    write_start_info(guest, bytes, module)?;
    Ok(Entry { address: entry.0 })
}

fn read(what: &'static str, path: &Path, limit: u64) -> Result<Vec<u8>, VmmError> {
    let failed = |source| VmmError::ReadImage { what, path: path.to_owned(), source };
    let size = fs::metadata(path).map_err(failed)?.len();
    if size > limit {
        return Err(VmmError::DoesNotFit { what, bytes: size });
    }
    fs::read(path).map_err(failed)
}

fn in_memory(start: u64, len: u64, memory_bytes: u64) -> bool {
    start
        .checked_add(len)
        .is_some_and(|end| memory::ranges(memory_bytes).iter().any(|(first, size)| start >= *first && end <= first + size))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// Everything that linux-loader takes on trust, or would only answer with a general error.
fn check(image: &[u8], memory_bytes: u64) -> Result<(), String> {
    if !image.starts_with(b"\x7fELF") {
        let hint = if image.get(0x202..0x206) == Some(b"HdrS") { " (it is a bzImage; use the vmlinux it was made from)" } else { "" };
        return Err(format!("it is not an ELF file{hint}"));
    }
    if image.len() < ELF_HEADER {
        return Err("it is truncated: shorter than an ELF header".into());
    }
    if image[4] != 2 || image[5] != 1 {
        return Err("it is not a 64-bit little-endian ELF file".into());
    }
    let machine = u16_at(image, 18);
    if u32::from(machine) != EM_X86_64 {
        return Err(format!("it is for another machine (ELF machine {machine}, x86-64 is {EM_X86_64})"));
    }
    let (table, size, count) = (u64_at(image, 32), usize::from(u16_at(image, 54)), usize::from(u16_at(image, 56)));
    if size != PROGRAM_HEADER || count == 0 || count > PROGRAM_HEADERS_MAX {
        return Err(format!("it has {count} program headers of {size} bytes; a kernel has 1 to {PROGRAM_HEADERS_MAX} of {PROGRAM_HEADER}"));
    }
    let headers = usize::try_from(table).ok().and_then(|start| image.get(start..start.checked_add(size * count)?));
    let headers = headers.ok_or("it is truncated: the program headers lie beyond its end")?;
    let mut loads = 0;
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
            loads += 1;
            if file_size > memory_size || !in_memory(address, memory_size, memory_bytes) {
                return Err(format!(
                    "its segment at {address:#x} of {memory_size} bytes is outside the {} MiB of guest memory",
                    memory_bytes >> 20
                ));
            }
            if address < BOOT_DATA.end && address + memory_size > BOOT_DATA.start {
                return Err(format!("its segment at {address:#x} overlaps the boot data at {:#x}", BOOT_DATA.start));
            }
        }
    }
    if loads == 0 { Err("it has nothing to load".into()) } else { Ok(()) }
}

/// ELF machine number of x86-64.
const EM_X86_64: u32 = 62;

fn load_initramfs(guest: &GuestMemory, content: &[u8], kernel_end: u64, bytes: u64) -> Result<hvm_modlist_entry, VmmError> {
    let does_not_fit = || VmmError::DoesNotFit { what: "initramfs", bytes: content.len() as u64 };
    let low_end = bytes.min(memory::LOW_MEMORY_END);
    let address = low_end.checked_sub(content.len() as u64).ok_or_else(does_not_fit)? & !(types::PAGE_SIZE as u64 - 1);
    if address < kernel_end.max(EXTENDED_START) {
        return Err(does_not_fit());
    }
    guest.write_slice(content, GuestAddress(address)).map_err(|_| does_not_fit())?;
    Ok(hvm_modlist_entry { paddr: address, size: content.len() as u64, ..Default::default() })
}

/// The user's command line with the machine's devices and vCPUs appended.
fn cmdline(user: &str, mmio: &[MmioWindow], vcpus: u8) -> Result<String, VmmError> {
    let mut line = user.trim().to_owned();
    for MmioWindow { base, gsi } in mmio {
        line.push_str(&format!(" virtio_mmio.device=4K@{base:#x}:{gsi}"));
    }
    line.push_str(&format!(" lockstep.cpus={vcpus}"));
    if line.contains('\0') {
        return Err(VmmError::Config("the kernel command line contains a NUL byte".into()));
    }
    if line.len() >= CMDLINE_MAX {
        return Err(VmmError::Config(format!("the kernel command line has {} bytes; at most {} fit", line.len(), CMDLINE_MAX - 1)));
    }
    Ok(line)
}

fn put<T: Copy + Default>(guest: &GuestMemory, value: T, at: u64) -> Result<(), VmmError>
where
    Plain<T>: ByteValued,
{
    guest.write_obj(Plain(value), GuestAddress(at)).map_err(|_| VmmError::DoesNotFit { what: "boot data", bytes: size_of::<T>() as u64 })
}

fn write_cmdline(guest: &GuestMemory, line: &str) -> Result<(), VmmError> {
    let mut bytes = line.as_bytes().to_vec();
    bytes.push(0);
    guest.write_slice(&bytes, GuestAddress(CMDLINE)).map_err(|_| VmmError::DoesNotFit { what: "command line", bytes: bytes.len() as u64 })
}

fn write_start_info(guest: &GuestMemory, bytes: u64, module: Option<hvm_modlist_entry>) -> Result<(), VmmError> {
    let mut map = vec![(0, CONVENTIONAL_END, MEMMAP_RAM), (CONVENTIONAL_END, EXTENDED_START - CONVENTIONAL_END, MEMMAP_RESERVED)];
    for (start, size) in memory::ranges(bytes) {
        let first = start.max(EXTENDED_START);
        map.push((first, start + size - first, MEMMAP_RAM));
    }
    for (index, (addr, size, type_)) in map.iter().copied().enumerate() {
        let at = MEMORY_MAP + (index * size_of::<hvm_memmap_table_entry>()) as u64;
        put(guest, hvm_memmap_table_entry { addr, size, type_, reserved: 0 }, at)?;
    }
    if let Some(module) = module {
        put(guest, module, MODULES)?;
    }
    let info = hvm_start_info {
        magic: START_MAGIC,
        version: 1,
        nr_modules: u32::from(module.is_some()),
        modlist_paddr: if module.is_some() { MODULES } else { 0 },
        cmdline_paddr: CMDLINE,
        memmap_paddr: MEMORY_MAP,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    put(guest, info, START_INFO)
}

fn segment(type_: u8, code: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector: if code { 0x8 } else { 0x10 },
        type_,
        present: 1,
        dpl: 0,
        db: 1,
        s: 1,
        l: 0,
        g: 1,
        ..Default::default()
    }
}

/// The registers that the PVH protocol asks for, changed from those of a vCPU at reset.
pub(crate) fn registers(entry: Entry, mut sregs: kvm_sregs) -> (kvm_regs, kvm_sregs) {
    sregs.cs = segment(11, true);
    let data = segment(3, false);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment { limit: 0x67, type_: 11, present: 1, selector: 0x18, ..Default::default() };
    sregs.cr0 = 0x11;
    sregs.cr4 = 0;
    sregs.efer = 0;
    (kvm_regs { rip: entry.address, rbx: START_INFO, rflags: 2, ..Default::default() }, sregs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_names_every_virtio_window_and_the_vcpus() {
        let windows: Vec<_> = (0..2).filter_map(crate::layout::mmio_window).collect();
        assert_eq!(
            cmdline("quiet", &windows, 3).expect("fits"),
            "quiet virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0001000:6 lockstep.cpus=3"
        );
        assert!(cmdline(&"x".repeat(CMDLINE_MAX), &[], 1).is_err());
        assert!(cmdline("a\0b", &[], 1).is_err());
    }

    #[test]
    fn files_that_are_no_kernel_are_refused_by_what_is_wrong_with_them() {
        let memory = 64 << 20;
        let reason = |image: &[u8]| check(image, memory).expect_err("must be refused");
        assert!(reason(b"").contains("not an ELF"));
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
    }
}
