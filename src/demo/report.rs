//! The demo's report: what was measured and what it proves, as text and as one JSON object.

use std::fmt;

use serde::Serialize;

use super::history::Findings;

/// A distribution of exact values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Distribution {
    /// Half are at most this.
    pub p50: u64,
    /// 99 in 100 are at most this.
    pub p99: u64,
    /// The largest.
    pub max: u64,
}

impl Distribution {
    /// Of `values`, in any order; None when there are none.
    #[must_use]
    pub fn of(mut values: Vec<u64>) -> Option<Distribution> {
        values.sort_unstable();
        let last = *values.last()?;
        let at = |percent: usize| values[(values.len() * percent).div_ceil(100).saturating_sub(1)];
        Some(Distribution { p50: at(50), p99: at(99), max: last })
    }
}

/// Blackouts of the clients: of each, the longest time between two answers around the death.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Blackout {
    /// Half of the clients saw at most this, in milliseconds.
    pub p50: f64,
    /// The longest, in milliseconds.
    pub max: f64,
}

/// The report. Fields that nothing was measured for are null.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// Repeats the run's random choices.
    pub seed: u64,
    /// How the primary was made to fail: crash, hang or none.
    pub kill: &'static str,
    /// Length of the run, seconds.
    pub seconds: u64,
    /// Guest memory, MiB.
    pub memory_mib: u64,
    /// Guest vCPUs.
    pub vcpus: u8,
    /// Clients.
    pub clients: usize,
    /// Pages a second the guest dirtied beside serving them.
    pub dirty_rate: u64,
    /// Writes (SET, INCR) that the clients were told are done.
    pub writes_acknowledged: u64,
    /// Of these, how many are not there.
    pub writes_lost: u64,
    /// INCRs done more often than sent.
    pub writes_duplicated: u64,
    /// Reads answered with what could not be, and answers that fit no request.
    pub wrong_answers: u64,
    /// Keys and counters that could not be read back.
    pub unverified: u64,
    /// Connections that broke.
    pub connections_broken: u64,
    /// Activations of the standby.
    pub failovers: u64,
    /// Epochs of the protected time.
    pub epochs: u64,
    /// Generation at the end.
    pub generation: u64,
    /// Dirty pages in an epoch.
    pub pages_per_epoch: Option<Distribution>,
    /// Bytes on the wire for an epoch.
    pub bytes_per_epoch: Option<Distribution>,
    /// Stop to resumed.
    pub pause_us: Option<Distribution>,
    /// Resumed to committed.
    pub commit_us: Option<Distribution>,
    /// Request to answer as the clients saw it, while protected.
    pub latency_us: Option<Distribution>,
    /// The same after the failover, when nobody protects the survivor.
    pub latency_unprotected_us: Option<Distribution>,
    /// From the death to the standby's holding the primary to be gone.
    pub detection_ms: Option<f64>,
    /// What asking the arbiter took.
    pub grant_ms: Option<f64>,
    /// From the grant to the guest's running.
    pub activation_ms: Option<f64>,
    /// What the clients saw of it.
    pub blackout_ms: Option<Blackout>,
    /// Rate of the replication stream while it was sending.
    pub stream_mib_s: Option<f64>,
    /// Pages that the guest's dirtier wrote and found again as it wrote them, at the end.
    pub pages_checked: Option<u64>,
    /// How often the guest saw its clock go backwards.
    pub clock_backward_steps: Option<u64>,
    /// Frames that a stale primary released after it woke (`--kill hang`).
    pub stale_frames: Option<u64>,
    /// Whether the stale primary stopped by itself (`--kill hang`).
    pub stale_fenced: Option<bool>,
    /// Promises that were broken, in words.
    pub broken_promises: Vec<String>,
    /// Why the run proves nothing, in words.
    pub proved_nothing: Vec<String>,
}

impl Report {
    /// Takes in what the histories show.
    pub fn set_findings(&mut self, findings: Findings) {
        self.writes_acknowledged = findings.acknowledged;
        self.writes_lost = findings.lost;
        self.writes_duplicated = findings.duplicated;
        self.wrong_answers = findings.wrong_answers;
        self.unverified = findings.unverified;
    }

    /// Draws the conclusions from the numbers.
    pub fn judge(&mut self) {
        let broken = &mut self.broken_promises;
        for (count, what) in [
            (self.writes_lost, "acknowledged writes were lost"),
            (self.writes_duplicated, "writes were done twice"),
            (self.wrong_answers, "answers were wrong"),
            (self.unverified, "keys or counters could not be read back"),
            (self.connections_broken, "connections broke"),
            (self.stale_frames.unwrap_or(0), "frames were released by the stale primary"),
            (self.clock_backward_steps.unwrap_or(0), "times the guest's clock went backwards"),
        ] {
            if count > 0 {
                broken.push(format!("{count} {what}"));
            }
        }
        if self.stale_fenced == Some(false) {
            broken.push("the stale primary did not stop".into());
        }
        if self.kill == "none" && self.failovers > 0 {
            broken.push("the standby took over from a living primary".into());
        }
        if self.kill != "none" && self.failovers > 1 {
            broken.push(format!("{} failovers for one death", self.failovers));
        }
        if self.writes_acknowledged == 0 {
            self.proved_nothing.push("no write was acknowledged".into());
        }
        if self.kill != "none" && self.failovers == 0 {
            self.proved_nothing.push("there was no failover".into());
        }
        if self.epochs == 0 {
            self.proved_nothing.push("no epoch was measured".into());
        }
        if self.dirty_rate > 0 && self.pages_checked == Some(0) {
            self.proved_nothing.push("the guest dirtied no page".into());
        }
        if self.kill != "none" && self.latency_unprotected_us.is_none() {
            self.proved_nothing.push("no request was answered after the failover".into());
        }
    }

    /// Nothing was broken and something was proved.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.broken_promises.is_empty() && self.proved_nothing.is_empty()
    }
}

fn line(f: &mut fmt::Formatter<'_>, name: &str, text: impl fmt::Display) -> fmt::Result {
    writeln!(f, "  {name:<26} {text}")
}

fn spread(f: &mut fmt::Formatter<'_>, name: &str, unit: &str, of: Option<Distribution>) -> fmt::Result {
    match of {
        Some(d) => line(f, name, format_args!("p50 {}  p99 {}  max {} {unit}", d.p50, d.p99, d.max)),
        None => line(f, name, "not measured"),
    }
}

fn number(f: &mut fmt::Formatter<'_>, name: &str, unit: &str, of: Option<f64>) -> fmt::Result {
    match of {
        Some(x) => line(f, name, format_args!("{x:.2} {unit}")),
        None => Ok(()),
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "Lockstep demo: {} s, {} MiB, {} vCPU, {} clients, {} pages/s dirtied, kill {}, seed {}",
            self.seconds, self.memory_mib, self.vcpus, self.clients, self.dirty_rate, self.kill, self.seed
        )?;
        writeln!(f, "\nWhat the clients were told")?;
        line(f, "writes acknowledged", self.writes_acknowledged)?;
        line(f, "writes lost", self.writes_lost)?;
        line(f, "writes duplicated", self.writes_duplicated)?;
        line(f, "wrong answers", self.wrong_answers)?;
        line(f, "connections broken", self.connections_broken)?;
        if let Some(pages) = self.pages_checked {
            line(f, "guest memory checked", format_args!("{pages} pages hold what was written"))?;
        }
        spread(f, "latency, protected", "us", self.latency_us)?;
        writeln!(f, "\nReplication")?;
        line(f, "epochs", self.epochs)?;
        spread(f, "pages per epoch", "", self.pages_per_epoch)?;
        spread(f, "bytes per epoch", "", self.bytes_per_epoch)?;
        spread(f, "pause", "us", self.pause_us)?;
        spread(f, "commit", "us", self.commit_us)?;
        number(f, "stream", "MiB/s", self.stream_mib_s)?;
        if self.kill != "none" {
            writeln!(f, "\nFailover")?;
            line(f, "failovers", self.failovers)?;
            line(f, "generation", self.generation)?;
            number(f, "detection", "ms", self.detection_ms)?;
            number(f, "grant", "ms", self.grant_ms)?;
            number(f, "activation", "ms", self.activation_ms)?;
            if let Some(b) = self.blackout_ms {
                line(f, "blackout seen by clients", format_args!("p50 {:.2}  max {:.2} ms", b.p50, b.max))?;
            }
            spread(f, "latency, unprotected", "us", self.latency_unprotected_us)?;
            if let (Some(frames), Some(fenced)) = (self.stale_frames, self.stale_fenced) {
                line(f, "stale primary", format_args!("released {frames} frames, {}", if fenced { "stopped" } else { "DID NOT STOP" }))?;
            }
        }
        writeln!(f)?;
        for promise in &self.broken_promises {
            writeln!(f, "BROKEN: {promise}")?;
        }
        for reason in &self.proved_nothing {
            writeln!(f, "PROVED NOTHING: {reason}")?;
        }
        if self.passed() {
            writeln!(f, "PASSED: every acknowledged write is there, every connection is alive")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sound() -> Report {
        let some = Some(Distribution { p50: 1, p99: 2, max: 3 });
        Report { kill: "crash", writes_acknowledged: 9, failovers: 1, epochs: 5, latency_unprotected_us: some, ..Report::default() }
    }

    fn judged(mut report: Report) -> Report {
        report.judge();
        report
    }

    #[test]
    fn a_sound_run_passes() {
        let report = judged(sound());
        assert!(report.passed() && report.to_string().contains("PASSED"), "{report}");
    }

    #[test]
    fn each_broken_promise_fails_the_run() {
        for report in [
            Report { writes_lost: 1, ..sound() },
            Report { writes_duplicated: 1, ..sound() },
            Report { wrong_answers: 1, ..sound() },
            Report { unverified: 1, ..sound() },
            Report { connections_broken: 1, ..sound() },
            Report { stale_frames: Some(1), ..sound() },
            Report { stale_fenced: Some(false), ..sound() },
            Report { failovers: 2, ..sound() },
        ] {
            let report = judged(report);
            assert_eq!((report.broken_promises.len(), report.passed()), (1, false), "{report}");
        }
    }

    #[test]
    fn a_run_without_writes_epochs_or_failover_proves_nothing() {
        for report in [
            Report { writes_acknowledged: 0, ..sound() },
            Report { failovers: 0, ..sound() },
            Report { epochs: 0, ..sound() },
            Report { latency_unprotected_us: None, ..sound() },
        ] {
            let report = judged(report);
            assert_eq!((report.proved_nothing.len(), report.passed()), (1, false), "{report}");
        }
    }

    #[test]
    fn percentiles_are_exact() {
        assert_eq!(Distribution::of((1..=100).rev().collect()), Some(Distribution { p50: 50, p99: 99, max: 100 }));
        assert_eq!(Distribution::of(vec![7]), Some(Distribution { p50: 7, p99: 7, max: 7 }));
        assert_eq!(Distribution::of(vec![]), None);
    }

    #[test]
    fn the_json_object_has_the_promised_fields() {
        let value = serde_json::to_value(sound()).expect("an object");
        for field in [
            "writes_acknowledged",
            "writes_lost",
            "writes_duplicated",
            "connections_broken",
            "failovers",
            "epochs",
            "generation",
            "pages_per_epoch",
            "bytes_per_epoch",
            "pause_us",
            "commit_us",
            "latency_us",
            "detection_ms",
            "activation_ms",
            "blackout_ms",
            "stream_mib_s",
        ] {
            assert!(value.get(field).is_some(), "{field}");
        }
    }
}
