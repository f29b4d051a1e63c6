//! The control thread of one link: commits in, output out.
//!
//! Lives here: what comes from the standby. Not here: what is said to it (`run/`). Guards S1 (a commit goes to the pure core, which attests the release) and
//! S3 for a node that slept: before a commit that was waiting in a socket is believed, the thread looks whether the process did not run for a while.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use checkpoint::message::{self, Message};
use transport::ControlReceiver;
use transport::pump::receive_until;
use types::Generation;
use types::clock::monotonic_ns;

use crate::core::Event;
use crate::shared::{News, Shared};

/// What the thread is made from.
pub(crate) struct ControlThread {
    pub(crate) shared: Arc<Shared>,
    pub(crate) link: u64,
    /// The generation of the epochs on this link.
    pub(crate) generation: Generation,
    pub(crate) gone: Arc<AtomicBool>,
    /// Silence of the role thread that means that this process did not run, nanoseconds.
    pub(crate) stall_ns: u64,
}

/// Runs until the link fails or is not wanted any more.
pub(crate) fn run(thread: &ControlThread, mut receiver: Box<dyn ControlReceiver>) {
    types::thread::urgent(types::thread::Urgency::Commit);
    let cause = receive_until(&thread.gone, |poll| receiver.receive(poll), |bytes| thread.take(&bytes));
    if let Some(cause) = cause {
        thread.shared.tell(News::LinkLost { link: thread.link, cause });
    }
}

impl ControlThread {
    fn take(&self, bytes: &[u8]) -> Result<(), String> {
        let shared = &self.shared;
        shared.let_role_hear(&self.gone);
        match message::decode(bytes).map_err(|error| error.to_string())? {
            Message::Commit { generation, epoch } => {
                let gap_ns = shared.unlooked_ns();
                if gap_ns > self.stall_ns {
                    // Whatever this commit would release may be an old generation's: nothing leaves before the record is read again.
                    shared.raise(Event::HoldRelease(true));
                    shared.tell(News::Stalled { gap_ns });
                }
                let now = monotonic_ns();
                shared.heard_ns.store(now, Ordering::Release);
                types::fault::reach(types::fault::Point::BeforeRelease);
                shared.raise(Event::Committed { generation, epoch });
                // Not what the message says but what the pipeline took.
                if shared.committed() == epoch {
                    shared.progressed();
                    let resumed = shared.flights().committed(epoch);
                    if let Some(resumed) = resumed {
                        shared.stats.committed(now.saturating_sub(resumed));
                    }
                }
            }
            Message::Durable { generation, disk, epoch } => {
                // Numbers of another generation's epochs mean nothing here.
                if let Some(disk) = shared.disks.get(disk).filter(|_| generation == self.generation) {
                    disk.peer_durable(epoch);
                }
            }
            Message::Sight { generation, trouble } if generation == self.generation => {
                shared.heard_ns.store(monotonic_ns(), Ordering::Release);
                shared.tell(News::Sight { link: self.link, trouble });
            }
            Message::Sight { .. } => {}
            Message::Heartbeat { .. } => shared.heard_ns.store(monotonic_ns(), Ordering::Release),
            Message::Shutdown { reason } | Message::Refuse { reason } => shared.tell(News::PeerLeft { link: self.link, reason }),
            other => return Err(format!("the standby sent {} where only commits, Durable, Sight and heartbeats can come", other.name())),
        }
        Ok(())
    }
}
