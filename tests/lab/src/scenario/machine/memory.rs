//! A guest of 6 GiB: memory on both sides of the hole below 4 GiB, protected and failed over.

use super::super::node::GuestSpec;
use super::super::pair::{ASK, Pair, lab, usual};
use super::super::report::Row;
use super::super::turns::Turns;
use super::super::{Stage, stock};
use super::expect;
use crate::error::LabError;
use crate::host::HostOptions;

/// More than the first memory slot's 3 GiB.
#[must_use]
pub fn large() -> GuestSpec {
    // Linux takes the highest memory first, so that the stamps lie above 4 GiB; the scenario looks whether they do.
    GuestSpec { memory_mib: 6144, parameters: "lab.stamp=64".into(), ..GuestSpec::stock() }
}

/// The agent's stamps lie above 4 GiB, are written all the time, and are intact after a failover.
///
/// # Errors
/// What is not as it should be.
pub fn beyond_four_gib(stage: &Stage<'_>, turns: &mut Turns, row: &mut Row) -> Result<(), LabError> {
    while turns.another()? {
        let host = HostOptions { memory_mib: 7168, ..HostOptions::default() };
        let pair = Pair::begin(lab(stage, &[host; 2])?, large(), usual, stage.name)?;
        pair.play(stage, |pair| {
            pair.until_up()?;
            let total: u64 = pair.guest("sed -n 's/^MemTotal: *\\([0-9]*\\).*/\\1/p' /proc/meminfo")?.trim().parse().unwrap_or_default();
            expect(total > 5_500_000, || format!("the guest sees {total} KiB"))?;
            let probes = pair.agent().status(ASK)?;
            let high = stock::value(&probes, "stamps_above_4g")?;
            expect(high.parse::<u64>().is_ok_and(|high| high > 8192), || format!("stamped pages above 4 GiB: {high}"))?;
            pair.fail_over(row)?;
            pair.judge_probes(row)?;
            pair.press_power_button()
        })?;
    }
    Ok(())
}
