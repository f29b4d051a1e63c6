//! A lab: the demo's world, an arbiter's directory, and nodes started in it. Shows every node's log when its test fails.
//!
//! Lives here: starting things and talking to the guest. Not here: clients under load ([`super::clients`]), waits ([`super::node`]).

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lockstep::demo::client::{Connection, SERVER_PORT};
use lockstep::demo::namespace::{Namespace, NamespaceError};
use lockstep::demo::process::NodeProcess;
use lockstep::demo::resp::Reply;
use lockstep::demo::world::{GUEST_ADDRESS, Host, Place, World};
use rand::Rng;
use tempfile::TempDir;

use super::node::{BOUND, Node, Spec};

/// Pause between two attempts to reach something that tells nobody when it is there.
const TICK: Duration = Duration::from_millis(10);
/// Lines of each log shown when a test fails.
const LOG_LINES: usize = 60;

/// The guest of a lab.
#[derive(Clone, Debug)]
pub struct Guest {
    /// Memory, MiB. Small, so that a digest of all of it at every epoch is cheap.
    pub memory_mib: u32,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// `--dirty-tracking`.
    pub tracking: &'static str,
    /// `--verify-memory`.
    pub verify: bool,
    /// `--detection-bound`. Long, so that a busy test machine is not taken for a dead host; tests of silence set a shorter one.
    pub detection: &'static str,
}

impl Default for Guest {
    fn default() -> Guest {
        Guest { memory_mib: 64, vcpus: 1, tracking: "auto", verify: true, detection: "5s" }
    }
}

impl Guest {
    /// Any guest that a seeded test may be given.
    pub fn any(random: &mut impl Rng) -> Guest {
        Guest {
            vcpus: random.random_range(1..=2),
            tracking: ["bitmap", "ring"][random.random_range(0..2)],
            // The comparison makes epochs wait for each other: without it more of them are under way.
            verify: random.random_bool(0.5),
            ..Guest::default()
        }
    }
}

/// Two hosts, a client network, an arbiter and a directory for logs.
#[derive(Debug)]
pub struct Lab {
    /// The hosts and wires.
    pub world: World,
    /// What the guest is.
    pub guest: Guest,
    program: PathBuf,
    directory: TempDir,
}

/// Where the guest's server is.
#[must_use]
pub fn server() -> SocketAddr {
    SocketAddr::new(GUEST_ADDRESS, SERVER_PORT)
}

/// Why a lab cannot be had here; [`None`]: it can.
fn missing() -> Option<String> {
    for device in ["/dev/kvm", "/dev/net/tun"] {
        if let Err(error) = OpenOptions::new().read(true).write(true).open(device) {
            return Some(format!("{device}: {error}"));
        }
    }
    match Namespace::new() {
        Ok(_) => None,
        Err(error @ NamespaceError::Make { .. }) => Some(error.to_string()),
        Err(error) => panic!("{error}"),
    }
}

/// Whether labs can be had. If not, says so on standard error, past the test harness.
///
/// # Panics
/// They cannot, and `LOCKSTEP_REQUIRE_KVM` is set.
#[must_use]
pub fn available() -> bool {
    use std::io::Write;
    let Some(why) = missing() else { return true };
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    assert!(std::env::var_os("LOCKSTEP_REQUIRE_KVM").is_none(), "{test} cannot run here: {why}");
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {why}");
    false
}

impl Lab {
    /// A lab for nodes of `program`.
    ///
    /// # Panics
    /// The world cannot be built.
    #[must_use]
    pub fn new(program: PathBuf, guest: Guest) -> Lab {
        let lab = Lab { world: World::new().expect("a world"), guest, program, directory: tempfile::tempdir().expect("a directory") };
        std::fs::create_dir(lab.arbiter_directory()).expect("a directory");
        lab
    }

    /// Where the arbiter's file is.
    #[must_use]
    pub fn arbiter_directory(&self) -> PathBuf {
        self.directory.path().join("arbiter")
    }

    /// The lab's directory: `NAME.log` of every node.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// What the node `name` has logged.
    #[must_use]
    pub fn log(&self, name: &str) -> String {
        let bytes = std::fs::read(self.directory.path().join(format!("{name}.log"))).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until the log of `name` has `words` in it: for what is told to operators only.
    ///
    /// # Panics
    /// It does not come.
    pub fn until_logged(&self, name: &str, words: &str) {
        self.until_logged_within(name, words, BOUND);
    }

    /// As [`Lab::until_logged`], for what takes longer.
    ///
    /// # Panics
    /// It does not come.
    pub fn until_logged_within(&self, name: &str, words: &str, bound: Duration) {
        let deadline = Instant::now() + bound;
        while !self.log(name).contains(words) {
            assert!(Instant::now() < deadline, "{words:?} is not in the log of {name}:\n{}", self.log(name));
            std::thread::sleep(TICK);
        }
    }

    /// Blocks that the last link's primary sent of its disks, from its log.
    ///
    /// # Panics
    /// There was none.
    #[must_use]
    pub fn blocks_sent(&self, node: &str) -> u64 {
        self.until_logged(node, "the disks are copied");
        let log = self.log(node);
        let line = log.lines().rev().find(|line| line.contains("the disks are copied")).expect("a line");
        let digits = line.split("blocks").nth(1).expect("a number of blocks").trim_start_matches(|c: char| !c.is_ascii_digit());
        digits.chars().take_while(char::is_ascii_digit).collect::<String>().parse().expect("a number")
    }

    /// Starts a node. It dies with the calling thread.
    ///
    /// # Panics
    /// It cannot be started.
    #[must_use]
    pub fn start(&self, spec: &Spec) -> Node {
        let arguments = self.arguments(spec);
        let started = match &spec.fault {
            None => NodeProcess::start(&self.world, spec.host, &spec.name, &self.program, &arguments, self.directory.path()),
            Some(fault) => {
                // env becomes the program: the process is the node.
                let mut with_fault = vec![OsString::from(format!("LOCKSTEP_FAULT={fault}")), self.program.clone().into()];
                with_fault.extend(arguments);
                NodeProcess::start(&self.world, spec.host, &spec.name, Path::new("/usr/bin/env"), &with_fault, self.directory.path())
            }
        };
        Node(started.unwrap_or_else(|error| panic!("{error}")))
    }

    fn arguments(&self, spec: &Spec) -> Vec<OsString> {
        let guest = &self.guest;
        let mut options: Vec<(&str, OsString)> = vec![
            ("vm", "lab".into()),
            ("node", spec.name.clone().into()),
            ("memory", format!("{}M", guest.memory_mib).into()),
            ("vcpus", guest.vcpus.to_string().into()),
            ("cpu", "host".into()),
            ("net", format!("tap={}", spec.tap).into()),
            ("cmdline", format!("lockstep.ip={GUEST_ADDRESS}/24 lockstep.cpus={} lockstep.quiet", guest.vcpus).into()),
            ("console", "none".into()),
            ("dirty-tracking", guest.tracking.into()),
            ("detection-bound", guest.detection.into()),
            ("log", "info".into()),
        ];
        options.push((
            "arbiter",
            spec.arbiter.clone().unwrap_or_else(|| {
                let mut arbiter = OsString::from("file:");
                arbiter.push(self.arbiter_directory().join("record"));
                arbiter
            }),
        ));
        if let Some(standby) = spec.standby {
            options.push(("standby", standby.to_string().into()));
        }
        if !spec.primary {
            options.push(("listen", spec.host.replication_address().to_string().into()));
        }
        for (key, _) in &spec.with {
            assert!(options.iter().any(|(known, _)| known == key), "the lab gives no --{key} that could be replaced");
        }
        let mut arguments = vec![OsString::from(if spec.primary { "run" } else { "standby" })];
        for (key, value) in options {
            let replaced = spec.with.iter().rev().find(|(other, _)| other == key).map(|(_, value)| value.into());
            arguments.push(format!("--{key}").into());
            arguments.push(replaced.unwrap_or(value));
        }
        for disk in &spec.disks {
            arguments.extend(["--disk".into(), disk.into()]);
        }
        arguments.extend(spec.flags.iter().map(OsString::from));
        if guest.verify {
            arguments.push("--verify-memory".into());
        }
        arguments
    }

    /// The pair most tests begin with: a standby on B that listens, then a primary on A whose guest answers. Not yet protected.
    #[must_use]
    pub fn pair(&self, primary: &Spec, standby: &Spec) -> (Node, Node) {
        let mut b = self.start(standby);
        b.until_ready();
        let mut a = self.start(primary);
        a.until_ready();
        (a, b)
    }

    /// A connection to the guest, once it answers.
    ///
    /// # Panics
    /// It does not.
    #[must_use]
    pub fn connect(&self) -> Connection {
        let deadline = Instant::now() + BOUND;
        loop {
            match self.world.run(Place::Clients, || Connection::open(server())).expect("a thread") {
                Ok(connection) => return connection,
                Err(error) => assert!(Instant::now() < deadline, "the guest does not answer: {error}"),
            }
            std::thread::sleep(TICK);
        }
    }

    /// Frames that the guest on `host` has sent out into the client network so far.
    ///
    /// # Panics
    /// The counters cannot be read.
    #[must_use]
    pub fn frames_released(&self, host: Host) -> u64 {
        self.world.frames_released(host).expect("counters")
    }
}

/// Lets the guest dirty `rate` pages a second beside its other work.
///
/// # Panics
/// It refuses.
pub fn dirty(guest: &mut Connection, rate: u32) {
    dirty_as(guest, rate, b"random");
}

/// The same, one page after the other.
///
/// # Panics
/// It refuses.
pub fn dirty_in_sequence(guest: &mut Connection, rate: u32) {
    dirty_as(guest, rate, b"seq");
}

fn dirty_as(guest: &mut Connection, rate: u32, pattern: &[u8]) {
    let rate = rate.to_string();
    let reply = guest.ask(&[b"DIRTY", rate.as_bytes(), pattern]).expect("an answer to DIRTY");
    assert!(matches!(reply, Reply::Status(_)), "DIRTY: {reply:?}");
}

/// Lets the guest prove that its memory holds what it wrote; the pages it looked at. Its clock must never have gone back.
///
/// # Panics
/// Memory is not what it should be.
pub fn prove_memory(guest: &mut Connection) -> i64 {
    guest.set_answer_timeout(BOUND).expect("an option");
    let pages = match guest.ask(&[b"CHECK"]).expect("an answer to CHECK") {
        Reply::Int(pages) => pages,
        other => panic!("the guest's memory is not what it wrote: {other:?}"),
    };
    match guest.ask(&[b"UPTIME"]).expect("an answer to UPTIME") {
        Reply::Array(numbers) => assert_eq!(numbers.get(1), Some(&Reply::Int(0)), "the guest's clock went back: {numbers:?}"),
        other => panic!("UPTIME: {other:?}"),
    }
    pages
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let Ok(entries) = std::fs::read_dir(self.directory.path()) else { return };
        let mut logs: Vec<PathBuf> = entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "log")).collect();
        logs.sort();
        for path in logs {
            let text = std::fs::read(&path).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<&str> = text.lines().collect();
            eprintln!("--- {}", path.display());
            lines[lines.len().saturating_sub(LOG_LINES)..].iter().for_each(|line| eprintln!("{line}"));
        }
    }
}
