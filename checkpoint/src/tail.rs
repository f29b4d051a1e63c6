//! The tail of an epoch: machine state, pending output, disk writes and, on request, the digest of a window of memory.
//!
//! Lives here: its structure and its bytes. Not here: how it is spread over parts (`epoch_parts`), the epoch digest, which the encoder adds behind
//! it, and what a digest of memory covers (`verify`). Guards S4 (output and disk writes of a committed epoch are at the standby), S5 (`--verify-memory`) and S7 (no disk write reaches outside its disk).
//!
//! Long byte strings are written as bytes, not as sequences of numbers: a tail is on the way of every commit.

use serde::{Deserialize, Serialize};
use types::block::{DiskIndex, DiskWrite, SECTOR};
use types::{Gfn, Output, OutputPort};

use crate::codec::{self, CodecError};
use crate::map::GuestMap;
use crate::verify::{MemoryDigest, RegionDigest, WrongWindow};

/// What an epoch carries beside pages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EpochTail {
    /// The machine's state at the end of the epoch, as `vmm` encodes it.
    pub machine: Vec<u8>,
    /// The output of the epoch, in order.
    pub output: Vec<Output>,
    /// Digest of the epoch's window of guest memory at its end, with `--verify-memory`.
    pub memory: Option<MemoryDigest>,
    /// What the guest changed on its disks in the epoch, in order.
    pub disks: Vec<DiskWrite>,
}

/// A tail to be written, borrowed from wherever its parts are.
#[derive(Clone, Copy, Debug, Default)]
pub struct TailRef<'a> {
    /// See [`EpochTail::machine`].
    pub machine: &'a [u8],
    /// See [`EpochTail::output`].
    pub output: &'a [Output],
    /// See [`EpochTail::memory`].
    pub memory: Option<&'a MemoryDigest>,
    /// See [`EpochTail::disks`].
    pub disks: &'a [DiskWrite],
}

/// A disk write that cannot be of this guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a write of {len} bytes at {offset:#x} is not within {disk}, or not in whole sectors")]
pub struct OutsideDisk {
    /// The disk it names.
    pub disk: DiskIndex,
    /// Its first byte.
    pub offset: u64,
    /// Its bytes.
    pub len: u64,
}

impl EpochTail {
    /// Appends the tail's bytes to `out`.
    ///
    /// # Errors
    /// [`CodecError`].
    pub fn encode_into(&self, out: &mut Vec<u8>) -> Result<usize, CodecError> {
        let EpochTail { machine, output, memory, disks } = self;
        TailRef { machine, output, memory: memory.as_ref(), disks }.encode_into(out)
    }

    /// Whether every disk write is within the disks of `map`, in whole sectors. To be asked before the epoch is committed.
    ///
    /// # Errors
    /// [`OutsideDisk`]: the first that is not.
    pub fn check_disks(&self, map: &GuestMap) -> Result<(), OutsideDisk> {
        let within = |write: &&DiskWrite| {
            let (offset, len) = (write.offset, write.len());
            let end = offset.checked_add(len);
            let sectors = offset.is_multiple_of(SECTOR) && len.is_multiple_of(SECTOR) && len > 0;
            sectors && map.disk_bytes(write.disk).zip(end).is_some_and(|(bytes, end)| end <= bytes)
        };
        match self.disks.iter().find(|write| !within(write)) {
            None => Ok(()),
            Some(write) => Err(OutsideDisk { disk: write.disk, offset: write.offset, len: write.len() }),
        }
    }

    /// Whether the digest of memory covers just `window`, which both nodes know from the setting and the epoch's number; `None`: there must be none. To be asked
    /// before the epoch is committed: a peer that names memory of its own choice would have this node digest what is not there, or never compare the rest.
    ///
    /// # Errors
    /// [`WrongWindow`].
    pub fn check_memory(&self, window: Option<&GuestMap>) -> Result<(), WrongWindow> {
        let wanted = window.map(GuestMap::ranges).unwrap_or_default();
        let named = self.memory.as_ref().map(MemoryDigest::ranges).unwrap_or_default();
        let same = window.is_some() == self.memory.is_some() && named.iter().cloned().eq(wanted.iter().map(|range| Some(range.clone())));
        if same {
            Ok(())
        } else {
            Err(WrongWindow { named: named.len(), pages: self.memory.as_ref().map_or(0, MemoryDigest::pages), wanted: wanted.to_vec() })
        }
    }

    /// A tail from its bytes.
    ///
    /// # Errors
    /// [`CodecError`].
    pub fn decode(bytes: &[u8]) -> Result<EpochTail, CodecError> {
        let wire: OwnedTail = codec::decode(bytes)?;
        let memory = wire.memory.map(|regions| regions.into_iter().map(WireRegion::digests).collect::<Result<_, _>>()).transpose()?;
        let memory = memory.map(|regions| MemoryDigest { regions });
        let output = wire.output.into_iter().map(|(port, bytes)| Output { port, bytes: bytes.0 }).collect();
        Ok(EpochTail { machine: wire.machine.0, output, memory, disks: wire.disks })
    }
}

impl TailRef<'_> {
    /// Appends the tail's bytes to `out`: what [`EpochTail::encode_into`] does, without owning anything.
    ///
    /// # Errors
    /// [`CodecError`].
    pub fn encode_into(&self, out: &mut Vec<u8>) -> Result<usize, CodecError> {
        let wire = BorrowedTail {
            machine: BytesRef(self.machine),
            output: self.output.iter().map(|output| (output.port, BytesRef(&output.bytes))).collect(),
            memory: self.memory.map(|memory| {
                memory
                    .regions
                    .iter()
                    .map(|region| WireRegion {
                        first: region.first,
                        pages: Bytes(region.pages.iter().flat_map(|digest| digest.to_le_bytes()).collect()),
                    })
                    .collect()
            }),
            disks: self.disks,
        };
        codec::encode_into(&wire, out)
    }
}

#[derive(Serialize)]
struct BorrowedTail<'a> {
    machine: BytesRef<'a>,
    output: Vec<(OutputPort, BytesRef<'a>)>,
    memory: Option<Vec<WireRegion>>,
    disks: &'a [DiskWrite],
}

#[derive(Deserialize)]
struct OwnedTail {
    machine: Bytes,
    output: Vec<(OutputPort, Bytes)>,
    memory: Option<Vec<WireRegion>>,
    disks: Vec<DiskWrite>,
}

#[derive(Serialize, Deserialize)]
struct WireRegion {
    first: Gfn,
    pages: Bytes,
}

impl WireRegion {
    fn digests(self) -> Result<RegionDigest, CodecError> {
        match self.pages.0.as_chunks() {
            (digests, []) => {
                Ok(RegionDigest { first: self.first, pages: digests.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect() })
            }
            (_, rest) => Err(CodecError::Trailing { what: "a digest of memory", extra: rest.len() }),
        }
    }
}

/// Bytes that serialise as one byte string.
struct BytesRef<'a>(&'a [u8]);

impl Serialize for BytesRef<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

struct Bytes(Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Bytes;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a byte string")
            }

            fn visit_byte_buf<E: serde::de::Error>(self, bytes: Vec<u8>) -> Result<Bytes, E> {
                Ok(Bytes(bytes))
            }

            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Bytes, E> {
                Ok(Bytes(bytes.to_vec()))
            }
        }
        deserializer.deserialize_byte_buf(Visitor)
    }
}
