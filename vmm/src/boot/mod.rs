//! Booting: kernel, initial RAM file system, command line and ACPI tables are brought into guest memory, and the first vCPU to the kernel's entry.
//!
//! Lives here: which protocol a kernel is booted by, and the order of the steps. Beside it: where everything goes ([`places`]), the files ([`images`]), the
//! protocols ([`elf`] by PVH, [`bzimage`] by Linux's own), the first registers ([`entry`]). Not here: the machine around it. Guards S7: an image comes
//! from a user, may be anything, and ends in an error that says what is wrong with it; and S5: every byte is written through guest memory's log, so that a
//! guest that is booted again while it is protected is a guest that has written much.

mod bzimage;
mod elf;
pub(crate) mod entry;
mod images;
pub(crate) mod places;

use vm_memory::{Bytes as _, GuestAddress};

pub(crate) use entry::Entry;
pub use images::BootImages;
use places::{CMDLINE, CMDLINE_MAX, EXTENDED_START};

use crate::{
    GuestMemory, VmmError,
    acpi::{self, Hardware},
    memory,
};

/// A kernel in guest memory.
struct Loaded {
    /// Where it is entered.
    entry: u64,
    /// First address that it leaves to others.
    end: u64,
}

/// Something that was put into guest memory.
#[derive(Clone, Copy)]
struct Placed {
    address: u64,
    bytes: u64,
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// Why a kernel cannot be loaded.
#[derive(Debug, PartialEq, Eq)]
enum Unfit {
    /// The image is not one that can be booted, whatever the guest's memory.
    Bad(String),
    /// It would be with more memory.
    TooLarge(String),
}

impl From<String> for Unfit {
    fn from(reason: String) -> Unfit {
        Unfit::Bad(reason)
    }
}

impl From<&str> for Unfit {
    fn from(reason: &str) -> Unfit {
        Unfit::Bad(reason.to_owned())
    }
}

/// Brings everything a guest needs at its start into guest memory of `bytes` bytes. What else is in memory stays: as on a PC, a guest that boots again
/// finds what it left.
pub(crate) fn load(images: &BootImages, guest: &GuestMemory, bytes: u64, hardware: &Hardware) -> Result<Entry, VmmError> {
    let image = images.kernel(bytes)?;
    let bad = |reason: String| VmmError::BadKernel { image: images.name(), reason };
    let unfit = |why: Unfit| match why {
        Unfit::Bad(reason) => bad(reason),
        Unfit::TooLarge(reason) => VmmError::KernelTooLarge { image: images.name(), reason },
    };
    let initramfs = images.initramfs(bytes)?;
    let content = initramfs.as_deref();
    let low_end = memory::ranges(bytes)[0].1;
    let pci = hardware.pci;
    acpi::write(guest, hardware)?;
    if bzimage::is_one(&image) {
        let header = bzimage::Header::parse(&image).map_err(&bad)?;
        write_cmdline(guest, &cmdline(images, hardware, header.cmdline_max.saturating_add(1))?)?;
        let (loaded, setup) = bzimage::load(&image, &header, guest, bytes).map_err(&unfit)?;
        let placed = content.map(|content| place_initramfs(guest, content, loaded.end, low_end.min(header.initrd_end()))).transpose()?;
        bzimage::write_zero_page(guest, bytes, pci, setup, placed)?;
        entry::write_tables(guest)?;
        Ok(Entry::Long { address: loaded.entry })
    } else if image.starts_with(b"\x7fELF") {
        write_cmdline(guest, &cmdline(images, hardware, CMDLINE_MAX)?)?;
        let loaded = elf::load(&image, guest, bytes).map_err(&unfit)?;
        let placed = content.map(|content| place_initramfs(guest, content, loaded.end, low_end)).transpose()?;
        elf::write_start_info(guest, bytes, pci, placed)?;
        Ok(Entry::Pvh { address: loaded.entry })
    } else {
        Err(bad(format!("it is neither an ELF file nor a bzImage{}", hint(&image))))
    }
}

/// What a file that is no kernel seems to be.
fn hint(image: &[u8]) -> &'static str {
    match image {
        [] => " (it is empty)",
        [0x1f, 0x8b, ..] => " (it is compressed by gzip: unpack it, or give the vmlinuz)",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => " (it is compressed by zstd: unpack it, or give the vmlinuz)",
        [b'M', b'Z', ..] => " (it is an EFI program; a kernel for EFI alone cannot be booted)",
        [b'0', b'7', b'0', b'7', b'0', ..] => " (it is a cpio archive: perhaps the initramfs)",
        _ => "",
    }
}

/// Puts the initial RAM file system as high as it may be, so that nothing a kernel does first overwrites it.
fn place_initramfs(guest: &GuestMemory, content: &[u8], kernel_end: u64, end: u64) -> Result<Placed, VmmError> {
    let does_not_fit = || VmmError::DoesNotFit { what: "initramfs", bytes: content.len() as u64 };
    let address = end.checked_sub(content.len() as u64).ok_or_else(does_not_fit)? & !(types::PAGE_SIZE as u64 - 1);
    if address < kernel_end.max(EXTENDED_START) {
        return Err(does_not_fit());
    }
    guest.write_slice(content, GuestAddress(address)).map_err(|_| does_not_fit())?;
    Ok(Placed { address, bytes: content.len() as u64 })
}

/// The user's command line. The built-in guest reads its devices and vCPUs there; every other kernel from the ACPI tables. `room` counts the NUL.
fn cmdline(images: &BootImages, hardware: &Hardware, room: usize) -> Result<String, VmmError> {
    let mut line = images.cmdline().trim().to_owned();
    if images.built_in() {
        for device in &hardware.mmio {
            line.push_str(&format!(" virtio_mmio.device=4K@{:#x}:{}", device.base, device.gsi));
        }
        line.push_str(&format!(" lockstep.cpus={}", hardware.vcpus));
    }
    if line.contains('\0') {
        return Err(VmmError::Config("the kernel command line contains a NUL byte".into()));
    }
    let room = room.min(CMDLINE_MAX);
    if line.len() >= room {
        return Err(VmmError::Config(format!("the kernel command line has {} bytes; at most {} fit", line.len(), room.saturating_sub(1))));
    }
    Ok(line)
}

fn write_cmdline(guest: &GuestMemory, line: &str) -> Result<(), VmmError> {
    let mut bytes = line.as_bytes().to_vec();
    bytes.push(0);
    guest.write_slice(&bytes, GuestAddress(CMDLINE)).map_err(|_| VmmError::DoesNotFit { what: "command line", bytes: bytes.len() as u64 })
}

/// Fills a range of guest memory with zeros where it is not zero already: an untouched page stays untouched.
fn fill_zero(guest: &GuestMemory, start: u64, length: u64) -> Result<(), VmmError> {
    let does_not_fit = |_| VmmError::DoesNotFit { what: "a kernel's empty segment", bytes: length };
    let zeros = [0u8; types::PAGE_SIZE];
    let mut found = [0u8; types::PAGE_SIZE];
    let mut at = start;
    while at < start + length {
        let piece = (start + length - at).min(types::PAGE_SIZE as u64) as usize;
        guest.read_slice(&mut found[..piece], GuestAddress(at)).map_err(does_not_fit)?;
        if found[..piece] != zeros[..piece] {
            guest.write_slice(&zeros[..piece], GuestAddress(at)).map_err(does_not_fit)?;
        }
        at += piece as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BootConfig, KernelImage, layout};

    fn images(kernel: KernelImage, cmdline: &str) -> BootImages {
        BootImages::open(&BootConfig { kernel, initramfs: None, cmdline: cmdline.into() }).expect("images")
    }

    fn hardware() -> Hardware {
        Hardware { vcpus: 3, mmio: (0..2).filter_map(layout::mmio_window).collect(), pci: false, generation_id: [0; 16] }
    }

    #[test]
    fn the_built_in_guests_command_line_names_every_device_and_the_vcpus() {
        let built_in = |line: &str| images(KernelImage::Bytes(b"\x7fELF"), line);
        assert_eq!(
            cmdline(&built_in("quiet"), &hardware(), CMDLINE_MAX).expect("fits"),
            "quiet virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0001000:6 lockstep.cpus=3"
        );
        assert!(cmdline(&built_in(&"x".repeat(CMDLINE_MAX)), &hardware(), CMDLINE_MAX).is_err());
        assert!(cmdline(&built_in("a\0b"), &hardware(), CMDLINE_MAX).is_err());
    }

    #[test]
    fn any_other_kernels_command_line_is_the_users_own() {
        let own = images(KernelImage::Path("/proc/self/exe".into()), " console=ttyS0 ");
        assert_eq!(cmdline(&own, &hardware(), CMDLINE_MAX).expect("fits"), "console=ttyS0");
        assert!(cmdline(&own, &hardware(), 13).is_err() && cmdline(&own, &hardware(), 14).is_ok());
    }
}
