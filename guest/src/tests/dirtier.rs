//! Pacing, slicing and checking, on a region made of vectors.

use super::*;
use proptest::prelude::*;
use std::vec;
use std::vec::Vec;

struct Vectors {
    pages: Vec<[u64; PAGE_WORDS]>,
    ledger: Vec<u32>,
}

impl Vectors {
    fn new(pages: usize) -> Vectors {
        Vectors { pages: vec![[0; PAGE_WORDS]; pages], ledger: vec![0; pages] }
    }
}

impl Region for Vectors {
    fn page(&mut self, page: u64) -> &mut [u64; PAGE_WORDS] {
        &mut self.pages[page as usize]
    }

    fn ledger(&mut self, page: u64) -> &mut u32 {
        &mut self.ledger[page as usize]
    }
}

const MS: u64 = 1_000_000;

proptest! {
    #[test]
    fn slices_of_all_workers_cover_the_region_once(pages in 0u64..100_000, rate in 0u64..100_000, workers in 1u64..16) {
        let plan = Plan { rate, pattern: Pattern::Sequential, pages };
        let (mut next, mut total) = (0, 0);
        for index in 0..workers {
            let (first, count, share) = plan.slice(index, workers);
            prop_assert_eq!(first, next);
            next += count;
            total += share;
        }
        prop_assert_eq!((next, total), (pages, rate));
    }

    #[test]
    fn a_pacer_asked_often_enough_gives_its_rate(rate in 1u64..50_000, tick_us in 50u64..900) {
        let mut pacer = Pacer::new(rate, 0);
        let (mut given, mut now) = (0, 0);
        while now < 2_000 * MS {
            now += tick_us * 1000;
            given += pacer.take(now, STEP_PAGES);
        }
        let due = rate * now / 1_000_000_000;
        prop_assert!(given <= due && given + STEP_PAGES >= due, "{} of {}", given, due);
    }

    #[test]
    fn after_waiting_as_told_something_is_due(rate in 1u64..1_000_000) {
        let mut pacer = Pacer::new(rate, 0);
        let wait = pacer.wait_ns().expect("a rate above 0");
        prop_assert!(pacer.take(wait + 1, u64::MAX) >= 1);
    }

    #[test]
    fn whatever_was_stamped_checks_in_every_pattern(which in 0usize..3, rate in 1u64..200_000, pages in 1u64..60) {
        let pattern = [Pattern::Sequential, Pattern::Random, Pattern::Hot][which];
        let mut region = Vectors::new(64);
        let mut dirtier = Dirtier::new(Plan { rate, pattern, pages }, 0, 1, 0);
        for tick in 1..200 {
            dirtier.step(tick * MS, &mut region);
        }
        let stamped = region.ledger.iter().filter(|&&iteration| iteration != 0).count() as u64;
        prop_assert!(region.ledger[pages as usize..].iter().all(|&iteration| iteration == 0));
        prop_assert_eq!(check(&mut region, 64), Ok(stamped));
        prop_assert_eq!(dirtier.written(), region.ledger.iter().map(|&iteration| u64::from(iteration)).sum::<u64>());
    }
}

#[test]
fn a_jump_of_the_clock_is_not_made_up_for_in_one_burst() {
    let mut pacer = Pacer::new(1000, 0);
    assert_eq!(pacer.take(3_600_000 * MS, u64::MAX), 100);
}

#[test]
fn a_stale_a_swapped_and_a_zeroed_page_are_found() {
    let mut region = Vectors::new(8);
    let mut dirtier = Dirtier::new(Plan { rate: 16_000, pattern: Pattern::Sequential, pages: 8 }, 0, 1, 0);
    dirtier.step(MS, &mut region);
    let stale = region.pages[3];
    dirtier.step(2 * MS, &mut region);
    assert_eq!(check(&mut region, 8), Ok(8));
    let good = region.pages[3];
    region.pages[3] = stale;
    assert_eq!(check(&mut region, 8).expect_err("a stale page").page, 3);
    region.pages[3] = [0; PAGE_WORDS];
    assert_eq!(check(&mut region, 8).expect_err("a zeroed page").page, 3);
    region.pages[3] = good;
    region.pages.swap(1, 2);
    assert_eq!(check(&mut region, 8).expect_err("swapped pages").page, 1);
}

#[test]
fn nine_of_ten_hot_writes_go_to_the_first_tenth() {
    let mut region = Vectors::new(1000);
    let mut dirtier = Dirtier::new(Plan { rate: 64_000, pattern: Pattern::Hot, pages: 1000 }, 0, 1, 0);
    for tick in 1..=1000 {
        dirtier.step(tick * MS, &mut region);
    }
    let hot: u32 = region.ledger[..100].iter().sum();
    let all: u32 = region.ledger.iter().sum();
    assert!((0.88..0.94).contains(&(f64::from(hot) / f64::from(all))), "{hot} of {all}");
}
