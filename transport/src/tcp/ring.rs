//! One io_uring: submit, wait with a bound, reap. Not here: what the operations are. Every completion is returned as (user data, result).

use std::io;
use std::time::Duration;

use io_uring::{IoUring, squeue, types};

use crate::error::TransportError;

/// What to do about a wait that was interrupted or ran out of time is the same everywhere: look at the completions and decide again.
pub(crate) struct Ring {
    ring: IoUring,
}

impl Ring {
    /// # Errors
    /// [`TransportError::IoUring`] with the kernel's answer.
    pub(crate) fn new(entries: u32) -> Result<Ring, TransportError> {
        // COOP_TASKRUN (5.19): completions are processed when this thread enters the kernel anyway, instead of by an interrupt to it.
        // SINGLE_ISSUER is out: the ends of a link may be made on one thread and used on another.
        let ring = IoUring::builder()
            .setup_coop_taskrun()
            .setup_taskrun_flag()
            .build(entries)
            .map_err(|source| TransportError::IoUring { source })?;
        if !ring.params().is_feature_ext_arg() {
            return Err(TransportError::IoUring { source: io::Error::from_raw_os_error(libc::ENOSYS) });
        }
        Ok(Ring { ring })
    }

    /// Queues one operation.
    ///
    /// # Safety
    /// Everything the operation points to must stay valid, and if the kernel writes to it unused by anyone else, until its completion has
    /// been returned by [`Ring::pop`].
    pub(crate) unsafe fn push(&mut self, entry: &squeue::Entry) -> Result<(), TransportError> {
        // SAFETY: the caller vouches for the operation's memory.
        let full = unsafe { self.ring.submission().push(entry) }.is_err();
        if full {
            return Err(TransportError::Misuse("io_uring submission queue is full".into()));
        }
        Ok(())
    }

    /// Submits what is queued without waiting.
    pub(crate) fn submit(&mut self) -> Result<(), TransportError> {
        match self.ring.submit() {
            Ok(_) => Ok(()),
            Err(e) if transient(&e) => Ok(()),
            Err(source) => Err(TransportError::IoUring { source }),
        }
    }

    /// Submits what is queued and waits for at least one completion, at most `timeout`. Returns on interruption too.
    pub(crate) fn submit_and_wait(&mut self, timeout: Duration) -> Result<(), TransportError> {
        let time = types::Timespec::from(timeout);
        match self.ring.submitter().submit_with_args(1, &types::SubmitArgs::new().timespec(&time)) {
            Ok(_) => Ok(()),
            Err(e) if transient(&e) => Ok(()),
            Err(source) => Err(TransportError::IoUring { source }),
        }
    }

    /// Lets completions that the kernel holds back become visible; costs nothing when there are none.
    pub(crate) fn peek(&mut self) -> Result<(), TransportError> {
        if self.ring.submission().taskrun() { self.submit() } else { Ok(()) }
    }

    /// The next completion.
    pub(crate) fn pop(&mut self) -> Option<(u64, i32)> {
        self.ring.completion().next().map(|cqe| (cqe.user_data(), cqe.result()))
    }
}

fn transient(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY))
}
