//! The two-host lab: two or three machines under emulation, each a stock Debian kernel with KVM (AMD-V) in it, joined by networks that can be cut,
//! with a stock Debian guest to run on them. Hosts here really die, hang and lose their wires.
//!
//! Lives here: the machines, their faults, what they run, and the scenarios that prove Lockstep on them. Not here: anything of Lockstep itself.
//! Needs root and Debian 12's packages on the real machine; fetches and prepares what it needs under `target/lab/cache`.

pub mod agent;
pub mod command;
pub mod control;
pub mod error;
pub mod fault;
pub mod host;
pub mod lab;
pub mod net;
pub mod paths;
pub mod prepare;
pub mod qmp;
pub mod run_dir;
pub mod scenario;
pub mod spawner;
pub mod storage;

pub use error::LabError;
pub use host::{Host, HostOptions};
pub use lab::{Lab, LabOptions};
pub use net::Net;
pub use paths::Paths;
pub use storage::Storage;
