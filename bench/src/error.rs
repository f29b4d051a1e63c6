//! Why a figure could not be measured. A figure that was measured and missed its goal is no error.

use std::io;
use std::path::PathBuf;

use lockstep::demo::process::ProcessError;
use lockstep::demo::world::WorldError;

/// Why a figure could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The namespaces could not be made or changed.
    #[error("cannot build the hosts and networks: {0}; run as root, with iproute2 and /dev/net/tun")]
    World(#[from] WorldError),
    /// A node failed.
    #[error("a node failed: {0}")]
    Node(#[from] ProcessError),
    /// The program under test is not there.
    #[error("there is no program {path}; build it: cargo build --release -p lockstep (make bench does)")]
    NoProgram {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The machine under test failed.
    #[error("the machine of the pause benchmark: {0}")]
    Machine(#[from] vmm::VmmError),
    /// A capture failed.
    #[error("a capture: {0}")]
    Capture(#[from] primary::PrimaryError),
    /// The small guest did something else than it was made for.
    #[error("the writing guest: {0}")]
    Writer(String),
    /// The link under test failed.
    #[error("the link of the stream benchmark: {0}")]
    Link(#[from] transport::TransportError),
    /// A disk failed.
    #[error("the disk benchmark: {0}")]
    Disk(#[from] disk_buffer::DiskError),
    /// A part could not be made.
    #[error("the encoder: {0}")]
    Encode(#[from] checkpoint::EncodeError),
    /// A part, or an epoch, did not arrive as it was sent.
    #[error("the stream benchmark: {0}")]
    Stream(String),
    /// The guest cannot be reached or gives wrong answers.
    #[error("the guest did not answer {asked}: {why}")]
    Guest {
        /// What it was asked.
        asked: &'static str,
        /// What came instead.
        why: String,
    },
    /// A client saw something that must never be.
    #[error("a broken promise: {0}")]
    Broken(String),
    /// redis-benchmark cannot be used.
    #[error("redis-benchmark {why}; install Debian's redis-tools")]
    Redis {
        /// What is wrong.
        why: String,
    },
    /// A file or the system.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A measuring thread ended by a panic.
    #[error("a measuring thread failed; this is a defect of the benchmark")]
    Thread,
    /// Nothing was measured for this figure.
    #[error("nothing was measured for: {0}")]
    NothingMeasured(&'static str),
    /// A picture could not be drawn.
    #[error(transparent)]
    Chart(#[from] crate::chart::ChartError),
    /// Ctrl-C.
    #[error("interrupted")]
    Interrupted,
}

impl BenchError {
    /// For `map_err`: wraps what the system said about `what`.
    pub fn io(what: &'static str) -> impl FnOnce(io::Error) -> BenchError {
        move |source| BenchError::Io { what, source }
    }

    /// Whether this is the user's own wish.
    #[must_use]
    pub fn is_interrupt(&self) -> bool {
        matches!(self, BenchError::Interrupted | BenchError::Node(ProcessError::Cancelled))
    }
}
