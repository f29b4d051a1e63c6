//! `lockstep check`: can this host run protected guests, and what to do if not. Looks, changes nothing.
//!
//! Lives here: the list of findings and how it is shown. The looking is in [`kvm`], [`system`] and [`disk`].

mod disk;
mod kvm;
mod system;

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

/// Options of `lockstep check`.
#[derive(Clone, Debug, clap::Args)]
pub struct CheckOptions {
    /// Also look at this disk: whether both hosts can share it safely; repeat for more
    #[arg(long, value_name = "PATH")]
    pub disk: Vec<PathBuf>,
    /// Print the findings as one JSON object
    #[arg(long)]
    pub json: bool,
}

/// How good a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// It works, but slower, or not everything.
    Warn,
    /// Protected guests cannot run.
    Fail,
}

/// One thing that `lockstep check` looked at, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Item {
    /// What was looked at.
    pub name: &'static str,
    /// How good it is.
    pub level: Level,
    /// What was found.
    pub found: String,
    /// What to do; empty when nothing.
    pub remedy: &'static str,
}

impl Item {
    fn ok(name: &'static str, found: impl Into<String>) -> Item {
        Item { name, level: Level::Ok, found: found.into(), remedy: "" }
    }

    fn warn(name: &'static str, found: impl Into<String>, remedy: &'static str) -> Item {
        Item { name, level: Level::Warn, found: found.into(), remedy }
    }

    fn fail(name: &'static str, found: impl Into<String>, remedy: &'static str) -> Item {
        Item { name, level: Level::Fail, found: found.into(), remedy }
    }
}

/// What `lockstep check` found; its fields are those of `--json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CheckReport {
    /// Whether this host can run protected guests.
    pub able: bool,
    /// The dirty tracking that `auto` stands for with a 256 MiB guest; null without KVM.
    pub dirty_tracking: Option<&'static str>,
    /// The findings in order.
    pub items: Vec<Item>,
}

/// Looks at everything, and at these disks.
#[must_use]
pub fn run(disks: &[PathBuf]) -> CheckReport {
    let (mut items, dirty_tracking) = kvm::look();
    items.extend(system::look());
    items.extend(disks.iter().flat_map(|path| disk::look(path)));
    CheckReport { able: items.iter().all(|item| item.level != Level::Fail), dirty_tracking, items }
}

impl fmt::Display for CheckReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for item in &self.items {
            let level = match item.level {
                Level::Ok => "ok  ",
                Level::Warn => "warn",
                Level::Fail => "FAIL",
            };
            writeln!(f, "{level}  {:<22} {}", item.name, item.found)?;
            if !item.remedy.is_empty() {
                writeln!(f, "{:>29}-> {}", "", item.remedy)?;
            }
        }
        let warnings = self.items.iter().filter(|item| item.level == Level::Warn).count();
        let failures = self.items.iter().filter(|item| item.level == Level::Fail).count();
        match (failures, warnings) {
            (0, 0) => writeln!(f, "\nThis host can run protected guests."),
            (0, n) => writeln!(f, "\nThis host can run protected guests ({n} warnings)."),
            (n, _) => writeln!(f, "\nThis host cannot run protected guests: {n} of the above failed."),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(items: Vec<Item>) -> CheckReport {
        CheckReport { able: items.iter().all(|item| item.level != Level::Fail), dirty_tracking: None, items }
    }

    #[test]
    fn a_warning_does_not_make_a_host_unfit_and_a_failure_does() {
        assert!(report(vec![Item::ok("a", "b"), Item::warn("c", "d", "e")]).able);
        assert!(!report(vec![Item::ok("a", "b"), Item::fail("c", "d", "e")]).able);
    }

    #[test]
    fn what_is_not_well_comes_with_a_remedy() {
        for item in run(&[]).items {
            assert_eq!(item.level == Level::Ok, item.remedy.is_empty(), "{item:?}");
        }
    }
}
