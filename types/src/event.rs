//! What a node tells about itself while it runs: one JSON object a line on the stream that `--events` names.
//!
//! The primary and the standby make these; the demo, the tests and the benchmarks read them. Times are CLOCK_MONOTONIC nanoseconds, so
//! that the lines of two processes on one machine can be compared.

use serde::{Deserialize, Serialize};

use crate::{Epoch, Generation};

/// The part a node plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Runs the guest.
    Primary,
    /// Holds its copy.
    Standby,
    /// Neither: the node has lost the right to run, or has not gained it.
    Stopped,
}

/// How safe the guest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protection {
    /// There is no standby.
    Unprotected,
    /// The first full copy is on its way to a standby.
    Syncing,
    /// A standby is committed and current, and sees the arbiter's record.
    Protected,
    /// A standby is committed and current, and cannot reach the arbiter's record: output leaves as under protection, but a failover would wait for the arbiter.
    Blind,
    /// The standby is gone and the arbiter has not yet said that the guest may go on alone: output is held.
    Held,
    /// The node is granted the guest, which may not run yet: older owners are being shut out of its shared disks.
    Fencing,
}

/// One event of a node's life, with its time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeEvent {
    /// CLOCK_MONOTONIC, nanoseconds.
    pub at_ns: u64,
    /// What happened.
    #[serde(flatten)]
    pub what: NodeEventKind,
}

/// What can happen to a node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum NodeEventKind {
    /// Role, protection or generation changed, and why.
    State {
        /// The part the node plays now.
        role: Role,
        /// How safe the guest is now.
        protection: Protection,
        /// The generation the node acts in.
        generation: Generation,
        /// Why, in words for an operator.
        reason: String,
    },
    /// A primary's measurements since the last such line: one entry per epoch in each list.
    Samples {
        /// Newest epoch that is committed.
        committed: Epoch,
        /// Dirty pages in each epoch.
        pages: Vec<u32>,
        /// Bytes on the wire for each epoch.
        bytes: Vec<u32>,
        /// Stop to resumed, microseconds.
        pause_us: Vec<u32>,
        /// Resumed to commit received, microseconds.
        commit_us: Vec<u32>,
        /// Nanoseconds spent sending in this stretch (for the stream's rate).
        send_ns: u64,
        /// Output frames held at the time of the line.
        held_frames: u32,
    },
    /// Progress of the first full copy.
    Syncing {
        /// Pages sent so far.
        pages_sent: u64,
        /// Pages of guest memory.
        pages_total: u64,
    },
    /// A standby is listening, or a primary's guest has been started: the process is ready for its peer.
    Ready,
    /// The peer is held to be gone.
    PeerGone {
        /// "connection closed", "heartbeats silent", ...
        cause: String,
    },
    /// A standby has the grant and has started the guest; times in microseconds.
    Activated {
        /// The new generation.
        generation: Generation,
        /// The epoch that the guest continues from.
        epoch: Epoch,
        /// From the decision (grant received) to the guest's vCPUs entering KVM_RUN.
        activation_us: u64,
        /// What asking the arbiter took.
        grant_us: u64,
        /// Requests to disks that were in flight in the state that the guest continues from: they are carried out anew.
        #[serde(default)]
        disk_requests: u32,
    },
    /// The node lost the right to run and stopped its guest.
    Fenced {
        /// Why.
        reason: String,
    },
    /// The node stopped its guest although it had the right to run it: its standby can serve and this host cannot.
    GaveUp {
        /// Why.
        reason: String,
    },
    /// A primary has no standby, for this reason: it cannot be reached, it refused, or a disk of this node's keeps it from being protected. Told again when the reason changes.
    NoStandby {
        /// Why, in words for an operator.
        reason: String,
    },
    /// A standby has turned a primary away, for this reason. Told again when the reason changes.
    PrimaryRefused {
        /// Where the primary is.
        peer: String,
        /// Why, in words for an operator.
        reason: String,
    },
    /// Something an operator should look at; the node goes on.
    Warning {
        /// What, and what to do.
        text: String,
    },
    /// A standby has compared memory with its primary's since the last such line, and found it equal (`--verify-memory`). All of memory was verified
    /// `pages / guest_pages` times over.
    MemoryVerified {
        /// Pages that were compared.
        pages: u64,
        /// Pages of guest memory.
        guest_pages: u64,
    },
    /// The guest asked for a reset, or triple-faulted, and boots again. One that does so over and over is told once a second at most.
    GuestReset {
        /// Resets since the last such event.
        resets: u64,
    },
    /// The guest ended by itself: it powered off.
    GuestStopped {
        /// How.
        reason: String,
    },
}

/// Where a node's events go. Called from several threads; must not block for long.
pub type Report = std::sync::Arc<dyn Fn(NodeEventKind) + Send + Sync>;
