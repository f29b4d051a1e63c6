//! What the standby's threads share: the staging machine behind its lock, and the way to the role thread.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use checkpoint::message::{self, Message};
use checkpoint::{CompleteEpoch, EpochTail, GuestMap, MemoryDigest};
use crossbeam::channel::Sender;
use disk_buffer::Disks;
use transport::pump::LINK_POLL;
use transport::{ControlSender, Slot};
use types::block::{DiskIndex, DiskWrite};
use types::event::Report;
use types::{Epoch, Generation};

use crate::apply::Job;
use crate::backlog::{self, Backlog, Permit, Permits};
use crate::core::{Action, Event, LinkFault, Standby};
use crate::disks::Reporter;
use crate::input::Received;

/// News that may wait for the role thread before what the primary says has to wait as well: it must not fill this node's memory by talking faster than it is heard. In order
/// there are a handful.
pub(crate) const NEWS: usize = 256;

/// News for the role thread.
pub(crate) enum News {
    /// The greeter welcomed a primary.
    Linked(crate::greet::Linked),
    /// The link failed or broke a rule.
    LinkLost { link: u64, cause: String },
    /// The first epoch is whole; the role thread commits it, so that the role machine knows first.
    FirstEpoch { link: u64, complete: CompleteEpoch<Slot>, permits: Permits, done: Sender<()> },
    /// The record names this standby.
    Recorded { link: u64, generation: Generation },
    /// Guest memory is of no epoch any more.
    Spoilt { reason: String },
    /// The guest ended on purpose.
    PeerShutdown { link: u64, reason: String },
}

/// Shared by all threads of a standby.
pub(crate) struct Shared {
    pub(crate) map: GuestMap,
    pub(crate) disks: Arc<Disks>,
    /// Where news of the disks go.
    pub(crate) reporter: Reporter,
    /// Disk writes that are committed and not handed on yet.
    pub(crate) writes: Arc<Backlog>,
    /// Writes to shared disks that are committed and perhaps not on them.
    pub(crate) kept: Arc<Backlog>,
    /// What of it is given back when: after the epoch is on every shared disk.
    keeping: Mutex<VecDeque<(Epoch, Permit)>>,
    /// Pages whose comparison is to come (`--verify-memory`).
    pub(crate) comparing: Arc<Backlog>,
    pub(crate) report: Report,
    staging: Mutex<Standby>,
    received: Mutex<Received>,
    apply: Sender<Job>,
    role: Sender<News>,
    /// When something last came from the primary, CLOCK_MONOTONIC nanoseconds.
    pub(crate) heard_ns: AtomicU64,
}

impl Shared {
    pub(crate) fn new(map: GuestMap, disks: Arc<Disks>, report: Report, apply: Sender<Job>, role: Sender<News>) -> Arc<Shared> {
        let staging = Mutex::new(Standby::new(Generation(0)));
        let received = Mutex::new(Received::default());
        Arc::new(Shared {
            map,
            disks,
            reporter: Reporter::default(),
            writes: Backlog::new(backlog::WRITES),
            kept: Backlog::new(backlog::KEPT),
            keeping: Mutex::default(),
            comparing: Backlog::new(backlog::COMPARING),
            report,
            staging,
            received,
            apply,
            role,
            heard_ns: AtomicU64::new(types::clock::monotonic_ns()),
        })
    }

    /// Room for what is to be done with an epoch after its commit; `None`: `still` said that nobody waits for it any more.
    pub(crate) fn room(&self, tail: &EpochTail, still: impl Fn() -> bool) -> Option<Permits> {
        let (shared, own): (Vec<&DiskWrite>, Vec<&DiskWrite>) =
            tail.disks.iter().partition(|write| self.disks.get(write.disk).is_some_and(|disk| disk.is_shared()));
        let written = own.into_iter().map(DiskWrite::payload).sum();
        let kept = shared.into_iter().map(|write| write.payload() + backlog::WRITE_COST).sum();
        let compared = tail.memory.as_ref().map_or(0, MemoryDigest::pages) as usize;
        let writes = self.writes.enter(written, LINK_POLL, &still)?;
        let kept = self.kept.enter(kept, LINK_POLL, &still)?;
        Some(Permits { writes, kept, comparing: self.comparing.enter(compared, LINK_POLL, &still)? })
    }

    /// The epoch is with the disks: its room among what is kept is given back when the primary says that it is on them.
    pub(crate) fn keep(&self, epoch: Epoch, permit: Permit) {
        self.remember(epoch, permit);
        // It may have said so already.
        self.let_go();
    }

    fn remember(&self, epoch: Epoch, permit: Permit) {
        // Epochs that wrote nothing come without end while one before them is kept.
        if permit.is_for_something() {
            self.keeping().push_back((epoch, permit));
        }
    }

    /// The primary says that a shared disk has every write up to this epoch's end.
    pub(crate) fn issued(&self, disk: DiskIndex, generation: Generation, epoch: Epoch) {
        if let Some(disk) = self.disks.get(disk) {
            disk.issued(generation, epoch);
            self.let_go();
        }
    }

    /// Whatever was kept is another link's.
    pub(crate) fn forget_kept(&self) {
        self.keeping().clear();
    }

    fn let_go(&self) {
        let oldest = self.disks.oldest_kept();
        let mut keeping = self.keeping();
        while keeping.pop_front_if(|(epoch, _)| oldest.is_none_or(|oldest| *epoch < oldest)).is_some() {}
    }

    fn keeping(&self) -> MutexGuard<'_, VecDeque<(Epoch, Permit)>> {
        self.keeping.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The staging machine.
    pub(crate) fn staging(&self) -> MutexGuard<'_, Standby> {
        self.staging.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the staging machine an event that produces no commit.
    ///
    /// # Errors
    /// The fault for which the link must be dropped.
    pub(crate) fn raise(&self, event: Event) -> Result<(), LinkFault> {
        let mut actions = Vec::new();
        self.staging().handle(event, &mut actions);
        for action in actions {
            match action {
                Action::DropLink(fault) => return Err(fault),
                Action::DiscardTorn(epoch) => tracing::info!(%epoch, "a torn epoch is discarded"),
                Action::Commit { .. } | Action::Apply(_) => {}
            }
        }
        Ok(())
    }

    /// Commits a whole epoch: says so, then hands it on to be applied. The lock is held while it is said: after the order to stop committing, which
    /// takes the lock, nothing more is said. `permits` go on with the epoch, or are given back here.
    ///
    /// # Errors
    /// The fault for which the link must be dropped, in words.
    pub(crate) fn commit(
        &self,
        complete: CompleteEpoch<Slot>,
        permits: Permits,
        control: &dyn ControlSender,
    ) -> Result<Option<Epoch>, String> {
        let arrived = Instant::now();
        let (generation, epoch) = (complete.generation, complete.epoch);
        let mut actions = Vec::new();
        let mut staging = self.staging();
        staging.handle(Event::EpochComplete { generation, epoch }, &mut actions);
        let mut committed = false;
        for action in &actions {
            match action {
                Action::Commit { generation, epoch } => {
                    let message = message::encode(&Message::Commit { generation: *generation, epoch: *epoch });
                    // Committed all the same when it cannot be said: the epoch is whole, and the primary released nothing of it.
                    let sent = message.map_err(|e| e.to_string()).and_then(|bytes| control.send(&bytes).map_err(|e| e.to_string()));
                    if let Err(error) = sent {
                        tracing::warn!(%epoch, error, "a commit could not be sent");
                    }
                    committed = true;
                }
                Action::DropLink(fault) => return Err(fault.to_string()),
                Action::Apply(_) | Action::DiscardTorn(_) => {}
            }
        }
        if committed {
            self.received().committed(epoch);
            // Before the lock is let go: whoever stops the commits next finds every committed epoch in the apply thread's queue. That is unbounded, and so
            // never waits; each epoch in it holds a staging slot, which bounds it.
            self.apply(Job::Epoch(Box::new(complete), permits, arrived));
        }
        drop(staging);
        Ok(committed.then_some(epoch))
    }

    /// What the guest received at the primary.
    pub(crate) fn received(&self) -> MutexGuard<'_, Received> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn apply(&self, job: Job) {
        let _ = self.apply.send(job);
    }

    /// Waits while the role thread has a lot to hear, or until the link is not wanted any more. For the thread that takes the primary's words, which no other thread waits for; the others'
    /// news are few by their nature, and some of them must never wait. (A poll: a healthy primary never brings this about.)
    pub(crate) fn let_role_hear(&self, gone: &AtomicBool) {
        while self.role.len() >= NEWS && !gone.load(Ordering::Acquire) {
            std::thread::sleep(LINK_POLL);
        }
    }

    pub(crate) fn tell(&self, news: News) {
        let _ = self.role.send(news);
    }
}

#[cfg(test)]
mod tests {
    use crossbeam::channel::unbounded;
    use types::block::{DiskChange, DiskIndex};

    use super::*;

    struct Silent;

    impl ControlSender for Silent {
        fn send(&self, _: &[u8]) -> Result<(), transport::TransportError> {
            Ok(())
        }
    }

    /// With a disk write and a digest of memory.
    fn complete(epoch: u64) -> CompleteEpoch<Slot> {
        let write = DiskWrite { disk: DiskIndex(0), offset: 0, change: DiskChange::Data([7; 512].into()) };
        let memory = MemoryDigest::of_digests(&GuestMap::new(std::iter::once(0..1)), |_| 0);
        let tail = EpochTail { disks: vec![write], memory: Some(memory), ..EpochTail::default() };
        CompleteEpoch { generation: Generation(1), epoch: Epoch(epoch), parts: Vec::new(), tail }
    }

    fn room(shared: &Shared, complete: &CompleteEpoch<Slot>) -> Permits {
        shared.room(&complete.tail, || true).expect("room")
    }

    fn waiting(shared: &Shared) -> (bool, bool) {
        (shared.writes.waiting() > 0, shared.comparing.waiting() > 0)
    }

    #[test]
    fn room_in_the_backlog_is_given_back_by_every_epoch_that_is_not_committed() {
        type Before = fn(&Shared);
        let cases: [(&str, Before, u64); 3] = [
            ("the link is lost", |shared| shared.raise(Event::LinkLost).unwrap(), 1),
            ("commits are stopped", |shared| shared.raise(Event::StopCommitting).unwrap(), 1),
            ("an epoch out of order", |_| {}, 7),
        ];
        for (what, before, epoch) in cases {
            let (apply, jobs) = unbounded();
            let (role, _news) = unbounded();
            let shared = Shared::new(GuestMap::new(std::iter::once(0..1)), Arc::default(), Arc::new(|_| {}), apply, role);
            *shared.staging() = Standby::new(Generation(1));
            let complete = complete(epoch);
            let permits = room(&shared, &complete);
            before(&shared);

            let committed = shared.commit(complete, permits, &Silent);

            assert!(!matches!(committed, Ok(Some(_))), "{what}");
            assert!(jobs.is_empty(), "{what}");
            assert_eq!(waiting(&shared), (false, false), "{what}");
        }
    }

    #[test]
    fn room_in_the_backlog_is_given_back_by_news_and_jobs_that_nobody_takes() {
        let (apply, jobs) = unbounded();
        let (role, news) = unbounded();
        let shared = Shared::new(GuestMap::new(std::iter::once(0..1)), Arc::default(), Arc::new(|_| {}), apply, role);
        *shared.staging() = Standby::new(Generation(1));
        let whole = || {
            let complete = complete(1);
            let permits = room(&shared, &complete);
            (complete, permits)
        };
        let (complete, permits) = whole();
        shared.commit(complete, permits, &Silent).unwrap();
        let (done, _answered) = crossbeam::channel::bounded(1);
        let (complete, permits) = whole();
        shared.tell(News::FirstEpoch { link: 1, complete, permits, done });
        assert_eq!(waiting(&shared), (true, true));

        drop(news.recv());
        drop(jobs.recv());

        assert_eq!(waiting(&shared), (false, false));
    }

    #[test]
    fn epochs_that_wrote_nothing_to_a_shared_disk_leave_nothing_to_be_remembered() {
        let (apply, _jobs) = unbounded();
        let (role, _news) = unbounded();
        let shared = Shared::new(GuestMap::new(std::iter::once(0..1)), Arc::default(), Arc::new(|_| {}), apply, role);
        let enter = |bytes| shared.kept.enter(bytes, LINK_POLL, || true).expect("room");

        shared.keeping().push_back((Epoch(1), enter(512)));
        let before = shared.keeping().len();
        (2..1000).for_each(|epoch| shared.remember(Epoch(epoch), enter(0)));

        assert_eq!(shared.keeping().len(), before);
    }
}
