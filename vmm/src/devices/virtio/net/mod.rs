//! A virtio network card over a TAP.
//!
//! Lives here: the device, its saved state, what it learns of the guest's addresses, what is announced after a failover, its counters.
//! Not here: holding frames back (the sink), the TAP itself ([`crate::devices::tap`]).
//!
//! The path of a frame out: guest's ring -> [`device`] (copied, completed at once) -> [`crate::FrameSink`]. The path in:
//! [`crate::devices::tap::FrameSource`] -> [`device`] -> guest's ring.
//!
//! Offered: VERSION_1, EVENT_IDX (fewer kicks and interrupts), MAC. Not offered: checksum and segmentation offload (frames must be whole
//! when they are released or sent again by another host) and MRG_RXBUF (without segmentation offload every frame fits one buffer).

pub mod announce;
pub mod device;
pub mod learn;
pub mod metrics;
pub mod state;

#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use announce::announcements;
pub use device::{NetConfig, NetDevice};
pub use learn::Learned;
pub use metrics::{NetCounts, NetMetrics};
pub use state::NetState;

/// An Ethernet address, as it stands in a frame.
pub type Mac = [u8; 6];
