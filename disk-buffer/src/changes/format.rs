//! The bytes of the change log: header and bitmap sectors. Pure. The layout is at the top of [`crate::changes`].

use std::path::Path;

use xxhash_rust::xxh3::xxh3_64;

use crate::error::DiskError;
use crate::identity::{CopyState, DataId};
use crate::regions::{REGION_BYTES, RegionSet};

/// Version of the format; another one is refused by name.
pub const VERSION: u32 = 1;
/// Unit in which the log is written: what a disk writes whole or not at all.
pub const SECTOR_BYTES: usize = 512;
/// Where the two copies of the header are: apart, so that disks with sectors of 4096 bytes write them apart too.
pub const HEADER_AT: [u64; 2] = [0, 4096];
/// Where the bitmap begins.
pub const BITMAP_AT: u64 = 8192;
/// Regions in a bitmap sector.
pub const SECTOR_REGIONS: u32 = 496 * 8;

const MAGIC: &[u8; 8] = b"LKSTPCHG";
const SUM_AT: usize = SECTOR_BYTES - 8;

/// One sector.
pub type Sector = [u8; SECTOR_BYTES];

/// What the log says about the copy as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The disk.
    pub id: DataId,
    /// Its size.
    pub bytes: u64,
    /// See [`crate::identity`].
    pub current: DataId,
    /// See [`crate::identity`].
    pub base: DataId,
    /// See [`crate::identity`].
    pub joining: DataId,
    /// Up by one with every update.
    pub sequence: u64,
    /// What the content is good for.
    pub state: CopyState,
    /// The file that the copy is in.
    pub image: ImageFile,
}

/// What tells an image file from a copy of it that took its place, and outlives a restart of the host (the number of its file system does not). Zeros: not known, as of a block device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImageFile {
    /// Inode.
    pub inode: u64,
    /// When the inode was made, nanoseconds since 1970 (statx(2), stx_btime).
    pub born: u64,
}

impl ImageFile {
    /// Nothing that is known of both says that they are two.
    #[must_use]
    pub fn may_be(self, other: ImageFile) -> bool {
        let same = |one: u64, other: u64| one == other || one == 0 || other == 0;
        same(self.inode, other.inode) && same(self.born, other.born)
    }
}

/// Why a header sector is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// Something else is there.
    NotALog,
    /// Of another version, and whole.
    Version(u32),
    /// Torn or damaged.
    Damaged,
}

fn sum(sector: &Sector) -> u64 {
    xxh3_64(&sector[..SUM_AT])
}

fn put(sector: &mut Sector, at: usize, value: u64) {
    sector[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

fn get(sector: &Sector, at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&sector[at..at + 8]);
    u64::from_le_bytes(bytes)
}

impl Header {
    /// The header's sector.
    #[must_use]
    pub fn encode(&self) -> Sector {
        let mut sector = [0; SECTOR_BYTES];
        sector[..8].copy_from_slice(MAGIC);
        sector[8..12].copy_from_slice(&VERSION.to_le_bytes());
        sector[12..16].copy_from_slice(&(REGION_BYTES as u32).to_le_bytes());
        let words = [self.id.0, self.bytes, self.current.0, self.base.0, self.joining.0, self.sequence];
        for (index, word) in words.into_iter().enumerate() {
            put(&mut sector, 16 + 8 * index, word);
        }
        sector[64] = match self.state {
            CopyState::Consistent => 1,
            CopyState::Following => 2,
            CopyState::Copying => 3,
        };
        put(&mut sector, 72, self.image.inode);
        put(&mut sector, 80, self.image.born);
        let sum = sum(&sector);
        put(&mut sector, SUM_AT, sum);
        sector
    }

    /// Reads a header's sector.
    ///
    /// # Errors
    /// [`Unusable`].
    pub fn decode(sector: &Sector) -> Result<Header, Unusable> {
        if &sector[..8] != MAGIC {
            return Err(Unusable::NotALog);
        }
        if get(sector, SUM_AT) != sum(sector) {
            return Err(Unusable::Damaged);
        }
        let version = get(sector, 8) as u32;
        if version != VERSION {
            return Err(Unusable::Version(version));
        }
        let state = match sector[64] {
            1 => CopyState::Consistent,
            2 => CopyState::Following,
            3 => CopyState::Copying,
            _ => return Err(Unusable::Damaged),
        };
        if get(sector, 8) >> 32 != REGION_BYTES {
            return Err(Unusable::Damaged);
        }
        let word = |index: usize| get(sector, 16 + 8 * index);
        Ok(Header {
            id: DataId(word(0)),
            bytes: word(1),
            current: DataId(word(2)),
            base: DataId(word(3)),
            joining: DataId(word(4)),
            sequence: word(5),
            state,
            image: ImageFile { inode: get(sector, 72), born: get(sector, 80) },
        })
    }
}

/// Number of bitmap sectors of a disk with so many regions.
#[must_use]
pub fn bitmap_sectors(regions: u32) -> u32 {
    regions.div_ceil(SECTOR_REGIONS)
}

/// Bitmap sector `number` of the set.
#[must_use]
pub fn encode_bitmap(set: &RegionSet, number: u32) -> Sector {
    let mut sector = [0; SECTOR_BYTES];
    for bit in 0..SECTOR_REGIONS {
        if set.contains(number * SECTOR_REGIONS + bit) {
            sector[bit as usize / 8] |= 1 << (bit % 8);
        }
    }
    put(&mut sector, SUM_AT - 8, u64::from(number));
    let sum = sum(&sector);
    put(&mut sector, SUM_AT, sum);
    sector
}

/// Adds what bitmap sector `number` says to the set: all of its regions when it is damaged. Whether it was whole.
pub fn decode_bitmap(sector: &[u8], number: u32, set: &mut RegionSet) -> bool {
    let whole =
        Sector::try_from(sector).ok().filter(|sector| get(sector, SUM_AT) == sum(sector) && get(sector, SUM_AT - 8) == u64::from(number));
    for bit in 0..SECTOR_REGIONS {
        if whole.is_none_or(|sector| sector[bit as usize / 8] >> (bit % 8) & 1 == 1) {
            set.insert(number * SECTOR_REGIONS + bit);
        }
    }
    whole.is_some()
}

/// What a whole log says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// The newest whole header.
    pub header: Header,
    /// The marked regions.
    pub set: RegionSet,
    /// Bitmap sectors that were damaged and count as full.
    pub damaged: u32,
}

/// Reads a log's bytes, whatever they are.
///
/// # Errors
/// [`DiskError::NotALog`], [`DiskError::LogVersion`], [`DiskError::LogDamaged`], [`DiskError::LogOfOther`]; `path` is named in them.
pub fn read(bytes: &[u8], disk_bytes: u64, path: &Path) -> Result<Content, DiskError> {
    let copies = HEADER_AT.map(|at| {
        let sector = bytes.get(at as usize..at as usize + SECTOR_BYTES).and_then(|sector| Sector::try_from(sector).ok());
        sector.ok_or(Unusable::Damaged).and_then(|sector| Header::decode(&sector))
    });
    let newest = copies.iter().filter_map(|copy| copy.ok()).max_by_key(|header| header.sequence);
    let Some(header) = newest else {
        let path = path.to_owned();
        let version = copies.iter().find_map(|copy| match copy {
            Err(Unusable::Version(version)) => Some(*version),
            _ => None,
        });
        return Err(match (version, copies) {
            (Some(found), _) => DiskError::LogVersion { path, found, known: VERSION },
            (None, [Err(Unusable::NotALog), _]) => DiskError::NotALog(path),
            _ => DiskError::LogDamaged { path, what: "neither copy of its header is whole" },
        });
    };
    if header.bytes != disk_bytes {
        return Err(DiskError::LogOfOther { path: path.to_owned(), logged: header.bytes, bytes: disk_bytes });
    }
    let mut set = RegionSet::new(disk_bytes);
    let mut damaged = 0;
    for number in 0..bitmap_sectors(set.regions()) {
        let at = BITMAP_AT as usize + number as usize * SECTOR_BYTES;
        let sector = bytes.get(at..at + SECTOR_BYTES).unwrap_or_default();
        damaged += u32::from(!decode_bitmap(sector, number, &mut set));
    }
    Ok(Content { header, set, damaged })
}

/// All bytes of a log.
#[must_use]
pub fn write(header: &Header, set: &RegionSet) -> Vec<u8> {
    let sectors = bitmap_sectors(set.regions());
    let mut bytes = vec![0; BITMAP_AT as usize + sectors as usize * SECTOR_BYTES];
    for at in HEADER_AT {
        bytes[at as usize..at as usize + SECTOR_BYTES].copy_from_slice(&header.encode());
    }
    for number in 0..sectors {
        let at = BITMAP_AT as usize + number as usize * SECTOR_BYTES;
        bytes[at..at + SECTOR_BYTES].copy_from_slice(&encode_bitmap(set, number));
    }
    bytes
}

#[cfg(test)]
#[path = "format_tests.rs"]
mod tests;
