//! Numbers and names: [`Epoch`], [`Generation`], [`Gfn`], [`NodeId`], [`VmId`].

use std::fmt;
use std::num::NonZeroU64;

use serde::{Deserialize, Serialize};

/// One stretch of guest execution between two checkpoints, numbered from 1 within a generation. 0 is "none yet".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Epoch(pub u64);

impl Epoch {
    /// No epoch yet: the state before the first checkpoint of a generation.
    pub const NONE: Epoch = Epoch(0);

    /// The epoch after this one.
    #[must_use]
    pub fn next(self) -> Epoch {
        Epoch(self.0 + 1)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Fencing number of a VM: up by one each time the right to run the guest is granted anew (S3). 0 is "never granted".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Generation(pub u64);

impl Generation {
    /// The generation after this one.
    #[must_use]
    pub fn next(self) -> Generation {
        Generation(self.0 + 1)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Guest frame number: guest physical address divided by [`crate::PAGE_SIZE`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Gfn(pub u64);

impl Gfn {
    /// Guest physical address of the first byte of the page.
    #[must_use]
    pub fn address(self) -> u64 {
        self.0 * crate::PAGE_SIZE as u64
    }
}

impl fmt::Display for Gfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// Name of a node (a host's Lockstep process for one VM) as the arbiter's record spells it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeId(pub String);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which host it is, whatever its nodes are called: two hosts may be given the same name, and a host may be replaced by another that keeps its name. Written as 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct HostId(pub NonZeroU64);

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl From<HostId> for String {
    fn from(host: HostId) -> String {
        host.to_string()
    }
}

impl TryFrom<String> for HostId {
    type Error = String;

    fn try_from(text: String) -> Result<HostId, String> {
        let number = (text.len() == 16).then(|| u64::from_str_radix(&text, 16).ok()).flatten().and_then(NonZeroU64::new);
        number.map(HostId).ok_or_else(|| format!("{text:?} is not a host's identity: 16 hexadecimal digits, not all 0"))
    }
}

/// Name of a virtual machine, the same on every host that may run it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct VmId(pub String);

impl fmt::Display for VmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
