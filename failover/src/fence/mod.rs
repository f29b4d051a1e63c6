//! Shutting an old owner out of the disks that it shares with the new one.
//!
//! Lives here: what a fence promises ([`Fence`]), its errors, the two ways to keep the promise (persistent reservations: [`reservation`] over [`pr`]; a command that makes sure that the other host is dead:
//! [`command`]), all disks of a VM together ([`disks`]), and the thread that tries until it has worked ([`runner`]). Not here: who is granted the guest ([`crate::core`]), and the disks themselves (`disk-buffer`).
//!
//! Guards S3 and S4 on shared disks: a grant makes a node the only one that *may* write; a host that slept with a write in its hands does not know that its grant is over. So between the grant and the first write of
//! the new owner every older owner must have been made *unable* to write.

pub mod command;
pub mod disks;
pub mod pr;
pub mod reservation;
pub mod runner;

use types::{Generation, HostId, NodeId, VmId};

use crate::arbiter::ArbiterError;

pub use crate::record::Predecessor;
pub use command::FenceCommand;
pub use disks::DiskFences;
pub use reservation::Reservation;
pub use runner::{FenceNews, FenceRunner};

/// Who has the grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The VM.
    pub vm: VmId,
    /// This node.
    pub node: NodeId,
    /// Its host, if it has an identity.
    pub host: Option<HostId>,
    /// This process, as in the record.
    pub instance: u64,
    /// The generation granted.
    pub generation: Generation,
}

/// The grant, as the one who fences can ask after it.
pub trait Grant {
    /// Asks the arbiter whether the grant is still this process's, with a question that is put *after* this call began. Blocks for a bounded time.
    ///
    /// # Errors
    /// [`FenceError::Over`] when it is another's, [`FenceError::Arbiter`] when there is no trustworthy answer.
    fn confirm(&self) -> Result<(), FenceError>;

    /// Whether anybody still waits for the outcome; a fence that takes long looks from time to time.
    fn wanted(&self) -> bool;
}

/// Makes sure that no node of an older grant can write to the VM's shared disks any more.
pub trait Fence: Send + Sync {
    /// To be called with the grant in hand, **with the host-local locks of the disks held**, and before the first write of this grant: at a cold start and at an activation. Blocks (a thread of its own calls it); may be
    /// repeated after an error, and never after it has returned Ok. Ok only when it is certain.
    ///
    /// `old`: the other nodes that may have been left able to write ([`crate::Record::unfenced`]); none at a first start, or at a start on the node that owned the VM and had shut out whoever was before.
    ///
    /// # Errors
    /// Whatever leaves a doubt.
    fn shut_out(&self, old: &[Predecessor], me: &Owner, grant: &dyn Grant) -> Result<(), FenceError>;

    /// Whether it can work at all. Changes nothing, at the disks or elsewhere. For the start of a node, primary or standby.
    ///
    /// # Errors
    /// Says what to do.
    fn probe(&self) -> Result<(), FenceError>;

    /// The guest has ended in good order and nothing more will be written: gives up what would only be in the way of others. `alone`: no other owner was ever there, so that nobody can sleep with a write in its hands.
    fn release(&self, me: &Owner, alone: bool);
}

/// Why it is not certain that an older owner can write no more.
#[derive(Debug, thiserror::Error)]
pub enum FenceError {
    /// The grant went to another: there is nothing left to fence for.
    #[error("the arbiter's record names {owner}, in generation {generation}: this node's grant is over")]
    Over {
        /// The owner now.
        owner: NodeId,
        /// In this generation.
        generation: Generation,
    },
    /// The record is gone.
    #[error(
        "the arbiter has no record of this VM any more, so nothing is granted and nothing runs: put the record back if it was removed by mistake, else stop every node of the VM and start afresh"
    )]
    NoRecord,
    /// The arbiter gave no answer.
    #[error("the arbiter could not confirm the grant: {0}")]
    Arbiter(#[from] ArbiterError),
    /// Nobody waits for the outcome any more.
    #[error("told to stop")]
    Unwanted,
    /// A device cannot be opened.
    #[error("opening {device} to reserve it: {source}; check the path, and that this user may write to it")]
    Open {
        /// The device.
        device: String,
        /// Why.
        source: std::io::Error,
    },
    /// The device cannot be reserved persistently.
    #[error(
        "{device} has no persistent reservations ({why}), so an old owner that only slept could not be kept from writing to it: give a --fence-command that makes sure that the other host is dead (exit 0), \
         use a device that has them (most SANs, a Linux iSCSI target, NVMe with reservations; the whole disk, not a partition), or give each host its own disk (mode=mirror)"
    )]
    NotSupported {
        /// The device.
        device: String,
        /// What the kernel or the device said.
        why: String,
    },
    /// A file, or a device without reservations, and no command either.
    #[error(
        "{disk} is shared and cannot be reserved: without a fence an old owner that only slept would write over what the new one wrote. Give a --fence-command that makes sure that the other host is dead (exit 0), or \
         give each host its own disk (mode=mirror)"
    )]
    NoFence {
        /// The disk.
        disk: String,
    },
    /// The command is told by names whom to fence, and this host cannot be told from another of the same name.
    #[error(
        "{disk} is shared and fenced by a command, and this host has no identity of its own (/etc/machine-id): should another host ever have this node's name, neither could be told from the other; make one (systemd-machine-id-setup), \
         another one on each host"
    )]
    NoHost {
        /// The disk.
        disk: String,
    },
    /// A reservation that is not of this VM's making.
    #[error(
        "{device} is reserved by somebody else ({step} was refused): another VM, a cluster or a backup program uses it; find out who (sg_persist --in --read-full-status, nvme resv-report) and take the device from them first"
    )]
    Foreign {
        /// The device.
        device: String,
        /// Which step told.
        step: &'static str,
    },
    /// The device refused a step for another reason.
    #[error(
        "{device}: {step} failed with status {status:#x}; if the target is Linux's, see that it can write to /var/target/pr (reservations must survive its restart), else look at the kernel's log here and there"
    )]
    Device {
        /// The device.
        device: String,
        /// Which step.
        step: &'static str,
        /// `PR_STS_*` of linux/pr.h.
        status: i32,
    },
    /// The system call failed.
    #[error(
        "{device}: {step} could not be asked of it: {source}; look at the kernel's log (dmesg) and at the way to the device (multipath -ll, iscsiadm -m session); at a takeover it is tried again"
    )]
    Io {
        /// The device.
        device: String,
        /// Which step.
        step: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// The command cannot be started.
    #[error("starting the fencing command {command:?}: {source}; check that it is there and may be executed")]
    CommandStart {
        /// The command.
        command: String,
        /// Why.
        source: std::io::Error,
    },
    /// The command said that the other host is not certainly dead.
    #[error(
        "the fencing command {command:?} ended with {status}: {node} is not certainly dead. What it printed is in this node's log; mend that (the power switch's address, its password), or make sure by hand that {node} is dead; it is tried again \
         until it ends with 0"
    )]
    CommandFailed {
        /// The command.
        command: String,
        /// How it ended.
        status: String,
        /// Who was to be fenced.
        node: NodeId,
    },
    /// The command took too long and was killed.
    #[error(
        "the fencing command {command:?} did not end within {seconds} s and was killed: {node} is not certainly dead. See that the power switch can be reached from here, and give the command a time limit of its own below that; it is tried again"
    )]
    CommandLate {
        /// The command.
        command: String,
        /// Its limit.
        seconds: u64,
        /// Who was to be fenced.
        node: NodeId,
    },
    /// The host gives no thread to fence with.
    #[error("starting the fencing thread: {0}; the host's limit on threads may be reached (ulimit -u)")]
    Thread(std::io::Error),
    /// The node was made without a fence although its disks need one. A defect of the program.
    #[error(
        "this node has shared disks and was given no fence, so nothing runs; this is a defect of Lockstep: please report it with this log"
    )]
    Missing,
    /// Something of this host must be done first (a disk's lock).
    #[error("before older owners can be shut out: {0}")]
    NotReady(String),
    /// Done, but for a file's lock.
    #[error(
        "older owners are shut out, but {0}; storage keeps a dead host's lock for a while (NFS: its lease, about 90 s), so it is tried again; if it stays so, another process of a living host has the disk: find out which (lslocks, fuser)"
    )]
    StillLocked(String),
}

/// Carries out [`crate::core::Action::Fence`] with a node's fence.
///
/// # Errors
/// There is none, or the host gives no thread.
pub fn begin(fence: Option<&mut FenceRunner>, record: crate::Record, old: Vec<Predecessor>) -> Result<(), FenceError> {
    fence.ok_or(FenceError::Missing)?.start(record, old).map_err(FenceError::Thread)
}

impl FenceError {
    /// Whether trying again cannot help.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(self, FenceError::Over { .. } | FenceError::Unwanted)
    }
}
