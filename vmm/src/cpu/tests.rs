//! The models on processors of several generations: tables as KVM lists them there, made of the features that QEMU's models of the same names have.

use types::cpu::names::Register;

use super::*;

const fn word(list: &[u32]) -> u32 {
    let (mut word, mut i) = (0, 0);
    while i < list.len() {
        word |= 1 << list[i];
        i += 1;
    }
    word
}

const INTEL: [u32; 3] = [0x756e_6547, 0x6c65_746e, 0x4965_6e69];
const AMD: [u32; 3] = [0x6874_7541, 0x444d_4163, 0x6974_6e65];

/// A processor with KVM's emulated features.
struct Host {
    vendor: [u32; 3],
    signature: u32,
    leaf1_ecx: u32,
    leaf7_ebx: u32,
    ext1_ecx: u32,
    ext1_edx: u32,
    xcr0: u32,
    xsave: u32,
    physical_bits: u32,
}

const EDX1: u32 = 0x078b_fbff;
const EMULATED: u32 = word(&[21, 24, 31]);
const V2: u32 = word(&[0, 9, 13, 19, 20, 23]);
const EXT1_EDX: u32 = word(&[11, 20, 29]);
const KVM: u32 = 0x0100_7efb;

const NEHALEM: Host = Host {
    vendor: INTEL,
    signature: 0x0001_06a3,
    leaf1_ecx: EMULATED | V2,
    leaf7_ebx: 2,
    ext1_ecx: 1,
    ext1_edx: EXT1_EDX | 1 << 27,
    xcr0: 0,
    xsave: 0,
    physical_bits: 40,
};
const HASWELL: Host = Host {
    leaf1_ecx: EMULATED | V2 | word(&[1, 12, 17, 22, 25, 26, 28, 29, 30]),
    leaf7_ebx: word(&[0, 1, 3, 5, 7, 8, 9, 10]),
    ext1_ecx: word(&[0, 5]),
    xcr0: 7,
    xsave: 1,
    signature: 0x0003_06c4,
    physical_bits: 46,
    ..NEHALEM
};
const SKYLAKE_SERVER: Host = Host {
    leaf7_ebx: word(&[0, 1, 3, 5, 7, 8, 9, 10, 16, 17, 18, 19, 20, 23, 24, 28, 30, 31]),
    xcr0: 0xe7,
    xsave: 0xf,
    signature: 0x0005_0654,
    ..HASWELL
};
const ROME: Host = Host {
    vendor: AMD,
    signature: 0x0083_0f10,
    leaf7_ebx: word(&[0, 1, 3, 5, 7, 8, 18, 19, 20, 23, 24, 29]),
    ext1_ecx: word(&[0, 1, 2, 4, 5, 6, 7, 8, 9, 22]),
    physical_bits: 48,
    xsave: 0xf,
    ..HASWELL
};
/// PVM on Zen: hides what its emulator does not know.
const PVM: Host = Host {
    vendor: AMD,
    signature: 0x00a1_0f11,
    leaf1_ecx: 0x8120_2000,
    leaf7_ebx: 0x0180_0002,
    ext1_ecx: 0x0040_0393,
    ext1_edx: 0x23d3_fbff,
    xcr0: 0xe7,
    xsave: 0,
    physical_bits: 48,
};

fn entry(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..Default::default() }
}

fn listed(host: &Host) -> Vec<kvm_cpuid_entry2> {
    let [b, c, d] = host.vendor;
    vec![
        entry(0, 0, [0x16, b, c, d]),
        entry(1, 0, [host.signature, 0x0800, host.leaf1_ecx, EDX1]),
        entry(6, 0, [4, 0, 0, 0]),
        entry(7, 0, [1, host.leaf7_ebx, 4, 1 << 29]),
        entry(0xb, 0, [0; 4]),
        entry(0xb, 1, [0; 4]),
        entry(0xd, 0, [host.xcr0, 2696, 2696, 0]),
        entry(0xd, 1, [host.xsave, 0, 0, 0]),
        entry(0xd, 2, [256, 576, 0, 0]),
        entry(0x4000_0000, 0, [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d]),
        entry(0x4000_0001, 0, [KVM, 0, 0, 0]),
        entry(0x8000_0000, 0, [0x8000_001f, b, c, d]),
        entry(0x8000_0001, 0, [host.signature, 0, host.ext1_ecx, host.ext1_edx]),
        entry(0x8000_0007, 0, [0, 0, 0, 0x100]),
        entry(0x8000_0008, 0, [48 << 8 | host.physical_bits, 0x1000, 0, 0]),
    ]
}

fn level(level: CpuLevel, host: &Host) -> Result<Vec<kvm_cpuid_entry2>, Vec<String>> {
    table(CpuModel::Level(level), &listed(host))
}

#[test]
fn models_are_read_by_the_names_they_print() {
    for model in CpuModel::ALL {
        assert_eq!(model.name().parse(), Ok(model));
    }
    assert!("x86-64-v4".parse::<CpuModel>().unwrap_err().contains("x86-64-v3"));
}

#[test]
fn each_processor_carries_the_levels_of_its_generation() {
    for (name, host, highest) in [
        ("PVM", &PVM, CpuLevel::V1),
        ("Nehalem", &NEHALEM, CpuLevel::V2),
        ("Haswell", &HASWELL, CpuLevel::V3),
        ("Skylake-Server", &SKYLAKE_SERVER, CpuLevel::V3),
        ("Rome", &ROME, CpuLevel::V3),
    ] {
        for wanted in [CpuLevel::V1, CpuLevel::V2, CpuLevel::V3] {
            assert_eq!(level(wanted, host).is_ok(), wanted <= highest, "{name} {wanted:?}: {:?}", level(wanted, host).err());
        }
    }
}

#[test]
fn what_a_processor_lacks_is_named() {
    assert_eq!(level(CpuLevel::V2, &PVM).unwrap_err(), ["sse3", "ssse3", "sse4.1", "sse4.2", "popcnt"]);
    let missing = level(CpuLevel::V3, &NEHALEM).unwrap_err();
    for name in ["fma", "movbe", "avx", "f16c", "xsave", "avx2", "bmi1", "bmi2", "abm", "xsaveopt", "xcr0-avx"] {
        assert!(missing.iter().any(|m| m == name), "{name}: {missing:?}");
    }
    assert_eq!(level(CpuLevel::V1, &Host { physical_bits: 36, ..NEHALEM }).unwrap_err(), ["39 bits of physical address"]);
    assert!(level(CpuLevel::V1, &Host { vendor: [1, 2, 3], ..NEHALEM }).unwrap_err()[0].contains("vendor"));
}

#[test]
fn every_generation_of_a_vendor_shows_the_same_level_bit_for_bit() {
    let plain = |table: Result<Vec<kvm_cpuid_entry2>, _>| leaves(&table.expect("carried"));
    assert_eq!(plain(level(CpuLevel::V2, &NEHALEM)), plain(level(CpuLevel::V2, &SKYLAKE_SERVER)));
    assert_eq!(plain(level(CpuLevel::V3, &HASWELL)), plain(level(CpuLevel::V3, &SKYLAKE_SERVER)));
    assert_eq!(plain(level(CpuLevel::V1, &PVM)), plain(level(CpuLevel::V1, &ROME)));
    assert_ne!(plain(level(CpuLevel::V3, &HASWELL)), plain(level(CpuLevel::V3, &ROME)), "the vendor shows");
}

#[test]
fn a_level_hides_what_is_above_it() {
    let v2 = leaves(&level(CpuLevel::V2, &SKYLAKE_SERVER).unwrap());
    let of =
        |function, index| v2.iter().find(|leaf| (leaf.function, leaf.index) == (function, index)).map_or([0; 4], |leaf| leaf.registers);
    assert_eq!(of(1, 0)[2], EMULATED | V2, "no AVX, no XSAVE");
    assert_eq!(of(7, 0), [0, 2, 0, 0], "TSC_ADJUST alone");
    assert_eq!(of(0xd, 0), [0; 4], "no extended state");
    assert_eq!(of(0x8000_0007, 0), [0; 4], "no invariant TSC: the frequency may change with the host");

    let v3 = level(CpuLevel::V3, &SKYLAKE_SERVER).unwrap();
    let xcr0 = v3.iter().find(|leaf| (leaf.function, leaf.index) == (0xd, 0)).unwrap();
    assert_eq!((xcr0.eax, xcr0.ebx, xcr0.ecx), (7, 832, 832), "no AVX-512 state");
    assert!(has_xsave(&v3));
}

#[test]
fn a_level_has_its_own_vector_state_and_the_host_all_of_it() {
    let of = |level_| xfeatures(CpuModel::Level(level_), &level(level_, &SKYLAKE_SERVER).unwrap());
    assert_eq!((of(CpuLevel::V2), of(CpuLevel::V3)), (Some(0b11), Some(0b111)));
    assert_eq!(xfeatures(CpuModel::Host, &listed(&SKYLAKE_SERVER)), None);
}

#[test]
fn a_level_contains_its_lower_ones() {
    let cpu = |level_: CpuLevel| GuestCpu { leaves: leaves(&level(level_, &ROME).unwrap()), ..GuestCpu::default() };
    assert!(cpu(CpuLevel::V3).lacks(&cpu(CpuLevel::V2)).is_empty());
    assert!(cpu(CpuLevel::V2).lacks(&cpu(CpuLevel::V1)).is_empty());
    assert!(cpu(CpuLevel::V1).lacks(&cpu(CpuLevel::V2)).contains(&"popcnt".to_owned()));
}

#[test]
fn vcpus_differ_in_their_topology_alone() {
    for host in [&HASWELL, &ROME] {
        let table = level(CpuLevel::V3, host).unwrap();
        let (first, last) = (for_vcpu(&table, 0, 4), for_vcpu(&table, 3, 4));
        for (one, other) in first.iter().zip(&last) {
            let topology = [1, 0xb, 0x1f, 0x8000_001e].contains(&one.function);
            assert!(topology || one == other, "leaf {:#x}.{}", one.function, one.index);
        }
        let leaf1 = last.iter().find(|leaf| leaf.function == 1).unwrap();
        assert_eq!((leaf1.ebx >> 24, leaf1.ebx >> 16 & 0xff, leaf1.edx >> 28 & 1), (3, 4, 1));
    }
}

#[test]
fn a_baseline_carries_registers_that_do_not_depend_on_the_host() {
    let model = CpuModel::Level(CpuLevel::V2);
    // SPEC_CTRL, XFD, VM_HSAVE_PA and a performance counter belong to features that it hides.
    for index in [0x48, 0x1c4, 0xc001_0117, 0xc1] {
        assert!(!carried(model, index) && carried(CpuModel::Host, index), "{index:#x}");
    }
    for index in candidates(&[]).into_iter().chain([0x10, 0x3b, 0x277, 0x6e0, 0xc000_0102, 0x4b56_4d01]) {
        assert!(carried(model, index), "{index:#x}");
    }
}

#[test]
fn the_machine_here_lists_its_models_and_names_what_it_lacks() {
    let Ok(kvm) = crate::open_kvm() else { return };
    let support = support(&kvm).unwrap();
    assert_eq!(support[0], (CpuModel::Host, Vec::new()));
    // A weaker level lacks nothing that a stronger one has.
    for pair in support[1..].windows(2) {
        assert!(pair[1].1.iter().all(|name| pair[0].1.contains(name)), "{pair:?}");
    }
}

#[test]
fn a_feature_word_of_a_level_has_a_name_for_every_bit() {
    for (model, missing) in CpuModel::ALL.map(|model| (model, table(model, &[]).err().unwrap_or_default())) {
        assert!(missing.iter().all(|name| !name.starts_with("bit ")), "{model}: {missing:?}");
        assert_eq!(missing.is_empty(), model == CpuModel::Host);
    }
    assert_eq!(types::cpu::names::feature_name(1, 0, Register::Ecx, 23), "popcnt");
}
