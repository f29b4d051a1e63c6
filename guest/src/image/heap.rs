//! The heap: a TLSF allocator (constant time, merges freed neighbours) over the range that the layout sets aside.
//!
//! Only vCPU 0 allocates: the other vCPUs run `smp::worker`, which does not. So there is no lock. Fresh memory is touched only
//! when it is handed out.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ptr::NonNull;

use guest::layout::Range;
use rlsf::Tlsf;

/// 26 first-level classes of 32 bytes and up: blocks to 1 GiB, twice the largest heap.
type Pool = Tlsf<'static, u32, u32, 26, 32>;

struct Heap(UnsafeCell<Pool>);

// SAFETY: used by vCPU 0 alone, and not by interrupt handlers.
unsafe impl Sync for Heap {}

#[global_allocator]
static HEAP: Heap = Heap(UnsafeCell::new(Pool::new()));

/// Gives the range to the heap. Called once, by vCPU 0, before anything is allocated.
///
/// # Safety
/// The range must be mapped memory that nothing else uses.
pub unsafe fn init(range: Range) {
    let start = core::ptr::with_exposed_provenance_mut::<u8>(range.start as usize);
    if let Some(start) = NonNull::new(start) {
        let block = NonNull::slice_from_raw_parts(start, range.len() as usize);
        // SAFETY: vCPU 0 only; the caller gives the memory away for good.
        unsafe { (*HEAP.0.get()).insert_free_block_ptr(block) };
    }
}

// SAFETY: TLSF hands out disjoint blocks of the layout asked for, and null when it has none.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: vCPU 0 only.
        unsafe { (*self.0.get()).allocate(layout) }.map_or(core::ptr::null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        if let Some(pointer) = NonNull::new(pointer) {
            // SAFETY: vCPU 0 only; the pointer came from `alloc` with this alignment.
            unsafe { (*self.0.get()).deallocate(pointer, layout.align()) };
        }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let (Some(old), Ok(new)) = (NonNull::new(pointer), Layout::from_size_align(size, layout.align())) else {
            return core::ptr::null_mut();
        };
        // SAFETY: vCPU 0 only; the pointer came from `alloc` with this alignment.
        unsafe { (*self.0.get()).reallocate(old, new) }.map_or(core::ptr::null_mut(), NonNull::as_ptr)
    }
}
