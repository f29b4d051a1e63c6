//! The tail of an epoch: machine state, pending output, disk writes and, on request, the digest of all memory.
//!
//! Lives here: its structure and its bytes. Not here: how it is spread over parts (`epoch_parts`), and the epoch digest, which the encoder adds behind
//! it. Guards S4 (output and disk writes of a committed epoch are at the standby), S5 (`--verify-memory`) and S7 (no disk write reaches outside its disk).
//!
//! Long byte strings are written as bytes, not as sequences of numbers: a tail is on the way of every commit.

use serde::{Deserialize, Serialize};
use types::block::{DiskIndex, DiskWrite, SECTOR};
use types::{Gfn, Output, OutputPort};

use crate::Page;
use crate::codec::{self, CodecError};
use crate::digest::page_digest;
use crate::map::GuestMap;

/// What an epoch carries beside pages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EpochTail {
    /// The machine's state at the end of the epoch, as `vmm` encodes it.
    pub machine: Vec<u8>,
    /// The output of the epoch, in order.
    pub output: Vec<Output>,
    /// Digest of all guest memory at the end of the epoch, with `--verify-memory`.
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

    /// A tail from its bytes.
    ///
    /// # Errors
    /// [`CodecError`].
    pub fn decode(bytes: &[u8]) -> Result<EpochTail, CodecError> {
        let wire: OwnedTail = codec::decode(bytes)?;
        let memory = wire.memory.map(|regions| MemoryDigest {
            regions: regions
                .into_iter()
                .map(|region| RegionDigest {
                    first: region.first,
                    pages: region.pages.0.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect(),
                })
                .collect(),
        });
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

/// A digest of every page of guest memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryDigest {
    regions: Vec<RegionDigest>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct RegionDigest {
    first: Gfn,
    pages: Vec<u32>,
}

/// The first difference between two memories.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemoryDifference {
    /// The memories do not have the same pages.
    #[error("the two memories are laid out differently: {ours} pages here, {theirs} there")]
    Layout {
        /// Pages of this one.
        ours: u64,
        /// Pages of the other.
        theirs: u64,
    },
    /// A page differs.
    #[error("page {first} differs (digest {ours:#010x} here, {theirs:#010x} there), and {count} pages in all")]
    Pages {
        /// The first page that differs.
        first: Gfn,
        /// Its digest here.
        ours: u32,
        /// Its digest there.
        theirs: u32,
        /// How many pages differ.
        count: u64,
    },
}

impl MemoryDigest {
    /// Digests every page of `map`; `page` returns a page's content. (Memory that may not be borrowed: [`MemoryDigest::of_digests`].)
    pub fn compute<'p>(map: &GuestMap, mut page: impl FnMut(Gfn) -> &'p Page) -> MemoryDigest {
        MemoryDigest::of_digests(map, |gfn| page_digest(page(gfn)))
    }

    /// Made from every page's digest ([`page_digest`]), as `digest` returns it.
    pub fn of_digests(map: &GuestMap, mut digest: impl FnMut(Gfn) -> u32) -> MemoryDigest {
        let region = |range: &std::ops::Range<u64>| RegionDigest {
            first: Gfn(range.start),
            pages: range.clone().map(|gfn| digest(Gfn(gfn))).collect(),
        };
        MemoryDigest { regions: map.ranges().iter().map(region).collect() }
    }

    /// Number of pages.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.regions.iter().map(|region| region.pages.len() as u64).sum()
    }

    /// Compares this memory with the peer's.
    ///
    /// # Errors
    /// [`MemoryDifference`], naming the first page that differs.
    pub fn compare(&self, theirs: &MemoryDigest) -> Result<(), MemoryDifference> {
        let layout = |digest: &MemoryDigest| digest.regions.iter().map(|r| (r.first, r.pages.len())).collect::<Vec<_>>();
        if layout(self) != layout(theirs) {
            return Err(MemoryDifference::Layout { ours: self.pages(), theirs: theirs.pages() });
        }
        let mut differing = self.digests().zip(theirs.digests()).filter(|((_, ours), (_, theirs))| ours != theirs);
        let Some(((first, ours), (_, theirs))) = differing.next() else {
            return Ok(());
        };
        Err(MemoryDifference::Pages { first, ours, theirs, count: 1 + differing.count() as u64 })
    }

    fn digests(&self) -> impl Iterator<Item = (Gfn, u32)> + '_ {
        self.regions.iter().flat_map(|region| region.pages.iter().zip(region.first.0..).map(|(digest, gfn)| (Gfn(gfn), *digest)))
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
