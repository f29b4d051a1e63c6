//! What a disk does for a standby: takes the copy, keeps each epoch's writes until their commit, applies them in order in the background, and becomes a primary's when it is activated.
//!
//! Guards S2: nothing of an epoch that is not committed reaches the image, and a guest starts from it only when all of what is committed has.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use types::block::DiskWrite;
use types::{Epoch, Generation, PAGE_SIZE};

use super::{Inner, Mirror, Phase, State};
use crate::changes::Header;
use crate::disk::{MEDIUM_BOUND, copy_of};
use crate::engine::{Answer, Op, Way};
use crate::error::DiskError;
use crate::hang::Patience;
use crate::hooks::DiskEvent;
use crate::identity::{CopyState, DataId, Identity};
use crate::image::is_zero;
use crate::plan::Plan;
use crate::request::change_as_op;

/// Writes handed to the engine and not carried out, at most: more wait with the caller, and through it the link. What an activation has to wait for at worst.
pub const BACKLOG_REQUESTS: usize = 512;
/// The same in bytes of content.
pub const BACKLOG_BYTES: usize = 32 << 20;
/// Piece of the copy's wiping: `Op::Zero` may have to write it.
const WIPE_BYTES: u64 = 64 << 20;
/// Pieces of it under way: one for the medium, one that is there when it is done.
const WIPE_AHEAD: usize = 2;

/// How often a wait for the medium looks at the time.
const LOOK: Duration = Duration::from_millis(10);

/// Where a standby's copy is.
#[derive(Debug)]
pub(crate) struct Following {
    /// The primary's data generation and disk, taken over when the copy is consistent.
    pub(crate) id: DataId,
    pub(crate) current: DataId,
    /// The generation in which the primary runs the guest, whose epochs these are.
    pub(crate) generation: Generation,
    /// Complete epochs that are not committed.
    staged: VecDeque<(Epoch, Vec<DiskWrite>)>,
    staged_last: Epoch,
    committed: Epoch,
    /// Committed epochs that are not carried out wholly, with what is missing.
    under_way: VecDeque<(Epoch, usize)>,
    /// Newest epoch that is in the image (perhaps only in the host's cache).
    pub(crate) applied: Epoch,
    /// Newest epoch that is durable.
    pub(crate) settled: Epoch,
    /// Newest epoch that changed something.
    pub(crate) touched: Epoch,
    backlog_requests: usize,
    backlog_bytes: usize,
    /// Zeros of the copy that were not handed to the engine yet: the next block may be more of them.
    zeros: Range<u64>,
    /// What of a full copy's disk is still to be made zeros, before anything is copied.
    wipe: Range<u64>,
    /// Pieces of it that are under way.
    wiping: usize,
    /// An epoch is being handed to the engine: it is not carried out wholly even if nothing is missing at the moment.
    submitting: bool,
}

impl Following {
    fn new(id: DataId, current: DataId, generation: Generation) -> Following {
        Following {
            id,
            current,
            generation,
            staged: VecDeque::new(),
            staged_last: Epoch::NONE,
            committed: Epoch::NONE,
            under_way: VecDeque::new(),
            applied: Epoch::NONE,
            settled: Epoch::NONE,
            touched: Epoch::NONE,
            backlog_requests: 0,
            backlog_bytes: 0,
            zeros: 0..0,
            wipe: 0..0,
            wiping: 0,
            submitting: false,
        }
    }

    /// Takes on a committed epoch. Those that change nothing may come without end while a write before them hangs: each becomes one with the last epoch that has nothing missing.
    fn take_on(&mut self, epoch: Epoch, changes: bool) {
        self.committed = epoch;
        match self.under_way.back_mut() {
            Some((last, 0)) if !changes => *last = epoch,
            _ => self.under_way.push_back((epoch, 0)),
        }
    }

    fn advance(&mut self) {
        while let Some((epoch, 0)) = self.under_way.front().copied() {
            if self.submitting && self.under_way.len() == 1 {
                return;
            }
            self.applied = epoch;
            self.under_way.pop_front();
        }
    }

    fn idle(&self) -> bool {
        self.backlog_requests == 0 && self.under_way.is_empty() && self.wiped()
    }

    fn wiped(&self) -> bool {
        self.wipe.is_empty() && self.wiping == 0
    }
}

impl Mirror {
    /// This copy joins a primary with this plan: it says durably that it is incomplete, before its first byte changes. Before the primary is answered. For a full copy it is made to
    /// read as zeros, in the background: a medium that cannot do that quickly takes as long as it takes to write ([`Disk::wait_wiped`]).
    /// `generation` is that in which the primary runs the guest; [`DiskEvent::Durable`] names it.
    ///
    /// # Errors
    /// [`DiskError::Refused`] for a plan that is a refusal, [`DiskError::Phase`] at a primary, and when the medium fails.
    pub(crate) fn join(&self, plan: &Plan, primary: &Identity, generation: Generation) -> Result<(), DiskError> {
        let inner = &self.inner;
        if let Plan::Refuse(refusal) = plan {
            return Err(DiskError::Refused { disk: inner.index, refusal: refusal.clone() });
        }
        {
            let mut state = inner.lock();
            state.last = false;
            if let Phase::Standby(following) = &mut state.phase {
                // An earlier full copy did not come that far.
                following.wipe = 0..0;
            }
        }
        // What an earlier primary had committed is finished first.
        let state = inner.wait_idle(MEDIUM_BOUND)?;
        if !matches!(state.phase, Phase::Idle | Phase::Standby(_)) {
            return Err(inner.wrong_phase("following a primary", &state));
        }
        let full = matches!(plan, Plan::Full(_));
        let (id, current) = (primary.id, primary.current);
        let header = move |header: &mut Header| {
            header.state = CopyState::Copying;
            header.joining = DataId::NONE;
            if full {
                // Nothing is known about a content of which some is gone: broken off, it has to be copied as a whole again.
                header.id = id;
                header.current = DataId::NONE;
                header.base = DataId::NONE;
            }
        };
        let wipe = 0..if full { inner.info_bytes() } else { 0 };
        inner.turn_apart(state, header, move |state, written| {
            if written {
                state.overwrite = false;
                let following = Following::new(id, current, generation);
                state.phase = Phase::Standby(Following { wipe, ..following });
            }
        })?;
        for _ in 0..WIPE_AHEAD {
            inner.wipe_on();
        }
        Ok(())
    }

    /// Waits until a full copy's disk reads as zeros; `false` when that takes longer than `bound`. True at once for any other copy. Before the first [`Disk::sync_block`], which else waits for it.
    ///
    /// # Errors
    /// [`DiskError::Failed`].
    pub(crate) fn wait_wiped(&self, bound: Duration) -> Result<bool, DiskError> {
        let until = Instant::now() + bound;
        let mut state = self.inner.lock();
        loop {
            match &state.phase {
                Phase::Standby(following) if !following.wiped() => {}
                Phase::Failed(_) => return Err(self.inner.wrong_phase("taking the copy", &state)),
                _ => return Ok(true),
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            state = self.inner.changed.wait_timeout(state, left).unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
    }

    /// Takes a block of the copy: up to 4096 bytes at `offset`, `None` for zeros. What lies beyond the end of the disk is dropped. Waits for room; an error of the medium is found later.
    ///
    /// # Errors
    /// [`DiskError::OutOfRange`] for a block that is not on the disk, [`DiskError::Phase`], [`DiskError::Failed`].
    pub(crate) fn sync_block(&self, offset: u64, data: Option<&[u8]>) -> Result<(), DiskError> {
        let inner = &self.inner;
        let bytes = inner.info_bytes();
        let len = data.map_or(PAGE_SIZE, <[u8]>::len) as u64;
        if offset >= bytes || !offset.is_multiple_of(512) {
            return Err(DiskError::OutOfRange { disk: inner.index, offset, len, bytes });
        }
        // Whether the medium hangs is the watch's question.
        while !self.wait_wiped(MEDIUM_BOUND)? {}
        let len = len.min(bytes - offset);
        let zeros = match data.filter(|data| !is_zero(data)) {
            Some(_) => self.take_zeros(None)?,
            // A hole a block costs a call a block; neighbours become one.
            None => self.take_zeros(Some(offset..offset + len))?,
        };
        if !zeros.is_empty() {
            inner.apply(Op::Zero { offset: zeros.start, len: zeros.end - zeros.start, unmap: true }, None)?;
        }
        match data.filter(|data| !is_zero(data)) {
            Some(data) => inner.apply(Op::Write { offset, data: Arc::from(&data[..len as usize]) }, None),
            None => Ok(()),
        }
    }

    /// Adds `more` to the zeros that wait, and takes out what cannot wait any longer: what `more` does not follow on, or all when there is no more.
    fn take_zeros(&self, more: Option<Range<u64>>) -> Result<Range<u64>, DiskError> {
        let mut state = self.inner.lock();
        let Phase::Standby(following) = &mut state.phase else { return Err(self.inner.wrong_phase("taking the copy", &state)) };
        match more {
            Some(more) if more.start == following.zeros.end && more.end - following.zeros.start <= WIPE_BYTES => {
                following.zeros.end = more.end;
                Ok(0..0)
            }
            more => Ok(std::mem::replace(&mut following.zeros, more.unwrap_or(0..0))),
        }
    }

    /// Keeps the writes of a complete epoch until it is committed. Those of other disks are not taken.
    ///
    /// # Errors
    /// [`DiskError::EpochOrder`], [`DiskError::OutOfRange`], [`DiskError::Phase`], [`DiskError::Failed`]; nothing is kept then.
    pub(crate) fn stage(&self, epoch: Epoch, writes: Vec<DiskWrite>) -> Result<(), DiskError> {
        let inner = &self.inner;
        let bytes = inner.info_bytes();
        for write in &writes {
            let fits = write.offset.checked_add(write.len()).is_some_and(|end| end <= bytes);
            if write.disk != inner.index || !fits {
                return Err(DiskError::OutOfRange { disk: write.disk, offset: write.offset, len: write.len(), bytes });
            }
        }
        // The copy is over.
        let zeros = self.take_zeros(None)?;
        if !zeros.is_empty() {
            inner.apply(Op::Zero { offset: zeros.start, len: zeros.end - zeros.start, unmap: true }, None)?;
        }
        let mut state = inner.lock();
        let Phase::Standby(following) = &mut state.phase else { return Err(inner.wrong_phase("keeping an epoch", &state)) };
        let expected = following.staged_last.next();
        if epoch != expected {
            return Err(DiskError::EpochOrder { disk: inner.index, epoch, expected });
        }
        following.staged.push_back((epoch, writes));
        following.staged_last = epoch;
        Ok(())
    }

    /// Every epoch up to this one is committed: its writes go to the image, in order. Waits while too much is under way, not for the writes.
    ///
    /// # Errors
    /// [`DiskError::EpochOrder`] for one that is not kept, [`DiskError::Phase`], [`DiskError::Failed`].
    pub(crate) fn commit(&self, epoch: Epoch) -> Result<(), DiskError> {
        let inner = &self.inner;
        loop {
            let (now, writes) = {
                let mut state = inner.lock();
                let Phase::Standby(following) = &mut state.phase else { return Err(inner.wrong_phase("committing an epoch", &state)) };
                if epoch > following.staged_last {
                    return Err(DiskError::EpochOrder { disk: inner.index, epoch, expected: following.staged_last });
                }
                let Some((now, writes)) = following.staged.pop_front_if(|(staged, _)| *staged <= epoch) else { return Ok(()) };
                following.take_on(now, !writes.is_empty());
                following.submitting = true;
                if !writes.is_empty() {
                    following.touched = now;
                }
                (now, writes)
            };
            let applied = writes.into_iter().try_for_each(|write| inner.apply(change_as_op(write), Some(now)));
            {
                let mut state = inner.lock();
                if let Phase::Standby(following) = &mut state.phase {
                    following.submitting = false;
                    following.advance();
                }
            }
            inner.changed.notify_all();
            applied?;
        }
    }

    /// Waits until everything committed and copied so far is in the image (perhaps only in the host's cache), and names the newest such epoch.
    ///
    /// # Errors
    /// [`DiskError::Phase`] at a primary, [`DiskError::Slow`] when it takes longer than `bound`, [`DiskError::Failed`].
    pub(crate) fn wait_applied(&self, bound: Duration) -> Result<Epoch, DiskError> {
        let state = self.inner.wait_idle(bound)?;
        match &state.phase {
            Phase::Standby(following) => Ok(following.applied),
            _ => Err(self.inner.wrong_phase("waiting for its epochs", &state)),
        }
    }

    /// The link is lost, or no more is to be committed: what is kept and not committed is thrown away.
    pub(crate) fn discard_uncommitted(&self) {
        if let Phase::Standby(following) = &mut self.inner.lock().phase {
            following.staged.clear();
            following.staged_last = following.committed;
        }
    }

    /// [`crate::Disk::taking_over`].
    pub(crate) fn taking_over(&self) {
        self.inner.lock().last = true;
    }

    /// After the grant, before the guest runs: finishes what is committed, throws away what is not, and begins a data generation, durably. From here on the disk is a primary's that runs alone. The copy
    /// is made durable in the background, at once.
    ///
    /// # Errors
    /// [`DiskError::Unfit`] when no epoch was committed, [`DiskError::Slow`] when it takes longer than `bound`, [`DiskError::Failed`]. The guest must not run then.
    pub(crate) fn activate(&self, bound: Duration) -> Result<(), DiskError> {
        let inner = &self.inner;
        self.taking_over();
        self.discard_uncommitted();
        let state = inner.wait_idle(bound)?;
        let Phase::Standby(following) = &state.phase else { return Err(inner.wrong_phase("activating it", &state)) };
        if following.applied == Epoch::NONE {
            return Err(DiskError::Unfit { path: inner.image.path().to_owned(), why: "no epoch was committed to it" });
        }
        let (id, old) = (following.id, following.current);
        let header = move |header: &mut Header| {
            header.id = id;
            header.base = old;
            header.current = DataId::random();
            header.joining = DataId::NONE;
            // Consistent when it is durable; until then a loss of power may have lost what the guest believes to be flushed.
            header.state = CopyState::Following;
        };
        inner.turn_apart(state, header, |state, written| {
            if written {
                state.phase = Phase::Alone;
                state.unsettled = true;
            }
        })
    }
}

impl Inner {
    /// Hands the next piece to be wiped to the engine. Each piece's answer brings the next: nobody waits.
    fn wipe_on(self: &Arc<Self>) {
        let mut state = self.lock();
        let session = state.session;
        let Phase::Standby(following) = &mut state.phase else { return };
        if following.wipe.is_empty() {
            return;
        }
        let offset = following.wipe.start;
        let len = (following.wipe.end - offset).min(WIPE_BYTES);
        following.wipe.start += len;
        following.wiping += 1;
        let inner = Arc::downgrade(self);
        let reply = Box::new(move |answer: Answer| {
            let Some(inner) = inner.upgrade() else { return };
            let mut state = inner.lock();
            let same = state.session == session;
            if let (Phase::Standby(following), true) = (&mut state.phase, same) {
                following.wiping -= 1;
            }
            drop(state);
            inner.changed.notify_all();
            match answer {
                Ok(_) if same => inner.wipe_on(),
                Ok(_) => {}
                Err(errno) => inner.fail(io::Error::from_raw_os_error(errno), "wiping it"),
            }
        });
        let ended = self.engine.submit(Op::Zero { offset, len, unmap: true }, Way { direct: false, mark: false }, reply).is_err();
        drop(state);
        if ended {
            self.fail(io::Error::from_raw_os_error(libc::EIO), "the engine");
        }
    }

    /// Hands one change to the engine, of an epoch or of the copy, when there is room.
    fn apply(self: &Arc<Self>, op: Op, epoch: Option<Epoch>) -> Result<(), DiskError> {
        let payload = match &op {
            Op::Write { data, .. } => data.len(),
            _ => 0,
        };
        let mut state = self.lock();
        let session = state.session;
        // For as long as it takes: a medium that hangs ends the phase (`super::watch`).
        loop {
            let Phase::Standby(following) = &mut state.phase else { return Err(self.wrong_phase("applying writes", &state)) };
            let room = following.backlog_requests < BACKLOG_REQUESTS
                && (following.backlog_bytes == 0 || following.backlog_bytes + payload <= BACKLOG_BYTES);
            if room {
                following.backlog_requests += 1;
                following.backlog_bytes += payload;
                if let (Some(epoch), Some(last)) = (epoch, following.under_way.back_mut()) {
                    debug_assert_eq!(epoch, last.0);
                    last.1 += 1;
                }
                break;
            }
            state = self.changed.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        let inner = Arc::downgrade(self);
        let reply = Box::new(move |answer| {
            if let Some(inner) = inner.upgrade() {
                inner.applied(session, payload, epoch, answer);
            }
        });
        // The page cache takes bursts; settling makes them durable. No marks: the primary's log has the regions.
        let ended = self.engine.submit(op, Way { direct: false, mark: false }, reply).is_err();
        drop(state);
        if ended {
            self.fail(io::Error::from_raw_os_error(libc::EIO), "the engine");
        }
        Ok(())
    }

    fn applied(&self, session: u64, payload: usize, epoch: Option<Epoch>, answer: Answer) {
        {
            let mut state = self.lock();
            let same = state.session == session;
            if let (Phase::Standby(following), true) = (&mut state.phase, same) {
                following.backlog_requests -= 1;
                following.backlog_bytes -= payload;
                if answer.is_ok()
                    && let Some(entry) = epoch.and_then(|epoch| following.under_way.iter_mut().find(|(under_way, _)| *under_way == epoch))
                {
                    entry.1 -= 1;
                }
                following.advance();
            }
        }
        self.changed.notify_all();
        if let Err(errno) = answer {
            self.fail(io::Error::from_raw_os_error(errno), "writing to it");
        }
    }

    /// The standby's copy cannot follow any more.
    pub(crate) fn fail(&self, error: io::Error, what: &'static str) {
        let error = Arc::new(error);
        {
            let mut state = self.lock();
            if !state.is_standbys() {
                return;
            }
            state.phase = Phase::Failed(Arc::clone(&error));
            // What the keeper has begun is void: it must not write down that this copy follows.
            state.session += 1;
        }
        self.changed.notify_all();
        tracing::error!(disk = %self.index, %error, what, "this standby's disk failed; it will not be activated");
        self.front.tell(DiskEvent::Failed { disk: self.index, error });
    }

    /// The state when nothing that was committed or copied is under way any more. `bound`: of a medium that does something, and not enough; this process's own sleep does not count.
    fn wait_idle(&self, bound: Duration) -> Result<std::sync::MutexGuard<'_, State>, DiskError> {
        let mut patience = Patience::new(bound);
        let mut state = self.lock();
        loop {
            match &state.phase {
                Phase::Standby(following) if !following.idle() => {}
                Phase::Failed(error) => return Err(DiskError::Failed { disk: self.index, what: "its medium", source: copy_of(error) }),
                _ => return Ok(state),
            }
            if patience.hangs(Instant::now(), Some(())) && !self.waits_for_space(&state) {
                return Err(DiskError::Slow { disk: self.index, bound });
            }
            state = self.changed.wait_timeout(state, LOOK).unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_that_change_nothing_are_not_remembered_one_by_one_behind_a_write_that_hangs() {
        let mut following = Following::new(DataId::NONE, DataId::NONE, Generation(1));
        following.take_on(Epoch(1), true);
        following.under_way[0].1 = 1;

        (2..1000).for_each(|epoch| following.take_on(Epoch(epoch), false));
        following.take_on(Epoch(1000), true);
        following.advance();

        assert_eq!(following.under_way, [(Epoch(1), 1), (Epoch(999), 0), (Epoch(1000), 0)]);
        assert_eq!((following.committed, following.applied), (Epoch(1000), Epoch::NONE));
        following.under_way[0].1 = 0;
        following.advance();
        assert_eq!(following.applied, Epoch(1000), "whatever was merged is applied with the rest");
    }
}
