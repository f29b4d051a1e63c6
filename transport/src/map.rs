//! One anonymous memory mapping with an owner. Lives here: mmap, madvise and munmap. Not here: who may read or write which bytes when
//! ([`crate::region`], [`crate::staging`]).

use std::io;
use std::ptr::NonNull;

use crate::error::TransportError;

/// Anonymous private memory, zero at first, page aligned, of fixed length; unmapped on drop.
pub(crate) struct Map {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is plain memory owned by this value; access to its bytes is arbitrated by the types around it.
unsafe impl Send for Map {}
// SAFETY: as above; `Map` itself only hands out its address and length.
unsafe impl Sync for Map {}

impl Map {
    /// Reserves `len` bytes (rounded up to pages). Pages are taken from the host only when first touched.
    pub(crate) fn new(len: usize) -> Result<Map, TransportError> {
        if len == 0 || len > isize::MAX as usize - types::PAGE_SIZE {
            return Err(TransportError::Misuse(format!("a memory area of {len} bytes cannot be mapped")));
        }
        let len = len.next_multiple_of(types::PAGE_SIZE);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice aliases nothing.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        let failed =
            || TransportError::Io { what: format!("reserving {len} bytes of memory for replication"), source: io::Error::last_os_error() };
        if base == libc::MAP_FAILED {
            return Err(failed());
        }
        let base = NonNull::new(base.cast::<u8>()).ok_or_else(failed)?;
        // SAFETY: advice on exactly the mapping just made; it does not change contents. A refusal costs speed only, so it is not checked.
        unsafe { libc::madvise(base.as_ptr().cast(), len, libc::MADV_HUGEPAGE) };
        Ok(Map { base, len })
    }

    /// No memory at all, where a value is needed after a failure.
    pub(crate) fn empty() -> Map {
        Map { base: NonNull::dangling(), len: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        if self.len == 0 {
            return;
        }
        // SAFETY: exactly the range mapped in `new`; whoever hands out addresses keeps the `Map` alive as long as they are used.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}
