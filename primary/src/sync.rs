//! The first copy: all of memory, and of the disks what the standby lacks, to a new standby, while the guest runs.
//!
//! Lives here: the rounds, and the parts that everything goes in. Not here: the disks' passes (`copy_disks.rs`), who asked for it (`run/link.rs`) and the epochs that follow. Guards S5: a page that is written after it was read is in the next
//! round or in epoch 1, because the log is collected (and armed again) before the pages of a round are read.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam::channel::{Receiver, Sender};
use dirty_tracking::DirtySet;
use disk_buffer::{Identity as DiskIdentity, Plan};
use types::event::NodeEventKind;
use types::{Generation, Gfn};

use crate::capture::CaptureBuffer;
use crate::copy_disks::DiskCopies;
use crate::error::PrimaryError;
use crate::sender::Job;
use crate::shared::Shared;

/// Rounds at most: a guest that dirties faster than the link sends is paused for a large epoch 1 after so many.
const MAX_ROUNDS: u32 = 8;
/// So few pages left are epoch 1's business.
const SMALL_REST: u64 = 1024;
/// A round that leaves more than this share of the round before is not getting anywhere (three quarters).
const PROGRESS: (u64, u64) = (3, 4);

/// A copy to be made.
pub(crate) struct Copying {
    /// Which link.
    pub(crate) link: u64,
    /// The generation that the guest runs in.
    pub(crate) generation: Generation,
    /// The link's sender.
    pub(crate) jobs: Sender<Job>,
    /// The link is gone.
    pub(crate) gone: Arc<AtomicBool>,
    /// Pages that fit one part.
    pub(crate) pages_per_part: usize,
    /// What the standby's disks lack, by the disks' indices, and what the standby says of them.
    pub(crate) plans: Vec<(Plan, DiskIdentity)>,
}

/// Copies disks and memory, disks first, because most of them stays as it is; `true` when only a small rest of memory is left, which is given back to the tracker for epoch 1,
/// and every write to a disk is recorded for that epoch. `false`: the link is gone. `between` is called between two parts, with the guest running.
pub(crate) fn copy_all(shared: &Shared, pool: &Pool, copying: &Copying, between: &mut dyn FnMut()) -> Result<bool, PrimaryError> {
    let machine = &shared.machine;
    let mut parts = Parts { shared, pool, copying, between, index: 0, sent: 0, blocks: 0, filling: None, logged: None };
    let mut disks = DiskCopies::begin(shared, copying)?;
    if !disks.bulk(&mut parts)? {
        return Ok(false);
    }
    machine.start_tracking()?;
    let mut set = DirtySet::new(machine.slots());
    // What was logged before is in the whole copy.
    machine.collect_dirty_running(&mut set)?;
    set.clear();
    set.insert_all();
    parts.logged = Some(DirtySet::new(machine.slots()));
    for round in 1.. {
        let before = set.count();
        if !parts.memory(&mut set)? {
            return Ok(false);
        }
        let left = set.count();
        tracing::info!(round, sent = parts.sent, left, "copied memory to the standby");
        let stuck = round > 1 && left * PROGRESS.1 > before * PROGRESS.0;
        if left <= SMALL_REST || round >= MAX_ROUNDS || stuck {
            break;
        }
    }
    if !disks.last(&mut parts)? {
        return Ok(false);
    }
    parts.take_logged(&mut set)?;
    if set.count() > SMALL_REST && !parts.memory(&mut set)? {
        // Once more: the disks took a while.
        return Ok(false);
    }
    machine.give_back(&set);
    parts.report();
    Ok(!copying.gone.load(Ordering::Acquire))
}

/// The parts of one first copy, numbered through.
pub(crate) struct Parts<'a> {
    shared: &'a Shared,
    pool: &'a Pool,
    copying: &'a Copying,
    /// What must not wait for the end of the copy.
    between: &'a mut dyn FnMut(),
    index: u32,
    /// Pages of memory sent.
    sent: u64,
    /// Blocks of disks sent.
    blocks: u64,
    /// Blocks that wait for their part to be full.
    filling: Option<CaptureBuffer>,
    /// Pages written since the round began; none while dirty pages are not tracked.
    logged: Option<DirtySet>,
}

impl Parts<'_> {
    /// Sends the pages of `set`, which is then what was written meanwhile. `false`: the link is gone.
    fn memory(&mut self, set: &mut DirtySet) -> Result<bool, PrimaryError> {
        let machine = &self.shared.machine;
        let mut chunk = DirtySet::new(machine.slots());
        let pages: Vec<Gfn> = set.iter().collect();
        for part in pages.chunks(self.copying.pages_per_part.max(1)) {
            let Some(mut buffer) = self.buffer() else { return Ok(false) };
            chunk.clear();
            part.iter().for_each(|gfn| {
                chunk.insert(*gfn);
            });
            if let Err(error) = buffer.copy(machine.memory(), &chunk) {
                self.pool.put(buffer);
                return Err(error);
            }
            if !self.send(buffer)? {
                return Ok(false);
            }
            self.sent += part.len() as u64;
            if self.index.is_multiple_of(PROGRESS_PARTS) {
                self.report();
            }
        }
        set.clear();
        self.take_logged(set)?;
        Ok(true)
    }

    /// Adds a block to the part that is being filled; `data` may be short, and what is missing is zeros. `false`: the link is gone.
    pub(crate) fn put(&mut self, name: Gfn, data: &[u8]) -> Result<bool, PrimaryError> {
        // A part names its blocks in ascending order; what was written meanwhile follows what was left of the pass before.
        let turns_back = self.filling.as_ref().and_then(|buffer| buffer.gfns.last()).is_some_and(|last| *last >= name);
        if turns_back && !self.flush()? {
            return Ok(false);
        }
        if self.filling.is_none() {
            let Some(mut buffer) = self.buffer() else { return Ok(false) };
            buffer.gfns.clear();
            self.filling = Some(buffer);
        }
        if let Some(buffer) = &mut self.filling {
            buffer.push(name, data);
            self.blocks += 1;
            if buffer.gfns.len() < self.copying.pages_per_part {
                return Ok(true);
            }
        }
        self.flush()
    }

    /// Blocks of disks sent so far, or waiting to be.
    pub(crate) fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Sends the blocks that wait. `false`: the link is gone.
    pub(crate) fn flush(&mut self) -> Result<bool, PrimaryError> {
        match self.filling.take() {
            Some(buffer) => self.send(buffer),
            None => Ok(true),
        }
    }

    /// A free buffer; none when the link is gone.
    fn buffer(&self) -> Option<CaptureBuffer> {
        if self.copying.gone.load(Ordering::Acquire) { None } else { self.pool.next(&self.copying.gone) }
    }

    fn send(&mut self, buffer: CaptureBuffer) -> Result<bool, PrimaryError> {
        let job = Job::Sync { buffer, index: self.index, generation: self.copying.generation };
        if let Err(rest) = self.copying.jobs.send(job) {
            self.pool.put(rest.0.into_buffer());
            return Ok(false);
        }
        types::fault::reach(types::fault::Point::MidSync);
        self.index += 1;
        (self.between)();
        if let Some(logged) = self.logged.as_mut().filter(|_| self.index.is_multiple_of(COLLECT_PARTS)) {
            // A vCPU whose dirty ring is full stands still until it is emptied. What is found goes into the next round, whether or not it is sent in this.
            self.shared.machine.collect_dirty_running(logged)?;
        }
        Ok(true)
    }

    /// Adds everything written since the round began to `set`.
    fn take_logged(&mut self, set: &mut DirtySet) -> Result<(), PrimaryError> {
        if let Some(logged) = &mut self.logged {
            set.merge(logged);
            logged.clear();
        }
        Ok(self.shared.machine.collect_dirty_running(set)?)
    }

    fn report(&self) {
        let pages_total = self.shared.machine.slots().pages();
        (self.shared.report)(NodeEventKind::Syncing { pages_sent: self.sent, pages_total });
    }
}

impl Drop for Parts<'_> {
    fn drop(&mut self) {
        if let Some(buffer) = self.filling.take() {
            self.pool.put(buffer);
        }
    }
}

/// The log is emptied every so many parts: 16 MiB, a few milliseconds.
const COLLECT_PARTS: u32 = 16;
/// A progress line every so many parts.
const PROGRESS_PARTS: u32 = 64;

/// The capture buffers that nobody uses now.
pub(crate) struct Pool {
    pub(crate) free: Receiver<CaptureBuffer>,
    pub(crate) give: Sender<CaptureBuffer>,
}

impl Pool {
    /// The next free buffer; `None` when the link goes away first.
    pub(crate) fn next(&self, gone: &AtomicBool) -> Option<CaptureBuffer> {
        loop {
            if let Ok(buffer) = self.free.recv_timeout(transport::pump::LINK_POLL) {
                return Some(buffer);
            }
            if gone.load(Ordering::Acquire) {
                // The sender gives its buffers back when it ends: one of them will do for the next link.
                return None;
            }
        }
    }

    /// Takes a buffer back.
    pub(crate) fn put(&self, buffer: CaptureBuffer) {
        // This end holds the receiver: it cannot be gone.
        let _ = self.give.send(buffer);
    }
}
