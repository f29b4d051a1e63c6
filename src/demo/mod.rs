//! `lockstep demo`: a world of namespaces, a primary and a standby as processes, clients, a death in the middle, and the proof that nothing was lost.
//!
//! Lives here: the world ([`world`]), nodes as processes ([`process`]), clients and the judge of their histories ([`client`], [`history`]), the
//! course of events ([`scenario`]) and the report ([`report`]). Not here: anything that replicates; the nodes are this program's own `run`
//! and `standby`. The end-to-end tests and the benchmarks use the same parts. Guards S4 as its judge.

pub mod client;
pub mod history;
mod measure;
pub mod namespace;
pub mod process;
pub mod progress;
pub mod report;
pub mod resp;
pub mod room;
pub mod scenario;
pub mod world;

use std::path::PathBuf;

use crate::config::units::{ByteSize, Span};

/// How the primary is made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kill {
    /// SIGKILL: the process, or its host, is gone.
    Crash,
    /// SIGSTOP, and SIGCONT after the standby has taken over: a host that stalls and comes back.
    Hang,
    /// Not at all.
    None,
}

impl Kill {
    /// As it is written on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Kill::Crash => "crash",
            Kill::Hang => "hang",
            Kill::None => "none",
        }
    }
}

/// Most clients: the guest's server holds 64 connections, of which the demo needs one for itself.
pub const MOST_CLIENTS: usize = 63;

/// Options of `lockstep demo`.
#[derive(Clone, Debug, clap::Args)]
pub struct DemoOptions {
    /// Length of the run
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u64).range(2..=86_400))]
    pub seconds: u64,
    /// Guest memory, in whole 2 MiB pieces
    #[arg(long, value_name = "SIZE", default_value = "256M")]
    pub memory: ByteSize,
    /// Virtual CPUs
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub vcpus: u32,
    /// Clients, each with one connection (1 to 63)
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clients)]
    pub clients: usize,
    /// Pages a second that the guest dirties beside serving the clients
    #[arg(long, value_name = "PAGES", default_value_t = 2000, value_parser = clap::value_parser!(u64).range(0..=100_000_000))]
    pub dirty_rate: u64,
    /// How the primary is made to fail
    #[arg(long, value_enum, value_name = "HOW", default_value_t = Kill::Crash)]
    pub kill: Kill,
    /// Repeats the random choices of an earlier run [default: random]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Print the report as one JSON object
    #[arg(long)]
    pub json: bool,
    /// Compare a digest of all guest memory at both ends at every epoch (slow)
    #[arg(long)]
    pub verify_memory: bool,
    /// Silence after which a node holds its peer to be gone, at least twice the heartbeat interval of 20ms [default: 200ms]
    #[arg(long, value_name = "DURATION")]
    pub detection_bound: Option<Span>,
    /// Also write the report, as JSON, to FILE
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Log filter of the two nodes; their last words are shown when one fails
    #[arg(long, value_name = "FILTER", default_value = "info")]
    pub log: String,
}

fn clients(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| (1..=MOST_CLIENTS).contains(n)).ok_or_else(|| format!("write a number from 1 to {MOST_CLIENTS}"))
}
