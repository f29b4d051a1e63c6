//! The data thread of one link: parts in, verified, assembled, committed.
//!
//! Lives here: the way of a part from its slot to a commit. Not here: applying (`apply.rs`). Guards S2: nothing is believed before its digest is right, nothing is
//! committed before it is whole. (With `--verify-memory` the comparison of all memory comes after the commit: a difference ends this standby.)

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use checkpoint::{Assembler, CompleteEpoch, Part, PartKind};
use crossbeam::channel::{Receiver, RecvTimeoutError, bounded};
use transport::pump::{LINK_POLL, receive_until};
use transport::{ControlSender, DataReceiver, Slot};
use types::block::DiskWrite;
use types::{Epoch, Generation};

use crate::apply::{Job, Writer};
use crate::core::Event;
use crate::greet::Alive;
use crate::shared::{News, Shared};

/// What the thread is made from.
pub(crate) struct DataThread {
    pub(crate) shared: Arc<Shared>,
    pub(crate) link: u64,
    pub(crate) generation: Generation,
    pub(crate) control: Arc<dyn ControlSender>,
    pub(crate) gone: Arc<AtomicBool>,
    pub(crate) verify_memory: bool,
    /// For parts of the first copy, which are applied as they come: a slot is free again at once, so that the copy needs few of them.
    pub(crate) writer: Writer,
    /// Says when nothing of an earlier link is left to be applied: the first copy goes to memory directly and must come after it.
    pub(crate) ready: Receiver<()>,
    /// Let go when this thread has ended: a new link's copy begins after that.
    pub(crate) alive: Alive,
}

/// Runs until the link fails or is not wanted any more.
pub(crate) fn run(mut thread: DataThread, mut receiver: Box<dyn DataReceiver>) {
    types::thread::urgent(types::thread::Urgency::Commit);
    let mut assembler = Assembler::new(thread.generation);
    while let Err(RecvTimeoutError::Timeout) = thread.ready.recv_timeout(LINK_POLL) {
        if thread.gone.load(Ordering::Acquire) {
            return;
        }
    }
    // Here, where the link can be given up meanwhile: a large disk that cannot be zeroed quickly takes minutes. A disk that fails says so itself.
    while let Ok(false) = thread.shared.disks.wait_wiped(LINK_POLL) {
        if thread.gone.load(Ordering::Acquire) {
            return;
        }
    }
    let gone = Arc::clone(&thread.gone);
    let cause = receive_until(&gone, |poll| receiver.receive(poll), |slot| thread.take(slot, &mut assembler));
    // Nothing is written any more.
    drop(thread.alive);
    if let Some(cause) = cause {
        thread.shared.tell(News::LinkLost { link: thread.link, cause });
    }
}

impl DataThread {
    fn take(&mut self, slot: Slot, assembler: &mut Assembler<Slot>) -> Result<(), String> {
        let shared = Arc::clone(&self.shared);
        let part = match Part::parse(&slot, &shared.map) {
            Ok(part) => part,
            Err(error) => {
                tracing::error!(%error, "a part is refused");
                let _ = shared.raise(Event::Corrupt { what: error.to_string() });
                return Err(error.to_string());
            }
        };
        let header = *part.header();
        if header.kind == PartKind::Sync {
            assembler.sync(&part).map_err(|error| self.refused(&error.to_string()))?;
            shared.raise(Event::SyncPart).map_err(|fault| fault.to_string())?;
            return self.writer.part(&slot).map_err(|error| self.refused(&error.to_string()));
        }
        let admitted = assembler.admit(&part).map_err(|error| self.refused(&error.to_string()))?;
        let verified = Event::PartVerified { generation: header.generation, epoch: header.epoch };
        shared.raise(verified).map_err(|fault| fault.to_string())?;
        match assembler.keep(slot, admitted).map_err(|error| self.refused(&error.to_string()))? {
            Some(complete) => self.complete(complete),
            None => Ok(()),
        }
    }

    fn complete(&self, complete: CompleteEpoch<Slot>) -> Result<(), String> {
        let (shared, epoch) = (&self.shared, complete.epoch);
        // Before the commit: what is committed must be possible to apply.
        complete.tail.check_disks(&shared.map).map_err(|error| self.refused(&error.to_string()))?;
        let memory = complete.tail.memory.clone();
        let written = complete.tail.disks.iter().map(DiskWrite::payload).sum();
        let Some(permit) = shared.backlog.enter(written, LINK_POLL, || !self.gone.load(Ordering::Acquire)) else {
            return Ok(());
        };
        if epoch == Epoch::NONE.next() {
            let (done, answered) = bounded(1);
            shared.tell(News::FirstEpoch { link: self.link, complete, permit, done });
            // Answered, or dropped with the link: later epochs must not be committed before this one.
            let _ = answered.recv();
        } else {
            shared.commit(complete, permit, self.control.as_ref())?;
        }
        match memory {
            Some(memory) if self.verify_memory => self.verify(epoch, Box::new(memory)),
            _ => Ok(()),
        }
    }

    /// Compares all of guest memory with the primary's after the epoch is applied. The next epoch waits: this is for tests and for finding faults.
    fn verify(&self, epoch: Epoch, memory: Box<checkpoint::MemoryDigest>) -> Result<(), String> {
        // Behind the epoch itself in the apply thread's queue.
        let (answer, difference) = bounded(1);
        self.shared.apply(Job::Compare(memory, answer));
        match difference.recv() {
            Ok(Err(difference)) => {
                tracing::error!(%epoch, difference, "the standby's memory is not the primary's");
                let _ = self.shared.raise(Event::ApplyFailed { epoch });
                // Before the link's loss is told: the role machine must not ask to take over with this.
                self.shared.tell(News::Spoilt { reason: format!("memory differs from the primary's at epoch {epoch}: {difference}") });
                Err(format!("memory differs at epoch {epoch}: {difference}"))
            }
            Ok(Ok(())) | Err(_) => Ok(()),
        }
    }

    fn refused(&self, why: &str) -> String {
        tracing::error!(why, "a part is refused");
        let _ = self.shared.raise(Event::Corrupt { what: why.to_owned() });
        why.to_owned()
    }
}
