//! What goes wrong in a run: drawn from the seed at its start, before anything happens. Also the sabotages, which break one of the orders on
//! purpose, so that a test can show that the checks see it.

use super::rng::Rng;
use super::{HEAL_NS, MS, NODES};

/// Something that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The process dies. `silent`: with its host, so that no connection is closed; otherwise the kernel closes them.
    Crash {
        /// No connection is closed.
        silent: bool,
    },
    /// The process stands still for so long, then goes on where it was.
    Hang {
        /// Nanoseconds.
        for_ns: u64,
    },
    /// Nothing passes between this node and any other for so long; nothing is lost, and nobody is told.
    Partition {
        /// Nanoseconds.
        for_ns: u64,
    },
    /// The node's link breaks and both sides are told, sooner or later.
    BreakLink,
    /// The node cannot reach the arbiter for so long: requests or their answers are lost, or arrive very late.
    CutArbiter {
        /// Nanoseconds.
        for_ns: u64,
    },
    /// A disk of the node fails under its guest.
    FailDisk,
    /// The guest powers off.
    EndGuest,
    /// The operator starts the node as the primary although the record says otherwise, having made certain that whoever it names is dead (`operator.rs`).
    Force,
}

/// Whom a fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The node that the arbiter's record names as owner at that time.
    Owner,
    /// The node linked to the owner.
    Peer,
    /// This one.
    Slot(usize),
}

/// When a fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// At this time.
    At(u64),
    /// Before the n-th action that the nodes carry out: also in the middle of a list of actions.
    Step(u64),
}

/// The faults and chances of one run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Single faults.
    pub faults: Vec<(When, Target, Fault)>,
    /// Chances out of a thousand, for each occasion: an arbiter request is lost.
    pub lose_request: u64,
    /// Its answer is lost.
    pub lose_reply: u64,
    /// The request arrives long after it was given up.
    pub late_request: u64,
    /// A part of an epoch is corrupted on its way.
    pub corrupt: u64,
    /// A capture fails.
    pub fail_capture: u64,
    /// A send fails.
    pub fail_send: u64,
    /// A frame to or from a client is lost.
    pub lose_frame: u64,
    /// A crashed node comes back: as a standby.
    pub come_back: u64,
    /// A crashed node that comes back tries to start as the primary first.
    pub come_back_primary: u64,
    /// A node's operator lets its disk be overwritten.
    pub overwrite: u64,
    /// One-way delays are up to this, nanoseconds.
    pub delay_ns: u64,
    /// Pieces of output the buffer takes.
    pub buffer_frames: usize,
    /// The guest has a disk that all nodes can write to.
    pub shared: bool,
    /// A step of shutting older owners out of it fails.
    pub fail_fence: u64,
}

impl Plan {
    /// The plan of a seed.
    pub fn draw(rng: &mut Rng) -> Plan {
        let quiet = rng.permille(30);
        let chance = |rng: &mut Rng, most: u64| if quiet || rng.permille(600) { 0 } else { rng.between(1, most) };
        let count = if quiet { 0 } else { rng.between(1, 5) };
        let faults = (0..count).map(|_| Self::draw_fault(rng)).collect();
        Plan {
            faults,
            lose_request: chance(rng, 400),
            lose_reply: chance(rng, 400),
            late_request: chance(rng, 300),
            corrupt: chance(rng, 20),
            fail_capture: chance(rng, 50),
            fail_send: chance(rng, 10),
            lose_frame: chance(rng, 50),
            come_back: if rng.permille(700) { 1000 } else { 0 },
            come_back_primary: if rng.permille(200) { 1000 } else { 0 },
            overwrite: 500,
            delay_ns: rng.between(50_000, 1_500_000),
            buffer_frames: if rng.permille(200) { 3 } else { 64 },
            shared: rng.permille(500),
            fail_fence: chance(rng, 300),
        }
    }

    fn draw_fault(rng: &mut Rng) -> (When, Target, Fault) {
        let when = if rng.permille(500) { When::At(rng.between(MS, HEAL_NS)) } else { When::Step(rng.between(1, 600)) };
        let target = match rng.between(0, 10) {
            0..6 => Target::Owner,
            6..9 => Target::Peer,
            _ => Target::Slot(rng.between(0, NODES as u64) as usize),
        };
        // Around the detection bound: some are noticed, some are not, some end while the other side is taking over.
        let for_ns = rng.between(MS, 50 * MS);
        let fault = match rng.between(0, 24) {
            20..=21 => Fault::FailDisk,
            22..=23 => Fault::Force,
            0..5 => Fault::Crash { silent: rng.permille(500) },
            5..11 => Fault::Hang { for_ns },
            11..14 => Fault::Partition { for_ns },
            14..16 => Fault::BreakLink,
            16..=18 => Fault::CutArbiter { for_ns },
            _ if rng.permille(300) => Fault::EndGuest,
            _ => Fault::Hang { for_ns },
        };
        (when, target, fault)
    }
}

/// An order broken on purpose, in the harness around the cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// An epoch's output leaves when the epoch is captured (S1).
    ReleaseBeforeCommit,
    /// The gate opens when the standby is lost, not when it is struck out (S3).
    UngateBeforeStrikeOut,
    /// The standby is recorded before the gate is closed (S3).
    RecordBeforeGate,
    /// The standby activates without asking (S3).
    ActivateWithoutGrant,
    /// The standby activates with what it has of the epoch after the last committed one (S2).
    ActivateTorn,
    /// The standby goes on committing after it decided to activate (S3, S4).
    CommitAfterDecision,
    /// An unanswered swap counts as done (S3).
    UnansweredIsDone,
    /// The loser goes on (S3).
    IgnoreFence,
    /// A corrupted part counts as good (S2).
    TrustCorrupt,
    /// The dirty set of a failed capture is forgotten (S6).
    ForgetDirtySet,
    /// Disk writes are applied when they come, not when their epoch is committed (S2).
    ApplyBeforeCommit,
    /// Disk writes are recorded only after the last of the disk was copied (S4).
    RecordLate,
    /// A protected primary's writes are not marked in its change log: when it returns, what was not committed stays (S4).
    ForgetMarks,
    /// The change log is cleared when an epoch is committed, not when it is durable on both sides (S4).
    ClearAtCommit,
    /// A returning node's copy is taken as it is (S4).
    TrustReturning,
    /// Nobody is shut out of the shared disk (S3, S4).
    NoFence,
    /// The operator forces a start while those that the record names still run (S3).
    ForceBesideTheLiving,
}

impl Sabotage {
    /// All of them.
    pub const ALL: [Sabotage; 17] = [
        Sabotage::ForceBesideTheLiving,
        Sabotage::NoFence,
        Sabotage::ApplyBeforeCommit,
        Sabotage::RecordLate,
        Sabotage::ForgetMarks,
        Sabotage::ClearAtCommit,
        Sabotage::TrustReturning,
        Sabotage::ReleaseBeforeCommit,
        Sabotage::UngateBeforeStrikeOut,
        Sabotage::RecordBeforeGate,
        Sabotage::ActivateWithoutGrant,
        Sabotage::ActivateTorn,
        Sabotage::CommitAfterDecision,
        Sabotage::UnansweredIsDone,
        Sabotage::IgnoreFence,
        Sabotage::TrustCorrupt,
        Sabotage::ForgetDirtySet,
    ];
}
