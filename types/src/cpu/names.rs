//! Names of CPU features, as Linux and QEMU write them: for people who have to find out why two hosts do not fit.
//!
//! Sources: Intel SDM volume 2A ("CPUID"), AMD APM volume 3 (appendix E), Linux `arch/x86/include/asm/cpufeatures.h` and
//! `Documentation/virt/kvm/x86/cpuid.rst`. A bit without a name here is told by leaf, register and number.

/// A register of a CPUID answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// EAX.
    Eax,
    /// EBX.
    Ebx,
    /// ECX.
    Ecx,
    /// EDX.
    Edx,
}

use Register::{Eax, Ebx, Ecx, Edx};

impl Register {
    /// In the order in which [`super::CpuLeaf::registers`] holds them.
    pub const ALL: [Register; 4] = [Eax, Ebx, Ecx, Edx];
}

/// Names of a word's bits from bit 0 up, separated by spaces; `-` has none.
type Word = (u32, u32, Register, &'static str);

/// KVM's features for its guests.
pub const KVM_FEATURES: u32 = 0x4000_0001;

const WORDS: &[Word] = &[
    (
        1,
        0,
        Ecx,
        "sse3 pclmulqdq dtes64 monitor ds-cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm - pcid dca sse4.1 sse4.2 x2apic movbe popcnt \
         tsc-deadline aes xsave osxsave avx f16c rdrand hypervisor",
    ),
    (
        1,
        0,
        Edx,
        "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush - ds acpi mmx fxsr sse sse2 ss ht tm ia64 pbe",
    ),
    (6, 0, Eax, "dtherm turbo arat - pln ecmd ptm hwp"),
    (
        7,
        0,
        Ebx,
        "fsgsbase tsc-adjust sgx bmi1 hle avx2 fdp-excptn-only smep bmi2 erms invpcid rtm cqm zero-fcs-fds mpx rdt-a avx512f avx512dq rdseed adx \
         smap avx512ifma - clflushopt clwb intel-pt avx512pf avx512er avx512cd sha-ni avx512bw avx512vl",
    ),
    (
        7,
        0,
        Ecx,
        "prefetchwt1 avx512vbmi umip pku ospke waitpkg avx512vbmi2 shstk gfni vaes vpclmulqdq avx512vnni avx512bitalg tme avx512-vpopcntdq - la57 \
         - - - - - rdpid kl bus-lock-detect cldemote - movdiri movdir64b enqcmd sgx-lc pks",
    ),
    (
        7,
        0,
        Edx,
        "- - avx512-4vnniw avx512-4fmaps fsrm uintr - - avx512-vp2intersect srbds-ctrl md-clear rtm-always-abort - tsx-force-abort serialize \
         hybrid tsxldtrk - pconfig arch-lbr ibt - amx-bf16 avx512-fp16 amx-tile amx-int8 spec-ctrl stibp flush-l1d arch-capabilities \
         core-capability ssbd",
    ),
    (
        7,
        1,
        Eax,
        "sha512 sm3 sm4 - avx-vnni avx512-bf16 lass cmpccxadd arch-perfmon-ext - fzrm fsrs fsrc - - - - fred lkgs wrmsrns nmi-src amx-fp16 hreset avx-ifma - - lam",
    ),
    (7, 1, Edx, "- - - - avx-vnni-int8 avx-ne-convert - - amx-complex - avx-vnni-int16 - - - prefetchiti - - - - avx10"),
    (7, 2, Edx, "intel-psfd ipred-ctrl rrsba-ctrl ddpd-u bhi-ctrl mcdt-no"),
    (
        0xd,
        0,
        Eax,
        "xcr0-x87 xcr0-sse xcr0-avx xcr0-bndregs xcr0-bndcsr xcr0-opmask xcr0-zmm-hi256 xcr0-hi16-zmm - xcr0-pkru - - - - - - - xcr0-tilecfg xcr0-tiledata",
    ),
    (0xd, 1, Eax, "xsaveopt xsavec xgetbv1 xsaves xfd"),
    (0xd, 1, Ecx, "- - - - - - - - xss-pt - - xss-cet-u xss-cet-s"),
    (
        KVM_FEATURES,
        0,
        Eax,
        "kvmclock kvm-nopiodelay kvm-mmu kvmclock2 kvm-asyncpf kvm-steal-time kvm-pv-eoi kvm-pv-unhalt - kvm-pv-tlb-flush \
         kvm-asyncpf-vmexit kvm-pv-ipi kvm-poll-control kvm-pv-sched-yield kvm-asyncpf-int kvm-msi-ext-dest-id kvm-hypercall-map-gpa \
         kvm-migration-control - - - - - - kvmclock-stable",
    ),
    (
        0x8000_0001,
        0,
        Ecx,
        "lahf-lm cmp-legacy svm extapic cr8legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop skinit wdt - lwp fma4 tce - nodeid-msr - tbm \
         topoext perfctr-core perfctr-nb - bpext - perfctr-llc mwaitx",
    ),
    (
        0x8000_0001,
        0,
        Edx,
        "amd-fpu amd-vme amd-de amd-pse amd-tsc amd-msr amd-pae amd-mce amd-cx8 amd-apic - syscall amd-mtrr amd-pge amd-mca amd-cmov amd-pat \
         amd-pse36 - mp nx - mmxext amd-mmx amd-fxsr fxsr-opt pdpe1gb rdtscp - lm 3dnowext 3dnow",
    ),
    (0x8000_0007, 0, Edx, "- - - - - - - - invtsc"),
    (
        0x8000_0008,
        0,
        Ebx,
        "clzero irperf xsaveerptr - rdpru - - - - wbnoinvd - - ibpb - ibrs amd-stibp ibrs-always-on stibp-always-on ibrs-preferred \
         ibrs-same-mode - - - amd-ppin amd-ssbd virt-ssbd amd-no-ssb cppc psfd btc-no ibpb-ret",
    ),
    (
        0x8000_000a,
        0,
        Edx,
        "npt lbrv svm-lock nrip-save tsc-scale vmcb-clean flushbyasid decodeassists - - pause-filter - pfthreshold avic - v-vmsave-vmload vgif",
    ),
    (0x8000_001f, 0, Eax, "sme sev - sev-es sev-snp"),
    (
        0x8000_0021,
        0,
        Eax,
        "no-nested-data-bp - lfence-always-serializing - - - null-sel-clr-base - auto-ibrs no-smm-ctl-msr - - - prefetchi - - - - - - - - - - - - - \
         sbpb ibpb-brtype srso-no srso-user-kernel-no",
    ),
];

fn word(function: u32, index: u32, register: Register) -> Option<&'static Word> {
    WORDS.iter().find(|(f, i, r, _)| (*f, *i, *r) == (function, index, register))
}

/// Whether each bit of this word is a feature of its own.
#[must_use]
pub fn is_feature_word(function: u32, index: u32, register: Register) -> bool {
    word(function, index, register).is_some()
}

/// The name of a bit.
#[must_use]
pub fn feature_name(function: u32, index: u32, register: Register, bit: u32) -> String {
    let name =
        word(function, index, register).and_then(|(.., names)| names.split_whitespace().nth(bit as usize)).filter(|name| *name != "-");
    match name {
        Some(name) => name.to_owned(),
        None => format!("bit {bit} of {register:?} in leaf {function:#x}.{index}").to_lowercase(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_word_names_more_bits_than_it_has() {
        for (function, index, register, names) in WORDS {
            let bits = names.split_whitespace().count();
            assert!(bits <= 32, "leaf {function:#x}.{index} {register:?}: {bits}");
        }
    }

    #[test]
    fn well_known_bits_have_their_names() {
        for (function, index, register, bit, name) in [
            (1, 0, Ecx, 0, "sse3"),
            (1, 0, Ecx, 13, "cx16"),
            (1, 0, Ecx, 23, "popcnt"),
            (1, 0, Ecx, 28, "avx"),
            (1, 0, Ecx, 31, "hypervisor"),
            (1, 0, Edx, 15, "cmov"),
            (1, 0, Edx, 26, "sse2"),
            (7, 0, Ebx, 5, "avx2"),
            (7, 0, Ebx, 16, "avx512f"),
            (7, 0, Ebx, 31, "avx512vl"),
            (7, 0, Ecx, 22, "rdpid"),
            (7, 0, Edx, 29, "arch-capabilities"),
            (7, 0, Edx, 31, "ssbd"),
            (0x8000_0001, 0, Ecx, 5, "abm"),
            (0x8000_0001, 0, Ecx, 22, "topoext"),
            (0x8000_0001, 0, Edx, 27, "rdtscp"),
            (0x8000_0001, 0, Edx, 29, "lm"),
            (0x8000_0008, 0, Ebx, 12, "ibpb"),
            (KVM_FEATURES, 0, Eax, 3, "kvmclock2"),
            (KVM_FEATURES, 0, Eax, 24, "kvmclock-stable"),
            (7, 0, Ecx, 15, "bit 15 of ecx in leaf 0x7.0"),
        ] {
            assert_eq!(feature_name(function, index, register, bit), name);
        }
    }
}
