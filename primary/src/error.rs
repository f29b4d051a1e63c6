//! What ends a primary, or keeps it from starting. Losses of a standby are not errors: they are states.

use checkpoint::{EncodeError, codec::CodecError, message::MessageError};
use disk_buffer::DiskError;
use net_buffer::BufferError;
use transport::TransportError;
use vmm::VmmError;

/// Why a primary cannot go on, or why one of its steps failed.
#[derive(Debug, thiserror::Error)]
pub enum PrimaryError {
    /// The machine failed.
    #[error(transparent)]
    Machine(#[from] VmmError),
    /// The link failed.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// An epoch could not be encoded.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The machine's state could not be encoded.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// A control message could not be made or read.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// The output gate refused.
    #[error(transparent)]
    Output(#[from] BufferError),
    /// A disk failed, or cannot be brought together with the standby's.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The host gives no thread.
    #[error("starting the {name} thread: {source}; the host's limit on threads may be reached (ulimit -u)")]
    Thread {
        /// Which thread.
        name: &'static str,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// The standby refused this primary.
    #[error("standby {peer} refused: {reason}")]
    Refused {
        /// Its address.
        peer: String,
        /// Its reason.
        reason: String,
    },
    /// The standby answered with something else than it should.
    #[error("standby {peer} answered {what}; run the same lockstep on both hosts")]
    UnexpectedAnswer {
        /// Its address.
        peer: String,
        /// What came.
        what: String,
    },
    /// A page of the dirty set is not in guest memory.
    #[error("page {gfn} of the dirty set cannot be read from guest memory: {reason}")]
    Page {
        /// The page.
        gfn: types::Gfn,
        /// Why.
        reason: String,
    },
    /// More pages are dirty than guest memory has.
    #[error("{pages} dirty pages do not fit the capture arena of {capacity} pages")]
    ArenaFull {
        /// Pages to capture.
        pages: u64,
        /// Room.
        capacity: u64,
    },
    /// The guest could not be run on.
    #[error("the guest failed: {0}")]
    Guest(String),
}
