//! The scenarios: hosts die, hang and lose wires while clients write, and everything that was acknowledged must be there in the end (S3, S4, S5).
//!
//! Lives here: the list, and how one is run. Beside it: the stage ([`course`]), the courses ([`faults`]), nodes, clients, the watch on the
//! client network, the report.

pub mod clients;
pub mod course;
pub mod events;
pub mod faults;
pub mod guest;
pub mod node;
pub mod report;
pub mod stock;
pub mod suite;
pub mod watch;

use std::time::Duration;

use lockstep::demo::client::Connection;
use lockstep::demo::resp::Reply;

use crate::error::LabError;
use crate::lab::Lab;
use crate::paths::Paths;
use crate::prepare::Prepared;
use clients::Load;
use course::Course;
use node::{GuestSpec, NODE_BOUND};
use report::Row;

/// A course under load: stage, (clients, row, times of faults), rounds.
pub type Run = fn(&mut Course, (&Load<'_>, &mut Row, &mut Vec<u64>), u32) -> Result<(), LabError>;

/// A course that makes its labs itself and needs no load: paths and prepared things, row.
pub type Own = fn(&Stage<'_>, &mut Row) -> Result<(), LabError>;

/// What an [`Own`] course works with.
#[derive(Clone, Copy, Debug)]
pub struct Stage<'a> {
    /// The scenario's name: that of its labs, and of the logs that are kept.
    pub name: &'static str,
    /// Where the lab's things are.
    pub paths: &'a Paths,
    /// What hosts and guests boot.
    pub prepared: &'a Prepared,
    /// How often whatever can be repeated is.
    pub rounds: u32,
    /// Of all random choices.
    pub seed: u64,
}

/// One scenario.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Its name; LAB_FILTER picks by parts of it.
    pub name: &'static str,
    /// What runs on the nodes.
    pub guest: fn() -> GuestSpec,
    /// The course.
    pub run: Run,
    /// Instead of it, one of its own kind.
    pub own: Option<Own>,
    /// Rounds in the suite.
    pub rounds: u32,
    /// Rounds in the soak.
    pub soak_rounds: u32,
    /// One round and the start take no longer than this, on a busy machine.
    pub round_bound: Duration,
    /// Memory of each host.
    pub host_mib: u32,
    /// Run only when the filter gives its whole name: what it needs of Lockstep is not all there yet.
    pub by_name: bool,
}

/// Pages a second that the built-in guest dirties beside its work.
const DIRTY_RATE: &str = "500";

/// Redis with every write flushed, on ext4 on a mirrored disk.
fn redis() -> GuestSpec {
    GuestSpec::debian("debian-6.12-redis", "redis")
}

const fn scenario(name: &'static str, run: Run, rounds: u32, soak_rounds: u32) -> Scenario {
    Scenario {
        name,
        guest: GuestSpec::built_in,
        run,
        own: None,
        rounds,
        soak_rounds,
        round_bound: Duration::from_secs(150),
        host_mib: 768,
        by_name: false,
    }
}

/// All scenarios, in the order in which they are run.
pub const ALL: &[Scenario] = &[
    scenario("host-death", faults::death, 4, 40),
    Scenario { guest: GuestSpec::verified, ..scenario("verified-host-death", faults::death, 1, 20) },
    scenario("host-hang", faults::hang, 3, 20),
    scenario("replication-cut", faults::replication_cut, 1, 10),
    scenario("replication-carrier", faults::carrier_loss, 1, 10),
    scenario("client-network-cut", faults::client_cut, 1, 10),
    scenario("slow-link-death", faults::slow_link, 1, 10),
    // Waits for disks that are replicated.
    Scenario { guest: redis, host_mib: 1024, by_name: true, ..scenario("redis-host-death", faults::death, 3, 40) },
];

/// Runs `scenario` on `lab`, writing what comes of it into `row`.
///
/// # Errors
/// What does not come about, or what must not be.
pub fn play(scenario: &Scenario, lab: Lab, rounds: u32, seed: u64, row: &mut Row) -> Result<(), LabError> {
    let mut course = Course::begin(lab, (scenario.guest)(), seed, scenario.name)?;
    let played = under_load(scenario, &mut course, rounds, seed, row);
    course.conclude(row);
    played.and_then(|()| judge(row)).inspect_err(|_| drop(course.lab.keep_logs(scenario.name)))
}

fn under_load(scenario: &Scenario, course: &mut Course, rounds: u32, seed: u64, row: &mut Row) -> Result<(), LabError> {
    let network = course.network();
    let built_in = course.guest.stock.is_none();
    let mut control = clients::connect(&network, NODE_BOUND)?;
    if built_in {
        dirty(&mut control)?;
    }
    let mut faults = Vec::new();
    clients::under_load(&network, seed, row, &mut faults, |load, row, faults| {
        load.until_more(NODE_BOUND)?;
        (scenario.run)(course, (load, row, faults), rounds)
    })?;
    if built_in { prove_memory(&mut control, row) } else { stock::conclude(course, row) }
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
    expect(row.writes_lost == 0, format!("{} acknowledged writes lost or wrong", row.writes_lost));
    expect(row.connections_broken == 0, format!("{} connections broken", row.connections_broken));
    expect(row.double_releases == 0, format!("{} frames released by a host whose successor had spoken", row.double_releases));
    expect(row.clock_ok != Some(false), "the guest's clock went back".into());
    if wrong.is_empty() { Ok(()) } else { Err(LabError::Found(wrong.join("; "))) }
}
