//! What a course does and when, line by line, in `course.log` of the run's directory: where the time of a round goes, and what came before a failure.

use std::collections::VecDeque;
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
    newest: VecDeque<String>,
}

/// Lines shown of a course that failed: a round and a half.
const SHOWN: usize = 12;

impl Steps {
    /// A new log in `directory`.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn new(directory: &Path) -> Result<Steps, LabError> {
        let path = directory.join("course.log");
        let file = File::create(&path).map_err(LabError::io(|| format!("make {}", path.display())))?;
        Ok(Steps { file, begun: Instant::now(), last: Instant::now(), newest: VecDeque::new() })
    }

    /// `what` has just come about.
    pub fn done(&mut self, what: &str) {
        let now = Instant::now();
        let [since_last, since_begin] = [self.last, self.begun].map(|then| now.duration_since(then).as_secs_f64());
        self.last = now;
        // A log that cannot be written fails no scenario.
        let line = format!("{since_begin:9.3} +{since_last:7.3} {what}\n");
        let _ = self.file.write_all(line.as_bytes());
        self.newest.push_back(line);
        if self.newest.len() > SHOWN {
            self.newest.pop_front();
        }
    }

    /// The newest lines.
    pub fn last(&self) -> String {
        self.newest.iter().map(String::as_str).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_lines_are_kept_and_all_are_in_the_file() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut steps = Steps::new(directory.path()).expect("a log");
        for number in 0..SHOWN + 2 {
            steps.done(&format!("step {number}"));
        }

        let last = steps.last();
        assert_eq!(last.lines().count(), SHOWN);
        assert!(last.lines().next().is_some_and(|line| line.ends_with("step 2")), "{last}");
        let file = std::fs::read_to_string(directory.path().join("course.log")).expect("the log");
        assert!(file.ends_with(&last) && file.lines().count() == SHOWN + 2, "{file}");
    }
}
