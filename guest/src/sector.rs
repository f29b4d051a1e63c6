//! Sector stamps: what the guest writes to its disks, and how it proves that it reads the same.
//!
//! Every word of a stamped sector carries the stamp: in the clear, or mixed with the sector's number and the word's place. So a sector that was lost, torn,
//! exchanged with another or left at an older state differs from the ledger, or from its own pattern. Not here: which sector is next (`disk`).

use core::ops::Range;

use crate::stamp::mix;

/// Bytes of a sector.
pub const SECTOR: usize = 512;
/// Words of a sector.
pub const SECTOR_WORDS: usize = SECTOR / 8;

fn expected(sector: u64, stamp: u64, word: usize) -> u64 {
    match word {
        0 => sector,
        1 => stamp,
        _ => mix(sector.rotate_left(40) ^ stamp.rotate_left(8) ^ word as u64),
    }
}

/// Stamps consecutive sectors from `first`, as many as `words` holds.
pub fn fill(words: &mut [u64], first: u64, stamp: u64) {
    for (sector, words) in (first..).zip(words.chunks_exact_mut(SECTOR_WORDS)) {
        for (word, slot) in words.iter_mut().enumerate() {
            *slot = expected(sector, stamp, word);
        }
    }
}

/// Where a disk's content differs from what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Torn {
    /// The sector.
    pub sector: u64,
    /// Index of the first wrong word.
    pub word: usize,
    /// The stamp that the sector should carry.
    pub stamp: u64,
    /// What the word holds.
    pub found: u64,
}

/// Compares one sector with what it should hold.
///
/// # Errors
/// The first word that differs.
pub fn verify(words: &[u64], sector: u64, stamp: u64) -> Result<(), Torn> {
    for (word, &found) in words.iter().enumerate() {
        if found != expected(sector, stamp, word) {
            return Err(Torn { sector, word, stamp, found });
        }
    }
    Ok(())
}

/// The stamp that all sectors of a block carry; 0 of a block that was never written and is all zero.
///
/// # Errors
/// The first word that is not of the stamp that the block's first sector names.
pub fn stamp_of(words: &[u64], sectors: Range<u64>) -> Result<u64, Torn> {
    if words.iter().all(|&word| word == 0) {
        return Ok(0);
    }
    let stamp = words.get(1).copied().unwrap_or(0);
    for (sector, words) in sectors.zip(words.chunks_exact(SECTOR_WORDS)) {
        verify(words, sector, stamp)?;
    }
    Ok(stamp)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_stamped_sector_verifies_and_only_as_itself(sector in 0u64..1 << 40, stamp in 1u64.., other in 1u64..) {
            let mut words = [0; SECTOR_WORDS];
            fill(&mut words, sector, stamp);
            prop_assert_eq!(verify(&words, sector, stamp), Ok(()));
            prop_assert!(verify(&words, sector + 1, stamp).is_err());
            prop_assert!(other == stamp || verify(&words, sector, other).is_err());
        }

        #[test]
        fn any_flipped_bit_of_a_block_is_found(first in 0u64..1 << 30, stamp in 1u64.., word in 0usize..8 * SECTOR_WORDS, bit in 0u32..64) {
            let mut words = [0; 8 * SECTOR_WORDS];
            fill(&mut words, first, stamp);
            prop_assert_eq!(stamp_of(&words, first..first + 8), Ok(stamp));
            words[word] ^= 1 << bit;
            prop_assert!(stamp_of(&words, first..first + 8).is_err());
        }
    }

    #[test]
    fn a_block_made_of_two_writes_is_torn_and_an_empty_one_has_no_stamp() {
        let mut words = [0; 8 * SECTOR_WORDS];
        assert_eq!(stamp_of(&words, 0..8), Ok(0));
        fill(&mut words, 0, 7);
        fill(&mut words[5 * SECTOR_WORDS..], 5, 6);
        assert_eq!(stamp_of(&words, 0..8).map_err(|torn| (torn.sector, torn.word, torn.found)), Err((5, 1, 6)));
    }
}
