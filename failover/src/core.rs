//! The role machine of one node: who may run the guest, in which generation, and in which order that is found out.
//!
//! Lives here: decisions. Not here: connections, clocks, threads, the guest, the arbiter's storage. Guards S3, and S4 across a
//! failover. The shell raises [`Event`]s and carries out the [`Action`]s **in order, each finished before the next is begun** (an
//! [`Action::Arbiter`] is finished when it is handed to the thread that asks).
//!
//! What is behind it:
//!
//! - *Gate, then record.* At [`Event::SyncReady`] the gate closes, and only then is the standby written into the record. From there on the
//!   epochs run and the standby commits them, but nothing is released until the record is confirmed **and** epoch 1 is committed
//!   ([`Action::Protect`]).
//! - *Strike out, then ungate.* A primary that goes on alone wins `{g, me, *} -> {g+1, me, None}` first. The generation goes up
//!   even though the owner stays: a standby that only slept, with an old epoch of generation g, and every late request that still
//!   expects g, are dead for good. A plain read that shows no standby would not do: an unanswered request may still arrive after it.
//! - An unanswered swap is followed by a read; until that read is answered it counts as having happened for what it would allow the
//!   other side (the gate stays closed) and as not having happened for what it would allow this one.
//! - *Fence, then run.* Where disks are shared, a grant becomes a running guest only after every older owner has been shut out of them (`fencing`).
//! - *Sure, then out.* Making a machine ready after the grant takes a while, and the node may sleep in it. Before the guest is started, and before anything is sent for it, the shell looks at the clock; if its last look is
//!   longer ago than a sleep would have to be noticed, it raises [`Event::Confirm`], and starts the guest only after [`Action::ResumeRelease`]. What was answered before a sleep grants nothing ([`Event::Stalled`]).
//! - *Protected is what can be failed over from.* A standby reads the record itself, over and over, and says when it cannot (`sight`); only the word for the operator depends on it.
//! - A standby activates only after [`Action::StopCommitting`] and after winning `{g, owner, me} -> {g+1, me, None}` while it holds a
//!   committed epoch of generation g.

mod ask;
mod fencing;
mod primary;
mod sight;
mod standby;

use types::event::{Protection, Role};
use types::{Epoch, Generation, HostId, NodeId};

use crate::fence::Predecessor;
use crate::record::Record;
use ask::{Asker, Outcome, Wish};
use sight::Sight;

/// Names one request to the arbiter, so that an answer that comes too late is known as such.
pub type RequestId = u64;

/// What a node is told at its start.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node's name.
    pub me: NodeId,
    /// This host, if it has an identity: a node of the same name on another is not this one.
    pub host: Option<HostId>,
    /// This process: drawn at random when it starts.
    pub instance: u64,
    /// An arbiter request that is unanswered for so long is given up, and the record read again. Nanoseconds.
    pub request_timeout_ns: u64,
    /// The first wait before the arbiter is asked again after a failure. Doubles up to `backoff_max_ns`.
    pub backoff_first_ns: u64,
    /// The longest wait before the arbiter is asked again. Nanoseconds.
    pub backoff_max_ns: u64,
    /// The record is read this often: by a primary to learn of a mistake of its operators (a second process of the same name), by a standby to know that it could take over. Nanoseconds; 0: never.
    pub watch_ns: u64,
    /// A standby that was just recorded and does not see the record is told of after so long: caches of a file system may show it an older one for a moment. Nanoseconds.
    pub first_sight_ns: u64,
    /// A standby that saw the record is told of when it has not been able to read it for so long: storage may be away for a moment. Nanoseconds.
    pub blind_ns: u64,
    /// The VM has disks that several hosts can write to: with each grant older owners are shut out of them before anything runs ([`Action::Fence`]).
    pub fence: bool,
}

impl Config {
    /// Defaults: answers within 2 s (storage under load), first retry after 10 ms, never rarer than each second, watch each second. A file system's cached
    /// names live for a second or a few; storage that fails over, or is restarted, is often back within ten.
    #[must_use]
    pub fn new(me: NodeId, instance: u64) -> Config {
        Config {
            me,
            host: None,
            instance,
            request_timeout_ns: 2_000_000_000,
            backoff_first_ns: 10_000_000,
            backoff_max_ns: 1_000_000_000,
            watch_ns: 1_000_000_000,
            first_sight_ns: 3_000_000_000,
            blind_ns: 10_000_000_000,
            fence: false,
        }
    }
}

/// A question to the arbiter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// [`crate::Arbiter::read`].
    Read,
    /// [`crate::Arbiter::swap`].
    Swap {
        /// What the record must be now.
        expect: Option<Record>,
        /// What it becomes.
        new: Record,
    },
}

/// The arbiter's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// To a read: the record.
    Read(Option<Record>),
    /// To a swap: it happened.
    Done,
    /// To a swap: it did not happen; this is the record.
    Lost(Option<Record>),
    /// No trustworthy answer. A swap may have happened or not; both are treated alike, by reading again.
    Failed {
        /// The error in words, for the operator.
        why: String,
    },
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Start as the primary: ask for the right to boot the guest. First event of a primary.
    StartPrimary {
        /// The operator says that the standby in the record (and what it holds) is to be given up. Without this, a start is refused
        /// while a standby is recorded, because that standby may hold the only copy of a running guest. The word is for the record as this node reads it first: when that changes,
        /// somebody else is alive, and the start is refused after all.
        abandon_standby: bool,
    },
    /// Start as a standby that waits for its primary. First event of a standby.
    StartStandby,
    /// The arbiter answered, or the attempt failed.
    ArbiterReply {
        /// Which request.
        id: RequestId,
        /// The answer.
        answer: Answer,
    },
    /// Time passed. To be raised at [`Node::deadline_ns`] or later; harmless at any other time.
    Tick,
    /// The peer is held to be gone (closed, silent, protocol error). Whatever still comes from that link must not be raised any more.
    PeerGone {
        /// In words, for the operator.
        cause: String,
    },
    /// This node did not run for so long (SIGSTOP, a stalled host): what it knows may be over.
    Stalled {
        /// How long, nanoseconds.
        gap_ns: u64,
    },
    /// The guest that was granted is ready, nothing of it was started or sent, and the shell last looked around so long ago that it may have slept since: the record is read first. Held as for [`Event::Stalled`].
    Confirm {
        /// How long, nanoseconds.
        gap_ns: u64,
    },
    /// Somebody said that a newer generation exists (a refused `Hello`, say). Not believed: the record is read.
    NewerGeneration {
        /// The generation spoken of.
        generation: Generation,
    },

    /// Primary: a standby is linked and the copy of memory begins.
    StandbyLinked {
        /// Which.
        node: NodeId,
    },
    /// Primary: memory is copied but for a small rest; the next step is the first atomic epoch.
    SyncReady,
    /// Primary: the standby committed an epoch of this generation. The first one matters, later ones may be left out.
    FirstCommit {
        /// Which.
        epoch: Epoch,
    },
    /// Primary: the standby says whether it sees the record that it would take over by.
    StandbySight {
        /// Why it could not take over now; none: it sees itself named.
        trouble: Option<String>,
    },
    /// Primary: a disk of this host failed under the guest, and the request that failed is left without an answer. Where a standby can serve, it takes over and
    /// carries the request out on its own disk; where none can, the shell tells the guest of the error as soon as this node is alone.
    DiskFailed {
        /// Which, and how; for the operator.
        reason: String,
    },
    /// The shell has carried out [`Action::Fence`]: no older owner can write to the shared disks any more.
    Fenced {
        /// The grant that it was for.
        generation: Generation,
    },
    /// An attempt to carry out [`Action::Fence`] failed; the shell tries again unless it was told that the grant is over.
    FenceFailed {
        /// The grant that it was for.
        generation: Generation,
        /// Why, for the operator.
        why: String,
    },
    /// Primary: a shared disk refused a write because another node has shut this one out.
    ShutOut {
        /// Which disk, and how; for the operator.
        reason: String,
    },
    /// Primary: the guest ended by itself (power-off), and its last epoch is committed or cannot be.
    GuestEnded {
        /// How.
        reason: String,
    },

    /// Standby: a primary is linked and copies memory, acting in this generation. Only while [`Node::accepts_primary`].
    PrimaryLinked {
        /// The primary's generation.
        generation: Generation,
    },
    /// Standby: an epoch is committed here. To be raised for the first one **before** its commit message is sent; later ones may be left out.
    Committed {
        /// Which.
        epoch: Epoch,
    },
    /// Standby: the primary says that the record names this standby.
    Recorded {
        /// In which generation.
        generation: Generation,
    },
    /// Standby: what it holds is of no epoch any more (a page could not be written, or memory differs from the primary's): it must not take over.
    Spoilt {
        /// In words, for the operator.
        reason: String,
    },
    /// Standby: the primary says that the guest ended on purpose.
    PeerShutdown {
        /// How.
        reason: String,
    },
}

/// What the shell must do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ask the arbiter and raise [`Event::ArbiterReply`] with the same id.
    Arbiter {
        /// Names the request.
        id: RequestId,
        /// The question.
        request: Request,
    },
    /// The role, protection, generation or reason changed: tell the operator.
    Report {
        /// The part the node plays now.
        role: Role,
        /// How safe the guest is now.
        protection: Protection,
        /// The generation it acts in.
        generation: Generation,
        /// Why.
        reason: String,
    },

    /// The right to run the guest is granted and nothing of it may run before every older owner is shut out of the shared disks. Answered by [`Event::Fenced`], after which [`Action::Boot`] or [`Action::Activate`] comes;
    /// given up when [`Action::Refused`] or [`Action::StandDown`] comes instead.
    Fence {
        /// The grant.
        record: Record,
        /// Nodes of which it is not certain that they can write no more.
        old: Vec<Predecessor>,
    },
    /// Primary: the right to boot the guest is granted. Output is open.
    Boot {
        /// In this generation.
        generation: Generation,
    },
    /// Primary: close the gate. From the moment this is carried out output is held under its epoch, and epochs run
    /// (`primary::core::Mode::Gated`).
    Gate,
    /// Primary: tell the standby that the record names it.
    TellRecorded {
        /// In this generation.
        generation: Generation,
    },
    /// Primary: record confirmed and epoch 1 committed: commits release output from now on (`Mode::Protected`).
    Protect,
    /// Primary: the standby is gone and going on alone is not granted yet: nothing is released, whatever comes (`Mode::Held`).
    Hold,
    /// Primary: granted to go on alone: release everything held, and let output through (`Mode::Unprotected`).
    Ungate {
        /// The new generation.
        generation: Generation,
    },
    /// Primary: release nothing, not even on a commit or through an open gate, until [`Action::ResumeRelease`]. A guest that is not started yet is not started.
    HoldRelease,
    /// Primary: the record was read and still grants the guest to this node.
    ResumeRelease,
    /// Primary: tell the standby that the guest ended on purpose.
    TellShutdown {
        /// How.
        reason: String,
    },
    /// Nothing leaves this node any more, ever.
    ShutGate,
    /// The guest stops for good: the right to run is lost. Always after [`Action::ShutGate`].
    StopGuest {
        /// Why.
        reason: String,
    },
    /// The guest stops here for good, although the right to run is not lost: the standby is to take over, and is not told otherwise. Always after
    /// [`Action::ShutGate`] and before the link is dropped.
    GiveUp {
        /// Why.
        reason: String,
    },
    /// The start is refused; nothing was started.
    Refused {
        /// Why, and what to do.
        reason: String,
    },
    /// All that had to be settled after [`Event::GuestEnded`] is settled: the process may exit.
    Finished,

    /// Close the link to the peer, and forget what is still on its way.
    DropLink,
    /// Standby: from the moment this is carried out no commit message may be sent.
    StopCommitting,
    /// Standby: whether it sees the record has changed: tell the primary, if one is linked, and if there is trouble this node's operator.
    TellSight {
        /// Why it could not take over now; none: it sees the record.
        trouble: Option<String>,
    },
    /// Standby: granted. Activate from `replica::core::Standby::activation_point`. The node is an unprotected primary from now on.
    Activate {
        /// The new generation.
        generation: Generation,
    },
    /// Standby: what it holds is of no use any more: discard it and listen for a primary.
    StandDown {
        /// Why.
        reason: String,
    },
}

/// What a start may replace.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Over {
    /// A record that leaves no guest to anybody else.
    Nobody,
    /// Whatever the record says, by the operator's word; it was not read yet.
    Anything,
    /// What was read first, by the operator's word.
    This(Option<Record>),
}

/// The part a node plays, with what it must remember for it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// Nothing happened yet.
    New,
    /// Primary: asked for the right to boot.
    Starting { over: Over },
    /// Granted; older owners are being shut out of the shared disks. `boot`: of a primary that starts, else of a standby that takes over. `fenced`: that is done. `sure`: the record was read since this node last slept.
    Fencing { boot: bool, fenced: bool, sure: bool },
    /// Primary: open, no standby.
    Alone,
    /// Primary: open, memory is being copied.
    Copying { standby: NodeId },
    /// Primary: gated; the record is being written, the first epoch is on its way.
    Opening { standby: NodeId, recorded: bool, committed: bool },
    /// Primary: commits release.
    Protected { standby: NodeId },
    /// Primary: gated, the standby gone, the right to go on alone asked for.
    Striking,
    /// Primary: the guest ended; the standby is being struck out.
    Ending,
    /// Standby: waiting for a primary.
    Waiting,
    /// Standby: linked. `committed`: an epoch of this generation is held whole.
    Standing { committed: bool, recorded: bool },
    /// Standby: stopped committing, asks for the grant.
    Seeking,
    /// For good.
    Stopped,
}

/// The role machine of one process of one node.
#[derive(Clone, Debug)]
pub struct Node {
    config: Config,
    state: State,
    generation: Generation,
    ask: Asker,
    /// A [`Action::HoldRelease`] is in force.
    on_hold: bool,
    /// When the record is read again without a cause.
    watch_at_ns: Option<u64>,
    /// A disk failed before the standby was of use: this node gives up as soon as it is.
    disk_failed: Option<String>,
    /// Whether the standby sees the record: this node, or this primary's.
    sight: Sight,
    /// Standby: since when it does not, or when that was last told.
    dim_since_ns: Option<u64>,
}

impl Node {
    /// A node that has not started.
    #[must_use]
    pub fn new(config: Config) -> Node {
        let ask = Asker::new(&config);
        Node {
            config,
            state: State::New,
            generation: Generation(0),
            ask,
            on_hold: false,
            watch_at_ns: None,
            disk_failed: None,
            sight: Sight::Unknown,
            dim_since_ns: None,
        }
    }

    /// The generation the node acts in: granted to it (primary), or its primary's (standby).
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// The part the node plays.
    #[must_use]
    pub fn role(&self) -> Role {
        match self.state {
            State::New | State::Starting { .. } | State::Stopped | State::Fencing { boot: true, .. } => Role::Stopped,
            State::Waiting | State::Standing { .. } | State::Seeking | State::Fencing { boot: false, .. } => Role::Standby,
            _ => Role::Primary,
        }
    }

    /// How safe the guest is, as far as this node can tell.
    #[must_use]
    pub fn protection(&self) -> Protection {
        match self.state {
            State::Copying { .. } | State::Opening { .. } | State::Waiting => Protection::Syncing,
            State::Protected { .. } | State::Standing { committed: true, recorded: true } => match self.sight {
                Sight::Unknown => Protection::Syncing,
                Sight::Clear => Protection::Protected,
                Sight::Blind(_) => Protection::Blind,
            },
            State::Standing { .. } => Protection::Syncing,
            State::Striking | State::Ending | State::Seeking => Protection::Held,
            State::Fencing { .. } => Protection::Fencing,
            State::New | State::Starting { .. } | State::Alone | State::Stopped => Protection::Unprotected,
        }
    }

    /// Whether a standby may link to this primary now.
    #[must_use]
    pub fn accepts_standby(&self) -> bool {
        self.state == State::Alone
    }

    /// Whether a primary may link to this standby now. While a standby asks for the grant it listens to no primary.
    #[must_use]
    pub fn accepts_primary(&self) -> bool {
        self.state == State::Waiting
    }

    /// When [`Event::Tick`] is wanted, if at all.
    #[must_use]
    pub fn deadline_ns(&self) -> Option<u64> {
        self.ask.deadline_ns().or(self.watch_at_ns)
    }
}

impl Node {
    /// Takes one event at `now_ns` (any monotonic clock) and appends what must be done to `actions`.
    ///
    /// Never panics; an event that does not fit the state is ignored, or answered by [`Action::DropLink`] where it concerns a link.
    pub fn handle(&mut self, event: Event, now_ns: u64, actions: &mut Vec<Action>) {
        match event {
            Event::ArbiterReply { id, answer } => match self.ask.take(id, answer, now_ns) {
                Outcome::Stale => {}
                Outcome::Failed(why) => self.unanswered(&why, now_ns, actions),
                Outcome::Known(record) => self.learned(record, now_ns, actions),
            },
            Event::Tick => {
                if self.ask.expire(now_ns) {
                    self.unanswered("the arbiter did not answer in time", now_ns, actions);
                }
            }
            Event::StartPrimary { abandon_standby } if self.state == State::New => {
                self.state = State::Starting { over: if abandon_standby { Over::Anything } else { Over::Nobody } };
            }
            Event::StartStandby if self.state == State::New => {
                self.state = State::Waiting;
                // Not only when it is needed: an arbiter that is out of reach is told of now.
                self.watch_at_ns = (self.config.watch_ns > 0).then_some(now_ns);
                self.report("waiting for a primary", actions);
            }
            // A grant that was answered before the sleep may be over: it counts only when it is read again.
            Event::Stalled { .. } if matches!(self.state, State::Starting { .. } | State::Seeking) => {
                self.ask.forget();
                self.ask.no_pause();
            }
            other if matches!(self.state, State::Fencing { .. }) => self.handle_fencing(other, now_ns, actions),
            other => match self.role() {
                Role::Primary => self.handle_primary(other, now_ns, actions),
                Role::Standby => self.handle_standby(other, actions),
                Role::Stopped => {}
            },
        }
        self.ask_on(now_ns, actions);
    }

    /// Asks what the state wants to know or to change, if no question is under way.
    fn ask_on(&mut self, now_ns: u64, actions: &mut Vec<Action>) {
        if !self.ask.idle(now_ns) {
            return;
        }
        match self.wish(now_ns) {
            Wish::Nothing => self.ask.no_pause(),
            Wish::Read => {
                self.watch_at_ns = None;
                self.ask.read(now_ns, actions);
            }
            Wish::Swap { expect, new } => self.ask.swap(expect, new, now_ns, actions),
        }
    }

    fn wish(&self, now_ns: u64) -> Wish {
        if self.on_hold {
            return Wish::Read;
        }
        let wanted = match &self.state {
            State::Starting { .. } => self.claim(),
            State::Opening { standby, recorded: false, .. } => self.record_standby(standby),
            State::Striking | State::Ending => self.strike_out(),
            State::Seeking => self.take_over(),
            State::Standing { recorded: true, .. } if self.ask.view().is_none() => Some(Wish::Read),
            State::Fencing { sure: false, .. } => Some(Wish::Read),
            State::Alone if self.leaves_unfenced() => self.mark_fenced(),
            _ if self.watch_at_ns.is_some_and(|at| now_ns >= at) => Some(Wish::Read),
            _ => Some(Wish::Nothing),
        };
        // Each of them yields nothing when the record is not known (any more), or not as it would have to be.
        wanted.unwrap_or(Wish::Read)
    }

    /// An arbiter answer says what the record is.
    fn learned(&mut self, record: Option<Record>, now_ns: u64, actions: &mut Vec<Action>) {
        match self.state {
            State::New | State::Stopped => {}
            State::Waiting => {
                self.watch_from(now_ns);
                self.sees(actions);
            }
            State::Starting { .. } => self.learned_starting(record, now_ns, actions),
            State::Standing { .. } | State::Seeking => self.learned_standby(record, now_ns, actions),
            State::Fencing { .. } => self.learned_fencing(record, now_ns, actions),
            _ => self.learned_primary(record, now_ns, actions),
        }
    }

    /// No answer is no grant: nothing changes but what the operator is told.
    fn unanswered(&mut self, why: &str, now_ns: u64, actions: &mut Vec<Action>) {
        match self.state {
            State::Starting { .. } => self.report(&format!("waiting for the arbiter before the guest may start: {why}"), actions),
            State::Opening { recorded: false, .. } => {
                self.report(&format!("output is held: the standby cannot be recorded: {why}"), actions);
            }
            State::Striking | State::Ending => {
                self.report(&format!("output is held: the standby is gone and the arbiter gives no answer: {why}"), actions);
            }
            State::Seeking => self.report(&format!("not activating: the arbiter gives no answer: {why}"), actions),
            State::Waiting => {
                self.watch_at_ns = (self.config.watch_ns > 0).then_some(0);
                self.dim(&sight::unread(why), now_ns, actions);
            }
            State::Standing { recorded: true, .. } => self.dim(&sight::unread(why), now_ns, actions),
            _ if self.on_hold => self.report(&format!("output is held: the right to run cannot be confirmed: {why}"), actions),
            // The watch is tried again after the pause.
            _ => {
                let watches = self.role() == Role::Primary || matches!(self.state, State::Fencing { .. });
                self.watch_at_ns = (watches && self.config.watch_ns > 0).then_some(0);
            }
        }
    }

    fn report(&self, reason: &str, actions: &mut Vec<Action>) {
        actions.push(Action::Report {
            role: self.role(),
            protection: self.protection(),
            generation: self.generation,
            reason: reason.to_owned(),
        });
    }

    fn mine(&self, generation: Generation, standby: Option<NodeId>) -> Record {
        let Config { me, host, instance, .. } = &self.config;
        Record { generation, owner: me.clone(), host: *host, instance: *instance, standby, unfenced: Vec::new() }
    }

    fn watch_from(&mut self, now_ns: u64) {
        self.watch_at_ns = (self.config.watch_ns > 0).then(|| now_ns.saturating_add(self.config.watch_ns));
    }
}

#[cfg(test)]
mod tests;
