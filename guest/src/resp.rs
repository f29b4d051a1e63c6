//! The request half of RESP2: multibulk and inline requests, parsed in place from whatever has arrived.
//!
//! Lives here: limits and syntax. Not here: what a command means (`command`), replies (`reply`), or sockets. Every byte is foreign (S7): a
//! request is complete, incomplete, or wrong with the words Redis would use; nothing is allocated per request, and nothing panics.

use alloc::vec::Vec;

/// Longest argument: values are promised up to 64 KiB.
pub const MAX_BULK: usize = 64 * 1024;
/// Most arguments of a request: an MSET of two thousand pairs. Ranges are allocated for this many, once.
pub const MAX_ARGS: usize = 4096;
/// Longest request: an MSET of ten values of the largest size with its framing, and room to spare.
pub const MAX_REQUEST: usize = 1024 * 1024;
/// Longest inline request, as in Redis.
pub const MAX_INLINE: usize = 64 * 1024;
/// Longest line that announces a length: `*` or `$`, a sign, digits, CR and LF.
const MAX_LENGTH_LINE: usize = 32;

/// Why a stream of bytes is not a request. The connection gets the words as an error reply and is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtocolError {
    /// The number after `*` is not one, or above [`MAX_ARGS`].
    MultibulkLength,
    /// The number after `$` is not one, or above [`MAX_BULK`].
    BulkLength,
    /// An argument does not start with `$` but with this byte.
    ExpectedDollar(u8),
    /// An argument is not followed by CR LF.
    BulkEnd,
    /// An inline request has no end within [`MAX_INLINE`], or too many words.
    InlineTooBig,
    /// The request is longer than [`MAX_REQUEST`].
    TooBig,
}

impl ProtocolError {
    /// The error reply's text, without the leading `-` and the line end.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            ProtocolError::MultibulkLength => "ERR Protocol error: invalid multibulk length",
            ProtocolError::BulkLength => "ERR Protocol error: invalid bulk length",
            ProtocolError::ExpectedDollar(_) => "ERR Protocol error: expected '$'",
            ProtocolError::BulkEnd => "ERR Protocol error: argument is not followed by CR LF",
            ProtocolError::InlineTooBig => "ERR Protocol error: too big inline request",
            ProtocolError::TooBig => "ERR Protocol error: too big request",
        }
    }
}

/// The arguments of one request, in the buffer they arrived in.
#[derive(Clone, Copy, Debug)]
pub struct Args<'a> {
    bytes: &'a [u8],
    ranges: &'a [(u32, u32)],
}

impl<'a> Args<'a> {
    /// Number of arguments, the command's name included. Never 0 for a request that [`Parser::parse`] called complete with arguments.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// Whether there are none: an empty line, which is to be ignored.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// The argument at an index; empty when there is none.
    #[must_use]
    pub fn get(&self, index: usize) -> &'a [u8] {
        self.ranges.get(index).and_then(|&(start, end)| self.bytes.get(start as usize..end as usize)).unwrap_or(&[])
    }
}

/// What has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// A whole request, this many bytes long; its arguments are [`Parser::args`].
    Complete(usize),
    /// More bytes are needed: the request is at least this long. Parsing again before then is wasted.
    Incomplete(usize),
}

/// A parser with its argument table, allocated once and used for every request.
#[derive(Debug)]
pub struct Parser {
    ranges: Vec<(u32, u32)>,
}

impl Default for Parser {
    fn default() -> Self {
        Self::new()
    }
}

impl Parser {
    /// A parser with room for [`MAX_ARGS`] arguments.
    #[must_use]
    pub fn new() -> Parser {
        Parser { ranges: Vec::with_capacity(MAX_ARGS) }
    }

    /// The arguments of the request that `parse` has just found complete in the same bytes.
    #[must_use]
    pub fn args<'a>(&'a self, bytes: &'a [u8]) -> Args<'a> {
        Args { bytes, ranges: &self.ranges }
    }

    /// Looks for one request at the start of `bytes`.
    ///
    /// # Errors
    /// [`ProtocolError`] when the bytes cannot become a request, whatever follows.
    pub fn parse(&mut self, bytes: &[u8]) -> Result<Parsed, ProtocolError> {
        self.ranges.clear();
        match bytes.first() {
            None => Ok(Parsed::Incomplete(1)),
            Some(b'*') => self.parse_multibulk(bytes),
            Some(_) => self.parse_inline(bytes),
        }
    }

    fn parse_multibulk(&mut self, bytes: &[u8]) -> Result<Parsed, ProtocolError> {
        let Some((count, mut at)) = length_line(bytes, 0, ProtocolError::MultibulkLength)? else {
            return Ok(Parsed::Incomplete(bytes.len() + 1));
        };
        if count > MAX_ARGS as i64 {
            return Err(ProtocolError::MultibulkLength);
        }
        for _ in 0..count.max(0) {
            match bytes.get(at) {
                None => return incomplete(at + 1),
                Some(b'$') => {}
                Some(&other) => return Err(ProtocolError::ExpectedDollar(other)),
            }
            let Some((length, start)) = length_line(bytes, at, ProtocolError::BulkLength)? else {
                return incomplete(bytes.len() + 1);
            };
            let length = usize::try_from(length).map_err(|_| ProtocolError::BulkLength)?;
            if length > MAX_BULK {
                return Err(ProtocolError::BulkLength);
            }
            let end = start + length;
            if end + 2 > MAX_REQUEST {
                return Err(ProtocolError::TooBig);
            }
            match bytes.get(end..end + 2) {
                None => return incomplete(end + 2),
                Some(b"\r\n") => {}
                Some(_) => return Err(ProtocolError::BulkEnd),
            }
            self.ranges.push((start as u32, end as u32));
            at = end + 2;
        }
        Ok(Parsed::Complete(at))
    }

    /// Words separated by blanks, without quoting: enough for a person on a terminal.
    fn parse_inline(&mut self, bytes: &[u8]) -> Result<Parsed, ProtocolError> {
        let window = bytes.get(..MAX_INLINE).unwrap_or(bytes);
        let Some(end) = window.iter().position(|&byte| byte == b'\n') else {
            return if window.len() == MAX_INLINE { Err(ProtocolError::InlineTooBig) } else { Ok(Parsed::Incomplete(bytes.len() + 1)) };
        };
        let mut start = None;
        for (index, &byte) in bytes.iter().enumerate().take(end + 1) {
            match (byte.is_ascii_whitespace(), start) {
                (false, None) => start = Some(index),
                (true, Some(from)) => {
                    if self.ranges.len() == MAX_ARGS {
                        return Err(ProtocolError::InlineTooBig);
                    }
                    self.ranges.push((from as u32, index as u32));
                    start = None;
                }
                _ => {}
            }
        }
        Ok(Parsed::Complete(end + 1))
    }
}

/// A multibulk request needs at least `need` bytes; one that can never fit is refused now instead of being collected.
fn incomplete(need: usize) -> Result<Parsed, ProtocolError> {
    if need > MAX_REQUEST { Err(ProtocolError::TooBig) } else { Ok(Parsed::Incomplete(need)) }
}

/// Reads the number between the type byte at `at` and CR LF, and says where the line after it starts. `None`: the line is not whole yet.
fn length_line(bytes: &[u8], at: usize, error: ProtocolError) -> Result<Option<(i64, usize)>, ProtocolError> {
    let rest = bytes.get(at + 1..).unwrap_or(&[]);
    let window = rest.get(..MAX_LENGTH_LINE).unwrap_or(rest);
    let Some(end) = window.iter().position(|&byte| byte == b'\r') else {
        return if window.len() == MAX_LENGTH_LINE { Err(error) } else { Ok(None) };
    };
    match window.get(end + 1) {
        None if rest.len() > end + 1 => Err(error),
        None => Ok(None),
        Some(b'\n') => parse_integer(&window[..end]).map(|number| Some((number, at + 1 + end + 2))).ok_or(error),
        Some(_) => Err(error),
    }
}

/// A decimal number as Redis accepts it: an optional minus, digits, nothing else, within 64 bits.
#[must_use]
pub fn parse_integer(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    if digits.is_empty() || (digits.len() > 1 && digits[0] == b'0') || (negative && digits == b"0") {
        return None;
    }
    let mut value: i64 = 0;
    for &byte in digits {
        let digit = i64::from(byte.wrapping_sub(b'0'));
        if !byte.is_ascii_digit() {
            return None;
        }
        value = value.checked_mul(10)?;
        value = if negative { value.checked_sub(digit)? } else { value.checked_add(digit)? };
    }
    Some(value)
}

#[cfg(test)]
#[path = "tests/resp.rs"]
mod tests;
