//! One gather send: frame headers and pieces of regions as a list of iovecs, built up, handed to the kernel, advanced when it took a part.
//! Not here: when it is submitted ([`super::sender`]), whether its ranges are allowed (checked before they get here).

use super::frame::{Frame, HEADER_BYTES};

/// The kernel's limit on one message (UIO_MAXIOV).
pub(crate) const MAX_IOVECS: usize = 1024;

/// Bytes in one message: small enough that tickets complete while a large epoch is under way, large enough to cost few system calls.
pub(crate) const MAX_BYTES: usize = 4 << 20;

/// Headers in one message. Each comes with at least one iovec of its own, so this is never the tighter bound by much.
const MAX_HEADERS: usize = 256;

/// A message under construction or in flight. Its own buffers never move or grow once made: the kernel holds pointers into them.
pub(crate) struct Gather {
    headers: Box<[[u8; HEADER_BYTES]]>,
    headers_used: usize,
    iovecs: Vec<libc::iovec>,
    /// First iovec with bytes left to send.
    first: usize,
    message: Box<libc::msghdr>,
    remaining: usize,
    /// Highest ticket whose slot ends in this message; 0 is none.
    pub(crate) ticket: u64,
    pub(crate) in_flight: bool,
}

impl Gather {
    pub(crate) fn new() -> Gather {
        // SAFETY: a msghdr is plain data (integers and pointers) for which zeroes are valid: no name, no buffers, no control data.
        let message = unsafe { std::mem::zeroed::<libc::msghdr>() };
        Gather {
            headers: vec![[0; HEADER_BYTES]; MAX_HEADERS].into_boxed_slice(),
            headers_used: 0,
            iovecs: Vec::with_capacity(MAX_IOVECS),
            first: 0,
            message: Box::new(message),
            remaining: 0,
            ticket: 0,
            in_flight: false,
        }
    }

    /// Makes it new again, keeping its buffers.
    pub(crate) fn reset(&mut self) {
        debug_assert!(!self.in_flight, "the kernel still reads this message");
        self.headers_used = 0;
        self.iovecs.clear();
        self.first = 0;
        self.remaining = 0;
        self.ticket = 0;
    }

    /// Bytes it can still take behind a header, or 0.
    pub(crate) fn room(&self) -> usize {
        if self.in_flight || self.headers_used == MAX_HEADERS || self.iovecs.len() + 2 > MAX_IOVECS {
            0
        } else {
            MAX_BYTES.saturating_sub(self.remaining + HEADER_BYTES)
        }
    }

    /// Room for one more header.
    pub(crate) fn has_header_room(&self) -> bool {
        !self.in_flight && self.headers_used < MAX_HEADERS && self.iovecs.len() < MAX_IOVECS
    }

    /// Iovecs it can still take.
    pub(crate) fn iovec_room(&self) -> usize {
        MAX_IOVECS - self.iovecs.len()
    }

    pub(crate) fn push_header(&mut self, frame: Frame) {
        let header = &mut self.headers[self.headers_used];
        *header = frame.encode();
        self.headers_used += 1;
        self.iovecs.push(libc::iovec { iov_base: header.as_mut_ptr().cast(), iov_len: HEADER_BYTES });
        self.remaining += HEADER_BYTES;
    }

    pub(crate) fn push_bytes(&mut self, base: *const u8, len: usize) {
        assert!(self.iovecs.len() < MAX_IOVECS, "the message is full");
        self.iovecs.push(libc::iovec { iov_base: base.cast_mut().cast(), iov_len: len });
        self.remaining += len;
    }

    /// The message header for the kernel, over what is left to send.
    pub(crate) fn message(&mut self) -> *const libc::msghdr {
        let rest = &mut self.iovecs[self.first..];
        self.message.msg_iov = rest.as_mut_ptr();
        self.message.msg_iovlen = rest.len();
        &raw const *self.message
    }

    /// The kernel took `n` bytes. True: that was everything.
    pub(crate) fn advance(&mut self, mut n: usize) -> bool {
        self.remaining -= n;
        while let Some(iovec) = self.iovecs.get_mut(self.first) {
            if n < iovec.iov_len {
                iovec.iov_base = iovec.iov_base.cast::<u8>().wrapping_add(n).cast();
                iovec.iov_len -= n;
                break;
            }
            n -= iovec.iov_len;
            self.first += 1;
        }
        self.remaining == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::SlotId;

    #[test]
    fn a_partly_sent_message_continues_at_the_very_next_byte() {
        let bytes: Vec<u8> = (0..100).collect();
        let mut gather = Gather::new();
        gather.push_header(Frame::End { slot: SlotId(1), len: 100 });
        gather.push_bytes(bytes.as_ptr(), 60);
        gather.push_bytes(bytes[60..].as_ptr(), 40);
        assert!(!gather.advance(HEADER_BYTES + 60 + 3));
        assert_eq!(gather.first, 2);
        assert_eq!(gather.iovecs[2].iov_base.cast_const().cast::<u8>(), bytes[63..].as_ptr());
        assert_eq!(gather.iovecs[2].iov_len, 37);
        assert!(gather.advance(37));
    }
}
