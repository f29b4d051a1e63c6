//! The copy of a primary's disk to a standby that joins, while the guest runs: which regions, when, and how exactly.
//!
//! Exactness. Every write is either submitted before a region's read, and then the engine carries it out before that read; or after, and then the region is in the next pass; or after the
//! recording began, and then it is recorded, in order, for epoch 1. What the last pass reads may contain a beginning of the recorded writes; replaying all of them, in order, onto that gives
//! what the disk holds at the end of the epoch, byte for byte.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};

use types::Generation;

use super::{Inner, Phase};
use crate::copy::CopyPiece;
use crate::disk::MEDIUM_BOUND;
use crate::engine::{Answer, Op, Way};
use crate::error::DiskError;
use crate::record::Record;
use crate::regions::RegionSet;

/// Pieces that are read ahead of the one handed out: enough to keep a disk busy while the link sends, 4 MiB of memory.
const AHEAD: usize = 4;

/// A copy under way. Dropping it does not end it: [`crate::Disk::unlink`] does.
pub(crate) struct MirrorCopy {
    disk: Arc<Inner>,
    session: u64,
    pass: VecDeque<Range<u64>>,
    ahead: VecDeque<(Range<u64>, Receiver<Answer>)>,
    /// The standby's copy reads as zeros where nothing was sent: only in the first pass of a full copy.
    over_zeros: bool,
}

impl std::fmt::Debug for MirrorCopy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MirrorCopy").field("disk", &self.disk.index).field("left", &self.left()).finish_non_exhaustive()
    }
}

impl MirrorCopy {
    /// Writes are watched already.
    pub(crate) fn new(disk: Arc<Inner>, session: u64, first: RegionSet, full: bool) -> Result<MirrorCopy, DiskError> {
        let mut copy = MirrorCopy { disk, session, pass: VecDeque::new(), ahead: VecDeque::new(), over_zeros: full };
        if full {
            // A write that is under way might fill what looks like a hole now; it was submitted before writes were watched.
            let way = Way { direct: false, mark: false };
            let settled = copy.disk.engine.call(Op::Barrier, way, MEDIUM_BOUND);
            let ranges = settled.and_then(|_| copy.disk.image.data_ranges()).map_err(DiskError::io("reading", copy.disk.image.path()))?;
            let mut data = RegionSet::new(copy.disk.info_bytes());
            for range in ranges {
                RegionSet::touched(range.start, range.end - range.start).for_each(|region| {
                    data.insert(region);
                });
            }
            copy.set_pass(&data);
        } else {
            copy.set_pass(&first);
        }
        Ok(copy)
    }

    /// The next piece of this pass; `None` when the pass is over. Waits for the disk.
    ///
    /// # Errors
    /// When the disk cannot be read, or the link has ended.
    pub(crate) fn next_piece(&mut self) -> Result<Option<CopyPiece>, DiskError> {
        while self.ahead.len() < AHEAD {
            let Some(range) = self.pass.pop_front() else { break };
            let (answer, wait) = sync_channel(1);
            let op = Op::Read { offset: range.start, len: (range.end - range.start) as u32 };
            let reply = Box::new(move |result| drop(answer.send(result)));
            drop(self.disk.engine.submit(op, Way { direct: true, mark: false }, reply));
            self.ahead.push_back((range, wait));
        }
        let Some((range, wait)) = self.ahead.pop_front() else { return Ok(None) };
        let fail = |errno| DiskError::io("reading", self.disk.image.path())(std::io::Error::from_raw_os_error(errno));
        let data = wait.recv_timeout(MEDIUM_BOUND).map_err(|_| fail(libc::ETIMEDOUT))?.map_err(fail)?.unwrap_or_default();
        Ok(Some(CopyPiece { offset: range.start, data, over_zeros: self.over_zeros }))
    }

    /// Bytes left of this pass.
    #[must_use]
    pub(crate) fn left(&self) -> u64 {
        self.pass.iter().chain(self.ahead.iter().map(|(range, _)| range)).map(|range| range.end - range.start).sum()
    }

    /// Makes what was written since the regions were last handed out the next pass; how many bytes that are. What is left of this pass stays.
    ///
    /// # Errors
    /// [`DiskError::Phase`] when the link has ended or the recording has begun.
    pub(crate) fn next_pass(&mut self) -> Result<u64, DiskError> {
        let disk = Arc::clone(&self.disk);
        let dirty = {
            let mut state = disk.lock();
            let session = state.session;
            match &mut state.phase {
                Phase::Copying(dirty) if session == self.session => std::mem::replace(dirty, RegionSet::new(disk.info_bytes())),
                _ => return Err(disk.wrong_phase("copying it", &state)),
            }
        };
        self.add_pass(&dirty);
        Ok(dirty.bytes())
    }

    /// From now on every write is recorded, for epoch 1; what was written before and is not copied is the last pass, to be taken with [`MirrorCopy::next_piece`] before epoch 1 is sealed. Returns its bytes.
    ///
    /// # Errors
    /// As [`MirrorCopy::next_pass`].
    pub(crate) fn record(&mut self, generation: Generation) -> Result<u64, DiskError> {
        let disk = Arc::clone(&self.disk);
        let dirty = {
            let mut state = disk.lock();
            if state.session != self.session || !matches!(state.phase, Phase::Copying(_)) {
                return Err(disk.wrong_phase("copying it", &state));
            }
            let recording = Phase::Recording(Record::new(disk.limits, generation));
            match std::mem::replace(&mut state.phase, recording) {
                Phase::Copying(dirty) => dirty,
                _ => RegionSet::new(disk.info_bytes()),
            }
        };
        self.add_pass(&dirty);
        Ok(dirty.bytes())
    }

    fn set_pass(&mut self, regions: &RegionSet) {
        self.pass = regions.iter().map(|region| regions.extent(region)).collect();
    }

    fn add_pass(&mut self, regions: &RegionSet) {
        // What is left of the pass before is over zeros or not; sending zeros is always right.
        self.over_zeros = false;
        self.pass.extend(regions.iter().map(|region| regions.extent(region)));
    }
}
