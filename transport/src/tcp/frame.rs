//! What travels on the data connection. Towards the standby: frames of a 16-byte header, for a write followed by its bytes. Towards the
//! primary: once the shape of the staging, then credits, each the number of a free slot as a u32. All little endian. Not here: sockets,
//! and whether a frame is allowed at this moment ([`super::receiver`] checks that). Guards S7.

use crate::error::TransportError;
use crate::link::{Geometry, SlotId};

/// Length of a frame header, bytes.
pub(crate) const HEADER_BYTES: usize = 16;

/// Length of the staging's shape as it is announced, bytes.
pub(crate) const SHAPE_BYTES: usize = 12;

/// Length of one credit, bytes.
pub(crate) const CREDIT_BYTES: usize = 4;

const KIND_WRITE: u32 = u32::from_le_bytes(*b"WRIT");
const KIND_END: u32 = u32::from_le_bytes(*b"END ");
const SHAPE_MAGIC: u32 = u32::from_le_bytes(*b"SLOT");

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    /// `len` bytes follow, to be put at `offset` in `slot`.
    Write { slot: SlotId, offset: u32, len: u32 },
    /// The first `len` bytes of `slot` are complete.
    End { slot: SlotId, len: u32 },
}

impl Frame {
    pub(crate) fn encode(self) -> [u8; HEADER_BYTES] {
        let (kind, slot, offset, len) = match self {
            Frame::Write { slot, offset, len } => (KIND_WRITE, slot.0, offset, len),
            Frame::End { slot, len } => (KIND_END, slot.0, 0, len),
        };
        let mut bytes = [0; HEADER_BYTES];
        for (field, value) in bytes.chunks_exact_mut(4).zip([kind, slot, offset, len]) {
            field.copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Frame, TransportError> {
        let [kind, slot, offset, len] = words(bytes);
        match kind {
            KIND_WRITE => Ok(Frame::Write { slot: SlotId(slot), offset, len }),
            KIND_END if offset == 0 => Ok(Frame::End { slot: SlotId(slot), len }),
            KIND_END => Err(TransportError::protocol(format!("end of slot {slot} with offset {offset}"))),
            other => Err(TransportError::protocol(format!("frame of unknown kind {other:#010x}"))),
        }
    }
}

pub(crate) fn encode_shape(geometry: Geometry) -> [u8; SHAPE_BYTES] {
    let mut bytes = [0; SHAPE_BYTES];
    for (field, value) in bytes.chunks_exact_mut(4).zip([SHAPE_MAGIC, geometry.slots, geometry.slot_bytes]) {
        field.copy_from_slice(&value.to_le_bytes());
    }
    bytes
}

pub(crate) fn decode_shape(bytes: &[u8; SHAPE_BYTES]) -> Result<Geometry, TransportError> {
    let [magic, slots, slot_bytes] = words(bytes);
    if magic != SHAPE_MAGIC {
        return Err(TransportError::protocol(format!("the shape of the staging starts with {magic:#010x}")));
    }
    Ok(Geometry { slots, slot_bytes })
}

fn words<const BYTES: usize, const WORDS: usize>(bytes: &[u8; BYTES]) -> [u32; WORDS] {
    const { assert!(BYTES == WORDS * 4) };
    std::array::from_fn(|i| u32::from_le_bytes([bytes[i * 4], bytes[i * 4 + 1], bytes[i * 4 + 2], bytes[i * 4 + 3]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes() {
        let write = Frame::Write { slot: SlotId(3), offset: 0x1000, len: 0x20 };
        assert_eq!(&write.encode(), b"WRIT\x03\0\0\0\0\x10\0\0\x20\0\0\0");
        assert_eq!(&Frame::End { slot: SlotId(3), len: 0x1020 }.encode(), b"END \x03\0\0\0\0\0\0\0\x20\x10\0\0");
        assert_eq!(&encode_shape(Geometry { slots: 2, slot_bytes: 4096 }), b"SLOT\x02\0\0\0\0\x10\0\0");
    }

    #[test]
    fn unknown_kinds_are_named() {
        let error = Frame::decode(b"GET / HTTP/1.1\r\n").unwrap_err();
        assert!(error.to_string().contains("unknown kind 0x20544547"), "{error}");
    }
}
