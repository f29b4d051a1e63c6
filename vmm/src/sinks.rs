//! Where a machine's output goes, and who carries out its disk requests: the traits that the output buffer and the disk-buffer implement.
//!
//! Lives here: the sink traits and the "full" answer. Not here: any buffer. Guards S1 (every frame, console byte and disk write passes through one of
//! them, so that whoever owns it decides when the world sees it).

use std::os::fd::RawFd;

use types::block::{BlockDone, BlockInfo, BlockRequest};

/// The sink has no room: the device leaves the frame or request in the guest's ring and offers it again after `Machine::retry_output`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the output buffer is full; the frame or disk request stays in the guest's ring until there is room")]
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

/// Carries out the requests of one virtual disk.
///
/// Every method but `info` is called on the device worker's thread only, with the device's lock held, and so never while the machine is paused: a pause
/// cuts the stream of requests exactly, and what has been submitted but not taken as done is part of the machine's state. None of them may block.
pub trait BlockBackend: Send + Sync {
    /// What the guest sees of the disk. Always the same answer. Called on any thread.
    fn info(&self) -> BlockInfo;

    /// Takes one request, which lies within the disk and the bounds of [`types::block`]; a write never goes to a read-only disk. At most
    /// [`types::block::REQUESTS_MAX`] are in flight. Requests may be answered in any order. One that is never answered stays in flight (a disk that failed while
    /// another host can serve): it is carried out anew by the host that takes over.
    ///
    /// # Errors
    /// `SinkFull`: nothing was taken; the device offers it again after `Machine::retry_output` or the next pause.
    fn submit(&self, request: BlockRequest) -> Result<(), SinkFull>;

    /// Appends the answers that have come in since the last call, each request's exactly once, and clears the event.
    fn take_done(&self, into: &mut Vec<BlockDone>);

    /// A descriptor that is readable while answers wait (an eventfd, watched level-triggered). Lives as long as the backend.
    fn event(&self) -> RawFd;
}
