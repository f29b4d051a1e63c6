//! Of writes in order, what is still the newest of its place. Pure.
//!
//! A node that takes over makes the committed writes again that may not be on the device; some of them are, and the guest may have had the answer to a flush after them. Were they made again one by one, an older
//! version would be on the device for a moment, over a newer one that was flushed: should this node die in that moment, or both hosts lose power, a flushed write were gone. So only the newest version of each place is
//! made again. That is sound: a flush that was answered is honoured on the device already, and one that was not orders nothing. Guards S4.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use types::block::{DiskChange, DiskWrite};

/// Ranges that are known to be written later; they neither overlap nor touch.
#[derive(Debug, Default)]
struct Covered(BTreeMap<u64, u64>);

impl Covered {
    /// What of the range is not covered, in order.
    fn rest(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        let mut rest = Vec::new();
        let mut from = range.start;
        let before = self.0.range(..range.start).next_back();
        for (start, end) in before.into_iter().chain(self.0.range(range.start..range.end)).filter(|(_, end)| **end > range.start) {
            if *start > from {
                rest.push(from..*start);
            }
            from = from.max(*end);
        }
        if from < range.end {
            rest.push(from..range.end);
        }
        rest
    }

    fn cover(&mut self, range: &Range<u64>) {
        let mut all = range.clone();
        let before = self.0.range(..=range.start).next_back().filter(|(_, end)| **end >= range.start);
        let touched: Vec<(u64, u64)> = before.into_iter().chain(self.0.range(range.start + 1..=range.end)).map(|(s, e)| (*s, *e)).collect();
        for (start, end) in touched {
            self.0.remove(&start);
            all = all.start.min(start)..all.end.max(end);
        }
        self.0.insert(all.start, all.end);
    }
}

/// The part of a write that lies in `place`.
fn cut(write: &DiskWrite, place: &Range<u64>) -> DiskWrite {
    let len = place.end - place.start;
    let change = match &write.change {
        DiskChange::Data(data) if len == write.len() => DiskChange::Data(Arc::clone(data)),
        DiskChange::Data(data) => {
            let skip = (place.start - write.offset) as usize;
            DiskChange::Data(Arc::from(&data[skip..skip + len as usize]))
        }
        DiskChange::Zeroes { may_unmap, .. } => DiskChange::Zeroes { len, may_unmap: *may_unmap },
        DiskChange::Discard { .. } => DiskChange::Discard { len },
    };
    DiskWrite { disk: write.disk, offset: place.start, change }
}

/// What is left of writes to one disk, oldest first, without what later ones write over. A discard hides nothing before it (its range may read as anything, also as what was there), yet is hidden by what is written later.
#[must_use]
pub fn newest(writes: Vec<DiskWrite>) -> Vec<DiskWrite> {
    let mut covered = Covered::default();
    let mut left = Vec::with_capacity(writes.len());
    for write in writes.iter().rev().filter(|write| !write.is_empty()) {
        let range = write.offset..write.offset + write.len();
        left.extend(covered.rest(&range).iter().map(|place| cut(write, place)));
        if !matches!(write.change, DiskChange::Discard { .. }) {
            covered.cover(&range);
        }
    }
    left.reverse();
    left
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use types::block::DiskIndex;

    use super::*;

    const SECTORS: u64 = 24;

    fn write(offset: u64, change: DiskChange) -> DiskWrite {
        DiskWrite { disk: DiskIndex(0), offset, change }
    }

    fn data(offset: u64, byte: u8, len: usize) -> DiskWrite {
        write(offset, DiskChange::Data(vec![byte; len].into()))
    }

    fn carry_out(disk: &mut [u8], writes: &[DiskWrite]) {
        for write in writes {
            let place = write.offset as usize..(write.offset + write.len()) as usize;
            match &write.change {
                DiskChange::Data(data) => disk[place].copy_from_slice(data),
                DiskChange::Zeroes { .. } => disk[place].fill(0),
                DiskChange::Discard { .. } => disk[place].fill(0xdd),
            }
        }
    }

    #[test]
    fn an_older_version_of_a_place_is_not_made_again() {
        let left = newest(vec![data(0, 1, 4), data(1, 2, 2), data(0, 3, 1)]);

        assert_eq!(left, [data(3, 1, 1), data(1, 2, 2), data(0, 3, 1)]);
    }

    #[test]
    fn a_discard_is_not_made_again_over_what_was_written_after_it_and_hides_nothing_before_it() {
        let left = newest(vec![data(0, 1, 4), write(0, DiskChange::Discard { len: 8 }), data(4, 2, 2)]);

        let discard = |offset, len| write(offset, DiskChange::Discard { len });
        assert_eq!(left, [data(0, 1, 4), discard(6, 2), discard(0, 4), data(4, 2, 2)]);
    }

    fn any_write() -> impl Strategy<Value = DiskWrite> {
        (0..SECTORS, 1..=8u64, 0..4u8, any::<u8>()).prop_map(|(at, len, kind, byte)| {
            let len = len.min(SECTORS - at);
            match kind {
                0 => write(at, DiskChange::Zeroes { len, may_unmap: true }),
                1 => write(at, DiskChange::Discard { len }),
                _ => write(at, DiskChange::Data((0..len).map(|n| byte.wrapping_add(n as u8)).collect::<Vec<_>>().into())),
            }
        })
    }

    proptest! {
        /// Whatever of the writes a device has already, it holds the same in the end, and where the newest version was, it stays.
        #[test]
        fn the_device_ends_the_same_and_never_goes_back(writes in prop::collection::vec(any_write(), 0..20)) {
            let mut wanted = vec![0xaa; SECTORS as usize];
            carry_out(&mut wanted, &writes);
            let left = newest(writes.clone());

            let mut fresh = vec![0xaa; SECTORS as usize];
            carry_out(&mut fresh, &left);
            prop_assert_eq!(&fresh, &wanted);

            let discarded: Vec<u64> = writes.iter().filter(|w| matches!(w.change, DiskChange::Discard { .. })).flat_map(|w| w.offset..w.offset + w.len()).collect();
            let mut device = wanted.clone();
            for step in &left {
                carry_out(&mut device, std::slice::from_ref(step));
                for at in (0..SECTORS).filter(|at| !discarded.contains(at)) {
                    prop_assert_eq!(device[at as usize], wanted[at as usize]);
                }
            }
        }
    }
}
