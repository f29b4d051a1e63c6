//! The saved state of a network card.
//!
//! Lives here: the payload and its version. Not here: frames (those the guest sent are output, those it has not taken are still in its
//! ring or lost like on any network). Guards S5.

use serde::{Deserialize, Serialize};

use super::{Learned, Mac};
use crate::devices::virtio::SavedCore;

/// Version of [`NetState`]'s content. A card refuses any other.
pub const NET_STATE_VERSION: u16 = 1;

/// Everything about a network card that is not in guest memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetState {
    /// [`NET_STATE_VERSION`] of the program that wrote it.
    pub version: u16,
    /// The card's address; must be the same on the host that restores it.
    pub mac: Mac,
    /// Status, features and queues.
    pub core: SavedCore,
    /// What is known of the guest's addresses, to announce them after a failover.
    pub learned: Learned,
}
