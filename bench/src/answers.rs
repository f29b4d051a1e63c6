//! Latency of one request after the other over one connection, protected and not, in turns.

use std::time::Instant;

use types::clock::monotonic_ns;

use crate::error::BenchError;
use crate::report::{Goal, Report};
use crate::rig::{Context, Rig, ask_ok};
use crate::stats::{median, quantile};

/// Requests in one round.
const REQUESTS: usize = 1000;
/// Keys written in turn.
const KEYS: usize = 512;

/// Adds the figures.
///
/// # Errors
/// A node or the guest fails.
pub fn measure(context: &Context<'_>, report: &mut Report) -> Result<(), BenchError> {
    let rigs = [Rig::alone(context, 256)?, Rig::protected(context, 256)?];
    let mut guests = [rigs[0].connect(context)?, rigs[1].connect(context)?];
    let (mut p50, mut p99) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    let begin_ns = monotonic_ns();
    // The first round warms the connections and is not counted.
    for round in 0..=context.rounds(7, 3) {
        for (which, guest) in guests.iter_mut().enumerate() {
            context.go_on()?;
            let mut times = Vec::with_capacity(REQUESTS);
            for request in 0..REQUESTS {
                let key = format!("key:{}", request % KEYS);
                let begin = Instant::now();
                ask_ok(guest, "SET", &[b"SET", key.as_bytes(), &[b'v'; 64]])?;
                times.push(begin.elapsed().as_secs_f64() * 1e3);
            }
            if round > 0 {
                p50[which].push(quantile("request/response p50", &times, 0.5)?);
                p99[which].push(quantile("request/response p99", &times, 0.99)?);
            }
        }
    }
    for (name, goal, [alone, protected]) in
        [("request/response, p50 (base: unprotected)", 1.0, &p50), ("request/response, p99 (base: unprotected)", 3.0, &p99)]
    {
        report.add(name, median(name, protected)?, "ms", Some(median(name, alone)?), Goal::AtMost(goal));
    }
    rigs[1].epochs_since(begin_ns).explain(report)
}
