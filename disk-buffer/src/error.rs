//! What can go wrong with a disk, in words for the operator. Not here: what the guest is told ([`types::block::BlockError`]).

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use types::Epoch;
use types::block::DiskIndex;

use crate::plan::Refusal;
use crate::regions::MAX_DISK_BYTES;

/// What this crate refuses or fails to do.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// A system call on an image or a log failed.
    #[error("{what} {path} failed: {source}", path = .path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// No such image.
    #[error("there is no disk image {path}; create it first, for example with `truncate -s 10G {path}`", path = .0.display())]
    Missing(PathBuf),
    /// A directory, a pipe, a terminal.
    #[error("{path} is neither a file nor a block device; a disk image is a raw file or a block device", path = .0.display())]
    NotAnImage(PathBuf),
    /// May be read, not written.
    #[error("{path} may only be read; give `readonly` for this disk, or the right to write to it", path = .0.display())]
    ReadOnly(PathBuf),
    /// Not a whole number of sectors, or none.
    #[error("{path} has {bytes} bytes, which is not a multiple of 512 above zero; is it a raw image? (`qemu-img convert -O raw` makes one)", path = .path.display())]
    Size {
        /// The image.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// Too large for the change log.
    #[error("{path} has {bytes} bytes; the largest disk has {MAX_DISK_BYTES}", path = .path.display())]
    TooLarge {
        /// The image.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// Two disks of one machine are the same file or device.
    #[error("{first} and {second} are both {path}: writes through one would not be seen by the other; give each disk an image of its own", path = .path.display())]
    SamePath {
        /// One disk.
        first: DiskIndex,
        /// The other.
        second: DiskIndex,
        /// What both are.
        path: PathBuf,
    },
    /// Another process has it open as a disk.
    #[error("{path} is in use by another process (a lock is held, or it is mounted); stop that first", path = .0.display())]
    InUse(PathBuf),
    /// Serial number that the guest could not read.
    #[error("serial number {0:?}: at most 20 characters of printable ASCII")]
    Serial(String),
    /// More disks than a request can name.
    #[error("{0} disks; at most 256 are possible")]
    TooMany(usize),
    /// A block device's log has no natural place.
    #[error("{path} is a block device: give its change log a place on a file system that survives a restart, with log=FILE", path = .0.display())]
    LogNeeded(PathBuf),
    /// There can be no change log in its place.
    #[error("the change log {path} cannot be {what}: {source}; {remedy}", path = .path.display(), remedy = log_remedy(.source))]
    Log {
        /// What was tried.
        what: &'static str,
        /// The log.
        path: Box<Path>,
        /// The system's answer.
        source: io::Error,
    },
    /// A file that is not a change log is in its place.
    #[error("{path} is not a change log of Lockstep; move it away, or give the log another place with log=FILE", path = .0.display())]
    NotALog(PathBuf),
    /// A change log of another version of this program.
    #[error(
        "the change log {path} has format version {found}, this program knows version {known}; use the version of Lockstep that wrote it, or remove it (the next standby is \
         then copied as a whole)", path = .path.display()
    )]
    LogVersion {
        /// The log.
        path: PathBuf,
        /// The version in it.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// Both copies of the log's header are damaged.
    #[error("the change log {path} is damaged ({what}); remove it (the next standby is then copied as a whole)", path = .path.display())]
    LogDamaged {
        /// The log.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
    /// The log belongs to another image.
    #[error("the change log {path} is of a disk of {logged} bytes, the image has {bytes}; was the image resized or replaced? Then remove the log", path = .path.display())]
    LogOfOther {
        /// The log.
        path: PathBuf,
        /// Size in the log.
        logged: u64,
        /// The image's.
        bytes: u64,
    },
    /// The image is not the file that the log was kept for.
    #[error(
        "the change log {log} was kept for another file than {image} is now: the image was replaced, so what the log says of it is not true. Put the old image back; or, on a standby's host, give \
         resync=full for this disk; or remove the log, and this image counts as one that Lockstep does not know", log = .log.display(), image = .image.display()
    )]
    ImageReplaced {
        /// The log.
        log: Box<Path>,
        /// The image.
        image: Box<Path>,
    },
    /// A cold start from a copy that no guest may start from.
    #[error(
        "no guest may start from {path}: {why}. Start the other host first, and this one as its standby; if the other copy is lost for good, removing the change log makes \
         this one usable as it is", path = .path.display()
    )]
    Unfit {
        /// The image.
        path: PathBuf,
        /// What it is.
        why: &'static str,
    },
    /// The hosts have different numbers of disks.
    #[error("the primary has {primary} disks and the standby {standby}; give both the same --disk options")]
    OtherNumber {
        /// At the primary.
        primary: usize,
        /// At the standby.
        standby: usize,
    },
    /// The two copies cannot be brought together.
    #[error("{disk}: {refusal}")]
    Refused {
        /// Which.
        disk: DiskIndex,
        /// Why.
        refusal: Refusal,
    },
    /// A call in the wrong order.
    #[error(
        "{disk}: {operation} is not possible while the disk is {phase}: this node's part has changed meanwhile (a link was lost, a standby struck out, another node took over), and what is still wanted is tried again; if this is said \
         again and again, report it with both hosts' logs"
    )]
    Phase {
        /// Which.
        disk: DiskIndex,
        /// What was asked.
        operation: &'static str,
        /// What the disk does now.
        phase: &'static str,
    },
    /// An epoch out of order.
    #[error(
        "{disk}: epoch {epoch} came where {expected} was expected, so the two hosts have not counted the same writes: the link is given up, and the standby copied anew; both hosts must run the same release, and if they do, report it with both \
         hosts' logs"
    )]
    EpochOrder {
        /// Which.
        disk: DiskIndex,
        /// The one that came.
        epoch: Epoch,
        /// The one that should have.
        expected: Epoch,
    },
    /// Bytes from the other host that do not fit the disk.
    #[error("{disk}: a write of {len} bytes at {offset:#x} came from the primary; the disk has {bytes} bytes")]
    OutOfRange {
        /// Which.
        disk: DiskIndex,
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: u64,
        /// The disk's size.
        bytes: u64,
    },
    /// The medium failed some time before; nothing more is done with it.
    #[error(
        "{disk}: {what} failed before ({source}), and nothing more is entrusted to it: look at the kernel's log of this host (dmesg) and at the way to the storage, mend it, and start this node again"
    )]
    Failed {
        /// Which.
        disk: DiskIndex,
        /// What failed.
        what: &'static str,
        /// How.
        source: io::Error,
    },
    /// It is being looked at whether a disk that Lockstep has never used is empty.
    #[error(
        "{disk}: whether it is empty, so that it may be overwritten, is not known yet ({percent} % of it are looked at); it is asked again, or give resync=full for it"
    )]
    Looking {
        /// Which.
        disk: DiskIndex,
        /// How far it has come.
        percent: u64,
    },
    /// The medium did not do in time what was asked of it.
    #[error(
        "{disk}: the medium has not done what was asked of it within {bound:?}: it hangs, or has far too much to do; look at the kernel's log of this host (dmesg), at the way to the storage (multipath -ll, the file server) and at who else loads \
         it (iostat -x)"
    )]
    Slow {
        /// Which.
        disk: DiskIndex,
        /// The bound.
        bound: Duration,
    },
    /// The kernel gives no io_uring.
    #[error("io_uring is not available ({0}); disks need Linux 5.11 or newer and the kernel.io_uring_disabled setting at 0")]
    IoUring(io::Error),
    /// A thread could not be made.
    #[error("a thread for {disk} could not be made: {source}")]
    Thread {
        /// Which.
        disk: DiskIndex,
        /// The system's answer.
        source: io::Error,
    },
    /// A shared disk that can only be used through the page cache.
    #[error("{path} cannot be used around the page cache (O_DIRECT), and a shared disk must never be used through it; use a block device, or a file system that can", path = .0.display())]
    NoDirect(PathBuf),
    /// A shared disk whose last block is not whole.
    #[error("{path} has {bytes} bytes; as a shared disk it needs a multiple of {align}", path = .path.display())]
    SharedSize {
        /// The image.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// Unit of direct requests.
        align: u64,
    },
    /// A shared block device that cannot be told from others.
    #[error(
        "{path} has no name by which two hosts can tell that they mean the same device (looked for device/wwid, wwid, dm/uuid and serial in its directory in /sys/dev/block); use a SCSI, NVMe or multipath device", path = .0.display()
    )]
    NoName(PathBuf),
    /// A shared disk through the page cache.
    #[error("{path}: mode=shared never goes through the page cache; leave cache=buffered out, or give each host its own disk (mode=mirror)", path = .0.display())]
    SharedBuffered(PathBuf),
    /// A primary sent more than it may hold.
    #[error("{disk}: epoch {epoch} has more writes than a primary may hold; both hosts must run the same release")]
    TooMuch {
        /// Which.
        disk: DiskIndex,
        /// The one that came.
        epoch: Epoch,
    },
    /// Shared mode without a way to shut the other host out at the storage.
    #[error(
        "{path}: mode=shared needs a way to shut the other host out at the storage (persistent reservations, or a fencing command), and none is there; give each host its own disk (mode=mirror)", path = .0.display()
    )]
    SharedUnfenced(PathBuf),
    /// The limits on recorded writes contradict each other.
    #[error("limits for recorded writes are unusable: {0}")]
    Limits(&'static str),
}

impl DiskError {
    pub(crate) fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> DiskError {
        let path = path.into();
        move |source| DiskError::Io { what, path, source }
    }

    pub(crate) fn log(what: &'static str, path: impl Into<Box<Path>>) -> impl FnOnce(io::Error) -> DiskError {
        let path = path.into();
        move |source| DiskError::Log { what, path, source }
    }
}

/// What to do where a change log cannot be.
fn log_remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR) => "make its directory, or give the log another place with log=FILE",
        Some(libc::EISDIR) => "it is a directory: name a file, with log=DIRECTORY/NAME.lockstep",
        Some(libc::EROFS) => "its file system is mounted read-only: mount it for writing, or give the log another place with log=FILE",
        Some(libc::EACCES | libc::EPERM) => {
            "give this user the right to write to it and to its directory, or give the log another place with log=FILE"
        }
        Some(libc::ENOSPC | libc::EDQUOT) => "make room on its file system (df, df -i, quotas)",
        _ => "look at the kernel's log (dmesg), or give the log another place with log=FILE",
    }
}

/// No room for the request: the device leaves it in the guest's ring until [`crate::Hooks::room`] is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the disk has no room for more; the request stays in the guest's ring until there is")]
pub struct Full;
