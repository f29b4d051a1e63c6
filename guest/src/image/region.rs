//! The memory that the layout sets aside, made into pointers: the DIRTY region, its ledger, socket buffers; and page tables above 4 GiB.

use core::cell::UnsafeCell;

use guest::dirtier::Region;
use guest::layout::{Layout, RECEIVE_BUFFER, SEND_BUFFER};
use guest::stamp::PAGE_WORDS;

use crate::boot::boot_pdpt;

const GIB: u64 = 1 << 30;
/// GiB that boot's tables map already.
const MAPPED: usize = 4;
/// GiB that can be mapped: `guest::layout::MOST_ADDRESS`.
const MOST_MAPPED: usize = (guest::layout::MOST_ADDRESS / GIB) as usize;
/// Large page: present, writable, user, accessed, dirty.
const LARGE_PAGE: u64 = 0xe7;
/// Table: present, writable, user, accessed, dirty.
const TABLE: u64 = 0x67;

#[repr(C, align(4096))]
struct Tables([[u64; 512]; MOST_MAPPED - MAPPED]);
static mut TABLES: Tables = Tables([[0; 512]; MOST_MAPPED - MAPPED]);

struct Global(UnsafeCell<Option<Layout>>);
// SAFETY: written once by vCPU 0 before the others are started, read only after that.
unsafe impl Sync for Global {}
static LAYOUT: Global = Global(UnsafeCell::new(None));

/// Maps what the layout uses above 4 GiB and makes the layout known. Called once, by vCPU 0, before any other vCPU runs.
pub fn init(layout: &Layout) {
    let end = layout.region.iter().map(|range| range.end).max().unwrap_or(0);
    let gibs = (end.div_ceil(GIB) as usize).min(MOST_MAPPED);
    for slot in 0..gibs.saturating_sub(MAPPED) {
        let gib = slot + MAPPED;
        // SAFETY: tables of this vCPU alone; entries go from not present to present, which needs no flush.
        unsafe {
            let table = &raw mut TABLES.0[slot];
            for (index, entry) in (*table).iter_mut().enumerate() {
                *entry = (gib as u64 * GIB + ((index as u64) << 21)) | LARGE_PAGE;
            }
            (&raw mut boot_pdpt[gib]).write_volatile(table.expose_provenance() as u64 | TABLE);
        }
    }
    // SAFETY: before any other vCPU runs, and nothing holds a reference.
    unsafe { *LAYOUT.0.get() = Some(*layout) };
}

/// The layout in use.
pub fn layout() -> &'static Layout {
    // SAFETY: not written any more after `init`.
    match unsafe { &*LAYOUT.0.get() } {
        Some(layout) => layout,
        None => panic!("the memory layout is used before it is made"),
    }
}

/// The buffers of a connection, receive and send; each index is to be asked for once.
pub fn socket_buffers(index: u64) -> (&'static mut [u8], &'static mut [u8]) {
    let layout = layout();
    assert!(index < layout.connections, "connection {index} has no buffers");
    let start = layout.sockets.start + index * (RECEIVE_BUFFER + SEND_BUFFER);
    let slice = |start: u64, length: u64| {
        let pointer = core::ptr::with_exposed_provenance_mut::<u8>(start as usize);
        // SAFETY: mapped memory that the layout gives to this connection only, and the caller asks once.
        unsafe { core::slice::from_raw_parts_mut(pointer, length as usize) }
    };
    (slice(start, RECEIVE_BUFFER), slice(start + RECEIVE_BUFFER, SEND_BUFFER))
}

/// The DIRTY region. vCPUs work on disjoint slices of it.
pub struct Memory;

impl Region for Memory {
    fn page(&mut self, page: u64) -> &mut [u64; PAGE_WORDS] {
        match layout().page_address(page) {
            // SAFETY: a whole mapped page of the region; plans and slices keep each page to one vCPU, and `check` runs while all are stopped.
            Some(address) => unsafe { &mut *core::ptr::with_exposed_provenance_mut(address as usize) },
            None => panic!("page {page} is not in the DIRTY region"),
        }
    }

    fn ledger(&mut self, page: u64) -> &mut u32 {
        let address = layout().ledger.start + page * 4;
        assert!(address < layout().ledger.end, "page {page} has no ledger entry");
        // SAFETY: an aligned word of the ledger, which has one for every page of the region; one vCPU per page as above.
        unsafe { &mut *core::ptr::with_exposed_provenance_mut(address as usize) }
    }
}
