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
}
