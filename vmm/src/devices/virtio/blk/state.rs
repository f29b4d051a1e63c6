//! The saved state of a disk.
//!
//! Lives here: the payload and its version. Not here: content (the image, and what travels with the epochs). Guards S5: a request that was taken from the
//! ring and not answered is carried out anew by whoever restores this, so it completes exactly once as the guest sees it.

use serde::{Deserialize, Serialize};
use types::block::BlockInfo;

use crate::devices::virtio::SavedCore;

/// Version of [`BlkState`]'s content. A disk refuses any other.
pub const BLK_STATE_VERSION: u16 = 1;

/// Everything about a disk that is neither in guest memory nor on the medium.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlkState {
    /// [`BLK_STATE_VERSION`] of the program that wrote it.
    pub version: u16,
    /// What the guest sees; must fit the disk of the host that restores it.
    pub info: BlockInfo,
    /// Status, features and queue.
    pub core: SavedCore,
    /// Heads of the chains taken from the ring and not given back, oldest first.
    pub in_flight: Vec<u16>,
}
