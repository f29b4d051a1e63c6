//! The disk's configuration space (`struct virtio_blk_config`, virtio 1.2, section 5.2.4) and its feature bits.
//!
//! Lives here: what the driver is told of sizes and limits. Not here: enforcing them ([`super::request`]).

use types::block::{BlockInfo, DISCARD_BYTES_MAX, REQUEST_BYTES_MAX, SECTOR, ZEROES_BYTES_MAX};

use crate::devices::virtio::{F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1};

const F_SIZE_MAX: u64 = 1 << 1;
const F_SEG_MAX: u64 = 1 << 2;
const F_RO: u64 = 1 << 5;
const F_BLK_SIZE: u64 = 1 << 6;
/// Feature bit: the driver knows the flush command. Without it every write must be durable when it is answered (section 5.2.6.2).
pub(super) const F_FLUSH: u64 = 1 << 9;
const F_TOPOLOGY: u64 = 1 << 10;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;

/// Buffers of data in one request at most. With [`SIZE_MAX`] this makes exactly [`REQUEST_BYTES_MAX`], which a driver therefore never passes; scattered
/// pages still make requests of 512 KiB.
pub(super) const SEG_MAX: u32 = 128;
/// Bytes in one buffer of data at most.
pub(super) const SIZE_MAX: u32 = 8192;
const _: () = assert!(SEG_MAX as usize * SIZE_MAX as usize == REQUEST_BYTES_MAX);

/// Bytes of the configuration space.
const LENGTH: usize = 60;

/// The features that a disk offers.
pub(super) fn features(info: &BlockInfo) -> u64 {
    let common = F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC | F_SIZE_MAX | F_SEG_MAX | F_BLK_SIZE | F_FLUSH | F_TOPOLOGY;
    common | if info.read_only { F_RO } else { F_DISCARD | F_WRITE_ZEROES }
}

/// The configuration space as the driver reads it.
#[derive(Debug)]
pub(super) struct Space([u8; LENGTH]);

impl Space {
    pub(super) fn new(info: &BlockInfo) -> Space {
        let mut space = Space([0; LENGTH]);
        let logical = info.logical_block.max(SECTOR as u32);
        let exponent = (info.physical_block.max(logical) / logical).ilog2();
        space.put(0, &(info.bytes / SECTOR).to_le_bytes());
        space.put(8, &SIZE_MAX.to_le_bytes());
        space.put(12, &SEG_MAX.to_le_bytes());
        space.put(20, &logical.to_le_bytes());
        // Topology: physical_block_exp, alignment_offset, min_io_size (in logical blocks), opt_io_size (not said).
        space.put(24, &[exponent as u8, 0]);
        space.put(26, &(1u16 << exponent.min(15)).to_le_bytes());
        if !info.read_only {
            let sectors = |bytes: u64| ((bytes / SECTOR) as u32).to_le_bytes();
            // max_discard_sectors, max_discard_seg, discard_sector_alignment; then the same two for zeroes, and that they may unmap.
            space.put(36, &sectors(DISCARD_BYTES_MAX));
            space.put(40, &1u32.to_le_bytes());
            space.put(44, &(logical / SECTOR as u32).to_le_bytes());
            space.put(48, &sectors(ZEROES_BYTES_MAX));
            space.put(52, &1u32.to_le_bytes());
            space.put(56, &[1]);
        }
        space
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Reads from `offset`; bytes beyond the end are left as they are.
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        for (to, byte) in data.iter_mut().zip(self.0.iter().skip(from)) {
            *to = *byte;
        }
    }
}
