//! What the primary measures of itself between two event lines. Not here: what is done with it.

use std::sync::{Mutex, PoisonError};

use types::Epoch;
use types::event::NodeEventKind;

/// Epochs between two lines at most: a line a tenth of a second and an epoch every 100 us make 1000; beyond this the newest are dropped.
const MAX_SAMPLES: usize = 4096;

#[derive(Default)]
struct Samples {
    pages: Vec<u32>,
    bytes: Vec<u32>,
    pause_us: Vec<u32>,
    commit_us: Vec<u32>,
    send_ns: u64,
}

/// Samples since the last line.
#[derive(Default)]
pub(crate) struct Stats(Mutex<Samples>);

impl Stats {
    pub(crate) fn captured(&self, pages: u64, pause_ns: u64) {
        self.with(|s| {
            push(&mut s.pages, pages);
            push(&mut s.pause_us, pause_ns / 1000);
        });
    }

    pub(crate) fn sent(&self, bytes: u64, nanoseconds: u64) {
        self.with(|s| {
            push(&mut s.bytes, bytes);
            s.send_ns += nanoseconds;
        });
    }

    pub(crate) fn committed(&self, nanoseconds: u64) {
        self.with(|s| push(&mut s.commit_us, nanoseconds / 1000));
    }

    /// The line, and a new beginning. `None` when there is nothing to tell.
    pub(crate) fn line(&self, committed: Epoch, held_frames: usize) -> Option<NodeEventKind> {
        let samples = self.with(std::mem::take);
        if samples.pages.is_empty() && samples.commit_us.is_empty() {
            return None;
        }
        let Samples { pages, bytes, pause_us, commit_us, send_ns } = samples;
        Some(NodeEventKind::Samples { committed, pages, bytes, pause_us, commit_us, send_ns, held_frames: held_frames as u32 })
    }

    fn with<T>(&self, act: impl FnOnce(&mut Samples) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn push(list: &mut Vec<u32>, value: u64) {
    if list.len() < MAX_SAMPLES {
        list.push(u32::try_from(value).unwrap_or(u32::MAX));
    }
}
