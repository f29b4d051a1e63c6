//! The scenarios: hosts die, hang and lose wires while clients write, and everything that was acknowledged must be there in the end (S3, S4, S5).
//!
//! Lives here: the list, and how one is run. Beside it: the stage ([`course`]), the courses ([`faults`]), nodes, clients, the watch on the
//! client network, the report.

pub mod arbiter_lock;
pub mod clients;
pub mod clock;
pub mod course;
pub mod events;
pub mod faults;
pub mod guest;
pub mod ledger;
pub mod machine;
pub mod node;
pub mod on_disk;
pub mod pair;
pub mod peers;
pub mod report;
pub mod reservations;
pub mod shared;
pub mod soft_roce;
pub mod steps;
pub mod stock;
pub mod suite;
pub mod turns;
pub mod watch;

use std::time::Duration;

use lockstep::demo::client::Connection;
use lockstep::demo::resp::Reply;

use crate::error::LabError;
use crate::host::HostOptions;
use crate::lab::Lab;
use crate::paths::Paths;
use crate::prepare::Prepared;
use crate::storage;
use clients::{Load, Service};
use course::Course;
use node::{GuestSpec, NODE_BOUND};
use report::Row;
use turns::{Rounds, Turns};

/// What a round is given beside the stage: the clients, the row to write into, and where faults are noted for the judgement of blackouts.
pub type Given<'a, 'b> = (&'a Load<'b>, &'a mut Row, &'a mut Vec<u64>);
/// One round under load, on a stage that it leaves as it has found it: a protected pair, whichever host has which part.
pub type Round = fn(&mut Course, Given<'_, '_>) -> Result<(), LabError>;

/// How a scenario is played.
#[derive(Clone, Copy, Debug)]
pub enum Play {
    /// On a protected pair, under load; called for each round.
    Rounds(Round),
    /// All by itself.
    Own(Own),
}

/// A scenario that makes its labs itself; nodes, clients, judgement and [`Lab::keep_logs`] are its own. It asks [`Turns::another`] before each round.
pub type Own = fn(&Stage<'_>, &mut Turns, &mut Row) -> Result<(), LabError>;

/// What a scenario works with.
#[derive(Clone, Copy, Debug)]
pub struct Stage<'a> {
    /// The scenario's name: that of its labs, and of the logs that are kept.
    pub name: &'static str,
    /// Where the lab's things are.
    pub paths: &'a Paths,
    /// What hosts and guests boot.
    pub prepared: &'a Prepared,
    /// Of all random choices.
    pub seed: u64,
    /// Keep the logs of one that passed, too.
    pub keep_logs: bool,
}

/// One scenario.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Its name; LAB_FILTER picks by parts of it.
    pub name: &'static str,
    /// What runs on the nodes.
    pub guest: fn() -> GuestSpec,
    /// What happens.
    pub play: Play,
    /// How often, and its share of the time.
    pub rounds: Rounds,
    /// One round and the start take no longer than this, on a busy machine: a watchdog's bound.
    pub round_bound: Duration,
    /// Hosts.
    pub hosts: u8,
    /// Memory of each host.
    pub host_mib: u32,
    /// One more host, whose disks the others have.
    pub storage: bool,
    /// Run only when the filter gives its whole name, or in the soak: too long for the suite.
    pub by_name: bool,
}

/// Pages a second that the built-in guest dirties beside its work.
const DIRTY_RATE: &str = "500";

/// Redis with every write flushed, on ext4 on a mirrored disk.
fn redis() -> GuestSpec {
    GuestSpec::debian("debian-6.12-redis", "redis")
}

/// Redis with every write flushed, and SQLite transactions, on ext4 on a mirrored disk.
fn databases() -> GuestSpec {
    GuestSpec::debian("debian-6.12-redis-sqlite", "redis,sqlite")
}

/// The same on two processors.
fn databases_on_two() -> GuestSpec {
    GuestSpec { cpus: 2, ..GuestSpec::debian("debian-6.12-redis-sqlite-2cpu", "redis,sqlite") }
}

const fn scenario(name: &'static str, round: Round, rounds: Rounds) -> Scenario {
    Scenario {
        name,
        guest: GuestSpec::built_in,
        play: Play::Rounds(round),
        rounds,
        round_bound: Duration::from_secs(150),
        hosts: 2,
        host_mib: 768,
        storage: false,
        by_name: false,
    }
}

/// Rounds of those with a stock guest and databases. Both loads at once, so that each host that dies counts for Redis and for SQLite.
const DEBIAN: Rounds = Rounds { least: 5, most: 20, soak: 100, share: 330 };

/// With the guest's root disk on a host of its own.
const fn shared(name: &'static str, guest: fn() -> GuestSpec, round: Round, rounds: Rounds) -> Scenario {
    Scenario { guest, host_mib: 1024, storage: true, by_name: true, ..scenario(name, round, rounds) }
}

/// Rounds of those on a shared disk that are run when they are named.
const SHARED: Rounds = Rounds { least: 2, most: 4, soak: 40, share: 120 };

/// All scenarios, in the order in which they are run. Shares are seconds on a quiet machine of two cores; `make test` gives 900 in all.
pub const ALL: &[Scenario] = &[
    scenario("host-death", faults::death, Rounds::exactly(4, 40, 45)),
    Scenario { guest: GuestSpec::verified, ..scenario("verified-host-death", faults::death, Rounds::exactly(1, 20, 35)) },
    scenario("host-hang", faults::hang, Rounds::exactly(3, 20, 25)),
    scenario("replication-cut", faults::replication_cut, Rounds::exactly(1, 10, 27)),
    scenario("replication-carrier", faults::carrier_loss, Rounds::exactly(1, 10, 20)),
    scenario("client-network-cut", faults::client_cut, Rounds::exactly(2, 20, 23)),
    scenario("slow-link-death", faults::slow_link, Rounds::exactly(1, 10, 22)),
    Scenario { guest: databases, host_mib: 1024, ..scenario("debian-host-death", faults::death, DEBIAN) },
    Scenario {
        by_name: false,
        ..shared("shared-host-death", shared::databases, faults::death, Rounds { least: 4, most: 20, soak: 40, share: 380 })
    },
    Scenario { guest: redis, host_mib: 1024, by_name: true, ..scenario("redis-host-death", faults::death, DEBIAN) },
    Scenario { guest: databases_on_two, host_mib: 1024, by_name: true, ..scenario("debian-2cpu-host-death", faults::death, DEBIAN) },
    Scenario { guest: databases, host_mib: 1024, by_name: true, ..scenario("debian-host-hang", faults::hang, SHARED) },
    shared("shared-1cpu-host-death", shared::databases_on_one, faults::death, DEBIAN),
    Scenario { play: Play::Own(arbiter_lock::prove), by_name: true, ..scenario("arbiter-lock", faults::death, Rounds::exactly(1, 5, 20)) },
    Scenario { play: Play::Own(soft_roce::prove), by_name: true, ..scenario("soft-roce", faults::death, Rounds::exactly(1, 3, 30)) },
    Scenario {
        play: Play::Own(reservations::prove),
        round_bound: Duration::from_secs(300),
        by_name: true,
        ..scenario("shared-reservations", faults::death, Rounds::exactly(1, 3, 60))
    },
    shared("shared-host-hang", shared::databases, faults::hang, SHARED),
    shared("shared-sleeper", shared::sleeper, shared::wake, SHARED),
    shared("storage-cut", shared::databases, shared::cut, SHARED),
    Scenario {
        guest: peers::guest,
        play: Play::Own(peers::beside),
        round_bound: Duration::from_secs(300),
        by_name: true,
        ..scenario("qemu-beside", faults::death, Rounds::exactly(2, 5, 150))
    },
    Scenario { guest: machine::devices::guest, rounds: Rounds::exactly(1, 5, 60), ..machine("machine-devices", machine::devices::play) },
    Scenario { guest: machine::power::guest, rounds: Rounds::exactly(1, 5, 60), ..machine("machine-reboots", machine::power::reboots) },
    Scenario { guest: GuestSpec::built_in, rounds: Rounds::exactly(1, 2, 30), ..machine("machine-unlike-cpus", machine::cpus::unlike) },
    machine("machine-resets", machine::power::resets),
    machine("machine-kernels", machine::kernels::all),
    machine("machine-16-vcpus", machine::kernels::sixteen),
    machine("machine-without-drivers", machine::kernels::without_drivers),
    Scenario { guest: machine::memory::large, ..machine("machine-6-gib", machine::memory::beyond_four_gib) },
    Scenario { guest: machine::disks::guest, ..machine("machine-disk-hang", machine::disks::hang) },
    Scenario { guest: machine::disks::guest, ..machine("machine-disk-slow", machine::disks::slow) },
];

/// A scenario with guests of its own, in the soak or by its whole name only.
const fn machine(name: &'static str, own: Own) -> Scenario {
    Scenario {
        name,
        guest: GuestSpec::stock,
        play: Play::Own(own),
        rounds: Rounds::exactly(1, 3, 90),
        round_bound: Duration::from_secs(600),
        hosts: 2,
        host_mib: 1024,
        storage: false,
        by_name: true,
    }
}

/// Runs `scenario`, writing what comes of it into `row`.
///
/// # Errors
/// What does not come about, or what must not be.
pub fn play(scenario: &Scenario, stage: &Stage<'_>, turns: &mut Turns, row: &mut Row) -> Result<(), LabError> {
    let round = match scenario.play {
        Play::Own(own) => return own(stage, turns, row).and_then(|()| judge(row)),
        Play::Rounds(round) => round,
    };
    let host = HostOptions { memory_mib: scenario.host_mib, ..HostOptions::default() };
    let hosts = match scenario.storage {
        true => storage::with_target(scenario.hosts, host),
        false => vec![host; usize::from(scenario.hosts)],
    };
    let lab =
        Lab::start_unlike(stage.paths, stage.prepared.clone(), &format!("test-{}", scenario.name), &hosts).map_err(LabError::trouble)?;
    lab.share(&stage.paths.lockstep()?, "lockstep")?;
    let mut course = Course::begin(lab, (scenario.guest)(), stage.seed, scenario.name, row)?;
    let played = under_load(round, &mut course, turns, stage.seed, row);
    course.conclude(row);
    let came = played.and_then(|()| judge(row)).and_then(|()| all_compared(&course.guest, row));
    (row.rounds, row.rounds_wanted) = (turns.done(), turns.most());
    if came.is_err() {
        row.last_words = Some(course.last_words());
    }
    if came.is_err() || stage.keep_logs {
        // Logs that cannot be kept make no scenario fail.
        drop(course.lab.keep_logs(scenario.name));
    }
    // What was lost or wrong is a finding whatever the machine did; that something took too long is none where hosts stood still.
    match came {
        Err(error @ LabError::Late { .. }) if course.hosts_stood_still() => Err(error.trouble()),
        came => came,
    }
}

/// Where `--verify-memory` was asked for, so many pages as the guest has must have been compared: a window at every epoch comes round to all of them. A
/// quarter will do where the built-in guest's window has half a minute for it.
fn all_compared(guest: &GuestSpec, row: &Row) -> Result<(), LabError> {
    let (compared, pages) = (row.memory_compared_pages, u64::from(guest.memory_mib) << 20 >> 12);
    let least = if guest.stock.is_some() { pages } else { pages / 4 };
    match guest.verify.is_some() && compared < least {
        true => Err(LabError::Found(format!(
            "{compared} pages of memory were compared at both ends, of {least} at least; the guest has {pages}"
        ))),
        false => Ok(()),
    }
}

fn under_load(round: Round, course: &mut Course, turns: &mut Turns, seed: u64, row: &mut Row) -> Result<(), LabError> {
    let network = course.network();
    let built_in = course.guest.stock.is_none();
    let services = Service::of(&course.guest);
    let mut control = clients::connect(&network, NODE_BOUND)?;
    if built_in {
        dirty(&mut control)?;
    }
    let mut faults = Vec::new();
    let told = clients::under_load(&network, &services, seed, row, &mut faults, |load, row, faults| {
        load.until_more(NODE_BOUND)?;
        course.step("clients at work");
        course.read_clock()?;
        course.step("the clock read");
        while turns.another()? {
            round(course, (load, row, faults))?;
            course.step(&format!("round {} done", turns.done() + 1));
        }
        Ok(())
    })?;
    course.step("read back and judged");
    course.judge_clock(row)?;
    if built_in { prove_memory(&mut control, row) } else { stock::conclude(course, &told, row) }
}

fn asked(error: std::io::Error) -> LabError {
    LabError::Io { what: "ask the guest over the connection that was made before all faults".into(), source: error }
}

fn dirty(guest: &mut Connection) -> Result<(), LabError> {
    match guest.ask(&[b"DIRTY", DIRTY_RATE.as_bytes(), b"random"]).map_err(asked)? {
        Reply::Status(_) => Ok(()),
        other => Err(LabError::Found(format!("DIRTY: {other:?}"))),
    }
}

/// The built-in guest proves that its memory holds what it wrote, and tells whether its clock ever went back.
fn prove_memory(guest: &mut Connection, row: &mut Row) -> Result<(), LabError> {
    guest.set_answer_timeout(NODE_BOUND).map_err(asked)?;
    match guest.ask(&[b"CHECK"]).map_err(asked)? {
        Reply::Int(_) => {}
        other => return Err(LabError::Found(format!("the guest's memory is not what it wrote: {other:?}"))),
    }
    let Reply::Array(numbers) = guest.ask(&[b"UPTIME"]).map_err(asked)? else {
        return Err(LabError::Found("UPTIME is no list".into()));
    };
    row.clock_ok = Some(numbers.get(1) == Some(&Reply::Int(0)));
    Ok(())
}

/// What a row must look like for its scenario to have passed.
fn judge(row: &Row) -> Result<(), LabError> {
    let mut wrong = Vec::new();
    let mut expect = |good: bool, what: String| {
        if !good {
            wrong.push(what);
        }
    };
    let examples: Vec<&str> = row.services.values().flat_map(|served| &served.examples).map(String::as_str).collect();
    expect(row.writes_lost == 0, format!("{} acknowledged writes lost or wrong: {}", row.writes_lost, examples.join(", ")));
    expect(row.connections_broken == 0, format!("{} connections broken", row.connections_broken));
    expect(row.double_releases == 0, format!("{} frames released by a host whose successor had spoken", row.double_releases));
    expect(row.clock_ok != Some(false), "the guest's clock went back".into());
    if wrong.is_empty() { Ok(()) } else { Err(LabError::Found(wrong.join("; "))) }
}
