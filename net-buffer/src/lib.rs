//! Output held back until its epoch commits, released in order and in batches.
//!
//! Lives here: the output gate (open, gated, shut), the frames and console bytes that wait behind it, their bounds, and the one turn in
//! which they may be written out ([`Batch`]). Not here: devices, sockets, threads, or the decision that something is committed. Guards S1
//! (held output leaves only for a [`types::Commit`], or for a [`StruckOut`] proof that no standby can activate) and its half of S6 (an
//! epoch that is given up gives its output back, in order).
//!
//! The way of a frame: [`NetBuffer::hold`] -> [`NetBuffer::seal`] -> [`NetBuffer::release`] -> [`Batch`] -> the port.

mod batch;
mod buffer;
mod limits;
mod pool;
mod token;

pub use batch::Batch;
pub use buffer::{Gate, Held, NetBuffer, Pass, Sealed};
pub use limits::{HeldNow, Limits};
pub use token::StruckOut;

use types::{Epoch, Generation};

/// What the buffer refuses to do.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BufferError {
    /// An epoch was sealed out of order or twice.
    #[error("epoch {epoch} cannot be sealed after epoch {last}: epochs are sealed once, in ascending order")]
    NotAscending {
        /// The epoch that was asked for.
        epoch: Epoch,
        /// The newest one that is sealed or released.
        last: Epoch,
    },
    /// A commit or strike-out of another generation than the gate's.
    #[error("proof of generation {proof} cannot open a gate of generation {gate}; nothing was released")]
    WrongGeneration {
        /// Generation of the proof.
        proof: Generation,
        /// Generation in which output is gated.
        gate: Generation,
    },
    /// A commit names an epoch that was never sealed.
    #[error("commit of epoch {epoch}, but the newest sealed epoch is {last}; nothing was released")]
    NotSealed {
        /// Epoch of the commit.
        epoch: Epoch,
        /// The newest one that is sealed or released.
        last: Epoch,
    },
    /// The operation needs another state of the gate.
    #[error("the output gate is {gate:?}; {operation} is not possible")]
    WrongGate {
        /// State of the gate.
        gate: Gate,
        /// What was asked.
        operation: &'static str,
    },
    /// The gate was closed, but a frame that had been let pass before is still being written after the bound.
    #[error(
        "a frame let out before the gate closed is still being written after {after_ms} ms; the gate is closed, but do not record a standby \
         until this call has succeeded"
    )]
    StillWriting {
        /// The bound, milliseconds.
        after_ms: u64,
    },
    /// Limits that contradict each other.
    #[error("output limits are unusable: {0}")]
    Limits(&'static str),
}
