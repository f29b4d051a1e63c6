//! What other threads see of a vCPU's thread: orders in, answers out, and the barrier.
//!
//! Lives here: the atomics and the waiting. Not here: KVM. Guards S5: after [`wait_parked`] no vCPU is in `KVM_RUN` and none is in the middle of an
//! access, until it is ordered to run again.
//!
//! Order and state are a Dekker pair: the pauser writes the order and then reads the state; the vCPU writes the state and then reads the order. With
//! sequentially consistent accesses at least one of them sees the other, so no vCPU slips into the guest unseen.

use std::{
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicI32, AtomicU8, AtomicU32, AtomicU64, Ordering},
    },
    thread::{self, Thread},
    time::{Duration, Instant},
};

use super::{
    state::{Ending, VcpuState},
    thread::Vcpu,
};
use crate::{VmmError, raw};

/// How long a vCPU may take to stop or answer. Stopping takes 25 us; a second says that the host no longer schedules us.
pub(crate) const ANSWER_LIMIT: Duration = Duration::from_secs(1);

/// How long to look again and again before sleeping: a stop takes 25 us and a capture about 40, a sleep and its wake-up another 10 to 50.
pub(crate) const SPIN: Duration = Duration::from_micros(60);

/// What a vCPU thread is to do.
pub(crate) const ORDER_PARK: u32 = 0;
pub(crate) const ORDER_RUN: u32 = 1;
pub(crate) const ORDER_QUIT: u32 = 2;

/// What a vCPU thread is doing.
pub(crate) const STATE_PARKED: u32 = 0;
pub(crate) const STATE_RUNNING: u32 = 1;
pub(crate) const STATE_GONE: u32 = 2;

/// Values of [`Seat::ended`] besides those of [`Ending`].
const END_NOT: u8 = 0;
const END_FAILED: u8 = u8::MAX;

/// A piece of work that is not on the hot path.
pub(crate) type Call = Box<dyn FnOnce(&mut Vcpu) -> Result<(), VmmError> + Send>;

/// Work for a parked vCPU's own thread.
pub(crate) enum Task {
    /// Read the vCPU's state; the answer is in [`Seat::captured`].
    Capture,
    /// Anything else; the answer is in [`Seat::answered`].
    Call(Call),
}

/// The thread that waits for vCPUs, if any: at most one, since pausing takes a lock.
#[derive(Default)]
pub(crate) struct Waiter {
    thread: Mutex<Option<Thread>>,
}

impl Waiter {
    pub(crate) fn notify(&self) {
        if let Some(thread) = &*self.thread.lock().unwrap_or_else(PoisonError::into_inner) {
            thread.unpark();
        }
    }

    /// Waits until `done`: looking for [`SPIN`], then sleeping. False when `limit` passes first.
    fn wait(&self, limit: Duration, mut done: impl FnMut() -> bool) -> bool {
        if done() {
            return true;
        }
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread::current());
        let start = Instant::now();
        let met = loop {
            if done() {
                break true;
            }
            let waited = start.elapsed();
            if waited >= limit {
                break false;
            }
            if waited < SPIN { std::hint::spin_loop() } else { thread::park_timeout(limit - waited) }
        };
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = None;
        met
    }
}

/// One vCPU's side that is shared between threads.
pub(crate) struct Seat {
    pub index: usize,
    pub order: AtomicU32,
    pub state: AtomicU32,
    pub posted: AtomicU64,
    pub done: AtomicU64,
    pub task: Mutex<Option<Task>>,
    pub captured: Mutex<Option<Result<VcpuState, VmmError>>>,
    pub answered: Mutex<Option<Result<(), VmmError>>>,
    /// Parked because its dirty ring is full, until the set has been collected.
    pub ring_full: AtomicBool,
    /// Shut down, reset or failed: does not run again, unless the machine is reset. One of the `END_` values or an [`Ending`].
    ended: AtomicU8,
    pub tid: AtomicI32,
    pub thread: OnceLock<Thread>,
    pub page: raw::RunPage,
    pub waiter: Arc<Waiter>,
}

impl Seat {
    pub(crate) fn new(index: usize, page: raw::RunPage, waiter: Arc<Waiter>) -> Seat {
        Seat {
            index,
            order: AtomicU32::new(ORDER_PARK),
            state: AtomicU32::new(STATE_PARKED),
            posted: AtomicU64::new(0),
            done: AtomicU64::new(0),
            task: Mutex::new(None),
            captured: Mutex::new(None),
            answered: Mutex::new(None),
            ring_full: AtomicBool::new(false),
            ended: AtomicU8::new(END_NOT),
            tid: AtomicI32::new(0),
            thread: OnceLock::new(),
            page,
            waiter,
        }
    }

    /// The vCPU does not run again: its guest ended the machine's run, or (none) it failed.
    pub(crate) fn end(&self, ending: Option<Ending>) {
        self.ended.store(ending.map_or(END_FAILED, |ending| ending as u8), Ordering::SeqCst);
    }

    /// The vCPU has been reset: it may run again.
    pub(crate) fn end_was_undone(&self) {
        self.ended.store(END_NOT, Ordering::SeqCst);
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst) != END_NOT
    }

    /// How the guest ended the machine's run on this vCPU, if it did.
    pub(crate) fn ending(&self) -> Option<Ending> {
        let ended = self.ended.load(Ordering::SeqCst);
        [Ending::Shutdown, Ending::Reset].into_iter().find(|ending| *ending as u8 == ended)
    }

    fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    /// Lets the vCPU run, unless it has been told to end.
    pub(crate) fn order_run(&self) {
        let _ = self.order.compare_exchange(ORDER_PARK, ORDER_RUN, Ordering::SeqCst, Ordering::SeqCst);
        self.wake();
    }

    /// Asks the vCPU to come out of the guest; [`wait_parked`] waits for it.
    pub(crate) fn order_stop(&self, order: u32) {
        self.order.fetch_max(order, Ordering::SeqCst);
        if order == ORDER_PARK {
            let _ = self.order.compare_exchange(ORDER_RUN, ORDER_PARK, Ordering::SeqCst, Ordering::SeqCst);
        }
        self.page.set_immediate_exit(true);
        if self.state.load(Ordering::SeqCst) == STATE_RUNNING {
            raw::kick(&self.tid);
        }
        if order == ORDER_QUIT {
            self.wake();
        }
    }

    /// The dirty ring has room again.
    pub(crate) fn ring_has_room(&self) {
        if self.ring_full.swap(false, Ordering::SeqCst) {
            self.wake();
        }
    }

    /// Gives a parked vCPU's thread something to do; [`wait_done`] waits for it.
    pub(crate) fn post(&self, task: Task) {
        *self.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(task);
        self.posted.fetch_add(1, Ordering::SeqCst);
        self.wake();
    }

    fn is_done(&self) -> bool {
        self.done.load(Ordering::SeqCst) == self.posted.load(Ordering::SeqCst)
    }
}

/// Waits until every vCPU is out of the guest.
pub(crate) fn wait_parked(seats: &[Arc<Seat>], waiter: &Waiter) -> Result<(), VmmError> {
    wait_for(seats, waiter, "stop", |seat| seat.state.load(Ordering::SeqCst) != STATE_RUNNING)
}

/// Waits until every vCPU has done what was posted.
pub(crate) fn wait_done(seats: &[Arc<Seat>], waiter: &Waiter) -> Result<(), VmmError> {
    wait_for(seats, waiter, "answer", |seat| seat.is_done() || seat.state.load(Ordering::SeqCst) == STATE_GONE)
}

fn wait_for(seats: &[Arc<Seat>], waiter: &Waiter, what: &'static str, done: impl Fn(&Seat) -> bool) -> Result<(), VmmError> {
    let mut behind = 0;
    let all_done = waiter.wait(ANSWER_LIMIT, || {
        while behind < seats.len() && done(&seats[behind]) {
            behind += 1;
        }
        behind == seats.len()
    });
    if all_done { Ok(()) } else { Err(VmmError::VcpuTimeout { vcpu: behind, what, limit_ms: ANSWER_LIMIT.as_millis() as u64 }) }
}
