//! Storage on a host of its own: one host exports disks by the Linux kernel's iSCSI target, the others log in with its initiator. Reservations
//! (SCSI-3) hold between the hosts, outlive each of them, and shut an old owner of a guest out (S6).
//!
//! It goes over the replication network. Lives here: what a host is in this, and faults of the path. Not here: what `init/target.sh` and
//! `init/initiator.sh` do in the hosts.

use crate::error::LabError;
use crate::host::{Host, HostOptions};
use crate::lab::Lab;
use crate::net::{Net, address};

/// The disk that the stock guest's root file system is on, in every host that has logged in. LUN 0.
pub const LUN: &str = "/dev/lun0";
/// An empty disk. LUN 1.
pub const SCRATCH: &str = "/dev/lun1";
/// The disk of [`LUN`] as the storage host itself has it, for looking at it when no guest runs.
pub const BACKING: &str = "/dev/vda";
/// Memory of the storage host: it has 45 MiB in use when its target runs; the rest is for what is on its way.
const TARGET_MIB: u32 = 256;

/// What a host is to the lab's storage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Storage {
    /// Nothing.
    #[default]
    None,
    /// It exports disks to hosts 1 to `initiators`.
    Target {
        /// The highest number of a host that may log in.
        initiators: u8,
    },
    /// It has logged in at host `target`.
    Initiator {
        /// The storage host's number.
        target: u8,
    },
}

impl Storage {
    /// What makes a host that, each time it has come up.
    #[must_use]
    pub fn script(self) -> Option<String> {
        match self {
            Storage::None => None,
            Storage::Target { initiators } => {
                let numbers: Vec<String> = (1..=initiators).map(|n| n.to_string()).collect();
                Some(format!("INITIATORS='{}'\n{}", numbers.join(" "), include_str!("init/target.sh")))
            }
            Storage::Initiator { target } => Some(format!("TARGET={target}\n{}", include_str!("init/initiator.sh"))),
        }
    }
}

/// `nodes` hosts like `host` that have logged in at one more, the last.
#[must_use]
pub fn with_target(nodes: u8, host: HostOptions) -> Vec<HostOptions> {
    let mut hosts = vec![HostOptions { storage: Storage::Initiator { target: nodes + 1 }, ..host }; usize::from(nodes)];
    hosts.push(HostOptions { cpus: 1, memory_mib: TARGET_MIB, storage: Storage::Target { initiators: nodes }, ..host });
    hosts
}

impl Lab {
    /// The storage host.
    ///
    /// # Errors
    /// There is none.
    pub fn storage(&mut self) -> Result<&mut Host, LabError> {
        let none = || LabError::Found("the lab has no storage host".into());
        self.hosts().iter_mut().find(|host| matches!(host.options().storage, Storage::Target { .. })).ok_or_else(none)
    }
}

impl Host {
    /// Cuts the path to the storage silently, and nothing else: nothing arrives in either direction. [`Host::heal`] of the replication network undoes it.
    ///
    /// # Errors
    /// The host has no such path, does not answer, or its kernel refuses.
    pub fn cut_storage(&self) -> Result<(), LabError> {
        let none = || LabError::Found(format!("{} has no path to a storage host", self.name()));
        let Storage::Initiator { target } = self.options().storage else { return Err(none()) };
        let (card, target) = (Net::Replication.card(), address(Net::Replication, target).ok_or_else(none)?);
        self.must(&format!(
            "modprobe -a sch_ingress cls_u32 act_gact && tc qdisc replace dev {card} clsact &&
             tc filter replace dev {card} egress prio 2 protocol ip u32 match ip dst {target}/32 action drop &&
             tc filter replace dev {card} ingress prio 2 protocol ip u32 match ip src {target}/32 action drop"
        ))
        .map(drop)
    }
}
