//! What an idle protected guest costs: CPU time of the primary's and of the standby's process, from /proc/PID/stat.

use std::time::{Duration, Instant};

use lockstep::demo::process::NodeProcess;
use nix::unistd::{SysconfVar, sysconf};

use crate::error::BenchError;
use crate::report::{Goal, Report};
use crate::rig::{Context, Rig};
use crate::stats::median;

/// What is left to do after the first copy (pages touched, buffers made) is done by then.
const SETTLE: Duration = Duration::from_secs(2);
/// One round: at 100 ticks a second 3 % are 15 ticks.
const ROUND: Duration = Duration::from_secs(5);

/// Adds the figures.
///
/// # Errors
/// A node fails or /proc cannot be read.
pub fn measure(context: &Context<'_>, report: &mut Report) -> Result<(), BenchError> {
    let alone = Rig::alone(context, 256)?;
    let pair = Rig::protected(context, 256)?;
    // Both guests have booted and are idle once they have answered.
    drop((alone.connect(context)?, pair.connect(context)?));
    let processes = [Some(&alone.primary), Some(&pair.primary), pair.standby.as_ref()];
    let mut shares = [Vec::new(), Vec::new(), Vec::new()];
    context.sleep(SETTLE)?;
    for _ in 0..context.rounds(3, 1) {
        let begin = Instant::now();
        let before = ticks(&processes)?;
        context.sleep(ROUND)?;
        let (after, seconds) = (ticks(&processes)?, begin.elapsed().as_secs_f64());
        for (share, (before, after)) in shares.iter_mut().zip(before.iter().zip(&after)) {
            share.push((after - before) / seconds * 100.0);
        }
    }
    let [alone, primary, standby] = &shares;
    let name = "idle guest, primary's CPU (base: unprotected)";
    report.add(name, median(name, primary)?, "% core", Some(median(name, alone)?), Goal::AtMost(3.0));
    let name = "idle guest, standby's CPU";
    report.add(name, median(name, standby)?, "% core", None, Goal::AtMost(3.0));
    Ok(())
}

/// CPU seconds of each process so far.
fn ticks(processes: &[Option<&NodeProcess>; 3]) -> Result<Vec<f64>, BenchError> {
    let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100) as f64;
    processes
        .iter()
        .flatten()
        .map(|process| {
            let stat =
                std::fs::read_to_string(format!("/proc/{}/stat", process.pid())).map_err(BenchError::io("read a node's CPU time"))?;
            let ticks = cpu_ticks(&stat).ok_or(BenchError::NothingMeasured("a node's CPU time: /proc/PID/stat has another form"))?;
            Ok(ticks as f64 / per_second)
        })
        .collect()
}

/// utime and stime of a line of /proc/PID/stat. The name before them may hold spaces and brackets.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(") ")?;
    // proc(5): state is field 3, utime 14, stime 15.
    let mut fields = after_name.split_whitespace().skip(11).map(str::parse::<u64>);
    Some(fields.next()?.ok()? + fields.next()?.ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_found_behind_a_name_with_brackets() {
        let stat = "42 (a) b) S 1 42 42 0 -1 4194560 100 0 0 0 17 25 0 0 20 0 8 0 100 1000 10";
        assert_eq!(cpu_ticks(stat), Some(42));
    }

    #[test]
    fn a_line_of_another_form_gives_nothing() {
        assert_eq!(cpu_ticks("42 (a) S 1 2"), None);
        assert_eq!(cpu_ticks(""), None);
    }
}
