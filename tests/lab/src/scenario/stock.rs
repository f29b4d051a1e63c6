//! What is asked of a stock guest in the end: its memory stamps and kernel log in the end, its disk after it was switched off.

use std::time::{Duration, Instant};

use lockstep::demo::world::GUEST_ADDRESS;

use super::clients::Told;
use super::course::Course;
use super::node::NODE_BOUND;
use super::on_disk;
use super::report::Row;
use crate::agent::Agent;
use crate::error::LabError;
use crate::net::Network;

/// The guest's agent answers within milliseconds, after a failover within a TCP retransmission, and every probe does something within a second; sixteen
/// processors on one take a while.
const BOUND: Duration = Duration::from_secs(40);
/// Kernel messages that [`Agent::kernel_errors`] tells and that are no sign of trouble, each with its reason.
const HARMLESS: [&str; 1] = [
    // At boot: the emulated host's CPUID gives sizes for XSAVE that do not fit each other (QEMU 7.2's TCG does not intercept XSETBV). Linux goes without AVX.
    "WARNING: CPU: 0 PID: 0 at arch/x86/kernel/fpu/xstate.c:",
];

/// The stock guest's agent.
#[must_use]
pub fn agent(network: &Network) -> Agent<'_> {
    Agent { namespace: &network.clients, address: GUEST_ADDRESS, place: "the guest" }
}

/// The value of `key` among `key=value` lines.
pub(super) fn value<'a>(text: &'a str, key: &str) -> Result<&'a str, LabError> {
    let find = text.lines().filter_map(|line| line.split_once('=')).find(|(name, _)| *name == key);
    find.map(|(_, value)| value).ok_or_else(|| LabError::Found(format!("the guest's probes do not tell {key}")))
}

/// Whether each of `cpus` counts (separated by commas) has grown.
fn gone_on(before: &str, after: &str, cpus: usize) -> bool {
    let counts = |text: &str| text.split(',').filter_map(|count| count.parse().ok()).collect::<Vec<u64>>();
    let (before, after) = (counts(before), counts(after));
    before.len() == cpus && after.len() == cpus && before.iter().zip(&after).all(|(before, after)| after > before)
}

/// What the probes tell, once they have done something on every processor since this was called: none was left behind by a failover.
fn probes_going_on(guest: &Agent<'_>, cpus: usize) -> Result<String, LabError> {
    let before = guest.status(BOUND)?;
    let deadline = Instant::now() + BOUND;
    loop {
        let probes = guest.status(BOUND)?;
        let mut all = true;
        for key in ["stamps_verified", "clock_readings"] {
            all &= gone_on(value(&before, key)?, value(&probes, key)?, cpus);
        }
        if all {
            return Ok(probes);
        }
        if Instant::now() >= deadline {
            return Err(LabError::Found(format!("probes stand still in the guest:\n{before}and later\n{probes}")));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Asks the guest's probes and kernel, then switches it off and has its disk checked on the host that ran it: the file system, and what is on it by
/// what its clients were told.
///
/// # Errors
/// Memory or kernel log are not as they should be, or the guest cannot be asked or switched off.
pub fn conclude(course: &mut Course, told: &Told, row: &mut Row) -> Result<(), LabError> {
    judge_probes(&course.network(), course.guest.cpus, row)?;
    course.step("probes and kernel log judged");
    if course.guest.stock.is_some_and(|stock| stock.disk) {
        switch_off(course, told, row)?;
    }
    Ok(())
}

/// Asks the guest's probes and kernel what they have seen, once the probes have gone on on each of its `cpus` processors.
///
/// # Errors
/// Memory, clocks, disks or kernel log are not as they should be, or the guest cannot be asked.
pub fn judge_probes(network: &Network, cpus: u8, row: &mut Row) -> Result<(), LabError> {
    let guest = agent(network);
    let probes = probes_going_on(&guest, usize::from(cpus))?;
    if value(&probes, "stamps_wrong")? != "0" {
        return Err(LabError::Found(format!("memory stamps in the guest: {probes}")));
    }
    let forward = value(&probes, "clock_steps_back")? == "0";
    row.clock_ok = Some(row.clock_ok.unwrap_or(true) && forward);
    if row.clock_ok == Some(false) {
        return Err(LabError::Found(format!("the guest's clocks: {probes}")));
    }
    if value(&probes, "blocks_wrong")? != "0" {
        return Err(LabError::Found(format!("what the guest wrote to its disks: {probes}")));
    }
    let errors = guest.kernel_errors(BOUND)?;
    let bad: Vec<&str> = errors.lines().filter(|line| !HARMLESS.iter().any(|known| line.contains(known))).collect();
    if !bad.is_empty() {
        return Err(LabError::Found(format!("the guest's kernel log: {}", bad.join(" | "))));
    }
    Ok(())
}

fn switch_off(course: &mut Course, told: &Told, row: &mut Row) -> Result<(), LabError> {
    let network = course.network();
    agent(&network).power_off(BOUND)?;
    let pid = course.primary.pid();
    let deadline = Instant::now() + NODE_BOUND;
    let host = course.primary_host()?;
    while host.exec(&format!("kill -0 {pid}"), BOUND)?.ok() {
        if Instant::now() >= deadline {
            let detail = format!("; the end of its log:\n{}", course.primary.log_tail());
            return Err(LabError::Late { what: "the node's end after its guest was switched off".into(), bound: NODE_BOUND, detail });
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let device = course.guest.disks.first().map_or("/dev/vda", |disk| disk.path.as_str()).to_owned();
    course.step("switched off");
    let host = course.primary_host()?;
    let check = host.exec(&format!("e2fsck -fn {device}"), NODE_BOUND)?;
    row.fsck_clean = Some(check.ok());
    if !check.ok() {
        let said = check.text();
        return Err(LabError::Found(format!("the guest's file system is not clean (e2fsck status {}): {said}", check.status)));
    }
    course.step("file system checked");
    let wrong = on_disk::judged(&course.primary_host()?.agent(), &device, told)?;
    course.step("what is on the disk judged");
    row.data_on_disk_ok = Some(wrong.is_empty());
    if wrong.is_empty() {
        return Ok(());
    }
    Err(LabError::Found(format!("on the disk of the guest that was switched off: {}", wrong.join("; "))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_that_stands_still_on_one_processor_is_found() {
        assert!(gone_on("1,7", "2,8", 2));
        assert!(!gone_on("1,7", "2,7", 2), "the second stands still");
        assert!(!gone_on("1", "2", 2), "there is no second");
        assert!(!gone_on("", "", 1) && !gone_on("x", "y", 1));
    }
}
