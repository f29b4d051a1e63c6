//! What two nodes must agree on before one can stand by for the other.
//!
//! Lives here: the guest's shape, and how its differences are told to an operator. Not here: the making of it (`vmm` knows the CPU). Guards S5: a
//! state is only ever restored into a machine of the same shape.

use serde::{Deserialize, Serialize};
use types::cpu::GuestCpu;

/// The guest's shape.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestShape {
    /// Guest memory, bytes.
    pub memory_bytes: u64,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// MAC address of each network port, in order.
    pub nets: Vec<[u8; 6]>,
    /// How its virtio devices are attached.
    pub bus: GuestBus,
    /// Whether it has a source of random numbers.
    pub rng: bool,
    /// What the guest sees of the CPU.
    pub cpu: GuestCpu,
}

/// How a guest's virtio devices are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GuestBus {
    /// virtio-mmio.
    Mmio,
    /// virtio-pci.
    Pci,
}

impl std::fmt::Display for GuestBus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            GuestBus::Mmio => "mmio",
            GuestBus::Pci => "pci",
        })
    }
}

impl GuestShape {
    /// Why a machine of this shape (the standby's) cannot stand in for one of `other` (the primary's), in words; `None` when it can.
    #[must_use]
    pub fn mismatch(&self, other: &GuestShape) -> Option<String> {
        let mut found = Vec::new();
        if self.memory_bytes != other.memory_bytes {
            found.push(format!("memory is {} here and {} at the peer", mib(self.memory_bytes), mib(other.memory_bytes)));
        }
        if self.vcpus != other.vcpus {
            found.push(format!("vCPUs: {} here and {} at the peer", self.vcpus, other.vcpus));
        }
        if self.nets.len() != other.nets.len() {
            found.push(format!("network ports: {} here and {} at the peer", self.nets.len(), other.nets.len()));
        }
        for (port, (ours, theirs)) in self.nets.iter().zip(&other.nets).enumerate() {
            if ours != theirs {
                found.push(format!("network port {port} has MAC {} here and {} at the peer", mac(ours), mac(theirs)));
            }
        }
        if self.bus != other.bus {
            found.push(format!("virtio devices are on {} here and on {} at the peer (--bus)", self.bus, other.bus));
        }
        if self.rng != other.rng {
            let there = |rng| if rng { "one" } else { "none" };
            found.push(format!("a source of random numbers: {} here and {} at the peer (--rng)", there(self.rng), there(other.rng)));
        }
        found.extend(self.cpu.objection(&other.cpu));
        if found.is_empty() { None } else { Some(found.join("; ")) }
    }
}

fn mib(bytes: u64) -> String {
    const MIB: u64 = 1 << 20;
    if bytes.is_multiple_of(MIB) { format!("{} MiB", bytes / MIB) } else { format!("{bytes} bytes") }
}

fn mac(bytes: &[u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}
