//! The primary's pipeline: when an epoch ends, which epochs are in flight, what a commit releases, and what goes back to the dirty set.
//!
//! Lives here: decisions. Not here: pausing, copying, sending, buffers, clocks (the shell raises [`Event`]s with the time and carries
//! out the [`Action`]s in order), nor who may run (`failover::core`, whose actions become [`Event::Mode`] and [`Event::HoldRelease`]).
//! Guards S1: [`Action::Release`] is the only place where a [`Commit`] is attested. Guards S6: an epoch that was captured and not
//! committed is given back by [`Action::MergeBack`], and a guest is never left held once output can leave again.

mod timing;

use std::collections::VecDeque;

use types::{Commit, Epoch, Generation};

pub use timing::Policy;
use timing::{Flights, Timing};

/// What the role machine allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// No standby: output passes, no epochs. `failover`: `Boot`, `Activate`, `Ungate`; after the last the shell has the buffer release all
    /// that it holds before it raises this.
    Unprotected,
    /// Memory is being copied: output passes, no epochs.
    Syncing,
    /// The gate is closed and epochs run from 1; nothing is released yet. `failover`: `Gate`.
    Gated,
    /// Commits release. `failover`: `Protect`.
    Protected,
    /// The standby is gone and going on alone is not granted: no epochs, nothing is released. `failover`: `Hold`.
    Held,
}

/// What has happened: all that the pipeline learns of the world comes in as one of these, with the time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The role machine's word. With [`Mode::Gated`] the epochs start anew at 1 in `generation`.
    Mode {
        /// What is allowed now.
        mode: Mode,
        /// The generation that the node acts in now.
        generation: Generation,
    },
    /// The role machine's `HoldRelease` (true) or `ResumeRelease` (false).
    HoldRelease(bool),
    /// Time passed. To be raised at [`Pipeline::deadline_ns`].
    Tick,
    /// The guest sent output that is held. Need only be raised for the first of an epoch, and when the buffer gets short. May come from the
    /// device before [`Event::Captured`] of the epoch that was just sealed.
    Output {
        /// It is the first held in the epoch that is open in the buffer.
        first: bool,
        /// The buffer is past its high-water mark.
        pressure: bool,
    },
    /// The output buffer takes no more: a frame was turned back. Answered by [`Action::HoldGuest`].
    OutputFull,
    /// The answer to [`Action::SampleDirty`]; also to be raised unasked when the dirty ring is nearly full.
    DirtyEstimate {
        /// Pages dirty in the open epoch, about.
        pages: u64,
    },
    /// The epoch's state is captured, its output sealed, the guest runs on. Handing it to the sender is the shell's business, after this.
    Captured {
        /// As in [`Action::EndEpoch`].
        generation: Generation,
        /// As in [`Action::EndEpoch`].
        epoch: Epoch,
        /// Dirty pages in it.
        pages: u64,
    },
    /// The epoch could not be captured; its dirty set is still (or again) in the tracker, its output not sealed, the guest runs on.
    CaptureFailed {
        /// As in [`Action::EndEpoch`].
        generation: Generation,
        /// As in [`Action::EndEpoch`].
        epoch: Epoch,
    },
    /// The epoch's last part is **about to be** posted. Raised before posting, so that no commit can overtake it.
    Sent {
        /// Of the epoch.
        generation: Generation,
        /// Which.
        epoch: Epoch,
    },
    /// The epoch could not be sent.
    SendFailed {
        /// Of the epoch.
        generation: Generation,
        /// Which.
        epoch: Epoch,
    },
    /// A commit message came from the standby, as it stands in the message: it is checked here.
    Committed {
        /// As in the message.
        generation: Generation,
        /// As in the message.
        epoch: Epoch,
    },
    /// The standby reported other memory than was sent (`--verify-memory`).
    VerifyMismatch {
        /// In this epoch.
        epoch: Epoch,
    },
    /// The link to the standby is gone.
    LinkLost,
}

/// Why an epoch ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EndReason {
    /// It is the first: the standby can be activated from nothing else.
    First,
    /// Output waited for its bound.
    Output,
    /// The output buffer gets short.
    Pressure,
    /// The dirty budget is reached.
    Dirty,
    /// The longest interval passed and something is dirty.
    Interval,
}

/// Why the guest is held still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HoldReason {
    /// The output buffer is full, and commits are on their way.
    AwaitingCommit,
    /// The output buffer is full, the standby is gone and no grant to go on alone was had.
    NoGrant,
    /// This node did not run for a while, and output would leave through an open gate before the record is read.
    Unconfirmed,
}

/// Why the link must be dropped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkFault {
    /// A commit for another generation.
    #[error("the standby committed epoch {epoch} of generation {theirs} while generation {ours} runs")]
    WrongGeneration {
        /// This node's.
        ours: Generation,
        /// The message's.
        theirs: Generation,
        /// The message's.
        epoch: Epoch,
    },
    /// A commit out of order, repeated, or for an epoch never sent.
    #[error("the standby committed epoch {epoch}, but the next that it can commit is {expected:?}")]
    WrongEpoch {
        /// The message's.
        epoch: Epoch,
        /// The oldest epoch in flight, if that was sent.
        expected: Option<Epoch>,
    },
    /// The standby holds other memory than was sent.
    #[error("the standby's memory differs from the primary's at epoch {0}")]
    Mismatch(Epoch),
    /// An epoch could not be sent; the standby would miss it.
    #[error("epoch {0} could not be sent")]
    SendFailed(Epoch),
}

/// What the shell must do.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Pause the guest, capture, seal the output, resume; then raise [`Event::Captured`] or [`Event::CaptureFailed`].
    EndEpoch {
        /// The generation of the epoch.
        generation: Generation,
        /// The epoch that ends.
        epoch: Epoch,
        /// Why now.
        reason: EndReason,
    },
    /// Let held output go, up to what the token covers: the standby has said that it holds all of it. (Output held when the gate
    /// opens needs none: see [`Mode::Unprotected`].)
    Release(Commit),
    /// Epoch 1 is committed: raise `failover::core::Event::FirstCommit`.
    FirstCommit(Epoch),
    /// The epoch will never be committed: put its dirty set back, drop its staging. Its output stays held.
    MergeBack(Epoch),
    /// Keep the guest from running until [`Action::ResumeGuest`].
    HoldGuest(HoldReason),
    /// Let it run again.
    ResumeGuest,
    /// Estimate the dirty pages and raise [`Event::DirtyEstimate`].
    SampleDirty,
    /// Close the link and raise `failover::core::Event::PeerGone` with this cause.
    DropLink(LinkFault),
}

/// What an event did to [`Pipeline::deadline_ns`], for a thread that sleeps until then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Deadline {
    /// It is where it was, or later, or there is none any more: who sleeps until then may sleep on.
    Stands,
    /// It is earlier than it was, or there was none: who sleeps must look at it again.
    Earlier,
}

#[derive(Clone, Copy, Debug)]
struct InFlight {
    epoch: Epoch,
    sent: bool,
}

/// The pipeline of one primary.
#[derive(Debug)]
pub struct Pipeline {
    timing: Timing,
    mode: Mode,
    generation: Generation,
    /// The epoch that the guest runs in; `NONE` while no epochs run.
    open: Epoch,
    /// `EndEpoch` was given for `open` and not yet answered.
    ending: bool,
    /// Captured and not committed, oldest first; at most `max_in_flight`.
    in_flight: VecDeque<InFlight>,
    committed: Epoch,
    released: Epoch,
    hold_release: bool,
    /// The link of this generation is gone or given up: nothing can be committed on it.
    link_lost: bool,
    guest_held: Option<HoldReason>,
}

impl Pipeline {
    /// A pipeline of a node that runs unprotected.
    #[must_use]
    pub fn new(policy: Policy) -> Pipeline {
        let capacity = policy.max_in_flight.max(1);
        Pipeline {
            timing: Timing::new(policy),
            mode: Mode::Unprotected,
            generation: Generation(0),
            open: Epoch::NONE,
            ending: false,
            in_flight: VecDeque::with_capacity(capacity),
            committed: Epoch::NONE,
            released: Epoch::NONE,
            hold_release: false,
            link_lost: true,
            guest_held: None,
        }
    }

    /// The epoch under which output is held now; [`Epoch::NONE`] while output passes.
    #[must_use]
    pub fn open_epoch(&self) -> Epoch {
        self.open
    }

    /// The newest epoch that the standby committed.
    #[must_use]
    pub fn committed(&self) -> Epoch {
        self.committed
    }

    /// Epochs captured and not committed.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Why the guest is to be kept still now, if it is. [`Action::HoldGuest`] and [`Action::ResumeGuest`] only say that this has changed: they are carried out
    /// by threads that may overtake each other, so whoever does it looks here.
    #[must_use]
    pub fn guest_held(&self) -> Option<HoldReason> {
        self.guest_held
    }

    /// When [`Event::Tick`] is wanted next, if at all.
    #[must_use]
    pub fn deadline_ns(&self) -> Option<u64> {
        if self.may_end() { Some(self.timing.deadline_ns(self.open, self.flights())) } else { None }
    }

    /// Takes one event at `now_ns` (monotonic) and appends what must be done to `actions`. Never panics.
    ///
    /// The answer compares the deadline before the event with the one after it, so whoever raises it under the lock that guards the pipeline cannot
    /// miss another event in between. Threads that are given one of `actions` look at the deadline after that in any case.
    pub fn handle(&mut self, event: Event, now_ns: u64, actions: &mut Vec<Action>) -> Deadline {
        let before = self.deadline_ns();
        self.take(event, now_ns, actions);
        self.decide(now_ns, actions);
        let after = self.deadline_ns().unwrap_or(u64::MAX);
        if after < before.unwrap_or(u64::MAX) { Deadline::Earlier } else { Deadline::Stands }
    }

    fn take(&mut self, event: Event, now_ns: u64, actions: &mut Vec<Action>) {
        match event {
            Event::Mode { mode, generation } => self.change_mode(mode, generation, now_ns, actions),
            Event::HoldRelease(hold) => self.change_hold(hold, actions),
            Event::Tick => {}
            Event::Output { first, pressure } => {
                self.timing.output(first, pressure, now_ns);
                if self.ending {
                    // It may belong to the epoch that ends or to the next one: at worst one epoch ends early without output.
                    self.timing.next_output(first, pressure, now_ns);
                }
            }
            Event::OutputFull => self.output_full(now_ns, actions),
            Event::DirtyEstimate { pages } => self.timing.dirty(pages, now_ns),
            Event::Captured { generation, epoch, pages } => self.captured(generation, epoch, pages, now_ns, actions),
            Event::CaptureFailed { generation, epoch } => {
                if self.answers_end(generation, epoch) {
                    self.ending = false;
                    self.timing.capture_failed(now_ns);
                }
            }
            Event::Sent { generation, epoch } if generation == self.generation => {
                if let Some(flight) = self.in_flight.iter_mut().find(|f| f.epoch == epoch) {
                    flight.sent = true;
                }
            }
            Event::SendFailed { generation, epoch } if generation == self.generation => {
                if self.in_flight.iter().any(|f| f.epoch == epoch) {
                    self.fault(LinkFault::SendFailed(epoch), actions);
                }
            }
            Event::Sent { .. } | Event::SendFailed { .. } => {}
            Event::Committed { generation, epoch } => self.take_commit(generation, epoch, actions),
            Event::VerifyMismatch { epoch } if !self.link_lost => self.fault(LinkFault::Mismatch(epoch), actions),
            Event::VerifyMismatch { .. } => {}
            Event::LinkLost => self.lose_link(actions),
        }
    }

    fn change_mode(&mut self, mode: Mode, generation: Generation, now_ns: u64, actions: &mut Vec<Action>) {
        self.mode = mode;
        match mode {
            Mode::Unprotected | Mode::Syncing => {
                self.lose_link(actions);
                self.open_gate(actions);
                self.generation = generation;
            }
            Mode::Gated => {
                self.lose_link(actions);
                self.generation = generation;
                self.link_lost = false;
                self.ending = false;
                self.open = Epoch::NONE.next();
                self.committed = Epoch::NONE;
                self.released = Epoch::NONE;
                self.timing.open(now_ns);
            }
            Mode::Protected => self.release(actions),
            Mode::Held => self.lose_link(actions),
        }
    }

    /// No epochs run any more. What is held leaves by the buffer's own strike-out proof, not by a commit.
    fn open_gate(&mut self, actions: &mut Vec<Action>) {
        self.open = Epoch::NONE;
        self.ending = false;
        self.committed = Epoch::NONE;
        self.released = Epoch::NONE;
        if !self.hold_release {
            self.resume_guest(actions);
        }
    }

    fn change_hold(&mut self, hold: bool, actions: &mut Vec<Action>) {
        self.hold_release = hold;
        if !hold {
            self.release(actions);
            if self.guest_held == Some(HoldReason::Unconfirmed) {
                self.resume_guest(actions);
            }
        } else if matches!(self.mode, Mode::Unprotected | Mode::Syncing) {
            // An open gate holds nothing back: the guest must not speak.
            self.hold_guest(HoldReason::Unconfirmed, actions);
        }
    }

    fn hold_guest(&mut self, reason: HoldReason, actions: &mut Vec<Action>) {
        if self.guest_held.is_none() {
            self.guest_held = Some(reason);
            actions.push(Action::HoldGuest(reason));
        }
    }

    fn output_full(&mut self, now_ns: u64, actions: &mut Vec<Action>) {
        let reason = match self.mode {
            Mode::Gated | Mode::Protected if !self.link_lost => HoldReason::AwaitingCommit,
            // An open gate has room again as soon as what was held is written.
            Mode::Unprotected | Mode::Syncing => return,
            _ => HoldReason::NoGrant,
        };
        self.timing.output(true, true, now_ns);
        self.hold_guest(reason, actions);
    }

    fn answers_end(&self, generation: Generation, epoch: Epoch) -> bool {
        self.ending && generation == self.generation && epoch == self.open
    }

    fn captured(&mut self, generation: Generation, epoch: Epoch, pages: u64, now_ns: u64, actions: &mut Vec<Action>) {
        if !self.answers_end(generation, epoch) {
            // Of a gate that was opened meanwhile: nobody waits for it.
            actions.push(Action::MergeBack(epoch));
            return;
        }
        self.ending = false;
        self.open = epoch.next();
        self.timing.captured(pages, now_ns);
        if self.link_lost {
            actions.push(Action::MergeBack(epoch));
        } else {
            self.in_flight.push_back(InFlight { epoch, sent: false });
        }
    }

    fn take_commit(&mut self, generation: Generation, epoch: Epoch, actions: &mut Vec<Action>) {
        if self.link_lost {
            return;
        }
        if generation != self.generation {
            self.fault(LinkFault::WrongGeneration { ours: self.generation, theirs: generation, epoch }, actions);
            return;
        }
        let expected = self.in_flight.front().filter(|f| f.sent).map(|f| f.epoch);
        if expected != Some(epoch) {
            self.fault(LinkFault::WrongEpoch { epoch, expected }, actions);
            return;
        }
        self.in_flight.pop_front();
        self.committed = epoch;
        if epoch == Epoch::NONE.next() {
            actions.push(Action::FirstCommit(epoch));
        }
        self.release(actions);
    }

    fn release(&mut self, actions: &mut Vec<Action>) {
        if self.hold_release {
            return;
        }
        if self.mode == Mode::Protected && self.committed > self.released {
            self.released = self.committed;
            actions.push(Action::Release(Commit::attest(self.generation, self.committed)));
            self.resume_guest(actions);
        } else if matches!(self.mode, Mode::Unprotected | Mode::Syncing) {
            self.resume_guest(actions);
        }
    }

    fn resume_guest(&mut self, actions: &mut Vec<Action>) {
        if self.guest_held.take().is_some() {
            actions.push(Action::ResumeGuest);
        }
    }

    fn fault(&mut self, fault: LinkFault, actions: &mut Vec<Action>) {
        self.lose_link(actions);
        actions.push(Action::DropLink(fault));
    }

    fn lose_link(&mut self, actions: &mut Vec<Action>) {
        self.link_lost = true;
        actions.extend(self.in_flight.drain(..).map(|f| Action::MergeBack(f.epoch)));
    }

    fn flights(&self) -> Flights {
        match self.in_flight.back() {
            None => Flights::None,
            Some(newest) if newest.sent => Flights::Sent,
            Some(_) => Flights::Queued,
        }
    }

    /// Whether an epoch could be ended now if there were a reason. While commits lag the next one has to wait: it gets larger instead.
    fn may_end(&self) -> bool {
        matches!(self.mode, Mode::Gated | Mode::Protected)
            && !self.link_lost
            && !self.ending
            && self.in_flight.len() < self.timing.policy().max_in_flight.max(1)
    }

    fn decide(&mut self, now_ns: u64, actions: &mut Vec<Action>) {
        if !self.may_end() {
            return;
        }
        if let Some(reason) = self.timing.end_reason(self.open, self.flights(), now_ns) {
            self.ending = true;
            actions.push(Action::EndEpoch { generation: self.generation, epoch: self.open, reason });
        } else if self.timing.sample_due(now_ns) {
            actions.push(Action::SampleDirty);
        }
    }
}

#[cfg(test)]
mod tests;
