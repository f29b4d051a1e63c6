//! A virtio entropy source (virtio 1.2, section 5.4).
//!
//! Lives here: the device, its saved state, its counters, and where randomness comes from. Guards S5 (what it gives is written through vm-memory's log and so
//! travels as memory; a guest that is set back and asks again gets other bytes, which is what it wants) and S7 (bounded per request and per batch).

pub mod device;
mod source;

#[cfg(test)]
mod tests;

pub use device::{RngCounts, RngDevice, RngMetrics, RngState};
pub use source::{Entropy, HostEntropy};
