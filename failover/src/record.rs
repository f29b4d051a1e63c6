//! The record at the arbiter: which node may run the guest, in which generation, and which node may take over.
//!
//! Lives here: the value. Not here: how it is stored or changed. Guards S3: it changes only as a whole, by compare-and-swap.

use serde::{Deserialize, Serialize};
use types::{Generation, HostId, NodeId};

/// An owner of which it is not known that it can write no more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Stored")]
pub struct Predecessor {
    /// Its node.
    pub node: NodeId,
    /// Its host; none where the record did not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostId>,
}

/// A predecessor as records have it: those of the first version have the name alone.
#[derive(Deserialize)]
#[serde(untagged)]
enum Stored {
    Name(NodeId),
    Whole {
        node: NodeId,
        #[serde(default)]
        host: Option<HostId>,
    },
}

impl From<Stored> for Predecessor {
    fn from(stored: Stored) -> Predecessor {
        match stored {
            Stored::Name(node) => Predecessor { node, host: None },
            Stored::Whole { node, host } => Predecessor { node, host },
        }
    }
}

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
    /// The owner's host ([`crate::host`]): a name alone could be that of two hosts. None in a record of a release that did not tell, or of a host that has no identity; then the name counts alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostId>,
    /// The owner's process, a random number drawn when it started.
    pub instance: u64,
    /// The only node that may ask for the next generation without the owner's consent.
    pub standby: Option<NodeId>,
    /// Nodes that owned the VM before and of which it is not certain that they can write to its shared disks no more: the owner runs nothing before it has shut them out. Carried over from grant to grant until that is done,
    /// so that a new owner that dies over it leaves the next one knowing. Always empty without shared disks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unfenced: Vec<Predecessor>,
}

impl Record {
    /// The owner, as one who may be left able to write.
    #[must_use]
    pub fn owner_left(&self) -> Predecessor {
        Predecessor { node: self.owner.clone(), host: self.host }
    }

    /// Whether this record grants the guest to that process of that node.
    #[must_use]
    pub fn is_owned_by(&self, node: &NodeId, instance: u64) -> bool {
        self.owner == *node && self.instance == instance
    }
}

/// What is wrong, in words, with a record that a node reads for itself while `owner` says that it runs the guest in `generation`: the two nodes have different records, or one of them a
/// stale view, and the one who reads this could never take over.
///
/// # Errors
/// The difference.
pub fn agrees(record: Option<&Record>, owner: &NodeId, generation: Generation) -> Result<(), String> {
    let found = match record {
        Some(record) if record.owner == *owner && record.generation == generation => return Ok(()),
        Some(record) => format!("that {} owns the guest in generation {}", record.owner, record.generation),
        None => "no record".to_owned(),
    };
    Err(format!("{owner} says that it owns the guest in generation {generation}, and this node finds {found}"))
}

impl Predecessor {
    /// Whether it is the node of this name on this host: another host of the same name is another, where both hosts are known.
    #[must_use]
    pub fn is(&self, node: &NodeId, host: Option<HostId>) -> bool {
        let elsewhere = matches!((self.host, host), (Some(one), Some(other)) if one != other);
        self.node == *node && !elsewhere
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_agrees_only_with_its_owner_in_its_generation() {
        let (a, b) = (NodeId("a".to_owned()), NodeId("b".to_owned()));
        let record = Record { generation: Generation(3), owner: a.clone(), host: None, instance: 1, standby: None, unfenced: Vec::new() };

        assert_eq!(agrees(Some(&record), &a, Generation(3)), Ok(()));
        for (record, owner, generation) in [(None, &a, 3), (Some(&record), &b, 3), (Some(&record), &a, 2), (Some(&record), &a, 4)] {
            let told = agrees(record, owner, Generation(generation)).unwrap_err();
            assert!(told.contains(&format!("{owner} says")) && told.contains("finds"), "{told}");
        }
    }
}
