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
/// Shortest time between two messages: frames that come together go together.
const SPACING: Duration = Duration::from_micros(40);
/// Time between two messages over a longer stretch: at a high rate of requests the mirror costs a bounded part of a core on either side.
const PACE: Duration = Duration::from_micros(250);
/// Messages that may be ahead of the pace.
const AHEAD: u32 = 32;

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
        if frame.len() <= MESSAGE_BYTES && !self.0.is_full() && !is_bare_acknowledgement(frame) {
            let _ = self.0.try_send(InputFrame { epoch, port, bytes: frame.to_vec() });
        }
    }
}

/// Whether the frame is a TCP segment over IPv4 that carries nothing but an acknowledgement: those are half of all frames, and nobody misses one. Anything that is not
/// plainly so counts as something else.
fn is_bare_acknowledgement(frame: &[u8]) -> bool {
    const ETHERNET: usize = 14;
    const IPV4: [u8; 2] = [0x08, 0x00];
    const TCP: u8 = 6;
    /// SYN, FIN and RST (RFC 9293, 3.1).
    const MEANS_SOMETHING: u8 = 0b111;
    let bare = || {
        let packet = frame.get(ETHERNET..).filter(|_| frame.get(12..14) == Some(&IPV4))?;
        let header = usize::from(packet.first()? & 0xf) * 4;
        let total = usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]));
        let segment = packet.get(header..total).filter(|_| packet.get(9) == Some(&TCP))?;
        let data = usize::from(segment.get(12)? >> 4) * 4;
        Some(segment.len() == data && segment.get(13)? & MEANS_SOMETHING == 0)
    };
    bare().unwrap_or(false)
}

/// When the next message may go: [`SPACING`] after the last one, and [`PACE`] over a longer stretch.
struct Pace {
    /// When the pace has been kept until now.
    kept: Instant,
    last: Instant,
}

impl Pace {
    fn new(now: Instant) -> Pace {
        Pace { kept: now, last: now }
    }

    /// How long to wait before a message at `now`; it counts as sent then.
    fn wait(&mut self, now: Instant) -> Duration {
        let at = now.max(self.last + SPACING).max(self.kept);
        self.last = at;
        // No further behind than so many messages: what was not used is not saved up for ever.
        self.kept = (self.kept + PACE).max(at.checked_sub(PACE * AHEAD).unwrap_or(at));
        at - now
    }
}

/// Sends copies until the near end is dropped or the link fails.
pub(crate) fn run(frames: &Receiver<InputFrame>, generation: Generation, control: &Arc<dyn ControlSender>) {
    // A copy that waits for its turn on a busy core while the process dies is lost, and with it 200 ms of its client; the pace bounds what this takes from others.
    types::thread::urgent(types::thread::Urgency::Capture);
    let mut pace = Pace::new(Instant::now());
    while let Ok(first) = frames.recv() {
        let wait = pace.wait(Instant::now());
        if !wait.is_zero() {
            // Not a wait for an event: the pace of this thread.
            std::thread::sleep(wait);
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
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An IPv4 TCP frame with these flags and this many bytes of data, padded to Ethernet's least length.
    fn segment(flags: u8, data: usize) -> Vec<u8> {
        let mut frame = vec![0; 14 + 20 + 20 + data];
        frame[12..14].copy_from_slice(&[8, 0]);
        frame[14] = 0x45;
        frame[16..18].copy_from_slice(&(40 + data as u16).to_be_bytes());
        frame[23] = 6;
        frame[46] = 5 << 4;
        frame[47] = flags;
        frame.resize(frame.len().max(60), 0);
        frame
    }

    #[test]
    fn only_a_segment_that_carries_nothing_is_left_out() {
        const ACK: u8 = 0x10;
        assert!(is_bare_acknowledgement(&segment(ACK, 0)));
        for kept in [segment(ACK, 1), segment(ACK | 1, 0), segment(2, 0), segment(4, 0), vec![0; 60], vec![8; 3], Vec::new()] {
            assert!(!is_bare_acknowledgement(&kept), "{kept:?}");
        }
        let mut udp = segment(ACK, 0);
        udp[23] = 17;
        assert!(!is_bare_acknowledgement(&udp));
    }

    #[test]
    fn a_burst_goes_at_once_and_a_flood_at_its_pace() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let mut now = start + PACE * AHEAD * 4;
        for _ in 0..AHEAD {
            assert!(pace.wait(now) <= SPACING);
            now += SPACING;
        }
        let flood = now;
        for _ in 0..1000 {
            now += pace.wait(now);
        }
        assert!(now - flood >= PACE * (1000 - AHEAD), "{:?}", now - flood);
    }
}
