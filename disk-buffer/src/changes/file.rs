//! The change log's file: created whole, opened with checks, headers updated twice. Not here: the bytes ([`super::format`]); bitmap sectors are written by the disk's engine.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
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
            Err(source) => return Err(DiskError::io("opening the change log", path)(source)),
        };
        let bytes = read_bounded(&file, disk_bytes).map_err(DiskError::io("reading the change log", path))?;
        let Content { header, set, damaged } = format::read(&bytes, disk_bytes, path)?;
        if damaged > 0 {
            tracing::warn!(path = %path.display(), damaged, "parts of the change log are damaged, as after a loss of power; all of their regions count as changed");
        }
        let log = LogFile { path: path.to_owned(), file, header };
        log.repair(&bytes, &set, damaged > 0)?;
        Ok(Some((log, set)))
    }

    /// Creates a log, or replaces the one that is there: durable, whole or not at all.
    ///
    /// # Errors
    /// When the directory cannot be written to.
    pub fn create(path: &Path, header: Header, set: &RegionSet) -> Result<LogFile, DiskError> {
        let mut new = path.as_os_str().to_owned();
        new.push(".new");
        let new = PathBuf::from(new);
        let fail = |what| DiskError::io(what, path);
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&new).map_err(fail("creating the change log"))?;
        file.write_all(&format::write(&header, set)).and_then(|()| file.sync_all()).map_err(fail("writing the change log"))?;
        std::fs::rename(&new, path).map_err(fail("renaming the new change log to"))?;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(parent).and_then(|directory| directory.sync_all()).map_err(fail("making the directory durable of"))?;
        Ok(LogFile { path: path.to_owned(), file, header })
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
