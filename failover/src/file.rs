//! An arbiter on storage that both hosts see: one JSON file, replaced atomically under a lock.
//!
//! Lives here: the file's format, its lock, the order of its system calls, and what their failures mean. Not here: when to ask. Guards
//! S3: two swaps with the same expectation never both succeed, and a swap that succeeded outlives a crash of the storage's host.
//!
//! A swap is: lock (`<file>.lock`, flock, bounded wait), read, compare, write `<file>.new` in the same directory, fsync it, rename it over
//! the file, fsync the directory, unlock. Up to the rename every failure leaves the old record as it was; from the rename on a failure
//! means that the outcome is unknown ([`ArbiterError::outcome_unknown`]). The lock goes with the process that holds it. A read needs no
//! lock: the rename shows it either the old record or the new one. On NFS, flock works between hosts (Linux turns it into a lock at the server).

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use types::VmId;

use crate::arbiter::{Arbiter, ArbiterError, Swap};
use crate::record::Record;

/// The version of the file's format that is written: 2 names hosts beside nodes.
const VERSION: u64 = 2;
/// The oldest that is read.
const OLDEST: u64 = 1;
/// No record is longer than this; a longer file is no record. Names are the only part without a fixed length.
const MAX_BYTES: u64 = 16 * 1024;
/// How long a swap waits for the lock: a swap holds it for a few fsyncs.
pub const DEFAULT_LOCK_WAIT: Duration = Duration::from_millis(500);
/// Pause between two attempts at the lock (flock has no time-out of its own).
const LOCK_RETRY: Duration = Duration::from_millis(1);

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    version: u64,
    vm: VmId,
    record: Record,
}

/// The arbiter of one VM in one file.
#[derive(Debug)]
pub struct FileArbiter {
    path: PathBuf,
    vm: VmId,
    lock_wait: Duration,
    /// The highest generation read or written by this process.
    seen: u64,
}

impl FileArbiter {
    /// The arbiter of `vm` in the file `path`, which need not exist yet; its directory must, when it is first used.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>, vm: VmId) -> FileArbiter {
        FileArbiter { path: path.into(), vm, lock_wait: DEFAULT_LOCK_WAIT, seen: 0 }
    }

    /// Waits for the lock at most so long.
    #[must_use]
    pub fn with_lock_wait(mut self, wait: Duration) -> FileArbiter {
        self.lock_wait = wait;
        self
    }

    /// Where the record is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(suffix);
        PathBuf::from(name)
    }

    fn directory(&self) -> &Path {
        self.path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
    }

    /// Takes the lock; closing the file gives it back. Never unlocked in words: storage that grants locks may refuse to answer that (virtiofs
    /// does), and a lock that is not given back must not end the arbiter's thread.
    fn lock(&self) -> Result<File, ArbiterError> {
        let path = self.beside(".lock");
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(|e| self.explain("open", &path, e))?;
        let start = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::Error(e)) if e.kind() != ErrorKind::Interrupted => return Err(self.explain("lock", &path, e)),
                Err(_) if start.elapsed() < self.lock_wait => {}
                Err(_) => {
                    return Err(ArbiterError::Locked { path, waited_ms: start.elapsed().as_millis().try_into().unwrap_or(u64::MAX) });
                }
            }
            std::thread::sleep(LOCK_RETRY);
        }
    }

    fn load(&mut self) -> Result<Option<Record>, ArbiterError> {
        let record = match File::open(&self.path) {
            Ok(file) => Some(self.parse(file)?),
            Err(e) if e.kind() == ErrorKind::NotFound && self.directory().is_dir() => None,
            Err(e) => return Err(self.explain("read", &self.path, e)),
        };
        let found = record.as_ref().map_or(0, |r| r.generation.0);
        if found < self.seen {
            return Err(ArbiterError::WentBackwards { path: self.path.clone(), seen: self.seen, found });
        }
        self.seen = found;
        Ok(record)
    }

    fn parse(&self, file: File) -> Result<Record, ArbiterError> {
        let garbage = |why: String| ArbiterError::Garbage { path: self.path.clone(), why };
        let mut text = Vec::new();
        file.take(MAX_BYTES + 1).read_to_end(&mut text).map_err(|e| self.explain("read", &self.path, e))?;
        if text.len() as u64 > MAX_BYTES {
            return Err(garbage(format!("longer than {MAX_BYTES} bytes")));
        }
        let value: serde_json::Value = serde_json::from_slice(&text).map_err(|e| garbage(e.to_string()))?;
        match value.get("version").and_then(serde_json::Value::as_u64) {
            Some(OLDEST..=VERSION) => {}
            Some(found) => return Err(ArbiterError::Version { path: self.path.clone(), found, known: VERSION }),
            None => return Err(garbage("no version in it".to_owned())),
        }
        let content: Content = serde_json::from_value(value).map_err(|e| garbage(e.to_string()))?;
        if content.vm != self.vm {
            return Err(ArbiterError::OtherVm { path: self.path.clone(), found: content.vm.0, expected: self.vm.0.clone() });
        }
        if content.record.generation.0 == 0 || content.record.owner.0.is_empty() {
            return Err(garbage("generation 0 or an empty owner".to_owned()));
        }
        Ok(content.record)
    }

    fn store(&mut self, new: &Record) -> Result<(), ArbiterError> {
        let temp = self.beside(".new");
        if let Err(e) = self.write_temp(&temp, new) {
            // The attempt's remains would only take the space that is short; failing to remove them changes nothing.
            let _ = fs::remove_file(&temp);
            return Err(self.explain("write", &temp, e));
        }
        let unknown = |what, path: &Path, source| ArbiterError::Unknown { what, path: path.to_owned(), source };
        fs::rename(&temp, &self.path).map_err(|e| unknown("rename the new record over", &self.path, e))?;
        let directory = self.directory();
        File::open(directory).and_then(|d| d.sync_all()).map_err(|e| unknown("make the rename last in", directory, e))?;
        self.seen = self.seen.max(new.generation.0);
        Ok(())
    }

    fn write_temp(&self, temp: &Path, new: &Record) -> std::io::Result<()> {
        let content = Content { version: VERSION, vm: self.vm.clone(), record: new.clone() };
        let mut text = serde_json::to_vec_pretty(&content).map_err(std::io::Error::other)?;
        text.push(b'\n');
        let mut file = File::create(temp)?;
        file.write_all(&text)?;
        file.sync_all()
    }

    /// Names a failure before the rename: the record is unchanged.
    fn explain(&self, what: &'static str, path: &Path, source: std::io::Error) -> ArbiterError {
        let path = path.to_owned();
        match source.kind() {
            ErrorKind::NotFound if !self.directory().is_dir() => ArbiterError::NoDirectory { path: self.directory().to_owned() },
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => ArbiterError::Permission { what, path },
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => ArbiterError::NoSpace { path },
            _ => ArbiterError::Io { what, path, source },
        }
    }
}

impl Arbiter for FileArbiter {
    fn read(&mut self) -> Result<Option<Record>, ArbiterError> {
        self.load()
    }

    fn swap(&mut self, expect: Option<&Record>, new: &Record) -> Result<Swap, ArbiterError> {
        let lock = self.lock()?;
        let current = self.load()?;
        if current.as_ref() != expect {
            return Ok(Swap::Lost(current));
        }
        let old = current.map_or(0, |r| r.generation.0);
        if new.generation.0 < old.max(1) {
            return Err(ArbiterError::NotForward { path: self.path.clone(), old, new: new.generation.0 });
        }
        self.store(new)?;
        drop(lock);
        if expect == Some(new) {
            // A question in the form of a swap: is it still so?
            return Ok(Swap::Done);
        }
        tracing::info!(path = %self.path.display(), generation = new.generation.0, owner = %new.owner, standby = ?new.standby, "arbiter record changed");
        Ok(Swap::Done)
    }
}

#[cfg(test)]
mod tests;
