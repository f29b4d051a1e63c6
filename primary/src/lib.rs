//! The primary: runs the guest, ends epochs, sends checkpoints, releases output, and decides nothing by itself.
//!
//! Lives here: the pure pipeline ([`core`]) and the threads around it. [`run`] is the whole life of a primary.
//!
//! | thread | file | does |
//! |---|---|---|
//! | role (the caller of [`run()`]) | `run.rs`, `run/` | the role machine, heartbeats, the arbiter's answers, the machine's events |
//! | epoch | `epoch.rs` | pause, capture (`capture.rs`), resume; the first copy (`sync.rs`, `copy_disks.rs`) |
//! | sender | `sender.rs` | encode, post, reap completions; one per link |
//! | control | `control.rs` | commits in, output out; one per link |
//! | mirror | `mirror.rs` | copies of what the guest receives, for a standby that takes over; one per link |
//! | connector | `connect.rs` | looks for the standby while there is none |
//!
//! `disks.rs` ties the machine's disks to the epochs.
//!
//! Guards S1 (output leaves through [`OutputPath`] only), S5 and S6 (see `capture.rs`, `flights.rs`).

mod capture;
mod connect;
mod control;
mod copy_disks;
pub mod core;
mod disks;
mod epoch;
mod error;
mod flights;
mod last;
mod mirror;
mod output;
mod refusals;
mod resets;
mod run;
mod sender;
mod shared;
mod start;
mod stats;
mod sync;

pub use capture::{CaptureBuffer, Captured, Order, capture};
pub use disks::backends;
pub use error::PrimaryError;
pub use output::{ConsoleOut, OutputPath};
pub use run::{End, PrimaryConfig, Setup, run};
pub use start::{Asking, Start, confirm, start};
