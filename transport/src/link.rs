//! The traits of a link and the two structs that its ends are made of. Not here: any implementation.
//!
//! A link has two connections: **data** (posted writes one way, credits back) and **control** (small messages both ways, never behind pages).
//! It is made in two steps, because Hello and Welcome (opaque here) are exchanged on control *before* the standby commits memory:
//! `pending.control_tx.send(hello)`, `pending.control_rx.receive(..)`, then `pending.open_data(..)`.
//!
//! No implementation has a thread of its own behind the data path: progress is made inside the calls. After [`DataSender::flush`], call
//! [`DataSender::completed`] until the last ticket is reported.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::error::TransportError;
use crate::region::Region;
use crate::staging::{Slot, Staging};

/// Longest control message, bytes. Hello carries the machine's configuration, all others are a few dozen bytes.
pub const MAX_CONTROL_BYTES: usize = 64 * 1024;

/// Most slots a staging area may have. All credits outstanding at once (4 bytes each) then fit a socket buffer with room to spare.
pub const MAX_SLOTS: u32 = 16 * 1024;

/// Largest slot, bytes. Offsets and lengths on the wire are 32 bits.
pub const MAX_SLOT_BYTES: u32 = 1 << 30;

/// Shape of the standby's staging: how many slots, and how large each is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Number of slots, 1 to [`MAX_SLOTS`].
    pub slots: u32,
    /// Bytes in each slot, a multiple of the page size, at most [`MAX_SLOT_BYTES`].
    pub slot_bytes: u32,
}

impl Geometry {
    /// Checks the bounds; a geometry from a peer's Welcome must pass before it is used.
    ///
    /// # Errors
    /// [`TransportError::Misuse`] naming the bound.
    pub fn validate(self) -> Result<Geometry, TransportError> {
        let page = types::PAGE_SIZE as u32;
        if self.slots == 0 || self.slots > MAX_SLOTS {
            return Err(TransportError::Misuse(format!("{} staging slots; 1 to {MAX_SLOTS} are possible", self.slots)));
        }
        if self.slot_bytes == 0 || self.slot_bytes > MAX_SLOT_BYTES || !self.slot_bytes.is_multiple_of(page) {
            return Err(TransportError::Misuse(format!(
                "staging slots of {} bytes; a multiple of {page} up to {MAX_SLOT_BYTES} is possible",
                self.slot_bytes
            )));
        }
        Ok(self)
    }

    /// Bytes of address space that the whole staging takes.
    #[must_use]
    pub fn total_bytes(self) -> usize {
        self.slots as usize * self.slot_bytes as usize
    }
}

/// A staging slot of the peer, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotId(pub u32);

impl fmt::Display for SlotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A region registered with one sender; another sender's ids mean nothing to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RegionId(pub u32);

/// One run of bytes in a registered region, to be gathered into a posted write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Which region.
    pub region: RegionId,
    /// First byte within it.
    pub offset: usize,
    /// Number of bytes.
    pub len: usize,
}

/// The primary's end of the data connection; used by its sender thread.
pub trait DataSender: Send {
    /// Shape of the peer's staging.
    fn geometry(&self) -> Geometry;

    /// Makes `region` known, once, before anything is posted from it. It is kept alive until the sender is dropped.
    ///
    /// # Errors
    /// [`TransportError::Misuse`] when too many are registered.
    fn register(&mut self, region: Arc<Region>) -> Result<RegionId, TransportError>;

    /// Takes a free slot of the peer (a credit), the most recently freed first. `None`: none became free within `timeout`.
    ///
    /// Also moves posted writes along while it waits.
    ///
    /// # Errors
    /// [`TransportError::PeerGone`], [`TransportError::Protocol`].
    fn acquire(&mut self, timeout: Duration) -> Result<Option<SlotId>, TransportError> {
        self.acquire_among(u32::MAX, timeout)
    }

    /// As [`DataSender::acquire`], but waits while `most` slots are not free: a long stream then goes through few slots, whose memory the peer
    /// has touched already.
    ///
    /// # Errors
    /// As [`DataSender::acquire`].
    fn acquire_among(&mut self, most: u32, timeout: Duration) -> Result<Option<SlotId>, TransportError>;

    /// Queues a write of the pieces, one after the other, to `offset` in an acquired slot. Writes may come in any order of offsets but must
    /// not overlap. The bytes must stay unchanged (keep the [`crate::RegionRef`]) until the ticket of the slot's end is completed.
    ///
    /// # Errors
    /// [`TransportError::Misuse`] for ranges outside the region or the slot or still claimed for writing, [`TransportError::SlotNotOwned`].
    fn post_write(&mut self, slot: SlotId, offset: u32, pieces: &[Piece]) -> Result<(), TransportError>;

    /// Queues the end of a slot: its first `len` bytes are complete. The peer is told after all writes to the slot have landed. The slot is
    /// the peer's from here on. `ticket` must be higher than any before it.
    ///
    /// # Errors
    /// [`TransportError::Misuse`] when `len` is not the number of bytes posted, [`TransportError::SlotNotOwned`].
    fn post_end(&mut self, slot: SlotId, len: u32, ticket: u64) -> Result<(), TransportError>;

    /// Gets everything posted moving, in one submission where possible.
    ///
    /// # Errors
    /// [`TransportError::PeerGone`], [`TransportError::Protocol`].
    fn flush(&mut self) -> Result<(), TransportError>;

    /// Highest ticket whose local buffers may be reused, once it is higher than the one last reported. `None`: nothing new within
    /// `timeout`, or (at once) nothing is outstanding. Completion says nothing about the peer having the bytes; only a commit does.
    ///
    /// # Errors
    /// [`TransportError::PeerGone`], [`TransportError::Protocol`].
    fn completed(&mut self, timeout: Duration) -> Result<Option<u64>, TransportError>;
}

/// The standby's end of the data connection; used by its data thread.
pub trait DataReceiver: Send {
    /// The next slot that the sender has ended, in the order of ends. `None`: none within `timeout`.
    ///
    /// # Errors
    /// [`TransportError::PeerGone`] at once when the peer dies (ends that arrived before are handed out first), [`TransportError::Protocol`]
    /// when the peer breaks a rule. After an error the receiver only errs.
    fn receive(&mut self, timeout: Duration) -> Result<Option<Slot>, TransportError>;
}

/// Sends small messages; callable from several threads (heartbeats, commits). Messages of one sender arrive in order.
pub trait ControlSender: Send + Sync {
    /// Sends one message of at most [`MAX_CONTROL_BYTES`]; never waits behind pages.
    ///
    /// # Errors
    /// [`TransportError::Oversize`], [`TransportError::PeerGone`], [`TransportError::TimedOut`] when the peer has stopped reading.
    fn send(&self, message: &[u8]) -> Result<(), TransportError>;

    /// Sends one message that may as well be lost, if it need not wait and would keep no later message waiting: `false` when it was left out because
    /// someone else is sending or bytes sent before are still on their way.
    ///
    /// # Errors
    /// As [`ControlSender::send`].
    fn send_if_quiet(&self, message: &[u8]) -> Result<bool, TransportError> {
        self.send(message).map(|()| true)
    }
}

/// Receives small messages in order.
pub trait ControlReceiver: Send {
    /// The next message. `None`: none within `timeout`.
    ///
    /// # Errors
    /// [`TransportError::PeerGone`] at once when the peer's process dies (after the messages that came before),
    /// [`TransportError::Protocol`] for an oversize message.
    fn receive(&mut self, timeout: Duration) -> Result<Option<Vec<u8>>, TransportError>;
}

/// The primary's end of an open link.
pub struct PrimaryLink {
    /// Messages to the standby.
    pub control_tx: Arc<dyn ControlSender>,
    /// Messages from the standby.
    pub control_rx: Box<dyn ControlReceiver>,
    /// Parts to the standby.
    pub data: Box<dyn DataSender>,
}

/// The standby's end of an open link.
pub struct StandbyLink {
    /// Messages to the primary.
    pub control_tx: Arc<dyn ControlSender>,
    /// Messages from the primary.
    pub control_rx: Box<dyn ControlReceiver>,
    /// Parts from the primary.
    pub data: Box<dyn DataReceiver>,
}

/// Makes the primary's data connection once the geometry is known; each implementation has its own.
pub(crate) type OpenSender = Box<dyn FnOnce(Geometry) -> Result<Box<dyn DataSender>, TransportError> + Send>;
/// Makes the standby's data connection once the staging exists.
pub(crate) type OpenReceiver = Box<dyn FnOnce(Arc<Staging>) -> Result<Box<dyn DataReceiver>, TransportError> + Send>;

/// The primary's end with control open and data not yet: exchange Hello and Welcome, then [`PrimaryPending::open_data`].
pub struct PrimaryPending {
    /// Messages to the standby.
    pub control_tx: Arc<dyn ControlSender>,
    /// Messages from the standby.
    pub control_rx: Box<dyn ControlReceiver>,
    /// Address of the standby, for messages to people.
    pub peer: String,
    pub(crate) open: OpenSender,
}

impl PrimaryPending {
    /// Opens the data connection into staging of the shape that the peer's Welcome named.
    ///
    /// # Errors
    /// [`TransportError::TimedOut`] when the standby does not open its end, [`TransportError::Protocol`] when its staging has another shape.
    pub fn open_data(self, geometry: Geometry) -> Result<PrimaryLink, TransportError> {
        let data = (self.open)(geometry.validate()?)?;
        Ok(PrimaryLink { control_tx: self.control_tx, control_rx: self.control_rx, data })
    }
}

/// The standby's end with control open and data not yet: answer the Hello with a Welcome and [`StandbyPending::open_data`], or
/// [`StandbyPending::reject`] it.
pub struct StandbyPending {
    /// Messages to the primary.
    pub control_tx: Arc<dyn ControlSender>,
    /// Messages from the primary.
    pub control_rx: Box<dyn ControlReceiver>,
    /// Address of the primary, for messages to people.
    pub peer: String,
    pub(crate) open: OpenReceiver,
}

/// How long [`StandbyPending::reject`] waits for the refused peer to hang up, so that the reason is not lost to a connection reset.
const REJECT_LINGER: Duration = Duration::from_millis(250);

impl StandbyPending {
    /// Waits for the peer's data connection and gives it `staging` to write into.
    ///
    /// # Errors
    /// [`TransportError::TimedOut`] when the peer does not open its end, [`TransportError::Misuse`] when `staging` serves another link.
    pub fn open_data(self, staging: Arc<Staging>) -> Result<StandbyLink, TransportError> {
        let data = (self.open)(staging)?;
        Ok(StandbyLink { control_tx: self.control_tx, control_rx: self.control_rx, data })
    }

    /// Sends one last message (a Refuse with its reason) and hangs up.
    ///
    /// # Errors
    /// As [`ControlSender::send`]; the connection is closed in any case.
    pub fn reject(mut self, reason: &[u8]) -> Result<(), TransportError> {
        self.control_tx.send(reason)?;
        let until = std::time::Instant::now() + REJECT_LINGER;
        // Reads what the peer still sends until it hangs up: closing with unread bytes would reset the connection under the reason.
        while let Some(left) = until.checked_duration_since(std::time::Instant::now()) {
            if !matches!(self.control_rx.receive(left), Ok(Some(_))) {
                break;
            }
        }
        Ok(())
    }
}
