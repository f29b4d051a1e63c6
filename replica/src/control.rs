//! The control thread of one link: what the primary says beside pages. Guards S7: a primary that says more than can be heard has to wait.

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
        self.shared.let_role_hear(&self.gone);
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
                let name = other.name();
                return Err(format!("the primary sent {name} where only heartbeats, Input, Issued, Recorded and Shutdown can come"));
            }
        }
        self.shared.heard_ns.store(monotonic_ns(), Ordering::Release);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use checkpoint::GuestMap;
    use crossbeam::channel::{Sender, bounded, unbounded};
    use transport::TransportError;
    use types::Generation;

    use super::*;
    use crate::shared::NEWS;

    /// Says `Recorded` so many times.
    struct Flood {
        left: usize,
        begun: Sender<()>,
    }

    impl ControlReceiver for Flood {
        fn receive(&mut self, _: Duration) -> Result<Option<Vec<u8>>, TransportError> {
            self.left = self.left.checked_sub(1).ok_or(TransportError::Misuse("the flood is over".to_owned()))?;
            if self.left == NEWS {
                let _ = self.begun.send(());
            }
            Ok(Some(message::encode(&Message::Recorded { generation: Generation(1) }).unwrap()))
        }
    }

    #[test]
    fn a_primary_that_talks_faster_than_it_is_heard_has_to_wait() {
        let (apply, _jobs) = unbounded();
        let (role, news) = unbounded();
        let shared = Shared::new(GuestMap::new(std::iter::once(0..1)), Arc::default(), Arc::new(|_| {}), apply, role);
        let thread = ControlThread { shared, link: 1, gone: Arc::default() };
        let (begun, flooded) = bounded(0);
        let talking = std::thread::spawn(move || run(&thread, Box::new(Flood { left: 2 * NEWS + 1, begun })));

        // One message is in the thread's hands.
        flooded.recv().unwrap();
        let mut heard = Vec::new();
        while let Ok(item) = news.recv() {
            assert!(news.len() <= NEWS, "{} news wait", news.len());
            heard.push(item);
        }

        talking.join().unwrap();
        assert!(matches!(heard.pop(), Some(News::LinkLost { .. })));
        assert_eq!(heard.len(), 2 * NEWS + 1, "nothing is lost");
    }
}
