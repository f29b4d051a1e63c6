//! What was measured beside each other, for the report and as a table. Not here: how it is measured.

use serde::Serialize;

/// A guest at work, by whatever keeps it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Work {
    /// Pages a second that the guest's stamping thread verified and wrote anew.
    pub stamps_per_s: f64,
    /// Median wait of the echo client.
    pub echo_ms: Option<f64>,
    /// 99th percentile of its waits.
    pub echo_ms_p99: Option<f64>,
}

/// One live migration by QEMU.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Migration {
    /// From the order to the end, by QEMU.
    pub total_ms: Option<u64>,
    /// The guest stood still so long, by QEMU.
    pub downtime_ms: Option<u64>,
    /// Memory sent, by QEMU.
    pub sent_mib: Option<f64>,
    /// The echo client's longest time without an answer.
    pub blackout_ms: Option<f64>,
}

/// QEMU's COLO at one checkpoint delay.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Colo {
    /// `x-checkpoint-delay`.
    pub delay_ms: u64,
    /// Checkpoints seen.
    pub checkpoints: usize,
    /// A second.
    pub checkpoints_per_s: f64,
    /// Median time for which the guest stood still at a checkpoint (from QEMU's STOP to its RESUME, which comes after the other side's commit).
    pub pause_ms: Option<f64>,
    /// 99th percentile.
    pub pause_ms_p99: Option<f64>,
    /// Part of the time in which the guest ran: its progress.
    pub running: f64,
}

/// Lockstep with the same guest.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Lockstep {
    /// The guest alone.
    pub alone: Work,
    /// The guest with a standby. Its answers go out after their commit.
    pub protected: Work,
    /// Checkpoints a second.
    pub epochs_per_s: f64,
    /// Median pause.
    pub pause_us: Option<u32>,
    /// 99th percentile of the pauses.
    pub pause_us_p99: Option<u32>,
    /// Median time from the guest's going on to the commit.
    pub commit_us: Option<u32>,
    /// 99th percentile.
    pub commit_us_p99: Option<u32>,
    /// The echo client's longest time without an answer at each death of the primary's host.
    pub blackouts_ms: Vec<f64>,
}

/// All of it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Beside {
    /// From QEMU's start to the agent's being ready in its guest.
    pub qemu_boot_ms: Option<f64>,
    /// The guest in QEMU, alone.
    pub qemu_alone: Option<Work>,
    /// Live migrations.
    pub migrations: Vec<Migration>,
    /// COLO, for each delay.
    pub colo: Vec<Colo>,
    /// From Lockstep's start to the agent's being ready in its guest.
    pub lockstep_boot_ms: Option<f64>,
    /// Lockstep.
    pub lockstep: Option<Lockstep>,
}

/// The value below which `percent` of the sorted `values` are.
#[must_use]
pub fn part<T: Copy>(values: &[T], percent: usize) -> Option<T> {
    values.get(values.len().saturating_sub(1) * percent / 100).copied()
}

fn ms(value: Option<f64>) -> String {
    value.map_or_else(|| "-".into(), |ms| format!("{ms:.1} ms"))
}

fn us(value: Option<u32>) -> String {
    ms(value.map(|us| f64::from(us) / 1e3))
}

impl Work {
    fn line(&self) -> String {
        format!("{:.0} pages stamped a second, echo {} (p99 {})", self.stamps_per_s, ms(self.echo_ms), ms(self.echo_ms_p99))
    }
}

impl Beside {
    /// The table, a line each.
    #[must_use]
    pub fn table(&self) -> String {
        let mut lines = vec![format!("boot: QEMU {}, Lockstep {}", ms(self.qemu_boot_ms), ms(self.lockstep_boot_ms))];
        lines.extend(self.qemu_alone.as_ref().map(|work| format!("QEMU, alone: {}", work.line())));
        for Migration { total_ms, downtime_ms, sent_mib, blackout_ms } in &self.migrations {
            let [total, down] = [total_ms, downtime_ms].map(|value| ms(value.map(|ms| ms as f64)));
            let sent = sent_mib.unwrap_or_default();
            lines.push(format!(
                "QEMU, live migration: {total} in all, downtime {down}, {sent:.0} MiB sent, client's blackout {}",
                ms(*blackout_ms)
            ));
        }
        for Colo { delay_ms, checkpoints, checkpoints_per_s, pause_ms, pause_ms_p99, running } in &self.colo {
            let (p50, p99, percent) = (ms(*pause_ms), ms(*pause_ms_p99), running * 100.0);
            lines.push(format!(
                "QEMU, COLO every {delay_ms} ms: {checkpoints} checkpoints ({checkpoints_per_s:.1} a second), pause {p50} (p99 {p99}), guest ran {percent:.0} % of the time"
            ));
        }
        if let Some(Lockstep { alone, protected, epochs_per_s, pause_us, pause_us_p99, commit_us, commit_us_p99, blackouts_ms }) =
            &self.lockstep
        {
            lines.push(format!("Lockstep, alone: {}", alone.line()));
            lines.push(format!(
                "Lockstep, protected: {epochs_per_s:.0} checkpoints a second, pause {} (p99 {}), commit after {} (p99 {}); {}",
                us(*pause_us),
                us(*pause_us_p99),
                us(*commit_us),
                us(*commit_us_p99),
                protected.line()
            ));
            lines.extend(
                blackouts_ms
                    .iter()
                    .map(|blackout| format!("Lockstep, death of the primary's host: client's blackout {}", ms(Some(*blackout)))),
            );
        }
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_one_of_the_values() {
        assert_eq!(part(&[3, 5, 9], 50), Some(5));
        assert_eq!(part(&[3, 5, 9], 99), Some(5));
        assert_eq!(part(&[3, 5, 9], 100), Some(9));
        assert_eq!(part::<u32>(&[], 50), None);
    }

    #[test]
    fn the_table_has_a_line_for_all_that_was_measured() {
        let beside = Beside {
            qemu_boot_ms: Some(7000.0),
            migrations: vec![Migration { downtime_ms: Some(64), ..Migration::default() }],
            colo: vec![Colo { delay_ms: 500, ..Colo::default() }],
            lockstep: Some(Lockstep { blackouts_ms: vec![1300.0], ..Lockstep::default() }),
            ..Beside::default()
        };
        let table = beside.table();
        assert_eq!(table.lines().count(), 6, "{table}");
        assert!(table.contains("downtime 64.0 ms") && table.contains("1300.0 ms"), "{table}");
    }
}
