//! The vCPUs besides the first, and the work they share: dirtying and burning.
//!
//! vCPU 0 serves the network. With one vCPU it also does the work, a small step at a time; with more, the others do it and halt
//! in between. Plans change, and memory is checked, only while all workers are at a stop, so that no page is between its stamp and its
//! ledger entry. Other vCPUs never allocate.

use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

use guest::dirtier::{Dirtier, Pacer, Pattern, Plan};
use guest::stamp::mix;

use crate::boot::{self, MAX_CPUS};
use crate::clock::{self, Monotonic};
use crate::region::Memory;
use crate::{apic, cpu};

/// How long a vCPU may take to come up, and a worker to stop, before it is left out.
const MOST_WAIT_NS: u64 = 2_000_000_000;
/// One step of burning: the longest that a request waits for it on a shared vCPU.
const BURN_NS: u64 = 100_000;
/// Burning steps per second and per cent.
const BURNS_PER_PERCENT: u64 = 1_000_000_000 / BURN_NS / 100;

static ONLINE: [AtomicBool; MAX_CPUS] = [const { AtomicBool::new(false) }; MAX_CPUS];
static STAMPED: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];
/// Odd while workers are to stand still; each names the value it obeys in `STOPPED`.
static STOP: AtomicU32 = AtomicU32::new(0);
static STOPPED: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(0) }; MAX_CPUS];
/// vCPUs that were started and came up, vCPU 0 included.
static CPUS: AtomicU32 = AtomicU32::new(1);

static PLAN_VERSION: AtomicU32 = AtomicU32::new(0);
static RATE: AtomicU64 = AtomicU64::new(0);
static PATTERN: AtomicU8 = AtomicU8::new(0);
static PAGES: AtomicU64 = AtomicU64::new(0);
static BURN: AtomicU8 = AtomicU8::new(0);

/// The plan in force.
pub fn plan() -> Plan {
    let pattern = match PATTERN.load(Ordering::Relaxed) {
        0 => Pattern::Sequential,
        1 => Pattern::Random,
        _ => Pattern::Hot,
    };
    Plan { rate: RATE.load(Ordering::Relaxed), pattern, pages: PAGES.load(Ordering::Relaxed) }
}

/// Puts a plan in force. Workers must be stopped.
fn set_plan(plan: Plan) {
    RATE.store(plan.rate, Ordering::Relaxed);
    PAGES.store(plan.pages, Ordering::Relaxed);
    let pattern = match plan.pattern {
        Pattern::Sequential => 0,
        Pattern::Random => 1,
        Pattern::Hot => 2,
    };
    PATTERN.store(pattern, Ordering::Relaxed);
    PLAN_VERSION.fetch_add(1, Ordering::Release);
}

/// Pages stamped by all vCPUs.
pub fn stamped() -> u64 {
    STAMPED.iter().map(|count| count.load(Ordering::Relaxed)).sum()
}

/// vCPUs that run.
pub fn cpus() -> u32 {
    CPUS.load(Ordering::Relaxed)
}

/// Runs `work` while no worker writes; `None` when one did not stop in time.
pub fn stopped<R>(work: impl FnOnce() -> R) -> Option<R> {
    let stop = STOP.fetch_add(1, Ordering::SeqCst) + 1;
    wake_others();
    let deadline = clock::raw_ns(0) + MOST_WAIT_NS;
    let all = (1..cpus() as usize).all(|index| {
        while STOPPED[index].load(Ordering::SeqCst) != stop {
            if clock::raw_ns(0) > deadline {
                return false;
            }
            core::hint::spin_loop();
        }
        true
    });
    let result = all.then(work);
    STOP.fetch_add(1, Ordering::SeqCst);
    result
}

/// Changes the plan; `false` when a worker did not stop in time.
pub fn change_plan(plan: Plan) -> bool {
    let done = stopped(|| set_plan(plan)).is_some();
    wake_others();
    done
}

/// Sets the burning share of each worker.
pub fn change_burn(percent: u8) {
    BURN.store(percent, Ordering::Relaxed);
    PLAN_VERSION.fetch_add(1, Ordering::Release);
    wake_others();
}

fn wake_others() {
    for index in 1..cpus() as usize {
        apic::wake(index);
    }
}

/// Starts vCPUs 1 to `wanted` - 1, one after the other; those that do not come up in time are left out, and with them all after.
pub fn start(wanted: usize) {
    if wanted <= 1 {
        return;
    }
    // SAFETY: page 8 is conventional memory; what the VMM put there has been read and is not needed any more.
    unsafe {
        let (from, end) = (&raw const boot::ap_trampoline, &raw const boot::ap_trampoline_end);
        let to = core::ptr::with_exposed_provenance_mut::<u8>(boot::TRAMPOLINE as usize);
        core::ptr::copy_nonoverlapping(from, to, end as usize - from as usize);
    }
    for (index, online) in ONLINE.iter().enumerate().take(wanted).skip(1) {
        // SAFETY: read by the vCPU that is about to be started; the one before has passed that point.
        unsafe { (&raw mut boot::AP_INDEX).write_volatile(index as u32) };
        cpu::fence();
        apic::reset(index);
        apic::start(index);
        let deadline = clock::raw_ns(0) + MOST_WAIT_NS;
        while !online.load(Ordering::Acquire) {
            if clock::raw_ns(0) > deadline {
                return;
            }
            core::hint::spin_loop();
        }
        CPUS.store(index as u32 + 1, Ordering::Relaxed);
    }
    PLAN_VERSION.fetch_add(1, Ordering::Release);
}

/// The life of a vCPU other than the first.
pub fn worker(index: usize) -> ! {
    apic::init();
    clock::init(index);
    let mut clock = Monotonic::new(index);
    let mut work = Work::new(index);
    ONLINE[index].store(true, Ordering::Release);
    loop {
        let seen = cpu::interrupts(index);
        let stop = STOP.load(Ordering::SeqCst);
        if stop % 2 == 1 {
            STOPPED[index].store(stop, Ordering::SeqCst);
            while STOP.load(Ordering::SeqCst) == stop {
                core::hint::spin_loop();
            }
            continue;
        }
        if !work.step(&mut clock) {
            if let Some(ns) = work.wait_ns() {
                apic::set_timer(ns);
            }
            cpu::wait(seen);
        }
    }
}

/// One vCPU's share of the work.
pub struct Work {
    index: usize,
    version: u32,
    dirtier: Dirtier,
    counted: u64,
    burn: Pacer,
}

impl Work {
    /// Nothing to do yet.
    pub fn new(index: usize) -> Work {
        Work { index, version: u32::MAX, dirtier: Dirtier::new(Plan::IDLE, 0, 1, 0), counted: 0, burn: Pacer::new(0, 0) }
    }

    /// Does a small step of what is due; `false` when nothing is.
    pub fn step(&mut self, clock: &mut Monotonic) -> bool {
        let now = clock.now();
        let version = PLAN_VERSION.load(Ordering::Acquire);
        if version != self.version {
            self.version = version;
            self.take_plan(now);
        }
        let stamped = self.dirtier.step(now, &mut Memory);
        if stamped != 0 {
            self.counted += stamped;
            STAMPED[self.index].store(self.counted, Ordering::Relaxed);
        }
        let burns = self.burn.take(now, 1);
        if burns != 0 {
            let until = now + BURN_NS;
            let mut word = now;
            while clock.now() < until {
                for _ in 0..256 {
                    word = core::hint::black_box(mix(word));
                }
            }
        }
        stamped + burns != 0
    }

    /// Nanoseconds until something is due.
    pub fn wait_ns(&self) -> Option<u64> {
        match (self.dirtier.wait_ns(), self.burn.wait_ns()) {
            (Some(dirty), Some(burn)) => Some(dirty.min(burn)),
            (one, other) => one.or(other),
        }
    }

    fn take_plan(&mut self, now: u64) {
        let cpus = u64::from(cpus());
        let share = match (cpus, self.index as u64) {
            (1, 0) => Some((0, 1)),
            (_, 0) => None,
            (cpus, index) => Some((index - 1, cpus - 1)),
        };
        let (dirtier, burn) = match share {
            Some((index, workers)) if index < workers => {
                (Dirtier::new(plan(), index, workers, now), u64::from(BURN.load(Ordering::Relaxed)))
            }
            _ => (Dirtier::new(Plan::IDLE, 0, 1, now), 0),
        };
        self.dirtier = dirtier;
        self.burn = Pacer::new(burn * BURNS_PER_PERCENT, now);
    }
}
