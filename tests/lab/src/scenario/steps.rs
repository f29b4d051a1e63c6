//! What a course does and when, line by line, in `course.log` of the run's directory: where the time of a round goes, and what came before a failure.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use crate::error::LabError;

/// The log.
#[derive(Debug)]
pub struct Steps {
    file: File,
    begun: Instant,
    last: Instant,
}

impl Steps {
    /// A new log in `directory`.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn new(directory: &Path) -> Result<Steps, LabError> {
        let path = directory.join("course.log");
        let file = File::create(&path).map_err(LabError::io(|| format!("make {}", path.display())))?;
        Ok(Steps { file, begun: Instant::now(), last: Instant::now() })
    }

    /// `what` has just come about.
    pub fn done(&mut self, what: &str) {
        let now = Instant::now();
        let [since_last, since_begin] = [self.last, self.begun].map(|then| now.duration_since(then).as_secs_f64());
        self.last = now;
        // A log that cannot be written fails no scenario.
        let _ = writeln!(self.file, "{since_begin:9.3} +{since_last:7.3} {what}");
    }
}
