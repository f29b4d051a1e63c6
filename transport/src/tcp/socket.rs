//! Plain socket work that both connections share: options, bounded waits, exact reads, and the end of a connection. Not here: any protocol.

use std::io::Read;
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::socket::{MsgFlags, setsockopt, sockopt};
use nix::sys::time::TimeSpec;

use super::preamble::SessionId;
use crate::error::{GoneCause, TransportError};

/// Bytes may stay unacknowledged this long before the kernel gives the connection up. Heartbeats notice a dead host much earlier; this bound
/// keeps a forgotten connection from living for the kernel's default of 15 minutes.
const USER_TIMEOUT: Duration = Duration::from_secs(5);

/// Send buffer asked for on the data connection, bytes (the kernel doubles it for its bookkeeping). Measured on loopback with 1 MiB slots: 256 KiB
/// runs at 0.9 to 1.1 of plain TCP, 1 MiB at 0.8, 4 MiB at 0.65, the kernel's own tuning at 0.73: what is buffered falls out of the cache. It still
/// covers the bytes under way on 25 Gbit/s at 80 us.
const DATA_SEND_BUFFER: usize = 256 << 10;

/// Options of every connection of a link.
pub(crate) fn configure(stream: &TcpStream) -> Result<(), TransportError> {
    stream.set_nodelay(true).map_err(|e| TransportError::from_io("setting TCP_NODELAY", e))?;
    setsockopt(&stream, sockopt::TcpUserTimeout, &(USER_TIMEOUT.as_millis() as u32))
        .map_err(|e| TransportError::from_errno("setting TCP_USER_TIMEOUT", e as i32))
}

/// Options of the primary's data connection on top of those.
pub(crate) fn configure_data_sender(stream: &TcpStream) {
    // Forcing needs CAP_NET_ADMIN. Without it nothing is set: the plain option would be cut to net.core.wmem_max (208 KiB by default) and
    // would switch off the kernel's own tuning.
    if let Err(errno) = setsockopt(&stream, sockopt::SndBufForce, &DATA_SEND_BUFFER) {
        tracing::debug!(%errno, "send buffer of the data connection is left to the kernel's tuning");
    }
}

/// Waits until `flags` hold for the descriptor, at most until `deadline`. False: the time ran out.
pub(crate) fn wait_ready(fd: &impl AsFd, flags: PollFlags, deadline: Instant) -> Result<bool, TransportError> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut fds = [PollFd::new(fd.as_fd(), flags)];
        match ppoll(&mut fds, Some(TimeSpec::from_duration(left)), None) {
            Ok(0) if left.is_zero() => return Ok(false),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(errno) => return Err(TransportError::from_errno("waiting for a connection", errno as i32)),
        }
    }
}

/// A non-blocking read. `None`: nothing there now. End of stream is the peer's death.
pub(crate) fn recv_now(stream: &TcpStream, buffer: &mut [u8]) -> Result<Option<usize>, TransportError> {
    match nix::sys::socket::recv(stream.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT) {
        Ok(0) => Err(TransportError::PeerGone { cause: GoneCause::Closed }),
        Ok(n) => Ok(Some(n)),
        Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
        Err(errno) => Err(TransportError::from_errno("reading from the link", errno as i32)),
    }
}

/// A non-blocking write that raises no SIGPIPE. `0`: no room now.
pub(crate) fn send_now(stream: &TcpStream, bytes: &[u8]) -> Result<usize, TransportError> {
    match nix::sys::socket::send(stream.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL) {
        Ok(n) => Ok(n),
        Err(Errno::EAGAIN | Errno::EINTR) => Ok(0),
        Err(errno) => Err(TransportError::from_errno("writing to the link", errno as i32)),
    }
}

/// Reads exactly `buffer`, or fails by `deadline` however slowly bytes trickle in.
pub(crate) fn recv_exact(stream: &TcpStream, buffer: &mut [u8], deadline: Instant, what: &'static str) -> Result<(), TransportError> {
    let began = Instant::now();
    let mut filled = 0;
    while filled < buffer.len() {
        if let Some(n) = recv_now(stream, &mut buffer[filled..])? {
            filled += n;
        } else if !wait_ready(stream, PollFlags::POLLIN, deadline)? {
            return Err(TransportError::TimedOut { what, after_ms: began.elapsed().as_millis() as u64 });
        }
    }
    Ok(())
}

/// Writes all of `bytes`, or fails by `deadline`.
pub(crate) fn send_all(stream: &TcpStream, mut bytes: &[u8], deadline: Instant, what: &'static str) -> Result<(), TransportError> {
    let began = Instant::now();
    while !bytes.is_empty() {
        let sent = send_now(stream, bytes)?;
        bytes = &bytes[sent..];
        if sent == 0 && !wait_ready(stream, PollFlags::POLLOUT, deadline)? {
            return Err(TransportError::TimedOut { what, after_ms: began.elapsed().as_millis() as u64 });
        }
    }
    Ok(())
}

/// Whether a connection still lives, as its one user at this end knows it: after its first error it is over, and every later call says why.
#[derive(Default)]
pub(crate) struct Life {
    over: Option<GoneCause>,
}

impl Life {
    /// # Errors
    /// [`TransportError::PeerGone`] once the connection is over.
    pub(crate) fn check(&self) -> Result<(), TransportError> {
        self.over.map_or(Ok(()), |cause| Err(TransportError::PeerGone { cause }))
    }

    /// Closes the connection on an error, so that the peer learns of it too; passes the result on.
    pub(crate) fn note<T>(&mut self, stream: &TcpStream, result: Result<T, TransportError>) -> Result<T, TransportError> {
        if let Err(error) = &result {
            self.over = Some(match error {
                TransportError::PeerGone { cause } => *cause,
                _ => GoneCause::ClosedHere,
            });
            tracing::debug!(%error, "connection closed");
            // The shutdown may fail because the connection is gone already, which is what it is for.
            let _ = stream.shutdown(Shutdown::Both);
        }
        result
    }
}

/// A fresh, unguessable session id.
pub(crate) fn random_session() -> Result<SessionId, TransportError> {
    let mut id = SessionId::default();
    let read = std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut id));
    read.map_err(|source| TransportError::Io { what: "reading random bytes for a session id from /dev/urandom".into(), source })?;
    Ok(id)
}
