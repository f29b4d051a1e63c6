//! What differs from vCPU to vCPU: one package of single-threaded cores, APIC id = index.
//!
//! Pure. Not here: features.

use kvm_bindings::kvm_cpuid_entry2;

const LEAF1_EDX_HTT: u32 = 1 << 28;
const EXT1_ECX_CMP_LEGACY: u32 = 1 << 1;
/// "AMD" in the register that ends the vendor's name ("cAMD"), and "uine" of Hygon's: both count cores in AMD's way.
const AMD_ECX: u32 = 0x444d_4163;
const HYGON_ECX: u32 = 0x656e_6975;

/// The CPUID of vCPU `index` out of `vcpus`.
pub(crate) fn for_vcpu(table: &[kvm_cpuid_entry2], index: u8, vcpus: u8) -> Vec<kvm_cpuid_entry2> {
    let mut cpuid = table.to_vec();
    let id_bits = u32::from(vcpus).next_power_of_two().trailing_zeros();
    let amd = table.iter().any(|entry| entry.function == 0 && [AMD_ECX, HYGON_ECX].contains(&entry.ecx));
    for entry in &mut cpuid {
        match entry.function {
            1 => {
                entry.ebx = (entry.ebx & 0x0000_ffff) | u32::from(index) << 24 | u32::from(vcpus) << 16;
                entry.edx = if vcpus > 1 { entry.edx | LEAF1_EDX_HTT } else { entry.edx & !LEAF1_EDX_HTT };
            }
            // Deterministic cache parameters: private below the last level, cores per package in the upper bits.
            4 if entry.eax & 0x1f != 0 => {
                let shared = if (entry.eax >> 5) & 7 == 3 { u32::from(vcpus) - 1 } else { 0 };
                entry.eax = (entry.eax & 0x3fff) | (shared & 0xfff) << 14 | ((1 << id_bits) - 1) << 26;
            }
            // Extended topology: level 0 threads (one per core), level 1 cores.
            0xb | 0x1f => {
                entry.edx = u32::from(index);
                (entry.eax, entry.ebx, entry.ecx) = match entry.index {
                    0 => (0, 1, 0x100),
                    1 => (id_bits, u32::from(vcpus), 0x201),
                    level => (0, 0, level),
                };
            }
            // HTT counts cores, not threads.
            0x8000_0001 if amd && vcpus > 1 => entry.ecx |= EXT1_ECX_CMP_LEGACY,
            0x8000_0001 if amd => entry.ecx &= !EXT1_ECX_CMP_LEGACY,
            0x8000_0008 => entry.ecx = (entry.ecx & !0xf0ff) | id_bits << 12 | (u32::from(vcpus) - 1),
            // The same for AMD's caches: the third level is shared.
            0x8000_001d if entry.eax & 0x1f != 0 => {
                let shared = if (entry.eax >> 5) & 7 == 3 { u32::from(vcpus) - 1 } else { 0 };
                entry.eax = (entry.eax & 0x3fff) | (shared & 0xfff) << 14;
            }
            0x8000_001e => {
                entry.eax = u32::from(index);
                entry.ebx = u32::from(index);
                entry.ecx = 0;
            }
            _ => {}
        }
    }
    cpuid
}
