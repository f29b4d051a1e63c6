//! Memory that direct requests can use: aligned to 4096 bytes.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

/// Alignment of every buffer: enough for every medium that is used directly.
const ALIGN: usize = 4096;

/// Zeroed bytes at an aligned address.
#[derive(Debug)]
pub(crate) struct Buffer {
    at: NonNull<u8>,
    len: usize,
}

// SAFETY: the memory belongs to the buffer alone, as a Box's does.
unsafe impl Send for Buffer {}

impl Buffer {
    pub(crate) fn zeroed(len: usize) -> Buffer {
        let layout = layout(len);
        // SAFETY: the layout's size is not zero.
        let at = unsafe { alloc_zeroed(layout) };
        match NonNull::new(at) {
            Some(at) => Buffer { at, len },
            None => handle_alloc_error(layout),
        }
    }

    pub(crate) fn copy_of(bytes: &[u8]) -> Buffer {
        let mut buffer = Buffer::zeroed(bytes.len());
        buffer.copy_from_slice(bytes);
        buffer
    }
}

fn layout(len: usize) -> Layout {
    // At most REQUEST_BYTES_MAX or a bounded unit of this crate: no overflow when rounded up.
    Layout::from_size_align(len.max(1), ALIGN).unwrap_or(Layout::new::<[u8; ALIGN]>())
}

impl std::ops::Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `len` initialised bytes that live as long as self, and nobody writes to them while self is shared.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.len) }
    }
}

impl std::ops::DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and self is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), self.len) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with the same layout.
        unsafe { dealloc(self.at.as_ptr(), layout(self.len)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_aligned_and_holds_what_was_copied() {
        for len in [0, 1, 512, 4097, 1 << 20] {
            let bytes: Vec<u8> = (0..len).map(|i| i as u8).collect();
            let buffer = Buffer::copy_of(&bytes);
            assert_eq!(buffer.as_ptr() as usize % ALIGN, 0);
            assert_eq!(&buffer[..], &bytes[..]);
        }
    }
}
