//! What a shared disk does for a standby: keeps the writes of every epoch until the primary has them on the device, and hands them out when it takes over. Nothing here writes before the activation: there is no descriptor that
//! could.

use std::time::Duration;

use types::block::DiskWrite;
use types::{Epoch, Generation};

use crate::error::DiskError;
use crate::plan::Plan;

use super::disk::{Phase, SharedDisk};
use super::hold::Hold;
use super::kept::{Kept, Refused};

impl SharedDisk {
    /// [`crate::Disk::join`].
    pub(crate) fn join(&self, plan: &Plan, generation: Generation) -> Result<(), DiskError> {
        let inner = &self.inner;
        if let Plan::Refuse(refusal) = plan {
            return Err(DiskError::Refused { disk: inner.index, refusal: refusal.clone() });
        }
        let mut state = inner.lock();
        if !matches!(state.phase, Phase::Idle | Phase::Standby(..)) {
            return Err(inner.wrong_phase("following a primary", &state));
        }
        // What an earlier primary had committed is on the device, or was put there by whoever struck this standby out: else this node would have taken over.
        state.phase = Phase::Standby(Kept::new(inner.limits), generation);
        Ok(())
    }

    /// A shared disk is not copied.
    pub(crate) fn sync_block(&self) -> Result<(), DiskError> {
        Err(self.inner.wrong_phase("copying to it, though it is shared,", &self.inner.lock()))
    }

    /// [`crate::Disk::stage`].
    pub(crate) fn stage(&self, epoch: Epoch, writes: Vec<DiskWrite>) -> Result<(), DiskError> {
        let (disk, bytes) = (self.inner.index, self.inner.front.info.bytes);
        let outside = |write: &&DiskWrite| write.disk != disk || write.offset.checked_add(write.len()).is_none_or(|end| end > bytes);
        if let Some(write) = writes.iter().find(outside) {
            return Err(DiskError::OutOfRange { disk: write.disk, offset: write.offset, len: write.len(), bytes });
        }
        self.kept("keeping an epoch", |kept, _| {
            kept.stage(epoch, writes).map_err(|refused| match refused {
                Refused::Order { expected } => DiskError::EpochOrder { disk, epoch, expected },
                Refused::TooMuch => DiskError::TooMuch { disk, epoch },
            })
        })
    }

    /// [`crate::Disk::commit`].
    pub(crate) fn commit(&self, epoch: Epoch) -> Result<(), DiskError> {
        let disk = self.inner.index;
        self.kept("committing an epoch", |kept, _| {
            kept.commit(epoch).map_err(|_| DiskError::EpochOrder { disk, epoch, expected: kept.committed().next() })
        })
    }

    /// [`crate::Disk::issued`].
    pub(crate) fn issued(&self, generation: Generation, epoch: Epoch) {
        // At another than a standby it is an old link's word.
        let _ = self.kept("letting go of its writes", |kept, ours| {
            if ours == generation {
                kept.on_device(epoch);
            }
            Ok(())
        });
    }

    /// [`crate::Disk::oldest_kept`].
    pub(crate) fn oldest_kept(&self) -> Option<Epoch> {
        self.kept("looking at what it keeps", |kept, _| Ok(kept.oldest())).ok().flatten()
    }

    /// [`crate::Disk::wait_applied`]: what is kept reads as if it were there.
    pub(crate) fn committed(&self) -> Result<Epoch, DiskError> {
        self.kept("waiting for its epochs", |kept, _| Ok(kept.committed()))
    }

    /// [`crate::Disk::discard_uncommitted`].
    pub(crate) fn discard_uncommitted(&self) {
        // At a primary there is nothing of the kind.
        let _ = self.kept("discarding", |kept, _| {
            kept.discard_uncommitted();
            Ok(())
        });
    }

    /// [`crate::Disk::activate`].
    pub(crate) fn activate(&self, bound: Duration) -> Result<(), DiskError> {
        let inner = &self.inner;
        if self.committed()? == Epoch::NONE {
            return Err(DiskError::Unfit { path: inner.image.path().to_owned(), why: "no epoch was committed to this standby" });
        }
        self.claim(bound)?;
        let mut state = inner.lock();
        match std::mem::replace(&mut state.phase, Phase::Alone) {
            Phase::Standby(kept, _) => {
                state.session += 1;
                state.hold = Hold::taking_over(inner.limits, kept.take_over());
                tracing::info!(disk = %inner.index, bytes = state.hold.bytes(), "committed writes that the old primary may not have made are made now");
                inner.hand_out(&mut state);
                Ok(())
            }
            other => {
                state.phase = other;
                Err(inner.wrong_phase("activating it", &state))
            }
        }
    }

    fn kept<T>(&self, operation: &'static str, then: impl FnOnce(&mut Kept, Generation) -> Result<T, DiskError>) -> Result<T, DiskError> {
        let mut state = self.inner.lock();
        match &mut state.phase {
            Phase::Standby(kept, generation) => then(kept, *generation),
            _ => Err(self.inner.wrong_phase(operation, &state)),
        }
    }
}
