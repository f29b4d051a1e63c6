//! The way of credits back to the sender, on the data connection. Not here: who owns which slot (that is [`crate::staging`]).
//!
//! A credit costs a system call here and a wake-up there. While the sender has slots in plenty, credits are sent a few at a time; when it
//! runs low, at once.

use std::net::TcpStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::frame::CREDIT_BYTES;
use super::socket::send_now;
use crate::staging::CreditLine;

/// The sender has plenty while it holds at least this many slots.
const PLENTY: usize = 8;

/// Credits sent together while the sender has plenty. A sender that reuses the most recently freed slot then cycles through about so many.
const TOGETHER: usize = 4;

/// One link's line of credits.
pub(crate) struct Line {
    stream: Arc<TcpStream>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Slots that are the sender's, as far as it has been told.
    held_by_sender: usize,
    /// Credits not sent yet, encoded.
    waiting: Vec<u8>,
    /// The connection refused a write: the data thread will see why.
    dead: bool,
}

impl Line {
    pub(crate) fn new(stream: Arc<TcpStream>) -> Arc<Line> {
        Arc::new(Line { stream, state: Mutex::default() })
    }

    /// The sender ended a slot: it holds one less, and may now need what waits.
    pub(crate) fn ended(&self) {
        let mut state = self.lock();
        state.held_by_sender = state.held_by_sender.saturating_sub(1);
        if state.held_by_sender < PLENTY {
            self.push(&mut state);
        }
    }

    /// Sends what waits: called when the data thread has nothing else to do.
    pub(crate) fn flush(&self) {
        self.push(&mut self.lock());
    }

    fn push(&self, state: &mut State) {
        while !state.waiting.is_empty() && !state.dead {
            match send_now(&self.stream, &state.waiting) {
                // No room: all credits there can be fit a socket buffer, so the peer is not reading at all. `flush` tries again.
                Ok(0) => break,
                Ok(n) => drop(state.waiting.drain(..n)),
                Err(error) => {
                    tracing::debug!(%error, "credits could not be sent");
                    state.dead = true;
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CreditLine for Line {
    fn grant(&self, slots: &[u32]) {
        let mut state = self.lock();
        let plenty = state.held_by_sender >= PLENTY;
        for slot in slots {
            state.waiting.extend_from_slice(&slot.to_le_bytes());
        }
        state.held_by_sender += slots.len();
        if !plenty || state.waiting.len() >= TOGETHER * CREDIT_BYTES {
            self.push(&mut state);
        }
    }
}
