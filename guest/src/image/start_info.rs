//! What the VMM hands over at a PVH start: the command line and the memory map.

use guest::layout::{MOST_RANGES, Range};

/// Longest command line looked at.
const MOST_LINE: usize = 4096;
/// Most entries of the memory map looked at.
const MOST_ENTRIES: usize = 128;
/// RAM in the memory map.
const TYPE_RAM: u32 = 1;
const MAGIC: u32 = 0x336e_c578;

#[repr(C)]
#[derive(Clone, Copy)]
struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    modules: u32,
    module_list: u64,
    command_line: u64,
    rsdp: u64,
    memory_map: u64,
    memory_map_entries: u32,
    reserved: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct MapEntry {
    address: u64,
    size: u64,
    kind: u32,
    reserved: u32,
}

/// Command line and RAM ranges.
pub struct Start {
    /// The line, without its end.
    pub line: &'static [u8],
    /// RAM; empty ranges are unused.
    pub ram: [Range; MOST_RANGES],
}

/// Reads what the VMM left at `address`.
///
/// # Safety
/// `address` must be the one that the VMM passed in EBX, and nothing may have overwritten low memory yet; the line is valid until then.
pub unsafe fn read(address: u64) -> Start {
    let mut start = Start { line: &[], ram: [Range::default(); MOST_RANGES] };
    // SAFETY: the VMM put a start-info structure there; any place in the first 4 GiB can be read.
    let info = unsafe { core::ptr::with_exposed_provenance::<StartInfo>(address as usize).read_unaligned() };
    if info.magic != MAGIC {
        return start;
    }
    if info.command_line != 0 {
        let line = core::ptr::with_exposed_provenance::<u8>(info.command_line as usize);
        // SAFETY: a string ended by zero, by the protocol, and cut at `MOST_LINE`.
        let length = (0..MOST_LINE).take_while(|&at| unsafe { line.add(at).read() } != 0).count();
        // SAFETY: these bytes have just been read.
        start.line = unsafe { core::slice::from_raw_parts(line, length) };
    }
    if info.version >= 1 {
        let map = core::ptr::with_exposed_provenance::<MapEntry>(info.memory_map as usize);
        let mut slots = start.ram.iter_mut();
        for index in 0..(info.memory_map_entries as usize).min(MOST_ENTRIES) {
            // SAFETY: the map has this many entries, by the protocol.
            let entry = unsafe { map.add(index).read_unaligned() };
            if entry.kind == TYPE_RAM
                && let Some(slot) = slots.next()
            {
                *slot = Range { start: entry.address, end: entry.address.saturating_add(entry.size) };
            }
        }
    }
    start
}
