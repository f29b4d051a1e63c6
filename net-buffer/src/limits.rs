//! How much output may wait. Not here: what happens at the limits ([`crate::Held`] tells the caller).

use crate::BufferError;

/// Largest piece of output: a virtio-net frame with segmentation offload, plus its headers.
pub const MAX_OUTPUT_BYTES: usize = 68 * 1024;

/// Bounds on everything that waits: held, sealed, and released but not yet written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// From this many frames on the epoch should end early.
    pub soft_frames: usize,
    /// From this many bytes on the epoch should end early.
    pub soft_bytes: usize,
    /// Never more frames than this; the device waits, nothing is dropped.
    pub hard_frames: usize,
    /// Never more bytes than this; the device waits, nothing is dropped.
    pub hard_bytes: usize,
}

impl Default for Limits {
    /// A virtio queue of 256 descriptors filled 16 times over, and what 10 Gbit/s can send in about 25 ms; the soft limits are a quarter,
    /// so that an epoch ended early commits before the guest has to be held still.
    fn default() -> Limits {
        Limits { soft_frames: 1024, soft_bytes: 8 << 20, hard_frames: 4096, hard_bytes: 32 << 20 }
    }
}

impl Limits {
    pub(crate) fn validate(self) -> Result<Limits, BufferError> {
        if self.soft_frames == 0 || self.soft_bytes == 0 {
            return Err(BufferError::Limits("a soft limit is zero"));
        }
        if self.soft_frames > self.hard_frames || self.soft_bytes > self.hard_bytes {
            return Err(BufferError::Limits("a soft limit is over its hard limit"));
        }
        if self.hard_bytes < MAX_OUTPUT_BYTES {
            return Err(BufferError::Limits("the hard limit in bytes is smaller than one large frame"));
        }
        Ok(self)
    }
}

/// What waits at this moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeldNow {
    /// Pieces of output.
    pub frames: usize,
    /// Their bytes.
    pub bytes: usize,
}

impl HeldNow {
    pub(crate) fn add(&mut self, bytes: usize) {
        self.frames += 1;
        self.bytes += bytes;
    }

    pub(crate) fn remove(&mut self, bytes: usize) {
        self.frames -= 1;
        self.bytes -= bytes;
    }

    pub(crate) fn over_soft(self, limits: &Limits) -> bool {
        self.frames >= limits.soft_frames || self.bytes >= limits.soft_bytes
    }

    pub(crate) fn fits(self, more: usize, limits: &Limits) -> bool {
        self.frames < limits.hard_frames && self.bytes + more <= limits.hard_bytes
    }
}
