//! The epoch thread: carries out the pipeline's orders to pause, capture, hold and sample.
//!
//! Lives here: the loop. Not here: decisions ([`crate::core`]), the capture itself (`capture.rs`). Guards S6: after every order the guest runs, unless it is held
//! on purpose.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use checkpoint::{GuestMap, VerifyMemory};
use crossbeam::channel::{Receiver, RecvTimeoutError};
use types::clock::monotonic_ns;
use types::{Epoch, Generation};
use vmm::{BootImages, Paused};

use crate::capture;
use crate::core::{Event, HoldReason};
use crate::sender::{Job, LinkHandle};
use crate::shared::{News, Order, Shared};
use crate::sync::{Copying, Pool, copy_all};

/// What the thread works with.
pub(crate) struct EpochThread {
    pub(crate) shared: Arc<Shared>,
    pub(crate) orders: Receiver<Order>,
    pub(crate) pool: Pool,
    /// What of memory each epoch digests, and the guest's memory.
    pub(crate) verify: VerifyMemory,
    pub(crate) map: GuestMap,
    /// What a guest that asks for a reset boots from.
    pub(crate) images: Arc<BootImages>,
}

/// Runs until [`Order::Stop`].
pub(crate) fn run(thread: EpochThread) {
    // An epoch's deadline is a tenth of a millisecond away: the default slack of timers is half of it.
    types::thread::urgent(types::thread::Urgency::Capture);
    let shared = Arc::clone(&thread.shared);
    let mut state = Loop { thread, link: None, held: None, todo: VecDeque::new() };
    loop {
        let order = match state.todo.pop_front() {
            Some(order) => order,
            None => match wait(&shared, &state.thread.orders) {
                Some(order) => order,
                None => {
                    state.raise(Event::Tick);
                    continue;
                }
            },
        };
        if matches!(order, Order::Stop) {
            return;
        }
        state.act(&shared, order);
    }
}

/// The next order, or `None` when the deadline comes first.
fn wait(shared: &Shared, orders: &Receiver<Order>) -> Option<Order> {
    let Some(at) = shared.deadline_ns() else {
        return Some(orders.recv().unwrap_or(Order::Stop));
    };
    let left = at.saturating_sub(monotonic_ns());
    match orders.recv_timeout(Duration::from_nanos(left)) {
        Ok(order) => Some(order),
        Err(RecvTimeoutError::Timeout) => None,
        Err(RecvTimeoutError::Disconnected) => Some(Order::Stop),
    }
}

struct Loop<'m> {
    thread: EpochThread,
    link: Option<LinkHandle>,
    held: Option<Paused<'m>>,
    todo: VecDeque<Order>,
}

impl<'m> Loop<'m> {
    fn raise(&mut self, event: Event) {
        let todo = &mut self.todo;
        // The deadline is read anew before this thread sleeps.
        let _ = self.thread.shared.decide(event, |order| todo.push_back(order));
    }

    fn act(&mut self, shared: &'m Shared, order: Order) {
        match order {
            Order::Look => self.raise(Event::Tick),
            Order::End { generation, epoch, reason } => {
                tracing::trace!(%epoch, ?reason, "epoch ends");
                self.held = None;
                self.end(generation, epoch);
                self.settle(shared);
            }
            Order::Settle => self.settle(shared),
            Order::Sample => match shared.machine.dirty_estimate() {
                Ok(pages) => self.raise(Event::DirtyEstimate { pages }),
                Err(error) => tracing::warn!(%error, "the dirty pages cannot be estimated"),
            },
            Order::Copy(copying) => self.copy(shared, copying),
            Order::Unlink { copying } => self.unlink(shared, copying),
            Order::Reset => self.reset(shared),
            Order::Stop => {}
        }
    }

    fn settle(&mut self, shared: &'m Shared) {
        settle(shared, &mut self.held);
    }

    fn reset(&mut self, shared: &'m Shared) {
        shared.take_reset();
        if !reset(shared, &self.thread.images, &mut self.held) {
            return shared.ask_reset();
        }
        if self.link.is_some() {
            // A kernel and its initramfs were written: worth an end of the epoch before the next sample is due.
            self.act(shared, Order::Sample);
        }
    }

    fn copy(&mut self, shared: &'m Shared, copying: Copying) {
        let link = copying.link;
        let (jobs, gone) = (copying.jobs.clone(), Arc::clone(&copying.gone));
        self.link = Some(LinkHandle { jobs, gone, generation: copying.generation });
        let (held, images) = (&mut self.held, &self.thread.images);
        // A copy can take hours: a guest that reboots must not stand still for so long.
        let mut between = || {
            if shared.take_reset() && !reset(shared, images, held) {
                shared.put_off_reset();
            }
            // The order to let it run again waits as well.
            if held.is_some() {
                settle(shared, held);
            }
        };
        match copy_all(shared, &self.thread.pool, &copying, &mut between) {
            Ok(true) => shared.tell(News::SyncReady { link }),
            Ok(false) => {}
            Err(error) => shared.tell(News::LinkLost { link, cause: error.to_string() }),
        }
    }

    fn unlink(&mut self, shared: &Shared, copying: bool) {
        // The sender ends when its queue is closed, and gives its buffers back.
        self.link = None;
        if copying {
            // Here and not where the loss was noticed: this thread may have been copying until now.
            shared.disks.unlink();
        }
        if let Err(error) = shared.machine.stop_tracking() {
            tracing::warn!(%error, "dirty tracking goes on without a standby: the guest runs a little slower");
        }
    }

    fn end(&mut self, generation: Generation, epoch: Epoch) {
        let shared = Arc::clone(&self.thread.shared);
        // An order that was given for an earlier link's generation must not seal an epoch of this one.
        let link = self.link.as_ref().filter(|link| link.generation == generation);
        let buffer = link.and_then(|link| self.thread.pool.next(&link.gone));
        let Some(buffer) = buffer else {
            self.raise(Event::CaptureFailed { generation, epoch });
            return;
        };
        let mut set = shared.flights().take();
        let order = capture::Order {
            machine: &shared.machine,
            output: Some(&shared.output),
            disks: Some(&shared.disks),
            epoch,
            generation,
            verify: self.thread.verify.window(&self.thread.map, generation, epoch),
        };
        match capture::capture(&order, buffer, &mut set) {
            Ok(captured) => {
                let pages = captured.buffer.gfns.len() as u64;
                shared.stats.captured(pages, captured.pause_ns);
                shared.flights().captured(epoch, set, captured.resumed_ns);
                shared.progressed();
                self.raise(Event::Captured { generation, epoch, pages });
                self.send(Job::Epoch(Box::new(captured)));
            }
            Err((error, buffer)) => {
                tracing::warn!(%epoch, %error, "capture failed; the guest runs on and its dirty pages are in the next epoch");
                shared.flights().put(set);
                self.thread.pool.put(buffer);
                self.raise(Event::CaptureFailed { generation, epoch });
            }
        }
    }

    fn send(&mut self, job: Job) {
        let lost = match &self.link {
            Some(link) => link.jobs.send(job).err().map(|rest| rest.0),
            None => Some(job),
        };
        if let Some(job) = lost {
            // The link's loss is on its way through the role thread; the buffer must not be lost with it.
            self.thread.pool.put(job.into_buffer());
        }
    }
}

/// Holds the guest still or lets it run, whichever the pipeline wants now.
fn settle<'m>(shared: &'m Shared, held: &mut Option<Paused<'m>>) {
    match shared.guest_held() {
        Some(reason) if held.is_none() => {
            let why = match reason {
                HoldReason::AwaitingCommit => "the output buffer is full and the standby has not committed yet",
                HoldReason::NoGrant => "the output buffer is full, the standby is gone and going on alone is not granted",
                HoldReason::Unconfirmed => "this node did not run for a while and must first read the arbiter's record",
            };
            tracing::warn!(why, "the guest is held still");
            match shared.machine.pause() {
                Ok(paused) => *held = Some(paused),
                // It runs on; its frames stay in its rings, and the next frame that is turned back brings the thread here again.
                Err(error) => tracing::warn!(%error, "the guest could not be held"),
            }
        }
        Some(_) => {}
        None => {
            *held = None;
            shared.machine.retry_output();
        }
    }
}

/// Resets the machine. To a standby it is guest progress like any other: what the reset wrote is in the next round of a copy, or in the next epoch. `false`: the guest could not be
/// stopped for it.
fn reset<'m>(shared: &'m Shared, images: &BootImages, held: &mut Option<Paused<'m>>) -> bool {
    let paused = match held.take() {
        Some(paused) => Ok(paused),
        None => shared.machine.pause(),
    };
    let mut paused = match paused {
        Ok(paused) => paused,
        Err(error) => {
            tracing::warn!(%error, "the guest could not be stopped for its reset; trying again");
            return false;
        }
    };
    // Several vCPUs may have asked, and one reset is for all of them.
    if paused.reset_is_asked() {
        if let Err(error) = paused.reset(images) {
            paused.stay_stopped();
            shared.tell(News::Broken(format!("the guest asked for a reset and could not be booted again: {error}")));
            return true;
        }
        let due = shared.resets().done(monotonic_ns());
        shared.tell_resets(due);
    } else {
        shared.resets().void();
    }
    *held = Some(paused);
    settle(shared, held);
    true
}
