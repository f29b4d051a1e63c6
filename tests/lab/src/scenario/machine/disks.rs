//! A primary's disk that hangs: no error, no answer; and one that is slow, so that requests are in flight whenever its host dies. The standby has one that works.

use std::time::{Duration, Instant};

use super::super::Stage;
use super::super::node::{Disk, GuestSpec};
use super::super::pair::{ASK, Pair, lab, usual};
use super::super::report::Row;
use super::super::stock;
use super::super::turns::Turns;
use crate::error::LabError;
use crate::host::HostOptions;

/// A disk that the guest writes all the time.
#[must_use]
pub fn guest() -> GuestSpec {
    GuestSpec { disks: vec![Disk::mirror("/dev/vda")], parameters: "lab.blocks=/dev/vda".into(), ..GuestSpec::stock() }
}

/// The host's disk hangs, the primary gives up its role, and the guest goes on at the standby with everything it wrote.
///
/// # Errors
/// What is not as it should be.
pub fn hang(stage: &Stage<'_>, turns: &mut Turns, row: &mut Row) -> Result<(), LabError> {
    while turns.another()? {
        let pair = Pair::begin(lab(stage, &[HostOptions::default(); 2])?, guest(), usual, stage.name)?;
        pair.play(stage, |pair| {
            pair.until_up()?;
            pair.primary.until_protected()?;
            pair.primary_host()?.hang_disk("vda")?;
            pair.standby.until_activated()?;
            row.failovers += 1;
            std::mem::swap(&mut pair.primary, &mut pair.standby);
            pair.guest("true")?;
            pair.judge_probes(row)?;
            pair.press_power_button()
        })?;
    }
    Ok(())
}

/// Requests a second that a slow disk takes. The guest has three in flight at a time, each of which then takes a tenth of a second and more.
const SLOW: u32 = 20;
/// Deaths of a host with a slow disk until one must have met a request in flight. Each does that nearly always.
const DEATHS: u32 = 3;
/// Requests that the guest has done with the slow disk before its host dies.
const SOME: u64 = 20;

/// Hosts die while requests to their disks are in flight. Each request is done exactly once as the guest sees it: what it reads afterwards is what it wrote,
/// and it goes on (DESIGN.md, the disks' part of S5).
///
/// # Errors
/// What is not as it should be; no death met a request in flight.
pub fn slow(stage: &Stage<'_>, turns: &mut Turns, row: &mut Row) -> Result<(), LabError> {
    while turns.another()? {
        let pair = Pair::begin(lab(stage, &[HostOptions::default(); 2])?, guest(), usual, stage.name)?;
        pair.play(stage, |pair| {
            let met = |row: &Row| row.disk_requests_at_failovers.iter().any(|count| *count > 0);
            for death in 1..=DEATHS {
                pair.primary.until_protected()?;
                pair.primary_host()?.slow_disk("vda", SLOW)?;
                some_blocks(pair)?;
                pair.fail_over(row)?;
                some_blocks(pair)?;
                pair.judge_probes(row)?;
                if met(row) {
                    break;
                }
                if death < DEATHS {
                    pair.protect_again()?;
                }
            }
            if !met(row) {
                return Err(LabError::Found(format!("in {DEATHS} deaths of a host with a slow disk no request was in flight")));
            }
            pair.press_power_button()
        })?;
    }
    Ok(())
}

/// Waits until the guest has done some more requests.
fn some_blocks(pair: &Pair) -> Result<(), LabError> {
    let done = || -> Result<u64, LabError> {
        let status = pair.agent().status(ASK)?;
        stock::value(&status, "blocks_done")?.parse().map_err(|_| LabError::Found(format!("no count of blocks in {status:?}")))
    };
    let (before, deadline) = (done()?, Instant::now() + ASK);
    while done()? < before + SOME {
        if Instant::now() >= deadline {
            let detail = format!("; the end of its node's log:\n{}", pair.primary.log_tail());
            return Err(LabError::Late { what: "more requests to the guest's disk".into(), bound: ASK, detail });
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
