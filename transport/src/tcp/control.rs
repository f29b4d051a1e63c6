//! The control connection: `[length u32][bytes]`, both ways. Not here: what the messages mean. Guards S7: a length over the limit closes
//! the link before anything is allocated for it.

use std::net::{Shutdown, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::poll::PollFlags;

use super::socket::{Life, recv_now, send_all, wait_ready};
use crate::error::{GoneCause, TransportError};
use crate::link::{ControlReceiver, ControlSender, MAX_CONTROL_BYTES};

/// A peer that takes no control message for this long has stopped reading: the socket buffer holds thousands of heartbeats.
const SEND_BOUND: Duration = Duration::from_secs(2);

/// With more bytes than this not acknowledged the connection is not quiet: at 1 Gbit/s they take half a millisecond.
const QUIET_BYTES: libc::c_int = 64 * 1024;

/// Length prefix, bytes.
const PREFIX_BYTES: usize = 4;

/// Read buffer, bytes: one longest message and a few small ones behind it.
const READ_BYTES: usize = MAX_CONTROL_BYTES + 4096;

/// Both ends of a control connection.
pub(crate) fn split(stream: TcpStream) -> (Arc<dyn ControlSender>, Box<dyn ControlReceiver>) {
    let stream = Arc::new(stream);
    let sender = Sender { stream: Arc::clone(&stream), state: Mutex::new(SendState { broken: false, frame: Vec::new() }) };
    (Arc::new(sender), Box::new(Receiver { stream, buffer: vec![0; READ_BYTES].into(), start: 0, end: 0, life: Life::default() }))
}

struct Sender {
    stream: Arc<TcpStream>,
    state: Mutex<SendState>,
}

struct SendState {
    /// A message was cut short: nothing after it could be understood.
    broken: bool,
    /// Prefix and message side by side, so that one system call sends both.
    frame: Vec<u8>,
}

impl ControlSender for Sender {
    fn send(&self, message: &[u8]) -> Result<(), TransportError> {
        if message.len() > MAX_CONTROL_BYTES {
            return Err(TransportError::Oversize { len: message.len() });
        }
        self.send_in_turn(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner), message)
    }

    fn send_if_quiet(&self, message: &[u8]) -> Result<bool, TransportError> {
        if message.len() > MAX_CONTROL_BYTES {
            return Err(TransportError::Oversize { len: message.len() });
        }
        let Ok(mut state) = self.state.try_lock() else { return Ok(false) };
        if unsent(&self.stream) > QUIET_BYTES {
            return Ok(false);
        }
        self.send_in_turn(&mut state, message).map(|()| true)
    }
}

impl Sender {
    /// Sends while holding the turn. A holder that panicked may have sent half a message; `broken` is set before sending begins for that reason.
    fn send_in_turn(&self, state: &mut SendState, message: &[u8]) -> Result<(), TransportError> {
        if state.broken {
            return Err(TransportError::PeerGone { cause: GoneCause::ClosedHere });
        }
        state.broken = true;
        let SendState { frame, .. } = state;
        frame.clear();
        frame.extend_from_slice(&(message.len() as u32).to_le_bytes());
        frame.extend_from_slice(message);
        let sent = send_all(&self.stream, frame, Instant::now() + SEND_BOUND, "sending a control message the peer does not read");
        if let Err(error) = sent {
            // The shutdown may fail because the connection is gone already, which is what it is for.
            let _ = self.stream.shutdown(Shutdown::Both);
            return Err(error);
        }
        state.broken = false;
        Ok(())
    }
}

/// Bytes written and not yet acknowledged by the peer (tcp(7), SIOCOUTQ); 0 when the kernel does not say.
fn unsent(stream: &TcpStream) -> libc::c_int {
    let mut bytes = 0;
    // SAFETY: SIOCOUTQ (the same number as TIOCOUTQ) writes one int, which `bytes` is, for a descriptor that `stream` keeps open.
    if unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) } == 0 { bytes } else { 0 }
}

struct Receiver {
    stream: Arc<TcpStream>,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    life: Life,
}

impl Receiver {
    /// The first complete message in the buffer.
    fn take(&mut self) -> Result<Option<Vec<u8>>, TransportError> {
        let bytes = &self.buffer[self.start..self.end];
        let Some((prefix, rest)) = bytes.split_first_chunk::<PREFIX_BYTES>() else {
            return Ok(None);
        };
        let len = u32::from_le_bytes(*prefix) as usize;
        if len > MAX_CONTROL_BYTES {
            return Err(TransportError::protocol(format!("control message of {len} bytes, the limit is {MAX_CONTROL_BYTES}")));
        }
        let Some(message) = rest.get(..len) else {
            return Ok(None);
        };
        let message = message.to_vec();
        self.start += PREFIX_BYTES + len;
        Ok(Some(message))
    }

    /// Reads what is there, perhaps nothing.
    fn fill(&mut self) -> Result<(), TransportError> {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        // Never full here: `take` found no complete message, and the buffer holds the longest with room to spare.
        self.end += recv_now(&self.stream, &mut self.buffer[self.end..])?.unwrap_or(0);
        Ok(())
    }

    fn next(&mut self, deadline: Instant) -> Result<Option<Vec<u8>>, TransportError> {
        loop {
            if let Some(message) = self.take()? {
                return Ok(Some(message));
            }
            // Waiting first: a receiver is nearly always early, and a read that finds nothing is a wasted system call on the commit's path.
            if !wait_ready(&*self.stream, PollFlags::POLLIN, deadline)? {
                return Ok(None);
            }
            self.fill()?;
        }
    }
}

impl ControlReceiver for Receiver {
    fn receive(&mut self, timeout: Duration) -> Result<Option<Vec<u8>>, TransportError> {
        self.life.check()?;
        let result = self.next(Instant::now() + timeout);
        self.life.note(&self.stream, result)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        // A link without its receiver is over, also when a sender's handle lives on in some thread: the peer must see that at once.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}
