//! What a shared disk does for the node that runs the guest, besides its requests: starting, epochs, the switch to holding, and being struck out or fenced.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use types::block::DiskWrite;
use types::fault::{Point, reach};
use types::{Commit, Epoch, Generation};

use crate::disk::MEDIUM_BOUND;
use crate::engine::Op;
use crate::error::DiskError;
use crate::plan::Plan;

use super::disk::{Inner, Phase, SharedDisk, Told, WAY};

/// How often a device that another process of this host has is tried again.
const CLAIM_PERIOD: Duration = Duration::from_millis(20);

impl SharedDisk {
    /// [`crate::Disk::claim`].
    pub(crate) fn claim(&self, bound: Duration) -> Result<(), DiskError> {
        let until = Instant::now() + bound;
        loop {
            match self.inner.image.claim() {
                Err(DiskError::InUse(_)) if Instant::now() < until => std::thread::sleep(CLAIM_PERIOD),
                done => return done,
            }
        }
    }

    /// [`crate::Disk::check_start`].
    pub(crate) fn check_start(&self) -> Result<(), DiskError> {
        let state = self.inner.lock();
        if matches!(state.phase, Phase::Idle) { Ok(()) } else { Err(self.inner.wrong_phase("starting a guest", &state)) }
    }

    /// [`crate::Disk::start_primary`].
    pub(crate) fn start_primary(&self) -> Result<(), DiskError> {
        self.check_start()?;
        self.claim(Duration::ZERO)?;
        self.inner.lock().phase = Phase::Alone;
        Ok(())
    }

    /// [`crate::Disk::begin_copy`].
    pub(crate) fn begin_copy(&self, plan: &Plan) -> Result<SharedCopy, DiskError> {
        let inner = &self.inner;
        if let Plan::Refuse(refusal) = plan {
            return Err(DiskError::Refused { disk: inner.index, refusal: refusal.clone() });
        }
        let mut state = inner.lock();
        if !matches!(state.phase, Phase::Alone) {
            return Err(inner.wrong_phase("sharing it with a standby", &state));
        }
        inner.is_whole(&state)?;
        state.phase = Phase::Copying;
        state.session += 1;
        Ok(SharedCopy { disk: Arc::clone(inner), session: state.session, settled: false })
    }

    /// [`crate::Disk::seal`].
    pub(crate) fn seal(&self, epoch: Epoch) -> Result<Arc<Vec<DiskWrite>>, DiskError> {
        let inner = &self.inner;
        let mut state = inner.lock();
        match state.hold.seal(epoch) {
            Ok(writes) => Ok(writes),
            Err(Some(expected)) => Err(DiskError::EpochOrder { disk: inner.index, epoch, expected }),
            Err(None) => Err(inner.wrong_phase("sealing an epoch", &state)),
        }
    }

    /// [`crate::Disk::unseal`].
    pub(crate) fn unseal(&self, epoch: Epoch) {
        self.inner.lock().hold.unseal(epoch);
    }

    /// [`crate::Disk::release`].
    pub(crate) fn release(&self, commit: &Commit) {
        let inner = &self.inner;
        let mut state = inner.lock();
        if !matches!(state.phase, Phase::Recording | Phase::Protected) {
            return;
        }
        let more = state.hold.release(commit);
        if state.hold.released() > Epoch::NONE && matches!(state.phase, Phase::Recording) {
            state.phase = Phase::Protected;
            tracing::info!(disk = %inner.index, "protected");
        }
        if more {
            // With the lock held: no other thread hands them out meanwhile.
            reach(Point::BeforeIssue);
        }
        inner.hand_out(&mut state);
    }

    /// [`crate::Disk::unlink`], [`crate::Disk::struck_out`]: nobody else can carry out what is held.
    pub(crate) fn alone(&self) {
        let inner = &self.inner;
        let mut told = Told::default();
        {
            let mut state = inner.lock();
            if !state.is_primary() {
                return;
            }
            state.phase = Phase::Alone;
            state.session += 1;
            state.given_up = false;
            state.unsynced = None;
            let outcome = state.hold.go_through();
            inner.follow(&mut state, outcome, &mut told);
            for (tag, errno) in std::mem::take(&mut state.parked) {
                told.failed(tag, errno);
            }
            told.room |= std::mem::take(&mut state.starved);
            inner.hand_out(&mut state);
        }
        inner.changed.notify_all();
        inner.tell(told);
    }

    /// [`crate::Disk::finish`].
    pub(crate) fn finish(&self, bound: Duration) -> Result<(), DiskError> {
        let inner = &self.inner;
        let mut state = inner.lock();
        if !matches!(state.phase, Phase::Alone | Phase::Ending) {
            return Err(inner.wrong_phase("carrying out the guest's last writes", &state));
        }
        state.phase = Phase::Ending;
        let until = Instant::now() + bound;
        while state.asked > 0 || !state.hold.is_settled() {
            if !matches!(state.phase, Phase::Ending) {
                return Err(inner.wrong_phase("carrying out the guest's last writes", &state));
            }
            if let Some(errno) = state.hold.failed() {
                let source = std::io::Error::from_raw_os_error(errno);
                return Err(DiskError::Failed { disk: inner.index, what: "writing to it", source });
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(DiskError::Slow { disk: inner.index, bound });
            }
            state = inner.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    /// [`crate::Disk::shut`].
    pub(crate) fn shut(&self) {
        let mut state = self.inner.lock();
        state.phase = Phase::Shut;
        state.hold.drop_all();
        drop(state);
        // What waits for space in the engine is not to be written later.
        self.inner.engine.give_up_full();
        self.inner.changed.notify_all();
    }
}

/// The switch to holding, as a joining standby's copy: there is nothing to be copied, and something to be waited for.
pub(crate) struct SharedCopy {
    disk: Arc<Inner>,
    session: u64,
    settled: bool,
}

impl std::fmt::Debug for SharedCopy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SharedCopy").field("disk", &self.disk.index).field("settled", &self.settled).finish_non_exhaustive()
    }
}

impl SharedCopy {
    /// Whether the link is still that of this copy, in this phase.
    pub(crate) fn is_current(&self) -> Result<(), DiskError> {
        let state = self.disk.lock();
        if state.session == self.session { Ok(()) } else { Err(self.disk.wrong_phase("sharing it with a standby", &state)) }
    }

    /// From now on writes are held for their epoch.
    pub(crate) fn record(&mut self, generation: Generation) -> Result<(), DiskError> {
        self.is_current()?;
        let mut state = self.disk.lock();
        if !matches!(state.phase, Phase::Copying) {
            return Err(self.disk.wrong_phase("sharing it with a standby", &state));
        }
        self.disk.is_whole(&state)?;
        state.hold.hold(generation);
        state.phase = Phase::Recording;
        Ok(())
    }

    /// Once writes are held: waits until those that are not held, for which no commit will come, are on the device.
    pub(crate) fn settle(&mut self) -> Result<(), DiskError> {
        self.is_current()?;
        let disk = &self.disk;
        let mut state = disk.lock();
        if self.settled || matches!(state.phase, Phase::Copying) {
            return Ok(());
        }
        let until = Instant::now() + MEDIUM_BOUND;
        while !state.hold.is_settled() {
            if state.session != self.session {
                return Err(disk.wrong_phase("sharing it with a standby", &state));
            }
            if let Some(errno) = state.hold.failed() {
                let source = std::io::Error::from_raw_os_error(errno);
                return Err(DiskError::Failed { disk: disk.index, what: "writing to it", source });
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(DiskError::Slow { disk: disk.index, bound: MEDIUM_BOUND });
            }
            state = disk.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(state);
        // A file's also durable, as after an epoch (`Inner::sync`).
        let until_there = if disk.image.is_device() { Op::Barrier } else { Op::Flush };
        disk.engine.call(until_there, WAY, MEDIUM_BOUND).map_err(DiskError::io("writing to", disk.image.path()))?;
        self.settled = true;
        Ok(())
    }
}
