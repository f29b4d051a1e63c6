//! The delta encoding: a page as the words in which it differs from what the standby holds.
//!
//! A delta is a sequence of runs, ascending and disjoint: `u16` first word, `u16` number of words (at least 1), then 8 bytes for each word: the
//! **new** bytes, so that applying a delta twice does no harm. A word is 8 aligned bytes; a page has 512. Adjacent runs are always merged and a gap
//! of one word (8 bytes) is never bridged (a run's head is 4 bytes), so a pair of pages has exactly one delta.
//!
//! Lives here: the format, both ways. Not here: when a delta is tried (`cache`). Guards S5 (exact) and S7 (every run is inside the page before
//! anything is applied).

use types::PAGE_SIZE;

use crate::Page;

/// Bytes of a word, the granularity of a delta.
pub const WORD_BYTES: usize = 8;
/// Words in a page.
pub const PAGE_WORDS: usize = PAGE_SIZE / WORD_BYTES;
/// Bytes in front of each run.
pub const RUN_HEAD_BYTES: usize = 4;
/// A page whose delta would be larger than this is sent raw: half a page. Above it the saving no longer pays for the work at either end.
pub const MAX_DELTA_BYTES: usize = PAGE_SIZE / 2;

/// Words of one comparison group: one bit each in a `u64`.
const GROUP: usize = 64;
const GROUPS: usize = PAGE_WORDS / GROUP;
/// Bytes compared at once, before it is asked which of their words differ: a cache line.
const LINE: usize = 64;
const LINE_WORDS: usize = LINE / WORD_BYTES;
const LINES_PER_GROUP: usize = GROUP / LINE_WORDS;

/// The words in which two pages differ, one bit each.
struct Changed([u64; GROUPS]);

/// What comparing a page with its base came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeltaOutcome {
    /// The pages are equal: nothing needs to be sent.
    Unchanged,
    /// The delta was written: its bytes. The base now equals the page.
    Written(usize),
    /// The delta would exceed [`MAX_DELTA_BYTES`] or the room given. The base is as it was.
    TooLarge,
}

/// Writes the delta from `base` to `page` to the start of `out`, and brings `base` up to `page`.
pub fn encode_delta(base: &mut Page, page: &Page, out: &mut [u8]) -> DeltaOutcome {
    let room = out.len().min(MAX_DELTA_BYTES);
    let Some(changed) = Changed::between(base, page, room / WORD_BYTES) else {
        return DeltaOutcome::TooLarge;
    };
    let (words, runs) = changed.count();
    if words == 0 {
        return DeltaOutcome::Unchanged;
    }
    let bytes = words * WORD_BYTES + runs * RUN_HEAD_BYTES;
    if bytes > room {
        return DeltaOutcome::TooLarge;
    }
    let mut at = 0;
    changed.for_each_run(|first, count| {
        out[at..at + 2].copy_from_slice(&(first as u16).to_le_bytes());
        out[at + 2..at + RUN_HEAD_BYTES].copy_from_slice(&(count as u16).to_le_bytes());
        at += RUN_HEAD_BYTES;
        // Word by word: runs are short, and a call to copy a word costs more than the word.
        let range = first * WORD_BYTES..(first + count) * WORD_BYTES;
        let to = out[at..at + range.len()].as_chunks_mut::<WORD_BYTES>().0;
        let new = page[range.clone()].as_chunks::<WORD_BYTES>().0;
        let old = base[range].as_chunks_mut::<WORD_BYTES>().0;
        for ((to, old), new) in to.iter_mut().zip(old).zip(new) {
            *to = *new;
            *old = *new;
        }
        at += count * WORD_BYTES;
    });
    debug_assert_eq!(at, bytes);
    DeltaOutcome::Written(bytes)
}

impl Changed {
    /// Compares; `None` as soon as more than `max_words` differ.
    fn between(base: &Page, page: &Page, max_words: usize) -> Option<Changed> {
        let mut masks = [0u64; GROUPS];
        let mut words = 0;
        let old_lines = base.as_chunks::<LINE>().0.iter();
        let new_lines = page.as_chunks::<LINE>().0.iter();
        for (line, (old, new)) in old_lines.zip(new_lines).enumerate() {
            let changed = changed_words(old, new);
            if changed == 0 {
                continue;
            }
            masks[line / LINES_PER_GROUP] |= changed << (line % LINES_PER_GROUP * LINE_WORDS);
            words += changed.count_ones() as usize;
            if words > max_words {
                return None;
            }
        }
        Some(Changed(masks))
    }

    /// Number of words and of runs.
    fn count(&self) -> (usize, usize) {
        let mut carry = 0;
        let mut words = 0;
        let mut runs = 0;
        for mask in self.0 {
            words += mask.count_ones() as usize;
            // A run starts at each changed word whose predecessor is unchanged.
            runs += (mask & !(mask << 1 | carry)).count_ones() as usize;
            carry = mask >> (GROUP - 1);
        }
        (words, runs)
    }

    /// Calls `f(first word, words)` for each run, ascending.
    fn for_each_run(&self, mut f: impl FnMut(usize, usize)) {
        let mut open: Option<(usize, usize)> = None;
        for (group, mask) in self.0.into_iter().enumerate() {
            let mut mask = mask;
            while mask != 0 {
                let start = mask.trailing_zeros();
                let len = (mask >> start).trailing_ones();
                let first = group * GROUP + start as usize;
                open = match open {
                    Some((from, count)) if from + count == first => Some((from, count + len as usize)),
                    Some((from, count)) => {
                        f(from, count);
                        Some((first, len as usize))
                    }
                    None => Some((first, len as usize)),
                };
                let end = start + len;
                mask = if end as usize == GROUP { 0 } else { mask >> end << end };
            }
        }
        if let Some((from, count)) = open {
            f(from, count);
        }
    }
}

/// The words in which two lines differ, one bit each.
#[inline]
fn changed_words(old: &[u8; LINE], new: &[u8; LINE]) -> u64 {
    let word = |line: &[u8; LINE], i: usize| line.as_chunks::<WORD_BYTES>().0.get(i).map_or(0, |word| u64::from_ne_bytes(*word));
    let differ: [u64; LINE_WORDS] = std::array::from_fn(|i| word(old, i) ^ word(new, i));
    if differ.iter().fold(0, |any, word| any | word) == 0 {
        return 0;
    }
    differ.iter().enumerate().fold(0, |mask, (bit, word)| mask | u64::from(*word != 0) << bit)
}

/// Why bytes are not a delta.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeltaError {
    /// It ends inside a run, or has no run at all.
    #[error("it is cut off")]
    Truncated,
    /// A run of no words, or one that reaches beyond the page.
    #[error("a run of {words} words at word {first} is not inside the page")]
    OutsidePage {
        /// First word of the run.
        first: u16,
        /// Words of the run.
        words: u16,
    },
    /// A run starts before the end of the one before it.
    #[error("the run at word {first} overlaps the one before it")]
    Overlap {
        /// First word of the run.
        first: u16,
    },
}

/// A verified delta, borrowed from the bytes of its part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delta<'a> {
    bytes: &'a [u8],
}

impl<'a> Delta<'a> {
    /// A delta from bytes of outside: every run must lie inside the page, after the one before it.
    ///
    /// # Errors
    /// [`DeltaError`].
    pub fn parse(bytes: &'a [u8]) -> Result<Delta<'a>, DeltaError> {
        if bytes.is_empty() {
            return Err(DeltaError::Truncated);
        }
        let mut rest = bytes;
        let mut end = 0;
        while !rest.is_empty() {
            let (first, words, after) = run_head(rest).ok_or(DeltaError::Truncated)?;
            let first_word = usize::from(first);
            if words == 0 || first_word + usize::from(words) > PAGE_WORDS {
                return Err(DeltaError::OutsidePage { first, words });
            }
            if first_word < end {
                return Err(DeltaError::Overlap { first });
            }
            end = first_word + usize::from(words);
            rest = after.get(usize::from(words) * WORD_BYTES..).ok_or(DeltaError::Truncated)?;
        }
        Ok(Delta { bytes })
    }

    /// For bytes that [`Delta::parse`] has accepted before.
    pub(crate) fn verified(bytes: &'a [u8]) -> Delta<'a> {
        Delta { bytes }
    }

    /// The runs: offset in the page (bytes), and the bytes that belong there. Offset and length are multiples of 8 and inside the page.
    pub fn runs(&self) -> impl Iterator<Item = (usize, &'a [u8])> + use<'a> {
        let mut rest = self.bytes;
        std::iter::from_fn(move || {
            let (first, words, after) = run_head(rest)?;
            let (new, next) = after.split_at_checked(usize::from(words) * WORD_BYTES)?;
            rest = next;
            Some((usize::from(first) * WORD_BYTES, new))
        })
    }

    /// Brings `page`, the base of the delta, up to date.
    pub fn apply(&self, page: &mut Page) {
        for (offset, new) in self.runs() {
            if let Some(target) = page.get_mut(offset..offset + new.len()) {
                target.copy_from_slice(new);
            }
        }
    }

    /// Size on the wire, bytes.
    #[must_use]
    pub fn wire_bytes(&self) -> usize {
        self.bytes.len()
    }
}

/// First word, number of words, and the bytes after the run's head.
fn run_head(bytes: &[u8]) -> Option<(u16, u16, &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<RUN_HEAD_BYTES>()?;
    let [a, b, c, d] = *head;
    Some((u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]), rest))
}
