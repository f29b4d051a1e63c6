//! A primary's disk that hangs: no error, no answer. The standby has one that works.

use super::super::Stage;
use super::super::node::{Disk, GuestSpec};
use super::super::pair::{Pair, lab, usual};
use super::super::report::Row;
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
