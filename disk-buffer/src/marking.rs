//! What an epoch's sending waits for: every region that its writes touch is durably marked in this host's change log.
//!
//! Guards S4 and the invariant of [`crate::identity`]: a write is recorded for its epoch at once, while the engine holds it back until its region is marked. Were the epoch sent meanwhile, the standby could
//! apply the write, and both hosts stop: this host, started again, would not know that the other copy differs there. So the mark comes first at *this* host, before the other may write; the order
//! of DRBD, whose activity log is on the medium before a write goes to either node. The standby marks nothing (one log is enough for the plan), and only a first write into a region costs its epoch
//! a log update, off the pause and while the epoch's pages already travel. Not here: the marks ([`crate::changes`]), who waits (`primary`'s sender).

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use types::block::DiskIndex;

use crate::disks::Disks;
use crate::engine::Answer;
use crate::error::DiskError;

/// The updates of the change logs that were under way or due when an epoch was sealed.
#[derive(Debug, Default)]
pub struct Marking {
    waits: Vec<(DiskIndex, Receiver<Answer>)>,
}

impl Disks {
    /// To be taken after [`Disks::seal`], in the same pause, and waited for before the epoch's last byte is sent. Does no I/O.
    #[must_use]
    pub fn marking(&self) -> Marking {
        Marking { waits: self.iter().filter_map(|disk| Some((disk.index(), disk.marking()?))).collect() }
    }
}

impl Marking {
    /// Waits for so long at most; `false` when it takes longer: ask again. Once `true`, always.
    ///
    /// # Errors
    /// [`DiskError::Failed`]: the change log cannot be written. The epoch must never be sent; the disk's host serves the guest no more.
    pub fn wait(&mut self, bound: Duration) -> Result<bool, DiskError> {
        let until = Instant::now() + bound;
        while let Some((disk, wait)) = self.waits.last() {
            let failed =
                |errno| DiskError::Failed { disk: *disk, what: "writing the change log", source: std::io::Error::from_raw_os_error(errno) };
            match wait.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(Ok(_)) => drop(self.waits.pop()),
                Ok(Err(errno)) => return Err(failed(errno)),
                // The engine has ended.
                Err(RecvTimeoutError::Disconnected) => return Err(failed(libc::EIO)),
                Err(RecvTimeoutError::Timeout) => return Ok(false),
            }
        }
        Ok(true)
    }
}
