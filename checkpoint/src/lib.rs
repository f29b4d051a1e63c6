//! What an epoch is: page encodings, the wire format, the digests that go with it, and the assembly of parts into a verified epoch.
//!
//! Lives here: pure functions and state machines over byte slices. Not here: I/O, threads, clocks, KVM, and the staging memory itself (that is
//! `transport`'s and `replica`'s). Guards S2 (an epoch is complete and verified, or it is an error) and S7 (hostile bytes end in an error).
//!
//! The path of a page: [`encode::Encoder`] (using [`delta`] and [`cache`]) -> parts as [`wire`] describes them -> [`decode::Part`] ->
//! [`assemble::Assembler`] -> [`decode::Record`]s applied by the standby. Control messages are in [`message`].

#![forbid(unsafe_code)]

pub mod assemble;
pub mod cache;
pub mod codec;
pub mod decode;
pub mod delta;
pub mod digest;
pub mod encode;
pub mod epoch_parts;
pub mod fuzz;
pub mod map;
pub mod message;
pub mod shape;
pub mod tail;
pub mod verify;
pub mod wire;

pub use assemble::{Admitted, AssembleError, Assembler, CompleteEpoch};
pub use decode::{BlockRecord, Part, Record, WireError};
pub use encode::{EncodeError, EncodedPart, Encoder, EncoderConfig, PartInput, Piece};
pub use epoch_parts::{EpochInput, EpochParts};
pub use map::GuestMap;
pub use message::Message;
pub use shape::{GuestBus, GuestShape};
pub use tail::{EpochTail, TailRef};
pub use verify::{MemoryDigest, VerifyMemory};
pub use wire::{DiskBlock, PartHeader, PartKind};

/// One guest page.
pub type Page = [u8; types::PAGE_SIZE];
