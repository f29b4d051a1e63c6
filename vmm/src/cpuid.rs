//! The CPU that the guest sees: what KVM supports here, with the machine's topology, and without what a checkpoint could not carry.
//!
//! Nested virtualisation is masked: its state would cost every capture a call and no guest of ours needs it. Guards S5.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, Kvm};

use crate::VmmError;

const LEAF1_ECX_VMX: u32 = 1 << 5;
const LEAF1_ECX_X2APIC: u32 = 1 << 21;
const LEAF1_ECX_TSC_DEADLINE: u32 = 1 << 24;
const LEAF1_ECX_XSAVE: u32 = 1 << 26;
const LEAF1_ECX_HYPERVISOR: u32 = 1 << 31;
const LEAF1_EDX_HTT: u32 = 1 << 28;
const EXT1_ECX_SVM: u32 = 1 << 2;

/// What KVM supports, once per machine.
pub(crate) fn supported(kvm: &Kvm) -> Result<CpuId, VmmError> {
    kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(VmmError::kvm("KVM_GET_SUPPORTED_CPUID"))
}

/// The CPUID of vCPU `index` out of `vcpus`: one package of single-threaded cores, APIC id = index.
pub(crate) fn for_vcpu(kvm: &Kvm, supported: &CpuId, index: u8, vcpus: u8) -> CpuId {
    let mut cpuid = supported.clone();
    let id_bits = u32::from(vcpus).next_power_of_two().trailing_zeros();
    let deadline = kvm.check_extension(Cap::TscDeadlineTimer);
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            1 => {
                entry.ebx = (entry.ebx & 0x0000_ffff) | u32::from(index) << 24 | u32::from(vcpus) << 16;
                entry.ecx = (entry.ecx & !LEAF1_ECX_VMX) | LEAF1_ECX_X2APIC | LEAF1_ECX_HYPERVISOR;
                if deadline {
                    entry.ecx |= LEAF1_ECX_TSC_DEADLINE;
                }
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
            0x8000_0001 => entry.ecx &= !EXT1_ECX_SVM,
            0x8000_0008 => entry.ecx = (entry.ecx & !0xf0ff) | id_bits << 12 | (u32::from(vcpus) - 1),
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

/// Whether the guest's CPU has XSAVE.
pub(crate) fn has_xsave(cpuid: &CpuId) -> bool {
    cpuid.as_slice().iter().any(|entry| entry.function == 1 && entry.ecx & LEAF1_ECX_XSAVE != 0)
}

/// A digest of the CPU that the guest sees: primary and standby must agree on it, or a restored guest could meet an instruction that is not there.
pub(crate) fn fingerprint(cpuid: &CpuId) -> u64 {
    // FNV-1a: this is a comparison of honest values, not a defence.
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for entry in cpuid.as_slice() {
        for word in [entry.function, entry.index, entry.eax, entry.ebx, entry.ecx, entry.edx] {
            for byte in word.to_le_bytes() {
                hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            }
        }
    }
    hash
}
