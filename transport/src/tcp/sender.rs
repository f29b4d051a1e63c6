//! The primary's end of the data connection: posted writes as gather sends on io_uring, credits read on the same ring. Not here: the layout
//! of frames ([`super::frame`]), one message's iovecs ([`super::gather`]).
//!
//! Everything posted between two flushes goes out in as few sends as fit (a small epoch: one). Sends are linked, so that the kernel works
//! them off in order by itself; one that was cut short breaks the chain, and what is left is submitted again. Guards S7 on this side by
//! its [`SlotBook`].

use std::collections::VecDeque;
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use io_uring::{opcode, squeue, types};

use super::frame::{CREDIT_BYTES, Frame, SHAPE_BYTES, decode_shape};
use super::gather::Gather;
use super::ring::Ring;
use super::socket::{self, Life};
use crate::book::SlotBook;
use crate::error::{GoneCause, TransportError};
use crate::link::{DataSender, Geometry, Piece, RegionId, SlotId};
use crate::region::Region;

/// Regions one sender can know: a capture arena per epoch in flight and a few for the encoder.
pub const MAX_REGIONS: usize = 64;

/// Sends linked into one submission.
const MAX_CHAIN: usize = 8;

/// The chain, the credit read, and room to spare.
const RING_ENTRIES: u32 = 32;

/// Credits read at once, bytes.
const CREDIT_READ_BYTES: usize = 4096;

/// Spare messages kept for reuse; more than this were needed only while the network was slower than the encoder.
const SPARE_MESSAGES: usize = 16;

/// How long closing waits for the kernel to give its messages back after the connection was shut down; it takes microseconds.
const CLOSE_BOUND: Duration = Duration::from_secs(5);

/// User data of the credit read; messages use their serial number, which starts above it.
const CREDIT_READ: u64 = 0;

/// Everything the kernel may read from or write to; kept (leaked) should the kernel not give it back.
struct Buffers {
    regions: Vec<Arc<Region>>,
    /// Posted messages in order; the first `in_flight` of them are with the kernel.
    messages: VecDeque<Gather>,
    credit_bytes: Box<[u8; CREDIT_READ_BYTES]>,
}

pub(crate) struct Sender {
    ring: Ring,
    stream: TcpStream,
    book: SlotBook,
    /// `None` only while dropping.
    buffers: Option<Buffers>,
    spare: Vec<Gather>,
    /// Serial number of the first message in `messages`.
    first_serial: u64,
    /// Messages before this serial number have been flushed.
    flushed_serial: u64,
    in_flight: usize,
    credit_read_posted: bool,
    /// Bytes of a credit that came in part.
    credit_part: usize,
    completed: u64,
    reported: u64,
    life: Life,
}

// SAFETY: the raw pointers in the messages point into memory that `Buffers` owns and that does not move; nothing is tied to a thread. An
// operation in flight when its submitting thread ends is cancelled by the kernel and submitted again.
unsafe impl Send for Sender {}

impl Sender {
    pub(crate) fn open(stream: TcpStream, geometry: Geometry, deadline: Instant) -> Result<Sender, TransportError> {
        let ring = Ring::new(RING_ENTRIES)?;
        let mut shape = [0; SHAPE_BYTES];
        socket::recv_exact(&stream, &mut shape, deadline, "waiting for the standby to open its staging")?;
        let announced = decode_shape(&shape)?;
        if announced != geometry {
            return Err(TransportError::protocol(format!("its Welcome spoke of {geometry:?}, its staging is {announced:?}")));
        }
        let credit_bytes = Box::new([0; CREDIT_READ_BYTES]);
        Ok(Sender {
            ring,
            stream,
            book: SlotBook::new(geometry),
            buffers: Some(Buffers { regions: Vec::new(), messages: VecDeque::new(), credit_bytes }),
            spare: Vec::new(),
            first_serial: CREDIT_READ + 1,
            flushed_serial: CREDIT_READ + 1,
            in_flight: 0,
            credit_read_posted: false,
            credit_part: 0,
            completed: 0,
            reported: 0,
            life: Life::default(),
        })
    }

    /// The message that posts go to now, with room by `fits`.
    fn tail(&mut self, fits: impl Fn(&Gather) -> bool) -> &mut Gather {
        // `buffers` is there in every call but `drop`, which does not come here.
        let messages = &mut self.buffers.get_or_insert_with(|| unreachable!("posting while dropping")).messages;
        if !messages.back().is_some_and(&fits) {
            let mut fresh = self.spare.pop().unwrap_or_else(Gather::new);
            fresh.reset();
            messages.push_back(fresh);
        }
        let last = messages.len() - 1;
        &mut messages[last]
    }

    /// Keeps a read for credits posted, and a chain of sends when none is in flight.
    fn pump(&mut self) -> Result<(), TransportError> {
        let Some(buffers) = &mut self.buffers else { return Ok(()) };
        if !self.credit_read_posted {
            let to = buffers.credit_bytes[self.credit_part..].as_mut_ptr();
            let len = (CREDIT_READ_BYTES - self.credit_part) as u32;
            let entry = opcode::Recv::new(types::Fd(self.stream.as_raw_fd()), to, len).build().user_data(CREDIT_READ);
            // SAFETY: `credit_bytes` is boxed, touched only while no read is posted, and kept until the read has completed (see `drop`).
            unsafe { self.ring.push(&entry)? };
            self.credit_read_posted = true;
        }
        if self.in_flight == 0 {
            let flushed = (self.flushed_serial - self.first_serial) as usize;
            let count = flushed.min(MAX_CHAIN);
            for (i, message) in buffers.messages.iter_mut().take(count).enumerate() {
                // WAITALL: the kernel itself goes on after a short send. NOSIGNAL: a dead peer is an error, not a SIGPIPE.
                let flags = (libc::MSG_WAITALL | libc::MSG_NOSIGNAL) as u32;
                let mut entry = opcode::SendMsg::new(types::Fd(self.stream.as_raw_fd()), message.message())
                    .flags(flags)
                    .build()
                    .user_data(self.first_serial + i as u64);
                if i + 1 < count {
                    entry = entry.flags(squeue::Flags::IO_LINK);
                }
                // SAFETY: the message's header, frame headers and iovecs are on the heap and untouched while `in_flight`; the regions it points into are
                // registered, that is kept mapped; all of it is kept until the send has completed (see `drop`).
                unsafe { self.ring.push(&entry)? };
                message.in_flight = true;
            }
            self.in_flight = count;
        }
        Ok(())
    }

    /// Takes in all completions that are there.
    fn reap(&mut self) -> Result<(), TransportError> {
        while let Some((user_data, result)) = self.ring.pop() {
            if user_data == CREDIT_READ {
                self.credit_read_posted = false;
                self.credits_arrived(result)?;
            } else {
                self.sent(user_data, result)?;
            }
        }
        Ok(())
    }

    fn sent(&mut self, serial: u64, result: i32) -> Result<(), TransportError> {
        let Some(buffers) = &mut self.buffers else { return Ok(()) };
        self.in_flight -= 1;
        let at = (serial - self.first_serial) as usize;
        let Some(message) = buffers.messages.get_mut(at) else {
            return Err(TransportError::Misuse(format!("completion of unknown send {serial}")));
        };
        message.in_flight = false;
        let complete = match result {
            n if n >= 0 => message.advance(n as usize),
            // Cancelled because the one before it in the chain was cut short, or because the submitting thread ended; or to be tried again.
            n if matches!(-n, libc::ECANCELED | libc::EINTR | libc::EAGAIN) => false,
            n => return Err(TransportError::from_errno("sending pages over the link", -n)),
        };
        // The stream's order is the order of messages: the chain never completes one before an earlier one.
        if complete
            && at == 0
            && let Some(message) = buffers.messages.pop_front()
        {
            self.first_serial += 1;
            self.completed = self.completed.max(message.ticket);
            if self.spare.len() < SPARE_MESSAGES {
                self.spare.push(message);
            }
        } else if complete {
            return Err(TransportError::Misuse(format!("send {serial} overtook an earlier one")));
        }
        Ok(())
    }

    fn credits_arrived(&mut self, result: i32) -> Result<(), TransportError> {
        let Some(buffers) = &mut self.buffers else { return Ok(()) };
        let n = match result {
            0 => return Err(TransportError::PeerGone { cause: GoneCause::Closed }),
            n if n > 0 => n as usize,
            n if matches!(-n, libc::ECANCELED | libc::EINTR | libc::EAGAIN) => return Ok(()),
            n => return Err(TransportError::from_errno("reading credits from the link", -n)),
        };
        let bytes = &mut buffers.credit_bytes;
        let available = self.credit_part + n;
        let whole = available - available % CREDIT_BYTES;
        for credit in bytes[..whole].chunks_exact(CREDIT_BYTES) {
            self.book.granted(SlotId(u32::from_le_bytes([credit[0], credit[1], credit[2], credit[3]])))?;
        }
        bytes.copy_within(whole..available, 0);
        self.credit_part = available - whole;
        Ok(())
    }

    /// Runs `step` until it yields something or `timeout` is over, moving sends and credits along.
    fn drive<T>(&mut self, timeout: Duration, mut step: impl FnMut(&mut Sender) -> Option<T>) -> Result<Option<T>, TransportError> {
        self.life.check()?;
        let deadline = Instant::now() + timeout;
        let mut expired = false;
        let result = loop {
            if let Err(error) = self.ring.peek().and_then(|()| self.reap()) {
                break Err(error);
            }
            if let Some(done) = step(self) {
                // Whoever calls for whatever reason keeps the sends moving.
                let more = self.in_flight == 0 && self.flushed_serial > self.first_serial;
                break if more { self.pump().and_then(|()| self.ring.submit()) } else { Ok(()) }.map(|()| Some(done));
            }
            if expired {
                break Ok(None);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            expired = left.is_zero();
            if let Err(error) = self.pump().and_then(|()| self.ring.submit_and_wait(left)) {
                break Err(error);
            }
        };
        self.life.note(&self.stream, result)
    }

    /// Address of a piece's first byte, after checking its range.
    fn piece_base(&self, piece: &Piece) -> Result<*const u8, TransportError> {
        let region = self.buffers.as_ref().and_then(|b| b.regions.get(piece.region.0 as usize));
        let region = region.ok_or_else(|| TransportError::Misuse(format!("region {} is not registered", piece.region.0)))?;
        Ok(region.as_ptr().wrapping_add(piece.offset))
    }

    fn check_pieces(&self, pieces: &[Piece]) -> Result<usize, TransportError> {
        let mut total = 0_usize;
        // One look at a region's claims for each run of pieces from it.
        for run in pieces.chunk_by(|a, b| a.region == b.region) {
            self.piece_base(&run[0])?;
            let Some(buffers) = &self.buffers else { break };
            let region = &buffers.regions[run[0].region.0 as usize];
            region.with_readable(run.iter().map(|p| p.offset..p.offset.saturating_add(p.len)), |_| ())?;
            total = run.iter().fold(total, |sum, p| sum.saturating_add(p.len));
        }
        Ok(total)
    }
}

impl DataSender for Sender {
    fn geometry(&self) -> Geometry {
        self.book.geometry()
    }

    fn register(&mut self, region: Arc<Region>) -> Result<RegionId, TransportError> {
        let Some(buffers) = &mut self.buffers else { return Err(TransportError::PeerGone { cause: GoneCause::ClosedHere }) };
        if buffers.regions.len() == MAX_REGIONS {
            return Err(TransportError::Misuse(format!("more than {MAX_REGIONS} regions registered")));
        }
        buffers.regions.push(region);
        Ok(RegionId(buffers.regions.len() as u32 - 1))
    }

    fn acquire_among(&mut self, most: u32, timeout: Duration) -> Result<Option<SlotId>, TransportError> {
        self.drive(timeout, |sender| sender.book.acquire(most))
    }

    fn post_write(&mut self, slot: SlotId, offset: u32, pieces: &[Piece]) -> Result<(), TransportError> {
        self.life.check()?;
        let total = self.check_pieces(pieces)?;
        self.book.post(slot, offset, total)?;
        let mut offset = offset;
        let mut rest = pieces.iter().copied().filter(|p| p.len > 0).peekable();
        // A write is split into as many frames as the messages' bounds ask for: usually one.
        while rest.peek().is_some() {
            let frame_pieces = {
                let tail = self.tail(|m| m.room() > 0);
                let (mut room, mut iovecs) = (tail.room(), tail.iovec_room() - 1);
                let mut taken: Vec<Piece> = Vec::with_capacity(iovecs.min(rest.size_hint().1.unwrap_or(iovecs)));
                while let Some(next) = rest.peek_mut() {
                    let adjacent = taken.last().is_some_and(|l| l.region == next.region && l.offset + l.len == next.offset);
                    if room == 0 || (!adjacent && iovecs == 0) {
                        break;
                    }
                    let len = next.len.min(room);
                    match taken.last_mut() {
                        Some(last) if adjacent => last.len += len,
                        _ => {
                            taken.push(Piece { len, ..*next });
                            iovecs -= 1;
                        }
                    }
                    room -= len;
                    if len == next.len {
                        rest.next();
                    } else {
                        next.offset += len;
                        next.len -= len;
                    }
                }
                taken
            };
            let len = frame_pieces.iter().map(|p| p.len).sum::<usize>() as u32;
            self.tail(|m| m.room() > 0).push_header(Frame::Write { slot, offset, len });
            for piece in &frame_pieces {
                let base = self.piece_base(piece)?;
                self.tail(|_| true).push_bytes(base, piece.len);
            }
            offset += len;
        }
        Ok(())
    }

    fn post_end(&mut self, slot: SlotId, len: u32, ticket: u64) -> Result<(), TransportError> {
        self.life.check()?;
        self.book.end(slot, len, ticket)?;
        let tail = self.tail(Gather::has_header_room);
        tail.push_header(Frame::End { slot, len });
        tail.ticket = ticket;
        Ok(())
    }

    fn flush(&mut self) -> Result<(), TransportError> {
        self.life.check()?;
        let posted = self.buffers.as_ref().map_or(0, |b| b.messages.len());
        self.flushed_serial = self.first_serial + posted as u64;
        let moved = self.reap().and_then(|()| self.pump()).and_then(|()| self.ring.submit()).and_then(|()| self.reap());
        self.life.note(&self.stream, moved)
    }

    fn completed(&mut self, timeout: Duration) -> Result<Option<u64>, TransportError> {
        let done = self.drive(timeout, |sender| {
            let idle = sender.buffers.as_ref().is_none_or(|b| b.messages.is_empty());
            (sender.completed > sender.reported || idle).then_some(sender.completed)
        })?;
        let news = done.filter(|ticket| *ticket > self.reported);
        self.reported = self.reported.max(news.unwrap_or(0));
        Ok(news)
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Both);
        let deadline = Instant::now() + CLOSE_BOUND;
        let mut outstanding = self.in_flight + usize::from(self.credit_read_posted);
        while outstanding > 0 {
            if self.ring.pop().is_some() {
                outstanding -= 1;
            } else if Instant::now() >= deadline || self.ring.submit_and_wait(CLOSE_BOUND).is_err() {
                break;
            }
        }
        if outstanding > 0 {
            tracing::error!(
                outstanding,
                "the kernel kept sends after their connection was closed: their buffers are leaked rather than reused"
            );
            std::mem::forget(self.buffers.take());
        }
    }
}
