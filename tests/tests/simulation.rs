//! The pure cores in thousands of seeded clusters: nothing that must not be is ever seen, and each broken order is.
//!
//! `LOCKSTEP_SEEDS=n` runs n seeds instead of the default; `LOCKSTEP_SEED=n` runs one and prints everything that happens in it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use lockstep_tests::asked_for;
use lockstep_tests::sim::{self, Sabotage, Stats, World};

/// What CI runs.
const SEEDS: u64 = 100_000;
/// Within so many seeds each sabotage must be seen.
const SABOTAGED_SEEDS: u64 = 4_000;

#[test]
fn no_seed_shows_what_must_not_be() {
    if let Some(seed) = asked_for("LOCKSTEP_SEED") {
        let seen = World::new(seed, None).traced().run();
        eprintln!("{seen:#?}");
        assert!(seen.is_ok(), "seed {seed}: {}", seen.unwrap_err());
        return;
    }
    let seeds = asked_for("LOCKSTEP_SEEDS").unwrap_or(SEEDS);
    let start = Instant::now();
    let next = AtomicU64::new(0);
    let failed = AtomicBool::new(false);
    let total = Mutex::new(Stats::default());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut mine = Stats::default();
                while !failed.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds {
                        break;
                    }
                    match sim::run(seed, None) {
                        Ok(stats) => mine.add(&stats),
                        Err(violation) => {
                            failed.store(true, Ordering::Relaxed);
                            panic!(
                                "seed {seed}: {violation}\nreplay: LOCKSTEP_SEED={seed} cargo test -p lockstep-tests --test simulation no_seed -- --nocapture"
                            );
                        }
                    }
                }
                total.lock().unwrap().add(&mine);
            });
        }
    });
    let total = total.into_inner().unwrap();
    let seconds = start.elapsed().as_secs_f64();
    println!("{seeds} seeds in {seconds:.1} s, {:.0} a second: {total:#?}", seeds as f64 / seconds);
    if seeds >= 1000 {
        proves_something(&total, seeds);
    }
}

/// Runs in which nothing was told, taken over, struck out, fenced, torn or doubted prove nothing.
fn proves_something(total: &Stats, seeds: u64) {
    assert!(total.acknowledged > 10 * seeds, "{total:?}");
    assert!(total.protections > seeds / 2, "{total:?}");
    for (what, count) in [
        ("activations", total.activations),
        ("strike-outs", total.strike_outs),
        ("fences", total.fences),
        ("torn epochs", total.torn),
        ("held guests", total.guest_holds),
        ("stale releases", total.stale_releases),
        ("unanswered swaps", total.unanswered_swaps),
        ("refused starts", total.refusals),
        ("primaries that gave up", total.give_ups),
        ("forced starts where the last answers were given", total.forced - total.given_up),
        ("forced starts elsewhere", total.given_up),
        ("whole copies of disks", total.full_copies),
        ("copies of what had changed", total.partial_copies),
        ("disks that did not fit", total.refused_disks),
        ("grants that shut older owners out", total.fenced),
        ("writes of an owner that was shut out", total.shut_out),
    ] {
        assert!(count >= seeds / 1000, "{what}: {count} in {seeds} seeds");
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in 0..50 {
        assert_eq!(sim::run(seed, None), sim::run(seed, None));
    }
}

#[test]
fn every_broken_order_is_seen() {
    for sabotage in Sabotage::ALL {
        let seen = (0..SABOTAGED_SEEDS).find_map(|seed| sim::run(seed, Some(sabotage)).err().map(|violation| (seed, violation)));
        let Some((seed, violation)) = seen else { panic!("{sabotage:?} was not seen in {SABOTAGED_SEEDS} seeds") };
        println!("{sabotage:?}: seed {seed}: {violation}");
    }
}
