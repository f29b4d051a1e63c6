//! The set of dirty pages: one bit per guest frame, one bitmap per memory slot, allocated once.
//!
//! Lives here: where the slots lie ([`Layout`]) and the set itself ([`DirtySet`]). Not here: where the bits come from. Guards S5 (a
//! frame number means the same page whatever slot it is in: offsets above the hole below 4 GiB are the known trap) and S6 (`merge`).

use types::Gfn;

/// One contiguous run of guest frames, as KVM knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// KVM's number of the memory slot.
    pub number: u32,
    /// First frame of the slot.
    pub first: Gfn,
    /// Number of frames.
    pub pages: u64,
    /// Where the slot's first byte is mapped in this process. Not part of the guest's shape: differs between hosts.
    pub host_address: u64,
}

impl Slot {
    fn words(&self) -> usize {
        self.pages.div_ceil(64) as usize
    }
}

/// Every memory slot of a machine, in ascending order of frames.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    slots: Vec<Slot>,
}

impl Layout {
    /// Makes a layout; the slots are put in ascending order.
    #[must_use]
    pub fn new(mut slots: Vec<Slot>) -> Layout {
        slots.sort_by_key(|slot| slot.first);
        Layout { slots }
    }

    /// The slots in ascending order of frames.
    #[must_use]
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// Frames of guest memory in all slots.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.slots.iter().map(|slot| slot.pages).sum()
    }

    /// Whether `other` covers the same frames (host addresses may differ).
    #[must_use]
    pub fn same_frames(&self, other: &Layout) -> bool {
        self.slots.len() == other.slots.len() && self.slots.iter().zip(&other.slots).all(|(a, b)| a.first == b.first && a.pages == b.pages)
    }

    /// Index of the slot that holds `gfn` and the frame's offset in it.
    #[must_use]
    pub fn locate(&self, gfn: Gfn) -> Option<(usize, u64)> {
        self.slots.iter().enumerate().find_map(|(index, slot)| {
            let offset = gfn.0.checked_sub(slot.first.0)?;
            (offset < slot.pages).then_some((index, offset))
        })
    }
}

/// A set of guest frames with the capacity of a whole [`Layout`]; no operation allocates after [`DirtySet::new`].
#[derive(Clone, Debug)]
pub struct DirtySet {
    layout: Layout,
    maps: Vec<Vec<u64>>,
}

impl DirtySet {
    /// An empty set for the frames of `layout`.
    #[must_use]
    pub fn new(layout: &Layout) -> DirtySet {
        let maps = layout.slots.iter().map(|slot| vec![0; slot.words()]).collect();
        DirtySet { layout: layout.clone(), maps }
    }

    /// The slots that the set covers.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Adds a frame; says whether it was new. A frame outside the layout is not guest memory: it is left out and the answer is `false`.
    pub fn insert(&mut self, gfn: Gfn) -> bool {
        let Some((slot, offset)) = self.layout.locate(gfn) else {
            return false;
        };
        let word = &mut self.maps[slot][(offset / 64) as usize];
        let bit = 1 << (offset % 64);
        let new = *word & bit == 0;
        *word |= bit;
        new
    }

    /// Adds every frame of guest memory.
    pub fn insert_all(&mut self) {
        for (map, slot) in self.maps.iter_mut().zip(&self.layout.slots) {
            map.fill(u64::MAX);
            let tail = slot.pages % 64;
            if tail != 0
                && let Some(last) = map.last_mut()
            {
                *last = (1 << tail) - 1;
            }
        }
    }

    /// Adds a slot's frames from a bitmap as KVM gives it (bit n of word m is frame `64 m + n` of the slot). Bits past the slot's end are ignored.
    pub fn insert_words(&mut self, slot_index: usize, words: &[u64]) {
        for (index, word) in words.iter().enumerate().filter(|(_, word)| **word != 0) {
            self.insert_word(slot_index, index, *word);
        }
    }

    /// Adds one word of such a bitmap.
    pub fn insert_word(&mut self, slot_index: usize, index: usize, word: u64) {
        let Some(slot) = self.layout.slots.get(slot_index) else { return };
        let left = slot.pages.saturating_sub(index as u64 * 64);
        let inside = if left >= 64 { u64::MAX } else { (1 << left) - 1 };
        if let Some(to) = self.maps[slot_index].get_mut(index) {
            *to |= word & inside;
        }
    }

    /// Whether the frame is in the set.
    #[must_use]
    pub fn contains(&self, gfn: Gfn) -> bool {
        self.layout.locate(gfn).is_some_and(|(slot, offset)| self.maps[slot][(offset / 64) as usize] & (1 << (offset % 64)) != 0)
    }

    /// Adds every frame of `other`, which must be of the same layout.
    ///
    /// # Panics
    /// When the layouts cover different frames: that is a bug of the caller, and silently losing pages would break S5.
    pub fn merge(&mut self, other: &DirtySet) {
        assert!(self.layout.same_frames(&other.layout), "dirty sets of different machines cannot be merged");
        for (to, from) in self.maps.iter_mut().flatten().zip(other.maps.iter().flatten()) {
            *to |= *from;
        }
    }

    /// Number of frames in the set.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.maps.iter().flatten().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Whether there is no frame in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.maps.iter().flatten().all(|word| *word == 0)
    }

    /// Empties the set.
    pub fn clear(&mut self) {
        for map in &mut self.maps {
            map.fill(0);
        }
    }

    /// The frames in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = Gfn> + '_ {
        self.maps.iter().zip(&self.layout.slots).flat_map(|(map, slot)| {
            map.iter().enumerate().filter(|(_, word)| **word != 0).flat_map(move |(index, word)| {
                let base = slot.first.0 + index as u64 * 64;
                Bits(*word).map(move |bit| Gfn(base + u64::from(bit)))
            })
        })
    }

    /// Hands every frame to `each` in ascending order and empties the set.
    pub fn drain(&mut self, mut each: impl FnMut(Gfn)) {
        for (map, slot) in self.maps.iter_mut().zip(&self.layout.slots) {
            for (index, word) in map.iter_mut().enumerate() {
                let base = slot.first.0 + index as u64 * 64;
                for bit in Bits(std::mem::take(word)) {
                    each(Gfn(base + u64::from(bit)));
                }
            }
        }
    }
}

/// The positions of the ones in a word, ascending.
struct Bits(u64);

impl Iterator for Bits {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        if self.0 == 0 {
            return None;
        }
        let bit = self.0.trailing_zeros();
        self.0 &= self.0 - 1;
        Some(bit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_slots() -> Layout {
        let low = Slot { number: 0, first: Gfn(0), pages: 0xC_0000, host_address: 0 };
        let high = Slot { number: 1, first: Gfn(0x10_0000), pages: 100, host_address: 0 };
        Layout::new(vec![high, low])
    }

    #[test]
    fn frames_above_the_hole_keep_their_numbers() {
        let mut set = DirtySet::new(&two_slots());
        assert!(set.insert(Gfn(0x10_0063)));
        assert!(set.insert(Gfn(3)));
        assert!(!set.insert(Gfn(3)));
        assert_eq!(set.iter().collect::<Vec<_>>(), [Gfn(3), Gfn(0x10_0063)]);
    }

    #[test]
    fn frames_in_the_hole_or_past_the_end_are_not_memory() {
        let mut set = DirtySet::new(&two_slots());
        assert!(!set.insert(Gfn(0xC_0000)));
        assert!(!set.insert(Gfn(0x10_0064)));
        set.insert_words(1, &[0, u64::MAX]);
        assert_eq!(set.count(), 36);
    }

    #[test]
    fn drain_gives_each_frame_once_and_leaves_nothing() {
        let mut set = DirtySet::new(&two_slots());
        set.insert_all();
        let mut seen = 0;
        set.drain(|_| seen += 1);
        assert_eq!(seen, 0xC_0000 + 100);
        assert!(set.is_empty());
    }

    #[test]
    fn a_set_given_back_is_in_the_next_one() {
        let mut failed = DirtySet::new(&two_slots());
        failed.insert(Gfn(7));
        let mut next = DirtySet::new(&two_slots());
        next.insert(Gfn(8));
        next.merge(&failed);
        assert_eq!(next.iter().collect::<Vec<_>>(), [Gfn(7), Gfn(8)]);
    }
}
