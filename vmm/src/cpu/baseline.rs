//! The baselines: levels of the x86-64 psABI as whole processors.
//!
//! A baseline shows exactly the features of its level, those that every server processor of the level has beside them, and what KVM emulates on any host;
//! everything else is hidden, down to caches and addresses, so that two hosts of one vendor that carry a level show the same processor bit for bit. That is
//! what lets their machines be compared for equality (`types::cpu`) whatever generation they are of.
//!
//! What it reports of itself, and why:
//!
//! - **Vendor**: the host's. Intel and AMD differ in SYSCALL, SYSENTER and in how Linux patches itself, so a guest can move only among hosts of one vendor.
//! - **Family and model**: those of QEMU's `kvm64` (Intel 15/6/1) and `qemu64` (AMD 15/107/1), which guests have run on for a decade: no kernel keys a
//!   newer erratum or a microcode check to them.
//! - **Brand string**: the model's name.
//! - **Addresses**: 39 physical bits (the least that a processor of these levels has), 48 virtual.
//! - **Caches**: 32 KiB + 32 KiB, 512 KiB, 16 MiB shared, so that libraries which size their copies by them behave alike.
//! - **XSAVE**: only at v3, with x87, SSE and AVX state in the standard layout; XSAVEC and XSAVES are hidden.
//! - **KVM's paravirtual features**: those that KVM has offered since Linux 5.4 whatever its configuration: clock, EOI, spinlocks, IPIs, yield.
//! - **Hidden though useful**: the invariant TSC (so Linux keeps to kvmclock, which follows a host's frequency), the performance counters, and what Linux needs to
//!   mitigate speculation inside the guest (IBRS, IBPB, SSBD, MD_CLEAR): their meaning depends on microcode. Hosts of one kind can use `host` for these.
//!
//! Guards S5.

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use types::cpu::names::{KVM_FEATURES, Register, feature_name};

use super::CpuLevel;

/// "GenuineIntel", "AuthenticAMD", "HygonGenuine": EBX, ECX, EDX of leaf 0.
const INTEL: [u32; 3] = [0x756e_6547, 0x6c65_746e, 0x4965_6e69];
const AMD: [u32; 3] = [0x6874_7541, 0x444d_4163, 0x6974_6e65];
const HYGON: [u32; 3] = [0x6f67_7948, 0x656e_6975, 0x6e65_476e];

/// Highest leaves: topology (0xb) needs no more, XSAVE is 0xd.
const MAX_BASIC: u32 = 0xd;
const MAX_EXTENDED: u32 = 0x8000_0008;
const KVM_SIGNATURE: u32 = 0x4000_0000;

const PHYSICAL_BITS: u32 = 39;
const VIRTUAL_BITS: u32 = 48;

const SIGNATURE_INTEL: u32 = 0x0000_0f61;
const SIGNATURE_AMD: u32 = 0x0006_0fb1;

/// x87, SSE and AVX in XCR0, their bytes in an XSAVE area, and where the AVX part lies in it (Intel SDM 1, 13.4).
const XCR0: u32 = 0b111;
const XSAVE_BYTES: u32 = 832;
const AVX_BYTES: u32 = 256;
const AVX_OFFSET: u32 = 576;

const fn bits(list: &[u32]) -> u32 {
    let (mut word, mut i) = (0, 0);
    while i < list.len() {
        word |= 1 << list[i];
        i += 1;
    }
    word
}

/// A feature word and which of its bits each level has beyond the one below.
struct Word {
    function: u32,
    index: u32,
    register: Register,
    v1: u32,
    v2: u32,
    v3: u32,
}

impl Word {
    fn of(&self, level: CpuLevel) -> u32 {
        match level {
            CpuLevel::V1 => self.v1,
            CpuLevel::V2 => self.v1 | self.v2,
            CpuLevel::V3 => self.v1 | self.v2 | self.v3,
        }
    }
}

const WORDS: [Word; 8] = [
    Word {
        function: 1,
        index: 0,
        register: Register::Ecx,
        // Emulated by KVM on any processor: x2apic, tsc-deadline, hypervisor.
        v1: bits(&[21, 24, 31]),
        // sse3 ssse3 cx16 sse4.1 sse4.2 popcnt
        v2: bits(&[0, 9, 13, 19, 20, 23]),
        // fma movbe xsave avx f16c; and pclmulqdq, aes: not of the psABI's level, but every server processor of it has them, and without them a
        // guest's TLS and disk encryption are ten times slower.
        v3: bits(&[1, 12, 22, 25, 26, 28, 29]),
    },
    Word {
        function: 1,
        index: 0,
        register: Register::Edx,
        // fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr sse sse2
        v1: bits(&[0, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 19, 23, 24, 25, 26]),
        v2: 0,
        v3: 0,
    },
    // arat: the LAPIC timer of a vCPU never stops.
    Word { function: 6, index: 0, register: Register::Eax, v1: bits(&[2]), v2: 0, v3: 0 },
    // tsc-adjust (emulated); bmi1 avx2 bmi2; and fsgsbase, smep.
    Word { function: 7, index: 0, register: Register::Ebx, v1: bits(&[1]), v2: 0, v3: bits(&[0, 3, 5, 7, 8]) },
    // xsaveopt
    Word { function: 0xd, index: 1, register: Register::Eax, v1: 0, v2: 0, v3: bits(&[0]) },
    // lahf-lm; abm (which is lzcnt)
    Word { function: 0x8000_0001, index: 0, register: Register::Ecx, v1: 0, v2: bits(&[0]), v3: bits(&[5]) },
    // syscall nx lm; rdtscp
    Word { function: 0x8000_0001, index: 0, register: Register::Edx, v1: bits(&[11, 20, 29]), v2: 0, v3: bits(&[27]) },
    // kvmclock nopiodelay kvmclock2 pv-eoi pv-unhalt pv-ipi poll-control pv-sched-yield kvmclock-stable
    Word { function: KVM_FEATURES, index: 0, register: Register::Eax, v1: bits(&[0, 1, 3, 6, 7, 11, 12, 13, 24]), v2: 0, v3: 0 },
];

/// Bits of leaf 1 EDX that AMD repeats in 0x8000_0001 EDX (APM 3, E.4.2).
const AMD_REPEATED: u32 = 0x0183_f3ff;

fn register(entry: &kvm_cpuid_entry2, register: Register) -> u32 {
    match register {
        Register::Eax => entry.eax,
        Register::Ebx => entry.ebx,
        Register::Ecx => entry.ecx,
        Register::Edx => entry.edx,
    }
}

fn find(supported: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
    let found = supported.iter().find(|entry| (entry.function, entry.index) == (function, index));
    found.copied().unwrap_or_default()
}

/// The names of what a host that supports `supported` lacks for `level`.
fn missing(level: CpuLevel, supported: &[kvm_cpuid_entry2]) -> Vec<String> {
    let mut names = Vec::new();
    for word in &WORDS {
        let lacking = word.of(level) & !register(&find(supported, word.function, word.index), word.register);
        let lacking = (0..32).filter(|bit| lacking >> bit & 1 != 0);
        names.extend(lacking.map(|bit| feature_name(word.function, word.index, word.register, bit)));
    }
    if level >= CpuLevel::V3 {
        let state = find(supported, 0xd, 0).eax;
        names.extend((0..3).filter(|bit| state >> bit & 1 == 0).map(|bit| feature_name(0xd, 0, Register::Eax, bit)));
        let avx = find(supported, 0xd, 2);
        if state & XCR0 == XCR0 && (avx.eax, avx.ebx) != (AVX_BYTES, AVX_OFFSET) {
            names.push("AVX state in the standard layout".to_owned());
        }
    }
    if find(supported, 0x8000_0008, 0).eax & 0xff < PHYSICAL_BITS {
        names.push(format!("{PHYSICAL_BITS} bits of physical address"));
    }
    names
}

fn leaf(function: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
    let [eax, ebx, ecx, edx] = registers;
    kvm_cpuid_entry2 { function, eax, ebx, ecx, edx, ..Default::default() }
}

fn subleaf(function: u32, index: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 { index, flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX, ..leaf(function, registers) }
}

/// The level as a table of CPUID.
pub(super) fn table(level: CpuLevel, supported: &[kvm_cpuid_entry2]) -> Result<Vec<kvm_cpuid_entry2>, Vec<String>> {
    let host = find(supported, 0, 0);
    let vendor = [host.ebx, host.ecx, host.edx];
    let mut lacking = missing(level, supported);
    if ![INTEL, AMD, HYGON].contains(&vendor) {
        lacking.push("a vendor that is known here (Intel, AMD, Hygon)".to_owned());
    }
    if !lacking.is_empty() {
        return Err(lacking);
    }
    let of = |function, index, register| {
        let word = WORDS.iter().find(|w| (w.function, w.index, w.register) == (function, index, register));
        word.map_or(0, |word| word.of(level))
    };
    let intel = vendor == INTEL;
    let signature = if intel { SIGNATURE_INTEL } else { SIGNATURE_AMD };
    let repeated = if intel { 0 } else { of(1, 0, Register::Edx) & AMD_REPEATED };
    let kvm = find(supported, KVM_SIGNATURE, 0);

    let mut table = vec![
        leaf(0, [MAX_BASIC, vendor[0], vendor[1], vendor[2]]),
        // Cache lines of 64 bytes for CLFLUSH.
        leaf(1, [signature, 8 << 8, of(1, 0, Register::Ecx), of(1, 0, Register::Edx)]),
        leaf(6, [of(6, 0, Register::Eax), 0, 0, 0]),
        subleaf(7, 0, [0, of(7, 0, Register::Ebx), 0, 0]),
        subleaf(0xb, 0, [0; 4]),
        subleaf(0xb, 1, [0; 4]),
        subleaf(0xb, 2, [0; 4]),
    ];
    if intel {
        table.extend(intel_caches());
    }
    if level >= CpuLevel::V3 {
        table.extend([
            subleaf(0xd, 0, [XCR0, XSAVE_BYTES, XSAVE_BYTES, 0]),
            subleaf(0xd, 1, [of(0xd, 1, Register::Eax), 0, 0, 0]),
            subleaf(0xd, 2, [AVX_BYTES, AVX_OFFSET, 0, 0]),
        ]);
    }
    table.extend([
        leaf(KVM_SIGNATURE, [KVM_FEATURES, kvm.ebx, kvm.ecx, kvm.edx]),
        leaf(KVM_FEATURES, [of(KVM_FEATURES, 0, Register::Eax), 0, 0, 0]),
        leaf(0x8000_0000, if intel { [MAX_EXTENDED, 0, 0, 0] } else { [MAX_EXTENDED, vendor[0], vendor[1], vendor[2]] }),
        leaf(
            0x8000_0001,
            [if intel { 0 } else { signature }, 0, of(0x8000_0001, 0, Register::Ecx), of(0x8000_0001, 0, Register::Edx) | repeated],
        ),
    ]);
    table.extend(brand(level));
    if intel {
        // Second level: 512 KiB, 8-way, lines of 64 bytes.
        table.push(leaf(0x8000_0006, [0, 0, 512 << 16 | 6 << 12 | 64, 0]));
    } else {
        table.extend(amd_caches());
    }
    table.extend([leaf(0x8000_0007, [0; 4]), leaf(0x8000_0008, [VIRTUAL_BITS << 8 | PHYSICAL_BITS, 0, 0, 0])]);
    Ok(table)
}

/// Leaf 2 says "see leaf 4"; leaf 4 lists the caches (Intel SDM 2A, "CPUID").
fn intel_caches() -> [kvm_cpuid_entry2; 6] {
    /// Ways and partitions (one) less one, with lines of 64 bytes.
    const fn geometry(ways: u32) -> u32 {
        (ways - 1) << 22 | (64 - 1)
    }
    const SELF_INITIALISING: u32 = 1 << 8;
    let cache = |index, kind: u32, level: u32, ways, sets: u32| {
        subleaf(4, index, [SELF_INITIALISING | level << 5 | kind, geometry(ways), sets - 1, 0])
    };
    [
        leaf(2, [0x0000_ff01, 0, 0, 0]),
        cache(0, 1, 1, 8, 64),
        cache(1, 2, 1, 8, 64),
        cache(2, 3, 2, 8, 1024),
        cache(3, 3, 3, 16, 16384),
        subleaf(4, 4, [0; 4]),
    ]
}

/// The same caches in AMD's words (APM 3, E.4.4 and E.4.5).
fn amd_caches() -> [kvm_cpuid_entry2; 2] {
    const FIRST: u32 = 32 << 24 | 8 << 16 | 1 << 8 | 64;
    const SECOND: u32 = 512 << 16 | 6 << 12 | 1 << 8 | 64;
    /// In units of 512 KiB, 16-way.
    const THIRD: u32 = 32 << 18 | 8 << 12 | 1 << 8 | 64;
    [leaf(0x8000_0005, [0, 0, FIRST, FIRST]), leaf(0x8000_0006, [0, 0, SECOND, THIRD])]
}

/// 48 bytes in three leaves.
fn brand(level: CpuLevel) -> [kvm_cpuid_entry2; 3] {
    let name = format!("Lockstep virtual CPU, {}", super::CpuModel::Level(level));
    let mut bytes = [0u8; 48];
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    [0, 1, 2].map(|n| leaf(0x8000_0002 + n, [0, 4, 8, 12].map(|at| word(n as usize * 16 + at))))
}
