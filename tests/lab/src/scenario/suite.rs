//! Runs the suite: each scenario on a lab of its own, one after the other, each with a time limit; writes the report as it goes.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::report::{Row, write};
use super::{ALL, Scenario, Stage, play};
use crate::error::{LabError, chain};
use crate::host::HostOptions;
use crate::lab::{Lab, LabOptions};
use crate::paths::Paths;
use crate::prepare::kernel::Series;
use crate::prepare::{Prepared, prepare};
use crate::run_dir::remove_all;

/// Which scenarios, and how long.
#[derive(Clone, Debug, Default)]
pub struct SuiteOptions {
    /// Parts of names, separated by commas; empty: all.
    pub filter: String,
    /// More rounds.
    pub soak: bool,
    /// Of all random choices.
    pub seed: u64,
}

fn wanted<'a>(options: &'a SuiteOptions) -> impl Iterator<Item = &'static Scenario> + 'a {
    let parts: Vec<&str> = options.filter.split(',').filter(|p| !p.is_empty()).collect();
    ALL.iter().filter(move |s| match s.by_name {
        true => parts.contains(&s.name),
        false => parts.is_empty() || parts.iter().any(|part| s.name.contains(part)),
    })
}

/// Why labs cannot be had here; [`None`]: they can.
fn missing() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("the lab needs root (network namespaces with TAP devices, file servers)".into());
    }
    std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun").err().map(|error| format!("/dev/net/tun: {error}"))
}

/// Runs the suite; whether all of it passed. What cannot be run here is skipped loudly, or fails where `LOCKSTEP_REQUIRE_KVM` is set.
///
/// # Errors
/// The report cannot be written, or the filter picks nothing.
pub fn run(paths: &Paths, options: &SuiteOptions, tell: &dyn Fn(&str)) -> Result<bool, LabError> {
    let scenarios: Vec<&Scenario> = wanted(options).collect();
    if scenarios.is_empty() {
        let names: Vec<&str> = ALL.iter().map(|s| s.name).collect();
        return Err(LabError::Found(format!("no scenario is called like {:?}; there are {}", options.filter, names.join(", "))));
    }
    let prepared = match missing() {
        None => prepare(paths, Series::V6_12, Series::V6_12, false, tell).map_err(|e| chain(&e)),
        Some(why) => Err(why),
    };
    let rows = Arc::new(Mutex::new(Vec::new()));
    let mut all_passed = true;
    for scenario in scenarios {
        let row = match &prepared {
            Ok(prepared) => one(paths, prepared, scenario, options, &rows),
            Err(why) => skipped(scenario, why),
        };
        tell(&row.line());
        all_passed &= row.failed.is_none();
        let mut rows = rows.lock().unwrap_or_else(PoisonError::into_inner);
        rows.push(row);
        write(&paths.report(), &rows)?;
    }
    tell(&format!("report: {}", paths.report().display()));
    Ok(all_passed)
}

fn blank(scenario: &Scenario) -> Row {
    let guest = (scenario.guest)();
    Row { scenario: scenario.name.into(), transport: "tcp".into(), guest: guest.name.into(), verify_memory: guest.verify, ..Row::default() }
}

fn skipped(scenario: &Scenario, why: &str) -> Row {
    let required = std::env::var_os("LOCKSTEP_REQUIRE_KVM").is_some();
    let failed = required.then(|| format!("it may not be skipped (LOCKSTEP_REQUIRE_KVM): {why}"));
    Row { skipped: (!required).then(|| why.to_owned()), failed, ..blank(scenario) }
}

/// Runs one scenario; a panic in it is its failure.
fn one(paths: &Paths, prepared: &Prepared, scenario: &Scenario, options: &SuiteOptions, rows: &Arc<Mutex<Vec<Row>>>) -> Row {
    let rounds = if options.soak { scenario.soak_rounds } else { scenario.rounds };
    let mut row = blank(scenario);
    let started = Instant::now();
    let _watchdog = Watchdog::start(paths, scenario, scenario.round_bound * (rounds + 1), rows);
    let result = catch_unwind(AssertUnwindSafe(|| -> Result<(), LabError> {
        if let Some(own) = scenario.own {
            return own(&Stage { name: scenario.name, paths, prepared, rounds, seed: options.seed }, &mut row);
        }
        let host = HostOptions { memory_mib: scenario.host_mib, ..HostOptions::default() };
        let lab = Lab::start(paths, prepared.clone(), &LabOptions { name: format!("test-{}", scenario.name), hosts: 2, host })?;
        lab.share(&paths.lockstep()?, "lockstep")?;
        play(scenario, lab, rounds, options.seed, &mut row)
    }));
    row.seconds = started.elapsed().as_secs_f64();
    row.failed = match result {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(chain(&error)),
        Err(_) => Some("it panicked; the message is above".into()),
    };
    row
}

/// Ends the whole process, and every lab of it, when a scenario takes far too long: every single wait has a bound, so this is a fault of the lab's.
struct Watchdog {
    _alive: std::sync::mpsc::Sender<()>,
}

impl Watchdog {
    fn start(paths: &Paths, scenario: &Scenario, bound: Duration, rows: &Arc<Mutex<Vec<Row>>>) -> Watchdog {
        let (alive, dropped) = channel::<()>();
        let (report, row, rows) = (paths.report(), blank(scenario), Arc::clone(rows));
        std::thread::spawn(move || {
            if dropped.recv_timeout(bound) == Err(RecvTimeoutError::Timeout) {
                let mut rows = rows.lock().unwrap_or_else(PoisonError::into_inner).clone();
                rows.push(Row { failed: Some(format!("it did not end within {bound:?}")), ..row });
                // The exit status says it as well, should the report be out of reach.
                let _ = write(&report, &rows);
                eprintln!("{}", rows.last().map(Row::line).unwrap_or_default());
                remove_all();
                std::process::exit(1);
            }
        });
        Watchdog { _alive: alive }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_picks_by_parts_of_names() {
        let named =
            |filter: &str| wanted(&SuiteOptions { filter: filter.into(), ..SuiteOptions::default() }).map(|s| s.name).collect::<Vec<_>>();
        assert_eq!(named("").len(), ALL.iter().filter(|s| !s.by_name).count());
        assert_eq!(named("redis-host-death"), ["host-death", "redis-host-death"][1..]);
        assert_eq!(named("hang,carrier"), ["host-hang", "replication-carrier"]);
    }
}
