//! What any arbiter must offer: read the record, and change it by compare-and-swap.
//!
//! Lives here: the trait and its error. Not here: when to ask and what an answer means (that is [`crate::core`]), nor any
//! implementation. Guards S3: an implementation that let two swaps with the same expectation succeed would allow two runners.

use std::path::PathBuf;

use crate::record::Record;

/// The outcome of a compare-and-swap that was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Swap {
    /// The record is now the new one.
    Done,
    /// The record was another than expected and was left alone; this is what it was.
    Lost(Option<Record>),
}

/// A place both hosts can reach that changes one record atomically. Calls may block, but only for a bounded time.
pub trait Arbiter: Send {
    /// The record as it is now; `None` when the VM was never started.
    ///
    /// # Errors
    /// When no trustworthy answer can be had.
    fn read(&mut self) -> Result<Option<Record>, ArbiterError>;

    /// Replaces the record by `new` if it is `expect` now (`None`: absent).
    ///
    /// # Errors
    /// When no trustworthy answer can be had. [`ArbiterError::outcome_unknown`] tells whether the change may have happened all the same.
    fn swap(&mut self, expect: Option<&Record>, new: &Record) -> Result<Swap, ArbiterError>;
}

/// Why an arbiter gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ArbiterError {
    /// Somebody else kept the lock for longer than we wait.
    #[error("lock file {path} stayed locked for {waited_ms} ms; see who holds it (fuser {path}) or whether the storage hangs")]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// How long we waited, in milliseconds.
        waited_ms: u64,
    },
    /// The directory of the record is not there.
    #[error("directory {path} of the arbiter's record does not exist; create it, or mount the storage that both hosts see")]
    NoDirectory {
        /// The directory.
        path: PathBuf,
    },
    /// Permission refused.
    #[error("may not {what} {path}; give this user read and write permission on the file and its directory")]
    Permission {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
    },
    /// No space for the new record. The old one is untouched.
    #[error("no space left to write {path}; free some: until then nobody can be granted the guest (the old record is intact)")]
    NoSpace {
        /// The file that could not be written.
        path: PathBuf,
    },
    /// Any other failure of the storage before the record was changed. The old one is untouched.
    #[error("could not {what} {path}; the record is unchanged: see to the storage")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The content is not a record.
    #[error(
        "{path} is not an arbiter record ({why}); if it was edited by hand, restore it; if the VM runs nowhere, delete it and start again"
    )]
    Garbage {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The record is of another format version.
    #[error("{path} has record version {found}, this program knows version {known}; run the same program on both hosts")]
    Version {
        /// The file.
        path: PathBuf,
        /// The version found.
        found: u64,
        /// The version known.
        known: u64,
    },
    /// The record belongs to another VM.
    #[error("{path} is the record of VM {found:?}, not of {expected:?}; give each VM its own arbiter path")]
    OtherVm {
        /// The file.
        path: PathBuf,
        /// The VM named in it.
        found: String,
        /// The VM we are.
        expected: String,
    },
    /// The generation is lower than one seen before, or the record vanished: an old copy was put back.
    #[error(
        "{path} went back from generation {seen} to {found}: an old copy was restored or the file removed; no grant is taken from it. \
         Put back a record of at least generation {seen}, or stop every node of this VM and start afresh"
    )]
    WentBackwards {
        /// The file.
        path: PathBuf,
        /// The highest generation seen.
        seen: u64,
        /// The generation found now (0: no record).
        found: u64,
    },
    /// The swap asked for is not one that may ever happen: the generation would fall. A defect of the caller.
    #[error("refused to write generation {new} over generation {old} to {path}: generations never fall")]
    NotForward {
        /// The file.
        path: PathBuf,
        /// The generation in the record.
        old: u64,
        /// The one asked for.
        new: u64,
    },
    /// The change was under way when the failure came: it may or may not have happened, or may not last.
    #[error("could not {what} {path}: the record may have changed or not; it must be read again before anything is concluded")]
    Unknown {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// The request or its answer was lost on the way.
    #[error("no answer from arbiter {endpoint}: {why}; the change may have happened or not")]
    NoAnswer {
        /// Who was asked.
        endpoint: String,
        /// What happened.
        why: String,
    },
}

impl ArbiterError {
    /// Whether a swap that ended in this error may have happened all the same.
    #[must_use]
    pub fn outcome_unknown(&self) -> bool {
        matches!(self, ArbiterError::Unknown { .. } | ArbiterError::NoAnswer { .. })
    }
}
