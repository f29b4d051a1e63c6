//! The primary is killed (SIGKILL) at random moments, over and over: nothing that a client was told is ever lost (S1, S2, S4), and memory is
//! the same at both ends at every epoch before (S5).
//!
//! `LOCKSTEP_KILLS=n`: so many kills instead of the default. `LOCKSTEP_KILL_SEED=n`: the first seed; every round prints its own, and
//! `LOCKSTEP_KILLS=1 LOCKSTEP_KILL_SEED=n` repeats a round's choices.

mod program;

use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lockstep::demo::world::Host;
use lockstep_tests::asked_for;
use lockstep_tests::e2e::clients::{Clients, under_load};
use lockstep_tests::e2e::lab::{self, Guest, Lab, dirty, prove_memory};
use lockstep_tests::e2e::{Spec, Watchdog};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use types::{Epoch, Generation};

/// What CI runs.
const KILLS: u64 = 100;
/// Labs at once: each has two nodes and a guest, and the machines tests run on have two cores.
const WORKERS: usize = 2;
/// The kill comes at most so long after the guest is protected.
const LATEST_MS: u64 = 400;

/// The choices of one round.
#[derive(Debug)]
struct Round {
    guest: Guest,
    clients: Clients,
    dirty_rate: u32,
    delay: Duration,
}

impl Round {
    fn of(seed: u64) -> Round {
        let mut random = StdRng::seed_from_u64(seed);
        Round {
            guest: Guest::any(&mut random),
            clients: Clients { careful: random.random_range(1..=3), pipelined: random.random_bool(0.5), seed },
            dirty_rate: [0, 2_000, 50_000][random.random_range(0..3)],
            delay: Duration::from_micros(random.random_range(0..LATEST_MS * 1000)),
        }
    }
}

/// One kill; how many writes had been acknowledged in the end.
fn kill_once(lab: &Lab, round: &Round) -> u64 {
    let (mut a, mut b) = lab.pair(&Spec::primary(Host::A, "a"), &Spec::standby(Host::B, "b"));
    let mut guest = lab.connect();
    let (killed_ns, judged) = under_load(lab, round.clients, |load| {
        dirty(&mut guest, round.dirty_rate);
        a.until_protected(0);
        std::thread::sleep(round.delay);
        assert_eq!(a.peers_gone(), [], "nothing is wrong yet");
        let killed_ns = a.kill();
        let activation = b.until_activated();
        assert_eq!(activation.generation, Generation(2));
        assert!(activation.epoch > Epoch::NONE);
        load.until_more(20);
        killed_ns
    });
    prove_memory(&mut guest);
    assert_eq!(b.activations().len(), 1);
    let gone = b.peers_gone();
    assert!(gone.len() == 1 && gone[0].0 >= killed_ns, "the standby lost its primary once, by the kill: {gone:?}");
    judged.acknowledged + judged.counted
}

#[test]
fn every_acknowledged_write_survives_a_kill_at_any_moment() {
    if !lab::available() {
        return;
    }
    let kills = asked_for("LOCKSTEP_KILLS").unwrap_or(KILLS);
    let first = asked_for("LOCKSTEP_KILL_SEED").unwrap_or(1);
    let _watchdog = Watchdog::new(Duration::from_secs(60 + 20 * kills));
    let program = program::lockstep();
    let start = Instant::now();
    let next = AtomicU64::new(0);
    let failed = AtomicBool::new(false);
    let acknowledged = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                while !failed.load(Ordering::Relaxed) {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= kills {
                        break;
                    }
                    let seed = first + index;
                    let round = Round::of(seed);
                    // A world of its own: switches and neighbours of an old one remember where the guest was.
                    let lab = Lab::new(program.clone(), round.guest.clone());
                    let _told = OnFailure { seed, round: &round, failed: &failed };
                    acknowledged.fetch_add(kill_once(&lab, &round), Ordering::Relaxed);
                }
            });
        }
    });
    let acknowledged = acknowledged.load(Ordering::Relaxed);
    // Past the test harness: the proof is worth a line in every run.
    let _ = writeln!(
        std::io::stderr(),
        "{kills} kills (seeds {first} to {}) in {:.0?}: {acknowledged} acknowledged writes, none lost",
        first + kills - 1,
        start.elapsed()
    );
}

/// Names the round in which something went wrong.
struct OnFailure<'a> {
    seed: u64,
    round: &'a Round,
    failed: &'a AtomicBool,
}

impl Drop for OnFailure<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.failed.store(true, Ordering::Relaxed);
            eprintln!("failed with LOCKSTEP_KILLS=1 LOCKSTEP_KILL_SEED={}: {:?}", self.seed, self.round);
        }
    }
}
