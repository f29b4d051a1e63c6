//! A guest of 6 GiB: memory on both sides of the hole below 4 GiB, protected and failed over.

use super::super::Stage;
use super::super::node::GuestSpec;
use super::super::pair::{Pair, lab, usual};
use super::super::report::Row;
use super::super::turns::Turns;
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
            let high = high_pages(pair)?;
            expect(high > 8192, || format!("only {high} of the agent's pages lie above 4 GiB"))?;
            pair.fail_over(row)?;
            pair.judge_probes(row)?;
            pair.press_power_button()
        })?;
    }
    Ok(())
}

/// Pages of the agent's that lie above 4 GiB, by /proc/PID/pagemap: eight bytes a page, the frame's number in the lower 55 bits (Documentation/admin-guide/mm/pagemap.rst).
fn high_pages(pair: &Pair) -> Result<u64, LabError> {
    let said = pair.guest(
        "p=$(pidof agent | tr ' ' '\\n' | sort -n | tail -1); grep -h rw-p /proc/$p/maps | while read range rest; do \
         a=$((0x${range%-*} / 4096)); b=$((0x${range#*-} / 4096)); \
         dd if=/proc/$p/pagemap bs=8 skip=$a count=$((b-a)) 2>/dev/null; done | hexdump -v -e '1/8 \"%x\\n\"' | grep -c '^8[0-9a-f]*[1-9a-f][0-9a-f]\\{5\\}$' || true",
    )?;
    Ok(said.trim().parse().unwrap_or_default())
}
