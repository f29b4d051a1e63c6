//! The first copy: all of memory to a new standby, while the guest runs.
//!
//! Lives here: the rounds. Not here: who asked for it (`run.rs`) and the epochs that follow. Guards S5: a page that is written after it was read is in the next
//! round or in epoch 1, because the log is collected (and armed again) before the pages of a round are read.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam::channel::{Receiver, Sender};
use dirty_tracking::DirtySet;
use types::event::NodeEventKind;
use types::{Generation, Gfn};

use crate::capture::CaptureBuffer;
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
}

/// Copies memory round by round; `true` when only a small rest is left, which is given back to the tracker for epoch 1. `false`: the link is gone.
pub(crate) fn copy_memory(shared: &Shared, pool: &Pool, copying: &Copying) -> Result<bool, PrimaryError> {
    let machine = &shared.machine;
    let total = machine.slots().pages();
    let mut set = DirtySet::new(machine.slots());
    let mut next = DirtySet::new(machine.slots());
    let mut chunk = DirtySet::new(machine.slots());
    machine.start_tracking()?;
    // What was logged before is in the whole copy.
    machine.collect_dirty_running(&mut set)?;
    set.clear();
    set.insert_all();
    let mut index = 0;
    let mut sent = 0;
    for round in 1.. {
        let pages: Vec<Gfn> = set.iter().collect();
        for part in pages.chunks(copying.pages_per_part.max(1)) {
            if copying.gone.load(Ordering::Acquire) {
                return Ok(false);
            }
            let Some(mut buffer) = pool.next(&copying.gone) else { return Ok(false) };
            chunk.clear();
            part.iter().for_each(|gfn| {
                chunk.insert(*gfn);
            });
            if let Err(error) = buffer.copy(machine.memory(), &chunk) {
                pool.put(buffer);
                return Err(error);
            }
            let job = Job::Sync { buffer, index, generation: copying.generation };
            if let Err(rest) = copying.jobs.send(job) {
                pool.put(rest.0.into_buffer());
                return Ok(false);
            }
            types::fault::reach(types::fault::Point::MidSync);
            index += 1;
            sent += part.len() as u64;
            if index % COLLECT_PARTS == 0 {
                // A vCPU whose dirty ring is full stands still until it is emptied. What is found goes into the next round, whether or not it is sent in this.
                machine.collect_dirty_running(&mut next)?;
            }
            if index % PROGRESS_PARTS == 0 {
                (shared.report)(NodeEventKind::Syncing { pages_sent: sent, pages_total: total });
            }
        }
        set.clear();
        set.merge(&next);
        next.clear();
        machine.collect_dirty_running(&mut set)?;
        let left = set.count();
        tracing::info!(round, sent, left, "copied memory to the standby");
        let stuck = round > 1 && left * PROGRESS.1 > pages.len() as u64 * PROGRESS.0;
        if left <= SMALL_REST || round >= MAX_ROUNDS || stuck {
            break;
        }
    }
    machine.give_back(&set);
    (shared.report)(NodeEventKind::Syncing { pages_sent: sent, pages_total: total });
    Ok(!copying.gone.load(Ordering::Acquire))
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
