//! Which model-specific registers belong to a machine's state.
//!
//! Not here: reading and setting them (`vcpu::state`). Guards S5: every register that the guest can set and read again is carried, and a baseline's
//! list does not depend on the host's generation.

use super::CpuModel;

/// The memory type range registers. KVM_GET_MSR_INDEX_LIST leaves them out (QEMU adds them too, `target/i386/kvm/kvm.c`): the eight variable ranges that
/// KVM shows, the fixed ranges, and the default type.
const MTRRS: [u32; 28] = [
    0x200, 0x201, 0x202, 0x203, 0x204, 0x205, 0x206, 0x207, 0x208, 0x209, 0x20a, 0x20b, 0x20c, 0x20d, 0x20e, 0x20f, 0x250, 0x258, 0x259,
    0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f, 0x2ff,
];

/// What a guest of a baseline can set: its features have no other registers. From Linux `arch/x86/include/asm/msr-index.h` and `uapi/asm/kvm_para.h`.
const BASELINE: [u32; 36] = [
    // TSC, the first interface of kvmclock, TSC_ADJUST.
    0x10,
    0x11,
    0x12,
    0x3b, // Microcode revision, platform information, MISC_FEATURES_ENABLES: read only, and must not change under the guest.
    0x8b,
    0xce,
    0x140, // SYSENTER.
    0x174,
    0x175,
    0x176, // Machine checks, MISC_ENABLE, debug control, PAT.
    0x17a,
    0x17b,
    0x1a0,
    0x1d9,
    0x277, // TSC deadline, XSS.
    0x6e0,
    0xda0, // SYSCALL, GS, TSC_AUX.
    0xc000_0081,
    0xc000_0082,
    0xc000_0083,
    0xc000_0084,
    0xc000_0102,
    0xc000_0103,
    // AMD: SYSCFG, HWCR, patch level of the north bridge.
    0xc001_0010,
    0xc001_0015,
    0xc001_001f, // KVM's own.
    0x4b56_4d00,
    0x4b56_4d01,
    0x4b56_4d02,
    0x4b56_4d03,
    0x4b56_4d04,
    0x4b56_4d05,
    0x4b56_4d06,
    0x4b56_4d07,
    // Thermal and power, which KVM answers but does not carry out.
    0x1fc,
    0x34,
];

/// Registers worth trying: those of KVM's list, and those it leaves out.
pub(crate) fn candidates(listed: &[u32]) -> Vec<u32> {
    let mut all = listed.to_vec();
    all.extend(MTRRS.iter().filter(|index| !listed.contains(index)));
    all
}

/// Whether `model`'s machines carry the register.
pub(crate) fn carried(model: CpuModel, index: u32) -> bool {
    match model {
        CpuModel::Host => true,
        CpuModel::Level(_) => BASELINE.contains(&index) || MTRRS.contains(&index),
    }
}
