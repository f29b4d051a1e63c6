//! Who may run: roles, failure detection, arbiters.
//!
//! Lives here: the pure role machine ([`core`]), the pure failure detector ([`detector`]), the record that says who may run
//! ([`record`]), the trait through which it is changed ([`arbiter`]) and its first implementation, a file on storage that both
//! hosts see ([`file`](mod@file)). Not here: connections, threads, the guest. Guards S3.

pub mod arbiter;
pub mod client;
pub mod core;
pub mod detector;
pub mod fence;
pub mod file;
pub mod host;
pub mod memory;
pub mod record;

pub use crate::arbiter::{Arbiter, ArbiterError, Swap};
pub use crate::core::{Action, Answer, Config, Event, Node, Request, RequestId};
pub use crate::detector::{Detector, Verdict};
pub use crate::file::FileArbiter;
pub use crate::record::Record;
