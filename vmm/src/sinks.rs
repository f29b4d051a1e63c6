//! Where a machine's output goes: the traits that the output buffer implements.
//!
//! Lives here: the two sink traits and the "full" answer. Not here: any buffer. Guards S1 (every frame and console byte passes through a sink, so that
//! whoever owns the sink decides when the world sees it).

/// The sink has no room: the device keeps the frame and offers it again after `Machine::retry_output`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the output buffer is full; the frame stays in the guest's ring until there is room")]
pub struct SinkFull;

/// Takes the frames a guest sends. Called on the device worker's thread with the device's lock held: it must not block.
pub trait FrameSink: Send + Sync {
    /// Takes a copy of one Ethernet frame (without virtio header) sent on network port `port`.
    ///
    /// # Errors
    /// `SinkFull`: the frame was not taken; the device leaves it in the ring until `Machine::retry_output`.
    fn send(&self, port: u8, frame: &[u8]) -> Result<(), SinkFull>;

    /// Told of each frame from the network right after the guest was given it, on the same thread under the same lock; must not block. What a guest that
    /// is set back to an earlier state has to be given again.
    fn received(&self, port: u8, frame: &[u8]) {
        let _ = (port, frame);
    }
}

/// Takes the bytes a guest writes to its serial console. Called on vCPU threads: it must not block.
pub trait ConsoleSink: Send + Sync {
    /// Takes a copy of `bytes`, in order.
    fn write(&self, bytes: &[u8]);
}
