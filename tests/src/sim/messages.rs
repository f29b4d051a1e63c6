//! What travels between nodes, and what waits to happen.

use disk_buffer::Identity;
use failover::{Answer, Record, Request, RequestId};
use types::block::DiskWrite;
use types::{Epoch, Generation, NodeId, Output};

use super::faults::Fault;
use super::guest::PAGES;
use super::shared::FenceStep;

/// One of the two connections of a link. They know nothing of each other's order.
#[derive(Clone, Copy, Debug)]
pub(super) enum Channel {
    Data,
    Control,
}

/// Part `index` (0 or 1; 1 is the last) of an epoch.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub generation: Generation,
    pub epoch: Epoch,
    pub index: usize,
    /// Which pages are in it, one bit each.
    pub mask: u8,
    pub pages: [u64; PAGES],
    /// What a digest would show.
    pub corrupt: bool,
    pub output: Vec<Output>,
    pub writes: Vec<DiskWrite>,
}

#[derive(Clone, Debug)]
pub(super) enum Message {
    /// With what the two disks were when the standby joined: the primary's as in its Hello.
    Welcome(Box<[Identity; 2]>),
    Heartbeat,
    Sync {
        page: usize,
        value: u64,
    },
    /// A region of the disk.
    Block {
        region: usize,
        value: u64,
    },
    /// Up to this epoch everything is durable on the standby's disk.
    Durable {
        generation: Generation,
        epoch: Epoch,
    },
    Part(Box<Part>),
    Commit {
        generation: Generation,
        epoch: Epoch,
    },
    Recorded {
        generation: Generation,
    },
    /// Whether the standby sees the record.
    Sight {
        generation: Generation,
        trouble: Option<String>,
    },
    Shutdown,
    Closed,
}

/// Something that happens at its time. `slot` and `instance`: to which process; a process that died meanwhile is not met any more.
#[derive(Clone, Debug)]
pub(super) enum Happening {
    Tick {
        slot: usize,
        instance: u64,
    },
    Resume {
        slot: usize,
        instance: u64,
    },
    Restart {
        slot: usize,
        instance: u64,
        primary: bool,
    },
    Hello {
        slot: usize,
        from: usize,
        from_instance: u64,
        generation: Generation,
        disk: Box<Identity>,
    },
    Newer {
        slot: usize,
        instance: u64,
        generation: Generation,
    },
    Deliver {
        link: usize,
        side: usize,
        message: Message,
        channel: Channel,
        /// Its place among the messages of its connection.
        number: u64,
    },
    AtArbiter {
        slot: usize,
        instance: u64,
        id: RequestId,
        request: Box<Request>,
        reply_lost: bool,
    },
    FromArbiter {
        slot: usize,
        instance: u64,
        id: RequestId,
        answer: Box<Answer>,
    },
    SyncNext {
        slot: usize,
        instance: u64,
        link: usize,
        page: usize,
    },
    Capture {
        slot: usize,
        instance: u64,
        generation: Generation,
        epoch: Epoch,
    },
    Send {
        slot: usize,
        instance: u64,
        generation: Generation,
        epoch: Epoch,
    },
    ApplyDone {
        slot: usize,
        instance: u64,
        link: usize,
        epoch: Epoch,
    },
    /// A disk is made durable in the background.
    Settle {
        slot: usize,
        instance: u64,
        session: u64,
    },
    /// A primary clears what both hosts hold durably.
    Clear {
        slot: usize,
        instance: u64,
        session: u64,
        epoch: Epoch,
    },
    /// A step of shutting older owners out of the shared disk.
    Fence {
        slot: usize,
        instance: u64,
        generation: Generation,
        step: FenceStep,
    },
    /// A write of the guest goes to the shared disk.
    Issue {
        slot: usize,
        instance: u64,
    },
    /// Sabotage: the gate closes too late.
    LateGate {
        slot: usize,
        instance: u64,
    },
    Request {
        slot: usize,
        instance: u64,
        life: u64,
        client: usize,
        seq: u32,
    },
    Reply {
        life: u64,
        client: usize,
        seq: u32,
    },
    ClientTimer {
        client: usize,
        turn: u64,
    },
    Strike {
        fault: usize,
    },
    /// The operator forces a start.
    Force {
        slot: usize,
    },
}

impl Happening {
    /// The process that would have to run for it.
    pub(super) fn slot(&self, link_slots: impl Fn(usize, usize) -> usize) -> Option<usize> {
        match self {
            Happening::Tick { slot, .. }
            | Happening::Resume { slot, .. }
            | Happening::Hello { slot, .. }
            | Happening::Newer { slot, .. }
            | Happening::FromArbiter { slot, .. }
            | Happening::SyncNext { slot, .. }
            | Happening::Capture { slot, .. }
            | Happening::Send { slot, .. }
            | Happening::ApplyDone { slot, .. }
            | Happening::Settle { slot, .. }
            | Happening::Clear { slot, .. }
            | Happening::Fence { slot, .. }
            | Happening::Issue { slot, .. }
            | Happening::LateGate { slot, .. }
            | Happening::Request { slot, .. } => Some(*slot),
            Happening::Deliver { link, side, .. } => Some(link_slots(*link, *side)),
            Happening::Restart { .. }
            | Happening::AtArbiter { .. }
            | Happening::Reply { .. }
            | Happening::ClientTimer { .. }
            | Happening::Strike { .. }
            | Happening::Force { .. } => None,
        }
    }
}

/// What a core ordered and the shell has not carried out yet.
#[derive(Debug)]
pub(super) enum Todo {
    Node(failover::Action),
    Pipeline(primary::core::Action),
    Standby(replica::core::Action),
}

/// The name of the node in a slot.
pub(super) fn name(slot: usize) -> NodeId {
    NodeId(format!("n{slot}"))
}

/// The slot of a node.
pub(super) fn slot_of(record: &Record) -> usize {
    record.owner.0.trim_start_matches('n').parse().unwrap_or(0)
}

/// Whether a fault stops the process in the middle of what it does.
pub(super) fn stops(fault: Fault) -> bool {
    matches!(fault, Fault::Crash { .. } | Fault::Hang { .. })
}
