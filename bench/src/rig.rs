//! What the measurements through the whole program stand on: a world with a primary in it, protected by a standby or alone, and connections to its guest.
//!
//! Not here: any measurement. Everything ends with the [`Rig`]: the nodes are killed and the namespaces vanish.

use std::ffi::OsString;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lockstep::demo::client::{Connection, SERVER_PORT};
use lockstep::demo::process::NodeProcess;
use lockstep::demo::resp::Reply;
use lockstep::demo::world::{GUEST_ADDRESS, Host, Place, TAP, World};
use tempfile::TempDir;
use types::event::{NodeEventKind, Protection};

use crate::error::BenchError;
use crate::report::{Goal, Report};
use crate::stats::median;

/// A node has nothing to do before it is ready but to reserve memory.
const READY_BOUND: Duration = Duration::from_secs(20);
/// A first copy of 1 GiB takes two seconds; a busy host gets more.
const PROTECTED_BOUND: Duration = Duration::from_secs(60);
/// The guest boots in well under a second; a busy host gets more.
const BOOT_BOUND: Duration = Duration::from_secs(20);
/// Between two attempts to connect to a guest that boots.
const TICK: Duration = Duration::from_millis(20);

/// What every measurement works with.
pub struct Context<'a> {
    /// The `lockstep` program.
    pub program: PathBuf,
    /// Fewer and shorter rounds.
    pub quick: bool,
    /// Where the pictures go.
    pub out: PathBuf,
    /// Set by Ctrl-C.
    pub cancelled: &'a AtomicBool,
}

impl Context<'_> {
    /// `full` rounds, or `quick` ones.
    #[must_use]
    pub fn rounds(&self, full: usize, quick: usize) -> usize {
        if self.quick { quick } else { full }
    }

    /// To be asked between rounds.
    ///
    /// # Errors
    /// Ctrl-C.
    pub fn go_on(&self) -> Result<(), BenchError> {
        if self.cancelled.load(Ordering::Relaxed) { Err(BenchError::Interrupted) } else { Ok(()) }
    }

    /// Sleeps, but not through Ctrl-C.
    ///
    /// # Errors
    /// Ctrl-C.
    pub fn sleep(&self, length: Duration) -> Result<(), BenchError> {
        let end = Instant::now() + length;
        loop {
            self.go_on()?;
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(TICK));
        }
    }
}

/// What a primary told of its epochs, one value for each.
#[derive(Debug, Default)]
pub struct Epochs {
    /// Dirty pages.
    pub pages: Vec<f64>,
    /// Stop to resumed.
    pub pause_us: Vec<f64>,
    /// Resumed to commit received.
    pub commit_us: Vec<f64>,
}

impl Epochs {
    /// Adds their medians to the table, below the figure that they explain.
    ///
    /// # Errors
    /// There were no epochs.
    pub fn explain(&self, report: &mut Report) -> Result<(), BenchError> {
        report.add("  meanwhile: dirty pages of an epoch, p50", median("epochs", &self.pages)?, "pages", None, Goal::Informative);
        report.add("  meanwhile: pause, p50", median("epochs", &self.pause_us)?, "us", None, Goal::Informative);
        report.add("  meanwhile: resumed to committed, p50", median("epochs", &self.commit_us)?, "us", None, Goal::Informative);
        Ok(())
    }
}

/// A running guest in a world of its own.
#[derive(Debug)]
pub struct Rig {
    /// The primary's process, on host A.
    pub primary: NodeProcess,
    /// The standby's process, on host B, where there is one.
    pub standby: Option<NodeProcess>,
    world: World,
    _directory: TempDir,
}

/// Where the guest's server answers.
#[must_use]
pub fn server() -> SocketAddr {
    SocketAddr::new(GUEST_ADDRESS, SERVER_PORT)
}

impl Rig {
    /// A guest of `memory_mib` that runs alone.
    ///
    /// # Errors
    /// The world or the node fails.
    pub fn alone(context: &Context<'_>, memory_mib: u32) -> Result<Rig, BenchError> {
        let (world, directory) = ground()?;
        let arguments = arguments("run", "a", memory_mib, &[]);
        let primary = start(context, &world, Host::A, "a", &arguments, directory.path())?;
        Ok(Rig { primary, standby: None, world, _directory: directory })
    }

    /// A guest of `memory_mib` that is protected when this returns.
    ///
    /// # Errors
    /// The world or a node fails.
    pub fn protected(context: &Context<'_>, memory_mib: u32) -> Result<Rig, BenchError> {
        let (world, directory) = ground()?;
        let arbiter = format!("file:{}", directory.path().join("arbiter").display());
        let address = Host::B.replication_address().to_string();
        let standby = arguments("standby", "b", memory_mib, &["--listen", &address, "--arbiter", &arbiter]);
        let primary = arguments("run", "a", memory_mib, &["--standby", &address, "--arbiter", &arbiter]);
        let standby = start(context, &world, Host::B, "b", &standby, directory.path())?;
        let mut primary = start(context, &world, Host::A, "a", &primary, directory.path())?;
        primary.wait_for("protected", PROTECTED_BOUND, context.cancelled, |event| {
            matches!(event.what, NodeEventKind::State { protection: Protection::Protected, .. }).then_some(())
        })?;
        Ok(Rig { primary, standby: Some(standby), world, _directory: directory })
    }

    /// What the primary has told of its epochs since `from_ns` (CLOCK_MONOTONIC): one value for each epoch.
    #[must_use]
    pub fn epochs_since(&self, from_ns: u64) -> Epochs {
        let mut epochs = Epochs::default();
        for event in self.primary.events().iter().filter(|event| event.at_ns > from_ns) {
            if let NodeEventKind::Samples { pages, pause_us, commit_us, .. } = &event.what {
                let extend = |to: &mut Vec<f64>, from: &[u32]| to.extend(from.iter().copied().map(f64::from));
                extend(&mut epochs.pages, pages);
                extend(&mut epochs.pause_us, pause_us);
                extend(&mut epochs.commit_us, commit_us);
            }
        }
        epochs
    }

    /// The world.
    #[must_use]
    pub fn world(&self) -> &World {
        &self.world
    }

    /// `count` plain connections to the guest's server, which must be up.
    ///
    /// # Errors
    /// The guest does not take them.
    pub fn streams(&self, count: usize) -> Result<Vec<TcpStream>, BenchError> {
        let connect = || (0..count).map(|_| TcpStream::connect_timeout(&server(), BOOT_BOUND)).collect::<io::Result<_>>();
        self.world.run(Place::Clients, connect)?.map_err(|error| BenchError::Guest { asked: "a connection", why: error.to_string() })
    }

    /// A connection to the guest's server, once it has booted.
    ///
    /// # Errors
    /// No answer in time.
    pub fn connect(&self, context: &Context<'_>) -> Result<Connection, BenchError> {
        let deadline = Instant::now() + BOOT_BOUND;
        loop {
            match self.world.run(Place::Clients, || Connection::open(server()))? {
                Ok(connection) => return Ok(connection),
                Err(error) if Instant::now() >= deadline => {
                    return Err(BenchError::Guest { asked: "a connection", why: error.to_string() });
                }
                Err(_) => context.sleep(TICK)?,
            }
        }
    }
}

/// Asks for something that is answered with a status.
///
/// # Errors
/// Another answer, or none.
pub fn ask_ok(guest: &mut Connection, asked: &'static str, words: &[&[u8]]) -> Result<(), BenchError> {
    match guest.ask(words) {
        Ok(Reply::Status(_)) => Ok(()),
        Ok(other) => Err(BenchError::Guest { asked, why: format!("it said {other:?}") }),
        Err(error) => Err(BenchError::Guest { asked, why: error.to_string() }),
    }
}

fn ground() -> Result<(World, TempDir), BenchError> {
    let directory = tempfile::Builder::new().prefix("lockstep-bench-").tempdir();
    Ok((World::new()?, directory.map_err(BenchError::io("make a temporary directory (set TMPDIR)"))?))
}

fn arguments(verb: &str, name: &str, memory_mib: u32, more: &[&str]) -> Vec<OsString> {
    let (memory, net) = (format!("{memory_mib}M"), format!("tap={TAP}"));
    let cmdline = format!("lockstep.ip={GUEST_ADDRESS}/24 lockstep.quiet");
    let common = [
        verb,
        "--vm",
        "bench",
        "--node",
        name,
        "--memory",
        &memory,
        "--net",
        &net,
        "--cmdline",
        &cmdline,
        "--console",
        "none",
        "--log",
        "info",
    ];
    common.iter().chain(more).map(OsString::from).collect()
}

fn start(
    context: &Context<'_>,
    world: &World,
    host: Host,
    name: &str,
    arguments: &[OsString],
    directory: &Path,
) -> Result<NodeProcess, BenchError> {
    let mut node = NodeProcess::start(world, host, name, &context.program, arguments, directory)?;
    node.wait_for("ready", READY_BOUND, context.cancelled, |event| matches!(event.what, NodeEventKind::Ready).then_some(()))?;
    Ok(node)
}
