//! The words of the project as types, so that an epoch cannot be mistaken for a generation, nor output released without a commit.
//!
//! Lives here: newtypes and tokens that more than one crate speaks of. Not here: any behaviour, I/O or policy. Every other crate may
//! use this one. Guards S1 (a [`Commit`] is the only key to held output) and S3 ([`Generation`] is the fencing number).

pub mod block;
pub mod clock;
pub mod cpu;
pub mod event;
pub mod fault;
mod ids;
mod output;
pub mod thread;
mod token;

pub use ids::{Epoch, Generation, Gfn, HostId, NodeId, VmId};
pub use output::{Output, OutputPort};
pub use token::Commit;

/// Bytes in a guest page, the unit of dirty tracking and of the wire format.
pub const PAGE_SIZE: usize = 4096;
