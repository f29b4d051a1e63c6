//! What the guest has written and the device does not have yet, by place: what its reads must see. Pure.
//!
//! Not here: order and epochs ([`super::hold`]). Guards S5: a read sees every write that was answered before it, wherever that write is.
//!
//! A discard covers nothing. Its range may hold anything afterwards; so that a sector does not change while nobody writes to it, it keeps what it has until the discard is carried out.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use types::block::DiskChange;

use super::hold::Seq;

/// What a piece of the disk reads as.
#[derive(Clone, Debug)]
enum Content {
    /// These bytes, from the first on.
    Data(Arc<[u8]>, usize),
    Zeroes,
}

impl Content {
    /// Without its first bytes.
    fn after(&self, bytes: u64) -> Content {
        match self {
            Content::Data(data, skip) => Content::Data(Arc::clone(data), skip + bytes as usize),
            Content::Zeroes => Content::Zeroes,
        }
    }
}

#[derive(Clone, Debug)]
struct Piece {
    end: u64,
    /// Which write it is of.
    seq: Seq,
    content: Content,
}

/// The newest content of every place that the device does not have yet.
#[derive(Clone, Debug, Default)]
pub struct Overlay {
    /// By their first byte; they do not overlap.
    pieces: BTreeMap<u64, Piece>,
}

/// What of a range the overlay has, at one moment. Owns its bytes: what happens to the overlay later does not change it.
#[derive(Clone, Debug, Default)]
pub struct View {
    patches: Vec<(Range<usize>, Content)>,
    whole: bool,
}

impl View {
    /// The device need not be asked.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// The device knows all of it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.patches.is_empty()
    }

    /// Puts what was here over what the device has in the range.
    pub fn apply(&self, range: &mut [u8]) {
        for (place, content) in &self.patches {
            let into = &mut range[place.clone()];
            match content {
                Content::Data(data, skip) => into.copy_from_slice(&data[*skip..skip + into.len()]),
                Content::Zeroes => into.fill(0),
            }
        }
    }
}

impl Overlay {
    /// Write `seq` is the newest of its range.
    pub fn cover(&mut self, seq: Seq, offset: u64, change: &DiskChange) {
        let (len, content) = match change {
            DiskChange::Data(data) => (data.len() as u64, Content::Data(Arc::clone(data), 0)),
            DiskChange::Zeroes { len, .. } => (*len, Content::Zeroes),
            DiskChange::Discard { .. } => return,
        };
        if len == 0 {
            return;
        }
        let range = offset..offset + len;
        self.split(range.start);
        self.split(range.end);
        self.starts(&range).into_iter().for_each(|start| drop(self.pieces.remove(&start)));
        self.pieces.insert(range.start, Piece { end: range.end, seq, content });
    }

    /// Write `seq`, of this range, is on the device: where it is the newest, the device is right.
    pub fn uncover(&mut self, seq: Seq, range: &Range<u64>) {
        // Pieces of it lie within its range wholly.
        for start in self.starts(range) {
            if self.pieces.get(&start).is_some_and(|piece| piece.seq == seq) {
                self.pieces.remove(&start);
            }
        }
    }

    /// What there is of a range now.
    #[must_use]
    pub fn look(&self, range: &Range<u64>) -> View {
        let before = self.pieces.range(..range.start).next_back();
        let within = self.pieces.range(range.start..range.end);
        let mut view = View { patches: Vec::new(), whole: false };
        let mut next = range.start;
        let mut holes = false;
        for (start, piece) in before.into_iter().chain(within).filter(|(_, piece)| piece.end > range.start) {
            let (from, to) = ((*start).max(range.start), piece.end.min(range.end));
            holes |= from > next;
            next = to;
            let place = (from - range.start) as usize..(to - range.start) as usize;
            view.patches.push((place, piece.content.after(from - start)));
        }
        view.whole = !holes && next >= range.end;
        view
    }

    /// Nothing is here.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Pieces that begin within the range.
    fn starts(&self, range: &Range<u64>) -> Vec<u64> {
        self.pieces.range(range.start..range.end).map(|(start, _)| *start).collect()
    }

    /// Cuts the piece that lies across `at` in two.
    fn split(&mut self, at: u64) {
        let Some((start, piece)) = self.pieces.range_mut(..at).next_back() else { return };
        if piece.end <= at {
            return;
        }
        let rest = Piece { end: piece.end, seq: piece.seq, content: piece.content.after(at - start) };
        piece.end = at;
        self.pieces.insert(at, rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(byte: u8, len: usize) -> DiskChange {
        DiskChange::Data(vec![byte; len].into())
    }

    fn read(overlay: &Overlay, range: Range<u64>) -> (Vec<u8>, bool) {
        let mut bytes = vec![b'.'; (range.end - range.start) as usize];
        let view = overlay.look(&range);
        view.apply(&mut bytes);
        (bytes, view.is_whole())
    }

    #[test]
    fn the_newest_write_is_seen_and_the_rest_of_an_older_one_on_both_its_sides() {
        let mut overlay = Overlay::default();
        overlay.cover(Seq(1), 2, &data(b'a', 6));
        overlay.cover(Seq(2), 4, &data(b'b', 2));

        assert_eq!(read(&overlay, 0..10), (b"..aabbaa..".to_vec(), false));
        assert_eq!(read(&overlay, 3..7), (b"abba".to_vec(), true));
    }

    #[test]
    fn what_is_on_the_device_goes_and_what_was_written_over_it_stays() {
        let mut overlay = Overlay::default();
        overlay.cover(Seq(1), 2, &data(b'a', 6));
        overlay.cover(Seq(2), 4, &data(b'b', 2));

        overlay.uncover(Seq(1), &(2..8));
        assert_eq!(read(&overlay, 0..10), (b"....bb....".to_vec(), false));

        overlay.uncover(Seq(2), &(4..6));
        assert!(overlay.is_empty());
    }

    #[test]
    fn a_hole_between_two_writes_is_the_devices() {
        let mut overlay = Overlay::default();
        overlay.cover(Seq(1), 0, &data(b'a', 2));
        overlay.cover(Seq(2), 3, &data(b'b', 2));

        assert_eq!(read(&overlay, 0..5), (b"aa.bb".to_vec(), false));
    }

    #[test]
    fn zeroes_read_as_zeroes_and_a_discard_changes_nothing_before_it_is_carried_out() {
        let mut overlay = Overlay::default();
        overlay.cover(Seq(1), 0, &data(b'a', 4));
        overlay.cover(Seq(2), 1, &DiskChange::Zeroes { len: 1, may_unmap: true });
        overlay.cover(Seq(3), 0, &DiskChange::Discard { len: 4 });

        assert_eq!(read(&overlay, 0..4), (b"a\0aa".to_vec(), true));
    }

    #[test]
    fn a_view_is_of_its_moment() {
        let mut overlay = Overlay::default();
        overlay.cover(Seq(1), 0, &data(b'a', 4));
        let view = overlay.look(&(0..4));
        overlay.cover(Seq(2), 0, &data(b'b', 4));

        let mut bytes = [0; 4];
        view.apply(&mut bytes);

        assert_eq!(&bytes, b"aaaa");
    }
}
