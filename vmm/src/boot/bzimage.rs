//! Linux kernels as distributions ship them (bzImage), entered by the 64-bit boot protocol (Documentation/arch/x86/boot.rst).
//!
//! Lives here: checks of the setup header, where the kernel goes, the zero page. Not here: registers and page tables ([`super::entry`]). Guards S7: an
//! image comes from a user, may be anything, and ends in an error that says what is wrong with it.

use std::io::Cursor;

use linux_loader::{
    bootparam::{XLF_KERNEL_64, boot_e820_entry, boot_params, setup_header},
    loader::{KernelLoader as _, bzimage::BzImage},
};
use vm_memory::{ByteValued, Bytes as _, GuestAddress};

use super::{
    Loaded, Placed, Unfit,
    places::{self, CMDLINE, EXTENDED_START, ZERO_PAGE},
    u16_at, u32_at, u64_at,
};
use crate::{GuestMemory, VmmError, acpi, memory};

/// Offset of the magic number "HdrS" in the file.
const MAGIC_AT: usize = 0x202;
/// Where the setup header begins in the file and in the zero page.
const HEADER_AT: usize = 0x1f1;
/// Bytes of the file that are looked at: the header may end up to 255 bytes behind its magic.
const LOOKED_AT: usize = 0x301;
/// First protocol version with `xloadflags`, and so with a 64-bit entry point that says so (Linux 3.8).
const OLDEST: u16 = 0x20c;
const SECTOR: u64 = 512;
const LOADED_HIGH: u8 = 1;
/// Offset of the 64-bit entry point from where the kernel is loaded.
const ENTRY_64: u64 = 0x200;
/// Type of loader "undefined": no number has been assigned to this program.
const LOADER_TYPE: u8 = 0xff;
/// Largest alignment that is believed.
const ALIGNMENT_MAX: u64 = 1 << 30;

/// The zero page, written to guest memory as it is.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct ZeroPage(boot_params);
// SAFETY: `repr(C, packed)` integers (4096 bytes, checked by linux-loader): no padding, every bit pattern valid.
unsafe impl ByteValued for ZeroPage {}

/// What a checked header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    version: u16,
    /// First byte of the protected-mode kernel in the file.
    payload_at: u64,
    /// Where the kernel wants to be, and may have to be.
    preferred: u64,
    /// Memory from the load address on that the kernel uses before it looks at the memory map.
    init_size: u64,
    /// Highest address of the initial RAM file system.
    initrd_max: u64,
    /// Longest command line, without its NUL.
    pub(super) cmdline_max: usize,
}

/// Whether the file says that it is one.
pub(super) fn is_one(image: &[u8]) -> bool {
    image.get(MAGIC_AT..MAGIC_AT + 4) == Some(b"HdrS")
}

impl Header {
    /// Reads and checks the header of a file that [`is_one`].
    pub(super) fn parse(image: &[u8]) -> Result<Header, String> {
        if image.len() < LOOKED_AT {
            return Err("it is truncated: shorter than its setup header".into());
        }
        let version = u16_at(image, 0x206);
        if version < OLDEST {
            return Err(format!(
                "its boot protocol is {}.{:02}; 2.12 (Linux 3.8) or later is needed, or its vmlinux",
                version >> 8,
                version & 0xff
            ));
        }
        if image[0x211] & LOADED_HIGH == 0 {
            return Err("it is a zImage, to be loaded below 640 KiB".into());
        }
        if u16_at(image, 0x236) & XLF_KERNEL_64 == 0 {
            return Err("it has no 64-bit entry point; a 64-bit kernel (CONFIG_X86_64=y) is needed".into());
        }
        // 0 stands for 4, for the sake of very old kernels.
        let sectors = if image[HEADER_AT] == 0 { 4 } else { u64::from(image[HEADER_AT]) };
        let payload_at = (sectors + 1) * SECTOR;
        // In units of 16 bytes: the protected-mode kernel, whose end a truncated file has lost.
        let payload = u64::from(u32_at(image, 0x1f4)) * 16;
        if payload == 0 || image.len() as u64 <= payload_at + ENTRY_64 {
            return Err("it has nothing to load behind its setup code".into());
        }
        if (image.len() as u64) < payload_at.saturating_add(payload) {
            return Err(format!("it is truncated: {} of {} bytes are there", image.len(), payload_at.saturating_add(payload)));
        }
        let alignment = u64::from(u32_at(image, 0x230));
        if !alignment.is_power_of_two() || alignment > ALIGNMENT_MAX {
            return Err(format!("it asks for an alignment of {alignment:#x} bytes"));
        }
        Ok(Header {
            version,
            payload_at,
            preferred: u64_at(image, 0x258),
            init_size: u64::from(u32_at(image, 0x260)),
            initrd_max: u64::from(u32_at(image, 0x22c)),
            cmdline_max: u32_at(image, 0x238) as usize,
        })
    }

    /// Where the kernel goes in `bytes` of memory: where it prefers to be. Even one that may be anywhere must not be put lower: it would move itself up to there before it unpacks
    /// itself (Documentation/arch/x86/boot.rst, init_size), beyond the end of a small memory and without a word.
    fn place(&self, image: &[u8], bytes: u64) -> Result<u64, Unfit> {
        let needs = self.init_size.max(image.len() as u64 - self.payload_at);
        let fits = |address: u64| {
            let first = memory::ranges(bytes)[0];
            address >= EXTENDED_START && places::in_memory(address, needs, bytes) && address < first.1
        };
        if fits(self.preferred) {
            return Ok(self.preferred);
        }
        let end = self.preferred.saturating_add(needs);
        if self.preferred < EXTENDED_START || end > memory::LOW_MEMORY_END {
            let preferred = self.preferred;
            return Err(format!("its header asks for {needs} bytes at {preferred:#x}, where no guest has memory for a kernel").into());
        }
        let (mib, has) = (end.div_ceil(1 << 20), bytes >> 20);
        Err(Unfit::TooLarge(format!("it needs {mib} MiB of memory to unpack itself and the guest has {has} MiB")))
    }

    /// First address that the initial RAM file system must not reach.
    pub(super) fn initrd_end(&self) -> u64 {
        self.initrd_max.saturating_add(1)
    }
}

/// Loads the protected-mode kernel.
pub(super) fn load(image: &[u8], header: &Header, guest: &GuestMemory, bytes: u64) -> Result<(Loaded, setup_header), Unfit> {
    let address = header.place(image, bytes)?;
    let loaded = BzImage::load(guest, Some(GuestAddress(address)), &mut Cursor::new(image), None).map_err(|error| error.to_string())?;
    let setup = loaded.setup_header.ok_or("its setup header cannot be read")?;
    let end = loaded.kernel_end.max(address.saturating_add(header.init_size));
    Ok((Loaded { entry: address + ENTRY_64, end }, setup))
}

/// Writes the zero page: the header as the file has it, and what the kernel is told of the machine.
pub(super) fn write_zero_page(
    guest: &GuestMemory,
    bytes: u64,
    pci: bool,
    setup: setup_header,
    initramfs: Option<Placed>,
) -> Result<(), VmmError> {
    let mut page = boot_params { hdr: setup, acpi_rsdp_addr: acpi::RSDP, ..Default::default() };
    page.hdr.type_of_loader = LOADER_TYPE;
    page.hdr.cmd_line_ptr = CMDLINE as u32;
    page.hdr.setup_data = 0;
    if let Some(placed) = initramfs {
        // Placed below initrd_addr_max, which has 32 bits.
        page.hdr.ramdisk_image = placed.address as u32;
        page.hdr.ramdisk_size = placed.bytes as u32;
    }
    let map = places::memory_map(bytes, pci);
    page.e820_entries = map.len() as u8;
    for (entry, (addr, size, kind)) in page.e820_table.iter_mut().zip(map) {
        *entry = boot_e820_entry { addr, size, r#type: kind as u32 };
    }
    guest.write_obj(ZeroPage(page), GuestAddress(ZERO_PAGE)).map_err(|_| VmmError::DoesNotFit { what: "boot data", bytes: 4096 })
}

#[cfg(test)]
#[path = "bzimage_tests.rs"]
mod tests;
