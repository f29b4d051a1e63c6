//! Runs the suite: each scenario on a lab of its own, one after the other, each with its share of the time; writes the report as it goes.
//!
//! Trouble of the lab's (a host that does not boot, an agent that does not answer) is tried once more, and the row says so. What a scenario *finds*
//! never is.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::report::{Row, write};
use super::turns::{Budget, Time, Turns};
use super::{ALL, Scenario, Stage, play};
use crate::error::{LabError, chain};
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
    /// The time that all of them together have, dealt out by their shares; none: as long as they take.
    pub budget: Option<Duration>,
    /// This many rounds of each; none: as many as each has.
    pub rounds: Option<u32>,
    /// Keeps the logs of scenarios that passed, too.
    pub keep_logs: bool,
}

/// What came of the suite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Everything passed, or was skipped.
    Passed,
    /// Something was found that must not be.
    Found,
    /// Nothing was found, but not everything could be run: the lab was in trouble twice, or it is too slow here.
    NotProved,
}

/// A filter's parts.
fn parts(filter: &str) -> Vec<&str> {
    filter.split(',').filter(|part| !part.is_empty()).collect()
}

/// Refuses a filter with a part that picks nothing: of a name that is written wrong, nobody must believe that it was played.
fn check_filter(filter: &str) -> Result<(), LabError> {
    let parts = parts(filter);
    let picks = |part: &str| ALL.iter().any(|s| if s.by_name { s.name == part } else { s.name.contains(part) });
    let Some(part) = parts.iter().find(|part| !picks(part)) else { return Ok(()) };
    let named: Vec<&str> = ALL.iter().filter(|s| s.by_name && s.name.contains(part)).map(|s| s.name).collect();
    Err(LabError::Usage(if named.is_empty() {
        let names: Vec<&str> = ALL.iter().map(|s| s.name).collect();
        format!("--filter (LAB_FILTER): no scenario is called like {part:?}; there are {}", names.join(", "))
    } else {
        format!("--filter (LAB_FILTER) {part:?}: played by their whole names only; write {}", named.join(" or "))
    }))
}

fn wanted<'a>(options: &'a SuiteOptions) -> impl Iterator<Item = &'static Scenario> + 'a {
    let parts = parts(&options.filter);
    ALL.iter().filter(move |s| match s.by_name {
        true => parts.contains(&s.name) || (options.soak && parts.is_empty()),
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

/// Runs the suite. What cannot be run here is skipped loudly, or fails where `LOCKSTEP_REQUIRE_KVM` is set.
///
/// # Errors
/// The report cannot be written, or a part of the filter picks nothing.
pub fn run(paths: &Paths, options: &SuiteOptions, tell: &dyn Fn(&str)) -> Result<Verdict, LabError> {
    check_filter(&options.filter)?;
    let scenarios: Vec<&Scenario> = wanted(options).collect();
    let prepared = match missing() {
        None => prepare(paths, Series::V6_12, Series::V6_12, false, tell).map_err(|e| chain(&e)),
        Some(why) => Err(why),
    };
    // Preparation, which happens once, is not in the budget.
    let mut budget = options.budget.map(|whole| Budget::new(whole, scenarios.iter().map(|s| s.rounds.share)));
    let suite = Suite { paths, options, rows: Arc::default() };
    let mut verdict = Verdict::Passed;
    for scenario in scenarios {
        let time = budget.as_mut().map(|budget| budget.deal(scenario.rounds.share));
        let (row, came) = match &prepared {
            Ok(prepared) => suite.play(prepared, scenario, time, tell),
            Err(why) => skipped(scenario, why),
        };
        tell(&row.line());
        verdict = match (verdict, came) {
            (Verdict::Found, _) | (_, Verdict::Found) => Verdict::Found,
            (Verdict::NotProved, _) | (_, Verdict::NotProved) => Verdict::NotProved,
            (Verdict::Passed, Verdict::Passed) => Verdict::Passed,
        };
        let mut rows = suite.rows.lock().unwrap_or_else(PoisonError::into_inner);
        rows.push(row);
        write(&paths.report(), &rows)?;
    }
    tell(&format!("report: {}", paths.report().display()));
    Ok(verdict)
}

fn blank(scenario: &Scenario) -> Row {
    let guest = (scenario.guest)();
    Row {
        scenario: scenario.name.into(),
        transport: "tcp".into(),
        guest: guest.name.into(),
        verify_memory: guest.verify.is_some(),
        ..Row::default()
    }
}

fn skipped(scenario: &Scenario, why: &str) -> (Row, Verdict) {
    if std::env::var_os("LOCKSTEP_REQUIRE_KVM").is_some() {
        let failed = Some(format!("it may not be skipped (LOCKSTEP_REQUIRE_KVM): {why}"));
        return (Row { failed, ..blank(scenario) }, Verdict::NotProved);
    }
    (Row { skipped: Some(why.to_owned()), ..blank(scenario) }, Verdict::Passed)
}

/// What all scenarios have in common.
struct Suite<'a> {
    paths: &'a Paths,
    options: &'a SuiteOptions,
    rows: Arc<Mutex<Vec<Row>>>,
}

impl Suite<'_> {
    fn play(&self, prepared: &Prepared, scenario: &Scenario, time: Option<Time>, tell: &dyn Fn(&str)) -> (Row, Verdict) {
        at_most_twice(tell, || self.attempt(prepared, scenario, time))
    }

    /// Runs one scenario; a panic in it is its failure.
    fn attempt(&self, prepared: &Prepared, scenario: &Scenario, time: Option<Time>) -> (Row, Result<(), LabError>) {
        let mut row = blank(scenario);
        let started = Instant::now();
        let mut turns = Turns::new(scenario.rounds.chosen(self.options.rounds, self.options.soak), time);
        let _watchdog = Watchdog::start(self, scenario, scenario.round_bound * (turns.most() + 1));
        let SuiteOptions { seed, keep_logs, .. } = *self.options;
        let stage = Stage { name: scenario.name, paths: self.paths, prepared, seed, keep_logs };
        let came = catch_unwind(AssertUnwindSafe(|| play(scenario, &stage, &mut turns, &mut row)))
            .unwrap_or_else(|_| Err(LabError::Found("it panicked; the message is above".into())));
        row.seconds = started.elapsed().as_secs_f64();
        row.failed = came.as_ref().err().map(|error| chain(error));
        (row, came)
    }
}

/// Runs a scenario, a second time where the lab was in trouble; the row says so.
fn at_most_twice(tell: &dyn Fn(&str), mut attempt: impl FnMut() -> (Row, Result<(), LabError>)) -> (Row, Verdict) {
    let (row, came) = attempt();
    let Err(trouble) = came else { return (row, Verdict::Passed) };
    if !trouble.is_trouble() {
        return (row, verdict(&trouble));
    }
    let trouble = chain(&trouble);
    tell(&format!("{}: trying once more after {trouble}", row.scenario));
    let (second, came) = attempt();
    let seconds = row.seconds + second.seconds;
    (Row { retried: Some(trouble), seconds, ..second }, came.map_or_else(|error| verdict(&error), |()| Verdict::Passed))
}

fn verdict(error: &LabError) -> Verdict {
    if error.is_trouble() || matches!(error, LabError::TooSlow { .. }) { Verdict::NotProved } else { Verdict::Found }
}

/// Ends the whole process, and every lab of it, when a scenario takes far too long: every single wait has a bound, so this is a fault of the lab's.
struct Watchdog {
    _alive: std::sync::mpsc::Sender<()>,
}

impl Watchdog {
    fn start(suite: &Suite<'_>, scenario: &Scenario, bound: Duration) -> Watchdog {
        let (alive, dropped) = channel::<()>();
        let (report, row, rows) = (suite.paths.report(), blank(scenario), Arc::clone(&suite.rows));
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
        assert_eq!(named("debian-host-death"), ["debian-host-death"]);
        assert_eq!(named("hang,carrier"), ["host-hang", "replication-carrier"]);
    }

    #[test]
    fn a_filter_with_a_part_that_picks_nothing_is_a_wrong_command_line() {
        assert!(check_filter("").is_ok() && check_filter("hang,shared-sleeper,").is_ok());
        for (filter, told) in [("nosuch", "host-death"), ("hang,nosuch", "\"nosuch\""), ("shared-sleep", "write shared-sleeper")] {
            let error = check_filter(filter).expect_err(filter);
            assert!(matches!(&error, LabError::Usage(text) if text.contains(told)), "{filter}: {error}");
        }
    }

    fn tried(mut outcomes: Vec<Result<(), LabError>>) -> (Row, Verdict, usize) {
        let mut attempts = 0;
        let (row, verdict) = at_most_twice(&|_| {}, || {
            attempts += 1;
            (Row::default(), outcomes.remove(0))
        });
        (row, verdict, attempts)
    }

    #[test]
    fn trouble_of_the_lab_is_tried_once_more_and_shown() {
        let trouble = || Err(LabError::Found("no host".into()).trouble());
        let (row, verdict, attempts) = tried(vec![trouble(), Ok(())]);
        assert_eq!((verdict, attempts), (Verdict::Passed, 2));
        assert!(row.retried.is_some_and(|why| why.contains("no host")));

        let (row, verdict, attempts) = tried(vec![trouble(), trouble(), Ok(())]);
        assert_eq!((verdict, attempts), (Verdict::NotProved, 2));
        assert!(row.retried.is_some());
    }

    #[test]
    fn what_a_scenario_finds_is_never_tried_away() {
        let found = || Err(LabError::Found("a lost write".into()));
        assert!(matches!(tried(vec![found(), Ok(())]), (Row { retried: None, .. }, Verdict::Found, 1)));
        let trouble = Err(LabError::Found("no host".into()).trouble());
        assert!(matches!(tried(vec![trouble, found()]), (Row { retried: Some(_), .. }, Verdict::Found, 2)));
        let slow = Err(LabError::TooSlow { done: 1, least: 2, share: Duration::ZERO, used: Duration::ZERO });
        assert!(matches!(tried(vec![slow, Ok(())]), (_, Verdict::NotProved, 1)));
    }
}
