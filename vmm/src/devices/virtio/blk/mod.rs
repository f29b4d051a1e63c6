//! A virtio disk (virtio 1.2, section 5.2).
//!
//! Lives here: the device, the meaning of a request's bytes, its saved state, its counters. Not here: the medium and what becomes of a write until its
//! epoch commits ([`crate::BlockBackend`], implemented by the disk-buffer).
//!
//! The path of a write: guest's ring -> [`request`] (checked) -> [`device`] (copied out of guest memory) -> [`crate::BlockBackend`] -> [`device`] (status
//! byte, used ring, interrupt). Data is always copied by the device worker, so nothing lands in guest memory during a pause (S5).
//!
//! Offered: VERSION_1, EVENT_IDX (fewer kicks and interrupts), INDIRECT_DESC (a request takes one descriptor of the ring, so 256 can be in flight), SEG_MAX and
//! SIZE_MAX (together they bound a request), BLK_SIZE, TOPOLOGY, FLUSH, RO, and on disks that can be written DISCARD and WRITE_ZEROES. The same on every
//! host, whatever its medium can do. Not offered: MQ (one worker serves all devices, so more queues would gain nothing) and CONFIG_WCE (a guest that flushes
//! is always honoured; to one that does not, every write is durable when it is answered).

pub mod device;
pub mod metrics;
mod request;
mod space;
pub mod state;

#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod lifecycle_tests;
#[cfg(test)]
mod random_tests;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod worker_tests;

pub use device::BlkDevice;
pub use metrics::{BlkCounts, BlkMetrics};
pub use state::BlkState;
