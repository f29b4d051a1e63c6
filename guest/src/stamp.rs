//! Page stamps: what the dirtier writes into a page, and how `CHECK` proves that it is still there.
//!
//! A stamped page carries its own number, its iteration and words derived from both, in four cache lines spread over it. The iteration it
//! should have is kept apart, in the ledger. So a page that was lost, torn, swapped with another or left at an older state after a
//! failover differs from the ledger or from its own pattern (S5). Not here: which page is next and when (`dirtier`).

/// Words in a page.
pub const PAGE_WORDS: usize = 512;
/// First word of each stamped cache line: first, last and two in the middle that no power-of-two stride meets.
pub const LINES: [usize; 4] = [0, 13 * 8, 38 * 8, 63 * 8];
/// Words in a cache line.
const LINE_WORDS: usize = 8;

/// Mixes a word so that every bit of the input moves half of the output's (the finaliser of SplitMix64).
#[must_use]
pub fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// The word at an index of a page stamped in an iteration: page number and iteration in the clear, then derived words.
#[must_use]
pub fn expected(page: u64, iteration: u32, word: usize) -> u64 {
    match word % LINE_WORDS {
        0 => page,
        1 => u64::from(iteration),
        _ => mix(page.rotate_left(32) ^ u64::from(iteration) ^ ((word as u64) << 48)),
    }
}

/// Writes the stamp.
pub fn stamp(words: &mut [u64; PAGE_WORDS], page: u64, iteration: u32) {
    for line in LINES {
        for (word, slot) in words.iter_mut().enumerate().skip(line).take(LINE_WORDS) {
            *slot = expected(page, iteration, word);
        }
    }
}

/// Where a page differs from its stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Corrupt {
    /// The page.
    pub page: u64,
    /// Index of the first wrong word.
    pub word: usize,
    /// What it should hold.
    pub expected: u64,
    /// What it holds.
    pub found: u64,
    /// The iteration the ledger says.
    pub iteration: u32,
}

/// Compares a page with the stamp of an iteration.
///
/// # Errors
/// The first word that differs.
pub fn verify(words: &[u64; PAGE_WORDS], page: u64, iteration: u32) -> Result<(), Corrupt> {
    for line in LINES {
        for (word, &found) in words.iter().enumerate().skip(line).take(LINE_WORDS) {
            let expected = expected(page, iteration, word);
            if found != expected {
                return Err(Corrupt { page, word, expected, found, iteration });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_stamped_page_verifies_and_only_as_itself(page in 0u64..1 << 40, iteration in 1u32.., other in 1u32..) {
            let mut words = [0; PAGE_WORDS];
            stamp(&mut words, page, iteration);
            prop_assert_eq!(verify(&words, page, iteration), Ok(()));
            prop_assert!(verify(&words, page + 1, iteration).is_err());
            if other != iteration {
                prop_assert!(verify(&words, page, other).is_err());
            }
        }

        #[test]
        fn any_flipped_bit_in_a_stamped_line_is_found(page in 0u64..1 << 30, iteration in 1u32.., line in 0usize..4, word in 0usize..8, bit in 0u32..64) {
            let mut words = [0; PAGE_WORDS];
            stamp(&mut words, page, iteration);
            words[LINES[line] + word] ^= 1 << bit;
            let corrupt = verify(&words, page, iteration).expect_err("a flipped bit");
            prop_assert_eq!(corrupt.word, LINES[line] + word);
        }
    }
}
