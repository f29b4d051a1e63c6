//! What ends a standby, or keeps it from starting. The loss of a primary is not an error.

use checkpoint::{codec::CodecError, message::MessageError, verify::MemoryDifference};
use disk_buffer::DiskError;
use transport::TransportError;
use types::{Epoch, Gfn};
use vmm::VmmError;

/// Why a standby cannot go on, or why one of its steps failed.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaError {
    /// Older owners cannot be shut out of the shared disks.
    #[error(transparent)]
    Fence(#[from] failover::fence::FenceError),
    /// The machine failed.
    #[error(transparent)]
    Machine(#[from] VmmError),
    /// The link failed.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// A control message could not be made or read.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// A disk failed, or does not fit the primary's.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Bytes of the link that make no sense.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The host gives no thread.
    #[error("starting the {name} thread: {source}; the host's limit on threads may be reached (ulimit -u)")]
    Thread {
        /// Which thread.
        name: &'static str,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// A page could not be written.
    #[error("page {gfn} cannot be written to guest memory: {reason}")]
    Page {
        /// The page.
        gfn: Gfn,
        /// Why.
        reason: String,
    },
    /// Guest memory is not the primary's (`--verify-memory`).
    #[error(
        "the standby's memory is not the primary's: {0}; a checkpoint was not complete, or memory of one of the hosts fails: please report it, with both logs"
    )]
    Memory(#[source] MemoryDifference),
    /// Granted, but there is nothing whole to activate from.
    #[error(
        "granted, but no whole epoch is applied (committed {committed}, applied {applied}); the guest is lost on this node, \
         which the record names as its owner now: start the guest anew with `lockstep run` here"
    )]
    NothingToActivate {
        /// Newest committed epoch.
        committed: Epoch,
        /// Newest applied one.
        applied: Epoch,
    },
    /// Granted, but a disk does not hold what is committed, or does not come to it.
    #[error(
        "granted, but the guest cannot be started: {0}. The guest runs nowhere, and the record names this node as its owner; its other host's disk has everything that the guest had flushed: start it there with `lockstep run \
         --abandon-standby`, and this node as its standby when its disk is mended"
    )]
    Activation(#[source] DiskError),
    /// The machine state of the activation point cannot be read.
    #[error("the machine state of epoch {epoch} cannot be read: {source}")]
    State {
        /// The epoch.
        epoch: Epoch,
        /// Why.
        source: CodecError,
    },
}
