//! What can go wrong on a link, named so that an operator knows what to do. Not here: counters and logging.

use std::io;

use crate::link::{MAX_CONTROL_BYTES, SlotId};

/// Why the peer is held to be gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GoneCause {
    /// The connection was closed in an orderly way: the peer's process ended or closed the link.
    Closed,
    /// The connection was reset: the peer's process died with data unread, or its host restarted.
    Reset,
    /// Nothing was acknowledged for the time that the link allows: the peer's host or the network is dead.
    Silent,
    /// This end was closed, so there is no peer any more.
    ClosedHere,
}

impl std::fmt::Display for GoneCause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            GoneCause::Closed => "connection closed",
            GoneCause::Reset => "connection reset",
            GoneCause::Silent => "nothing acknowledged in time",
            GoneCause::ClosedHere => "link closed at this end",
        })
    }
}

/// Any failure of a link or of making one.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The peer's end of the link is gone; the link will not work again.
    #[error("the peer is gone: {cause}")]
    PeerGone {
        /// How that was noticed.
        cause: GoneCause,
    },
    /// The peer sent something that the protocol does not allow; the link is closed.
    #[error("the peer broke the link's protocol: {what}; the link is closed. Check that both ends run the same lockstep")]
    Protocol {
        /// Which rule was broken, with the numbers.
        what: String,
    },
    /// The bytes at the other end are not this protocol at all.
    #[error("{peer} does not speak lockstep's replication protocol ({what}); check the address and port")]
    NotLockstep {
        /// Address of the peer.
        peer: String,
        /// What was seen.
        what: String,
    },
    /// The other end speaks another version of the link protocol.
    #[error("{peer} speaks version {theirs} of the replication link, this node speaks {ours}; run the same lockstep on both hosts")]
    Version {
        /// Address of the peer.
        peer: String,
        /// Its version.
        theirs: u16,
        /// Ours.
        ours: u16,
    },
    /// The other end speaks the protocol and refused the connection before any message.
    #[error("{peer} refused the connection: {reason}")]
    Refused {
        /// Address of the peer.
        peer: String,
        /// Its reason.
        reason: &'static str,
    },
    /// Something did not happen in time while a link was being made or a control message was being written.
    #[error("timed out after {after_ms} ms while {what}; is the peer running, and does the network between the hosts carry its traffic?")]
    TimedOut {
        /// What was being done.
        what: &'static str,
        /// The bound that ran out, milliseconds.
        after_ms: u64,
    },
    /// The replication port cannot be listened on.
    #[error("cannot listen for a primary on {addr}: {source}; {}", unheard(source.kind()))]
    Listen {
        /// What was given.
        addr: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A control message is larger than the link allows.
    #[error("control message of {len} bytes is over the limit of {MAX_CONTROL_BYTES}")]
    Oversize {
        /// Its length in bytes.
        len: usize,
    },
    /// The caller asked for something that the interface does not allow.
    #[error("misuse of the link: {0}")]
    Misuse(String),
    /// A slot was used that the caller has not acquired.
    #[error("slot {0} was not acquired by this sender")]
    SlotNotOwned(SlotId),
    /// io_uring cannot be used on this host.
    #[error(
        "io_uring is not available ({source}); lockstep needs Linux 6.1 or newer with io_uring permitted \
         (sysctl kernel.io_uring_disabled=0, no seccomp filter against it, RLIMIT_MEMLOCK not tiny)"
    )]
    IoUring {
        /// The kernel's answer.
        source: io::Error,
    },
    /// The system refused an operation.
    #[error("{what} failed: {source}")]
    Io {
        /// What was being done, to what.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// What to do about an address that cannot be listened on.
fn unheard(kind: io::ErrorKind) -> &'static str {
    match kind {
        io::ErrorKind::AddrInUse => "another process has that port, another node perhaps: stop it, or choose another port",
        io::ErrorKind::AddrNotAvailable => "it is no address of this host (`ip address` lists them)",
        io::ErrorKind::PermissionDenied => "ports below 1024 need root: choose a higher one",
        _ => "give an address of this host and a free port, such as 10.78.0.2:7300",
    }
}

impl TransportError {
    /// True when the link is over because the other end is: the caller should treat it as the peer's death, not as a defect here.
    #[must_use]
    pub fn is_peer_gone(&self) -> bool {
        matches!(self, TransportError::PeerGone { .. })
    }

    /// Wraps a system error; connection errors become [`TransportError::PeerGone`].
    pub(crate) fn from_io(what: impl Into<String>, source: io::Error) -> TransportError {
        match source.raw_os_error() {
            Some(libc::ECONNRESET | libc::EPIPE | libc::ECONNABORTED) => TransportError::PeerGone { cause: GoneCause::Reset },
            Some(libc::ETIMEDOUT | libc::EHOSTUNREACH | libc::ENETUNREACH | libc::ENETDOWN) => {
                TransportError::PeerGone { cause: GoneCause::Silent }
            }
            _ => TransportError::Io { what: what.into(), source },
        }
    }

    /// Wraps a negative result of an io_uring completion.
    pub(crate) fn from_errno(what: &str, errno: i32) -> TransportError {
        TransportError::from_io(what, io::Error::from_raw_os_error(errno))
    }

    pub(crate) fn protocol(what: impl Into<String>) -> TransportError {
        TransportError::Protocol { what: what.into() }
    }
}
