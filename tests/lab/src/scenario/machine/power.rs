//! Reboots, resets and the power button of a stock guest, protected and not.

use super::super::Stage;
use super::super::node::GuestSpec;
use super::super::pair::{ASK, Pair, lab, usual};
use super::super::report::Row;
use super::super::turns::Turns;
use crate::error::LabError;
use crate::host::HostOptions;

/// Four vCPUs.
#[must_use]
pub fn guest() -> GuestSpec {
    GuestSpec { cpus: 4, ..GuestSpec::stock() }
}

/// A protected guest reboots and stays protected; its host dies; it reboots where it runs now; somebody presses the power button.
///
/// # Errors
/// What is not as it should be.
pub fn reboots(stage: &Stage<'_>, turns: &mut Turns, row: &mut Row) -> Result<(), LabError> {
    while turns.another()? {
        let pair = Pair::begin(lab(stage, &[HostOptions::default(); 2])?, guest(), usual, stage.name)?;
        pair.play(stage, |pair| {
            let reboot = |pair: &Pair| pair.agent().reboot(ASK);
            pair.boots_again("a reboot while protected", reboot)?;
            pair.fail_over(row)?;
            pair.judge_probes(row)?;
            pair.boots_again("a reboot at the new primary", reboot)?;
            pair.judge_probes(row)?;
            pair.press_power_button()
        })?;
    }
    Ok(())
}

/// Every way in which Linux and its hardware start over, while protected; then a failover, and the power button while protected.
///
/// # Errors
/// As [`reboots`].
pub fn resets(stage: &Stage<'_>, turns: &mut Turns, row: &mut Row) -> Result<(), LabError> {
    while turns.another()? {
        let pair = Pair::begin(lab(stage, &[HostOptions::default(); 2])?, GuestSpec::stock(), usual, stage.name)?;
        pair.play(stage, |pair| resets_course(pair, row))?;
    }
    Ok(())
}

/// The guest goes at once and says nothing more: the shell's answer does not count.
fn drop_dead(pair: &Pair, script: &str) -> Result<(), LabError> {
    // In the background, so that the request is answered before the guest is gone.
    pair.guest(&format!("(sleep 0.3; {script}) >/dev/null 2>&1 </dev/null &")).map(drop)
}

fn resets_course(pair: &mut Pair, row: &mut Row) -> Result<(), LabError> {
    pair.until_up()?;
    for (how, script) in [
        ("a triple fault (reboot=t)", "echo triple >/sys/kernel/reboot/type; echo b >/proc/sysrq-trigger"),
        ("the keyboard controller (reboot=k)", "echo kbd >/sys/kernel/reboot/type; echo b >/proc/sysrq-trigger"),
        ("ACPI's reset register (reboot=a)", "echo acpi >/sys/kernel/reboot/type; echo b >/proc/sysrq-trigger"),
        ("a panic (panic=1)", "echo 1 >/proc/sys/kernel/panic; echo c >/proc/sysrq-trigger"),
    ] {
        pair.boots_again(how, |pair| drop_dead(pair, script))?;
    }
    pair.fail_over(row)?;
    pair.judge_probes(row)?;
    let triple_fault = |pair: &Pair| drop_dead(pair, "echo triple >/sys/kernel/reboot/type; echo b >/proc/sysrq-trigger");
    pair.boots_again("a triple fault at the new primary", triple_fault)?;
    // While memory is copied for the first time.
    pair.protect_again_begin()?;
    pair.boots_again("a triple fault in the first copy", triple_fault)?;
    pair.fail_over(row)?;
    pair.judge_probes(row)?;
    pair.protect_again()?;
    pair.press_power_button()
}
