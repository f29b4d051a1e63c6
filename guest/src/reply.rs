//! The reply half of RESP2: a bounded buffer that replies are written to.
//!
//! A reply that would pass the bound is taken back whole and replaced by an error, so a client never sees half of one.

use alloc::vec::Vec;

/// Longest single reply: sixteen values of the largest size (an MGET, an LRANGE) with their framing fit.
pub const MAX_REPLY: usize = 1024 * 1024 + 4096;

/// Replies waiting to be sent, in order.
#[derive(Debug, Default)]
pub struct Reply {
    bytes: Vec<u8>,
    /// Where the reply being written starts.
    start: usize,
    /// The reply being written did not fit.
    overflow: bool,
}

impl Reply {
    /// An empty buffer.
    #[must_use]
    pub fn new() -> Reply {
        Reply::default()
    }

    /// What has been written.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Forgets everything; a buffer that a long reply made large is given back.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.start = 0;
        if self.bytes.capacity() > 256 * 1024 {
            self.bytes = Vec::new();
        }
    }

    /// Marks the start of a reply: what follows until [`Reply::finish`] is kept whole or replaced by an error.
    pub fn begin(&mut self) {
        self.start = self.bytes.len();
        self.overflow = false;
    }

    /// Ends the reply that [`Reply::begin`] started.
    pub fn finish(&mut self) {
        if self.overflow {
            self.overflow = false;
            self.bytes.truncate(self.start);
            self.error("ERR the reply would be longer than 1 MiB: ask for less");
        }
    }

    fn put(&mut self, bytes: &[u8]) {
        if self.overflow || self.bytes.len() - self.start + bytes.len() > MAX_REPLY || self.bytes.try_reserve(bytes.len()).is_err() {
            self.overflow = true;
            return;
        }
        self.bytes.extend_from_slice(bytes);
    }

    fn line(&mut self, kind: u8, text: &[u8]) {
        self.put(&[kind]);
        self.put(text);
        self.put(b"\r\n");
    }

    /// `+text`.
    pub fn simple(&mut self, text: &str) {
        self.line(b'+', text.as_bytes());
    }

    /// `+OK`.
    pub fn ok(&mut self) {
        self.simple("OK");
    }

    /// `-text`.
    pub fn error(&mut self, text: &str) {
        self.line(b'-', text.as_bytes());
    }

    /// `:number`.
    pub fn integer(&mut self, number: i64) {
        self.number_line(b':', number);
    }

    /// A bulk string.
    pub fn bulk(&mut self, bytes: &[u8]) {
        self.number_line(b'$', bytes.len() as i64);
        self.put(bytes);
        self.put(b"\r\n");
    }

    /// The null bulk string.
    pub fn null(&mut self) {
        self.put(b"$-1\r\n");
    }

    /// The head of an array of `length` replies, which must follow.
    pub fn array(&mut self, length: usize) {
        self.number_line(b'*', length as i64);
    }

    fn number_line(&mut self, kind: u8, number: i64) {
        let mut buffer = [0; 20];
        let digits = decimal(number, &mut buffer);
        self.line(kind, digits);
    }
}

/// Writes a number in decimal into the end of `buffer` and returns the part used; 20 bytes hold any 64-bit number with its sign.
pub fn decimal(number: i64, buffer: &mut [u8; 20]) -> &[u8] {
    let mut rest = number.unsigned_abs();
    let mut at = buffer.len();
    loop {
        at -= 1;
        buffer[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if number < 0 {
        at -= 1;
        buffer[at] = b'-';
    }
    &buffer[at..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_in_decimal_to_the_ends_of_their_range() {
        for number in [0, 7, -1, 42, i64::MAX, i64::MIN] {
            let mut reply = Reply::new();
            reply.begin();
            reply.integer(number);
            reply.finish();
            assert_eq!(reply.bytes(), std::format!(":{number}\r\n").as_bytes());
        }
    }

    #[test]
    fn a_reply_that_does_not_fit_is_replaced_whole_and_earlier_ones_stay() {
        let mut reply = Reply::new();
        reply.begin();
        reply.ok();
        reply.finish();
        reply.begin();
        reply.array(20);
        for _ in 0..20 {
            reply.bulk(&[b'x'; 65536]);
        }
        reply.finish();
        assert!(reply.bytes().starts_with(b"+OK\r\n-ERR the reply"));
        assert!(reply.bytes().len() < 200);
    }
}
