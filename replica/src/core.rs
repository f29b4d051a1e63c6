//! The standby's staging: what is complete, committed and applied, and from what it may activate.
//!
//! Lives here: decisions. Not here: slots, digests, guest memory, the link (the shell raises [`Event`]s and carries out the
//! [`Action`]s in order), nor whether it is granted (`failover::core`). Guards S2: only a complete, verified epoch is ever committed, and
//! [`Standby::activation_point`] names nothing else. Guards S3: after [`Event::StopCommitting`] no commit is produced.

use types::{Epoch, Generation};

/// What has happened: all that the staging machine learns of the link and of applying comes in as one of these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A SYNC part came, verified; it is applied as it is.
    SyncPart,
    /// A part of an epoch came and its digest is right.
    PartVerified {
        /// The part's generation.
        generation: Generation,
        /// The part's epoch.
        epoch: Epoch,
    },
    /// The last part came, the digest over the whole epoch is right: everything of it is staged.
    EpochComplete {
        /// Its generation.
        generation: Generation,
        /// Which.
        epoch: Epoch,
    },
    /// Something came that is not what it should be: a wrong digest, a malformed part.
    Corrupt {
        /// In words, for the operator.
        what: String,
    },
    /// A committed epoch is now in guest memory.
    Applied {
        /// Which.
        epoch: Epoch,
    },
    /// A committed epoch could not be applied: guest memory is of no epoch any more.
    ApplyFailed {
        /// Which.
        epoch: Epoch,
    },
    /// The link to the primary is gone: what is not complete never will be.
    LinkLost,
    /// The role machine's order, before it asks for the grant: commit nothing any more.
    StopCommitting,
}

/// Why the link must be dropped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkFault {
    /// A part of another generation.
    #[error("epoch {epoch} of generation {theirs} came while generation {ours} is held")]
    WrongGeneration {
        /// This standby's.
        ours: Generation,
        /// The part's.
        theirs: Generation,
        /// The part's.
        epoch: Epoch,
    },
    /// An epoch out of order.
    #[error("epoch {epoch} came where epoch {expected} is next")]
    WrongEpoch {
        /// The next that can be committed.
        expected: Epoch,
        /// The one that came.
        epoch: Epoch,
    },
    /// A SYNC part after the first epoch began.
    #[error("a part of the first copy came after epoch 1 began")]
    LateSync,
    /// A wrong digest or a malformed part.
    #[error("corrupt data: {0}")]
    Corrupt(String),
    /// A committed epoch could not be applied.
    #[error("epoch {0} could not be applied")]
    ApplyFailed(Epoch),
}

/// What the shell must do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Tell the primary that all of the epoch is held. For the first one `failover::core::Event::Committed` goes before it.
    Commit {
        /// Its generation.
        generation: Generation,
        /// Which.
        epoch: Epoch,
    },
    /// Copy the epoch into guest memory, after all earlier ones; then raise [`Event::Applied`].
    Apply(Epoch),
    /// Throw away what is staged of an epoch that is not committed.
    DiscardTorn(Epoch),
    /// Close the link and raise `failover::core::Event::PeerGone` with this cause.
    DropLink(LinkFault),
}

/// The staging of one standby for one link: made anew for each primary that links.
#[derive(Clone, Debug)]
pub struct Standby {
    generation: Generation,
    committed: Epoch,
    applied: Epoch,
    /// A part of `committed + 1` was staged.
    partial: bool,
    /// No commit may be produced any more.
    stopped: bool,
    /// Nothing that comes from the link counts any more.
    link_lost: bool,
    /// Guest memory is of no epoch.
    spoilt: bool,
}

impl Standby {
    /// For a primary that acts in this generation.
    #[must_use]
    pub fn new(generation: Generation) -> Standby {
        Standby {
            generation,
            committed: Epoch::NONE,
            applied: Epoch::NONE,
            partial: false,
            stopped: false,
            link_lost: false,
            spoilt: false,
        }
    }

    /// The generation whose epochs are held.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// The newest committed epoch.
    #[must_use]
    pub fn committed(&self) -> Epoch {
        self.committed
    }

    /// The newest epoch that is wholly in guest memory.
    #[must_use]
    pub fn applied(&self) -> Epoch {
        self.applied
    }

    /// The epoch to activate from. `None` until [`Event::StopCommitting`] (before that it may still change), while no whole epoch
    /// is committed, and when guest memory is spoilt.
    #[must_use]
    pub fn activation_point(&self) -> Option<Epoch> {
        (self.stopped && !self.spoilt && self.committed > Epoch::NONE).then_some(self.committed)
    }

    /// Whether everything up to the activation point is in guest memory, so that the machine state can be set and the guest run.
    #[must_use]
    pub fn ready(&self) -> bool {
        self.activation_point() == Some(self.applied)
    }

    /// Takes one event and appends what must be done to `actions`. Never panics.
    pub fn handle(&mut self, event: Event, actions: &mut Vec<Action>) {
        match event {
            Event::SyncPart => {
                if !self.link_lost && (self.partial || self.committed > Epoch::NONE) {
                    self.fault(LinkFault::LateSync, actions);
                }
            }
            Event::PartVerified { generation, epoch } => {
                if self.expects(generation, epoch, actions) {
                    self.partial = true;
                }
            }
            Event::EpochComplete { generation, epoch } => {
                if self.expects(generation, epoch, actions) {
                    self.partial = false;
                    self.committed = epoch;
                    actions.push(Action::Commit { generation, epoch });
                    actions.push(Action::Apply(epoch));
                }
            }
            Event::Corrupt { what } => {
                if !self.link_lost {
                    // Whatever was staged of it, seen or not, is torn.
                    self.partial = true;
                    self.fault(LinkFault::Corrupt(what), actions);
                }
            }
            Event::Applied { epoch } => {
                if epoch == self.applied.next() && epoch <= self.committed {
                    self.applied = epoch;
                }
            }
            Event::ApplyFailed { epoch } => {
                self.spoilt = true;
                self.stopped = true;
                self.fault(LinkFault::ApplyFailed(epoch), actions);
            }
            Event::LinkLost => self.lose_link(actions),
            Event::StopCommitting => {
                self.stopped = true;
                self.lose_link(actions);
            }
        }
    }

    /// Whether a part or an epoch is the next one of a link that counts; a fault if it is another.
    fn expects(&mut self, generation: Generation, epoch: Epoch, actions: &mut Vec<Action>) -> bool {
        let expected = self.committed.next();
        if self.link_lost || self.stopped {
            return false;
        }
        if generation != self.generation {
            self.fault(LinkFault::WrongGeneration { ours: self.generation, theirs: generation, epoch }, actions);
            return false;
        }
        if epoch != expected {
            self.fault(LinkFault::WrongEpoch { expected, epoch }, actions);
            return false;
        }
        true
    }

    fn fault(&mut self, fault: LinkFault, actions: &mut Vec<Action>) {
        self.lose_link(actions);
        actions.push(Action::DropLink(fault));
    }

    fn lose_link(&mut self, actions: &mut Vec<Action>) {
        self.link_lost = true;
        if std::mem::take(&mut self.partial) {
            actions.push(Action::DiscardTorn(self.committed.next()));
        }
    }
}

#[cfg(test)]
mod tests;
