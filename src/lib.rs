//! The `lockstep` program as a library, so that tests and benchmarks drive what users drive.
//!
//! Lives here: the command line, the configuration, the host check, the demo and the binding of a node's parts. Not here: any mechanism of
//! replication or virtualisation; those are the crates below.

pub mod check;
pub mod cli;
pub mod config;
pub mod demo;
pub mod host;
pub mod node;
pub mod signals;
