//! The control thread of one link: what the primary says beside pages.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use checkpoint::message::{self, Message};
use transport::ControlReceiver;
use transport::pump::receive_until;
use types::clock::monotonic_ns;

use crate::shared::{News, Shared};

/// What the thread is made from.
pub(crate) struct ControlThread {
    pub(crate) shared: Arc<Shared>,
    pub(crate) link: u64,
    pub(crate) gone: Arc<AtomicBool>,
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
        let link = self.link;
        match message::decode(bytes).map_err(|error| error.to_string())? {
            Message::Heartbeat { .. } => {}
            Message::Input { generation, frames } => {
                let (ours, committed) = {
                    let staging = self.shared.staging();
                    (staging.generation(), staging.committed())
                };
                if generation == ours {
                    self.shared.received().add(frames, committed);
                }
            }
            Message::Recorded { generation } => self.shared.tell(News::Recorded { link, generation }),
            Message::Issued { generation, disk, epoch } => {
                let (ours, committed) = {
                    let staging = self.shared.staging();
                    (staging.generation(), staging.committed())
                };
                if generation == ours {
                    if epoch > committed {
                        return Err(format!(
                            "the primary says that epoch {epoch} is on {disk}, and the newest that is committed is {committed}"
                        ));
                    }
                    self.shared.issued(disk, generation, epoch);
                }
            }
            Message::Shutdown { reason } => self.shared.tell(News::PeerShutdown { link, reason }),
            other => {
                return Err(format!("the primary sent {other:?} where only heartbeats, Input, Issued, Recorded and Shutdown can come"));
            }
        }
        self.shared.heard_ns.store(monotonic_ns(), Ordering::Release);
        Ok(())
    }
}
