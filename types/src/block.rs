//! Blocks: what a virtual disk is asked, what it answers, and what a write looks like while it travels to the standby.
//!
//! Lives here: plain data that the machine's disk device, the disk-buffer and the wire format all speak of. Not here: who carries a request out
//! (disk-buffer), rings (vmm), encoding (checkpoint). Guards S5: a request owns its data, copied out of guest memory, so nothing outside of the device worker
//! ever touches guest memory for a disk.
//!
//! Offsets and lengths are bytes, always multiples of [`SECTOR`], and lie within the disk: the device checks that before it asks.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The unit of every offset and length (virtio 1.2, section 5.2.6: "the sector number indicates the offset (multiplied by 512)").
pub const SECTOR: u64 = 512;

/// Most data bytes in one read or write. The issue asks for requests of up to 1 MiB; copying so much is also about the longest (0.1 to 0.2 ms) that a
/// pause may wait for the device worker.
pub const REQUEST_BYTES_MAX: usize = 1 << 20;

/// Most bytes in one discard: it names a range and carries no data, but a file system may take its time.
pub const DISCARD_BYTES_MAX: u64 = 1 << 30;

/// Most bytes in one write of zeroes: where the image cannot be told to hold zeroes, they have to be written.
pub const ZEROES_BYTES_MAX: u64 = 64 << 20;

/// Requests in flight on one disk at most: the size of its queue, each request taking at least one descriptor.
pub const REQUESTS_MAX: usize = 256;

/// A virtual disk by its place in the machine's configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DiskIndex(pub u8);

impl fmt::Display for DiskIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "disk{}", self.0)
    }
}

/// What the guest sees of a disk. Part of the guest's shape: equal on every host that may run it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockInfo {
    /// Size, a multiple of [`SECTOR`].
    pub bytes: u64,
    /// The guest may not write.
    pub read_only: bool,
    /// Smallest unit that the guest should address: 512, or what the medium wants, a power of two.
    pub logical_block: u32,
    /// Unit in which the medium works best: a power of two, at least `logical_block`, typically 4096.
    pub physical_block: u32,
    /// Serial number as the guest reads it (virtio 1.2, section 5.2.6.1): ASCII, zero-padded, not terminated when all 20 bytes are used.
    pub serial: [u8; 20],
}

/// One request of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockRequest {
    /// Chosen by the device; unique among a disk's requests in flight, never used again while the process lives.
    pub tag: u64,
    /// What is asked.
    pub op: BlockOp,
}

/// What can be asked of a disk. Every backend takes all of it.
#[derive(Clone, PartialEq, Eq)]
pub enum BlockOp {
    /// `len` bytes from `offset`, at most [`REQUEST_BYTES_MAX`].
    Read {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: u32,
    },
    /// `data` to `offset`, at most [`REQUEST_BYTES_MAX`] bytes. Shared, so that the same bytes can be written here, kept for the epoch and sent without a copy.
    Write {
        /// First byte.
        offset: u64,
        /// What to write.
        data: Arc<[u8]>,
    },
    /// All writes that were answered before this was submitted are to be durable when it is answered.
    Flush,
    /// The content of the range no longer matters, at most [`DISCARD_BYTES_MAX`]. A backend that cannot give space back answers with success.
    Discard {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: u64,
    },
    /// The range reads as zeroes afterwards, at most [`ZEROES_BYTES_MAX`].
    WriteZeroes {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: u64,
        /// The space may be given back.
        may_unmap: bool,
    },
}

/// Lengths instead of content: a request in a log or a failed assertion should not print a megabyte.
impl fmt::Debug for BlockOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BlockOp::Read { offset, len } => write!(f, "Read({offset:#x}, {len} bytes)"),
            BlockOp::Write { offset, data } => write!(f, "Write({offset:#x}, {} bytes)", data.len()),
            BlockOp::Flush => f.write_str("Flush"),
            BlockOp::Discard { offset, len } => write!(f, "Discard({offset:#x}, {len} bytes)"),
            BlockOp::WriteZeroes { offset, len, may_unmap } => write!(f, "WriteZeroes({offset:#x}, {len} bytes, may_unmap: {may_unmap})"),
        }
    }
}

/// The answer to one request, given exactly once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockDone {
    /// The request's tag.
    pub tag: u64,
    /// For a read that succeeded the data, exactly as long as asked for; `None` for everything else that succeeded.
    pub result: Result<Option<Box<[u8]>>, BlockError>,
}

/// Why a request failed, as far as the guest can be told (virtio-blk knows two failures: input/output error, and unsupported).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// The medium failed; the number is the system's (errno).
    #[error("input/output error: {}", std::io::Error::from_raw_os_error(*.0))]
    Io(i32),
    /// A write to a disk that is read-only.
    #[error("the disk is read-only")]
    ReadOnly,
    /// The range is not on the disk.
    #[error("the range is not on the disk")]
    OutOfRange,
    /// The medium cannot do this.
    #[error("the disk does not support this operation")]
    Unsupported,
}

/// One change of a disk's content, as it is kept for its epoch and travels to the standby. Replayed in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskWrite {
    /// Which disk.
    pub disk: DiskIndex,
    /// First byte.
    pub offset: u64,
    /// What becomes of the bytes from there.
    pub change: DiskChange,
}

/// What a [`DiskWrite`] does.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskChange {
    /// They become these.
    Data(#[serde(with = "shared_bytes")] Arc<[u8]>),
    /// So many become zero.
    Zeroes {
        /// Number of bytes.
        len: u64,
        /// The space may be given back.
        may_unmap: bool,
    },
    /// So many no longer matter.
    Discard {
        /// Number of bytes.
        len: u64,
    },
}

impl DiskWrite {
    /// Number of bytes on the disk that it changes.
    #[must_use]
    pub fn len(&self) -> u64 {
        match &self.change {
            DiskChange::Data(data) => data.len() as u64,
            DiskChange::Zeroes { len, .. } | DiskChange::Discard { len } => *len,
        }
    }

    /// Changes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of content that it carries: what it costs in memory and on the wire.
    #[must_use]
    pub fn payload(&self) -> usize {
        match &self.change {
            DiskChange::Data(data) => data.len(),
            DiskChange::Zeroes { .. } | DiskChange::Discard { .. } => 0,
        }
    }
}

impl fmt::Debug for DiskChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DiskChange::Data(data) => write!(f, "Data({} bytes)", data.len()),
            DiskChange::Zeroes { len, may_unmap } => write!(f, "Zeroes({len} bytes, may_unmap: {may_unmap})"),
            DiskChange::Discard { len } => write!(f, "Discard({len} bytes)"),
        }
    }
}

/// Shared bytes as one run of bytes instead of a sequence of numbers: an encoder copies it at once.
mod shared_bytes {
    use std::fmt;
    use std::sync::Arc;

    use serde::de::{Error, SeqAccess, Visitor};
    use serde::{Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &Arc<[u8]>, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_bytes(bytes)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Arc<[u8]>, D::Error> {
        from.deserialize_byte_buf(Bytes)
    }

    struct Bytes;

    impl<'de> Visitor<'de> for Bytes {
        type Value = Arc<[u8]>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("bytes")
        }

        fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Arc<[u8]>, E> {
            Ok(bytes.into())
        }

        fn visit_byte_buf<E: Error>(self, bytes: Vec<u8>) -> Result<Arc<[u8]>, E> {
            Ok(bytes.into())
        }

        // Formats without bytes of their own (JSON) write numbers.
        fn visit_seq<A: SeqAccess<'de>>(self, mut numbers: A) -> Result<Arc<[u8]>, A::Error> {
            let mut bytes = Vec::new();
            while let Some(byte) = numbers.next_element()? {
                bytes.push(byte);
            }
            Ok(bytes.into())
        }
    }
}

/// Whether a disk refused a request because another node holds a reservation on it (a failed nexus, SAM's RESERVATION CONFLICT): the kernel's block layer makes EBADE of that, for SCSI, NVMe and device-mapper alike
/// (`blk_errors` in block/blk-core.c), also for O_DIRECT through io_uring.
#[must_use]
pub fn is_reservation_conflict(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(nix::errno::Errno::EBADE as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(bytes: &[u8]) -> DiskWrite {
        DiskWrite { disk: DiskIndex(3), offset: 0x2000, change: DiskChange::Data(bytes.into()) }
    }

    #[test]
    fn a_disk_write_survives_a_text_format() {
        let zeroes = DiskWrite { change: DiskChange::Zeroes { len: 1 << 20, may_unmap: true }, ..data(&[]) };
        let discard = DiskWrite { change: DiskChange::Discard { len: 4096 }, ..data(&[]) };
        for write in [data(&[]), data(&[7; 700]), zeroes, discard] {
            let text = serde_json::to_string(&write).unwrap();
            assert_eq!(serde_json::from_str::<DiskWrite>(&text).unwrap(), write);
        }
    }

    #[test]
    fn only_a_refusal_for_another_nodes_reservation_is_one() {
        assert!(is_reservation_conflict(&std::io::Error::from_raw_os_error(52)));
        for other in [5, 28, 121, 125] {
            assert!(!is_reservation_conflict(&std::io::Error::from_raw_os_error(other)));
        }
    }

    #[test]
    fn a_request_prints_lengths_not_content() {
        let write = BlockOp::Write { offset: 512, data: vec![0; 1 << 20].into() };
        assert_eq!(format!("{write:?}"), "Write(0x200, 1048576 bytes)");
    }
}
