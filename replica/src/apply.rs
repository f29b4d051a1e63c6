//! The apply thread: brings verified pages into guest memory and verified disk writes on their way to the disks, in order, off the commit path.
//!
//! With `--verify-memory` the epoch's window of guest memory is compared with the primary's when the epoch is applied, and before the next one is.
//!
//! Lives here: writing pages, and remembering what the newest applied epoch left (machine state, recent output). Not here: what may be applied (only what
//! [`crate::core`] let pass comes here). Guards S2: an epoch is applied whole or the standby counts as spoilt, and never activates.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::Arc;
use std::time::Instant;

use checkpoint::digest::page_digest;
use checkpoint::encode::is_zero;
use checkpoint::wire::BLOCK_BYTES;
use checkpoint::{CompleteEpoch, GuestMap, MemoryDigest, Part, Record};
use crossbeam::channel::{Receiver, Sender};
use disk_buffer::{DiskError, Disks};
use transport::Slot;
use types::block::DiskWrite;
use types::{Epoch, Gfn, Output, OutputPort, PAGE_SIZE};
use vm_memory::{Bytes, GuestAddress};
use vmm::GuestMemory;

use crate::backlog::{Permit, Permits};
use crate::core::Event;
use crate::error::ReplicaError;
use crate::shared::{News, Shared};
use crate::verified::Verified;

/// Output of so many of the newest epochs is kept to be sent again: more than a primary can have in flight, so everything that is committed and perhaps
/// not released is among it.
const KEPT_EPOCHS: usize = 32;

/// Work for the apply thread.
pub(crate) enum Job {
    /// A committed epoch, the room that is counted for it, and when it was here.
    Epoch(Box<CompleteEpoch<Slot>>, Permits, Instant),
    /// A new primary: forget what the last one left, and say when everything before is done.
    Forget(Sender<()>),
    /// The standby's life is over.
    Stop,
    /// Answer with what is held, after everything before is applied.
    Yield(Sender<Held>),
}

/// What the newest applied epoch left.
#[derive(Default)]
pub(crate) struct Held {
    pub(crate) epoch: Epoch,
    pub(crate) machine: Vec<u8>,
    /// When the epoch was here: the guest's clock goes on from then.
    pub(crate) arrived: Option<Instant>,
    /// Output of the newest epochs, in order: it may not have left the primary.
    pub(crate) output: Vec<Output>,
}

/// Writes verified parts into guest memory and, of the first copy, to the disks.
pub(crate) struct Writer {
    disks: Arc<Disks>,
    memory: Arc<GuestMemory>,
    map: GuestMap,
    page: Box<[u8; PAGE_SIZE]>,
}

impl Writer {
    pub(crate) fn new(memory: Arc<GuestMemory>, disks: Arc<Disks>, map: GuestMap) -> Writer {
        Writer { disks, memory, map, page: Box::new([0; PAGE_SIZE]) }
    }

    /// Brings one part into guest memory, and its disk blocks to their disks: those are on their way when this returns.
    ///
    /// # Errors
    /// The page that could not be written, or the disk.
    pub(crate) fn part(&mut self, slot: &Slot) -> Result<(), ReplicaError> {
        // Verified when it came; cut again rather than kept, because a part borrows its slot.
        let part = Part::reparse(slot, &self.map)
            .map_err(|error| ReplicaError::Page { gfn: Gfn(0), reason: format!("the part changed after it was verified: {error}") })?;
        for record in part.records() {
            self.record(&record)?;
        }
        for record in part.blocks() {
            // The part was verified against the disks that there are.
            if let Some(disk) = self.disks.get(record.block.disk) {
                disk.sync_block(record.block.block * BLOCK_BYTES as u64, record.data.map(|data| &data[..]))?;
            }
        }
        Ok(())
    }

    fn record(&mut self, record: &Record<'_>) -> Result<(), ReplicaError> {
        let gfn = record.gfn();
        let at = GuestAddress(gfn.address());
        let wrap = |error: vm_memory::GuestMemoryError| ReplicaError::Page { gfn, reason: error.to_string() };
        match record {
            Record::Raw(_, page) => self.memory.write_slice(*page, at).map_err(wrap),
            Record::Zero(_) => {
                self.memory.read_slice(&mut self.page[..], at).map_err(wrap)?;
                // Memory that was never touched reads as zeros: it stays untouched.
                if is_zero(&self.page) {
                    return Ok(());
                }
                self.memory.write_slice(&[0; PAGE_SIZE], at).map_err(wrap)
            }
            Record::Delta(_, delta) => {
                self.memory.read_slice(&mut self.page[..], at).map_err(wrap)?;
                delta.apply(&mut self.page);
                self.memory.write_slice(&self.page[..], at).map_err(wrap)
            }
        }
    }
}

impl Writer {
    /// Compares a window of memory with the primary's. Its pages exist: the epoch's window was checked when it came.
    fn compare(&mut self, theirs: &MemoryDigest) -> Result<(), ReplicaError> {
        let Writer { memory, page, .. } = self;
        let mut failed = None;
        let ours = MemoryDigest::of_digests(&theirs.window(), |gfn| {
            if let Err(error) = memory.read_slice(&mut page[..], GuestAddress(gfn.address())) {
                failed = Some(ReplicaError::Page { gfn, reason: error.to_string() });
            }
            page_digest(page)
        });
        failed.map_or_else(|| ours.compare(theirs).map_err(ReplicaError::Memory), Err)
    }
}

struct Applier {
    shared: Arc<Shared>,
    writer: Writer,
    epoch: Epoch,
    machine: Vec<u8>,
    arrived: Option<Instant>,
    console: Option<Box<dyn Write + Send>>,
    output: VecDeque<Vec<Output>>,
    verified: Verified,
}

/// Runs until [`Job::Stop`].
pub(crate) fn run(shared: Arc<Shared>, memory: Arc<GuestMemory>, console: Option<Box<dyn Write + Send>>, jobs: &Receiver<Job>) {
    let writer = Writer::new(memory, Arc::clone(&shared.disks), shared.map.clone());
    let verified = Verified::new(Arc::clone(&shared.report), shared.map.pages());
    let mut applier =
        Applier { shared, writer, epoch: Epoch::NONE, machine: Vec::new(), arrived: None, console, output: VecDeque::new(), verified };
    for job in jobs {
        match job {
            Job::Epoch(complete, permits, arrived) => applier.epoch(*complete, permits, arrived),
            Job::Stop => return applier.verified.over(),
            Job::Forget(done) => {
                applier.verified.over();
                applier.epoch = Epoch::NONE;
                applier.machine.clear();
                applier.output.clear();
                applier.shared.disks.discard_uncommitted();
                applier.shared.forget_kept();
                let _ = done.send(());
            }
            Job::Yield(answer) => {
                applier.verified.over();
                let held = Held {
                    epoch: applier.epoch,
                    machine: std::mem::take(&mut applier.machine),
                    arrived: applier.arrived,
                    output: applier.output.drain(..).flatten().collect(),
                };
                let _ = answer.send(held);
            }
        }
    }
}

impl Applier {
    fn epoch(&mut self, mut complete: CompleteEpoch<Slot>, permits: Permits, arrived: Instant) {
        let epoch = complete.epoch;
        let Permits { writes, kept, comparing } = permits;
        if let Err(error) = self.bring_in(&mut complete, writes, kept) {
            self.spoilt(epoch, &error);
            // Not before that is told: whoever waits for it is about to tell of a link's loss.
            return drop(comparing);
        }
        self.epoch = epoch;
        self.machine = complete.tail.machine;
        self.arrived = Some(arrived);
        self.show(&complete.tail.output);
        if self.output.len() == KEPT_EPOCHS {
            self.output.pop_front();
        }
        self.output.push_back(complete.tail.output);
        // The staging machine gives no fault for this event.
        let _ = self.shared.raise(Event::Applied { epoch });
    }

    /// Brings the epoch into memory and on its way to the disks, and compares its window.
    fn bring_in(&mut self, complete: &mut CompleteEpoch<Slot>, writes: Permit, kept: Permit) -> Result<(), ReplicaError> {
        // First: the disks work beside this thread.
        self.write_disks(complete.epoch, std::mem::take(&mut complete.tail.disks))?;
        // They count among what the disks themselves have queued now.
        drop(writes);
        self.shared.keep(complete.epoch, kept);
        for slot in complete.parts.drain(..) {
            self.writer.part(&slot)?;
            types::fault::reach(types::fault::Point::MidApply);
        }
        if let Some(theirs) = &complete.tail.memory {
            self.writer.compare(theirs)?;
            self.verified.add(theirs.pages());
        }
        Ok(())
    }

    /// Committed console output may be seen here as well as at the primary.
    fn show(&mut self, output: &[Output]) {
        if let Some(console) = &mut self.console {
            for piece in output.iter().filter(|piece| piece.port == OutputPort::Console) {
                // A console nobody can read must not stop the standby.
                let _ = console.write_all(&piece.bytes);
            }
        }
    }

    /// Hands the epoch's writes to the disks; waits while those have too much to do.
    fn write_disks(&self, epoch: Epoch, writes: Vec<DiskWrite>) -> Result<(), ReplicaError> {
        let disks = &self.shared.disks;
        Ok(disks.stage(epoch, writes).and_then(|()| disks.commit(epoch))?)
    }

    fn spoilt(&self, epoch: Epoch, error: &ReplicaError) {
        tracing::error!(%epoch, %error, "memory and disks are of no epoch; this standby will not activate from them");
        let _ = self.shared.raise(Event::ApplyFailed { epoch });
        // A disk that failed says so itself, to the primary and to the role thread, and says why.
        if !matches!(error, ReplicaError::Disk(DiskError::Failed { .. })) {
            let reason = format!("epoch {epoch} could not be applied: {error}");
            self.shared.reporter.leave(&reason);
            self.shared.tell(News::Spoilt { reason });
        }
    }
}
