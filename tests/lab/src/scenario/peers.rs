//! QEMU's own live migration and its COLO beside Lockstep: the same stock guest (kernel, initramfs, memory, one processor, no disk) on the same lab hosts
//! in the same run, one after the other, each with the machine to itself. Measures only; nothing is judged but that it worked.
//!
//! What is not alike, and why: COLO's guest has no card, for its output needs filters and a comparison around every card, so that there are no clients and
//! its progress is the time in which it ran. Live migration is no protection: both hosts have to be well.

mod echo;
mod figures;
mod qemu;

pub use figures::Beside;

use std::sync::Arc;
use std::time::{Duration, Instant};

use lockstep::host::monotonic_ns;
use serde_json::{Value, json};

use super::Stage;
use super::guest::GuestSpec;
use super::node::{Node, Part};
use super::report::Row;
use super::stock;
use super::turns::Turns;
use crate::error::LabError;
use crate::host::{HostOptions, READY_BOUND};
use crate::lab::{Lab, LabOptions};
use crate::net::Network;
use echo::Echo;
use figures::{Colo, Lockstep, Migration, Work, part};
use qemu::{Qemu, Start, pauses_us};

/// How long each way of keeping a guest is measured.
const MEASURED: Duration = Duration::from_secs(6);
/// Before a way is measured that has just been set.
const SETTLED: Duration = Duration::from_secs(3);
/// Live migrations, there and back again.
const MIGRATIONS: u8 = 2;
/// COLO's checkpoint delays.
const DELAYS_MS: [u64; 2] = [500, 100];
/// A guest may boot so long, on a busy machine.
const BOOT_BOUND: Duration = Duration::from_secs(90);
/// The guest's agent answers within milliseconds, on a busy machine within seconds.
const ASK_BOUND: Duration = Duration::from_secs(15);
const TICK: Duration = Duration::from_millis(20);
/// COLO's second side keeps the guest's memory twice.
const HOST_MIB: u32 = 1280;
/// What the agent says on the guest's console when it is ready.
const LISTENING: &str = "agent: listening";

/// The guest: nothing but the agent, whose stamping thread dirties memory.
#[must_use]
pub fn guest() -> GuestSpec {
    GuestSpec { name: "debian-6.12-diskless", ..GuestSpec::stock() }
}

/// The scenario.
///
/// # Errors
/// Something of it does not work; what was measured before is in the row.
pub fn beside(stage: &Stage<'_>, turns: &mut Turns, row: &mut Row) -> Result<(), LabError> {
    let host = HostOptions { memory_mib: HOST_MIB, ..HostOptions::default() };
    let options = LabOptions { name: format!("test-{}", stage.name), hosts: 2, host };
    let mut lab = Lab::start(stage.paths, stage.prepared.clone(), &options).map_err(LabError::trouble)?;
    let mut beside = Beside::default();
    let came = lab.share(&stage.paths.lockstep()?, "lockstep").and_then(|()| {
        // Lockstep's part does not depend on QEMU's.
        let qemu = with_qemu(&mut lab, &mut beside);
        if qemu.is_err() {
            // Those that it has left hold the card that Lockstep's guest needs. In these hosts nothing else is called so.
            lab.hosts().iter().try_for_each(|host| host.exec("pkill -9 -x qemu-system-x86; sleep 1", ASK_BOUND).map(drop))?;
        }
        let ours = with_lockstep(&mut lab, &mut beside, turns, row);
        qemu.and(ours)
    });
    row.beside = Some(beside);
    if came.is_err() || stage.keep_logs {
        // Logs that cannot be kept make no scenario fail.
        drop(lab.keep_logs(stage.name));
    }
    came
}

/// Waits until the guest whose console goes to `/shared/NAME.console.log` is ready; milliseconds since `begun`.
fn booted(lab: &Lab, name: &str, begun: Instant) -> Result<f64, LabError> {
    let console = lab.shared().join(format!("{name}.console.log"));
    loop {
        let said = String::from_utf8_lossy(&std::fs::read(&console).unwrap_or_default()).into_owned();
        if said.contains(LISTENING) {
            return Ok(begun.elapsed().as_secs_f64() * 1e3);
        }
        if begun.elapsed() >= BOOT_BOUND {
            let detail = format!("; its console: {}", crate::command::tail(&said, 800));
            return Err(LabError::Late { what: format!("{name}: its guest's being ready"), bound: BOOT_BOUND, detail });
        }
        std::thread::sleep(TICK);
    }
}

/// Pages that the guest's stamping thread has verified so far; none of them may have been wrong.
fn stamped(network: &Network) -> Result<u64, LabError> {
    let told = stock::agent(network).status(ASK_BOUND)?;
    let value = |key: &str| {
        let line = told.lines().filter_map(|line| line.split_once('=')).find(|(name, _)| *name == key);
        line.and_then(|(_, value)| value.parse::<u64>().ok())
    };
    match (value("stamps_verified"), value("stamps_wrong")) {
        (Some(verified), Some(0)) => Ok(verified),
        _ => Err(LabError::Found(format!("memory stamps in the guest: {told}"))),
    }
}

/// What the guest does while `passing` lets some time pass.
fn at_work(network: &Network, echo: &Echo, passing: impl FnOnce() -> Result<(), LabError>) -> Result<Work, LabError> {
    let (from, begun, before) = (monotonic_ns(), Instant::now(), stamped(network)?);
    passing()?;
    let stamps_per_s = (stamped(network)? - before) as f64 / begun.elapsed().as_secs_f64();
    let (echo_ms, echo_ms_p99) = echo.waits_ms(from);
    Ok(Work { stamps_per_s, echo_ms, echo_ms_p99 })
}

fn rest() -> Result<(), LabError> {
    std::thread::sleep(MEASURED);
    Ok(())
}

fn with_qemu(lab: &mut Lab, beside: &mut Beside) -> Result<(), LabError> {
    let (network, guest) = (Arc::clone(lab.network()), guest());
    let begun = Instant::now();
    let mut qemu = Qemu::start(lab, 1, "qemu-0", &guest, Start { card: true, incoming: false })?;
    beside.qemu_boot_ms = Some(booted(lab, "qemu-0", begun)?);
    let echo = Echo::start(&network)?;
    beside.qemu_alone = Some(at_work(&network, &echo, rest)?);
    for number in 1..=MIGRATIONS {
        let mut next = Qemu::start(lab, 3 - qemu.host, &format!("qemu-{number}"), &guest, Start { card: true, incoming: true })?;
        let from = monotonic_ns();
        let told = qemu.migrate(&mut next, "completed")?;
        echo.until_more()?;
        let blackout_ms = echo.blackout_ms(from, monotonic_ns());
        let count = |key: &str| told.get(key).and_then(Value::as_u64);
        let sent = told.get("ram").and_then(|ram| ram.get("transferred")).and_then(Value::as_u64);
        let sent_mib = sent.map(|bytes| bytes as f64 / f64::from(1 << 20));
        beside.migrations.push(Migration { total_ms: count("total-time"), downtime_ms: count("downtime"), sent_mib, blackout_ms });
        std::mem::replace(&mut qemu, next).kill(lab)?;
    }
    drop(echo);
    qemu.kill(lab)?;
    with_colo(lab, beside)
}

fn with_colo(lab: &mut Lab, beside: &mut Beside) -> Result<(), LabError> {
    let mut qemu = Qemu::start(lab, 1, "qemu-colo-1", &guest(), Start { card: false, incoming: false })?;
    booted(lab, "qemu-colo-1", Instant::now())?;
    let mut other = Qemu::start(lab, 2, "qemu-colo-2", &guest(), Start { card: false, incoming: true })?;
    let came = checkpoints(&mut qemu, &mut other, beside);
    other.kill(lab)?;
    qemu.kill(lab)?;
    came
}

fn checkpoints(qemu: &mut Qemu, other: &mut Qemu, beside: &mut Beside) -> Result<(), LabError> {
    for side in [&mut *qemu, &mut *other] {
        side.ask("migrate-set-capabilities", &json!({"capabilities": [{"capability": "x-colo", "state": true}]}))?;
    }
    let delay = |qemu: &mut Qemu, ms: u64| qemu.ask("migrate-set-parameters", &json!({"x-checkpoint-delay": ms})).map(drop);
    delay(qemu, DELAYS_MS[0])?;
    qemu.migrate(other, "colo")?;
    for delay_ms in DELAYS_MS {
        delay(qemu, delay_ms)?;
        // The first checkpoint sends more than those after it, and the delay may have been another until now.
        qemu.watch(SETTLED)?;
        qemu.events.clear();
        let begun = Instant::now();
        qemu.watch(MEASURED)?;
        let took_us = begun.elapsed().as_micros() as f64;
        let mut pauses = pauses_us(&qemu.events);
        pauses.sort_unstable();
        if pauses.is_empty() {
            return Err(LabError::Found(format!("COLO took no checkpoint at a delay of {delay_ms} ms")));
        }
        let at = |percent| part(&pauses, percent).map(|us| us as f64 / 1e3);
        let stopped: u64 = pauses.iter().sum();
        beside.colo.push(Colo {
            delay_ms,
            checkpoints: pauses.len(),
            checkpoints_per_s: pauses.len() as f64 * 1e6 / took_us,
            pause_ms: at(50),
            pause_ms_p99: at(99),
            running: 1.0 - stopped as f64 / took_us,
        });
        other.ask("query-status", &json!({}))?;
    }
    Ok(())
}

fn with_lockstep(lab: &mut Lab, beside: &mut Beside, turns: &mut Turns, row: &mut Row) -> Result<(), LabError> {
    let (network, guest, shared) = (Arc::clone(lab.network()), guest(), lab.shared());
    let begun = Instant::now();
    let mut primary = Node::start(lab.host(1)?, 2, Part::Primary, 1, &guest, &shared)?;
    let boot = booted(lab, &primary.name, begun)?;
    (beside.lockstep_boot_ms, row.boot_ms) = (Some(boot), Some(boot));
    let echo = Echo::start(&network)?;
    let ours = beside.lockstep.insert(Lockstep { alone: at_work(&network, &echo, rest)?, ..Lockstep::default() });
    let mut standby = Node::start(lab.host(2)?, 1, Part::Standby { first: true }, 1, &guest, &shared)?;
    standby.until_ready()?;
    primary.until_protected()?;
    let earlier = primary.samples().0.len();
    let measured = Instant::now();
    ours.protected = at_work(&network, &echo, rest)?;
    let seconds = measured.elapsed().as_secs_f64();
    let (pauses, commits) = primary.samples();
    let sorted = |all: &[u32]| {
        let mut all = all.get(earlier.min(all.len())..).unwrap_or_default().to_vec();
        all.sort_unstable();
        all
    };
    let (pauses, commits) = (sorted(&pauses), sorted(&commits));
    ours.epochs_per_s = pauses.len() as f64 / seconds;
    (ours.pause_us, ours.pause_us_p99) = (part(&pauses, 50), part(&pauses, 99));
    (ours.commit_us, ours.commit_us_p99) = (part(&commits, 50), part(&commits, 99));
    (row.pause_us, row.pause_us_p99, row.commit_us) = (ours.pause_us, ours.pause_us_p99, ours.commit_us);
    let mut turn = 1;
    while turns.another()? {
        if turn > 1 {
            let (host, peer) = (standby.host(), primary.host());
            lab.host(host)?.wait_ready(READY_BOUND)?;
            standby = Node::start(lab.host(host)?, peer, Part::Standby { first: false }, turn, &guest, &shared)?;
            standby.until_ready()?;
            primary.until_protected()?;
            echo.until_more()?;
        }
        turn += 1;
        let from = monotonic_ns();
        let host = lab.host(primary.host())?;
        host.kill()?;
        row.kills += 1;
        host.start()?;
        standby.until_activated()?;
        row.failovers += 1;
        echo.until_more()?;
        let blackout = echo.blackout_ms(from, monotonic_ns());
        ours.blackouts_ms.extend(blackout);
        row.blackouts_ms.extend(blackout);
        std::mem::swap(&mut primary, &mut standby);
    }
    row.blackout_ms = row.blackouts_ms.iter().copied().reduce(f64::max);
    stamped(&network).map(drop)
}
