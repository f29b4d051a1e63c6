//! What a disk does for a primary besides carrying out requests: starting, epochs, a standby's reports, and being struck out or fenced.
//!
//! Guards S1's half (what is recorded is given to exactly one epoch, in order) and S6 (an epoch that is given up gives its writes back).

use std::sync::Arc;
use std::time::Duration;

use types::block::{BlockError, DiskWrite};
use types::{Commit, Epoch};

use super::copy::MirrorCopy;
use super::{Mirror, Phase, State};
use crate::disk::MEDIUM_BOUND;
use crate::engine::{Op, Way};
use crate::error::DiskError;
use crate::identity::{CopyState, DataId, Identity};
use crate::plan::Plan;
use crate::regions::RegionSet;

impl Mirror {
    /// Cold start: the guest is about to run on this copy, without a standby. Begins a data generation, durably.
    ///
    /// # Errors
    /// [`DiskError::Unfit`] for a copy that no guest may start from, [`DiskError::Phase`], and when the log cannot be written.
    pub(crate) fn start_primary(&self) -> Result<(), DiskError> {
        self.check_start()?;
        let inner = &self.inner;
        inner.update_header(|header| {
            if header.id == DataId::NONE {
                header.id = DataId::random();
            }
            header.current = DataId::random();
        })?;
        inner.lock().phase = Phase::Alone;
        Ok(())
    }

    /// Whether [`Disk::start_primary`] would find a copy that a guest may start from. Changes nothing: to be asked before the arbiter is, which takes the guest from whoever runs it.
    ///
    /// # Errors
    /// [`DiskError::Unfit`], [`DiskError::Phase`].
    pub(crate) fn check_start(&self) -> Result<(), DiskError> {
        let inner = &self.inner;
        if !matches!(inner.lock().phase, Phase::Idle) {
            return Err(inner.wrong_phase("starting a guest", &inner.lock()));
        }
        let state = inner.header()?.map(|header| header.state);
        let why = match state {
            None | Some(CopyState::Consistent) => None,
            Some(CopyState::Following) => {
                Some("it is a standby's copy whose host stopped without warning, so its newest writes may be missing or out of order")
            }
            Some(CopyState::Copying) => Some("it is incomplete: copying to it was broken off"),
        };
        if let Some(why) = why {
            return Err(DiskError::Unfit { path: inner.image.path().to_owned(), why });
        }
        Ok(())
    }

    /// Begins the copy to a standby that has joined with this plan: its regions are marked here, durably, and writes are watched from now on. Any time until the first call of [`MirrorCopy::next_piece`]
    /// the standby may refuse; then [`Disk::unlink`].
    ///
    /// # Errors
    /// [`DiskError::Refused`] for a plan that is a refusal, [`DiskError::Phase`] unless the disk runs alone, and when the log cannot be written.
    pub(crate) fn begin_copy(&self, plan: &Plan, standby: &Identity) -> Result<MirrorCopy, DiskError> {
        let inner = &self.inner;
        let mut first = RegionSet::new(inner.info_bytes());
        let mut base = standby.current;
        match plan {
            Plan::Nothing => {}
            Plan::Regions(runs) => first.insert_runs(runs),
            Plan::Full(_) => {
                first.insert_all();
                base = DataId::NONE;
            }
            Plan::Refuse(refusal) => return Err(DiskError::Refused { disk: inner.index, refusal: refusal.clone() }),
        }
        let session = {
            let mut state = inner.lock();
            if !matches!(state.phase, Phase::Alone) {
                return Err(inner.wrong_phase("copying it", &state));
            }
            if state.outdated {
                let source = std::io::Error::other("no data generation was begun since the last standby was struck out");
                return Err(DiskError::Failed { disk: inner.index, what: "writing the change log", source });
            }
            state.phase = Phase::Copying(RegionSet::new(inner.info_bytes()));
            state.session += 1;
            state.session
        };
        // Writes made since the identities were exchanged are in no plan; from here on they are watched.
        if let Some(marked) = inner.engine.marked() {
            first.merge(&marked);
        }
        let prepared =
            inner.engine.mark(&first, MEDIUM_BOUND).map_err(DiskError::io("writing the change log of", inner.image.path())).and_then(
                |()| {
                    inner.update_header(|header| {
                        header.base = base;
                        header.joining = header.current;
                    })
                },
            );
        let copy = prepared.and_then(|()| MirrorCopy::new(Arc::clone(inner), session, first, matches!(plan, Plan::Full(_))));
        if copy.is_err() {
            self.unlink();
        }
        copy
    }

    /// Gives what was written since the last sealing to `epoch`. In the pause; does no I/O. Empty for a disk that nothing is recorded of.
    ///
    /// # Errors
    /// [`DiskError::EpochOrder`]; [`DiskError::Phase`] while the disk is being copied or is no primary's.
    pub(crate) fn seal(&self, epoch: Epoch) -> Result<Arc<Vec<DiskWrite>>, DiskError> {
        let inner = &self.inner;
        let mut state = inner.lock();
        match &mut state.phase {
            Phase::Recording(record) | Phase::Protected(record) => {
                record.seal(epoch).map_err(|expected| DiskError::EpochOrder { disk: inner.index, epoch, expected })
            }
            _ => Err(inner.wrong_phase("sealing an epoch", &state)),
        }
    }

    /// Gives up `epoch` and every later sealed one: their writes are the open epoch's again, in order.
    pub(crate) fn unseal(&self, epoch: Epoch) {
        if let Phase::Recording(record) | Phase::Protected(record) = &mut self.inner.lock().phase {
            record.unseal(epoch);
        }
    }

    /// The standby holds every epoch up to the commit's.
    pub(crate) fn release(&self, commit: &Commit) {
        let inner = &self.inner;
        let room = {
            let mut state = inner.lock();
            let (Phase::Recording(record) | Phase::Protected(record)) = &mut state.phase else { return };
            record.release(commit);
            let room = record.roomy();
            if record.released() > Epoch::NONE && matches!(state.phase, Phase::Recording(_)) {
                // From here on the standby can take over what fails here.
                if let Phase::Recording(record) = std::mem::replace(&mut state.phase, Phase::Alone) {
                    state.phase = Phase::Protected(record);
                }
                tracing::info!(disk = %inner.index, "protected");
            }
            room && std::mem::take(&mut state.starved)
        };
        if room {
            inner.front.tell_room();
        }
    }

    /// The standby has every write of every epoch up to this one durably in its copy. In the background the same is done here, and then regions are cleared in the log.
    pub(crate) fn peer_durable(&self, epoch: Epoch) {
        let inner = &self.inner;
        let mut state = inner.lock();
        if let Phase::Recording(record) | Phase::Protected(record) = &state.phase {
            // Whatever the other host says, it cannot have what was not sealed. It may have what is not committed here yet: the keeper waits for that, and a guest that is quiet from now on gives no
            // occasion for another report.
            let epoch = epoch.min(record.sealed());
            state.peer_durable = state.peer_durable.max(epoch);
            inner.changed.notify_all();
        }
    }

    /// The link was lost before the standby was recorded at the arbiter: the disk runs alone again. Harmless when it does.
    pub(crate) fn unlink(&self) {
        let ended = end_link(&mut self.inner.lock());
        for (tag, errno) in ended.parked {
            self.inner.front.answer(tag, Err(BlockError::Io(errno)));
        }
        if ended.starved {
            self.inner.front.tell_room();
        }
    }

    /// The standby is struck out of the record, and no other node can ever activate: begins a data generation, durably, answers what had failed, and runs alone.
    ///
    /// # Errors
    /// When the log cannot be written. The disk runs alone nevertheless, and its next write may fail for the same reason; no standby joins before [`Disk::identity`] has made it good.
    pub(crate) fn struck_out(&self) -> Result<(), DiskError> {
        let inner = &self.inner;
        let state = inner.lock();
        if !state.is_primary() {
            return Ok(());
        }
        // Before anything is released without the standby: two lines that grow apart must be told from each other.
        let mut ended = Ended::default();
        let begun = inner.turn(
            state,
            |header| header.current = DataId::random(),
            |state, written| {
                state.outdated = !written;
                ended = end_link(state);
            },
        );
        for (tag, errno) in ended.parked {
            inner.front.answer(tag, Err(BlockError::Io(errno)));
        }
        if ended.starved {
            inner.front.tell_room();
        }
        begun
    }

    /// [`crate::Disk::finish`].
    pub(crate) fn finish(&self, bound: Duration) -> Result<(), DiskError> {
        let inner = &self.inner;
        let way = Way { direct: true, mark: false };
        inner
            .engine
            .call(Op::Barrier, way, bound)
            .map(drop)
            .map_err(DiskError::io("carrying out the guest's last writes to", inner.image.path()))
    }

    /// The node may not run the guest any more: no request is taken from now on. What is in flight is carried out; the change log has it marked.
    pub(crate) fn shut(&self) {
        self.inner.lock().phase = Phase::Shut;
        self.inner.changed.notify_all();
    }
}

/// What a link leaves behind.
#[derive(Default)]
struct Ended {
    /// Requests that failed while protected.
    parked: Vec<(u64, i32)>,
    /// A request was turned away.
    starved: bool,
}

/// The disk runs alone.
fn end_link(state: &mut State) -> Ended {
    if !state.is_primary() {
        return Ended::default();
    }
    state.phase = Phase::Alone;
    state.session += 1;
    state.hung = false;
    state.last_written.clear();
    state.peer_durable = Epoch::NONE;
    state.peer_settled = Epoch::NONE;
    Ended { parked: std::mem::take(&mut state.parked), starved: std::mem::take(&mut state.starved) }
}
