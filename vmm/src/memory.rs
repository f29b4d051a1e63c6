//! Guest memory: where it lies, what it is made of, and that the host can hold it.
//!
//! Lives here: the one place that allocates guest memory. Not here: what is loaded into it. Guards S5: one region per KVM slot, each with its own
//! bitmap for the VMM's writes.

use std::{fs, io, os::fd::FromRawFd};

use dirty_tracking::{Layout, Slot, WriteLog};
use types::{Gfn, PAGE_SIZE};
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend as _, GuestMemoryMmap, GuestRegionMmap, MmapRegion, bitmap::NewBitmap as _,
    mmap::MmapRegionBuilder,
};

use crate::{Backing, GuestMemory, MemoryConfig, VmmError, raw};

/// End of the first slot: 1 GiB below 4 GiB is left for device windows, the IOAPIC, the LAPIC and the firmware's place.
pub const LOW_MEMORY_END: u64 = 3 << 30;
/// Where memory goes on above the hole.
pub const HIGH_MEMORY_START: u64 = 4 << 30;
/// Less than this holds no kernel: the image is loaded at 1 MiB or above.
const SMALLEST: u64 = 2 << 20;
const HUGE_PAGE: u64 = 2 << 20;

fn config(reason: String) -> VmmError {
    VmmError::Config(reason)
}

/// Checks the size before anything is allocated.
fn check(memory: &MemoryConfig) -> Result<(), VmmError> {
    let bytes = memory.bytes;
    if bytes == 0 {
        return Err(config("guest memory is 0 bytes; give the guest at least 2 MiB".into()));
    }
    if !bytes.is_multiple_of(PAGE_SIZE as u64) {
        return Err(config(format!(
            "guest memory of {bytes} bytes is not a whole number of 4 KiB pages; use a multiple of 4096 (or say it in MiB)"
        )));
    }
    if bytes < SMALLEST {
        return Err(config(format!("guest memory of {bytes} bytes cannot hold a kernel; give the guest at least 2 MiB")));
    }
    if memory.backing == Backing::HugePages && !bytes.is_multiple_of(HUGE_PAGE) {
        return Err(config(format!("guest memory of {bytes} bytes is not a whole number of 2 MiB huge pages")));
    }
    let total = host_memory().map_err(|source| config(format!("cannot read the host's memory size from /proc/meminfo: {source}")))?;
    if bytes > total {
        return Err(config(format!(
            "guest memory of {} MiB is more than the host's {} MiB; give the guest less",
            bytes >> 20,
            total >> 20
        )));
    }
    Ok(())
}

fn host_memory() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let kib = text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.map(|kib| kib * 1024).ok_or_else(|| io::Error::other("no MemTotal line"))
}

/// The ranges of guest physical memory for `bytes` of it, in order of slots.
pub(crate) fn ranges(bytes: u64) -> Vec<(u64, u64)> {
    let low = bytes.min(LOW_MEMORY_END);
    let mut ranges = vec![(0, low)];
    if bytes > low {
        ranges.push((HIGH_MEMORY_START, bytes - low));
    }
    ranges
}

/// The first address behind guest memory of `bytes`.
pub(crate) fn end(bytes: u64) -> u64 {
    ranges(bytes).last().map_or(0, |(start, length)| start + length)
}

/// Maps guest memory. Nothing is touched: the host gives pages as they are used.
pub(crate) fn map(memory: &MemoryConfig) -> Result<(GuestMemory, Layout), VmmError> {
    check(memory)?;
    let failed = |reason: String| VmmError::Memory {
        mib: memory.bytes >> 20,
        reason,
        remedy: match memory.backing {
            Backing::HugePages => "reserve enough huge pages (sysctl vm.nr_hugepages) or use anonymous memory",
            _ => "free memory on the host, raise the process's limit (ulimit -v), or give the guest less",
        },
    };
    let mut regions = Vec::new();
    let mut slots = Vec::new();
    for (number, (start, bytes)) in ranges(memory.bytes).into_iter().enumerate() {
        let size = bytes as usize;
        let region = region(memory.backing, size).map_err(&failed)?;
        if memory.backing == Backing::Anonymous {
            raw::advise_huge_pages(region.as_ptr(), size);
        }
        slots.push(Slot {
            number: number as u32,
            first: Gfn(start / PAGE_SIZE as u64),
            pages: bytes / PAGE_SIZE as u64,
            host_address: region.as_ptr() as u64,
        });
        let region = GuestRegionMmap::new(region, GuestAddress(start));
        regions.push(region.ok_or_else(|| failed("the range ends beyond the guest's address space".into()))?);
    }
    let mapped = GuestMemoryMmap::from_regions(regions).map_err(|error| failed(error.to_string()))?;
    debug_assert_eq!(mapped.num_regions(), slots.len());
    Ok((mapped, Layout::new(slots)))
}

fn region(backing: Backing, size: usize) -> Result<MmapRegion<WriteLog>, String> {
    let builder = MmapRegionBuilder::new_with_bitmap(size, WriteLog::with_len(size)).with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE);
    let builder = match backing {
        Backing::Anonymous => builder.with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE),
        Backing::HugePages => builder.with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB | libc::MAP_HUGE_2MB),
        Backing::Memfd => {
            let file = memfd(size as u64).map_err(|error| format!("memfd: {error}"))?;
            builder.with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE).with_file_offset(FileOffset::new(file, 0))
        }
    };
    builder.build().map_err(|error| error.to_string())
}

fn memfd(size: u64) -> io::Result<fs::File> {
    // SAFETY: a NUL-terminated name and a valid flag; the answer is checked.
    let fd = unsafe { libc::memfd_create(c"lockstep-guest-memory".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor just made, owned by nobody else.
    let file = unsafe { fs::File::from_raw_fd(fd) };
    file.set_len(size)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(bytes: u64) -> String {
        map(&MemoryConfig { bytes, backing: Backing::Anonymous }).expect_err("must be refused").to_string()
    }

    #[test]
    fn memory_that_is_zero_odd_tiny_or_more_than_the_host_has_is_refused_with_a_reason() {
        assert!(refusal(0).contains("0 bytes"));
        assert!(refusal((64 << 20) + 1).contains("4 KiB"));
        assert!(refusal(4096).contains("at least 2 MiB"));
        assert!(refusal(1 << 50).contains("more than the host"));
    }

    #[test]
    fn memory_above_three_gib_goes_on_behind_the_hole() {
        assert_eq!(ranges(1 << 30), [(0, 1 << 30)]);
        assert_eq!(ranges(5 << 30), [(0, 3 << 30), (4 << 30, 2 << 30)]);
    }
}
