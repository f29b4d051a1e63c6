//! Time: the kvmclock page read in ring 3, or the TSC with a measured frequency where there is no kvmclock (QEMU's TCG).
//!
//! kvmclock is what lets time go on, forwards, on a standby whose TSC is another one: the host rewrites the page before the first
//! instruction there. Each vCPU has its own page, so none reads one that its host thread has not refreshed.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::{apic, cpu};

/// Offset of the kvmclock structure in a per-CPU block, and of vCPU 0's wall clock.
const CLOCK_OFFSET: u64 = 0x40;
const WALL_OFFSET: u64 = 0x80;
const MSR_WALL_CLOCK: u32 = 0x4b56_4d00;
const MSR_SYSTEM_TIME: u32 = 0x4b56_4d01;
/// CPUID leaf 0x40000000 spells "KVMKVMKVM"; its EBX.
const KVM_SIGNATURE: u32 = 0x4b4d_564b;
/// CPUID leaf 0x40000001, EAX: the two MSRs above exist.
const FEATURE_CLOCKSOURCE2: u32 = 1 << 3;
/// How long the TSC is measured against the APIC timer: one part in a thousand is good enough for timeouts.
const CALIBRATION_NS: u64 = 5_000_000;
/// Polls of the APIC timer before the measurement is given up (a timer that stands still must not hang the boot).
const MOST_POLLS: u32 = 10_000_000;

/// TSC ticks per second of the fallback; 0 means kvmclock.
static TSC_HZ: AtomicU64 = AtomicU64::new(0);

#[repr(C)]
struct KvmClock {
    version: u32,
    _pad: u32,
    tsc_timestamp: u64,
    system_time: u64,
    tsc_to_system_mul: u32,
    tsc_shift: i8,
    flags: u8,
    _pad2: [u8; 2],
}

/// Sets up time for a vCPU. vCPU 0 must come first: it decides which clock is used.
pub fn init(index: usize) {
    let has_kvmclock = cpu::cpuid(0x4000_0000)[1] == KVM_SIGNATURE && cpu::cpuid(0x4000_0001)[0] & FEATURE_CLOCKSOURCE2 != 0;
    if has_kvmclock {
        let block = cpu::block(index);
        // SAFETY: the host writes 32 bytes at this place, which per-CPU blocks set aside for it.
        unsafe { cpu::write_msr(MSR_SYSTEM_TIME, (block + CLOCK_OFFSET) | 1) };
        if index == 0 {
            // SAFETY: the host writes 12 bytes at this place, once.
            unsafe { cpu::write_msr(MSR_WALL_CLOCK, block + WALL_OFFSET) };
        }
    } else if index == 0 {
        TSC_HZ.store(calibrate(), Ordering::Relaxed);
    }
}

/// Measures the TSC against the APIC timer.
fn calibrate() -> u64 {
    apic::set_timer(1000 * CALIBRATION_NS);
    let (left, start) = (apic::timer_left(), cpu::tsc());
    for _ in 0..MOST_POLLS {
        let passed = left.wrapping_sub(apic::timer_left());
        if passed >= CALIBRATION_NS {
            let ticks = cpu::tsc().wrapping_sub(start);
            return (u128::from(ticks) * 1_000_000_000 / u128::from(passed)) as u64;
        }
    }
    1_000_000_000
}

/// Nanoseconds since some moment before the guest's start, as this vCPU's clock says; may in principle go back.
pub fn raw_ns(index: usize) -> u64 {
    let hz = TSC_HZ.load(Ordering::Relaxed);
    if hz != 0 {
        return (u128::from(cpu::tsc()) * 1_000_000_000 / u128::from(hz)) as u64;
    }
    let clock = core::ptr::with_exposed_provenance::<KvmClock>((cpu::block(index) + CLOCK_OFFSET) as usize);
    loop {
        // SAFETY: the page is mapped and aligned; the host changes it only between two instructions of this vCPU, and the version read
        // before and after tells when it did.
        let (version, copy, after) = unsafe {
            let version = (&raw const (*clock).version).read_volatile();
            let copy = clock.read_volatile();
            (version, (copy, cpu::tsc()), (&raw const (*clock).version).read_volatile())
        };
        let (copy, tsc) = copy;
        if version & 1 == 0 && version == after {
            let ticks = tsc.saturating_sub(copy.tsc_timestamp);
            let shift = u32::from(copy.tsc_shift.unsigned_abs());
            let scaled = if copy.tsc_shift < 0 { u128::from(ticks) >> shift } else { u128::from(ticks) << shift };
            return copy.system_time.wrapping_add(((scaled * u128::from(copy.tsc_to_system_mul)) >> 32) as u64);
        }
        core::hint::spin_loop();
    }
}

/// Wall clock at the moment when [`raw_ns`] was 0, in nanoseconds since 1970; 0 where the host gives none.
pub fn wall_base_ns() -> u64 {
    if TSC_HZ.load(Ordering::Relaxed) != 0 {
        return 0;
    }
    let wall = core::ptr::with_exposed_provenance::<[u32; 3]>((cpu::block(0) + WALL_OFFSET) as usize);
    // SAFETY: set aside in vCPU 0's block; the host wrote it when the MSR was written and never again.
    let [_, seconds, nanoseconds] = unsafe { wall.read_volatile() };
    u64::from(seconds) * 1_000_000_000 + u64::from(nanoseconds)
}

/// A clock that never goes back, and counts how often the one below did.
#[derive(Debug)]
pub struct Monotonic {
    index: usize,
    first: u64,
    last: u64,
    backward_steps: u64,
}

impl Monotonic {
    /// Starts at 0 now, on this vCPU.
    pub fn new(index: usize) -> Monotonic {
        let first = raw_ns(index);
        Monotonic { index, first, last: first, backward_steps: 0 }
    }

    /// Nanoseconds since it was made.
    pub fn now(&mut self) -> u64 {
        let raw = raw_ns(self.index);
        if raw < self.last {
            self.backward_steps += 1;
        } else {
            self.last = raw;
        }
        self.last - self.first
    }

    /// How often the clock below went back.
    pub fn backward_steps(&self) -> u64 {
        self.backward_steps
    }
}
