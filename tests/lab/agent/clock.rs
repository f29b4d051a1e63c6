//! Clocks as the guest sees them: on every processor a thread that never wants to see CLOCK_MONOTONIC go back, neither against its own last
//! reading nor against another processor's; and how late its sleeps end.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::sys::MOST_CPUS;

/// Between two readings, times the pace.
const PAUSE: Duration = Duration::from_millis(2);

static BASE: OnceLock<Instant> = OnceLock::new();
/// The newest reading of any processor, nanoseconds since [`BASE`].
static NEWEST: AtomicU64 = AtomicU64::new(0);
/// By processor.
static READINGS: [AtomicU64; MOST_CPUS] = [const { AtomicU64::new(0) }; MOST_CPUS];
static STEPS_BACK: AtomicU64 = AtomicU64::new(0);
static LARGEST_STEP_BACK_NS: AtomicU64 = AtomicU64::new(0);
/// The longest that a sleep between two readings took.
static LONGEST_SLEEP_US: AtomicU64 = AtomicU64::new(0);

/// Watches the clock on processor `cpu` for ever, sleeping `pace` times the usual between readings.
pub fn run(cpu: usize, pace: u32) {
    if let Err(error) = crate::sys::pin(cpu) {
        return println!("agent: cannot read the clock on processor {cpu}: {error}");
    }
    let base = *BASE.get_or_init(Instant::now);
    let mut before = raw_ns(base);
    loop {
        std::thread::sleep(PAUSE * pace);
        // Read before the clock: a clock that is ahead of nothing older is never behind it.
        let newest = NEWEST.load(Ordering::SeqCst);
        let now = raw_ns(base);
        READINGS[cpu].fetch_add(1, Ordering::Relaxed);
        let back = newest.max(before).saturating_sub(now);
        if back > 0 {
            STEPS_BACK.fetch_add(1, Ordering::Relaxed);
            LARGEST_STEP_BACK_NS.fetch_max(back, Ordering::Relaxed);
        }
        LONGEST_SLEEP_US.fetch_max(now.saturating_sub(before) / 1000, Ordering::Relaxed);
        NEWEST.fetch_max(now, Ordering::SeqCst);
        before = now;
    }
}

/// CLOCK_MONOTONIC since `base`, moved up so that a step back below `base` is seen too.
fn raw_ns(base: Instant) -> u64 {
    const SHIFT: u64 = 1 << 50;
    let now = Instant::now();
    match now.checked_duration_since(base) {
        Some(after) => SHIFT + after.as_nanos() as u64,
        None => SHIFT - base.duration_since(now).as_nanos() as u64,
    }
}

/// `key=value` lines; readings are told for each processor, separated by commas.
pub fn status() -> String {
    let readings = crate::each_cpu(&READINGS);
    let [steps, largest, sleep] = [&STEPS_BACK, &LARGEST_STEP_BACK_NS, &LONGEST_SLEEP_US].map(|counter| counter.load(Ordering::Relaxed));
    format!("clock_readings={readings}\nclock_steps_back={steps}\nclock_largest_step_back_ns={largest}\nclock_longest_sleep_us={sleep}\n")
}
