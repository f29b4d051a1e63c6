//! A node as a child process in the world: started, listened to, stopped, killed. The end-to-end tests and the benchmarks use it too.
//!
//! Events come over the child's standard output (`--events -`), its log goes to a file, of which the end is shown when something goes wrong.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use types::event::{NodeEvent, NodeEventKind, Protection};

use super::world::{Host, Place, World, WorldError};
use crate::host::monotonic_ns;

/// Events kept of one node; beyond it lines of samples are dropped (ten a second for a day), other events never come that often.
const MOST_EVENTS: usize = 1_000_000;
/// How often a wait looks whether it was cancelled.
const TICK: Duration = Duration::from_millis(20);
/// Lines of a log shown when a node fails.
const LOG_TAIL: usize = 12;

/// What went wrong with a node's process.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// It could not be started.
    #[error("cannot start the node {name}")]
    Start {
        /// The node.
        name: String,
        /// Why.
        source: WorldError,
    },
    /// Its log file could not be made.
    #[error("cannot make the log file {path}")]
    Log {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It ended while something was awaited from it.
    #[error("node {name} ended ({status}) before {awaited}; its last words:\n{tail}")]
    Ended {
        /// The node.
        name: String,
        /// How it ended.
        status: String,
        /// What was awaited.
        awaited: String,
        /// The end of its log.
        tail: String,
    },
    /// It did not do in time what was awaited.
    #[error("node {name} did not reach \"{awaited}\" within {bound:?}; its last words:\n{tail}")]
    Late {
        /// The node.
        name: String,
        /// What was awaited.
        awaited: String,
        /// How long.
        bound: Duration,
        /// The end of its log.
        tail: String,
    },
    /// The wait was cancelled (Ctrl-C).
    #[error("interrupted")]
    Cancelled,
    /// A signal could not be sent.
    #[error("cannot signal node {name}")]
    Signal {
        /// The node.
        name: String,
        /// What the system said.
        source: io::Error,
    },
}

/// The events a node has told so far.
#[derive(Debug, Default)]
struct Told {
    events: Vec<NodeEvent>,
    /// The stream has ended.
    closed: bool,
}

#[derive(Debug, Default)]
struct Ear {
    told: Mutex<Told>,
    news: Condvar,
}

impl Ear {
    fn lock(&self) -> MutexGuard<'_, Told> {
        // A thread that panicked while it held the lock left at worst an event out.
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn listen(&self, name: &str, stream: ChildStdout) {
        for line in BufReader::new(stream).lines() {
            let Ok(line) = line else { break };
            match serde_json::from_str::<NodeEvent>(&line) {
                Ok(event) => {
                    let mut told = self.lock();
                    if told.events.len() < MOST_EVENTS || !matches!(event.what, NodeEventKind::Samples { .. }) {
                        told.events.push(event);
                    }
                }
                Err(error) => tracing::warn!(name, %error, line, "a line that is no event"),
            }
            self.news.notify_all();
        }
        self.lock().closed = true;
        self.news.notify_all();
    }
}

/// A running node. Killed when dropped.
#[derive(Debug)]
pub struct NodeProcess {
    name: String,
    child: Child,
    ear: Arc<Ear>,
    log: PathBuf,
}

impl NodeProcess {
    /// Starts `program arguments.. --events -` on `host`, with its log in `directory/NAME.log`. It dies with the calling thread.
    ///
    /// # Errors
    /// The program or the log file is missing.
    pub fn start(
        world: &World,
        host: Host,
        name: &str,
        program: &Path,
        arguments: &[OsString],
        directory: &Path,
    ) -> Result<Self, ProcessError> {
        let log = directory.join(format!("{name}.log"));
        let file = File::create(&log).map_err(|source| ProcessError::Log { path: log.clone(), source })?;
        let mut command = Command::new(program);
        command.args(arguments).args(["--events", "-"]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(file);
        let mut child =
            world.spawn(Place::On(host), &mut command).map_err(|source| ProcessError::Start { name: name.to_owned(), source })?;
        let ear = Arc::new(Ear::default());
        if let Some(stream) = child.stdout.take() {
            let (ear, name) = (Arc::clone(&ear), name.to_owned());
            std::thread::spawn(move || ear.listen(&name, stream));
        }
        Ok(NodeProcess { name: name.to_owned(), child, ear, log })
    }

    /// Waits until `pick` finds what it looks for among the events told so far, from the first on.
    ///
    /// # Errors
    /// The node ended, was too slow, or `cancelled` was set.
    pub fn wait_for<T>(
        &mut self,
        awaited: &str,
        bound: Duration,
        cancelled: &AtomicBool,
        mut pick: impl FnMut(&NodeEvent) -> Option<T>,
    ) -> Result<T, ProcessError> {
        let deadline = Instant::now() + bound;
        let mut looked_at = 0;
        let mut told = self.ear.lock();
        loop {
            if let Some(found) = told.events[looked_at..].iter().find_map(&mut pick) {
                return Ok(found);
            }
            looked_at = told.events.len();
            if cancelled.load(Ordering::Relaxed) {
                return Err(ProcessError::Cancelled);
            }
            if told.closed {
                drop(told);
                return Err(self.ended(awaited));
            }
            if Instant::now() >= deadline {
                drop(told);
                return Err(self.late(awaited, bound));
            }
            told = self.ear.news.wait_timeout(told, TICK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Everything told so far.
    #[must_use]
    pub fn events(&self) -> Vec<NodeEvent> {
        self.ear.lock().events.clone()
    }

    /// How safe the node's guest is by its newest word.
    #[must_use]
    pub fn protection(&self) -> Option<Protection> {
        let told = self.ear.lock();
        told.events.iter().rev().find_map(|event| match event.what {
            NodeEventKind::State { protection, .. } => Some(protection),
            _ => None,
        })
    }

    /// Ends the node at once, as a host's death would, and reaps it; when that was.
    ///
    /// # Errors
    /// The signal cannot be sent.
    pub fn crash(&mut self) -> Result<u64, ProcessError> {
        let at = monotonic_ns();
        self.signal(Signal::SIGKILL)?;
        let _ = self.child.wait();
        Ok(at)
    }

    /// Stops the node in its tracks and waits until it stands still; when it was told to.
    ///
    /// # Errors
    /// The signal cannot be sent, or the node had ended.
    pub fn hang(&mut self) -> Result<u64, ProcessError> {
        let at = monotonic_ns();
        self.signal(Signal::SIGSTOP)?;
        match waitpid(self.pid(), Some(WaitPidFlag::WUNTRACED)) {
            Ok(WaitStatus::Stopped(..)) => Ok(at),
            Ok(_) => Err(self.ended("it was stopped")),
            Err(errno) => Err(ProcessError::Signal { name: self.name.clone(), source: errno.into() }),
        }
    }

    /// Lets a hung node go on.
    ///
    /// # Errors
    /// The signal cannot be sent.
    pub fn wake(&self) -> Result<(), ProcessError> {
        self.signal(Signal::SIGCONT)
    }

    /// Asks the node to end in good order.
    ///
    /// # Errors
    /// The signal cannot be sent.
    pub fn terminate(&self) -> Result<(), ProcessError> {
        self.signal(Signal::SIGTERM)
    }

    /// Waits until the node has ended.
    ///
    /// # Errors
    /// It did not within `bound`, or `cancelled` was set.
    pub fn wait_exit(&mut self, bound: Duration, cancelled: &AtomicBool) -> Result<ExitStatus, ProcessError> {
        let deadline = Instant::now() + bound;
        loop {
            if let Some(status) = self.exited() {
                return Ok(status);
            }
            if cancelled.load(Ordering::Relaxed) {
                return Err(ProcessError::Cancelled);
            }
            if Instant::now() >= deadline {
                return Err(self.late("its end", bound));
            }
            std::thread::sleep(TICK);
        }
    }

    /// How the node ended, if it has.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// The end of the node's log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_TAIL)..].iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
    }

    /// The process.
    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    fn signal(&self, signal: Signal) -> Result<(), ProcessError> {
        // The child is ours and not reaped while this value has not seen it end, so the number cannot belong to another process.
        kill(self.pid(), signal).map_err(|errno| ProcessError::Signal { name: self.name.clone(), source: errno.into() })
    }

    /// The error for a node that ended too soon.
    pub fn ended(&mut self, awaited: &str) -> ProcessError {
        let status = self.child.wait().map_or_else(|e| e.to_string(), |s| s.to_string());
        ProcessError::Ended { name: self.name.clone(), status, awaited: awaited.to_owned(), tail: self.log_tail() }
    }

    /// The error for a node that takes too long.
    #[must_use]
    pub fn late(&self, awaited: &str, bound: Duration) -> ProcessError {
        ProcessError::Late { name: self.name.clone(), awaited: awaited.to_owned(), bound, tail: self.log_tail() }
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
