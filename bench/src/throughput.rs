//! redis-benchmark SET against the guest, protected and not, in turns.

use std::io;
use std::process::{Command, Stdio};

use lockstep::demo::client::SERVER_PORT;
use lockstep::demo::world::{GUEST_ADDRESS, Place};
use types::clock::monotonic_ns;

use crate::error::BenchError;
use crate::report::{Goal, Report};
use crate::rig::{Context, Rig};
use crate::stats::median;

/// Adds the figures.
///
/// # Errors
/// A node fails, or redis-benchmark does.
pub fn measure(context: &Context<'_>, report: &mut Report) -> Result<(), BenchError> {
    let rigs = [Rig::alone(context, 256)?, Rig::protected(context, 256)?];
    for rig in &rigs {
        rig.connect(context)?;
    }
    let requests = if context.quick { 20_000 } else { 60_000 };
    let mut rates = [Vec::new(), Vec::new()];
    let begin_ns = monotonic_ns();
    // The first round warms both and is not counted.
    for round in 0..=context.rounds(5, 3) {
        for (rig, rates) in rigs.iter().zip(&mut rates) {
            context.go_on()?;
            let rate = redis_benchmark(rig, requests)?;
            if round > 0 {
                rates.push(rate);
            }
        }
    }
    let name = "redis SET, 8 connections x 16 (base: unprotected)";
    let [alone, protected] = &rates;
    report.add(name, median(name, protected)? / 1e3, "k/s", Some(median(name, alone)? / 1e3), Goal::RatioAtLeast(0.6));
    rigs[1].epochs_since(begin_ns).explain(report)
}

/// Requests a second.
fn redis_benchmark(rig: &Rig, requests: u32) -> Result<f64, BenchError> {
    let mut command = Command::new("redis-benchmark");
    command.args([
        "-h",
        &GUEST_ADDRESS.to_string(),
        "-p",
        &SERVER_PORT.to_string(),
        "-t",
        "set",
        "-c",
        "8",
        "-P",
        "16",
        "-r",
        "1000",
        "--csv",
    ]);
    command.args(["-n", &requests.to_string()]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let failed = |error: io::Error| BenchError::Redis { why: format!("cannot be run ({error})") };
    let child = rig.world().spawn(Place::Clients, &mut command).map_err(|error| {
        let cause = std::error::Error::source(&error).map_or_else(String::new, |cause| format!(": {cause}"));
        BenchError::Redis { why: format!("cannot be started ({error}{cause})") }
    })?;
    let output = child.wait_with_output().map_err(failed)?;
    let text = String::from_utf8_lossy(&output.stdout);
    rate_of(&text).filter(|_| output.status.success()).ok_or_else(|| {
        let said = String::from_utf8_lossy(&output.stderr);
        BenchError::Redis { why: format!("ended with {} and said {:?} {:?}", output.status, text.trim(), said.trim()) }
    })
}

/// Requests a second, from the line of SET in redis-benchmark's CSV.
fn rate_of(csv: &str) -> Option<f64> {
    let line = csv.lines().find(|line| line.starts_with("\"SET\","))?;
    line.split(',').nth(1)?.trim_matches('"').parse().ok().filter(|rate| *rate > 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_the_second_column_of_the_line_of_set() {
        let csv = "\"test\",\"rps\",\"avg_latency_ms\"\n\"SET\",\"56818.18\",\"2.049\"\n";
        assert_eq!(rate_of(csv), Some(56818.18));
    }

    #[test]
    fn output_without_a_rate_has_none() {
        for csv in ["", "\"SET\"", "\"SET\",\"x\"", "\"SET\",\"0.0\"", "Could not connect"] {
            assert_eq!(rate_of(csv), None, "{csv}");
        }
    }
}
