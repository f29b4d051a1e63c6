//! What the primary's threads share: the pipeline behind a short lock, the ways to wake the others, and the carrying out of the pipeline's actions.
//!
//! Lives here: who does which [`Action`]. Not here: the doing of captures (`epoch.rs`). The lock is held only while the pure core decides; actions are
//! carried out after it is let go.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam::channel::{Sender, TrySendError};
use disk_buffer::Disks;
use transport::pump::LINK_POLL;
use types::block::DiskIndex;
use types::clock::monotonic_ns;
use types::event::{NodeEventKind, Report};
use types::{Commit, Epoch, Generation};
use vmm::Machine;

use crate::core::{Action, Deadline, EndReason, Event, HoldReason, Pipeline};
use crate::flights::Flights;
use crate::output::OutputPath;
use crate::resets::Resets;
use crate::stats::Stats;
use crate::sync::Copying;

/// Length of the epoch thread's queue. Each kind of order but `Look` is outstanding a few times at most.
pub(crate) const ORDERS: usize = 256;
/// So many orders waiting make a `Look` needless.
const LOOKS: usize = 8;

/// News that may wait for the role thread before what the standby says has to wait as well: it must not fill this node's memory by talking faster than it is heard. In order
/// there are a handful.
pub(crate) const NEWS: usize = 256;

/// Orders for the epoch thread.
pub(crate) enum Order {
    /// The next deadline is earlier than it was ([`Deadline::Earlier`]).
    Look,
    /// Capture the end of this epoch.
    End { generation: Generation, epoch: Epoch, reason: EndReason },
    /// Whether the guest is to be kept still has changed.
    Settle,
    /// Estimate the dirty pages.
    Sample,
    /// Copy all of memory to a new standby, then capture epochs for it.
    Copy(Copying),
    /// The link is gone: no captures for it, and the sender's queue is closed.
    Unlink {
        /// It is lost before the gate was closed: the disks go back to where they were before the copy. Otherwise only a strike-out ends what they record.
        copying: bool,
    },
    /// The guest asked for a reset.
    Reset,
    /// End the thread.
    Stop,
}

/// News for the role thread.
pub(crate) enum News {
    /// The connector has a link to a standby.
    Linked(crate::connect::Linked),
    /// The standby is not there, or refused.
    NoStandby { reason: String },
    /// Memory is copied.
    SyncReady { link: u64 },
    /// Epoch 1 is committed.
    FirstCommit(Epoch),
    /// The link failed.
    LinkLost { link: u64, cause: String },
    /// The pipeline wants the link dropped.
    Fault(String),
    /// This node did not run for a while.
    Stalled { gap_ns: u64 },
    /// The guest could not be paused or resumed.
    Broken(String),
    /// A disk failed under the guest, which waits for its answer.
    DiskFailed { reason: String },
    /// Every write to a shared disk, up to this epoch's end, is on it.
    Issued { disk: DiskIndex, generation: Generation, epoch: Epoch },
    /// A shared disk says that another node has shut this one out.
    ShutOut { reason: String },
    /// The standby said whether it sees the arbiter's record; if not, why.
    Sight { link: u64, trouble: Option<String> },
    /// The standby said that a newer generation exists, or that it is leaving.
    PeerLeft { link: u64, reason: String },
}

/// Shared by all threads of a primary.
pub(crate) struct Shared {
    pub(crate) machine: Arc<Machine>,
    pub(crate) output: Arc<OutputPath>,
    pub(crate) disks: Arc<Disks>,
    pub(crate) flights: Mutex<Flights>,
    pub(crate) stats: Stats,
    pub(crate) report: Report,
    pipeline: Mutex<Pipeline>,
    epoch: Sender<Order>,
    role: Sender<News>,
    /// When the role thread last looked around, CLOCK_MONOTONIC: a gap means that this process did not run.
    pub(crate) looked_ns: AtomicU64,
    /// When something last came from the standby.
    pub(crate) heard_ns: AtomicU64,
    progress_ns: AtomicU64,
    /// The guest asked for a reset: for an epoch thread that is busy with a first copy and reads no orders.
    reset_asked: AtomicBool,
    resets: Mutex<Resets>,
}

/// What a `Shared` is made from.
pub(crate) struct Made {
    pub(crate) machine: Arc<Machine>,
    pub(crate) output: Arc<OutputPath>,
    pub(crate) disks: Arc<Disks>,
    pub(crate) report: Report,
    pub(crate) pipeline: Pipeline,
    pub(crate) epoch: Sender<Order>,
    pub(crate) role: Sender<News>,
    /// When this node last looked around before it started the guest, CLOCK_MONOTONIC.
    pub(crate) looked_ns: u64,
}

thread_local! {
    /// Reused from event to event: an event is on the way of every frame.
    static ACTIONS: RefCell<Vec<Action>> = const { RefCell::new(Vec::new()) };
}

impl Shared {
    pub(crate) fn new(made: Made) -> Arc<Shared> {
        let flights = Mutex::new(Flights::new(made.machine.slots()));
        let now = monotonic_ns();
        Arc::new(Shared {
            machine: made.machine,
            output: made.output,
            disks: made.disks,
            flights,
            stats: Stats::default(),
            report: made.report,
            pipeline: Mutex::new(made.pipeline),
            epoch: made.epoch,
            role: made.role,
            looked_ns: AtomicU64::new(made.looked_ns),
            heard_ns: AtomicU64::new(now),
            progress_ns: AtomicU64::new(now),
            reset_asked: AtomicBool::new(false),
            resets: Mutex::new(Resets::new(now)),
        })
    }

    /// Gives the pipeline an event and carries out what it decides. The epoch thread uses [`Shared::decide`] instead.
    pub(crate) fn raise(&self, event: Event) {
        let mut ordered = false;
        let deadline = self.decide(event, |order| {
            ordered = true;
            self.order(order);
        });
        if deadline == Deadline::Earlier && !ordered {
            self.order(Order::Look);
        }
    }

    /// Gives the pipeline an event; what is the epoch thread's goes to `mine`, the rest is carried out here.
    pub(crate) fn decide(&self, event: Event, mut mine: impl FnMut(Order)) -> Deadline {
        let mut actions = ACTIONS.take();
        let deadline = self.pipeline().handle(event, monotonic_ns(), &mut actions);
        for action in actions.drain(..) {
            match action {
                Action::EndEpoch { generation, epoch, reason } => mine(Order::End { generation, epoch, reason }),
                Action::HoldGuest(_) | Action::ResumeGuest => mine(Order::Settle),
                Action::SampleDirty => mine(Order::Sample),
                Action::Release(commit) => self.release(commit),
                Action::FirstCommit(epoch) => self.tell(News::FirstCommit(epoch)),
                Action::MergeBack(epoch) => self.merge_back(epoch),
                Action::DropLink(fault) => self.tell(News::Fault(fault.to_string())),
            }
        }
        ACTIONS.set(actions);
        deadline
    }

    /// When the pipeline wants to be asked again.
    pub(crate) fn deadline_ns(&self) -> Option<u64> {
        self.pipeline().deadline_ns()
    }

    /// Why the guest is to be kept still, if it is.
    pub(crate) fn guest_held(&self) -> Option<HoldReason> {
        self.pipeline().guest_held()
    }

    /// Notes that something moved towards a commit: an epoch was captured, its bytes have left, a commit came.
    pub(crate) fn progressed(&self) {
        self.progress_ns.store(monotonic_ns(), Ordering::Release);
    }

    /// For how long epochs have been in flight with no progress, nanoseconds; 0 while none is.
    pub(crate) fn no_progress_ns(&self, now_ns: u64) -> u64 {
        if self.pipeline().in_flight() == 0 { 0 } else { now_ns.saturating_sub(self.progress_ns.load(Ordering::Acquire)) }
    }

    pub(crate) fn committed(&self) -> Epoch {
        self.pipeline().committed()
    }

    pub(crate) fn tell(&self, news: News) {
        // The role thread outlives the others but for the last moments of the process; then there is nothing left to tell.
        let _ = self.role.send(news);
    }

    /// Waits while the role thread has a lot to hear, or until the link is not wanted any more. For the thread that takes the standby's words, which no other thread waits for; the others'
    /// news are few by their nature, and some of them must never wait. (A poll: a healthy standby never brings this about.)
    pub(crate) fn let_role_hear(&self, gone: &AtomicBool) {
        while self.role.len() >= NEWS && !gone.load(Ordering::Acquire) {
            std::thread::sleep(LINK_POLL);
        }
    }

    /// Hands the epoch thread an order. `Look` is left out when the thread has orders anyway (it looks after each), so that the queue always has room
    /// for the others, of which there are never more than a few: a device that holds its lock must not wait here.
    pub(crate) fn order(&self, order: Order) {
        if matches!(order, Order::Look) && self.epoch.len() >= LOOKS {
            return;
        }
        if let Err(TrySendError::Full(_)) = self.epoch.try_send(order) {
            self.tell(News::Broken("the epoch thread does not take orders any more".to_owned()));
        }
    }

    /// Has the guest reset: by order, or between two parts of a first copy, whichever the epoch thread comes to first.
    pub(crate) fn ask_reset(&self) {
        self.put_off_reset();
        self.order(Order::Reset);
    }

    /// Has the reset tried again between the next two parts; the order for it still waits.
    pub(crate) fn put_off_reset(&self) {
        self.reset_asked.store(true, Ordering::Release);
    }

    /// Whether a reset was asked for and not begun.
    pub(crate) fn take_reset(&self) -> bool {
        self.reset_asked.swap(false, Ordering::AcqRel)
    }

    /// What is known of the guest's resets.
    pub(crate) fn resets(&self) -> MutexGuard<'_, Resets> {
        self.resets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells of so many resets, if they are due.
    pub(crate) fn tell_resets(&self, due: Option<u64>) {
        if let Some(resets) = due {
            tracing::info!(resets, "the guest was reset and boots again");
            (self.report)(NodeEventKind::GuestReset { resets });
        }
    }

    pub(crate) fn flights(&self) -> MutexGuard<'_, Flights> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nanoseconds since the role thread last looked around.
    pub(crate) fn unlooked_ns(&self) -> u64 {
        monotonic_ns().saturating_sub(self.looked_ns.load(Ordering::Acquire))
    }

    fn release(&self, commit: Commit) {
        self.disks.release(&commit);
        self.output.release(commit);
    }

    fn merge_back(&self, epoch: Epoch) {
        let set = self.flights().failed(epoch);
        if let Some(set) = set {
            self.machine.give_back(&set);
            self.flights().put(set);
        }
    }

    fn pipeline(&self) -> MutexGuard<'_, Pipeline> {
        self.pipeline.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
