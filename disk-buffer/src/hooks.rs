//! What a disk tells whoever runs the node. Not here: what the node does about it.

use std::sync::Arc;

use types::block::DiskIndex;
use types::{Epoch, Generation};

/// Called without any lock of this crate held, on the disk's own threads or on the caller's; they must not block, and must not drop the disk.
pub struct Hooks {
    /// There is room again after [`crate::Full`]: `Machine::retry_output`.
    pub room: Box<dyn Fn() + Send + Sync>,
    /// So much is recorded that the epoch should end.
    pub pressure: Box<dyn Fn() + Send + Sync>,
    /// A flush waits for the open epoch's commit: the epoch should end, as it does for waiting output.
    pub waiting: Box<dyn Fn() + Send + Sync>,
    /// Something happened.
    pub event: Box<dyn Fn(DiskEvent) + Send + Sync>,
}

impl std::fmt::Debug for Hooks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hooks")
    }
}

/// What can happen to a disk.
#[derive(Clone, Debug)]
pub enum DiskEvent {
    /// At a standby: the writes of every epoch up to this one are durable in its copy, which counts as consistent. The primary is told, and hands it to [`crate::Disk::peer_durable`].
    Durable {
        /// Which disk.
        disk: DiskIndex,
        /// Newest epoch.
        epoch: Epoch,
        /// The generation that the epoch is of, as [`crate::Disk::join`] was told.
        generation: Generation,
    },
    /// At a protected primary: a request failed, and stays in flight. The node ends its link and gives up its role; the standby executes the request on its own disk.
    GiveUp {
        /// Which disk.
        disk: DiskIndex,
        /// How it failed.
        error: Arc<std::io::Error>,
    },
    /// The medium is full, and the guest's writes that need space wait for it. Told once until there is space again.
    Full {
        /// Which disk.
        disk: DiskIndex,
        /// What is full, and what to do, for an operator.
        text: String,
    },
    /// At the primary of a shared disk: every write up to this epoch's end is on the device. The standby is told, and hands it to [`crate::Disk::issued`].
    Issued {
        /// Which disk.
        disk: DiskIndex,
        /// The generation of the epoch.
        generation: Generation,
        /// Newest epoch.
        epoch: Epoch,
    },
    /// Another node has shut this one out of a shared disk ([`types::block::is_reservation_conflict`]): the request has no answer, nothing more is handed out, and the node stops its guest.
    ShutOut {
        /// Which disk.
        disk: DiskIndex,
        /// What the disk said.
        error: Arc<std::io::Error>,
    },
    /// At a standby: its copy cannot follow any more; it must not be activated, and the primary must strike it out.
    Failed {
        /// Which disk.
        disk: DiskIndex,
        /// What failed.
        error: Arc<std::io::Error>,
    },
}
