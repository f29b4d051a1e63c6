//! The data thread of one link: parts in, verified, assembled, committed.
//!
//! Lives here: the way of a part from its slot to a commit. Not here: applying (`apply.rs`). Guards S2: nothing is believed before its digest is right, nothing is
//! committed before it is whole. (With `--verify-memory` the comparison of memory comes after the commit, off its path: a difference ends this standby.)

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use checkpoint::{Assembler, CompleteEpoch, Part, PartKind, VerifyMemory};
use crossbeam::channel::{Receiver, RecvTimeoutError, bounded};
use transport::pump::{LINK_POLL, receive_until};
use transport::{ControlSender, DataReceiver, Slot};
use types::{Epoch, Generation};

use crate::apply::Writer;
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
    pub(crate) verify: VerifyMemory,
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
    // Before the link's loss is told: the role machine must not ask to take over with a memory that is about to be found wrong.
    thread.shared.comparing.empty(LINK_POLL, || !gone.load(Ordering::Acquire));
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
        let window = self.verify.window(&shared.map, complete.generation, epoch);
        complete.tail.check_memory(window.as_ref()).map_err(|error| self.refused(&error.to_string()))?;
        let Some(permits) = shared.room(&complete.tail, || !self.gone.load(Ordering::Acquire)) else {
            return Ok(());
        };
        if epoch == Epoch::NONE.next() {
            let (done, answered) = bounded(1);
            shared.tell(News::FirstEpoch { link: self.link, complete, permits, done });
            // Answered, or dropped with the link: later epochs must not be committed before this one.
            let _ = answered.recv();
        } else {
            shared.commit(complete, permits, self.control.as_ref())?;
        }
        Ok(())
    }

    fn refused(&self, why: &str) -> String {
        tracing::error!(why, "a part is refused");
        let _ = self.shared.raise(Event::Corrupt { what: why.to_owned() });
        why.to_owned()
    }
}
