//! All disks of a machine. Not here: what one of them does ([`crate::disk`]).

use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use types::block::{DiskIndex, DiskWrite};
use types::{Commit, Epoch, Generation};

use crate::disk::{Disk, MEDIUM_BOUND, Tuning};
use crate::error::DiskError;
use crate::identity::Identity;
use crate::options::DiskOptions;
use crate::plan::{Plan, plan};
use crate::record::Limits;

/// Disks at most: a request names its disk by one byte.
const MAX_DISKS: usize = 256;

/// The disks of a machine, in the order of its configuration.
#[derive(Clone, Debug, Default)]
pub struct Disks {
    disks: Vec<Arc<Disk>>,
}

impl Disks {
    /// Opens all of them.
    ///
    /// # Errors
    /// What is wrong with one, or that two are the same.
    pub fn open(options: &[DiskOptions]) -> Result<Disks, DiskError> {
        if options.len() > MAX_DISKS {
            return Err(DiskError::TooMany(options.len()));
        }
        // Looked for before the locks, which would call the second one "in use by another process".
        for (second, later) in options.iter().enumerate() {
            for (first, earlier) in options[..second].iter().enumerate() {
                let (Ok(one), Ok(other)) = (key(earlier), key(later)) else { continue };
                if one == other {
                    let (first, second) = (DiskIndex(first as u8), DiskIndex(second as u8));
                    return Err(DiskError::SamePath { first, second, path: later.path.clone() });
                }
            }
        }
        let limits = Limits::default().shared_by(options.len());
        let disks = options
            .iter()
            .enumerate()
            .map(|(index, options)| Disk::open_with(DiskIndex(index as u8), options, Tuning { limits, ..Tuning::default() }).map(Arc::new));
        Ok(Disks { disks: disks.collect::<Result<_, _>>()? })
    }

    /// Disks that are open already, in the order of their indices.
    #[must_use]
    pub fn of(disks: Vec<Arc<Disk>>) -> Disks {
        Disks { disks }
    }

    /// There are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.disks.is_empty()
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Disk>> {
        self.disks.iter()
    }

    /// One of them.
    #[must_use]
    pub fn get(&self, index: DiskIndex) -> Option<&Arc<Disk>> {
        self.disks.get(usize::from(index.0))
    }

    /// [`Disk::identity`] of each.
    ///
    /// # Errors
    /// As there.
    pub fn identities(&self) -> Result<Vec<Identity>, DiskError> {
        self.disks.iter().map(|disk| disk.identity()).collect()
    }

    /// What has to be copied for each, at the primary's or at the standby's, from both sides' identities: the same at both.
    ///
    /// # Errors
    /// [`DiskError::OtherNumber`], or the first disk's [`DiskError::Refused`].
    pub fn plans(primary: &[Identity], standby: &[Identity]) -> Result<Vec<Plan>, DiskError> {
        if primary.len() != standby.len() {
            return Err(DiskError::OtherNumber { primary: primary.len(), standby: standby.len() });
        }
        let plans = primary.iter().zip(standby).enumerate().map(|(index, (primary, standby))| match plan(primary, standby) {
            Plan::Refuse(refusal) => Err(DiskError::Refused { disk: DiskIndex(index as u8), refusal }),
            plan => Ok(plan),
        });
        plans.collect()
    }

    /// [`Disk::claim`] of each, within the bound together.
    ///
    /// # Errors
    /// As there.
    pub fn claim(&self, bound: Duration) -> Result<(), DiskError> {
        let until = Instant::now() + bound;
        self.disks.iter().try_for_each(|disk| disk.claim(until.saturating_duration_since(Instant::now())))
    }

    /// As [`Disks::claim`], of shared block devices only.
    ///
    /// # Errors
    /// As there.
    pub fn claim_devices(&self, bound: Duration) -> Result<(), DiskError> {
        let until = Instant::now() + bound;
        let devices = self.disks.iter().filter(|disk| disk.is_shared_device());
        devices.into_iter().try_for_each(|disk| disk.claim(until.saturating_duration_since(Instant::now())))
    }

    /// [`Disk::check_start`] of each.
    ///
    /// # Errors
    /// As there.
    pub fn check_start(&self) -> Result<(), DiskError> {
        self.disks.iter().try_for_each(|disk| disk.check_start())
    }

    /// [`Disk::start_primary`] of each.
    ///
    /// # Errors
    /// As there.
    pub fn start_primary(&self) -> Result<(), DiskError> {
        self.disks.iter().try_for_each(|disk| disk.start_primary())
    }

    /// [`Disk::seal`] of each, one list per disk.
    ///
    /// # Errors
    /// As there; then [`Disks::unseal`] before anything else.
    pub fn seal(&self, epoch: Epoch) -> Result<Vec<Arc<Vec<DiskWrite>>>, DiskError> {
        self.disks.iter().map(|disk| disk.seal(epoch)).collect()
    }

    /// [`Disk::unseal`] of each.
    pub fn unseal(&self, epoch: Epoch) {
        self.disks.iter().for_each(|disk| disk.unseal(epoch));
    }

    /// [`Disk::release`] of each.
    pub fn release(&self, commit: &Commit) {
        self.disks.iter().for_each(|disk| disk.release(commit));
    }

    /// [`Disk::unlink`] of each.
    pub fn unlink(&self) {
        self.disks.iter().for_each(|disk| disk.unlink());
    }

    /// [`Disk::struck_out`] of each, whatever happens at another, on threads of their own: a medium that hangs keeps neither the caller for ever nor the other disks. Such a disk goes on
    /// recording, and holds what the guest writes, until its medium answers.
    ///
    /// # Errors
    /// The first one's; [`DiskError::Slow`] for one that has not answered in time.
    pub fn struck_out(&self) -> Result<(), DiskError> {
        self.struck_out_within(MEDIUM_BOUND)
    }

    fn struck_out_within(&self, bound: Duration) -> Result<(), DiskError> {
        let until = Instant::now() + bound;
        let begun: Vec<_> = self.disks.iter().map(|disk| (disk, strike_out(disk))).collect();
        let done = begun.into_iter().map(|(disk, begun)| {
            let slow = |_| Err(DiskError::Slow { disk: disk.index(), bound });
            begun?.recv_timeout(until.saturating_duration_since(Instant::now())).unwrap_or_else(slow)
        });
        done.fold(Ok(()), Result::and)
    }

    /// [`Disk::finish`] of each, whatever happens at another, within the bound together.
    ///
    /// # Errors
    /// The first one's.
    pub fn finish(&self, bound: Duration) -> Result<(), DiskError> {
        let until = Instant::now() + bound;
        let ended = self.disks.iter().map(|disk| disk.finish(until.saturating_duration_since(Instant::now())));
        ended.fold(Ok(()), Result::and)
    }

    /// [`Disk::shut`] of each.
    pub fn shut(&self) {
        self.disks.iter().for_each(|disk| disk.shut());
    }

    /// [`Disk::join`] of each.
    ///
    /// # Errors
    /// As there, and [`DiskError::OtherNumber`].
    pub fn join(&self, plans: &[Plan], primary: &[Identity], generation: Generation) -> Result<(), DiskError> {
        if plans.len() != self.disks.len() || primary.len() != self.disks.len() {
            return Err(DiskError::OtherNumber { primary: primary.len(), standby: self.disks.len() });
        }
        self.disks.iter().zip(plans).zip(primary).try_for_each(|((disk, plan), primary)| disk.join(plan, primary, generation))
    }

    /// [`Disk::wait_wiped`] of each, within the bound together.
    ///
    /// # Errors
    /// As there.
    pub fn wait_wiped(&self, bound: Duration) -> Result<bool, DiskError> {
        let until = Instant::now() + bound;
        for disk in self.iter() {
            if !disk.wait_wiped(until.saturating_duration_since(Instant::now()))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// [`Disk::stage`] of each, with its own of the writes, in their order.
    ///
    /// # Errors
    /// As there, and for a write to a disk that there is none of.
    pub fn stage(&self, epoch: Epoch, writes: Vec<DiskWrite>) -> Result<(), DiskError> {
        let mut lists: Vec<Vec<DiskWrite>> = vec![Vec::new(); self.disks.len()];
        for write in writes {
            match lists.get_mut(usize::from(write.disk.0)) {
                Some(list) => list.push(write),
                None => return Err(DiskError::OutOfRange { disk: write.disk, offset: write.offset, len: write.len(), bytes: 0 }),
            }
        }
        self.disks.iter().zip(lists).try_for_each(|(disk, list)| disk.stage(epoch, list))
    }

    /// [`Disk::commit`] of each.
    ///
    /// # Errors
    /// As there.
    pub fn commit(&self, epoch: Epoch) -> Result<(), DiskError> {
        self.disks.iter().try_for_each(|disk| disk.commit(epoch))
    }

    /// The oldest of [`Disk::oldest_kept`].
    #[must_use]
    pub fn oldest_kept(&self) -> Option<Epoch> {
        self.disks.iter().filter_map(|disk| disk.oldest_kept()).min()
    }

    /// [`Disk::discard_uncommitted`] of each.
    pub fn discard_uncommitted(&self) {
        self.disks.iter().for_each(|disk| disk.discard_uncommitted());
    }

    /// [`Disk::taking_over`] of each.
    pub fn taking_over(&self) {
        self.disks.iter().for_each(|disk| disk.taking_over());
    }

    /// [`Disk::activate`] of each. They work at the same time, so that the wait for one is a wait for all.
    ///
    /// # Errors
    /// As there.
    pub fn activate(&self, bound: Duration) -> Result<(), DiskError> {
        self.disks.iter().try_for_each(|disk| disk.activate(bound))
    }
}

/// Strikes the standby out of one disk, in the background.
fn strike_out(disk: &Arc<Disk>) -> Result<Receiver<Result<(), DiskError>>, DiskError> {
    let (answer, answered) = sync_channel(1);
    let own = Arc::clone(disk);
    let body = move || {
        let done = own.struck_out();
        // Before it is told: whoever waits may want to be the last to have the disk.
        drop(own);
        let _ = answer.send(done);
    };
    match std::thread::Builder::new().name("strike-out".to_owned()).spawn(body) {
        Ok(_) => Ok(answered),
        // Here, then: a wait without a bound is still better than a guest that waits for ever.
        Err(error) => {
            tracing::warn!(disk = %disk.index(), %error, "no thread for the strike-out");
            disk.struck_out().map(|()| {
                let (answer, answered) = sync_channel(1);
                let _ = answer.send(Ok(()));
                answered
            })
        }
    }
}

/// File system and inode, or the block device's number.
fn key(options: &DiskOptions) -> std::io::Result<crate::image::Key> {
    Ok(crate::image::Key::of(&std::fs::metadata(&options.path)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Modal;
    use crate::mirror::{Inner, Phase};

    fn inner(disk: &Disk) -> &Inner {
        match &disk.mode {
            Modal::Mirror(mirror) => &mirror.inner,
            Modal::Shared(_) => panic!("a mirror"),
        }
    }

    #[test]
    fn a_strike_out_waits_for_a_medium_that_hangs_for_its_bound_only_and_happens_when_it_answers() {
        let directory = tempfile::tempdir().unwrap();
        let options = ["one", "two"].map(|name| {
            let path = directory.path().join(name);
            std::fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
            DiskOptions { log: Some(directory.path().join(format!("{name}.log"))), path, ..DiskOptions::default() }
        });
        let disks = Disks::open(&options).unwrap();
        disks.start_primary().unwrap();
        let before = disks.identities().unwrap();
        // A log that is being written and does not get done.
        let hanging = inner(&disks.disks[0]).log.lock();

        let struck = disks.struck_out_within(Duration::from_millis(200));

        assert!(matches!(struck, Err(DiskError::Slow { disk: DiskIndex(0), .. })), "{struck:?}");
        assert_ne!(disks.disks[1].identity().unwrap().current, before[1].current, "the other disk does not wait");
        drop(hanging);
        while inner(&disks.disks[0]).lock().turning {
            std::thread::yield_now();
        }
        assert_ne!(disks.disks[0].identity().unwrap().current, before[0].current);
        assert!(matches!(inner(&disks.disks[0]).lock().phase, Phase::Alone));
    }
}
