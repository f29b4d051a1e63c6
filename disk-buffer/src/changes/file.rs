//! The change log's file: created whole, opened with checks, headers updated twice. Not here: the bytes ([`super::format`]); bitmap sectors are written by the disk's engine.
//!
//! A new log has its name only when there is something to say in it: a guest runs on the image, or a standby was accepted with it. So a node that is refused leaves nothing beside an image that it may have been given by mistake,
//! and no log that was to be replaced is lost.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::changes::format::{self, BITMAP_AT, Content, HEADER_AT, Header, SECTOR_BYTES};
use crate::error::DiskError;
use crate::regions::RegionSet;

/// An open change log.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    file: File,
    header: Header,
    birth: Birth,
}

/// How far a log has come to its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Birth {
    /// A file without any name, which goes when it is closed.
    Nameless,
    /// Where the file system has no such files: under the name of a log in the making.
    Made,
    /// It has its name, which a loss of power may take.
    Placed,
    /// It has its name.
    Named,
}

/// `<image>.lockstep`.
#[must_use]
pub fn beside(image: &Path) -> PathBuf {
    let mut name = image.as_os_str().to_owned();
    name.push(".lockstep");
    name.into()
}

impl LogFile {
    /// Opens a log; `None` when there is none.
    ///
    /// # Errors
    /// As [`format::read`], and when the file cannot be read and written.
    pub fn open(path: &Path, disk_bytes: u64) -> Result<Option<(LogFile, RegionSet)>, DiskError> {
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(DiskError::log("opened", path)(source)),
        };
        let bytes = read_bounded(&file, disk_bytes).map_err(DiskError::io("reading the change log", path))?;
        let Content { header, set, damaged } = format::read(&bytes, disk_bytes, path)?;
        if damaged > 0 {
            tracing::warn!(path = %path.display(), damaged, "parts of the change log are damaged, as after a loss of power; all of their regions count as changed");
        }
        let log = LogFile { path: path.to_owned(), file, header, birth: Birth::Named };
        log.repair(&bytes, &set, damaged > 0)?;
        Ok(Some((log, set)))
    }

    /// Makes a log that takes its name, and the place of one that is there, with the first [`LogFile::update`]: durable, whole or not at all. Dropped before, it leaves nothing.
    ///
    /// # Errors
    /// When the directory cannot be written to.
    pub fn create(path: &Path, header: Header, set: &RegionSet) -> Result<LogFile, DiskError> {
        let mut options = OpenOptions::new();
        let (mut file, birth) = match options.read(true).write(true).custom_flags(libc::O_TMPFILE).open(directory(path)) {
            Ok(file) => (file, Birth::Nameless),
            // Not every file system has it (NFS); what else is wrong is found again.
            Err(_) => {
                let made = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(in_the_making(path));
                (made.map_err(DiskError::log("created", path))?, Birth::Made)
            }
        };
        let log = file.write_all(&format::write(&header, set)).map(|()| LogFile { path: path.to_owned(), file, header, birth });
        log.map_err(DiskError::log("written", path))
    }

    /// Gives a new log its name.
    fn name(&mut self) -> io::Result<()> {
        if self.birth == Birth::Named {
            return Ok(());
        }
        let made = in_the_making(&self.path);
        self.file.sync_all()?;
        if self.birth == Birth::Nameless {
            match std::fs::remove_file(&made) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let file = format!("/proc/self/fd/{}", self.file.as_raw_fd());
            // As open(2) has it under O_TMPFILE; a link cannot take the place of another file, so it is renamed like any other.
            nix::unistd::linkat(nix::fcntl::AT_FDCWD, file.as_str(), nix::fcntl::AT_FDCWD, &made, nix::fcntl::AtFlags::AT_SYMLINK_FOLLOW)?;
            self.birth = Birth::Made;
        }
        if self.birth == Birth::Made {
            std::fs::rename(&made, &self.path)?;
            self.birth = Birth::Placed;
        }
        File::open(directory(&self.path)).and_then(|directory| directory.sync_all())?;
        self.birth = Birth::Named;
        Ok(())
    }

    /// The header as it is on the medium.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Changes the header, durably: returns when both copies are on the medium.
    ///
    /// # Errors
    /// When it cannot be written; then the old one counts, or the new one.
    pub fn update(&mut self, change: impl FnOnce(&mut Header)) -> Result<(), DiskError> {
        let mut header = self.header;
        change(&mut header);
        header.sequence += 1;
        let sector = header.encode();
        for at in HEADER_AT {
            let written = self.file.write_all_at(&sector, at).and_then(|()| self.file.sync_data());
            written.map_err(DiskError::io("writing the change log", &self.path))?;
        }
        self.name().map_err(DiskError::log("given its name", self.path.as_path()))?;
        self.header = header;
        Ok(())
    }

    /// For the engine, which writes the bitmap.
    #[must_use]
    pub fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Writes again what is not as it should be, never the copy of the header that counts: were the other one left torn, the next update could tear both.
    fn repair(&self, bytes: &[u8], set: &RegionSet, bitmap: bool) -> Result<(), DiskError> {
        let whole = format::write(&self.header, set);
        let places = HEADER_AT
            .map(|at| at as usize..at as usize + SECTOR_BYTES)
            .into_iter()
            .filter(|place| bytes.get(place.clone()) != Some(&whole[place.clone()]));
        let bitmap = bitmap.then_some(BITMAP_AT as usize..whole.len());
        for place in places.chain(bitmap) {
            let written = self.file.write_all_at(&whole[place.clone()], place.start as u64).and_then(|()| self.file.sync_data());
            written.map_err(DiskError::io("repairing the change log", &self.path))?;
        }
        Ok(())
    }
}

impl Drop for LogFile {
    fn drop(&mut self) {
        if self.birth == Birth::Made {
            let _ = std::fs::remove_file(in_the_making(&self.path));
        }
    }
}

fn directory(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn in_the_making(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

/// No more than a log of such a disk has: the file is whatever somebody put there.
fn read_bounded(file: &File, disk_bytes: u64) -> io::Result<Vec<u8>> {
    let sectors = format::bitmap_sectors(RegionSet::new(disk_bytes).regions());
    let mut bytes = vec![0; format::BITMAP_AT as usize + sectors as usize * format::SECTOR_BYTES];
    let mut have = 0;
    while have < bytes.len() {
        match file.read_at(&mut bytes[have..], have as u64) {
            Ok(0) => break,
            Ok(read) => have += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(have);
    Ok(bytes)
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
