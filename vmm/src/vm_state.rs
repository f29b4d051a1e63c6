//! The state of the VM outside its vCPUs: interrupt controllers, timer, clock; and the whole machine's state.
//!
//! Not here: vCPUs' and devices' own state. Guards S5: a restored guest's clock goes on by as much as has really passed, never back.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use kvm_bindings::{
    KVM_CLOCK_HOST_TSC, KVM_CLOCK_REALTIME, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip,
    kvm_pit_state2,
};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};

use crate::{
    PlatformState, VmmError,
    devices::{
        pci::PciRootState,
        serial::SerialConsoleState,
        virtio::{PciState, blk::BlkState, net::NetState, rng::RngState},
    },
    raw,
    vcpu::{
        VcpuState,
        tsc::{self, TscPlan},
    },
};

/// Version of [`MachineState`]: goes up with every change of its content or of a part's.
pub const MACHINE_STATE_VERSION: u32 = 2;

/// Everything about a machine but its memory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MachineState {
    /// [`MACHINE_STATE_VERSION`] of the program that captured it.
    pub version: u32,
    /// Every vCPU, by index.
    pub vcpus: Vec<VcpuState>,
    /// Interrupt controllers, timer, clock.
    pub vm: VmState,
    /// Virtio devices, in the machine's order.
    pub devices: Vec<VirtioState>,
    /// The PCI bus, where the devices are on one.
    pub pci: Option<PciRootState>,
    /// The serial console.
    pub serial: SerialConsoleState,
    /// Events that the guest has not seen, and its identity.
    pub platform: PlatformState,
}

impl MachineState {
    /// Requests to disks that were in flight when this was captured.
    #[must_use]
    pub fn disk_requests(&self) -> usize {
        let of = |device: &VirtioState| if let DeviceState::Blk(disk) = &device.device { disk.in_flight.len() } else { 0 };
        self.devices.iter().map(of).sum()
    }
}

/// A virtio device and the way it meets the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtioState {
    /// The device.
    pub device: DeviceState,
    /// Its transport.
    pub transport: TransportState,
}

/// State of one virtio device, by kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceState {
    /// A network card.
    Net(NetState),
    /// A disk.
    Blk(BlkState),
    /// An entropy source.
    Rng(RngState),
}

/// State of one virtio device's transport, by kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TransportState {
    /// virtio-mmio: all of it is in the device's core.
    Mmio,
    /// virtio-pci: configuration space and MSI-X.
    Pci(PciState),
}

/// State of the VM outside its vCPUs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VmState {
    /// Both 8259s and the IOAPIC.
    pub irqchips: [kvm_irqchip; 3],
    /// The 8254 timer.
    pub pit: kvm_pit_state2,
    /// kvmclock, with the host's wall clock and TSC at the same moment where KVM can tell them.
    pub clock: kvm_clock_data,
    /// The host's wall clock and TSC at the capture, in case KVM could not tell them: nanoseconds since 1970, cycles.
    pub wall_ns: u64,
    /// See `wall_ns`.
    pub host_tsc: u64,
    /// Frequency of the guest's TSC.
    pub tsc_khz: u32,
    /// Frequency of the host's; where it differs, KVM scales.
    pub host_tsc_khz: u32,
}

fn wall_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

impl VmState {
    /// Reads it. The vCPUs are stopped and the devices quiesced.
    pub(crate) fn capture(vm: &VmFd, tsc_khz: u32, host_tsc_khz: u32) -> Result<VmState, VmmError> {
        let pit = vm.get_pit2().map_err(VmmError::kvm("KVM_GET_PIT2"))?;
        let clock = vm.get_clock().map_err(VmmError::kvm("KVM_GET_CLOCK"))?;
        let (wall_ns, host_tsc) = (wall_ns(), raw::host_tsc());
        let mut irqchips = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC]
            .map(|chip_id| kvm_irqchip { chip_id, ..Default::default() });
        for chip in &mut irqchips {
            vm.get_irqchip(chip).map_err(VmmError::kvm("KVM_GET_IRQCHIP"))?;
        }
        Ok(VmState { irqchips, pit, clock, wall_ns, host_tsc, tsc_khz, host_tsc_khz })
    }

    /// Sets the clock forward to what it would read now had the guest never stopped, and works out how the TSCs follow where no host scales them. Before the
    /// vCPUs' state. `arrived` is when the state came to this host.
    pub(crate) fn restore_clock(&self, vm: &VmFd, arrived: Option<Instant>) -> Result<TscPlan, VmmError> {
        let supported = vm.check_extension_int(kvm_ioctls::Cap::AdjustClock).max(0) as u32;
        let wall_then = if self.clock.flags & KVM_CLOCK_REALTIME != 0 { self.clock.realtime } else { self.wall_ns };
        let wall_now = wall_ns();
        let elapsed = tsc::elapsed_ns(wall_then, wall_now, arrived.map(|arrived| arrived.elapsed()));
        let mut clock = kvm_clock_data { clock: self.clock.clock, ..Default::default() };
        if supported & KVM_CLOCK_REALTIME != 0 {
            // KVM adds what passes on this host's wall clock from the given moment until it sets the clock.
            clock.flags = KVM_CLOCK_REALTIME;
            clock.realtime = wall_now.saturating_sub(elapsed);
        } else {
            clock.clock += elapsed;
        }
        vm.set_clock(&clock).map_err(VmmError::kvm("KVM_SET_CLOCK"))?;
        let now = vm.get_clock().map_err(VmmError::kvm("KVM_GET_CLOCK"))?;
        let tsc_now = if now.flags & KVM_CLOCK_HOST_TSC != 0 { now.host_tsc } else { raw::host_tsc() };
        let tsc_then = if self.clock.flags & KVM_CLOCK_HOST_TSC != 0 { self.clock.host_tsc } else { self.host_tsc };
        let elapsed_cycles = tsc::cycles(now.clock.saturating_sub(self.clock.clock), self.tsc_khz);
        Ok(TscPlan { offset_delta: tsc::delta_by_counter(tsc_then, tsc_now, elapsed_cycles), elapsed_cycles })
    }

    /// Sets timer and interrupt controllers. After the vCPUs: an IOAPIC that is set delivers what it holds to the LAPICs.
    pub(crate) fn restore_chips(&self, vm: &VmFd) -> Result<(), VmmError> {
        vm.set_pit2(&self.pit).map_err(VmmError::kvm("KVM_SET_PIT2"))?;
        for chip in &self.irqchips {
            vm.set_irqchip(chip).map_err(VmmError::kvm("KVM_SET_IRQCHIP"))?;
        }
        Ok(())
    }
}
