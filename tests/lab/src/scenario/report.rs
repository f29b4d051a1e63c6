//! What the suite writes down: one row for each scenario, in `target/lab/report.json`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Serialize;

use super::peers::Beside;
use crate::error::LabError;

/// What came of the clients of one of the guest's services.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Served {
    /// Writes, or transactions, that a client was told to be done.
    pub acknowledged: u64,
    /// What is not as it was acknowledged: lost, done twice, done by half, altered, answered wrongly.
    pub lost: u64,
    /// Connections that broke.
    pub connections_broken: u64,
    /// Requests that were under way when a fault happened, over all faults and clients.
    pub under_way_at_faults: u64,
    /// The longest time that a client waited for an answer.
    pub longest_answer_ms: f64,
    /// Some of what is wrong, in words.
    pub examples: Vec<String>,
}

/// What came of one scenario.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Row {
    /// Its name.
    pub scenario: String,
    /// What carries epochs.
    pub transport: String,
    /// What ran on the nodes.
    pub guest: String,
    /// Rounds that were done; 0 where a scenario counts none.
    pub rounds: u32,
    /// Rounds that are done where there is time.
    pub rounds_wanted: u32,
    /// Hosts that died.
    pub kills: u32,
    /// Times that a standby took over.
    pub failovers: u32,
    /// Of these, those that no fault had asked for: a host stood still for longer than silence is borne.
    pub unasked_failovers: u32,
    /// Writes that a client was told to be done.
    pub writes_acknowledged: u64,
    /// Of these, those that are not there in the end; and reads that showed as much.
    pub writes_lost: u64,
    /// Writes of old owners that the shared disk refused.
    pub writes_refused: u64,
    /// Connections of clients that broke.
    pub connections_broken: u64,
    /// e2fsck found nothing, where there is a disk.
    pub fsck_clean: Option<bool>,
    /// The guest's clocks went forward, and right.
    pub clock_ok: Option<bool>,
    /// Frames that came from a host whose successor had spoken.
    pub double_releases: u64,
    /// The longest time without an answer around a fault.
    pub blackout_ms: Option<f64>,
    /// Median pause of all epochs.
    pub pause_us: Option<u32>,
    /// Why it was not run.
    pub skipped: Option<String>,
    /// Why it failed; none: it passed.
    pub failed: Option<String>,
    /// What came before a failure: the course's last steps, and the ends of the nodes' logs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_words: Option<String>,
    /// Each fault's longest time without an answer.
    pub blackouts_ms: Vec<f64>,
    /// 99th percentile of the pauses.
    pub pause_us_p99: Option<u32>,
    /// From the first node's start to its guest's first answer to a client.
    pub boot_ms: Option<f64>,
    /// Median time from the guest's going on to the commit of the epoch, of all epochs.
    pub commit_us: Option<u32>,
    /// The trouble of the lab's for which it was tried a second time; the rest of the row is the second attempt's.
    pub retried: Option<String>,
    /// Of the above, what belongs to each of the guest's services.
    pub services: BTreeMap<String, Served>,
    /// What clients were told was found once more on the disk from which the guest had run, after it was switched off.
    pub data_on_disk_ok: Option<bool>,
    /// At each failover, the requests to disks that were in flight in the state that the guest went on from.
    pub disk_requests_at_failovers: Vec<u32>,
    /// Memory compared at both ends at every epoch, all of it or a window of it in turn.
    pub verify_memory: bool,
    /// Pages that were, and were equal.
    pub memory_compared_pages: u64,
    /// Lockstep and QEMU beside each other, where that was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beside: Option<Beside>,
    /// What it took.
    pub seconds: f64,
}

impl Row {
    /// Adds what came of the clients of `service`.
    pub fn add(&mut self, service: &str, served: Served) {
        self.writes_acknowledged += served.acknowledged;
        self.writes_lost += served.lost;
        self.connections_broken += served.connections_broken;
        self.services.insert(service.to_owned(), served);
    }

    /// One line for people.
    #[must_use]
    pub fn line(&self) -> String {
        let Row {
            scenario, guest, seconds, kills, failovers, writes_acknowledged, writes_lost, connections_broken, double_releases, ..
        } = self;
        if let Some(why) = &self.skipped {
            return format!("SKIPPED {scenario} ({guest}): {why}");
        }
        let word = if self.failed.is_some() { "FAILED " } else { "passed " };
        let blackout = self.blackout_ms.map_or_else(String::new, |ms| format!(", longest blackout {ms:.0} ms"));
        let pause = self.pause_us.map_or_else(String::new, |us| format!(", pause {us} us"));
        let commit = self.commit_us.map_or_else(String::new, |us| format!(", commit {us} us"));
        let boot = self.boot_ms.map_or_else(String::new, |ms| format!(", boot {ms:.0} ms"));
        let mut line = format!(
            "{word}{scenario} ({guest}), {seconds:.0} s: {kills} kills, {failovers} failovers, {writes_acknowledged} writes acknowledged, \
             {writes_lost} lost, {connections_broken} connections broken, {double_releases} double releases{blackout}{pause}{commit}{boot}"
        );
        if self.failed.is_none() && self.rounds < self.rounds_wanted {
            line.push_str(&format!(
                "\n  {} of {} rounds: for more it had no time on this machine (--budget)",
                self.rounds, self.rounds_wanted
            ));
        }
        if self.unasked_failovers > 0 {
            line.push_str(&format!("\n  {} of the failovers unasked: hosts stood still on a busy machine", self.unasked_failovers));
        }
        if self.services.len() > 1 {
            for (service, Served { acknowledged, lost, under_way_at_faults, longest_answer_ms, .. }) in &self.services {
                line.push_str(&format!(
                    "\n  {service}: {acknowledged} acknowledged, {lost} lost, {under_way_at_faults} under way at faults, longest answer {longest_answer_ms:.0} ms"
                ));
            }
        }
        if let Some(beside) = &self.beside {
            line.push_str(&format!("\n  {}", beside.table().replace('\n', "\n  ")));
        }
        if let Some(why) = &self.retried {
            line.push_str(&format!("\n  at the second attempt; the first ended by {}", why.replace('\n', "\n  ")));
        }
        if let Some(why) = &self.failed {
            line.push_str(&format!("\n  {}", why.replace('\n', "\n  ")));
        }
        if let Some(words) = &self.last_words {
            line.push_str(&format!("\n  {}", words.replace('\n', "\n  ")));
        }
        line
    }
}

/// Writes all rows, as a whole.
///
/// # Errors
/// The file cannot be written.
pub fn write(path: &Path, rows: &[Row]) -> Result<(), LabError> {
    let io = || LabError::io(|| format!("write {}", path.display()));
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(io())?;
    }
    let half = path.with_extension("half");
    let text = serde_json::to_vec_pretty(rows).map_err(|e| io()(e.into()))?;
    fs::write(&half, text).and_then(|()| fs::rename(&half, path)).map_err(io())
}
