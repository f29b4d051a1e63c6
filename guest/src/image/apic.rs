//! Interrupt controllers: the local APIC (timer, interrupts between vCPUs) and the I/O APIC, both by MMIO from ring 3.
//!
//! The local APIC is used in its MMIO mode rather than x2APIC, because that works everywhere (QEMU's TCG has no x2APIC) and needs no trip
//! to ring 0. The timer runs in one-shot mode and counts nanoseconds, so that no TSC offset or frequency enters into it.

use crate::boot::{TRAMPOLINE, VECTOR_DEVICE, VECTOR_SPURIOUS, VECTOR_TIMER, VECTOR_WAKE};
use crate::cpu::{mmio_read, mmio_write};

const LOCAL: u64 = 0xfee0_0000;
const TASK_PRIORITY: u64 = LOCAL + 0x80;
const SPURIOUS: u64 = LOCAL + 0xf0;
const COMMAND_LOW: u64 = LOCAL + 0x300;
const COMMAND_HIGH: u64 = LOCAL + 0x310;
const LVT_TIMER: u64 = LOCAL + 0x320;
const LVT_LINT0: u64 = LOCAL + 0x350;
const TIMER_INITIAL: u64 = LOCAL + 0x380;
const TIMER_CURRENT: u64 = LOCAL + 0x390;
const TIMER_DIVIDE: u64 = LOCAL + 0x3e0;
const MASKED: u32 = 1 << 16;
/// The timer counts 16 ns at a time: fine enough, and 68 s fit, so the divider is written once.
const DIVIDE_BY_16: u32 = 0b0011;
const TICK_NS: u64 = 16;
const IO_INDEX: u64 = 0xfec0_0000;
const IO_DATA: u64 = 0xfec0_0010;
/// Redirection entries of an I/O APIC.
const IO_LINES: u32 = 24;

fn write(register: u64, value: u32) {
    // SAFETY: every register written here is one of the constants above, an APIC's; APICs write no memory.
    unsafe { mmio_write(register, value) };
}

/// Enables this vCPU's local APIC.
pub fn init() {
    write(SPURIOUS, 0x100 | u32::from(VECTOR_SPURIOUS));
    write(TASK_PRIORITY, 0);
    write(LVT_LINT0, MASKED);
    write(LVT_TIMER, u32::from(VECTOR_TIMER));
    write(TIMER_DIVIDE, DIVIDE_BY_16);
}

/// Interrupts this vCPU once, so many nanoseconds from now, or after 68 s if that is sooner. KVM and QEMU both count at 1 GHz.
pub fn set_timer(ns: u64) {
    write(TIMER_INITIAL, u32::try_from(ns.div_ceil(TICK_NS)).unwrap_or(u32::MAX).max(1));
}

/// Nanoseconds left on the timer set last.
pub fn timer_left() -> u64 {
    // SAFETY: an APIC register without side effects.
    u64::from(unsafe { mmio_read(TIMER_CURRENT) }) * TICK_NS
}

/// Delivers a device line, edge-triggered, to vCPU 0.
pub fn route(gsi: u32) {
    if gsi < IO_LINES {
        write(IO_INDEX, 0x11 + 2 * gsi);
        write(IO_DATA, 0);
        write(IO_INDEX, 0x10 + 2 * gsi);
        write(IO_DATA, u32::from(VECTOR_DEVICE));
    }
}

/// Wakes another vCPU.
pub fn wake(cpu: usize) {
    command(cpu, 0x4000 | u32::from(VECTOR_WAKE));
}

/// Resets another vCPU and leaves it waiting for [`start`].
pub fn reset(cpu: usize) {
    command(cpu, 0x4500);
}

/// Starts another vCPU at the trampoline.
pub fn start(cpu: usize) {
    command(cpu, 0x4600 | (TRAMPOLINE >> 12) as u32);
}

fn command(cpu: usize, low: u32) {
    write(COMMAND_HIGH, (cpu as u32) << 24);
    write(COMMAND_LOW, low);
}
