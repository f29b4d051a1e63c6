//! The record at the arbiter: which node may run the guest, in which generation, and which node may take over.
//!
//! Lives here: the value. Not here: how it is stored or changed. Guards S3: it changes only as a whole, by compare-and-swap.

use serde::{Deserialize, Serialize};
use types::{Generation, NodeId};

/// Who may run the guest.
///
/// `instance` tells two processes with the same node name apart: without it a primary whose compare-and-swap went unanswered could
/// take a record that its own restarted successor wrote for its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Fencing number. Up by one whenever the right to run is granted anew: to a standby that activates, to a primary that goes on
    /// alone (so that nothing of the older generation, neither a stale standby nor a late request, can succeed), to a cold start.
    pub generation: Generation,
    /// The node that may run the guest in this generation.
    pub owner: NodeId,
    /// The owner's process, a random number drawn when it started.
    pub instance: u64,
    /// The only node that may ask for the next generation without the owner's consent.
    pub standby: Option<NodeId>,
    /// Nodes that owned the VM before and of which it is not certain that they can write to its shared disks no more: the owner runs nothing before it has shut them out. Carried over from grant to grant until that is done,
    /// so that a new owner that dies over it leaves the next one knowing. Always empty without shared disks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unfenced: Vec<NodeId>,
}

impl Record {
    /// Whether this record grants the guest to that process of that node.
    #[must_use]
    pub fn is_owned_by(&self, node: &NodeId, instance: u64) -> bool {
        self.owner == *node && self.instance == instance
    }
}
