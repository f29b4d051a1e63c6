//! The mirror thread of one link: tells the standby what the guest receives.
//!
//! A guest that is taken over goes on from its last committed epoch. What it received after that is lost to it, and its peers would have to send it again: TCP does so
//! only after 200 ms at the least, which is most of what a client sees of a failover. So the standby is given a copy, and gives it to the guest again.
//!
//! Lives here: the copies and their way. Not here: which of them are a thing of the past (the standby knows what it committed). Guards nothing: it is best effort, what
//! is lost is sent again by its sender; and it never delays a page, a commit or the guest.

use std::sync::Arc;
use std::time::{Duration, Instant};

use checkpoint::message::{self, InputFrame, Message};
use crossbeam::channel::{Receiver, Sender, bounded};
use transport::ControlSender;
use types::{Epoch, Generation};

/// Copies that may wait. When there are more the newest are left out.
const WAITING: usize = 1024;
/// Bytes of frames in one message, well below the link's limit for one.
const MESSAGE_BYTES: usize = 32 << 10;
/// Time between two messages: at a high rate of requests the mirror costs a bounded part of a core, at a low one a frame is on its way at once.
const SPACING: Duration = Duration::from_micros(250);

/// The near end: takes copies.
pub(crate) struct Mirror(Sender<InputFrame>);

impl Mirror {
    /// The two ends.
    pub(crate) fn new() -> (Mirror, Receiver<InputFrame>) {
        let (near, far) = bounded(WAITING);
        (Mirror(near), far)
    }

    /// Takes a copy of a frame that the guest received in `epoch`.
    pub(crate) fn copy(&self, epoch: Epoch, port: u8, frame: &[u8]) {
        if frame.len() <= MESSAGE_BYTES && !self.0.is_full() {
            let _ = self.0.try_send(InputFrame { epoch, port, bytes: frame.to_vec() });
        }
    }
}

/// Sends copies until the near end is dropped or the link fails.
pub(crate) fn run(frames: &Receiver<InputFrame>, generation: Generation, control: &Arc<dyn ControlSender>) {
    types::thread::precise_timers();
    let mut last = Instant::now();
    while let Ok(first) = frames.recv() {
        if let Some(left) = SPACING.checked_sub(last.elapsed()) {
            // Not a wait for an event: the pace of this thread.
            std::thread::sleep(left);
        }
        let mut bytes = first.bytes.len();
        let mut batch = vec![first];
        while bytes < MESSAGE_BYTES / 2
            && let Ok(frame) = frames.try_recv()
        {
            bytes += frame.bytes.len();
            batch.push(frame);
        }
        let sent = message::encode(&Message::Input { generation, frames: batch });
        let sent =
            sent.map_err(|error| error.to_string()).and_then(|bytes| control.send_if_quiet(&bytes).map_err(|error| error.to_string()));
        if let Err(error) = sent {
            tracing::debug!(error, "the mirror ends");
            return;
        }
        last = Instant::now();
    }
}
