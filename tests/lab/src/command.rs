//! Programs of the real machine, run with a time limit. Not here: commands in hosts ([`crate::agent`]).

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use crate::error::LabError;

/// How often a running program is looked at.
const TICK: Duration = Duration::from_millis(5);
/// Bytes of a failed program's words that are shown.
const SHOWN: usize = 600;

fn gather(mut from: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (tell, told) = channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read before an error is still worth having.
        let _ = from.read_to_end(&mut bytes);
        let _ = tell.send(bytes);
    });
    told
}

/// The end of `text`, short enough for an error.
#[must_use]
pub fn tail(text: &str, most: usize) -> &str {
    let text = text.trim_end();
    let mut start = text.len().saturating_sub(most);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    &text[start..]
}

/// Runs `command` for at most `bound`; its standard output.
///
/// # Errors
/// It cannot be started, ends with an error (its words are in the error), or takes too long (it is killed).
pub fn run(command: &mut Command, bound: Duration) -> Result<Vec<u8>, LabError> {
    let what = describe(command);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().map_err(|source| LabError::Io { what: format!("run {what}"), source })?;
    finish(child, &what, bound)
}

/// `program argument ..` for messages.
#[must_use]
pub fn describe(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|a| a.to_string_lossy().into_owned()));
    words.join(" ")
}

/// Waits for a child with piped output as [`run`] does.
///
/// # Errors
/// As [`run`].
pub fn finish(mut child: Child, what: &str, bound: Duration) -> Result<Vec<u8>, LabError> {
    let output = child.stdout.take().map(gather);
    let errors = child.stderr.take().map(gather);
    let deadline = Instant::now() + bound;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < deadline => std::thread::sleep(TICK),
            Ok(None) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(LabError::Late { what: what.to_owned(), bound, detail: String::new() });
            }
            Err(source) => return Err(LabError::Io { what: format!("wait for {what}"), source }),
        }
    };
    // A grandchild may hold the pipes open for ever.
    let take = |told: Option<Receiver<Vec<u8>>>| told.and_then(|t| t.recv_timeout(Duration::from_secs(1)).ok()).unwrap_or_default();
    let (output, errors) = (take(output), take(errors));
    if status.success() {
        return Ok(output);
    }
    let said = if errors.is_empty() { &output } else { &errors };
    Err(LabError::Command {
        what: what.to_owned(),
        status: status.to_string(),
        said: tail(&String::from_utf8_lossy(said), SHOWN).to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_takes_too_long_is_ended_and_named() {
        let started = Instant::now();
        let error = run(Command::new("sleep").arg("30"), Duration::from_millis(50)).expect_err("late");
        assert!(matches!(&error, LabError::Late { what, .. } if what == "sleep 30"), "{error}");
        assert!(started.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_program_that_fails_is_quoted() {
        let error = run(Command::new("sh").args(["-c", "echo so >&2; exit 3"]), Duration::from_secs(10)).expect_err("failed");
        assert!(error.to_string().contains("so") && error.to_string().contains('3'), "{error}");
    }

    #[test]
    fn the_tail_of_a_text_begins_at_a_letter() {
        assert_eq!(tail("aäöü\n", 3), "ü");
    }
}
