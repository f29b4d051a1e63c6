//! The way from ring 3 to ring 0 and back: the INT3 gate's functions, interrupt counters, time-stamp counter, MMIO.
//!
//! INT3 is used because it is the one software gate that every KVM back end delivers. Each function is a handful of instructions in
//! `boot`. MMIO goes by plain moves, written in assembly so that the compiler cannot fold them into forms an emulator does not know.

use core::arch::asm;

use crate::boot::PERCPU;

/// Gate functions; `boot`'s gate dispatches on these.
const WAIT: u32 = 0;
const WRITE_MSR: u32 = 1;
const CPUID: u32 = 3;
const STOP: u32 = 4;

/// Address of a vCPU's block (see `boot`).
pub fn block(cpu: usize) -> u64 {
    PERCPU + cpu as u64 * 4096
}

/// Interrupts that this vCPU has taken so far.
pub fn interrupts(cpu: usize) -> u64 {
    // SAFETY: the first word of a per-CPU block is always mapped and written only by that vCPU's handlers, in one instruction.
    unsafe { core::ptr::with_exposed_provenance::<u64>(block(cpu) as usize).read_volatile() }
}

/// Halts until an interrupt arrives, unless one has arrived since the counter read `seen`: the comparison is made with interrupts off.
pub fn wait(seen: u64) {
    // SAFETY: the gate function changes RCX only; everything else the compiler assumes about memory may have changed, which is the default.
    unsafe { asm!("int3", inout("eax") WAIT => _, in("rdx") seen, out("rcx") _) };
}

/// Writes a model-specific register.
///
/// # Safety
/// The register and value must not change how this program runs: no paging, no segment bases, no address that the host then overwrites
/// unless it is set aside for that.
pub unsafe fn write_msr(register: u32, value: u64) {
    // SAFETY: the gate function writes the register and changes EAX only; the rest is the caller's promise.
    unsafe { asm!("int3", inout("eax") WRITE_MSR => _, in("ecx") register, in("esi") value as u32, in("edx") (value >> 32) as u32) };
}

/// CPUID as the hypervisor shows it: executed in ring 0, since some back ends do not intercept it in ring 3. Returns EAX, EBX, ECX, EDX.
pub fn cpuid(leaf: u32) -> [u32; 4] {
    let (eax, ebx, ecx, edx): (u32, u64, u32, u32);
    // SAFETY: the gate function executes CPUID, which changes these four registers; RBX is the compiler's and is put back.
    unsafe {
        asm!("mov {saved}, rbx", "int3", "xchg {saved}, rbx", saved = out(reg) ebx, inout("eax") CPUID => eax, in("esi") leaf,
            inout("ecx") 0 => ecx, out("edx") edx);
    }
    [eax, ebx as u32, ecx, edx]
}

/// Stops the machine by a triple fault: the VMM sees a crash, not a clean end.
pub fn stop() -> ! {
    // SAFETY: the gate function does not return; should a VMM ignore the triple fault, the loop keeps this vCPU here.
    unsafe { asm!("2:", "int3", "jmp 2b", in("eax") STOP, options(noreturn)) };
}

/// The time-stamp counter, not before earlier loads.
pub fn tsc() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reads a counter.
    unsafe { asm!("lfence", "rdtsc", out("eax") low, out("edx") high, options(nostack, preserves_flags)) };
    u64::from(high) << 32 | u64::from(low)
}

/// Everything written before is visible to devices and other vCPUs before anything read after.
pub fn fence() {
    core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
}

/// Reads a device register.
///
/// # Safety
/// `address` must be a device's register or the APIC's.
pub unsafe fn mmio_read(address: u64) -> u32 {
    let value: u32;
    // SAFETY: the caller's promise; all of the first 4 GiB is mapped.
    unsafe { asm!("mov {0:e}, [{1}]", out(reg) value, in(reg) address, options(nostack, preserves_flags)) };
    value
}

/// Writes a device register.
///
/// # Safety
/// As for [`mmio_read`]; what the device does because of it must be sound, in particular which memory it then writes.
pub unsafe fn mmio_write(address: u64, value: u32) {
    // SAFETY: the caller's promise; all of the first 4 GiB is mapped.
    unsafe { asm!("mov [{1}], {0:e}", in(reg) value, in(reg) address, options(nostack, preserves_flags)) };
}
