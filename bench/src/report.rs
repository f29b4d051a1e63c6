//! The table of figures: rows with a baseline and a goal, printed for people and written as JSON for machines.

use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;

/// One figure of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// What was measured.
    pub name: String,
    /// The figure.
    pub value: f64,
    /// Its unit.
    pub unit: String,
    /// What it is compared with, measured in the same run and the same unit; none where the goal is absolute.
    pub baseline: Option<f64>,
    /// `value / baseline`.
    pub ratio: Option<f64>,
    /// The goal, in words.
    pub goal: String,
    /// Whether it was reached.
    pub met: bool,
}

/// Which way a goal points.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// The value itself may be at most this.
    AtMost(f64),
    /// The ratio to the baseline may be at most this.
    RatioAtMost(f64),
    /// The ratio to the baseline must be at least this.
    RatioAtLeast(f64),
    /// No goal: the row is there to be read beside another.
    Informative,
}

/// Why a report could not be written.
#[derive(Debug, thiserror::Error)]
#[error("writing the benchmark report to {path}: {source}; check that the folder is writable and the disk not full")]
pub struct WriteError {
    path: String,
    source: std::io::Error,
}

/// The rows of one run, in the order in which they were measured.
#[derive(Debug, Default)]
pub struct Report {
    rows: Vec<Row>,
}

impl Report {
    /// Adds a figure and says whether its goal was met.
    pub fn add(&mut self, name: &str, value: f64, unit: &str, baseline: Option<f64>, goal: Goal) -> bool {
        let ratio = baseline.filter(|b| *b != 0.0).map(|b| value / b);
        let (words, met) = match goal {
            Goal::AtMost(limit) => (format!("<= {limit} {unit}"), value <= limit),
            Goal::RatioAtMost(limit) => (format!("<= {limit} x baseline"), ratio.is_some_and(|r| r <= limit)),
            Goal::RatioAtLeast(limit) => (format!(">= {limit} x baseline"), ratio.is_some_and(|r| r >= limit)),
            Goal::Informative => ("-".to_owned(), true),
        };
        self.rows.push(Row { name: name.to_owned(), value, unit: unit.to_owned(), baseline, ratio, goal: words, met });
        met
    }

    /// The rows so far.
    #[must_use]
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Whether every goal was met.
    #[must_use]
    pub fn all_met(&self) -> bool {
        self.rows.iter().all(|row| row.met)
    }

    /// The table for a terminal.
    #[must_use]
    pub fn table(&self) -> String {
        let mut out =
            format!("{:<52} {:>12} {:<8} {:>12} {:>7}  {:<22} {}\n", "figure", "value", "unit", "baseline", "ratio", "goal", "met");
        for row in &self.rows {
            let number = |n: Option<f64>| n.map_or_else(|| "-".to_owned(), |n| format!("{n:.2}"));
            let met = if row.goal == "-" {
                ""
            } else if row.met {
                "yes"
            } else {
                "NO"
            };
            // Writing to a String cannot fail.
            let _ = writeln!(
                out,
                "{:<52} {:>12.2} {:<8} {:>12} {:>7}  {:<22} {met}",
                row.name,
                row.value,
                row.unit,
                number(row.baseline),
                number(row.ratio),
                row.goal
            );
        }
        out
    }

    /// Writes the rows as a JSON list.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), WriteError> {
        let wrap = |source: std::io::Error| WriteError { path: path.display().to_string(), source };
        let json = serde_json::to_vec_pretty(&self.rows).map_err(|e| wrap(e.into()))?;
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(wrap)?;
        }
        std::fs::write(path, json).map_err(wrap)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goals_point_the_right_way() {
        let mut report = Report::default();

        assert!(report.add("latency", 0.9, "ms", None, Goal::AtMost(1.0)));
        assert!(!report.add("latency", 1.1, "ms", None, Goal::AtMost(1.0)));
        assert!(report.add("pause", 150.0, "us", Some(100.0), Goal::RatioAtMost(1.5)));
        assert!(!report.add("throughput", 50.0, "k/s", Some(100.0), Goal::RatioAtLeast(0.6)));
        assert!(!report.add("throughput", 50.0, "k/s", None, Goal::RatioAtLeast(0.6)), "a missing baseline proves nothing");
        assert!(!report.all_met());
    }

    #[test]
    fn the_written_report_has_the_agreed_fields() {
        let folder = std::env::temp_dir().join(format!("lockstep-bench-{}", std::process::id()));
        let mut report = Report::default();
        report.add("a", 1.0, "us", Some(2.0), Goal::RatioAtMost(1.0));

        report.write(&folder.join("report.json")).unwrap();
        let rows: serde_json::Value = serde_json::from_slice(&std::fs::read(folder.join("report.json")).unwrap()).unwrap();
        std::fs::remove_dir_all(&folder).unwrap();

        for field in ["name", "value", "unit", "baseline", "ratio", "goal", "met"] {
            assert!(rows[0].get(field).is_some(), "{field}");
        }
    }
}
