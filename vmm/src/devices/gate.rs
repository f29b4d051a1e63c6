//! The gate between the device worker and whoever wants it still.
//!
//! Lives here: one flag, one lock, one condition variable. Not here: what the worker does inside. Guards S5: after
//! [`Gate::close`] has returned, the worker is not inside a batch and does not start one until [`Gate::open`].
//!
//! A plain mutex would not do: it is not fair, and a busy worker that unlocks and locks again starves the thread that waits. Here the
//! worker looks at the flag before it goes in, and inside after each frame.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::lock;

#[derive(Debug)]
pub(crate) struct Gate {
    closed: AtomicBool,
    stopping: AtomicBool,
    inside: Mutex<()>,
    opened: Condvar,
}

impl Gate {
    /// A closed gate: a device does nothing before the first start.
    pub(crate) fn new() -> Gate {
        Gate { closed: AtomicBool::new(true), stopping: AtomicBool::new(false), inside: Mutex::new(()), opened: Condvar::new() }
    }

    /// Worker: waits until the gate is open and goes in. `None` when the worker is to end.
    pub(crate) fn enter(&self) -> Option<MutexGuard<'_, ()>> {
        let mut inside = lock(&self.inside);
        loop {
            if self.stopping.load(Ordering::SeqCst) {
                return None;
            }
            if !self.closed.load(Ordering::SeqCst) {
                return Some(inside);
            }
            inside = self.opened.wait(inside).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The flag that a batch looks at after each frame: true means come out.
    pub(crate) fn closing(&self) -> &AtomicBool {
        &self.closed
    }

    /// Closes the gate and waits until the worker is outside: for one frame at most.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        drop(lock(&self.inside));
    }

    /// Opens the gate.
    pub(crate) fn open(&self) {
        let inside = lock(&self.inside);
        self.closed.store(false, Ordering::SeqCst);
        drop(inside);
        self.opened.notify_all();
    }

    /// Worker: whether it is to end.
    pub(crate) fn stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// Makes the worker end at its next look at the gate, open or closed.
    pub(crate) fn stop(&self) {
        let inside = lock(&self.inside);
        self.stopping.store(true, Ordering::SeqCst);
        self.closed.store(true, Ordering::SeqCst);
        drop(inside);
        self.opened.notify_all();
    }
}
