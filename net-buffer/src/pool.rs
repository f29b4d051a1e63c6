//! Frame buffers used again, so that the steady state allocates nothing per frame.

/// Buffers kept for reuse: as many as the default soft limit in frames holds.
const POOL_BUFFERS: usize = 1024;

/// A buffer that has grown beyond this is given back to the allocator: the pool must not keep 64 KiB frames for a guest that sends small ones.
const POOL_BUFFER_BYTES: usize = 4096;

#[derive(Default)]
pub(crate) struct Pool {
    free: Vec<Vec<u8>>,
}

impl Pool {
    pub(crate) fn copy_of(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut buffer = self.free.pop().unwrap_or_default();
        buffer.extend_from_slice(bytes);
        buffer
    }

    pub(crate) fn give_back(&mut self, mut buffer: Vec<u8>) {
        if self.free.len() < POOL_BUFFERS && buffer.capacity() <= POOL_BUFFER_BYTES {
            buffer.clear();
            self.free.push(buffer);
        }
    }
}
