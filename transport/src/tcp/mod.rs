//! The link over TCP: making and accepting it. The data connection runs on io_uring ([`sender`], [`receiver`]), control on plain calls
//! ([`control`]), the first bytes of both are [`preamble`]s, strangers are met by the [`listener`]. Not here: retrying; the caller decides.

mod control;
mod credit;
mod frame;
mod gather;
mod listener;
mod preamble;
mod receiver;
mod ring;
mod sender;
mod socket;

use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

pub use listener::{Listener, Refusals};
pub use preamble::LINK_VERSION;
pub use sender::MAX_REGIONS;

use crate::error::TransportError;
use crate::link::PrimaryPending;
use preamble::{Kind, PREAMBLE_BYTES, Preamble, SessionId, Status, Verdict, judge};

/// How long either end waits for the other to make its half of the data connection after Hello and Welcome.
pub const OPEN_DATA_BOUND: Duration = Duration::from_secs(5);

/// Connects to a standby's listener: control is open when this returns, within `timeout`.
///
/// # Errors
/// [`TransportError::Io`] when nobody listens there, [`TransportError::NotLockstep`], [`TransportError::Version`],
/// [`TransportError::Refused`], [`TransportError::TimedOut`] when the other end does not answer.
pub fn connect(addr: impl ToSocketAddrs, timeout: Duration) -> Result<PrimaryPending, TransportError> {
    let deadline = Instant::now() + timeout;
    let session = socket::random_session()?;
    let addrs = addr.to_socket_addrs().map_err(|source| TransportError::Io { what: "looking up the standby's address".into(), source })?;
    let mut last = TransportError::Misuse("the standby's address has no IP address".into());
    for addr in addrs {
        match greet(addr, Kind::Control, session, deadline) {
            Ok(stream) => {
                let peer = addr.to_string();
                let (control_tx, control_rx) = control::split(stream);
                let open = Box::new(move |geometry| {
                    let deadline = Instant::now() + OPEN_DATA_BOUND;
                    let stream = greet(addr, Kind::Data, session, deadline)?;
                    socket::configure_data_sender(&stream);
                    Ok(Box::new(sender::Sender::open(stream, geometry, deadline)?) as _)
                });
                return Ok(PrimaryPending { control_tx, control_rx, peer, open });
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// One connection with its preambles exchanged.
fn greet(addr: SocketAddr, kind: Kind, session: SessionId, deadline: Instant) -> Result<TcpStream, TransportError> {
    let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    let stream = TcpStream::connect_timeout(&addr, left)
        .map_err(|source| TransportError::Io { what: format!("connecting to the standby at {addr}"), source })?;
    socket::configure(&stream)?;
    let hello = Preamble { kind, status: Status::Accepted, session }.encode();
    socket::send_all(&stream, &hello, deadline, "sending the link's preamble")?;
    let mut answer = [0; PREAMBLE_BYTES];
    let mut filled = 0;
    let peer = addr.to_string();
    loop {
        // As the judging end does, look at every prefix: another protocol may send less than a preamble and wait.
        match judge(&answer[..filled]) {
            Verdict::NeedMore => {}
            Verdict::Foreign(what) => return Err(TransportError::NotLockstep { peer, what }),
            Verdict::OtherVersion(theirs) => return Err(TransportError::Version { peer, theirs, ours: LINK_VERSION }),
            Verdict::Good(preamble) if preamble.status != Status::Accepted => {
                return Err(TransportError::Refused { peer, reason: preamble.status.reason() });
            }
            Verdict::Good(preamble) if preamble.kind != kind || preamble.session != session => {
                return Err(TransportError::NotLockstep { peer, what: "it answered for another session".into() });
            }
            Verdict::Good(_) => return Ok(stream),
        }
        socket::recv_exact(&stream, &mut answer[filled..=filled], deadline, "waiting for the other end's preamble").map_err(|error| {
            if error.is_peer_gone() {
                TransportError::NotLockstep { peer: peer.clone(), what: format!("it hung up after {filled} bytes of its preamble") }
            } else {
                error
            }
        })?;
        filled += 1;
    }
}
