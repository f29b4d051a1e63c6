//! A bound on a whole test: whatever hangs, the run ends, with the test's name on standard error. Not here: bounds of single waits.

use std::io::Write;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

/// Ends the whole test process when it is not dropped in time. The nodes die with their parent.
#[derive(Debug)]
pub struct Watchdog {
    _alive: Sender<()>,
}

impl Watchdog {
    /// Gives the calling test `bound`.
    ///
    /// # Panics
    /// The host gives no thread.
    #[must_use]
    pub fn new(bound: Duration) -> Watchdog {
        let (alive, dropped) = channel::<()>();
        let test = std::thread::current().name().unwrap_or("a test").to_owned();
        let watch = move || {
            if dropped.recv_timeout(bound) == Err(RecvTimeoutError::Timeout) {
                // Not eprintln: the test harness would keep it for itself, and is about to end.
                let _ = writeln!(std::io::stderr(), "{test} did not end within {bound:?}: the whole run is ended");
                std::process::abort();
            }
        };
        std::thread::Builder::new().name("watchdog".to_owned()).spawn(watch).expect("a thread");
        Watchdog { _alive: alive }
    }
}
