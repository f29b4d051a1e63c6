//! Control messages: what primary and standby say to each other beside pages.
//!
//! ```text
//! message = magic "LK" (2 bytes) version (u16, little endian) body (bincode)
//! ```
//!
//! The first four bytes never change, so that a node of any version can name the other's. Framing (where a message ends) is the transport's.
//!
//! Lives here: the messages and their bytes. Not here: who says what when (`failover`, `primary`, `replica`). Guards S7: size limit, version and
//! leftover bytes are checked before a message is believed.

use serde::{Deserialize, Serialize};
use types::block::DiskIndex;
use types::{Epoch, Generation, NodeId, VmId};

use crate::codec::{self, CodecError};
use crate::shape::GuestShape;
use crate::verify::VerifyMemory;

/// The version of the control protocol, and the only one accepted.
pub const PROTOCOL: u16 = 5;
/// Largest message, bytes: the longest is a `Hello` with its names, some network ports and the disks' change logs in short form.
pub const MAX_MESSAGE_BYTES: usize = 64 << 10;

const MAGIC: [u8; 2] = *b"LK";
const PREFIX_BYTES: usize = 4;

/// What primary and standby say to each other on the control connection. Who may say what is with each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// Primary to standby, first: what would be replicated.
    Hello(Hello),
    /// Standby to primary, in answer: it is willing.
    Welcome(Welcome),
    /// Either way: the link will not be used.
    Refuse {
        /// Why, for the peer's operator.
        reason: String,
    },
    /// Both ways: still alive.
    Heartbeat {
        /// The sender's generation.
        generation: Generation,
        /// Counts up from 1 on a link.
        sequence: u64,
    },
    /// Standby to primary: everything up to this epoch is here, verified.
    Commit {
        /// The generation of the link.
        generation: Generation,
        /// The newest epoch held.
        epoch: Epoch,
    },
    /// Standby to primary: everything up to this epoch is on the medium of its copy of a disk.
    Durable {
        /// The generation of the link.
        generation: Generation,
        /// Which disk.
        disk: DiskIndex,
        /// The newest epoch whose writes are all durable.
        epoch: Epoch,
    },
    /// Primary to standby: the arbiter's record names the standby, so it may activate from now on.
    Recorded {
        /// The generation of the record.
        generation: Generation,
    },
    /// Primary to standby: the guest ended on purpose; do not activate.
    Shutdown {
        /// How it ended.
        reason: String,
    },
    /// Primary: frames that the guest was given. Best effort, for a standby to give them again to a guest that it takes over in an earlier state.
    Input {
        /// The primary's generation.
        generation: Generation,
        /// The frames, in order.
        frames: Vec<InputFrame>,
    },
    /// Primary to standby: every write to a shared disk, up to this epoch's end, is on the disk. The standby need not keep them any more.
    Issued {
        /// The generation of the link.
        generation: Generation,
        /// Which disk.
        disk: DiskIndex,
        /// The newest epoch whose writes are all on it.
        epoch: Epoch,
    },
    /// Standby to primary: whether it sees the arbiter's record name it. Said once it has looked, and when that changes. Nothing but what operators are told rests on it.
    Sight {
        /// The generation of the link.
        generation: Generation,
        /// Why it could not take over now; none: it sees the record.
        trouble: Option<String>,
    },
}

impl Message {
    /// The message's name, for people: what a peer says may be long, and is not shown.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Message::Hello(_) => "Hello",
            Message::Welcome(_) => "Welcome",
            Message::Refuse { .. } => "Refuse",
            Message::Heartbeat { .. } => "Heartbeat",
            Message::Commit { .. } => "Commit",
            Message::Durable { .. } => "Durable",
            Message::Recorded { .. } => "Recorded",
            Message::Shutdown { .. } => "Shutdown",
            Message::Input { .. } => "Input",
            Message::Issued { .. } => "Issued",
            Message::Sight { .. } => "Sight",
        }
    }
}

/// A frame from the network that the guest was given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputFrame {
    /// In this epoch: its commit makes the frame a thing of the past.
    pub epoch: Epoch,
    /// On this port.
    pub port: u8,
    /// The frame.
    pub bytes: Vec<u8>,
}

/// See [`Message::Hello`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The primary's [`PROTOCOL`].
    pub protocol: u16,
    /// The virtual machine.
    pub vm: VmId,
    /// The primary.
    pub node: NodeId,
    /// The generation in which it runs the guest.
    pub generation: Generation,
    /// The guest's shape.
    pub shape: GuestShape,
    /// Digest of the kernel, initramfs and command line that the primary boots its guest from. A standby with others is warned of, not refused: nothing depends on it until the guest reboots.
    pub boot: u64,
    /// What of memory every epoch's tail will carry a digest of, to be compared.
    pub verify_memory: VerifyMemory,
    /// What the primary says of its copies of the disks, as the disk-buffer describes them (encoded: this crate does not know them).
    pub disks: Vec<u8>,
}

/// See [`Message::Welcome`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The standby.
    pub node: NodeId,
    /// Its staging slots.
    pub slots: u32,
    /// Bytes of each.
    pub slot_bytes: u32,
    /// What the standby says of its copies of the disks, as in [`Hello::disks`].
    pub disks: Vec<u8>,
}

/// Bytes are not a message, or a message cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// Longer than [`MAX_MESSAGE_BYTES`].
    #[error("a control message of {bytes} bytes exceeds the limit of {MAX_MESSAGE_BYTES} bytes")]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
    /// Not a message at all.
    #[error("the bytes on the control connection are not a Lockstep message")]
    NotAMessage,
    /// Another version of the protocol.
    #[error("the peer speaks control protocol {theirs}, this node only {ours}: run the same release on both hosts")]
    Version {
        /// The peer's.
        theirs: u16,
        /// Ours.
        ours: u16,
    },
    /// Malformed.
    #[error("a control message is malformed: {0}")]
    Codec(#[from] CodecError),
}

/// The message's bytes.
///
/// # Errors
/// [`MessageError::TooLarge`] when names or reasons are longer than any message may be.
pub fn encode(message: &Message) -> Result<Vec<u8>, MessageError> {
    let mut out = Vec::with_capacity(64);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&PROTOCOL.to_le_bytes());
    codec::encode_into(message, &mut out)?;
    if out.len() > MAX_MESSAGE_BYTES {
        return Err(MessageError::TooLarge { bytes: out.len() });
    }
    Ok(out)
}

/// The message that `bytes` are, and nothing else.
///
/// # Errors
/// [`MessageError`].
pub fn decode(bytes: &[u8]) -> Result<Message, MessageError> {
    if bytes.len() > MAX_MESSAGE_BYTES {
        return Err(MessageError::TooLarge { bytes: bytes.len() });
    }
    let Some((prefix, body)) = bytes.split_first_chunk::<PREFIX_BYTES>() else {
        return Err(MessageError::NotAMessage);
    };
    let [m0, m1, v0, v1] = *prefix;
    if [m0, m1] != MAGIC {
        return Err(MessageError::NotAMessage);
    }
    let theirs = u16::from_le_bytes([v0, v1]);
    if theirs != PROTOCOL {
        return Err(MessageError::Version { theirs, ours: PROTOCOL });
    }
    Ok(codec::decode(body)?)
}
