//! What the operator says about a disk (`--disk path=...`). Not here: reading the command line.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Whose copies of the disk there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Each host has its own; writes travel with the epoch.
    #[default]
    Mirror,
    /// One device that both hosts can open; writes are held until their epoch is committed.
    Shared,
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Mode::Mirror => "mirror",
            Mode::Shared => "shared",
        })
    }
}

/// How the host's page cache is used for what the guest reads and writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cache {
    /// Around it (O_DIRECT) wherever the file system and a request's alignment allow: the guest has a cache of its own.
    #[default]
    Direct,
    /// Through it.
    Buffered,
}

/// Says that whoever opens a shared disk shuts every older owner out at the storage before this process writes to it ([`crate::Disk::start_primary`], [`crate::Disk::activate`]), by means that have been tried. Without one
/// no shared disk is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fenced(());

impl Fenced {
    /// For the program, which has probed the fence (`failover::fence`), and for tests, which kill what they replace.
    #[must_use]
    pub fn attest() -> Fenced {
        Fenced(())
    }
}

/// One disk of the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskOptions {
    /// Image file or block device.
    pub path: PathBuf,
    /// Where its change log is; `<path>.lockstep` when not given (a block device needs it given).
    pub log: Option<PathBuf>,
    /// Serial number as the guest reads it, at most 20 bytes of printable ASCII; made from the disk's place when not given.
    pub serial: Option<String>,
    /// The guest cannot write to it.
    pub read_only: bool,
    /// Whose copies there are.
    pub mode: Mode,
    /// This host's copy may, and shall, be overwritten as a whole when it joins as a standby (`resync=full`). Done once in a process' life.
    pub overwrite: bool,
    /// Use of the host's page cache.
    pub cache: Cache,
    /// What a shared disk needs.
    pub fenced: Option<Fenced>,
}
