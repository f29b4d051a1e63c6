//! The log of the VMM's own writes to guest memory: a bitmap that vm-memory marks, with a summary above it.
//!
//! The summary (one bit per word of 64 pages) makes taking the log cost what was written, not what there is: emptying vm-memory's own `AtomicBitmap`
//! takes a locked instruction for every 64 pages, 20 us of each pause for 1 GiB. Guards S5.

use std::sync::atomic::{AtomicU64, Ordering};

use types::PAGE_SIZE;
use vm_memory::bitmap::{Bitmap, NewBitmap, RefSlice, WithBitmapSlice};

/// Which pages of one memory region the VMM has written since the log was last taken.
#[derive(Debug, Default)]
pub struct WriteLog {
    pages: usize,
    words: Vec<AtomicU64>,
    summary: Vec<AtomicU64>,
}

fn zeros(count: usize) -> Vec<AtomicU64> {
    (0..count).map(|_| AtomicU64::new(0)).collect()
}

impl WriteLog {
    /// Takes the log: hands every word that is not zero to `each`, with its index, and clears it. Writes that are marked meanwhile are in this log or the
    /// next.
    pub fn take(&self, mut each: impl FnMut(usize, u64)) {
        for (group, summary) in self.summary.iter().enumerate() {
            if summary.load(Ordering::Acquire) == 0 {
                continue;
            }
            // Summary before words: a writer marks the word first, so what we miss below has its summary bit set again afterwards.
            let mut bits = summary.swap(0, Ordering::SeqCst);
            while bits != 0 {
                let index = group * 64 + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                let word = self.words[index].swap(0, Ordering::SeqCst);
                if word != 0 {
                    each(index, word);
                }
            }
        }
    }

    /// Number of pages in the log.
    #[must_use]
    pub fn count(&self) -> u64 {
        let mut pages = 0;
        for (group, summary) in self.summary.iter().enumerate() {
            let mut bits = summary.load(Ordering::Acquire);
            while bits != 0 {
                let index = group * 64 + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                pages += u64::from(self.words[index].load(Ordering::Acquire).count_ones());
            }
        }
        pages
    }
}

impl NewBitmap for WriteLog {
    fn with_len(bytes: usize) -> WriteLog {
        let pages = bytes.div_ceil(PAGE_SIZE);
        let words = pages.div_ceil(64);
        WriteLog { pages, words: zeros(words), summary: zeros(words.div_ceil(64)) }
    }
}

impl<'a> WithBitmapSlice<'a> for WriteLog {
    type S = RefSlice<'a, WriteLog>;
}

impl Bitmap for WriteLog {
    fn mark_dirty(&self, offset: usize, len: usize) {
        if len == 0 || self.pages == 0 {
            return;
        }
        let last = (offset.saturating_add(len - 1) / PAGE_SIZE).min(self.pages - 1);
        for page in offset / PAGE_SIZE..=last {
            let (word, bit) = (page / 64, 1 << (page % 64));
            // Always a read-modify-write, even if the bit is set: it orders the write to memory before the mark against a concurrent `take`.
            self.words[word].fetch_or(bit, Ordering::SeqCst);
            self.summary[word / 64].fetch_or(1 << (word % 64), Ordering::SeqCst);
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        let page = offset / PAGE_SIZE;
        page < self.pages && self.words[page / 64].load(Ordering::Acquire) & (1 << (page % 64)) != 0
    }

    fn slice_at(&self, offset: usize) -> RefSlice<'_, WriteLog> {
        RefSlice::new(self, offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(log: &WriteLog) -> Vec<usize> {
        let mut pages = Vec::new();
        log.take(|index, word| pages.extend((0..64).filter(|bit| word & (1 << bit) != 0).map(|bit| index * 64 + bit)));
        pages
    }

    #[test]
    fn every_page_a_write_touches_is_taken_once() {
        let log = WriteLog::with_len(10_000 * PAGE_SIZE);
        log.mark_dirty(PAGE_SIZE - 1, 2);
        log.mark_dirty(9_999 * PAGE_SIZE, 1);
        log.mark_dirty(5_000 * PAGE_SIZE, 0);
        assert!(log.dirty_at(0) && log.dirty_at(PAGE_SIZE) && !log.dirty_at(2 * PAGE_SIZE));
        assert_eq!(log.count(), 3);
        assert_eq!(taken(&log), [0, 1, 9_999]);
        assert!(taken(&log).is_empty());
        assert_eq!(log.count(), 0);
    }

    #[test]
    fn marks_past_the_end_are_cut_there() {
        let log = WriteLog::with_len(100 * PAGE_SIZE);
        log.mark_dirty(99 * PAGE_SIZE, usize::MAX);
        log.mark_dirty(200 * PAGE_SIZE, 1);
        assert_eq!(taken(&log), [99]);
        WriteLog::default().mark_dirty(0, 1);
    }

    #[test]
    fn no_mark_is_lost_to_a_log_that_is_taken_meanwhile() {
        let log = WriteLog::with_len(64 * 64 * PAGE_SIZE);
        let mut seen = vec![false; 64 * 64];
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| (0..64 * 64).for_each(|page| log.mark_dirty((page * 37 % (64 * 64)) * PAGE_SIZE, 1)));
            while !writer.is_finished() {
                taken(&log).into_iter().for_each(|page| seen[page] = true);
            }
        });
        taken(&log).into_iter().for_each(|page| seen[page] = true);
        assert!(seen.into_iter().all(|page| page));
    }
}
