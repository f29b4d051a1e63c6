//! A node's events as they are written to the shared folder: they outlive the host that wrote them. Not here: what they mean for a scenario.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;

use types::event::NodeEvent;

/// The events of one node's life so far.
#[derive(Debug)]
pub struct Events {
    path: PathBuf,
    read: u64,
    /// A line whose end has not been written yet.
    rest: Vec<u8>,
    /// All that was told.
    pub all: Vec<NodeEvent>,
}

impl Events {
    /// Of the node that writes to `path`.
    #[must_use]
    pub fn new(path: PathBuf) -> Events {
        Events { path, read: 0, rest: Vec::new(), all: Vec::new() }
    }

    /// Takes in what was written since. A file that is not there yet has nothing in it.
    pub fn refresh(&mut self) {
        let Ok(mut file) = File::open(&self.path) else { return };
        if file.seek(SeekFrom::Start(self.read)).is_err() {
            return;
        }
        // What was read before an error counts.
        self.read += file.read_to_end(&mut self.rest).unwrap_or(0) as u64;
        while let Some(end) = self.rest.iter().position(|&b| b == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            if let Ok(event) = serde_json::from_slice(&line) {
                self.all.push(event);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn half_a_line_is_taken_when_the_rest_of_it_has_come() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("events");
        let mut events = Events::new(path.clone());
        events.refresh();
        let mut file = File::create(&path).expect("a file");
        file.write_all(b"{\"at_ns\":1,\"event\":\"ready\"}\n{\"at_ns\":2,").expect("written");
        events.refresh();
        assert_eq!(events.all.len(), 1);
        file.write_all(b"\"event\":\"ready\"}\n").expect("written");
        events.refresh();
        assert_eq!(events.all.iter().map(|e| e.at_ns).collect::<Vec<_>>(), [1, 2]);
    }
}
