//! What an image lies on, as two hosts can compare it: so that a mirror is never copied over itself.
//!
//! Lives here: finding it out, and when two descriptions are one medium. Not here: what follows ([`crate::plan`]), which device a shared disk is ([`SharedDevice`]). Guards S4 for mirrors: two copies that are one would be
//! made zeros by the first full copy, under a guest that runs.
//!
//! | both nodes' image | found by |
//! |---|---|
//! | one file, also of a network or cluster file system | the lock that the first one has ([`crate::image`]); on one host also by `place`, through loop devices |
//! | one device of a host | `O_EXCL`, and `place` |
//! | a device that two hosts reach (a LUN), or a partition of it | its world-wide name, with multipath or without |
//! | devices without such a name (network block devices, a virtual machine's disks with short serial numbers), files that are not locked between hosts (9p, virtiofs) | **not found**; of such a device it is told at the start |
//!
//! A file's inode says nothing across hosts: two file systems number their files alike, and clones were made at the same nanosecond.

use std::fs::{File, Metadata};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use xxhash_rust::xxh3::xxh3_64;

use crate::identity::{Identity, SharedDevice};

/// Random for each start of a host's kernel (proc_sys_kernel(5)), and the same in all of its namespaces.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Major number of loop devices (Documentation/admin-guide/devices.txt).
const LOOP_MAJOR: u64 = 7;
/// A virtual machine's disk may have any word as its serial number, and both hosts' the same; one this long was made to be unique (a UUID, cut to virtio's 20 bytes).
const UNIQUE_SERIAL_BYTES: usize = 16;
/// Names by which QEMU calls its first disk in every virtual machine, unless told otherwise: SATA's default serial number, NVMe's default EUI-64.
const NOT_UNIQUE: [&str; 2] = ["QEMU HARDDISK", "eui.525400"];
/// How drivers begin names that are of one device in the world, multipath left out: SCSI and NVMe (designators), the device mapper (LVM, LUKS).
const WORLD_WIDE: [&str; 7] = ["naa.", "eui.", "uuid.", "nvme.", "t10.", "LVM-", "CRYPT-"];

nix::ioctl_read_bad! {
    /// What a loop device is on (linux/loop.h: LOOP_GET_STATUS64); a `struct loop_info64`, 29 words of 8 bytes.
    loop_get_status64, 0x4C05, [u64; 29]
}

/// What a mirror's image lies on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Medium {
    /// A block device's name, by which another host may find the same one.
    pub(crate) name: Option<SharedDevice>,
    /// What it is on this host since it was started: a digest of the kernel's own random number and the file's or device's numbers.
    pub(crate) place: Option<u64>,
}

impl Medium {
    pub(crate) fn of(file: &File, metadata: &Metadata) -> Medium {
        let device = metadata.file_type().is_block_device();
        let boot = std::fs::read_to_string(BOOT_ID).ok();
        let place = boot.map(|boot| xxh3_64(format!("lockstep/place/{}/{:?}", boot.trim(), at(file, metadata)).as_bytes()));
        let name = if device { SharedDevice::of(metadata) } else { None };
        Medium { name: name.filter(is_world_wide), place }
    }
}

/// Where the bytes are on this host, through a loop device: whether a device, its or the file system's number, the inode, and the offset in it.
fn at(file: &File, metadata: &Metadata) -> (bool, u64, u64, u64) {
    if !metadata.file_type().is_block_device() {
        return (false, metadata.dev(), metadata.ino(), 0);
    }
    let device = (true, metadata.rdev(), 0, 0);
    if nix::sys::stat::major(metadata.rdev()) != LOOP_MAJOR {
        return device;
    }
    let mut status = [0; 29];
    // SAFETY: LOOP_GET_STATUS64 writes one struct loop_info64, which is 232 bytes of integers and byte arrays (linux/loop.h), as large as this array; the descriptor is open.
    match unsafe { loop_get_status64(file.as_raw_fd(), &raw mut status) } {
        // lo_device, lo_inode, lo_rdevice, lo_offset.
        Ok(_) => match status {
            [on, inode, 0, offset, ..] => (false, on, inode, offset),
            [_, _, on, offset, ..] => (true, on, 0, offset),
        },
        Err(_) => device,
    }
}

/// No other device in the world should have it.
fn is_world_wide(name: &SharedDevice) -> bool {
    let SharedDevice::Name(name) = name else { return false };
    let plain = plain(name);
    let made = WORLD_WIDE.iter().any(|prefix| plain.starts_with(prefix)) || name.len() >= UNIQUE_SERIAL_BYTES;
    made && !NOT_UNIQUE.iter().any(|default| name.contains(default))
}

/// The one medium that both of two mirrors' images lie on, in words; `None` when nothing that is known says so.
pub(crate) fn shared_by(primary: &Identity, standby: &Identity) -> Option<String> {
    if primary.place.is_some() && primary.place == standby.place {
        return Some("the same file or device of the same host".to_owned());
    }
    match (&primary.device, &standby.device) {
        (Some(SharedDevice::Name(one)), Some(SharedDevice::Name(other))) if plain(one) == plain(other) => Some(other.clone()),
        _ => None,
    }
}

/// A name without what multipath makes of it: the map of a device is `mpath-` and scsi_id(8)'s form of its name, a partition's `partN-` before that.
fn plain(name: &str) -> String {
    if let Some((number, rest)) = name.strip_prefix("part").and_then(|rest| rest.split_once("-mpath-")) {
        return format!("{} partition {number}", plain(&format!("mpath-{rest}")));
    }
    let Some(of) = name.strip_prefix("mpath-") else { return name.to_owned() };
    match (of.strip_prefix('3'), of.strip_prefix('2')) {
        (Some(naa), _) => format!("naa.{naa}"),
        (_, Some(eui)) => format!("eui.{eui}"),
        // NVMe's are as the driver has them.
        _ => of.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_has_one_name_with_multipath_and_without() {
        for (one, other) in [
            ("mpath-3600140512345", "naa.600140512345"),
            ("mpath-20025385b71b00b5c", "eui.0025385b71b00b5c"),
            ("mpath-eui.0025385b71b00b5c", "eui.0025385b71b00b5c"),
            ("part2-mpath-3600140512345", "naa.600140512345 partition 2"),
        ] {
            assert_eq!(plain(one), plain(other), "{one}");
        }
        assert_ne!(plain("naa.600140512345 partition 1"), plain("naa.600140512345 partition 2"));
    }

    #[test]
    fn what_every_virtual_machine_calls_its_disk_is_no_name() {
        let unique = |name: &str| is_world_wide(&SharedDevice::Name(name.to_owned()));
        for name in ["naa.600140512345", "nvme.1b36-31-32-00000001", "LVM-abc", "mpath-3600140512345", "8f0fa2b3-5f0c-4b6e-a"] {
            assert!(unique(name), "{name}");
        }
        for name in ["vda", "data", "disk0", "t10.ATA     QEMU HARDDISK                           QM00001", "eui.5254000000000001"] {
            assert!(!unique(name), "{name}");
        }
        assert!(!is_world_wide(&SharedDevice::File { inode: 12, born: 5 }));
    }

    #[test]
    fn a_file_lies_where_its_other_names_do_and_a_copy_of_it_elsewhere() {
        let directory = tempfile::tempdir().unwrap();
        let [path, link, copy] = ["a", "b", "c"].map(|name| directory.path().join(name));
        std::fs::write(&path, [7; 512]).unwrap();
        std::fs::hard_link(&path, &link).unwrap();
        std::fs::copy(&path, &copy).unwrap();
        let [path, link, copy] = [path, link, copy].map(|path| {
            let file = File::open(path).unwrap();
            let metadata = file.metadata().unwrap();
            Medium::of(&file, &metadata)
        });

        assert!(path.place.is_some() && path.name.is_none());
        assert_eq!(path.place, link.place);
        assert_ne!(path.place, copy.place);
    }
}
