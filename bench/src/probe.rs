//! When the guest answers anybody at all: short requests in a steady rhythm, each over a connection that has none under way.
//!
//! A client that asks again only after an answer shows its own TCP's patience when a request is lost. Here a lost request costs one of many connections, and the
//! next request goes out on time: the gap between two answers is the service's.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use types::clock::monotonic_ns;

use crate::error::BenchError;

/// One request in so much time: the resolution.
const RHYTHM: Duration = Duration::from_millis(1);
/// Connections, and so the longest gap in rhythms that is measured exactly; the guest's server holds 64.
pub const CONNECTIONS: usize = 48;

struct Line {
    stream: TcpStream,
    waiting: bool,
}

/// Asks over `streams` until `stop`; when the answers came (CLOCK_MONOTONIC nanoseconds).
///
/// # Errors
/// A connection breaks.
pub fn ask(streams: Vec<TcpStream>, stop: &AtomicBool) -> Result<Vec<u64>, BenchError> {
    let broken = |error: std::io::Error| BenchError::Broken(format!("a connection of the probe broke: {error}"));
    let mut lines = Vec::with_capacity(streams.len());
    for stream in streams {
        stream.set_nonblocking(true).map_err(broken)?;
        stream.set_nodelay(true).map_err(broken)?;
        lines.push(Line { stream, waiting: false });
    }
    let mut answers = Vec::new();
    let mut next = 0;
    while !stop.load(Ordering::Relaxed) {
        for line in lines.iter_mut().filter(|line| line.waiting) {
            match line.stream.read(&mut [0; 64]) {
                Ok(0) => return Err(broken(ErrorKind::UnexpectedEof.into())),
                Ok(_) => {
                    answers.push(monotonic_ns());
                    line.waiting = false;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(broken(error)),
            }
        }
        let count = lines.len();
        if let Some(index) = (0..count).map(|step| (next + step) % count).find(|index| !lines[*index].waiting) {
            // Fourteen bytes on a connection with nothing under way always fit.
            lines[index].stream.write_all(b"*1\r\n$4\r\nPING\r\n").map_err(broken)?;
            lines[index].waiting = true;
            next = index + 1;
        }
        std::thread::sleep(RHYTHM);
    }
    Ok(answers)
}

/// The longest time between two answers of which the later came after `from_ns`, milliseconds; `None` when none came.
#[must_use]
pub fn longest_gap_ms(answers: &[u64], from_ns: u64) -> Option<f64> {
    answers.windows(2).filter(|pair| pair[1] >= from_ns).map(|pair| pair[1] - pair[0]).max().map(|ns| ns as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gap_is_the_one_that_reaches_past_the_moment() {
        let answers = [1_000_000, 90_000_000, 99_000_000, 130_000_000, 131_000_000];
        assert_eq!(longest_gap_ms(&answers, 100_000_000), Some(31.0));
        assert_eq!(longest_gap_ms(&answers, 132_000_000), None);
    }

    #[test]
    fn an_answer_that_never_comes_does_not_keep_the_others_waiting() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let streams: Vec<_> = (0..3).map(|_| TcpStream::connect(listener.local_addr().unwrap()).unwrap()).collect();
        // The first connection is never answered.
        let peers: Vec<_> = (0..3).map(|_| listener.accept().unwrap().0).collect();
        let stop = AtomicBool::new(false);

        let answers = std::thread::scope(|scope| {
            let probe = scope.spawn(|| ask(streams, &stop));
            for turn in 0..6 {
                let mut peer = &peers[1 + turn % 2];
                peer.read_exact(&mut [0; 14]).unwrap();
                peer.write_all(b"+PONG\r\n").unwrap();
            }
            // Asked again, so all before was answered and noted.
            (&peers[1]).read_exact(&mut [0; 14]).unwrap();
            stop.store(true, Ordering::Relaxed);
            probe.join().unwrap().unwrap()
        });

        assert!(answers.len() >= 5, "{answers:?}");
    }
}
