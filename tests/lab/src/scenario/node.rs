//! A Lockstep node in a lab host: its command line, and the events that scenarios wait for. Not here: the host it runs on.

use std::path::Path;
use std::time::{Duration, Instant};

use lockstep::demo::world::REPLICATION_PORT;
use types::event::{NodeEvent, NodeEventKind, Protection, Role};
use types::{Epoch, Generation};

use super::events::Events;
pub use super::guest::{Console, Disk, GUEST_MAC, GuestSpec, Image, Stock};
use crate::command::tail;
use crate::error::LabError;
use crate::host::{Host, quoted};
use crate::net::{Net, address};

/// Longest wait for anything else a node does.
pub const NODE_BOUND: Duration = Duration::from_secs(60);
/// Longest wait for a first copy with a disk, and for a guest to boot meanwhile: 20 s on an idle machine, more than a minute on one that builds something at the same time.
pub const PROTECTED_BOUND: Duration = Duration::from_secs(180);
const TICK: Duration = Duration::from_millis(5);
/// Bytes of a log shown in an error.
const SHOWN: usize = 1500;

/// A node that was started. Its process may have ended since, with its host or by itself.
#[derive(Debug)]
pub struct Node {
    /// `h1.2`: second node on h1.
    pub name: String,
    host: u8,
    pid: u32,
    events: Events,
    log: std::path::PathBuf,
}

/// What a node is started as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// `lockstep run`.
    Primary,
    /// `lockstep standby`. The first standby of a guest takes a full copy of its disks.
    Standby {
        /// Whether it is the first.
        first: bool,
    },
}

fn replication(host: u8) -> String {
    address(Net::Replication, host).map_or_else(String::new, |ip| format!("{ip}:{REPLICATION_PORT}"))
}

impl Node {
    /// Starts a node on `host`, whose other is host `peer`, for the `turn`th time. `shared` is where the real machine has `/shared`.
    ///
    /// # Errors
    /// The host does not answer.
    pub fn start(host: &Host, peer: u8, part: Part, turn: u32, guest: &GuestSpec, shared: &Path) -> Result<Node, LabError> {
        let name = format!("{}.{turn}", host.name());
        let verb = if part == Part::Primary { "run" } else { "standby" };
        let mut options = vec![("vm", "lab".to_owned()), ("node", host.name().to_owned())];
        options.extend(guest.node_options(part == Part::Standby { first: true }, &name));
        options.extend([
            ("arbiter", "file:/arbiter/lab".to_owned()),
            ("standby", replication(peer)),
            ("detection-bound", guest.detection.to_owned()),
            ("events", format!("/shared/{name}.events")),
            ("log", "info".to_owned()),
        ]);
        if part != Part::Primary {
            options.push(("listen", replication(host.number())));
        }
        let mut line = format!("/shared/lockstep {verb}");
        if !guest.environment.is_empty() {
            let set: String = guest.environment.iter().map(|(key, value)| format!("{key}={} ", quoted(value))).collect();
            line = format!("env {set}{line}");
        }
        for (key, value) in options {
            line.push_str(&format!(" --{key} {}", quoted(&value)));
        }
        line.push_str(&guest.node_flags());
        let pid = host.spawn(&line, &format!("/shared/{name}.log"))?;
        let events = Events::new(shared.join(format!("{name}.events")));
        Ok(Node { log: shared.join(format!("{name}.log")), name, host: host.number(), pid, events })
    }

    /// The host it was started on.
    #[must_use]
    pub fn host(&self) -> u8 {
        self.host
    }

    /// Its process number in the host.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The end of its log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        tail(&String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()), SHOWN).to_owned()
    }

    /// Waits until a line of its log has all of `words`; that line.
    ///
    /// # Errors
    /// None comes in time.
    pub fn until_logged(&self, words: &[&str]) -> Result<String, LabError> {
        let deadline = Instant::now() + NODE_BOUND;
        loop {
            let log = String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned();
            if let Some(line) = log.lines().find(|line| words.iter().all(|word| line.contains(word))) {
                return Ok(line.to_owned());
            }
            if Instant::now() >= deadline {
                let detail = format!("; the end of its log:\n{}", self.log_tail());
                return Err(LabError::Late { what: format!("node {}: {words:?} in its log", self.name), bound: NODE_BOUND, detail });
            }
            std::thread::sleep(TICK);
        }
    }

    /// All it has told so far.
    pub fn events(&mut self) -> &[NodeEvent] {
        self.events.refresh();
        &self.events.all
    }

    /// How many events it has told: a mark for [`Self::until`].
    pub fn mark(&mut self) -> usize {
        self.events().len()
    }

    /// Whether `pick` finds something among the events from `from` on.
    pub fn find<T>(&mut self, from: usize, pick: impl FnMut(&NodeEvent) -> Option<T>) -> Option<T> {
        self.events().iter().skip(from).find_map(pick)
    }

    /// Waits until `pick` finds something among the events from `from` on.
    ///
    /// # Errors
    /// It does not come within `bound`.
    pub fn until<T>(
        &mut self,
        what: &str,
        from: usize,
        bound: Duration,
        mut pick: impl FnMut(&NodeEvent) -> Option<T>,
    ) -> Result<T, LabError> {
        let deadline = Instant::now() + bound;
        loop {
            if let Some(found) = self.find(from, &mut pick) {
                return Ok(found);
            }
            if Instant::now() >= deadline {
                let detail = format!("; the end of its log:\n{}", self.log_tail());
                return Err(LabError::Late { what: format!("node {}: {what}", self.name), bound, detail });
            }
            std::thread::sleep(TICK);
        }
    }

    /// Waits until it listens, or its guest runs.
    ///
    /// # Errors
    /// As [`Self::until`].
    pub fn until_ready(&mut self) -> Result<(), LabError> {
        self.until("ready", 0, NODE_BOUND, |e| matches!(e.what, NodeEventKind::Ready).then_some(()))
    }

    /// Waits until it is a protected primary by its newest word.
    ///
    /// # Errors
    /// As [`Self::until`].
    pub fn until_protected(&mut self) -> Result<Generation, LabError> {
        let deadline = Instant::now() + PROTECTED_BOUND;
        loop {
            let newest = self.newest_state();
            if let Some((Role::Primary, Protection::Protected, generation)) = newest {
                return Ok(generation);
            }
            if Instant::now() >= deadline {
                let detail = format!("; it is {newest:?}; the end of its log:\n{}", self.log_tail());
                return Err(LabError::Late { what: format!("node {} protected", self.name), bound: PROTECTED_BOUND, detail });
            }
            std::thread::sleep(TICK);
        }
    }

    /// Whether it is a protected primary by its newest word.
    pub fn is_protected(&mut self) -> bool {
        matches!(self.newest_state(), Some((Role::Primary, Protection::Protected, _)))
    }

    fn newest_state(&mut self) -> Option<(Role, Protection, Generation)> {
        self.events().iter().rev().find_map(|e| match e.what {
            NodeEventKind::State { role, protection, generation, .. } => Some((role, protection, generation)),
            _ => None,
        })
    }

    /// How safe its guest is by its newest word.
    pub fn find_last_protection(&mut self) -> Option<Protection> {
        self.newest_state().map(|(_, protection, _)| protection)
    }

    /// The generation it activated in, if it has.
    pub fn activation(&mut self) -> Option<Generation> {
        self.find(0, |e| match e.what {
            NodeEventKind::Activated { generation, .. } => Some(generation),
            _ => None,
        })
    }

    /// Requests to disks that were in flight in the state from which it took over.
    pub fn disk_requests(&mut self) -> Option<u32> {
        self.find(0, |e| if let NodeEventKind::Activated { disk_requests, .. } = e.what { Some(disk_requests) } else { None })
    }

    /// Waits until it has taken over.
    ///
    /// # Errors
    /// As [`Self::until`].
    pub fn until_activated(&mut self) -> Result<Generation, LabError> {
        self.until("activated", 0, NODE_BOUND, |e| match e.what {
            NodeEventKind::Activated { generation, .. } => Some(generation),
            _ => None,
        })
    }

    /// Whether it goes on alone by the arbiter's word, in a generation above `above`.
    pub fn alone(&mut self, above: Generation) -> Option<Generation> {
        self.find(0, |e| match e.what {
            NodeEventKind::State { role: Role::Primary, protection: Protection::Unprotected, generation, .. } if generation > above => {
                Some(generation)
            }
            _ => None,
        })
    }

    /// Waits until it has lost the right to run and stopped its guest.
    ///
    /// # Errors
    /// As [`Self::until`].
    pub fn until_fenced(&mut self) -> Result<(), LabError> {
        self.until("fenced", 0, NODE_BOUND, |e| matches!(e.what, NodeEventKind::Fenced { .. }).then_some(()))
    }

    /// The newest epoch that it has told to be committed; it tells many times a second.
    pub fn committed(&mut self) -> Option<Epoch> {
        self.events().iter().rev().find_map(|e| if let NodeEventKind::Samples { committed, .. } = e.what { Some(committed) } else { None })
    }

    /// Whether it has noticed that it, or its host, did not run for a while: by its own word when it held its guest's output for that.
    pub fn stood_still(&mut self) -> bool {
        let held = |event: &NodeEvent| matches!(&event.what, NodeEventKind::State { reason, .. } if reason.contains("did not run for"));
        self.events().iter().any(held)
    }

    /// Pages of guest memory that it has compared with its primary's and found equal.
    pub fn memory_compared(&mut self) -> u64 {
        let pages = |event: &NodeEvent| if let NodeEventKind::MemoryVerified { pages, .. } = event.what { Some(pages) } else { None };
        self.events().iter().filter_map(pages).sum()
    }

    /// Pauses of all its epochs, and the times from the guest's going on to the commit; microseconds.
    pub fn samples(&mut self) -> (Vec<u32>, Vec<u32>) {
        let mut all = (Vec::new(), Vec::new());
        for event in self.events() {
            if let NodeEventKind::Samples { pause_us, commit_us, .. } = &event.what {
                all.0.extend(pause_us);
                all.1.extend(commit_us);
            }
        }
        all
    }
}
