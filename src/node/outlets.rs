//! The node's outlets: the events stream and the guest's console. A reader that stops reading costs the node nothing but lines.
//!
//! Lives here: one writer thread an outlet, with a bounded queue before it. Not here: what is written. Threads that hold heartbeats or the guest's output
//! write here, so nothing may wait for a terminal that was stopped or a pipe that is full.

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam::channel::{Sender, TrySendError, bounded};
use primary::ConsoleOut;
use types::clock::monotonic_ns;
use types::event::{NodeEvent, NodeEventKind, Report};

use vmm::Machine;

use super::NodeError;
use super::console::ConsoleServer;
use crate::config::{Console, NodeConfig, Sink};

/// Pieces that may wait for a slow reader; an events line is a few KiB at most.
const WAITING: usize = 4096;
/// How long the end of the process waits for the last pieces.
const LAST_PIECES: Duration = Duration::from_millis(500);

enum Piece {
    Bytes(Vec<u8>),
    /// Answer when everything before is written.
    Flushed(Sender<()>),
}

/// A writer that never blocks: what its reader is too slow for is counted and dropped.
#[derive(Clone)]
struct Outlet {
    what: &'static str,
    pieces: Sender<Piece>,
    dropped: Arc<AtomicU64>,
}

impl Outlet {
    fn new(what: &'static str, mut stream: Box<dyn Write + Send>) -> Result<Outlet, NodeError> {
        let (pieces, queue) = bounded(WAITING);
        let body = move || {
            for piece in queue {
                match piece {
                    Piece::Bytes(bytes) => {
                        if let Err(error) = stream.write_all(&bytes).and_then(|()| stream.flush()) {
                            tracing::debug!(what, %error, "a piece could not be written");
                        }
                    }
                    Piece::Flushed(done) => drop(done.send(())),
                }
            }
        };
        let spawned = std::thread::Builder::new().name(what.to_owned()).spawn(body);
        spawned.map_err(|source| NodeError::Host { what: "a thread for an outlet", source })?;
        Ok(Outlet { what, pieces, dropped: Arc::new(AtomicU64::new(0)) })
    }

    fn put(&self, bytes: Vec<u8>) {
        if let Err(TrySendError::Full(_)) = self.pieces.try_send(Piece::Bytes(bytes)) {
            // Said at the first and then ever more rarely: the log may have the same slow reader.
            let dropped = self.dropped.fetch_add(1, Ordering::Relaxed) + 1;
            if dropped.is_power_of_two() {
                tracing::warn!(what = self.what, dropped, "the reader is too slow; pieces are dropped");
            }
        }
    }

    fn flush(&self) {
        let (done, flushed) = bounded(1);
        if self.pieces.send_timeout(Piece::Flushed(done), LAST_PIECES).is_ok() {
            let _ = flushed.recv_timeout(LAST_PIECES);
        }
    }
}

impl Write for Outlet {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.put(bytes.to_vec());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The outlets of one node.
pub(super) struct Outlets {
    /// Where events go.
    pub(super) report: Report,
    events: Option<Outlet>,
    console: Option<Outlet>,
    server: Option<ConsoleServer>,
}

impl Outlets {
    /// Opens what the configuration names.
    pub(super) fn open(config: &NodeConfig) -> Result<Outlets, NodeError> {
        let events = match &config.events {
            None => None,
            Some(Sink::Stdout) => Some(Outlet::new("events", Box::new(io::stdout()))?),
            Some(Sink::File(path)) => Some(Outlet::new("events", append("events file", path)?)?),
        };
        let console = match &config.console {
            Console::None | Console::Socket(_) => None,
            Console::Stdio => Some(Outlet::new("console-out", Box::new(io::stdout()))?),
            Console::File(path) => Some(Outlet::new("console-out", append("console file", path)?)?),
        };
        let server = match &config.console {
            Console::Socket(path) => Some(ConsoleServer::start(path)?),
            Console::None | Console::Stdio | Console::File(_) => None,
        };
        let report: Report = match events.clone() {
            None => Arc::new(|_| {}),
            Some(outlet) => Arc::new(move |what: NodeEventKind| {
                if let Ok(mut line) = serde_json::to_vec(&NodeEvent { at_ns: monotonic_ns(), what }) {
                    line.push(b'\n');
                    outlet.put(line);
                }
            }),
        };
        Ok(Outlets { report, events, console, server })
    }

    /// Tells the operator something that the node goes on in spite of, in the log and as an event.
    pub(super) fn warn(&self, text: &str) {
        tracing::warn!("{text}");
        (self.report)(NodeEventKind::Warning { text: text.to_owned() });
    }

    /// The way out for the guest's console.
    pub(super) fn console(&self) -> ConsoleOut {
        match (&self.console, &self.server) {
            (Some(outlet), _) => Box::new(outlet.clone()),
            (None, Some(server)) => Box::new(server.writer()),
            (None, None) => Box::new(io::sink()),
        }
    }

    /// Where a standby shows what is committed of the guest's console: on its socket, so that whoever connects after a failover sees what was before. A
    /// terminal or a file is left to the node that runs the guest.
    pub(super) fn committed_console(&self) -> Option<ConsoleOut> {
        self.server.as_ref().map(|server| Box::new(server.writer()) as ConsoleOut)
    }

    /// The guest runs here from now on: terminals on the console's socket type at it.
    pub(super) fn type_at(&self, machine: &Arc<Machine>) {
        if let Some(server) = &self.server {
            server.type_at(machine);
        }
    }

    /// Waits, within a bound, until everything is written.
    pub(super) fn flush(&self) {
        for outlet in self.events.iter().chain(&self.console) {
            outlet.flush();
        }
        if let Some(server) = &self.server {
            server.end();
        }
    }
}

fn append(what: &'static str, path: &Path) -> Result<Box<dyn Write + Send>, NodeError> {
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
    Ok(Box::new(file.map_err(|source| NodeError::Open { what, path: path.display().to_string(), source })?))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// A reader that reads nothing until it is let go.
    struct Stuck(Arc<Mutex<Vec<u8>>>);

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_stops_reading_blocks_nobody_and_loses_only_what_is_too_much() {
        let read = Arc::new(Mutex::new(Vec::new()));
        let stuck = read.lock().unwrap();
        let outlet = Outlet::new("test", Box::new(Stuck(Arc::clone(&read)))).unwrap();

        for _ in 0..WAITING + 100 {
            outlet.put(vec![1]);
        }

        // One piece may be in the writer's hands beside those in the queue.
        let dropped = outlet.dropped.load(Ordering::Relaxed);
        assert!((99..=100).contains(&dropped), "{dropped}");
        drop(stuck);
        outlet.flush();
        assert_eq!(read.lock().unwrap().len() as u64, WAITING as u64 + 100 - dropped);
    }
}
