//! Moving bytes between a primary and its standby: the traits of a link, and its implementations.
//!
//! Lives here: registered memory ([`Region`]), the standby's landing place ([`Staging`], [`Slot`]), the traits of a link ([`link`]), TCP over
//! io_uring ([`tcp`]) and an in-process link with fault injection ([`inproc`]). Not here: what the bytes mean (that is `checkpoint`), who may
//! run the guest (`failover`), any policy about retries. Guards S7 (every byte from the wire is checked before it is believed) and the
//! transport's share of S2: a part that was not ended by its sender is never handed out.
//!
//! The traits are shaped for one-sided RDMA: memory is registered once, writes are posted into the peer's slots, an end marker tells the
//! peer that a slot is complete, completions tell the sender which of its buffers are free again, and credits tell it which slots are.

mod book;
pub mod error;
pub mod inproc;
pub mod link;
mod map;
pub mod prompt_death;
pub mod pump;
pub mod region;
pub mod staging;
pub mod tcp;

pub use error::{GoneCause, TransportError};
pub use link::{
    ControlReceiver, ControlSender, DataReceiver, DataSender, Geometry, MAX_CONTROL_BYTES, Piece, PrimaryLink, PrimaryPending, RegionId,
    SlotId, StandbyLink, StandbyPending,
};
pub use region::{Region, RegionMut, RegionRef};
pub use staging::{Slot, Staging};
