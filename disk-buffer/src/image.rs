//! An image file or block device, opened: checked, locked against other processes, and with what it can do found out.
//!
//! Lives here: opening, two disks being one, holes, emptiness, the digest of a read-only disk. Not here: reading and writing for the guest ([`crate::engine`]). Blocking calls: at the start, and
//! on threads of their own.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use types::block::{BlockInfo, SECTOR};
use xxhash_rust::xxh3::Xxh3;

use crate::changes::ImageFile;
use crate::error::DiskError;
use crate::identity::SharedDevice;
use crate::medium::Medium;
use crate::options::Cache;
use crate::regions::MAX_DISK_BYTES;

/// Direct requests must be multiples of no more than this; a medium that wants more is used through the page cache. It is also the grain in which requests are kept from overtaking each other.
pub const DIRECT_ALIGN_MAX: u64 = 4096;

/// Unit of the scans for content.
const SCAN_BYTES: usize = 1 << 20;

ioctl_read! {
    /// Size of a block device in bytes (linux/fs.h: BLKGETSIZE64, declared with size_t).
    blkgetsize64, 0x12, 114, libc::size_t
}
nix::ioctl_read_bad! {
    /// Logical block size of a block device (linux/fs.h: BLKSSZGET).
    blksszget, nix::request_code_none!(0x12, 104), libc::c_int
}
nix::ioctl_read_bad! {
    /// Physical block size of a block device (linux/fs.h: BLKPBSZGET).
    blkpbszget, nix::request_code_none!(0x12, 123), libc::c_uint
}
use nix::ioctl_read;

/// A disk image or block device, opened and locked against other processes of this host.
#[derive(Debug)]
pub struct Image {
    path: PathBuf,
    file: File,
    direct: Option<File>,
    /// Offsets and lengths that are multiples of this may go around the page cache.
    align: u64,
    bytes: u64,
    physical_block: u32,
    device: bool,
    identity: ImageFile,
    read_only: bool,
    /// What it lies on; not known of a shared disk.
    medium: Medium,
    /// A shared disk's; then `file` and `direct` are one.
    shared: Option<Shared>,
}

/// What is special of a disk that two hosts can open.
#[derive(Debug)]
struct Shared {
    name: SharedDevice,
    key: Key,
    /// The only descriptor that can write: there is none before this process has the disk for itself on this host.
    writer: OnceLock<File>,
}

/// What makes two open images one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// File system and inode.
    File(u64, u64),
    /// Number of the block device.
    Device(u64),
}

impl Key {
    /// What a path leads to, through any link.
    #[must_use]
    pub fn of(metadata: &std::fs::Metadata) -> Key {
        if metadata.file_type().is_block_device() { Key::Device(metadata.rdev()) } else { Key::File(metadata.dev(), metadata.ino()) }
    }
}

impl Image {
    /// Opens and locks an image.
    ///
    /// # Errors
    /// What is wrong with it, and what to do about it.
    pub fn open(path: &Path, read_only: bool, cache: Cache) -> Result<Image, DiskError> {
        let (path, metadata) = look(path)?;
        let device = metadata.file_type().is_block_device();
        // A device that is mounted, or is another writer's, refuses a second exclusive opening (open(2), O_EXCL).
        let exclusive = if device && !read_only { libc::O_EXCL } else { 0 };
        let mut options = OpenOptions::new();
        options.read(true).write(!read_only).custom_flags(exclusive);
        let file = options.open(&path).map_err(|error| match error.raw_os_error() {
            Some(libc::EACCES | libc::EROFS | libc::EPERM) if !read_only => DiskError::ReadOnly(path.clone()),
            Some(libc::EBUSY) => DiskError::InUse(path.clone()),
            _ => DiskError::io("opening", &path)(error),
        })?;
        lock(&file, read_only, &path)?;
        let (bytes, physical_block) = sizes(&file, &metadata, &path)?;
        let (direct, align) = match cache {
            Cache::Buffered => (None, DIRECT_ALIGN_MAX),
            Cache::Direct => open_direct(&path, read_only, &file),
        };
        tracing::info!(path = %path.display(), bytes, device, read_only, direct = direct.is_some(), align, "disk image opened");
        let born = metadata.created().ok().and_then(|born| born.duration_since(std::time::UNIX_EPOCH).ok());
        let identity = match device {
            true => ImageFile::default(),
            false => ImageFile { inode: metadata.ino(), born: born.map_or(0, |born| born.as_nanos() as u64) },
        };
        let medium = Medium::of(&file, &metadata);
        if device && !read_only && medium.name.is_none() {
            tracing::warn!(path = %path.display(), "this device has no world-wide name: make sure that the other host's disk is another device, because a copy over itself would destroy it");
        }
        Ok(Image { path, file, direct, align, bytes, physical_block, device, identity, read_only, medium, shared: None })
    }

    /// Opens a disk that another host may be using, for reading, and never through the page cache. Direct requests are multiples of what the medium wants, and of `unit`.
    ///
    /// # Errors
    /// What is wrong with it, and what to do about it.
    pub fn open_shared(path: &Path, read_only: bool, unit: u64) -> Result<Image, DiskError> {
        let (path, metadata) = look(path)?;
        let device = metadata.file_type().is_block_device();
        let open = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&path);
        let file = open.map_err(|error| match error.raw_os_error() {
            Some(libc::EINVAL) => DiskError::NoDirect(path.clone()),
            _ => DiskError::io("opening", &path)(error),
        })?;
        let (bytes, physical_block) = sizes(&file, &metadata, &path)?;
        let align = match dio_align(&file) {
            Ok(Some((0, _) | (_, 0))) => return Err(DiskError::NoDirect(path)),
            Ok(Some((memory, offset))) if u64::from(memory.max(offset)) <= DIRECT_ALIGN_MAX => u64::from(offset.max(SECTOR as u32)),
            Ok(Some(_)) => return Err(DiskError::NoDirect(path)),
            // As in `open_direct`; a device's unit is its logical block.
            Ok(None) | Err(_) if device => u64::from(logical_block(&file).map_err(DiskError::io("asking for the blocks of", &path))?),
            Ok(None) | Err(_) => DIRECT_ALIGN_MAX,
        };
        let align = align.max(unit);
        if align > DIRECT_ALIGN_MAX {
            return Err(DiskError::NoDirect(path));
        }
        if !bytes.is_multiple_of(align) {
            return Err(DiskError::SharedSize { path, bytes, align });
        }
        let name = SharedDevice::of(&metadata).ok_or_else(|| DiskError::NoName(path.clone()))?;
        if read_only {
            lock(&file, true, &path)?;
        }
        tracing::info!(path = %path.display(), bytes, device, read_only, align, name = %name, "shared disk opened");
        let shared = Shared { name, key: Key::of(&metadata), writer: OnceLock::new() };
        Ok(Image {
            path,
            file,
            direct: None,
            align,
            bytes,
            physical_block,
            device,
            identity: ImageFile::default(),
            read_only,
            medium: Medium::default(),
            shared: Some(shared),
        })
    }

    /// Makes this process the only one of its host that can write to a shared disk; from here on it can. Harmless a second time.
    ///
    /// # Errors
    /// [`DiskError::InUse`], or why it cannot be written to.
    pub fn claim(&self) -> Result<(), DiskError> {
        let Some(shared) = self.shared.as_ref().filter(|shared| !self.read_only && shared.writer.get().is_none()) else { return Ok(()) };
        let path = &self.path;
        // As in `open`.
        let exclusive = if self.device { libc::O_EXCL } else { 0 };
        let open = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT | exclusive).open(path);
        let file = open.map_err(|error| match error.raw_os_error() {
            Some(libc::EACCES | libc::EROFS | libc::EPERM) => DiskError::ReadOnly(path.clone()),
            Some(libc::EBUSY) => DiskError::InUse(path.clone()),
            _ => DiskError::io("opening", path)(error),
        })?;
        let metadata = file.metadata().map_err(DiskError::io("looking at", path))?;
        if Key::of(&metadata) != shared.key {
            return Err(DiskError::io("opening", path)(io::Error::other(
                "another file or device is there now than when this node was started",
            )));
        }
        lock(&file, false, path)?;
        // Another thread of this process was faster: its descriptor is as good.
        let _ = shared.writer.set(file);
        Ok(())
    }

    /// Which device or file a shared disk is.
    #[must_use]
    pub fn shared_name(&self) -> Option<&SharedDevice> {
        self.shared.as_ref().map(|shared| &shared.name)
    }

    /// What it lies on.
    pub(crate) fn medium(&self) -> &Medium {
        &self.medium
    }

    /// The page cache must never be used; the unit of requests.
    #[must_use]
    pub fn strict(&self) -> Option<u64> {
        self.shared.as_ref().map(|_| self.align)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Which file it is, for the change log's header.
    #[must_use]
    pub fn identity(&self) -> ImageFile {
        self.identity
    }

    /// What the guest is shown of it. The same on every host that has a copy, whatever the medium: hosts compare it.
    #[must_use]
    pub fn shown(&self, serial: [u8; 20]) -> BlockInfo {
        BlockInfo {
            bytes: self.bytes,
            read_only: self.read_only,
            logical_block: SECTOR as u32,
            physical_block: DIRECT_ALIGN_MAX as u32,
            serial,
        }
    }

    /// Its size.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// A block device, not a file.
    #[must_use]
    pub fn is_device(&self) -> bool {
        self.device
    }

    /// Opened for reading only.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Unit in which the medium works best, 512 to 4096.
    #[must_use]
    pub fn physical_block(&self) -> u32 {
        self.physical_block
    }

    /// For requests through the page cache, of any alignment.
    #[must_use]
    pub fn fd(&self) -> RawFd {
        let writer = self.shared.as_ref().and_then(|shared| shared.writer.get());
        writer.unwrap_or(&self.file).as_raw_fd()
    }

    /// For requests around the page cache, and what their offset and length must be multiples of.
    #[must_use]
    pub fn direct(&self) -> Option<(RawFd, u64)> {
        match &self.shared {
            Some(_) => Some((self.fd(), self.align)),
            None => self.direct.as_ref().map(|file| (file.as_raw_fd(), self.align)),
        }
    }

    /// The ranges that are not known to be holes, in ascending order. Writes under way may or may not be seen.
    ///
    /// # Errors
    /// When the file cannot be asked.
    pub fn data_ranges(&self) -> io::Result<Vec<Range<u64>>> {
        if self.device {
            return Ok(std::iter::once(0..self.bytes).collect());
        }
        let mut ranges: Vec<Range<u64>> = Vec::new();
        let mut at = 0;
        while at < self.bytes {
            let Some(start) = seek(&self.file, at, libc::SEEK_DATA)? else { break };
            let end = seek(&self.file, start, libc::SEEK_HOLE)?.unwrap_or(self.bytes).min(self.bytes);
            if start >= self.bytes || end <= start {
                break;
            }
            ranges.push(start..end);
            at = end;
        }
        Ok(ranges)
    }

    /// Whether it holds nothing but zeros. Content is found near the start of most disks, so only empty ones are read to the end.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn is_empty(&self) -> Result<bool, DiskError> {
        self.is_empty_while(|_| true)
    }

    /// As [`Image::is_empty`]; ends, with an answer that nobody wants, when `go_on` is told how far it has come and says `false`.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn is_empty_while(&self, mut go_on: impl FnMut(u64) -> bool) -> Result<bool, DiskError> {
        let mut empty = true;
        self.scan(|offset, bytes| {
            empty = is_zero(bytes);
            empty && go_on(offset)
        })?;
        Ok(empty)
    }

    /// Digest of the whole content: the same for a hole and for zeros.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn digest(&self) -> Result<u64, DiskError> {
        let mut digest = Xxh3::new();
        digest.update(&self.bytes.to_le_bytes());
        self.scan(|offset, bytes| {
            if !is_zero(bytes) {
                digest.update(&offset.to_le_bytes());
                digest.update(bytes);
            }
            true
        })?;
        Ok(digest.digest())
    }

    /// Gives the content to `look`, in pieces whose place depends on the size alone, without those that are holes wholly; ends when it says `false`.
    fn scan(&self, mut look: impl FnMut(u64, &[u8]) -> bool) -> Result<(), DiskError> {
        let fail = || DiskError::io("reading", &self.path);
        let mut buffer = vec![0; SCAN_BYTES];
        let mut next = 0;
        for range in self.data_ranges().map_err(fail())? {
            let mut offset = (range.start / SCAN_BYTES as u64 * SCAN_BYTES as u64).max(next);
            while offset < range.end {
                let len = (self.bytes - offset).min(SCAN_BYTES as u64) as usize;
                self.file.read_exact_at(&mut buffer[..len], offset).map_err(fail())?;
                if !look(offset, &buffer[..len]) {
                    return Ok(());
                }
                offset += len as u64;
            }
            next = offset;
        }
        Ok(())
    }
}

/// Size of what is at a path, if it can be a disk. Locks nothing, and works beside a node that has it.
///
/// # Errors
/// As of [`Image::open`].
pub fn disk_bytes(path: &Path) -> Result<u64, DiskError> {
    let (path, metadata) = look(path)?;
    let file = File::open(&path).map_err(DiskError::io("opening", &path))?;
    sizes(&file, &metadata, &path).map(|(bytes, _)| bytes)
}

/// Nothing but zeros.
#[must_use]
pub fn is_zero(bytes: &[u8]) -> bool {
    // The first bytes decide nearly always; the comparison with itself, shifted, is a memcmp.
    bytes.first().is_none_or(|first| *first == 0) && bytes.len() < 2 || bytes.first() == Some(&0) && bytes[1..] == bytes[..bytes.len() - 1]
}

/// A lock of the open file (fcntl(2), "Open file description locks") over all of it: writers exclude everybody, readers exclude writers. It goes with the last descriptor, hence with the
/// last request in flight of a process that died. QEMU's image locks are of the same kind, so it is excluded too.
fn lock(file: &File, read_only: bool, path: &Path) -> Result<(), DiskError> {
    let kind = if read_only { libc::F_RDLCK } else { libc::F_WRLCK };
    let lock = libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start: 0, l_len: 0, l_pid: 0 };
    match nix::fcntl::fcntl(file, nix::fcntl::FcntlArg::F_OFD_SETLK(&lock)) {
        Ok(_) => Ok(()),
        Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EACCES) => Err(DiskError::InUse(path.to_owned())),
        Err(error) => Err(DiskError::io("locking", path)(error.into())),
    }
}

/// What a path leads to.
fn look(path: &Path) -> Result<(PathBuf, Metadata), DiskError> {
    let path = path.canonicalize().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => DiskError::Missing(path.to_owned()),
        _ => DiskError::io("finding", path)(error),
    })?;
    let metadata = path.metadata().map_err(DiskError::io("looking at", &path))?;
    if !metadata.file_type().is_block_device() && !metadata.is_file() {
        return Err(DiskError::NotAnImage(path));
    }
    Ok((path, metadata))
}

/// Size and physical block of what can be a disk.
fn sizes(file: &File, metadata: &Metadata, path: &Path) -> Result<(u64, u32), DiskError> {
    let (bytes, physical_block) = if metadata.file_type().is_block_device() {
        device_sizes(file).map_err(DiskError::io("asking for the size of", path))?
    } else {
        (metadata.len(), u32::try_from(metadata.blksize()).unwrap_or(4096).clamp(512, 4096))
    };
    if bytes == 0 || !bytes.is_multiple_of(SECTOR) {
        return Err(DiskError::Size { path: path.to_owned(), bytes });
    }
    if bytes > MAX_DISK_BYTES {
        return Err(DiskError::TooLarge { path: path.to_owned(), bytes });
    }
    Ok((bytes, physical_block))
}

fn logical_block(file: &File) -> io::Result<u32> {
    let mut logical = 0;
    // SAFETY: BLKSSZGET writes one int (linux/fs.h); the descriptor is open.
    unsafe { blksszget(file.as_raw_fd(), &raw mut logical)? };
    Ok(logical as u32)
}

fn device_sizes(file: &File) -> io::Result<(u64, u32)> {
    let (mut bytes, mut logical, mut physical) = (0, 0, 0);
    // SAFETY: BLKGETSIZE64 writes one u64 (linux/fs.h says size_t, block/ioctl.c puts a u64), BLKSSZGET one int, BLKPBSZGET one unsigned int; the descriptor is open.
    unsafe {
        blkgetsize64(file.as_raw_fd(), &raw mut bytes)?;
        blksszget(file.as_raw_fd(), &raw mut logical)?;
        blkpbszget(file.as_raw_fd(), &raw mut physical)?;
    }
    Ok((bytes as u64, physical.max(logical as u32).clamp(512, 4096)))
}

/// A second descriptor for direct requests, where the file system can do them with an alignment that we can use.
fn open_direct(path: &Path, read_only: bool, file: &File) -> (Option<File>, u64) {
    let none = (None, DIRECT_ALIGN_MAX);
    let align = match dio_align(file) {
        Ok(Some((0, _) | (_, 0))) => return none,
        Ok(Some((memory, offset))) if u64::from(memory.max(offset)) <= DIRECT_ALIGN_MAX => u64::from(offset.max(SECTOR as u32)),
        Ok(Some(_)) => return none,
        // Before Linux 6.1 the kernel does not say; 4096 is enough everywhere.
        Ok(None) | Err(_) => DIRECT_ALIGN_MAX,
    };
    let mut options = OpenOptions::new();
    match options.read(true).write(!read_only).custom_flags(libc::O_DIRECT).open(path) {
        Ok(file) => (Some(file), align),
        Err(error) => {
            tracing::info!(path = %path.display(), %error, "no direct access; the page cache is used");
            none
        }
    }
}

/// Alignment of memory and of offsets for direct requests (statx(2), STATX_DIOALIGN). `None`: the kernel does not say.
fn dio_align(file: &File) -> io::Result<Option<(u32, u32)>> {
    let mut answer = std::mem::MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: statx(2) reads the empty path, which is a C string, and writes one struct statx; with AT_EMPTY_PATH it is about the open descriptor.
    let result = unsafe { libc::statx(file.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, libc::STATX_DIOALIGN, answer.as_mut_ptr()) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all zeros are a valid struct statx, and the kernel filled in what it knows.
    let answer = unsafe { answer.assume_init() };
    Ok((answer.stx_mask & libc::STATX_DIOALIGN != 0).then_some((answer.stx_dio_mem_align, answer.stx_dio_offset_align)))
}

/// lseek(2) for SEEK_DATA or SEEK_HOLE; `None` when there is none from there on. The descriptor's position is used by nothing else.
fn seek(file: &File, from: u64, what: i32) -> io::Result<Option<u64>> {
    let whence = if what == libc::SEEK_DATA { nix::unistd::Whence::SeekData } else { nix::unistd::Whence::SeekHole };
    match nix::unistd::lseek64(file, i64::try_from(from).map_err(io::Error::other)?, whence) {
        Ok(at) => Ok(u64::try_from(at).ok()),
        Err(nix::errno::Errno::ENXIO) => Ok(None),
        // A file system that does not know holes: all of it is data.
        Err(nix::errno::Errno::EINVAL) => Ok((what == libc::SEEK_DATA).then_some(from)),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
#[path = "image_tests.rs"]
mod tests;
