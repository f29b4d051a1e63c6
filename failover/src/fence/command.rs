//! The fencing command: an operator's program that makes sure that another host is dead, in the manner of the fence agents (exit 0: certain).
//!
//! Lives here: running it with a time limit, its environment, its output into the log. Not here: when it is run ([`super::disks`]) and how often ([`super::runner`]). Guards S3 and S4 on disks that cannot be reserved: anything but
//! exit 0 in time is a doubt, and a doubt is an error.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use types::HostId;

use super::{FenceError, Grant, Owner, Predecessor};

/// A power switch that answers at all answers within this; fence agents give up after 20 to 40 s by themselves.
pub const DEFAULT_LIMIT: Duration = Duration::from_secs(60);
/// How often the wait looks at the clock and at whether the outcome is still wanted.
const POLL: Duration = Duration::from_millis(20);
/// A longer line of its output is cut, and lines after the last one that counts are dropped: the log is no place for a core dump.
const LONGEST_LINE: u64 = 1024;
/// Most lines of its output that are logged.
const MOST_LINES: usize = 200;

/// An operator's fencing command.
#[derive(Clone, Debug)]
pub struct FenceCommand {
    command: String,
    limit: Duration,
}

impl FenceCommand {
    /// `command` is handed to `/bin/sh -c`.
    #[must_use]
    pub fn new(command: impl Into<String>) -> FenceCommand {
        FenceCommand { command: command.into(), limit: DEFAULT_LIMIT }
    }

    /// Kills the command after so long.
    #[must_use]
    pub fn with_limit(mut self, limit: Duration) -> FenceCommand {
        self.limit = limit;
        self
    }

    /// As it was given.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.command
    }

    /// Runs the command for `old`. Ok: it said in time that the host is dead.
    ///
    /// # Errors
    /// It cannot be started, says otherwise, takes too long (then its whole process group is killed), or is not wanted any more (killed as well).
    pub fn run(&self, old: &Predecessor, me: &Owner, grant: &dyn Grant) -> Result<(), FenceError> {
        let started = Instant::now();
        tracing::warn!(command = self.command, node = %old.node, generation = %me.generation, "fencing");
        if old.node == me.node {
            // Not told by its name from this host: an agent that goes by names alone would end this one, which is safe and of no use.
            let (host, own) = (shown(old.host), shown(me.host));
            tracing::warn!(
                node = %old.node, host, own,
                "the host to fence has this node's own name: the command tells them apart by LOCKSTEP_FENCE_HOST and LOCKSTEP_HOST only; give each host another --node"
            );
        }
        let mut group = Group(self.spawn(old, me)?);
        loop {
            let ended = group.0.try_wait().map_err(|source| FenceError::CommandStart { command: self.command.clone(), source })?;
            if let Some(status) = ended {
                return self.judge(status, old, started);
            }
            if started.elapsed() >= self.limit {
                return Err(FenceError::CommandLate {
                    command: self.command.clone(),
                    seconds: self.limit.as_secs(),
                    node: old.node.clone(),
                });
            }
            if !grant.wanted() {
                return Err(FenceError::Unwanted);
            }
            std::thread::sleep(POLL);
        }
    }

    fn spawn(&self, old: &Predecessor, me: &Owner) -> Result<Child, FenceError> {
        let start = |source| FenceError::CommandStart { command: self.command.clone(), source };
        let mut child = Command::new("/bin/sh")
            .args(["-c", &self.command])
            .env("LOCKSTEP_VM", &me.vm.0)
            .env("LOCKSTEP_NODE", &me.node.0)
            .env("LOCKSTEP_FENCE_NODE", &old.node.0)
            .env("LOCKSTEP_HOST", shown(me.host))
            .env("LOCKSTEP_FENCE_HOST", shown(old.host))
            .env("LOCKSTEP_GENERATION", me.generation.0.to_string())
            // A test's fault point is this process's own.
            .env_remove("LOCKSTEP_FAULT")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // So that whatever it starts can be killed with it.
            .process_group(0)
            .spawn()
            .map_err(start)?;
        let outputs = [
            child.stdout.take().map(|o| Box::new(o) as Box<dyn Read + Send>),
            child.stderr.take().map(|e| Box::new(e) as Box<dyn Read + Send>),
        ];
        for output in outputs.into_iter().flatten() {
            // Not waited for: a grandchild may keep the pipe open for longer than the command lives.
            let spawned = std::thread::Builder::new().name("fence-output".to_owned()).spawn(move || log(output));
            if let Err(error) = spawned {
                tracing::warn!(%error, "the fencing command's output is lost");
            }
        }
        Ok(child)
    }

    fn judge(&self, status: ExitStatus, old: &Predecessor, started: Instant) -> Result<(), FenceError> {
        if status.success() {
            tracing::warn!(node = %old.node, ms = started.elapsed().as_millis(), "fenced: the command says that the host is dead");
            return Ok(());
        }
        let status = match (status.code(), status.signal()) {
            (Some(code), _) => format!("exit status {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => status.to_string(),
        };
        Err(FenceError::CommandFailed { command: self.command.clone(), status, node: old.node.clone() })
    }
}

/// The command's process group, killed when this goes unless the command has ended.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        if !matches!(self.0.try_wait(), Ok(None)) {
            return;
        }
        // The child leads the group and is not reaped, so the number is still its own.
        let group = Pid::from_raw(self.0.id().cast_signed());
        if let Err(error) = killpg(group, Signal::SIGKILL) {
            tracing::warn!(%error, "the fencing command's processes could not be killed");
        }
        let _ = self.0.wait();
    }
}

/// Empty where it is not known.
fn shown(host: Option<HostId>) -> String {
    host.map(|host| host.to_string()).unwrap_or_default()
}

fn log(output: impl Read) {
    let mut reader = BufReader::new(output);
    for _ in 0..MOST_LINES {
        let mut line = Vec::new();
        match reader.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => tracing::warn!(line = %String::from_utf8_lossy(&line).trim_end(), "fencing command"),
        }
    }
    // Read on, so that the command does not hang on a full pipe.
    let _ = std::io::copy(&mut reader, &mut std::io::sink());
}

#[cfg(test)]
mod tests;
