//! The standby's end of the data connection: frames from the wire into staging slots. Not here: who owns a slot ([`crate::staging`]), what
//! is in it. Guards S7 (every header is checked against the geometry and the owner of the slot before a byte is directed anywhere) and S2
//! (only an ended slot with exactly its bytes is handed out).
//!
//! One read at a time is with the kernel, scattered over the rest of the slot being filled and a small stash behind it: a small epoch
//! arrives in one read, a large one lands in its slot without a copy, and the next header comes along with the tail of the last payload.

use std::net::{Shutdown, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use io_uring::{opcode, types};

use super::OPEN_DATA_BOUND;
use super::credit::Line;
use super::frame::{Frame, HEADER_BYTES, encode_shape};
use super::ring::Ring;
use super::socket::{self, Life};
use crate::error::{GoneCause, TransportError};
use crate::link::{DataReceiver, Geometry, SlotId};
use crate::staging::{Slot, Staging};

/// Bytes read ahead of a known destination: a small epoch with its headers fits, and what a large one leaves here is copied out of the cache.
const STASH_BYTES: usize = 64 * 1024;

/// One read is in flight at most.
const RING_ENTRIES: u32 = 4;

/// How long closing waits for the kernel to give the last read back after the connection was shut down; it takes microseconds.
const CLOSE_BOUND: Duration = Duration::from_secs(5);

/// Everything the kernel may write to; kept (leaked) should the kernel not give it back.
struct Buffers {
    staging: Arc<Staging>,
    stash: Box<[u8]>,
    iovecs: Box<[libc::iovec; 2]>,
    message: Box<libc::msghdr>,
}

/// A write whose bytes are still coming.
#[derive(Clone, Copy)]
struct Incoming {
    slot: SlotId,
    at: u32,
    remaining: u32,
}

/// What has been written to a slot since the sender got it.
#[derive(Clone, Copy, Default)]
struct Filled {
    bytes: u64,
    end: u32,
}

pub(crate) struct Receiver {
    ring: Ring,
    stream: Arc<TcpStream>,
    line: Arc<Line>,
    geometry: Geometry,
    /// `None` only while dropping.
    buffers: Option<Buffers>,
    in_flight: bool,
    /// Unparsed bytes of the stash.
    start: usize,
    end: usize,
    incoming: Option<Incoming>,
    filled: Vec<Filled>,
    life: Life,
}

// SAFETY: the raw pointers (in `iovecs` and `message`) point into memory that `Buffers` owns and that moves with it; nothing is tied to a
// thread. A read in flight when its submitting thread ends is cancelled by the kernel and submitted again.
unsafe impl Send for Receiver {}

impl Receiver {
    pub(crate) fn open(stream: TcpStream, staging: Arc<Staging>) -> Result<Receiver, TransportError> {
        let ring = Ring::new(RING_ENTRIES)?;
        let geometry = staging.geometry();
        let deadline = Instant::now() + OPEN_DATA_BOUND;
        socket::send_all(&stream, &encode_shape(geometry), deadline, "announcing the staging's shape")?;
        let stream = Arc::new(stream);
        let line = Line::new(Arc::clone(&stream));
        staging.attach(Arc::clone(&line) as _)?;
        line.flush();
        let empty = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        // SAFETY: a msghdr is plain data (integers and pointers) for which zeroes are valid: no name, no buffers, no control data.
        let message = unsafe { std::mem::zeroed::<libc::msghdr>() };
        let stash = vec![0; STASH_BYTES].into_boxed_slice();
        let buffers = Buffers { staging, stash, iovecs: Box::new([empty; 2]), message: Box::new(message) };
        let filled = vec![Filled::default(); geometry.slots as usize];
        let buffers = Some(buffers);
        Ok(Receiver {
            ring,
            stream,
            line,
            geometry,
            buffers,
            in_flight: false,
            start: 0,
            end: 0,
            incoming: None,
            filled,
            life: Life::default(),
        })
    }

    /// Works off the stash. A slot when one has been ended, `None` when more bytes are needed.
    fn parse(&mut self) -> Result<Option<Slot>, TransportError> {
        let Some(buffers) = &self.buffers else { return Ok(None) };
        loop {
            let stashed = &buffers.stash[self.start..self.end];
            if let Some(incoming) = self.incoming {
                let n = stashed.len().min(incoming.remaining as usize);
                if n == 0 {
                    return Ok(None);
                }
                // SAFETY: `check_write` found the range inside a slot that is this link's, so no guard reads it, no read of the kernel is
                // in flight while parsing, and the stash is other memory.
                unsafe {
                    let to = buffers.staging.slot_base(incoming.slot).add(incoming.at as usize);
                    std::ptr::copy_nonoverlapping(stashed.as_ptr(), to, n);
                }
                self.start += n;
                advance(&mut self.incoming, n as u32);
                continue;
            }
            let Some(header) = stashed.first_chunk::<HEADER_BYTES>() else {
                return Ok(None);
            };
            self.start += HEADER_BYTES;
            match Frame::decode(header)? {
                Frame::Write { slot, offset, len } => {
                    check_write(buffers, self.geometry, slot, offset, len)?;
                    let filled = &mut self.filled[slot.0 as usize];
                    filled.bytes += u64::from(len);
                    filled.end = filled.end.max(offset + len);
                    if len > 0 {
                        self.incoming = Some(Incoming { slot, at: offset, remaining: len });
                    }
                }
                Frame::End { slot, len } => {
                    check_owned(buffers, self.geometry, slot)?;
                    let filled = std::mem::take(&mut self.filled[slot.0 as usize]);
                    if filled.bytes != u64::from(len) || filled.end != len {
                        return Err(TransportError::protocol(format!(
                            "slot {slot} ended at {len} bytes, but {} were written up to offset {}",
                            filled.bytes, filled.end
                        )));
                    }
                    let slot = buffers.staging.lend(slot, len);
                    self.line.ended();
                    return Ok(Some(slot));
                }
            }
        }
    }

    /// Gives the kernel one read over everything that may come next.
    fn post_read(&mut self) -> Result<(), TransportError> {
        let Some(buffers) = &mut self.buffers else { return Ok(()) };
        // What is left is less than a header: `parse` stopped there.
        buffers.stash.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        let mut count = 0;
        if let Some(incoming) = self.incoming {
            let base = buffers.staging.slot_base(incoming.slot);
            // SAFETY: `check_write` found offset and length inside the slot.
            let to = unsafe { base.add(incoming.at as usize) };
            buffers.iovecs[0] = libc::iovec { iov_base: to.cast(), iov_len: incoming.remaining as usize };
            count = 1;
        }
        let rest = &mut buffers.stash[self.end..];
        buffers.iovecs[count] = libc::iovec { iov_base: rest.as_mut_ptr().cast(), iov_len: rest.len() };
        buffers.message.msg_iov = buffers.iovecs.as_mut_ptr();
        buffers.message.msg_iovlen = count + 1;
        let entry = opcode::RecvMsg::new(types::Fd(self.stream.as_raw_fd()), &mut *buffers.message).build();
        // SAFETY: message, iovecs, stash and staging live in `buffers`, which is kept until the read has completed (see `drop`); the slot
        // range is this link's and the stash is not touched while `in_flight`.
        unsafe { self.ring.push(&entry)? };
        self.in_flight = true;
        Ok(())
    }

    /// Accounts for a completed read.
    fn arrived(&mut self, result: i32) -> Result<(), TransportError> {
        self.in_flight = false;
        match result {
            0 => Err(TransportError::PeerGone { cause: GoneCause::Closed }),
            n if n > 0 => {
                let n = n as u32;
                let direct = self.incoming.map_or(0, |i| i.remaining.min(n));
                advance(&mut self.incoming, direct);
                self.end += (n - direct) as usize;
                Ok(())
            }
            // Cancelled when the thread that submitted it ended; or simply to be tried again.
            n if matches!(-n, libc::ECANCELED | libc::EINTR | libc::EAGAIN) => Ok(()),
            n => Err(TransportError::from_errno("reading pages from the link", -n)),
        }
    }

    fn next(&mut self, deadline: Instant) -> Result<Option<Slot>, TransportError> {
        let mut expired = false;
        loop {
            if !self.in_flight {
                if let Some(slot) = self.parse()? {
                    return Ok(Some(slot));
                }
                self.post_read()?;
            }
            if let Some((_, result)) = self.ring.pop() {
                self.arrived(result)?;
                continue;
            }
            if expired {
                self.line.flush();
                return Ok(None);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            self.ring.submit_and_wait(left)?;
            // Looked at after a last wait of no length, so that a poll with a time-out of zero sees what is there.
            expired = left.is_zero();
        }
    }
}

/// `n` more bytes of the current write have landed.
fn advance(current: &mut Option<Incoming>, n: u32) {
    if let Some(incoming) = current {
        incoming.at += n;
        incoming.remaining -= n;
        if incoming.remaining == 0 {
            *current = None;
        }
    }
}

fn check_owned(buffers: &Buffers, geometry: Geometry, slot: SlotId) -> Result<(), TransportError> {
    if slot.0 >= geometry.slots {
        return Err(TransportError::protocol(format!("slot {slot} does not exist, there are {}", geometry.slots)));
    }
    if !buffers.staging.writable(slot) {
        return Err(TransportError::protocol(format!("slot {slot} is being read here and is not the sender's")));
    }
    Ok(())
}

fn check_write(buffers: &Buffers, geometry: Geometry, slot: SlotId, offset: u32, len: u32) -> Result<(), TransportError> {
    check_owned(buffers, geometry, slot)?;
    match offset.checked_add(len) {
        Some(end) if end <= geometry.slot_bytes => Ok(()),
        _ => Err(TransportError::protocol(format!(
            "write of {len} bytes at offset {offset} is outside slot {slot} of {} bytes",
            geometry.slot_bytes
        ))),
    }
}

impl DataReceiver for Receiver {
    fn receive(&mut self, timeout: Duration) -> Result<Option<Slot>, TransportError> {
        self.life.check()?;
        let result = self.next(Instant::now() + timeout);
        self.life.note(&self.stream, result)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Both);
        let deadline = Instant::now() + CLOSE_BOUND;
        while self.in_flight {
            if self.ring.pop().is_some() {
                self.in_flight = false;
            } else if Instant::now() >= deadline || self.ring.submit_and_wait(CLOSE_BOUND).is_err() {
                break;
            }
        }
        match self.buffers.take() {
            Some(buffers) if self.in_flight => {
                tracing::error!("the kernel kept a read after its connection was closed: its staging is leaked rather than reused");
                std::mem::forget(buffers);
            }
            Some(buffers) => buffers.staging.detach(),
            None => {}
        }
    }
}
