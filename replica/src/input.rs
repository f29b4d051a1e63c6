//! What the guest received at the primary and this standby does not hold the effect of yet.
//!
//! Lives here: copies of frames, until the epoch in which they were received is committed. Not here: giving them to the guest (`activate.rs`). Guards S7: the
//! primary's word for how much there is is not taken.

use std::collections::VecDeque;

use checkpoint::message::InputFrame;
use types::Epoch;

/// Copies kept at most; the oldest go first. What a guest receives in the few epochs that can be in flight is far less.
const FRAMES: usize = 4096;
/// Bytes kept at most.
const BYTES: usize = 8 << 20;

/// Copies of received frames, oldest first.
#[derive(Default)]
pub(crate) struct Received {
    frames: VecDeque<InputFrame>,
    bytes: usize,
}

impl Received {
    /// Takes copies in; those of epochs up to `committed` are a thing of the past.
    pub(crate) fn add(&mut self, frames: Vec<InputFrame>, committed: Epoch) {
        for frame in frames.into_iter().filter(|frame| frame.epoch > committed && frame.bytes.len() <= BYTES) {
            self.bytes += frame.bytes.len();
            self.frames.push_back(frame);
        }
        while self.frames.len() > FRAMES || self.bytes > BYTES {
            self.drop_oldest();
        }
    }

    /// An epoch is committed: what was received up to its end is in its state.
    pub(crate) fn committed(&mut self, epoch: Epoch) {
        while self.frames.front().is_some_and(|frame| frame.epoch <= epoch) {
            self.drop_oldest();
        }
    }

    /// Everything received after `epoch`, in order; nothing is kept.
    pub(crate) fn take(&mut self, epoch: Epoch) -> Vec<InputFrame> {
        self.bytes = 0;
        std::mem::take(&mut self.frames).into_iter().filter(|frame| frame.epoch > epoch).collect()
    }

    fn drop_oldest(&mut self) {
        if let Some(frame) = self.frames.pop_front() {
            self.bytes -= frame.bytes.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(epoch: u64, size: usize) -> InputFrame {
        InputFrame { epoch: Epoch(epoch), port: 0, bytes: vec![0; size] }
    }

    #[test]
    fn only_what_no_committed_epoch_holds_is_given_again() {
        let mut received = Received::default();
        received.add(vec![frame(1, 10), frame(2, 10), frame(2, 10), frame(3, 10)], Epoch(0));
        received.committed(Epoch(1));
        received.add(vec![frame(1, 10)], Epoch(1));

        let epochs: Vec<u64> = received.take(Epoch(2)).iter().map(|frame| frame.epoch.0).collect();

        assert_eq!(epochs, [3]);
        assert!(received.take(Epoch(0)).is_empty());
    }

    #[test]
    fn a_flood_is_bounded_and_the_newest_stay() {
        let mut received = Received::default();
        received.add((1..=10_000).map(|epoch| frame(epoch, 1)).collect(), Epoch(0));
        assert_eq!((received.frames.len(), received.frames.back().map(|f| f.epoch)), (FRAMES, Some(Epoch(10_000))));

        received.add((0..100).map(|_| frame(20_000, 1 << 20)).collect(), Epoch(0));
        assert!(received.bytes <= BYTES);
    }
}
