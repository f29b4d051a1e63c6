//! What a guest sees of the processor, as plain data, and whether another host can stand in for it.
//!
//! Lives here: the words of CPUID that a guest was given, with what else of the processor a machine's state depends on, and the comparison of two of
//! them in words for an operator. The names of features are in [`names`]. Not here: KVM, and which model gives which words (`vmm`). Guards S5: a guest
//! never wakes up on a processor that lacks what it has seen.

pub mod names;

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use names::{Register, feature_name, is_feature_word};

/// Difference between two hosts' TSC frequencies that is put down to measurement: what NTP, and so Linux, corrects (QEMU uses the same).
pub const TSC_TOLERANCE_PPM: u64 = 250;

/// Most features named in one refusal: it is read by a person, and travels in one control message.
const NAMED_MAX: usize = 48;

/// Most leaves, and most registers, that a peer's processor may have: KVM itself knows at most 256 leaves, and comparing takes their square.
const LEAVES_MAX: usize = 512;

/// One leaf of CPUID as the guest sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuLeaf {
    /// What the guest puts into EAX.
    pub function: u32,
    /// What it puts into ECX, for leaves that look at it; else 0.
    pub index: u32,
    /// EAX, EBX, ECX and EDX of the answer.
    pub registers: [u32; 4],
}

/// The processor of one machine: what its guest sees, and what its host can do about differences.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestCpu {
    /// Name of the CPU model: `host`, `x86-64-v2`, ...
    pub model: String,
    /// What CPUID answers on the first vCPU, without leaves that are all zero.
    pub leaves: Vec<CpuLeaf>,
    /// Model-specific registers in the machine's state.
    pub msrs: Vec<u32>,
    /// IA32_ARCH_CAPABILITIES, where the guest can read it; else 0.
    pub arch_capabilities: u64,
    /// Frequency of the guest's TSC; 0 where KVM cannot tell.
    pub tsc_khz: u32,
    /// The host can run a guest's TSC at another frequency than its own (KVM_CAP_TSC_CONTROL).
    pub tsc_scaling: bool,
}

/// Whether a TSC of `theirs` kHz is, but for errors of measurement, one of `ours` kHz. An unknown frequency (0) is like any other.
#[must_use]
pub fn same_tsc_frequency(ours: u32, theirs: u32) -> bool {
    ours == 0 || theirs == 0 || u64::from(ours.abs_diff(theirs)) * 1_000_000 <= u64::from(ours) * TSC_TOLERANCE_PPM
}

impl GuestCpu {
    fn leaf(&self, function: u32, index: u32) -> [u32; 4] {
        let found = self.leaves.iter().find(|leaf| (leaf.function, leaf.index) == (function, index));
        found.map_or([0; 4], |leaf| leaf.registers)
    }

    /// The vendor's twelve letters.
    #[must_use]
    pub fn vendor(&self) -> String {
        let [_, b, c, d] = self.leaf(0, 0);
        let bytes = [b, d, c].map(u32::to_le_bytes).concat();
        bytes.iter().map(|byte| if byte.is_ascii_graphic() { char::from(*byte) } else { '?' }).collect()
    }

    /// Family, model and stepping (CPUID leaf 1, EAX; Intel SDM 2A, "CPUID").
    #[must_use]
    pub fn signature(&self) -> (u32, u32, u32) {
        let eax = self.leaf(1, 0)[0];
        let (family, model) = (eax >> 8 & 0xf, eax >> 4 & 0xf);
        let extended = if family == 0xf || family == 6 { eax >> 12 & 0xf0 } else { 0 };
        (if family == 0xf { family + (eax >> 20 & 0xff) } else { family }, model | extended, eax & 0xf)
    }

    /// The features that `theirs` has and this one lacks, by name, in the order of their leaves.
    #[must_use]
    pub fn lacks(&self, theirs: &GuestCpu) -> Vec<String> {
        let mut missing = Vec::new();
        for leaf in &theirs.leaves {
            let ours = self.leaf(leaf.function, leaf.index);
            for (slot, register) in Register::ALL.into_iter().enumerate() {
                if is_feature_word(leaf.function, leaf.index, register) {
                    let bits = leaf.registers[slot] & !ours[slot];
                    let named = (0..32).filter(|bit| bits >> bit & 1 != 0);
                    missing.extend(named.map(|bit| feature_name(leaf.function, leaf.index, register, bit)));
                }
            }
        }
        missing
    }

    /// Why this host's machine cannot stand in for `theirs` (the primary's), in words; `None` when it can.
    #[must_use]
    pub fn objection(&self, theirs: &GuestCpu) -> Option<String> {
        if theirs.leaves.len() > LEAVES_MAX || theirs.msrs.len() > LEAVES_MAX {
            return Some(format!(
                "the peer describes a CPU of {} leaves and {} registers, which cannot be",
                theirs.leaves.len(),
                theirs.msrs.len()
            ));
        }
        let mut found = Vec::new();
        let missing = self.lacks(theirs);
        if self.model != theirs.model {
            let (ours, theirs) = (&self.model, clean(&theirs.model));
            found.push(format!("the CPU model is {ours} here and {theirs} at the peer: give both nodes the same --cpu"));
        }
        if !missing.is_empty() {
            found.push(format!("the CPU here lacks {}", list(&missing)));
        }
        // Of two different models everything else differs too, and says nothing.
        if self.model == theirs.model {
            self.differences(theirs, &mut found);
            if !found.is_empty() && self.model == "host" {
                found.push("processors that differ can protect each other with --cpu x86-64-v3 or x86-64-v2 at both nodes".to_owned());
            }
        }
        if !same_tsc_frequency(self.tsc_khz, theirs.tsc_khz) && !self.tsc_scaling {
            found.push(format!(
                "the TSC runs at {} kHz here and {} kHz at the peer, and this processor cannot scale it (KVM_CAP_TSC_CONTROL)",
                self.tsc_khz, theirs.tsc_khz
            ));
        }
        (!found.is_empty()).then(|| found.join("; "))
    }

    fn differences(&self, theirs: &GuestCpu, found: &mut Vec<String>) {
        let extra = theirs.lacks(self);
        if !extra.is_empty() {
            found.push(format!("only the CPU here has {}", list(&extra)));
        }
        if self.vendor() != theirs.vendor() {
            found.push(format!("the CPU's vendor is {} here and {} at the peer", self.vendor(), theirs.vendor()));
        }
        if self.signature() != theirs.signature() {
            let name = |(family, model, stepping)| format!("family {family} model {model} stepping {stepping}");
            found.push(format!("the CPU is {} here and {} at the peer", name(self.signature()), name(theirs.signature())));
        }
        let leaves = self.different_leaves(theirs);
        if !leaves.is_empty() {
            found.push(format!("CPUID differs in {}", list(&leaves)));
        }
        let msrs: Vec<String> = theirs.msrs.iter().filter(|msr| !self.msrs.contains(msr)).map(|msr| format!("{msr:#x}")).collect();
        if !msrs.is_empty() {
            found.push(format!("the KVM here cannot carry the machine-specific registers {}; use equal kernels", list(&msrs)));
        }
        if self.arch_capabilities != theirs.arch_capabilities {
            found.push(format!(
                "IA32_ARCH_CAPABILITIES is {:#x} here and {:#x} at the peer (microcode or kernel differ)",
                self.arch_capabilities, theirs.arch_capabilities
            ));
        }
    }

    /// Leaves that differ in something that is neither a feature, nor the vendor, nor the signature.
    fn different_leaves(&self, theirs: &GuestCpu) -> Vec<String> {
        let mut keys: Vec<(u32, u32)> = self.leaves.iter().chain(&theirs.leaves).map(|leaf| (leaf.function, leaf.index)).collect();
        keys.sort_unstable();
        keys.dedup();
        let differs = |&(function, index): &(u32, u32)| {
            let (ours, theirs) = (self.leaf(function, index), theirs.leaf(function, index));
            Register::ALL.into_iter().enumerate().any(|(slot, register)| {
                let told = is_feature_word(function, index, register)
                    || (function == 0 && register != Register::Eax)
                    || (function == 1 && register == Register::Eax)
                    // AMD repeats vendor and signature in its own range.
                    || (function == 0x8000_0000 && register != Register::Eax)
                    || (function == 0x8000_0001 && register == Register::Eax);
                !told && ours[slot] != theirs[slot]
            })
        };
        keys.iter().filter(|key| differs(key)).map(|(function, index)| format!("leaf {function:#x}.{index}")).collect()
    }
}

/// A peer's name for something, safe to print.
fn clean(text: &str) -> String {
    text.chars().take(32).flat_map(char::escape_debug).collect()
}

fn list(names: &[String]) -> String {
    let mut text = names.iter().take(NAMED_MAX).map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > NAMED_MAX {
        // Writing to a String cannot fail.
        let _ = write!(text, " and {} more", names.len() - NAMED_MAX);
    }
    text
}

#[cfg(test)]
#[path = "cpu/tests.rs"]
mod tests;
