//! A client of a guest that runs nothing but the lab's agent: one TCP connection to an echo server (busybox' `nc`), one request under way, and the times
//! of all answers. What it sees of a fault is what any client sees that waits for its answer.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lockstep::demo::history::longest_gap_between_ns;
use lockstep::demo::world::GUEST_ADDRESS;
use lockstep::host::monotonic_ns;

use super::figures::part;
use crate::error::LabError;
use crate::net::Network;
use crate::scenario::stock;

const PORT: u16 = 6000;
/// Silence after which the connection is held to be broken.
const ANSWER_BOUND: Duration = Duration::from_secs(20);
/// Between an answer and the next request.
const THINK: Duration = Duration::from_millis(2);
/// Bytes of a request.
const REQUEST: usize = 32;
/// Answers awaited to see that the guest serves.
const SOME: usize = 5;
const TICK: Duration = Duration::from_millis(5);

#[derive(Debug, Default)]
struct Shared {
    /// When each request was sent, and when it was answered.
    times: Mutex<Vec<(u64, u64)>>,
    broken: Mutex<Option<String>>,
    end: AtomicBool,
}

/// The client at work. Ends when dropped.
#[derive(Debug)]
pub struct Echo {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

fn converse(stream: &mut TcpStream, shared: &Shared) -> io::Result<()> {
    let mut number = 0_u64;
    while !shared.end.load(Ordering::Relaxed) {
        number += 1;
        let mut sent = [0; REQUEST];
        sent[..8].copy_from_slice(&number.to_be_bytes());
        let at = monotonic_ns();
        stream.write_all(&sent)?;
        let mut came = [0; REQUEST];
        stream.read_exact(&mut came)?;
        if came != sent {
            return Err(io::Error::other(format!("request {number} came back as another")));
        }
        shared.times.lock().unwrap_or_else(PoisonError::into_inner).push((at, monotonic_ns()));
        std::thread::sleep(THINK);
    }
    Ok(())
}

impl Echo {
    /// Starts the server in the guest and the client in the client network; answered when this returns.
    ///
    /// # Errors
    /// The guest cannot be asked, or the server does not come.
    pub fn start(network: &Arc<Network>) -> Result<Echo, LabError> {
        stock::agent(network).must(&format!("setsid nc -ll -p {PORT} -e cat >/dev/null 2>&1 </dev/null &"), ANSWER_BOUND)?;
        Echo::connect(network)
    }

    /// Starts the client alone: the server is there.
    ///
    /// # Errors
    /// No answer.
    pub fn connect(network: &Arc<Network>) -> Result<Echo, LabError> {
        let io = || LabError::io(|| "connect to the guest's echo server".into());
        let server = SocketAddr::new(GUEST_ADDRESS, PORT);
        let deadline = Instant::now() + ANSWER_BOUND;
        let mut stream = loop {
            match network.clients.run(|| TcpStream::connect_timeout(&server, ANSWER_BOUND))? {
                Ok(stream) => break stream,
                Err(error) if Instant::now() >= deadline => return Err(io()(error)),
                Err(_) => std::thread::sleep(TICK),
            }
        };
        stream.set_nodelay(true).and_then(|()| stream.set_read_timeout(Some(ANSWER_BOUND))).map_err(io())?;
        let shared = Arc::new(Shared::default());
        let told = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            if let Err(error) = converse(&mut stream, &told) {
                *told.broken.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
            }
        });
        let echo = Echo { shared, thread: Some(thread) };
        echo.until_more()?;
        Ok(echo)
    }

    fn times(&self) -> Vec<(u64, u64)> {
        self.shared.times.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for some more answers.
    ///
    /// # Errors
    /// They do not come, or the connection broke.
    pub fn until_more(&self) -> Result<(), LabError> {
        let wanted = self.times().len() + SOME;
        let deadline = Instant::now() + ANSWER_BOUND;
        while self.times().len() < wanted {
            if let Some(why) = self.shared.broken.lock().unwrap_or_else(PoisonError::into_inner).clone() {
                return Err(LabError::Found(format!("the echo client's connection broke: {why}")));
            }
            if Instant::now() >= deadline {
                return Err(LabError::Late { what: "more answers of the echo server".into(), bound: ANSWER_BOUND, detail: String::new() });
            }
            std::thread::sleep(TICK);
        }
        Ok(())
    }

    /// The longest time without an answer between `from_ns` and `until_ns`, milliseconds.
    #[must_use]
    pub fn blackout_ms(&self, from_ns: u64, until_ns: u64) -> Option<f64> {
        longest_gap_between_ns(self.times().into_iter().map(|(_, answered)| answered), from_ns, until_ns).map(|ns| ns as f64 / 1e6)
    }

    /// Median and 99th percentile of the waits for answers to what was sent from `from_ns` on, milliseconds.
    #[must_use]
    pub fn waits_ms(&self, from_ns: u64) -> (Option<f64>, Option<f64>) {
        let sent = self.times().into_iter().filter(|(sent, _)| *sent >= from_ns);
        let mut waits: Vec<u64> = sent.map(|(sent, answered)| answered - sent).collect();
        waits.sort_unstable();
        let at = |percent| part(&waits, percent).map(|ns| ns as f64 / 1e6);
        (at(50), at(99))
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.shared.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It waits for an answer no longer than its bound.
            let _ = thread.join();
        }
    }
}
