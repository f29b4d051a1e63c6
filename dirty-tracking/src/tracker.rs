//! The contract that every way of tracking dirty pages keeps ([`DirtyTracker`]), and the words to choose one.
//!
//! Not here: the implementations. Guards S5: the contract says when a write may be missed (never) and when pages may be read.

use crate::DirtySet;

/// Which tracker to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// The one that is cheaper for the machine's size on this host.
    #[default]
    Auto,
    /// KVM's dirty bitmap with manual protection.
    Bitmap,
    /// KVM's dirty ring.
    Ring,
}

/// What a tracker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// KVM's dirty bitmap.
    Bitmap,
    /// KVM's dirty ring, one per vCPU.
    Ring,
    /// The VMM's own writes.
    Device,
    /// Several of these, merged.
    Merged,
}

/// Why dirty tracking failed.
#[derive(Debug, thiserror::Error)]
pub enum TrackingError {
    /// The host's KVM lacks what the chosen tracker needs.
    #[error("this host's KVM has no {0}; choose another way of dirty tracking (or `auto`), or use a newer kernel")]
    Unsupported(&'static str),
    /// An ioctl failed.
    #[error("{what} failed: {source}; dirty pages may be unknown, so the epoch cannot be trusted")]
    Ioctl {
        /// Which ioctl, on what.
        what: &'static str,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// The kernel reported a frame that is no guest memory.
    #[error("the dirty ring of vCPU {vcpu} names slot {slot} offset {offset}, which is no guest memory: the ring is corrupt")]
    WildEntry {
        /// Whose ring.
        vcpu: usize,
        /// The slot it names.
        slot: u32,
        /// The page offset in the slot.
        offset: u64,
    },
}

/// A source of dirty pages.
///
/// Contract: between `enable` and `disable` every write to guest memory that the tracker is in charge of is in the set of exactly the
/// collects that follow it; a page may be reported without having changed, never the other way round.
pub trait DirtyTracker: Send {
    /// What it is.
    fn kind(&self) -> Kind;

    /// Starts tracking with an empty log: writes after the return are logged. May be called again after `disable`.
    ///
    /// # Errors
    /// When the kernel refuses; the log is then off.
    fn enable(&mut self) -> Result<(), TrackingError>;

    /// Stops tracking; what was logged is dropped.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn disable(&mut self) -> Result<(), TrackingError>;

    /// Takes the log into `into` (adding to what is there) and re-arms it: when this returns, later writes are logged again. When vCPUs
    /// run it must be called *before* the pages are read, or a write between reading and re-arming would be lost.
    ///
    /// # Errors
    /// When the kernel refuses; pages found until then are in `into`.
    fn collect(&mut self, into: &mut DirtySet) -> Result<(), TrackingError>;

    /// About how many pages are dirty, without taking them: cheap, for deciding when an epoch ends.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn estimate(&mut self) -> Result<u64, TrackingError>;
}
