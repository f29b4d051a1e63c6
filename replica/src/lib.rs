//! The standby: receives epochs, stages and verifies them, commits at once, applies afterwards, and activates when it is granted.
//!
//! Lives here: the pure staging machine ([`core`]) and the threads around it. [`run`] is the life of a standby until it becomes a primary or ends.
//!
//! | thread | file | does |
//! |---|---|---|
//! | role (the caller of [`run()`]) | `run.rs` | the role machine, heartbeats, the arbiter's answers, activation (`activate.rs`) |
//! | greeter | `greet.rs` | meets primaries: Hello, a look at the record (`witness.rs`), Welcome or Refuse |
//! | data | `data.rs` | receives parts, verifies, commits; one per link |
//! | control | `control.rs` | messages of the primary; one per link |
//! | apply | `apply.rs` | brings committed epochs into guest memory and hands their disk writes to the disks, off the commit path |
//!
//! Guards S2 (only whole, verified epochs are committed, applied or activated from) and its half of S3 (the staging machine's lock is held while a
//! commit is sent, so none can be sent after the order to stop).

mod activate;
mod apply;
mod backlog;
mod control;
pub mod core;
mod data;
mod disks;
mod error;
mod greet;
mod input;
mod run;
mod shared;
mod verified;
mod witness;

pub use error::ReplicaError;
pub use run::{Activated, Outcome, ReplicaConfig, Setup, run};
