//! Meets every connection on the replication port: one thread reads all preambles side by side, so that a stranger that stalls, or speaks
//! something else, costs the real peer nothing. Not here: Hello and Welcome (the caller's), what a link does once it is open. Guards S7.

use std::collections::HashMap;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::preamble::{Kind, LINK_VERSION, PREAMBLE_BYTES, Preamble, SessionId, Status, Verdict, judge};
use super::{OPEN_DATA_BOUND, control, receiver, socket};
use crate::error::TransportError;
use crate::link::StandbyPending;

/// A preamble must be complete this long after its connection was accepted: the real peer sends it at once.
const PREAMBLE_BOUND: Duration = Duration::from_secs(2);

/// Connections whose preamble is awaited at once. One more, and the oldest is closed: the real peer's preamble comes within milliseconds.
const MAX_GREETING: usize = 16;

/// Accepted control connections that wait for [`Listener::accept`]. One more is refused as busy.
const MAX_WAITING: usize = 4;

/// The answer is 32 bytes into an empty socket buffer: it fits at once or the connection is broken.
const ANSWER_BOUND: Duration = Duration::from_millis(10);

/// After a failed accept (no descriptors left) the thread waits so long before it tries again, instead of spinning.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);

/// Connections that were closed before they became a link, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refusals {
    /// Bytes that are not the protocol.
    pub foreign: u64,
    /// Another version of the protocol.
    pub version: u64,
    /// No complete preamble in time, or hung up before it, or pushed out by newer ones.
    pub stalled: u64,
    /// A data connection that belongs to no link here.
    pub session: u64,
    /// Too many links waiting to be accepted.
    pub busy: u64,
}

#[derive(Default)]
struct Counters {
    foreign: AtomicU64,
    version: AtomicU64,
    stalled: AtomicU64,
    session: AtomicU64,
    busy: AtomicU64,
}

/// Data connections are handed to the pending link of their session.
type Sessions = Arc<Mutex<HashMap<SessionId, Sender<TcpStream>>>>;

/// The standby's listening end. Accepting goes on while a link is open, so that a second primary can be refused by name.
pub struct Listener {
    addr: SocketAddr,
    arrivals: Receiver<StandbyPending>,
    counters: Arc<Counters>,
    /// Closing it ends the thread.
    wake: UnixStream,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    /// Listens on `addr` and starts the thread that meets connections.
    ///
    /// # Errors
    /// [`TransportError::Listen`] when the address is taken or not this host's.
    pub fn bind(addr: impl ToSocketAddrs + std::fmt::Debug) -> Result<Listener, TransportError> {
        let failed = |source| TransportError::Listen { addr: format!("{addr:?}"), source };
        let listener = TcpListener::bind(&addr).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let addr = listener.local_addr().map_err(failed)?;
        let (wake, woken) = UnixStream::pair().map_err(failed)?;
        let (arrived, arrivals) = bounded(MAX_WAITING);
        let counters = Arc::new(Counters::default());
        let mut greeter =
            Greeter { listener, woken, arrived, counters: Arc::clone(&counters), sessions: Sessions::default(), guests: Vec::new() };
        let thread = std::thread::Builder::new().name("link-listener".into()).spawn(move || greeter.run()).map_err(failed)?;
        Ok(Listener { addr, arrivals, counters, wake, thread: Some(thread) })
    }

    /// The address listened on, with the port the system chose if 0 was asked for.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// The next primary whose control connection is open. `None`: none within `timeout`.
    ///
    /// # Errors
    /// [`TransportError::Io`] when the listening thread has ended.
    pub fn accept(&self, timeout: Duration) -> Result<Option<StandbyPending>, TransportError> {
        match self.arrivals.recv_timeout(timeout) {
            Ok(pending) => Ok(Some(pending)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(TransportError::Io {
                what: format!("listening on {}", self.addr),
                source: std::io::Error::other("the listening thread has ended"),
            }),
        }
    }

    /// Connections closed so far before they became a link.
    #[must_use]
    pub fn refusals(&self) -> Refusals {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let c = &self.counters;
        Refusals {
            foreign: read(&c.foreign),
            version: read(&c.version),
            stalled: read(&c.stalled),
            session: read(&c.session),
            busy: read(&c.busy),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Fails only if the thread has closed its end, and then it has ended.
        let _ = self.wake.shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(addr = %self.addr, "the listening thread panicked");
        }
    }
}

/// A connection whose preamble is not complete yet.
struct Guest {
    stream: TcpStream,
    peer: String,
    deadline: Instant,
    bytes: [u8; PREAMBLE_BYTES],
    filled: usize,
}

/// The listening thread's state.
struct Greeter {
    listener: TcpListener,
    woken: UnixStream,
    arrived: Sender<StandbyPending>,
    counters: Arc<Counters>,
    sessions: Sessions,
    guests: Vec<Guest>,
}

impl Greeter {
    fn run(&mut self) {
        loop {
            let next = self.guests.iter().map(|g| g.deadline).min();
            let timeout = next.map_or(PollTimeout::NONE, |deadline| {
                let millis = deadline.saturating_duration_since(Instant::now()).as_millis() + 1;
                PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)
            });
            let mut fds = vec![PollFd::new(self.woken.as_fd(), PollFlags::POLLIN), PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
            fds.extend(self.guests.iter().map(|g| PollFd::new(g.stream.as_fd(), PollFlags::POLLIN)));
            if let Err(errno) = poll(&mut fds, timeout)
                && errno != nix::errno::Errno::EINTR
            {
                tracing::error!(%errno, "waiting for connections failed; no primary can connect any more");
                return;
            }
            let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
            drop(fds);
            if ready[0] {
                return;
            }
            // Only what was polled is in `ready`: new connections come after it.
            self.serve_guests(&ready[2..]);
            if ready[1] {
                self.accept_all();
            }
        }
    }

    fn accept_all(&mut self) {
        loop {
            match self.listener.accept() {
                Ok((stream, peer)) => {
                    if self.guests.len() == MAX_GREETING {
                        let oldest = self.guests.remove(0);
                        self.refuse_stalled(&oldest, "pushed out by newer connections");
                    }
                    // An accepted socket does not inherit the listener's non-blocking mode on Linux; io_uring needs it blocking.
                    let deadline = Instant::now() + PREAMBLE_BOUND;
                    let peer = peer.to_string();
                    self.guests.push(Guest { stream, peer, deadline, bytes: [0; PREAMBLE_BYTES], filled: 0 });
                }
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(e) if matches!(e.kind(), std::io::ErrorKind::Interrupted | std::io::ErrorKind::ConnectionAborted) => {}
                Err(error) => {
                    tracing::warn!(%error, "a connection to the replication port could not be accepted");
                    std::thread::sleep(ACCEPT_BACKOFF);
                    return;
                }
            }
        }
    }

    fn serve_guests(&mut self, ready: &[bool]) {
        let now = Instant::now();
        for (mut guest, ready) in std::mem::take(&mut self.guests).into_iter().zip(ready) {
            if *ready {
                match socket::recv_now(&guest.stream, &mut guest.bytes[guest.filled..]) {
                    Ok(read) => guest.filled += read.unwrap_or(0),
                    Err(_) => {
                        self.refuse_stalled(&guest, "hung up");
                        continue;
                    }
                }
            }
            match judge(&guest.bytes[..guest.filled]) {
                Verdict::NeedMore if guest.deadline <= now => self.refuse_stalled(&guest, "took too long"),
                Verdict::NeedMore => self.guests.push(guest),
                Verdict::Foreign(what) => {
                    self.counters.foreign.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(peer = %guest.peer, what, "closed a connection that does not speak the replication protocol");
                }
                Verdict::OtherVersion(theirs) => {
                    self.counters.version.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(peer = %guest.peer, theirs, ours = LINK_VERSION, "closed a connection of another link version");
                    answer(&guest.stream, Kind::Control, Status::OtherVersion, [0; 16]);
                }
                Verdict::Good(preamble) => self.welcome(guest, preamble),
            }
        }
    }

    fn refuse_stalled(&self, guest: &Guest, how: &str) {
        self.counters.stalled.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(peer = %guest.peer, bytes = guest.filled, how, "closed a connection without a complete preamble");
    }

    fn welcome(&mut self, guest: Guest, preamble: Preamble) {
        let Preamble { kind, session, .. } = preamble;
        if let Err(error) = socket::configure(&guest.stream) {
            tracing::warn!(peer = %guest.peer, %error, "closed a connection that cannot be configured");
            return;
        }
        match kind {
            Kind::Control => self.welcome_control(guest, session),
            Kind::Data => {
                let waiting = lock(&self.sessions).remove(&session);
                let Some(waiting) = waiting else {
                    self.counters.session.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(peer = %guest.peer, "closed a data connection that belongs to no link here");
                    answer(&guest.stream, kind, Status::UnknownSession, session);
                    return;
                };
                if answer(&guest.stream, kind, Status::Accepted, session) {
                    // Fails when the pending link was dropped in this moment: then the connection is dropped with it.
                    let _ = waiting.try_send(guest.stream);
                }
            }
        }
    }

    fn welcome_control(&mut self, guest: Guest, session: SessionId) {
        // Only this thread adds arrivals, so room seen here stays.
        let taken = lock(&self.sessions).contains_key(&session);
        if self.arrived.is_full() || taken {
            self.counters.busy.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(peer = %guest.peer, "refused a primary: too many wait to be accepted");
            answer(&guest.stream, Kind::Control, Status::Busy, session);
            return;
        }
        let (to_pending, data) = bounded(1);
        lock(&self.sessions).insert(session, to_pending);
        let registration = Registration { sessions: Arc::clone(&self.sessions), session };
        if !answer(&guest.stream, Kind::Control, Status::Accepted, session) {
            return;
        }
        let (control_tx, control_rx) = control::split(guest.stream);
        let open = Box::new(move |staging| {
            let _until_open = registration;
            let stream = data.recv_timeout(OPEN_DATA_BOUND).map_err(|_| TransportError::TimedOut {
                what: "waiting for the primary's data connection",
                after_ms: OPEN_DATA_BOUND.as_millis() as u64,
            })?;
            Ok(Box::new(receiver::Receiver::open(stream, staging)?) as _)
        });
        if self.arrived.try_send(StandbyPending { control_tx, control_rx, peer: guest.peer, open }).is_err() {
            tracing::debug!("a primary connected while the listener was being closed");
        }
    }
}

/// A session that may still get its data connection; forgotten when the pending link is opened or dropped.
struct Registration {
    sessions: Sessions,
    session: SessionId,
}

impl Drop for Registration {
    fn drop(&mut self) {
        lock(&self.sessions).remove(&self.session);
    }
}

fn lock(sessions: &Sessions) -> MutexGuard<'_, HashMap<SessionId, Sender<TcpStream>>> {
    sessions.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sends the listener's half of the preamble. False: the peer is gone already.
fn answer(stream: &TcpStream, kind: Kind, status: Status, session: SessionId) -> bool {
    let bytes = Preamble { kind, status, session }.encode();
    socket::send_all(stream, &bytes, Instant::now() + ANSWER_BOUND, "answering a preamble").is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_cannot_be_listened_on_is_named_with_what_to_do() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let cases = [
            (taken.local_addr().unwrap().to_string(), "another process has that port"),
            ("192.0.2.1:7300".to_owned(), "no address of this host"),
        ];
        for (addr, remedy) in cases {
            let said = Listener::bind(&addr).err().unwrap().to_string();
            assert!(said.contains(&addr) && said.contains(remedy), "{said}");
        }
    }
}
