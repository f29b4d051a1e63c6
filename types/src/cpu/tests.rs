//! What [`super`] says about two processors.

use super::*;

const AVX: u32 = 1 << 28;
const SSE42: u32 = 1 << 20;

fn cpu(model: &str, leaf1_ecx: u32) -> GuestCpu {
    let vendor = CpuLeaf { function: 0, index: 0, registers: [0xd, 0x756e_6547, 0x6c65_746e, 0x4965_6e69] };
    let features = CpuLeaf { function: 1, index: 0, registers: [0x0005_0654, 0, leaf1_ecx, 0x078b_fbff] };
    let sizes = CpuLeaf { function: 0xd, index: 2, registers: [256, 576, 0, 0] };
    GuestCpu {
        model: model.to_owned(),
        leaves: vec![vendor, features, sizes],
        msrs: vec![0x10, 0x174],
        arch_capabilities: 0,
        tsc_khz: 2_600_000,
        tsc_scaling: false,
    }
}

#[test]
fn an_equal_processor_stands_in() {
    assert_eq!(cpu("host", AVX).objection(&cpu("host", AVX)), None);
}

#[test]
fn the_vendor_and_the_signature_are_those_of_the_leaves() {
    assert_eq!(cpu("host", 0).vendor(), "GenuineIntel");
    assert_eq!(cpu("host", 0).signature(), (6, 85, 4));
}

#[test]
fn missing_features_are_named() {
    let objection = cpu("host", SSE42).objection(&cpu("host", SSE42 | AVX)).unwrap();
    assert!(objection.contains("lacks avx;") && objection.contains("--cpu x86-64-v3"), "{objection}");
}

#[test]
fn features_that_only_this_host_has_are_named_too() {
    let objection = cpu("host", AVX).objection(&cpu("host", 0)).unwrap();
    assert!(objection.contains("only the CPU here has avx"), "{objection}");
}

#[test]
fn of_two_models_only_the_names_and_what_is_missing_are_told() {
    let mut theirs = cpu("x86-64-v3", AVX);
    theirs.leaves[1].registers[0] = 0xf61;

    let objection = cpu("host", SSE42).objection(&theirs).unwrap();

    assert_eq!(objection, "the CPU model is host here and x86-64-v3 at the peer: give both nodes the same --cpu; the CPU here lacks avx");
}

#[test]
fn every_other_difference_is_told_where_it_is() {
    type Change = fn(&mut GuestCpu);
    let changes: [(Change, &str); 5] = [
        (|cpu| cpu.leaves[0].registers = [0xd, 0x6874_7541, 0x444d_4163, 0x6974_6e65], "GenuineIntel here and AuthenticAMD"),
        (|cpu| cpu.leaves[1].registers[0] = 0x0009_06ea, "model 85 stepping 4 here and family 6 model 158 stepping 10"),
        (|cpu| cpu.leaves[2].registers[1] = 600, "leaf 0xd.2"),
        (|cpu| cpu.msrs.push(0x48), "registers 0x48"),
        (|cpu| cpu.arch_capabilities = 1, "0x0 here and 0x1 at the peer"),
    ];
    for (change, words) in changes {
        let mut theirs = cpu("host", AVX);
        change(&mut theirs);
        let objection = cpu("host", AVX).objection(&theirs).unwrap();
        assert!(objection.contains(words), "{objection}");
    }
}

#[test]
fn more_registers_here_than_there_do_no_harm() {
    let mut here = cpu("x86-64-v2", SSE42);
    here.msrs.push(0x48);
    assert_eq!(here.objection(&cpu("x86-64-v2", SSE42)), None);
}

#[test]
fn another_tsc_frequency_is_refused_with_both_numbers_unless_it_can_be_scaled() {
    let mut theirs = cpu("host", AVX);
    theirs.tsc_khz = 2_600_000 + 650;
    assert_eq!(cpu("host", AVX).objection(&theirs), None, "250 ppm are an error of measurement");

    theirs.tsc_khz += 1;
    let objection = cpu("host", AVX).objection(&theirs).unwrap();
    assert!(objection.contains("2600000 kHz here and 2600651 kHz"), "{objection}");

    let scales = GuestCpu { tsc_scaling: true, ..cpu("host", AVX) };
    assert_eq!(scales.objection(&theirs), None);
}

#[test]
fn a_hostile_peer_gets_a_short_answer() {
    let leaf = |function| CpuLeaf { function, index: 0, registers: [u32::MAX; 4] };
    let theirs = GuestCpu { model: "\x1b[2J".repeat(1000), leaves: (0..LEAVES_MAX as u32).map(leaf).collect(), ..cpu("", 0) };

    let objection = cpu("host", 0).objection(&theirs).unwrap();

    assert!(objection.len() < 4096 && !objection.contains('\x1b') && objection.contains(" more"), "{}", objection.len());
}

#[test]
fn a_processor_that_cannot_be_is_not_even_compared() {
    let theirs = GuestCpu { leaves: vec![CpuLeaf::default(); LEAVES_MAX + 1], ..cpu("host", 0) };
    assert!(cpu("host", 0).objection(&theirs).unwrap().contains("which cannot be"));
}
