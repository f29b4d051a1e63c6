//! The turn to write released output. There is one turn: whoever holds it writes everything that is released until nothing is left, also
//! what other threads release meanwhile, so that no two writers can swap frames.

use types::Output;

use crate::buffer::{Inner, NetBuffer};

/// Released output, in order. Yields each piece once, as an iterator or through [`Batch::write_each`]; the caller writes it before it asks
/// for the next. Empty when another thread holds the turn: that one writes it. Dropped before its end, the rest stays outgoing.
#[derive(Debug)]
#[must_use = "released output leaves only if somebody writes it"]
pub struct Batch<'a> {
    buffer: &'a NetBuffer,
    has_turn: bool,
    /// A piece was yielded and is perhaps being written.
    writing: bool,
}

impl<'a> Batch<'a> {
    pub(crate) fn take_turn(buffer: &'a NetBuffer, inner: &mut Inner) -> Batch<'a> {
        let has_turn = !std::mem::replace(&mut inner.turn_taken, true);
        Batch { buffer, has_turn, writing: false }
    }

    /// Gives every piece to `write`, in order, and reuses its buffer afterwards. Returns how many there were.
    pub fn write_each(mut self, mut write: impl FnMut(&Output)) -> usize {
        let mut count = 0;
        let mut used = None;
        while let Some(output) = self.step(used.take()) {
            write(&output);
            used = Some(output.bytes);
            count += 1;
        }
        count
    }

    /// Marks the piece yielded before as written, gives its buffer back, and takes the next one or ends the turn.
    fn step(&mut self, used: Option<Vec<u8>>) -> Option<Output> {
        if !self.has_turn {
            return None;
        }
        let mut inner = self.buffer.lock();
        if std::mem::take(&mut self.writing) {
            self.buffer.writing_done(&mut inner);
        }
        if let Some(used) = used {
            inner.pool.give_back(used);
        }
        if let Some(output) = inner.pop_outgoing() {
            self.writing = true;
            return Some(output);
        }
        // Ended under the same lock that found nothing outgoing: whatever comes next passes through or takes a turn of its own.
        self.has_turn = false;
        inner.turn_taken = false;
        drop(inner);
        self.buffer.tell_room();
        None
    }
}

impl Iterator for Batch<'_> {
    type Item = Output;

    fn next(&mut self) -> Option<Output> {
        self.step(None)
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        if self.has_turn {
            let mut inner = self.buffer.lock();
            if std::mem::take(&mut self.writing) {
                self.buffer.writing_done(&mut inner);
            }
            inner.turn_taken = false;
            drop(inner);
            self.buffer.tell_room();
        }
    }
}
