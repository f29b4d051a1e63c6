//! Pages that every epoch changes: they are left unprotected for a while, and reported as dirty without having faulted.
//!
//! Protecting a page again costs the guest a fault at its next write (1 to 2.5 us); copying it, and finding it unchanged, costs the host a fifth of that. A
//! busy guest writes the same few dozen pages (stacks, ring buffers, the heads of its data) in every epoch, so those are worth copying unasked. "Hot" is a page
//! that was dirty in two collects running; each is protected again at one of [`PROBATION`] collects, to see whether it still is: if it is written, it is
//! dirty at the next collect and hot again.
//!
//! Lives here: which pages to leave alone. Not here: KVM. Guards S5: a hot page is *in* the dirty set at each collect, and a page that becomes cold is protected in
//! the same step in which it is reported for the last time; so the set only ever errs by naming pages that did not change.

/// Hot pages at most: so many cost a pause about 0.1 ms of copying. The ones found first stay.
const HOT_MAX: u32 = 256;

/// Each hot page faults at one in so many collects. 32 epochs of an idle guest (25 ms) bring it to rest within a second.
const PROBATION: u32 = 32;

/// The hot pages of one slot, 64 to a word.
#[derive(Debug)]
pub(crate) struct HotPages {
    hot: Vec<u64>,
    /// Dirty at the last collect.
    last: Vec<u64>,
    count: u32,
    turn: u32,
}

impl HotPages {
    pub(crate) fn new(words: usize) -> HotPages {
        HotPages { hot: vec![0; words], last: vec![0; words], count: 0, turn: 0 }
    }

    /// No page is hot: logging starts anew.
    pub(crate) fn forget(&mut self) {
        self.hot.fill(0);
        self.last.fill(0);
        self.count = 0;
    }

    /// Looks at one collect: `dirty` is KVM's bitmap, in which hot pages are still set. Leaves in it the pages that are to be protected again.
    pub(crate) fn sort(&mut self, dirty: &mut [u64]) {
        self.turn = (self.turn + 1) % PROBATION;
        let tested = (1u64 << self.turn) | (1 << (self.turn + PROBATION));
        for ((dirty, hot), last) in dirty.iter_mut().zip(&mut self.hot).zip(&mut self.last) {
            if *dirty | *hot | *last == 0 {
                continue;
            }
            // A page that was cleared by something else (a slot that was changed) is protected: it is not hot.
            let mut now = *hot & *dirty & !tested;
            self.count -= (*hot & !now).count_ones();
            let mut fresh = *dirty & *last & !*hot;
            while fresh != 0 && self.count < HOT_MAX {
                now |= fresh & fresh.wrapping_neg();
                fresh &= fresh - 1;
                self.count += 1;
            }
            *last = *dirty;
            *hot = now;
            *dirty &= !now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What KVM does: a write to a protected page sets its bit, clearing a bit protects the page.
    struct Log {
        bits: Vec<u64>,
        faults: u64,
    }

    impl Log {
        fn write(&mut self, page: usize) {
            let (word, bit) = (page / 64, 1 << (page % 64));
            if self.bits[word] & bit == 0 {
                self.faults += 1;
            }
            self.bits[word] |= bit;
        }

        fn collect(&mut self, hot: &mut HotPages) -> Vec<u64> {
            let reported = self.bits.clone();
            let mut cleared = reported.clone();
            hot.sort(&mut cleared);
            for (bits, cleared) in self.bits.iter_mut().zip(&cleared) {
                *bits &= !cleared;
            }
            reported
        }
    }

    fn log(words: usize) -> (Log, HotPages) {
        (Log { bits: vec![0; words], faults: 0 }, HotPages::new(words))
    }

    #[test]
    fn a_page_written_in_every_epoch_seldom_faults_and_is_always_reported() {
        let (mut log, mut hot) = log(2);
        for _ in 0..320 {
            log.write(70);
            assert_eq!(log.collect(&mut hot), [0, 1 << 6]);
        }
        assert!(log.faults <= 2 + 320 / u64::from(PROBATION), "{}", log.faults);
    }

    #[test]
    fn a_page_that_is_written_no_more_is_reported_for_a_while_and_then_never() {
        let (mut log, mut hot) = log(1);
        for _ in 0..3 {
            log.write(5);
            log.collect(&mut hot);
        }
        let reported = (0..2 * PROBATION).filter(|_| log.collect(&mut hot)[0] != 0).count();
        assert!(reported <= PROBATION as usize, "{reported}");
        assert_eq!((log.bits[0], hot.count, hot.hot[0]), (0, 0, 0));
    }

    #[test]
    fn no_write_is_ever_missed_whatever_the_pattern() {
        let (mut log, mut hot) = log(8);
        let mut seed = 1u64;
        for _ in 0..2000 {
            let mut written = [0u64; 8];
            for _ in 0..200 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                // Half of the writes go to a quarter of the pages.
                let page = (seed >> 33) as usize % if seed >> 63 == 0 { 512 } else { 128 };
                log.write(page);
                written[page / 64] |= 1 << (page % 64);
            }
            let reported = log.collect(&mut hot);
            assert!(written.iter().zip(&reported).all(|(written, reported)| written & !reported == 0));
            assert!(hot.count <= HOT_MAX);
            assert_eq!(hot.hot.iter().map(|word| word.count_ones()).sum::<u32>(), hot.count);
        }
    }

    #[test]
    fn pages_beyond_the_limit_are_protected_as_ever() {
        let (mut log, mut hot) = log(16);
        for _ in 0..3 {
            (0..1024).for_each(|page| log.write(page));
            log.collect(&mut hot);
        }
        assert_eq!(hot.count, HOT_MAX);
        assert_eq!(log.bits.iter().map(|word| word.count_ones()).sum::<u32>(), HOT_MAX);
    }
}
