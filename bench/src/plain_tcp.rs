//! The baseline of the stream: blocking TCP over loopback, nothing else done with the bytes.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::error::BenchError;

/// Bytes of one send, and of the receiver's buffer: a staging slot.
const PIECE: usize = 1 << 20;

/// Sends `bytes` bytes from `sources`, in turn, and waits until the receiver says that it has them; how long that took.
///
/// # Errors
/// Loopback cannot be used, or there is nothing to send.
pub fn send(sources: &[&[u8]], bytes: u64) -> Result<Duration, BenchError> {
    let io = || BenchError::io("use TCP over loopback");
    let listener = TcpListener::bind("127.0.0.1:0").map_err(io())?;
    let mut sender = TcpStream::connect(listener.local_addr().map_err(io())?).map_err(io())?;
    let (mut receiver, _) = listener.accept().map_err(io())?;
    sender.set_nodelay(true).map_err(io())?;
    let pieces: Vec<&[u8]> = sources.iter().flat_map(|source| source.chunks(PIECE)).collect();
    if pieces.is_empty() {
        return Err(BenchError::NothingMeasured("plain TCP: there is nothing to send"));
    }
    let begin = Instant::now();
    std::thread::scope(|scope| {
        let receiving = scope.spawn(move || -> std::io::Result<()> {
            let mut to = vec![0; PIECE];
            let mut left = bytes;
            while left > 0 {
                let most = left.min(PIECE as u64) as usize;
                let read = receiver.read(&mut to[..most])?;
                if read == 0 {
                    return Err(std::io::ErrorKind::UnexpectedEof.into());
                }
                left -= read as u64;
            }
            receiver.write_all(b".")
        });
        let mut left = bytes;
        for piece in pieces.iter().cycle() {
            if left == 0 {
                break;
            }
            let most = left.min(piece.len() as u64) as usize;
            sender.write_all(&piece[..most]).map_err(io())?;
            left -= most as u64;
        }
        sender.read_exact(&mut [0]).map_err(io())?;
        let time = begin.elapsed();
        receiving.join().map_err(|_| BenchError::Thread)?.map_err(io())?;
        Ok(time)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_number_of_bytes_arrives() {
        let source = vec![7; PIECE + 3];
        for bytes in [1, PIECE as u64 * 5 + 1] {
            assert!(send(&[&source], bytes).unwrap() > Duration::ZERO);
        }
        assert!(send(&[], 1).is_err());
    }
}
