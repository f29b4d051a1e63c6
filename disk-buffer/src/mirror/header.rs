//! The header of a mirror's change log: what this copy is, changed durably with every new role or link.
//!
//! Lives here: writing it, and that a medium that hangs keeps nobody who can do something else (a greeter, the role thread of a node that takes over) for longer than the watch's bound. Not here: the bytes ([`crate::changes`]), how long is
//! too long ([`super::watch`]). Guards S2: a role counts when it is on the medium, and a copy that failed meanwhile gets none.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use super::{Inner, Phase, State};
use crate::changes::file::LogFile;
use crate::changes::format::Header;
use crate::error::DiskError;

/// How often whoever waits for the header looks whether the copy has failed meanwhile.
const LOOK: Duration = Duration::from_millis(10);

/// The change log's file, where there is one.
pub(crate) struct Log {
    file: Mutex<Option<LogFile>>,
    /// Odd while the header is being written. One at a time: whoever writes has the lock.
    writes: AtomicU64,
}

impl Log {
    pub(crate) fn new(file: Option<LogFile>) -> Log {
        Log { file: Mutex::new(file), writes: AtomicU64::new(0) }
    }

    /// Its lock. Whoever has it may be writing to a medium that hangs.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Option<LogFile>> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the header of a log that is locked, durably.
    pub(crate) fn write(&self, log: &mut LogFile, change: impl FnOnce(&mut Header)) -> Result<(), DiskError> {
        self.writes.fetch_add(1, Ordering::AcqRel);
        let written = log.update(change);
        self.writes.fetch_add(1, Ordering::AcqRel);
        written
    }

    /// Which write of the header is under way.
    pub(crate) fn awaited(&self) -> Option<u64> {
        Some(self.writes.load(Ordering::Acquire)).filter(|number| number % 2 == 1)
    }
}

impl Inner {
    /// Changes the log's header, durably; nothing where there is no log.
    pub(crate) fn update_header(&self, change: impl FnOnce(&mut Header)) -> Result<(), DiskError> {
        self.log.lock().as_mut().map_or(Ok(()), |log| self.log.write(log, change))
    }

    /// The header as it is on the medium; `None` where there is no log. Waits for one that is being written.
    ///
    /// # Errors
    /// [`DiskError::Failed`] when this copy has failed: then whoever has the log may never be done with it.
    pub(crate) fn header(&self) -> Result<Option<Header>, DiskError> {
        loop {
            {
                let state = self.lock();
                if matches!(state.phase, Phase::Failed(_)) {
                    return Err(self.wrong_phase("being told of", &state));
                }
            }
            match self.log.file.try_lock() {
                Ok(log) => return Ok(log.as_ref().map(|log| *log.header())),
                Err(TryLockError::Poisoned(log)) => return Ok(log.into_inner().as_ref().map(|log| *log.header())),
                // Rare: the log is being written.
                Err(TryLockError::WouldBlock) => std::thread::sleep(LOOK),
            }
        }
    }

    /// Changes the header for a new role or link. What the keeper had begun for the old one is void, and it begins nothing until `then`, told whether the header was written, has changed the phase: it would write the old role's
    /// header over the new one's.
    ///
    /// # Errors
    /// When it cannot be written; [`DiskError::Failed`] for a standby's copy that failed meanwhile: then there is no new role.
    pub(crate) fn turn(
        &self,
        state: MutexGuard<'_, State>,
        header: impl FnOnce(&mut Header),
        then: impl FnOnce(&mut State, bool),
    ) -> Result<(), DiskError> {
        begin_turn(state);
        self.finish_turn(header, then)
    }

    /// As [`Inner::turn`], on a thread of its own, for a standby's copy: should the medium hang, this returns as soon as the watch finds that out, and the thread is left to the medium.
    ///
    /// # Errors
    /// As there, and when there is no thread.
    pub(crate) fn turn_apart(
        self: &Arc<Self>,
        state: MutexGuard<'_, State>,
        header: impl FnOnce(&mut Header) + Send + 'static,
        then: impl FnOnce(&mut State, bool) + Send + 'static,
    ) -> Result<(), DiskError> {
        begin_turn(state);
        let (answer, answered) = sync_channel(1);
        let inner = Arc::clone(self);
        let body = move || {
            let turned = inner.finish_turn(header, then);
            // Before it is told: whoever waits may want to be the last to have the disk.
            drop(inner);
            let _: Result<(), _> = answer.send(turned);
        };
        if let Err(source) = std::thread::Builder::new().name(format!("{}-turn", self.index)).spawn(body) {
            self.lock().turning = false;
            return Err(DiskError::Thread { disk: self.index, source });
        }
        loop {
            match answered.recv_timeout(LOOK) {
                Ok(turned) => return turned,
                Err(RecvTimeoutError::Timeout) => {
                    let state = self.lock();
                    if matches!(state.phase, Phase::Failed(_)) {
                        return Err(self.wrong_phase("taking a new part", &state));
                    }
                }
                // It panicked.
                Err(RecvTimeoutError::Disconnected) => return Err(self.wrong_phase("taking a new part", &self.lock())),
            }
        }
    }

    fn finish_turn(&self, header: impl FnOnce(&mut Header), then: impl FnOnce(&mut State, bool)) -> Result<(), DiskError> {
        let written = self.update_header(header);
        let mut state = self.lock();
        state.turning = false;
        if matches!(state.phase, Phase::Failed(_)) {
            return Err(self.wrong_phase("taking a new part", &state));
        }
        then(&mut state, written.is_ok());
        drop(state);
        self.changed.notify_all();
        written
    }
}

fn begin_turn(mut state: MutexGuard<'_, State>) {
    state.session += 1;
    state.turning = true;
}
