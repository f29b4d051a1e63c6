//! The client's side of RESP2, the Redis protocol: commands out, replies in. Replies are foreign bytes: bounded and checked (S7).

use std::io::{self, BufRead, Write};

/// Longest line of a reply header; RESP2 headers are a type byte and a number, errors are one sentence.
const LONGEST_LINE: u64 = 4096;
/// Longest value accepted: the guest's own bound is 64 KiB.
const LONGEST_VALUE: usize = 1 << 20;
/// Most elements of an array accepted.
const MOST_ELEMENTS: usize = 1 << 16;
/// Deepest nesting of arrays accepted.
const DEEPEST: usize = 4;

/// One reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// `+OK`
    Status(String),
    /// `-ERR ...`
    Error(String),
    /// `:1`
    Int(i64),
    /// `$3 abc`, or nil.
    Bulk(Option<Vec<u8>>),
    /// `*2 ...`, nil as empty.
    Array(Vec<Reply>),
}

/// Writes one command.
///
/// # Errors
/// The writer's.
pub fn command(out: &mut impl Write, arguments: &[&[u8]]) -> io::Result<()> {
    write!(out, "*{}\r\n", arguments.len())?;
    for argument in arguments {
        write!(out, "${}\r\n", argument.len())?;
        out.write_all(argument)?;
        out.write_all(b"\r\n")?;
    }
    Ok(())
}

fn bad(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.into())
}

/// One line without its end.
fn line(input: &mut impl BufRead) -> io::Result<String> {
    let mut bytes = Vec::new();
    io::Read::take(&mut *input, LONGEST_LINE).read_until(b'\n', &mut bytes)?;
    if bytes.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if !bytes.ends_with(b"\r\n") {
        return Err(bad("a reply's line has no end"));
    }
    bytes.truncate(bytes.len() - 2);
    String::from_utf8(bytes).map_err(|_| bad("a reply's line is not text"))
}

/// Reads one reply.
///
/// # Errors
/// The reader's; `UnexpectedEof` when the connection was closed; `InvalidData` when the bytes are not RESP2.
pub fn reply(input: &mut impl BufRead) -> io::Result<Reply> {
    nested(input, 0)
}

fn nested(input: &mut impl BufRead, depth: usize) -> io::Result<Reply> {
    let line = line(input)?;
    let number = |text: &str| text.parse::<i64>().map_err(|_| bad(format!("{text:?} is not a number")));
    let (kind, rest) = line.split_at_checked(1).ok_or_else(|| bad("an empty reply"))?;
    match kind {
        "+" => Ok(Reply::Status(rest.to_owned())),
        "-" => Ok(Reply::Error(rest.to_owned())),
        ":" => Ok(Reply::Int(number(rest)?)),
        "$" => match number(rest)? {
            -1 => Ok(Reply::Bulk(None)),
            length => {
                let length = usize::try_from(length).ok().filter(|l| *l <= LONGEST_VALUE).ok_or_else(|| bad("a value is too long"))?;
                let mut value = vec![0; length + 2];
                input.read_exact(&mut value)?;
                if !value.ends_with(b"\r\n") {
                    return Err(bad("a value does not end where it says"));
                }
                value.truncate(length);
                Ok(Reply::Bulk(Some(value)))
            }
        },
        "*" => {
            let length = number(rest)?.max(0);
            let length = usize::try_from(length).ok().filter(|l| *l <= MOST_ELEMENTS).ok_or_else(|| bad("an array is too long"))?;
            if depth == DEEPEST {
                return Err(bad("arrays are nested too deeply"));
            }
            (0..length).map(|_| nested(input, depth + 1)).collect::<io::Result<_>>().map(Reply::Array)
        }
        other => Err(bad(format!("a reply of unknown kind {other:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_an_array_of_bulk_strings() {
        let mut bytes = Vec::new();
        command(&mut bytes, &[b"SET", b"k", b"\r\n"]).expect("written");
        assert_eq!(bytes, b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$2\r\n\r\n\r\n");
    }

    #[test]
    fn every_kind_of_reply_is_read() {
        let mut input = &b"+OK\r\n-ERR no\r\n:-7\r\n$3\r\na\r\n\r\n$-1\r\n*2\r\n:1\r\n$0\r\n\r\n"[..];
        let replies: Vec<Reply> = (0..6).map(|_| reply(&mut input).expect("a reply")).collect();
        assert_eq!(
            replies,
            [
                Reply::Status("OK".into()),
                Reply::Error("ERR no".into()),
                Reply::Int(-7),
                Reply::Bulk(Some(b"a\r\n".to_vec())),
                Reply::Bulk(None),
                Reply::Array(vec![Reply::Int(1), Reply::Bulk(Some(vec![]))]),
            ]
        );
    }

    #[test]
    fn what_is_not_a_reply_is_an_error() {
        for bytes in
            ["", "?\r\n", ":x\r\n", "$9999999999\r\n", "$1\r\nabc", "+no end", "$2\r\nabcd", "*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n:1\r\n", "\r\n"]
        {
            assert!(reply(&mut bytes.as_bytes()).is_err(), "{bytes:?}");
        }
    }
}
