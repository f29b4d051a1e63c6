//! What one host's copy of a disk is, as the two hosts tell each other when they meet, and the generations of its data.
//!
//! Lives here: plain data. Not here: what follows from it ([`crate::plan`]) and where it is kept ([`crate::changes`]).
//!
//! **Generations.** `current` names the line of writes that a copy belongs to. It is chosen anew at random whenever a host begins to run the guest on its own copy without a
//! standby (cold start, activation, strike-out), and a standby takes over its primary's. `base` is the generation that the other copy had when the two were last the same but
//! for the regions marked in the change logs; `joining` is a second such generation, while a copy is under way and it is not known which of the two the other side has
//! written down. So two lines that grew apart are always told from one that is merely behind. After DRBD's generation identifiers (its user's guide, "Generation
//! Identifiers"), with regions set durably before the write in place of its activity log.
//!
//! **Invariant** (everything in this crate keeps it): whenever one copy's `current` is among the other's `current`, `base` and `joining`, the two differ at most in regions that are marked in
//! one of the two logs, whatever either host has lost by losing power.

use std::fmt;
use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::options::Mode;
use crate::regions::Run;

/// A random name of a disk or of a line of its data; 0 is "none".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct DataId(pub u64);

impl DataId {
    /// No disk, no generation.
    pub const NONE: DataId = DataId(0);

    /// A new one.
    #[must_use]
    pub fn random() -> DataId {
        DataId(rand::random_range(1..=u64::MAX))
    }

    /// Both are named, and the same.
    #[must_use]
    pub fn matches(self, other: DataId) -> bool {
        self == other && self != DataId::NONE
    }
}

impl std::fmt::Display for DataId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// What the content of a copy is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CopyState {
    /// What a disk holds whose host ran the guest: a guest may start from it, as after a loss of power.
    Consistent,
    /// A standby's copy that follows its primary. Writes came in the order of epochs, but the host's cache may have made them durable in any order: if this is found at the start, the
    /// primary's copy is the one to start from.
    Following,
    /// A copy is under way or was broken off: some of it is old, some new. No guest ever starts from it.
    Copying,
}

/// Bytes of a serial number (virtio 1.2, section 5.2.6.1).
pub const SERIAL_BYTES: usize = 20;

/// One host's copy, as told to the other host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The disk, the same on every host that has a copy. [`DataId::NONE`]: never used by Lockstep.
    pub id: DataId,
    /// Size. This and the next but `mode` are what the guest sees: it must find the same after a failover.
    pub bytes: u64,
    /// Whose copies there are.
    pub mode: Mode,
    /// The guest cannot write to it: then `content` counts and nothing else.
    pub read_only: bool,
    /// Serial number as the guest reads it.
    pub serial: [u8; SERIAL_BYTES],
    /// Smallest unit that the guest addresses.
    pub logical_block: u32,
    /// The line of writes that the content belongs to.
    pub current: DataId,
    /// What the other copy had when the regions not marked were last the same.
    pub base: DataId,
    /// What the other copy may have instead of `base`.
    pub joining: DataId,
    /// What the content is good for.
    pub state: CopyState,
    /// There is nothing in it but zeros (asked only of a copy that Lockstep does not know).
    pub empty: bool,
    /// The operator wants it overwritten as a whole (`resync=full`).
    pub overwrite: bool,
    /// Digest of a read-only disk's content.
    pub content: Option<u64>,
    /// Regions marked in the change log, in short form.
    pub changed: Vec<Run>,
    /// Which device or file a shared disk is; of a mirror its device's world-wide name, which the other's must not have.
    pub device: Option<SharedDevice>,
    /// Of a mirror: what its image lies on, the same only for two nodes on one host. The other's must be another.
    pub place: Option<u64>,
}

/// Which device or file a shared disk is, by what every host that can open it finds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SharedDevice {
    /// A block device's name in the world, as its kernel driver got it from the device.
    Name(String),
    /// A file of a shared file system.
    File {
        /// Its number there.
        inode: u64,
        /// When it was made, nanoseconds since 1970; 0: not known.
        born: u64,
    },
}

impl fmt::Display for SharedDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SharedDevice::Name(name) => f.write_str(name),
            SharedDevice::File { inode, born: 0 } => write!(f, "file with inode {inode}"),
            SharedDevice::File { inode, born } => write!(f, "file with inode {inode}, made {born} ns after 1970"),
        }
    }
}

impl SharedDevice {
    /// What an open image is; none for a block device that cannot be told from others.
    #[must_use]
    pub fn of(metadata: &Metadata) -> Option<SharedDevice> {
        if metadata.file_type().is_block_device() {
            let (major, minor) = (nix::sys::stat::major(metadata.rdev()), nix::sys::stat::minor(metadata.rdev()));
            return device_name(Path::new(&format!("/sys/dev/block/{major}:{minor}"))).map(SharedDevice::Name);
        }
        let born = metadata.created().ok().and_then(|born| born.duration_since(std::time::UNIX_EPOCH).ok());
        Some(SharedDevice::File { inode: metadata.ino(), born: born.map_or(0, |born| born.as_nanos() as u64) })
    }

    /// The other host means the same. Two file systems number their files alike, so the time of making counts where both know it.
    #[must_use]
    pub fn is(&self, other: &SharedDevice) -> bool {
        match (self, other) {
            (SharedDevice::File { inode: one, born: mine }, SharedDevice::File { inode: two, born: theirs }) => {
                one == two && (mine == theirs || *mine == 0 || *theirs == 0)
            }
            (one, two) => one == two,
        }
    }
}

/// A block device's name, from its directory in sysfs: of SCSI (`device/wwid`, from the device identification page), NVMe (`wwid`), the device mapper (multipath: its map's name is made from the device's), virtio (its serial
/// number). Of a partition the disk's, and its number.
fn device_name(sysfs: &Path) -> Option<String> {
    let read =
        |file: &str| std::fs::read_to_string(sysfs.join(file)).ok().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
    if let Some(number) = read("partition") {
        // A partition's directory is in its disk's; what leads to it is a link.
        let disk = sysfs.canonicalize().ok()?;
        return device_name(disk.parent()?).map(|name| format!("{name} partition {number}"));
    }
    ["device/wwid", "wwid", "dm/uuid", "serial"].into_iter().find_map(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_named_by_what_its_driver_knows_and_a_partition_by_its_disk() {
        let directory = tempfile::tempdir().unwrap();
        let file = |path: &str, text: &str| {
            let path = directory.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        file("sda/device/wwid", "naa.600140512345\n");
        file("sda/sda2/partition", "2\n");
        file("nvme0n1/wwid", "eui.0025385b71b00b5c\n");
        file("dm-0/dm/uuid", "mpath-3600140512345\n");
        file("vda/serial", "data\n");
        file("loop0/size", "8\n");
        let name = |path: &str| device_name(&directory.path().join(path));

        assert_eq!(name("sda").as_deref(), Some("naa.600140512345"));
        assert_eq!(name("sda/sda2").as_deref(), Some("naa.600140512345 partition 2"));
        assert_eq!(name("nvme0n1").as_deref(), Some("eui.0025385b71b00b5c"));
        assert_eq!(name("dm-0").as_deref(), Some("mpath-3600140512345"));
        assert_eq!(name("vda").as_deref(), Some("data"));
        assert_eq!(name("loop0"), None);
    }

    #[test]
    fn files_are_the_same_by_their_number_and_where_both_know_it_the_time_they_were_made() {
        let file = |inode, born| SharedDevice::File { inode, born };
        assert!(file(12, 5).is(&file(12, 5)) && file(12, 0).is(&file(12, 5)));
        assert!(!file(12, 5).is(&file(12, 6)) && !file(12, 5).is(&file(13, 5)));
        assert!(!file(12, 5).is(&SharedDevice::Name("12".to_owned())));
    }
}
