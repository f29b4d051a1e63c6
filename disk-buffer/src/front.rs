//! What every disk shows to its outside: its name, the answers to the guest's requests, and its news. Not here: how a request is carried out.

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::eventfd::{EfdFlags, EventFd};
use types::block::{BlockDone, BlockError, BlockInfo, DiskIndex};

use crate::error::DiskError;
use crate::hooks::{DiskEvent, Hooks};

/// One disk's outside.
pub(crate) struct Front {
    pub(crate) index: DiskIndex,
    pub(crate) info: BlockInfo,
    pub(crate) path: PathBuf,
    done: Mutex<Vec<BlockDone>>,
    event: EventFd,
    hooks: Mutex<Option<Arc<Hooks>>>,
    /// The device has shut this node out. Whoever takes the disk over is told: who had it before may have had no use for it (a standby's hooks while it activates, none at a cold start), and it is said only once.
    shut_out: Mutex<Option<DiskEvent>>,
}

impl Front {
    pub(crate) fn new(index: DiskIndex, info: BlockInfo, path: PathBuf) -> Result<Arc<Front>, DiskError> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|error| DiskError::io("making an eventfd for", &path)(error.into()))?;
        Ok(Arc::new(Front { index, info, path, done: Mutex::new(Vec::new()), event, hooks: Mutex::new(None), shut_out: Mutex::new(None) }))
    }

    pub(crate) fn attach(&self, hooks: Hooks) {
        *self.hooks.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(hooks));
        // After the hooks are set: told twice in the worst case, never not at all.
        let shut_out = self.shut_out.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(event) = shut_out {
            self.tell(event);
        }
    }

    /// Gives the guest an answer.
    pub(crate) fn answer(&self, tag: u64, result: Result<Option<Box<[u8]>>, BlockError>) {
        self.done.lock().unwrap_or_else(PoisonError::into_inner).push(BlockDone { tag, result });
        // Fails only when the counter is full, and then the descriptor is readable.
        let _ = self.event.write(1);
    }

    pub(crate) fn take_done(&self, into: &mut Vec<BlockDone>) {
        // Cleared first: an answer that comes in between raises it again.
        let _ = self.event.read();
        into.append(&mut self.done.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(crate) fn event(&self) -> RawFd {
        self.event.as_fd().as_raw_fd()
    }

    fn hooks(&self) -> Option<Arc<Hooks>> {
        self.hooks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn tell(&self, event: DiskEvent) {
        if matches!(event, DiskEvent::ShutOut { .. }) {
            *self.shut_out.lock().unwrap_or_else(PoisonError::into_inner) = Some(event.clone());
        }
        if let Some(hooks) = self.hooks() {
            (hooks.event)(event);
        }
    }

    pub(crate) fn tell_room(&self) {
        if let Some(hooks) = self.hooks() {
            (hooks.room)();
        }
    }

    pub(crate) fn tell_pressure(&self) {
        if let Some(hooks) = self.hooks() {
            (hooks.pressure)();
        }
    }

    pub(crate) fn tell_waiting(&self) {
        if let Some(hooks) = self.hooks() {
            (hooks.waiting)();
        }
    }
}
