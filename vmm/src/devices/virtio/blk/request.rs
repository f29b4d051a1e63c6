//! What a chain on the disk's queue asks (virtio 1.2, section 5.2.6).
//!
//! Lives here: finding header, data and status in a chain however the driver cut it (section 2.7.4.1: framing means nothing), and checking what is asked
//! against the disk. Not here: doing it ([`super::device`]). Guards S7: a request that is wrong but has a status byte gets the specification's error; one that
//! has none, or no header, breaks the device.

use types::block::{BlockInfo, DISCARD_BYTES_MAX, REQUEST_BYTES_MAX, SECTOR, ZEROES_BYTES_MAX};
use vm_memory::{Address, Bytes, GuestAddress};

use crate::GuestMemory;
use crate::devices::virtio::queue::{RingError, Segment};

/// The disk's only queue.
pub(super) const QUEUE: usize = 0;

/// `struct virtio_blk_req` up to its data: type, reserved, sector.
const HEADER: usize = 16;
/// `struct virtio_blk_discard_write_zeroes`: sector, number of sectors, flags.
const RANGE: usize = 16;
/// Length of the serial number.
pub(super) const ID_BYTES: usize = 20;

const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;
const T_GET_ID: u32 = 8;
const T_DISCARD: u32 = 11;
const T_WRITE_ZEROES: u32 = 13;

/// Flag of a range: the space may be given back.
const FLAG_UNMAP: u32 = 1;

/// What the status byte says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

/// What a request for the disk does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
    Flush,
    Discard,
    WriteZeroes { may_unmap: bool },
}

/// What a chain asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// Something for the disk, checked against it.
    Disk { kind: Kind, offset: u64, len: u64 },
    /// The serial number.
    Id,
    /// Something that gets this answer.
    Refuse(Status),
}

/// A chain's two halves.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chain<'a> {
    head: u16,
    readable: &'a [Segment],
    pub(super) writable: &'a [Segment],
    /// Bytes that the device may read.
    out: u64,
    /// Bytes that it may write, status included.
    room: u64,
}

impl<'a> Chain<'a> {
    /// Splits a chain into what the device reads and what it writes.
    pub(super) fn split(head: u16, segments: &'a [Segment]) -> Result<Chain<'a>, RingError> {
        let wrong = |reason| RingError::Request { queue: QUEUE, head, reason };
        let border = segments.iter().position(|segment| segment.device_writes).unwrap_or(segments.len());
        let (readable, writable) = segments.split_at(border);
        if writable.iter().any(|segment| !segment.device_writes) {
            return Err(wrong("a buffer to be read lies behind one to be written"));
        }
        let bytes = |half: &[Segment]| half.iter().map(|segment| segment.length as u64).sum::<u64>();
        let chain = Chain { head, readable, writable, out: bytes(readable), room: bytes(writable) };
        if chain.out < HEADER as u64 {
            return Err(wrong("its header is cut short"));
        }
        if chain.room == 0 {
            return Err(wrong("it has no room for the status byte"));
        }
        Ok(chain)
    }

    /// What is asked of a disk that is like `info`.
    pub(super) fn meaning(&self, memory: &GuestMemory, info: &BlockInfo) -> Result<Meaning, RingError> {
        let mut header = [0; HEADER];
        self.read(memory, 0, &mut header)?;
        let sector = le64(&header[8..]);
        let (out, room) = (self.out - HEADER as u64, self.room - 1);
        Ok(match le32(&header) {
            T_IN => within(Kind::Read, sector, room, REQUEST_BYTES_MAX as u64, info),
            T_OUT if info.read_only => Meaning::Refuse(Status::IoError),
            T_OUT => within(Kind::Write, sector, out, REQUEST_BYTES_MAX as u64, info),
            T_FLUSH => Meaning::Disk { kind: Kind::Flush, offset: 0, len: 0 },
            T_GET_ID => Meaning::Id,
            T_DISCARD | T_WRITE_ZEROES if info.read_only => Meaning::Refuse(Status::Unsupported),
            // One range at a time, as the configuration space says.
            T_DISCARD | T_WRITE_ZEROES if out != RANGE as u64 => Meaning::Refuse(Status::IoError),
            command @ (T_DISCARD | T_WRITE_ZEROES) => {
                let mut range = [0; RANGE];
                self.read(memory, HEADER, &mut range)?;
                let (sector, bytes, flags) = (le64(&range), u64::from(le32(&range[8..])) * SECTOR, le32(&range[12..]));
                match (command, flags) {
                    (T_DISCARD, 0) => within(Kind::Discard, sector, bytes, DISCARD_BYTES_MAX, info),
                    (T_WRITE_ZEROES, 0 | FLAG_UNMAP) => {
                        within(Kind::WriteZeroes { may_unmap: flags == FLAG_UNMAP }, sector, bytes, ZEROES_BYTES_MAX, info)
                    }
                    _ => Meaning::Refuse(Status::Unsupported),
                }
            }
            _ => Meaning::Refuse(Status::Unsupported),
        })
    }

    /// Copies the data of a write, behind the header, out of guest memory.
    pub(super) fn read_data(&self, memory: &GuestMemory, into: &mut [u8]) -> Result<(), RingError> {
        self.read(memory, HEADER, into)
    }

    fn read(&self, memory: &GuestMemory, skip: usize, into: &mut [u8]) -> Result<(), RingError> {
        let (mut skip, mut rest) = (skip, into);
        for segment in self.readable {
            if rest.is_empty() {
                break;
            }
            let skipped = skip.min(segment.length);
            skip -= skipped;
            let take = (segment.length - skipped).min(rest.len());
            let (part, after) = rest.split_at_mut(take);
            rest = after;
            if take > 0 {
                let from = place(segment.address, skipped as u64).map_err(|source| outside(self.head, source))?;
                memory.read_slice(part, from).map_err(|source| outside(self.head, source))?;
            }
        }
        Ok(())
    }
}

/// Room that a request's answer goes into: the buffers that the device may write, the status byte last.
#[derive(Debug)]
pub(super) struct Room {
    head: u16,
    segments: Vec<Segment>,
    bytes: u64,
}

impl Room {
    pub(super) fn of(chain: &Chain<'_>) -> Room {
        Room { head: chain.head, segments: chain.writable.to_vec(), bytes: chain.room }
    }

    pub(super) fn head(&self) -> u16 {
        self.head
    }

    /// Writes data and status; returns how many bytes from the start of the room are good (section 2.7.8.2).
    pub(super) fn answer(&self, memory: &GuestMemory, status: Status, data: &[u8]) -> Result<u32, RingError> {
        let room = usize::try_from(self.bytes - 1).unwrap_or(usize::MAX);
        let data = &data[..data.len().min(room)];
        let mut rest = data;
        for segment in &self.segments {
            let (part, after) = rest.split_at(rest.len().min(segment.length));
            rest = after;
            if !part.is_empty() {
                memory.write_slice(part, segment.address).map_err(|source| outside(self.head, source))?;
            }
        }
        if let Some(last) = self.segments.iter().rev().find(|segment| segment.length > 0) {
            let at = place(last.address, last.length as u64 - 1).map_err(|source| outside(self.head, source))?;
            memory.write_obj(status as u8, at).map_err(|source| outside(self.head, source))?;
        }
        let whole = data.len() == room;
        Ok(data.len() as u32 + u32::from(whole))
    }
}

fn within(kind: Kind, sector: u64, len: u64, most: u64, info: &BlockInfo) -> Meaning {
    let offset = sector.checked_mul(SECTOR);
    let end = offset.and_then(|offset| offset.checked_add(len));
    match (offset, end) {
        (Some(offset), Some(end)) if len > 0 && len <= most && len.is_multiple_of(SECTOR) && end <= info.bytes => {
            Meaning::Disk { kind, offset, len }
        }
        _ => Meaning::Refuse(Status::IoError),
    }
}

fn place(base: GuestAddress, offset: u64) -> Result<GuestAddress, vm_memory::GuestMemoryError> {
    base.checked_add(offset).ok_or(vm_memory::GuestMemoryError::InvalidGuestAddress(base))
}

fn outside(head: u16, source: vm_memory::GuestMemoryError) -> RingError {
    RingError::Buffer { queue: QUEUE, head, source }
}

fn le32(bytes: &[u8]) -> u32 {
    bytes.iter().take(4).rev().fold(0, |word, &byte| word << 8 | u32::from(byte))
}

fn le64(bytes: &[u8]) -> u64 {
    bytes.iter().take(8).rev().fold(0, |word, &byte| word << 8 | u64::from(byte))
}
