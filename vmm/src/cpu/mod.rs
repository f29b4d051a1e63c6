//! The processor that the guest sees: which model, what KVM has to offer for it, and how each vCPU differs from the next.
//!
//! Lives here: the models by name and the step from a model to the CPUID of a vCPU. Beside it: the baselines' contents ([`baseline`]), the topology
//! ([`topology`]). Not here: the comparison of two hosts (`types::cpu`). Nested virtualisation is masked in every model: its state would cost every
//! capture a call and no guest of ours needs it. Guards S5: what the guest has seen is what a standby is asked for.

mod baseline;
mod msrs;
mod topology;

use std::fmt;
use std::str::FromStr;

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, Msrs, kvm_cpuid_entry2, kvm_msr_entry};
use kvm_ioctls::{Cap, Kvm};
use types::cpu::{CpuLeaf, GuestCpu};

use crate::VmmError;
pub(crate) use msrs::{candidates, carried};
pub(crate) use topology::for_vcpu;

const LEAF1_ECX_VMX: u32 = 1 << 5;
const LEAF1_ECX_X2APIC: u32 = 1 << 21;
const LEAF1_ECX_TSC_DEADLINE: u32 = 1 << 24;
const LEAF1_ECX_XSAVE: u32 = 1 << 26;
const LEAF1_ECX_HYPERVISOR: u32 = 1 << 31;
const LEAF7_EDX_ARCH_CAPABILITIES: u32 = 1 << 29;
const EXT1_ECX_SVM: u32 = 1 << 2;

const MSR_IA32_ARCH_CAPABILITIES: u32 = 0x10a;

/// What the guest sees of the processor. Part of the machine's shape: both hosts must use the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CpuModel {
    /// Everything that this host's KVM offers, but nested virtualisation. Both hosts need the same processor and equal kernels.
    #[default]
    Host,
    /// A level of the x86-64 psABI and nothing else that depends on the host, so that processors of different generations (of one vendor) look the same.
    Level(CpuLevel),
}

/// A level of the x86-64 psABI (<https://gitlab.com/x86-psABIs/x86-64-ABI>, "Low Level System Information").
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CpuLevel {
    /// What every x86-64 processor has.
    V1,
    /// With SSE4.2, POPCNT and CMPXCHG16B: Nehalem, Bulldozer and later.
    V2,
    /// With AVX2, BMI2, FMA and XSAVE: Haswell, Excavator and later.
    V3,
}

impl CpuModel {
    /// Every model, weakest last.
    pub const ALL: [CpuModel; 4] =
        [CpuModel::Host, CpuModel::Level(CpuLevel::V3), CpuModel::Level(CpuLevel::V2), CpuModel::Level(CpuLevel::V1)];

    /// The name as it is written on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            CpuModel::Host => "host",
            CpuModel::Level(CpuLevel::V1) => "x86-64-v1",
            CpuModel::Level(CpuLevel::V2) => "x86-64-v2",
            CpuModel::Level(CpuLevel::V3) => "x86-64-v3",
        }
    }
}

impl fmt::Display for CpuModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for CpuModel {
    type Err = String;

    fn from_str(text: &str) -> Result<CpuModel, String> {
        let known = CpuModel::ALL.map(CpuModel::name).join(", ");
        CpuModel::ALL.into_iter().find(|model| model.name() == text).ok_or_else(|| format!("{text:?} is none of the CPU models {known}"))
    }
}

/// What this host's KVM can show a guest, with what it emulates on any processor.
pub(crate) fn supported(kvm: &Kvm) -> Result<Vec<kvm_cpuid_entry2>, VmmError> {
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(VmmError::kvm("KVM_GET_SUPPORTED_CPUID"))?;
    let deadline = kvm.check_extension(Cap::TscDeadlineTimer);
    let mut entries = cpuid.as_slice().to_vec();
    for entry in &mut entries {
        match entry.function {
            1 => {
                // KVM emulates the x2APIC and the deadline timer; it lists the latter only through its capability.
                entry.ecx = (entry.ecx & !LEAF1_ECX_VMX) | LEAF1_ECX_X2APIC | LEAF1_ECX_HYPERVISOR;
                if deadline {
                    entry.ecx |= LEAF1_ECX_TSC_DEADLINE;
                }
            }
            0x8000_0001 => entry.ecx &= !EXT1_ECX_SVM,
            _ => {}
        }
    }
    Ok(entries)
}

/// The CPUID that `model` shows on a host that supports `supported`, before each vCPU's own topology.
///
/// # Errors
/// The names of what the host lacks.
pub(crate) fn table(model: CpuModel, supported: &[kvm_cpuid_entry2]) -> Result<Vec<kvm_cpuid_entry2>, Vec<String>> {
    match model {
        CpuModel::Host => Ok(supported.to_vec()),
        CpuModel::Level(level) => baseline::table(level, supported),
    }
}

/// Which models this host can carry, each with the names of what it lacks.
///
/// # Errors
/// KVM cannot be asked.
pub fn support(kvm: &Kvm) -> Result<Vec<(CpuModel, Vec<String>)>, VmmError> {
    let supported = supported(kvm)?;
    Ok(CpuModel::ALL.into_iter().map(|model| (model, table(model, &supported).err().unwrap_or_default())).collect())
}

/// Whether the guest's CPU has XSAVE.
pub(crate) fn has_xsave(cpuid: &[kvm_cpuid_entry2]) -> bool {
    cpuid.iter().any(|entry| entry.function == 1 && entry.ecx & LEAF1_ECX_XSAVE != 0)
}

/// The parts of the XSAVE area that `model` has; `None`: whatever the host has.
pub(crate) fn xfeatures(model: CpuModel, cpuid: &[kvm_cpuid_entry2]) -> Option<u64> {
    /// x87 and SSE, which FXSAVE covers too.
    const LEGACY: u64 = 0b11;
    match model {
        CpuModel::Host => None,
        CpuModel::Level(_) => {
            let state = cpuid.iter().find(|entry| (entry.function, entry.index) == (0xd, 0));
            Some(state.map_or(0, |entry| u64::from(entry.eax) | u64::from(entry.edx) << 32) | LEGACY)
        }
    }
}

/// Bytes of guest-physical addresses that the guest's CPU can form; guest memory must end below.
pub(crate) fn address_space(cpuid: &[kvm_cpuid_entry2]) -> u64 {
    let bits = cpuid.iter().find(|entry| entry.function == 0x8000_0008).map_or(36, |entry| entry.eax & 0xff);
    1 << bits.clamp(32, 52)
}

/// The first vCPU's CPUID as plain data, for the comparison of hosts; all-zero leaves say nothing.
pub(crate) fn leaves(cpuid: &[kvm_cpuid_entry2]) -> Vec<CpuLeaf> {
    let leaf = |entry: &kvm_cpuid_entry2| CpuLeaf {
        function: entry.function,
        index: entry.index,
        registers: [entry.eax, entry.ebx, entry.ecx, entry.edx],
    };
    cpuid.iter().map(leaf).filter(|leaf| leaf.registers != [0; 4]).collect()
}

/// What a machine with this CPUID asks of a host that is to stand in for it.
pub(crate) fn describe(kvm: &Kvm, model: CpuModel, cpuid: &[kvm_cpuid_entry2], msrs: &[u32], tsc_khz: u32) -> GuestCpu {
    let readable = cpuid.iter().any(|entry| (entry.function, entry.index) == (7, 0) && entry.edx & LEAF7_EDX_ARCH_CAPABILITIES != 0);
    GuestCpu {
        model: model.name().to_owned(),
        leaves: leaves(cpuid),
        msrs: msrs.to_vec(),
        arch_capabilities: if readable { feature_msr(kvm, MSR_IA32_ARCH_CAPABILITIES) } else { 0 },
        tsc_khz,
        tsc_scaling: kvm.check_extension(Cap::TscControl),
    }
}

/// The value that KVM gives a feature MSR in a new vCPU; 0 where it knows none.
fn feature_msr(kvm: &Kvm, index: u32) -> u64 {
    let Ok(mut msr) = Msrs::from_entries(&[kvm_msr_entry { index, ..Default::default() }]) else { return 0 };
    match kvm.get_msrs(&mut msr) {
        Ok(1) => msr.as_slice()[0].data,
        _ => 0,
    }
}

#[cfg(test)]
mod tests;
