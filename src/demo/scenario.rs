//! The demo's course of events: world, nodes, clients, death, proof. Orchestration only; each step is done by its own module.

use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tempfile::TempDir;
use types::event::{NodeEvent, NodeEventKind, Protection};

use super::client::{self, Connection, Outcome, SERVER_PORT, Shared};
use super::measure;
use super::process::{NodeProcess, ProcessError};
use super::progress::Progress;
use super::report::Report;
use super::resp::Reply;
use super::world::{GUEST_ADDRESS, Host, Place, TAP, World, WorldError};
use super::{DemoOptions, Kill};
use crate::config::GuestMemorySize;
use crate::config::units::ByteSize;

/// A standby has nothing to do before it listens but to reserve memory.
const READY_BOUND: Duration = Duration::from_secs(20);
/// A full copy of the largest guest this machine can hold, at a tenth of the stream's usual rate.
const PROTECTED_BOUND: Duration = Duration::from_secs(120);
/// The guest boots in well under a second; a loaded machine gets more.
const BOOT_BOUND: Duration = Duration::from_secs(20);
/// Silence bound, grant and activation are together far below a second.
const ACTIVATED_BOUND: Duration = Duration::from_secs(30);
/// How long the stale primary sleeps on after the standby has taken over.
const SLEEP_ON: Duration = Duration::from_secs(1);
/// A woken primary must find out at once; the arbiter's file is read in milliseconds.
const FENCED_BOUND: Duration = Duration::from_secs(10);
/// The guest checks each page it ever dirtied in ring 3: seconds for gigabytes.
const CHECK_BOUND: Duration = Duration::from_secs(120);
/// How often the run looks about.
const TICK: Duration = Duration::from_millis(20);
/// After the death, gaps between answers that begin within this time of the activation count as its blackout.
const BLACKOUT_TAIL: Duration = Duration::from_secs(2);

/// Why the demo could not be carried through. A run that was carried through and went badly is a [`Report`].
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The world could not be made or changed.
    #[error("cannot build the demo's hosts and networks")]
    World(#[from] WorldError),
    /// A node failed.
    #[error("a node of the demo failed")]
    Node(#[from] ProcessError),
    /// No temporary directory.
    #[error("cannot make a temporary directory in {path}; set TMPDIR to one that can be written to")]
    Directory {
        /// Where it was tried.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The guest cannot be reached or does not do what it is asked.
    #[error("the guest did not answer {asked}: {why}")]
    Guest {
        /// The command.
        asked: String,
        /// What came instead.
        why: String,
    },
    /// A client thread ended by a panic.
    #[error("a client of the demo failed; this is a defect of the demo, please report it")]
    Client,
    /// Ctrl-C.
    #[error("interrupted")]
    Interrupted,
}

impl DemoError {
    /// Whether this is the user's own wish.
    #[must_use]
    pub fn is_interrupt(&self) -> bool {
        matches!(self, DemoError::Interrupted | DemoError::Node(ProcessError::Cancelled))
    }
}

/// What happened, with its times, for the measurements.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Death {
    /// When the primary was killed or stopped.
    pub at_ns: u64,
    /// When the standby had the guest running.
    pub activated_ns: u64,
    /// Frames the stale primary released after it woke, and whether it stopped.
    pub stale: Option<(u64, bool)>,
}

struct Run<'a> {
    options: &'a DemoOptions,
    memory: GuestMemorySize,
    vcpus: u8,
    seed: u64,
    world: World,
    directory: TempDir,
    cancelled: &'a AtomicBool,
}

struct Nodes {
    primary: NodeProcess,
    standby: NodeProcess,
}

/// Carries the demo through.
///
/// # Errors
/// [`DemoError`]: the run could not be carried through. What it showed, good or bad, is in the report.
pub fn run(options: &DemoOptions, memory: GuestMemorySize, vcpus: u8, cancelled: &AtomicBool) -> Result<Report, DemoError> {
    let directory = tempfile::Builder::new()
        .prefix("lockstep-demo-")
        .tempdir()
        .map_err(|source| DemoError::Directory { path: std::env::temp_dir(), source })?;
    let seed = options.seed.unwrap_or_else(|| rand::rng().random_range(0..1_000_000));
    let world = World::new()?;
    Run { options, memory, vcpus, seed, world, directory, cancelled }.carry_through(&mut Progress::new())
}

fn server() -> SocketAddr {
    SocketAddr::new(GUEST_ADDRESS, SERVER_PORT)
}

impl Run<'_> {
    fn carry_through(&self, progress: &mut Progress) -> Result<Report, DemoError> {
        progress.note("standby: starting on host B");
        let mut standby = self.start(Host::B)?;
        standby.wait_for("listening", READY_BOUND, self.cancelled, |e| matches!(e.what, NodeEventKind::Ready).then_some(()))?;
        progress.note("primary: starting on host A");
        let mut primary = self.start(Host::A)?;
        let protected = |e: &NodeEvent| matches!(e.what, NodeEventKind::State { protection: Protection::Protected, .. }).then_some(());
        primary.wait_for("protected", PROTECTED_BOUND, self.cancelled, protected)?;
        let mut nodes = Nodes { primary, standby };
        let mut guest = self.reach_guest()?;
        self.dirty(&mut guest)?;
        progress.note("primary: protected, guest: answering, clients: starting");

        let shared = Shared::default();
        let (death, outcomes) = std::thread::scope(|scope| {
            let clients = (0..self.options.clients)
                .map(|number| {
                    let shared = &shared;
                    scope.spawn(move || self.world.enter(Place::Clients).map(|()| client::run(number, self.seed, server(), shared)))
                })
                .collect();
            let course = self.course(&mut nodes, &shared, progress);
            match &course {
                Ok(_) => shared.stop.store(true, Ordering::Relaxed),
                Err(_) => shared.abort(),
            }
            let outcomes = join(clients);
            course.and_then(|death| Ok((death, outcomes?)))
        })?;
        progress.note("clients: done; the guest checks its memory");
        let mut report = self.blank_report();
        self.ask_guest(&mut guest, &mut report)?;
        measure::fill(&mut report, &nodes.primary.events(), &nodes.standby.events(), &outcomes, death, BLACKOUT_TAIL);
        report.judge();
        Ok(report)
    }

    fn start(&self, host: Host) -> Result<NodeProcess, DemoError> {
        let (verb, name) = match host {
            Host::A => ("run", "a"),
            Host::B => ("standby", "b"),
        };
        let arguments = self.node_arguments(verb, name);
        Ok(NodeProcess::start(&self.world, host, name, Path::new("/proc/self/exe"), &arguments, self.directory.path())?)
    }

    fn node_arguments(&self, verb: &str, name: &str) -> Vec<OsString> {
        let mut arbiter = OsString::from("file:");
        arbiter.push(self.directory.path().join("arbiter"));
        let (role_key, vcpus) = (if verb == "run" { "--standby" } else { "--listen" }, self.vcpus.to_string());
        let (memory, address) = (ByteSize(self.memory.bytes()).to_string(), Host::B.replication_address().to_string());
        let (net, cmdline) = (format!("tap={TAP}"), format!("lockstep.ip={GUEST_ADDRESS}/24 lockstep.cpus={vcpus} lockstep.quiet"));
        let mut arguments: Vec<OsString> = [
            verb,
            "--vm",
            "demo",
            "--node",
            name,
            "--memory",
            &memory,
            "--vcpus",
            &vcpus,
            "--net",
            &net,
            "--cmdline",
            &cmdline,
            role_key,
            &address,
            "--console",
            "none",
            "--log",
            &self.options.log,
        ]
        .iter()
        .map(OsString::from)
        .collect();
        arguments.extend([OsString::from("--arbiter"), arbiter]);
        if self.options.verify_memory {
            arguments.push("--verify-memory".into());
        }
        if let Some(bound) = self.options.detection_bound {
            arguments.extend([OsString::from("--detection-bound"), format!("{}us", bound.0.as_micros()).into()]);
        }
        arguments
    }

    /// A connection to the guest, once it has booted.
    fn reach_guest(&self) -> Result<Connection, DemoError> {
        let deadline = Instant::now() + BOOT_BOUND;
        loop {
            let attempt = self.world.run(Place::Clients, || Connection::open(server()))?;
            match attempt {
                Ok(connection) => return Ok(connection),
                Err(_) if self.cancelled.load(Ordering::Relaxed) => return Err(DemoError::Interrupted),
                Err(error) if Instant::now() >= deadline => {
                    return Err(DemoError::Guest { asked: format!("a connection to {}", server()), why: error.to_string() });
                }
                Err(_) => std::thread::sleep(TICK),
            }
        }
    }

    /// Lets the guest change its memory all the time, beside serving the clients.
    fn dirty(&self, guest: &mut Connection) -> Result<(), DemoError> {
        let rate = self.options.dirty_rate.to_string();
        match guest.ask(&[b"DIRTY", rate.as_bytes(), b"random"]) {
            Ok(Reply::Status(_)) => Ok(()),
            other => Err(unexpected(&format!("DIRTY {rate} random"), other)),
        }
    }

    /// The clients talk; in the middle of it the primary dies, or does not.
    fn course(&self, nodes: &mut Nodes, shared: &Shared, progress: &mut Progress) -> Result<Option<Death>, DemoError> {
        let length = Duration::from_secs(self.options.seconds);
        let start = Instant::now();
        if self.options.kill == Kill::None {
            self.watch(start + length, "protected", shared, progress, &mut [&mut nodes.primary, &mut nodes.standby])?;
            return Ok(None);
        }
        let moment = length.mul_f64(StdRng::seed_from_u64(self.seed).random_range(0.35..0.65));
        self.watch(start + moment, "protected", shared, progress, &mut [&mut nodes.primary, &mut nodes.standby])?;
        self.until_protected(nodes, shared, progress)?;
        let death = match self.options.kill {
            Kill::Hang => self.hang(nodes, progress)?,
            Kill::Crash | Kill::None => self.crash(nodes, progress)?,
        };
        self.watch(start + length, "after the failover", shared, progress, &mut [&mut nodes.standby])?;
        Ok(Some(death))
    }

    /// On a slow or busy host heartbeats can have been late and the standby be in the middle of a new copy: a death then proves nothing.
    fn until_protected(&self, nodes: &mut Nodes, shared: &Shared, progress: &mut Progress) -> Result<(), DemoError> {
        let deadline = Instant::now() + PROTECTED_BOUND;
        while nodes.primary.protection() != Some(Protection::Protected) {
            if Instant::now() >= deadline {
                return Err(nodes.primary.late("protected again", PROTECTED_BOUND).into());
            }
            self.watch(Instant::now() + TICK, "not protected", shared, progress, &mut [&mut nodes.primary, &mut nodes.standby])?;
        }
        Ok(())
    }

    fn crash(&self, nodes: &mut Nodes, progress: &Progress) -> Result<Death, DemoError> {
        let at_ns = nodes.primary.crash()?;
        progress.note("primary: killed (SIGKILL)");
        let activated_ns = self.await_activation(nodes, progress)?;
        Ok(Death { at_ns, activated_ns, stale: None })
    }

    fn hang(&self, nodes: &mut Nodes, progress: &Progress) -> Result<Death, DemoError> {
        let at_ns = nodes.primary.hang()?;
        progress.note("primary: hung (SIGSTOP)");
        let before = self.world.frames_released(Host::A)?;
        let activated_ns = self.await_activation(nodes, progress)?;
        std::thread::sleep(SLEEP_ON);
        nodes.primary.wake()?;
        progress.note("primary: woken (SIGCONT), its generation is over");
        let fenced = |e: &NodeEvent| matches!(e.what, NodeEventKind::Fenced { .. }).then_some(());
        let stopped = match nodes.primary.wait_for("fenced", FENCED_BOUND, self.cancelled, fenced) {
            Ok(()) => nodes.primary.wait_exit(FENCED_BOUND, self.cancelled).is_ok(),
            Err(ProcessError::Cancelled) => return Err(DemoError::Interrupted),
            Err(error) => {
                progress.note(&format!("primary: {error}"));
                false
            }
        };
        let released = self.world.frames_released(Host::A)? - before;
        Ok(Death { at_ns, activated_ns, stale: Some((released, stopped)) })
    }

    fn await_activation(&self, nodes: &mut Nodes, progress: &Progress) -> Result<u64, DemoError> {
        let activated = |e: &NodeEvent| matches!(e.what, NodeEventKind::Activated { .. }).then_some(e.at_ns);
        let at_ns = nodes.standby.wait_for("activated", ACTIVATED_BOUND, self.cancelled, activated)?;
        progress.note("standby: activated, the guest goes on");
        Ok(at_ns)
    }

    /// Waits until `deadline` while every node in `alive` stays so.
    fn watch(
        &self,
        deadline: Instant,
        phase: &str,
        shared: &Shared,
        progress: &mut Progress,
        alive: &mut [&mut NodeProcess],
    ) -> Result<(), DemoError> {
        while Instant::now() < deadline {
            if self.cancelled.load(Ordering::Relaxed) {
                return Err(DemoError::Interrupted);
            }
            for node in alive.iter_mut() {
                if node.exited().is_some() {
                    return Err(node.ended("the run was over").into());
                }
            }
            progress.tick(|| {
                let (acknowledged, broken) = (shared.acknowledged.load(Ordering::Relaxed), shared.broken.load(Ordering::Relaxed));
                format!("{phase}: {acknowledged} writes acknowledged, {broken} connections broken")
            });
            std::thread::sleep(TICK);
        }
        Ok(())
    }

    /// The guest's own word about its memory and its clock, over a connection that has lived through everything.
    fn ask_guest(&self, guest: &mut Connection, report: &mut Report) -> Result<(), DemoError> {
        let late = |e: io::Error| DemoError::Guest { asked: "CHECK".into(), why: e.to_string() };
        guest.set_answer_timeout(CHECK_BOUND).map_err(late)?;
        match guest.ask(&[b"CHECK"]) {
            Ok(Reply::Int(pages)) => report.pages_checked = u64::try_from(pages).ok(),
            Ok(Reply::Error(error)) if error.starts_with("CORRUPT") => report.broken_promises.push(format!("guest memory: {error}")),
            Err(error) => {
                report.connections_broken += 1;
                report.broken_promises.push(format!("the guest could not be asked about its memory: {error}"));
                return Ok(());
            }
            other => return Err(unexpected("CHECK", other)),
        }
        match guest.ask(&[b"UPTIME"]) {
            Ok(Reply::Array(numbers)) => match numbers.as_slice() {
                [Reply::Int(_), Reply::Int(steps)] => report.clock_backward_steps = u64::try_from(*steps).ok(),
                _ => return Err(unexpected("UPTIME", Ok(Reply::Array(numbers)))),
            },
            other => return Err(unexpected("UPTIME", other)),
        }
        Ok(())
    }

    fn blank_report(&self) -> Report {
        Report {
            seed: self.seed,
            kill: self.options.kill.name(),
            seconds: self.options.seconds,
            memory_mib: self.memory.bytes() >> 20,
            vcpus: self.vcpus,
            clients: self.options.clients,
            dirty_rate: self.options.dirty_rate,
            ..Report::default()
        }
    }
}

fn unexpected(asked: &str, came: io::Result<Reply>) -> DemoError {
    let why = match came {
        Ok(reply) => format!("it said {reply:?}"),
        Err(error) => error.to_string(),
    };
    DemoError::Guest { asked: asked.to_owned(), why }
}

type ClientThread<'scope> = ScopedJoinHandle<'scope, Result<Outcome, WorldError>>;

fn join(clients: Vec<ClientThread<'_>>) -> Result<Vec<Outcome>, DemoError> {
    // Every thread is joined before the first failure is told.
    let ended: Vec<_> = clients.into_iter().map(ScopedJoinHandle::join).collect();
    ended.into_iter().map(|end| Ok(end.map_err(|_| DemoError::Client)??)).collect()
}
