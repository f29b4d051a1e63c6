//! What can go wrong in the lab. Every error names what was done to what, and what to do about it where that is known.

use std::io;
use std::time::Duration;

use lockstep::demo::namespace::NamespaceError;

/// Why something in the lab did not work.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// A system call failed.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was done to what.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// A program of the real machine failed.
    #[error("{what} failed ({status}): {said}")]
    Command {
        /// The command.
        what: String,
        /// How it ended.
        status: String,
        /// The end of what it said.
        said: String,
    },
    /// Something took longer than it may.
    #[error("{what} did not come about within {bound:?}{detail}")]
    Late {
        /// What was awaited.
        what: String,
        /// How long.
        bound: Duration,
        /// More about it, such as the end of a log; may be empty.
        detail: String,
    },
    /// A command in a host or guest ended with an error.
    #[error("{place}: `{script}` ended with status {status}: {said}")]
    Remote {
        /// The host or guest.
        place: String,
        /// The script.
        script: String,
        /// Its exit status.
        status: String,
        /// The end of what it said.
        said: String,
    },
    /// A host is not running.
    #[error("{host} is not running: {why}")]
    Dead {
        /// The host.
        host: String,
        /// Why, with the end of its console.
        why: String,
    },
    /// QEMU refused a command on its control socket.
    #[error("{host}: QEMU refused {what}: {said}")]
    Qemu {
        /// The host.
        host: String,
        /// The command.
        what: String,
        /// Its answer.
        said: String,
    },
    /// A network namespace could not be made or used.
    #[error("cannot use a network namespace")]
    Namespace(#[from] NamespaceError),
    /// Something that the lab needs is missing here.
    #[error("{what} is missing: {remedy}")]
    Missing {
        /// What.
        what: String,
        /// What to do.
        remedy: String,
    },
    /// The lab itself did not do its part: nothing is known about what was tested.
    #[error("lab trouble: {0}")]
    Trouble(#[source] Box<LabError>),
    /// A scenario could not do its least rounds in its share of the time.
    #[error(
        "too slow here: {done} of at least {least} rounds done after {used:.0?}, and its share of the time is {share:.0?} (--budget gives the suite more)"
    )]
    TooSlow {
        /// Rounds done.
        done: u32,
        /// Rounds without which nothing is proved.
        least: u32,
        /// The time it had.
        share: Duration,
        /// The time it took.
        used: Duration,
    },
    /// What was asked for makes no sense: the asker must ask otherwise.
    #[error("{0}")]
    Usage(String),
    /// A scenario found what must not be.
    #[error("{0}")]
    Found(String),
    /// Ctrl-C.
    #[error("interrupted")]
    Interrupted,
}

impl LabError {
    /// The same as trouble of the lab, for what the tested programs have no part in.
    #[must_use]
    pub fn trouble(self) -> LabError {
        match self {
            LabError::Trouble(_) => self,
            other => LabError::Trouble(Box::new(other)),
        }
    }

    /// Whether the lab itself did not do its part.
    #[must_use]
    pub fn is_trouble(&self) -> bool {
        matches!(self, LabError::Trouble(_))
    }

    /// For `map_err` on a system call: `LabError::io(|| format!("read {path}"))`.
    pub fn io(what: impl FnOnce() -> String) -> impl FnOnce(io::Error) -> LabError {
        move |source| LabError::Io { what: what(), source }
    }
}

/// The error with everything behind it, on one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let more = source.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = source.source();
    }
    text
}
