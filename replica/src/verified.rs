//! How much of guest memory was compared with the primary's, told once in a while.
//!
//! Lives here: the count and its telling. Not here: the comparison (`apply.rs`).

use std::time::{Duration, Instant};

use types::event::{NodeEventKind, Report};

/// Between two events: an epoch can take a tenth of a millisecond, and nobody wants an event for each.
const EVERY: Duration = Duration::from_secs(1);

/// Pages that were compared and found equal.
pub(crate) struct Verified {
    report: Report,
    guest_pages: u64,
    /// Since the last event.
    pages: u64,
    /// Of this link.
    in_all: u64,
    told: Instant,
}

impl Verified {
    pub(crate) fn new(report: Report, guest_pages: u64) -> Verified {
        Verified { report, guest_pages, pages: 0, in_all: 0, told: Instant::now() }
    }

    /// Counts an epoch's window.
    pub(crate) fn add(&mut self, pages: u64) {
        self.pages += pages;
        self.in_all += pages;
        if self.told.elapsed() >= EVERY {
            self.tell();
        }
    }

    /// A link is over: tells what was not told yet.
    pub(crate) fn over(&mut self) {
        self.tell();
        let pages = std::mem::take(&mut self.in_all);
        if pages > 0 {
            let times = pages as f64 / self.guest_pages.max(1) as f64;
            tracing::info!(pages, "memory was compared with the primary's and found equal, {times:.1} times over");
        }
    }

    fn tell(&mut self) {
        let pages = std::mem::take(&mut self.pages);
        self.told = Instant::now();
        if pages > 0 {
            (self.report)(NodeEventKind::MemoryVerified { pages, guest_pages: self.guest_pages });
        }
    }
}
