//! What a disk is good for: for `lockstep check --disk PATH`. Reads one block of it, writes and reserves nothing.

use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;

use disk_buffer::SharedDevice;
use failover::fence::{Fence as _, FenceError, Reservation};
use types::VmId;

use super::Item;

/// Fits every medium's unit for requests past the page cache.
const BLOCK: usize = 4096;

#[repr(align(4096))]
struct Block([u8; BLOCK]);

/// Looks at one disk.
pub(super) fn look(path: &Path) -> Vec<Item> {
    let shown = path.display();
    let facts = match std::fs::metadata(path) {
        Ok(facts) if facts.file_type().is_file() || facts.file_type().is_block_device() => facts,
        Ok(_) => {
            return vec![Item::fail(
                "disk",
                format!("{shown} is neither a file nor a block device"),
                "name an image file or a block device",
            )];
        }
        Err(error) => return vec![Item::fail("disk", format!("{shown}: {error}"), "check the path and its permissions")],
    };
    let device = facts.file_type().is_block_device();
    vec![size(path), identity(path, &facts), direct(path), reservations(path, device)]
}

/// As a node finds it.
fn size(path: &Path) -> Item {
    const NAME: &str = "disk: size";
    const REMEDY: &str =
        "a disk image is raw, of whole sectors of 512 bytes (truncate -s 10G FILE makes or resizes one), and readable by this user";
    match disk_buffer::image::disk_bytes(path) {
        Ok(bytes) => Item::ok(NAME, format!("{} has {bytes} bytes: the other host's must have as many", path.display())),
        Err(error) => Item::fail(NAME, error.to_string(), REMEDY),
    }
}

/// By what two hosts tell that they mean the same disk.
fn identity(path: &Path, facts: &std::fs::Metadata) -> Item {
    const NAME: &str = "disk: identity";
    let shown = path.display();
    match SharedDevice::of(facts) {
        Some(name) => Item::ok(NAME, format!("{shown} is {name}: with mode=shared the other host must find the same")),
        None => Item::warn(
            NAME,
            format!("{shown} has no name by which two hosts can tell that they mean the same device"),
            "mode=shared needs a device that has one (SCSI, NVMe, multipath; of a virtual machine's disk its serial number); mode=mirror needs none",
        ),
    }
}

/// Requests past the page cache.
fn direct(path: &Path) -> Item {
    const REMEDY: &str =
        "a shared disk needs it; for mode=mirror it is only slower: use a file system that has it (ext4, xfs, NFS), or a block device";
    let read = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path).and_then(|file| {
        let mut block = Box::new(Block([0; BLOCK]));
        file.read_at(&mut block.0, 0)
    });
    match read {
        Ok(_) => Item::ok("disk: O_DIRECT", path.display().to_string()),
        Err(error) => Item::warn("disk: O_DIRECT", format!("{}: {error}", path.display()), REMEDY),
    }
}

fn reservations(path: &Path, device: bool) -> Item {
    const NAME: &str = "disk: reservations";
    const COMMAND: &str = "mode=shared needs a --fence-command that makes sure that the other host is dead, or a device that can be reserved; mode=mirror needs neither";
    let shown = path.display();
    if !device {
        return Item::warn(NAME, format!("{shown} is a file, which cannot be reserved"), COMMAND);
    }
    match Reservation::new(path, VmId("check".to_owned())).probe() {
        Ok(()) => Item::ok(NAME, format!("{shown} can be reserved: mode=shared needs no --fence-command")),
        Err(FenceError::NotSupported { why, .. }) => Item::warn(NAME, format!("{shown} cannot be reserved: {why}"), COMMAND),
        Err(error) => Item::warn(NAME, error.to_string(), "run this as a user who may write to the device"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Level;

    #[test]
    fn a_file_can_be_shared_only_with_a_fencing_command_and_is_left_as_it_is() {
        let mut file = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).expect("a file");
        std::io::Write::write_all(&mut file, &[7; BLOCK]).expect("written");
        let items = look(file.path());
        assert!(
            items
                .iter()
                .any(|item| item.name == "disk: reservations" && item.level == Level::Warn && item.remedy.contains("--fence-command"))
        );
        assert!(items.iter().any(|item| item.name == "disk: O_DIRECT"));
        let inode = std::os::unix::fs::MetadataExt::ino(&file.as_file().metadata().expect("facts"));
        assert!(items.iter().any(|item| item.name == "disk: identity" && item.found.contains(&format!("inode {inode}"))), "{items:?}");
        assert!(items.iter().all(|item| (item.level == Level::Ok) == item.remedy.is_empty()), "{items:?}");
        assert_eq!(std::fs::read(file.path()).expect("read"), [7; BLOCK]);
    }

    #[test]
    fn an_image_of_a_size_that_no_disk_has_fails_as_it_does_for_a_node() {
        for (bytes, level) in [(0, Level::Fail), (1000, Level::Fail), (1024, Level::Ok)] {
            let file = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).expect("a file");
            file.as_file().set_len(bytes).expect("sized");
            let items = look(file.path());
            let size = items.iter().find(|item| item.name == "disk: size").expect("it is looked at");
            assert_eq!((size.level, size.found.contains(&bytes.to_string())), (level, true), "{size:?}");
        }
    }

    #[test]
    fn what_is_no_disk_fails() {
        for path in ["/nonexistent", "/", "/dev/null"] {
            assert!(matches!(&look(Path::new(path))[..], [Item { level: Level::Fail, .. }]), "{path}");
        }
    }
}
