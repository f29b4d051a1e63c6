//! Putting a machine together: the VM, its memory slots, interrupt chips, devices, vCPUs and their threads.
//!
//! Lives here: the order in which KVM wants these. Not here: what is done with a machine afterwards. Every machine is made the same way, primary or
//! standby: that is what makes a captured state fit (S5).

use std::{
    os::fd::AsRawFd,
    sync::{Arc, Mutex, atomic::AtomicU32},
    thread::{self, JoinHandle},
};

use crossbeam::channel::{Sender, bounded};
use dirty_tracking::Layout;
use kvm_bindings::{
    CpuId, KVM_CAP_SREGS2, KVM_CAP_XSAVE2, KVM_PIT_SPEAKER_DUMMY, KVM_SYNC_X86_VALID_FIELDS, kvm_cpuid_entry2, kvm_pit_config,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use types::block::DiskIndex;

use crate::{
    CpuModel, GuestMemory, MAX_DISKS, MAX_NETS, MAX_VCPUS, MachineConfig, MachineEvent, Sinks, VmmError,
    acpi::{self, events::Platform},
    attach::{Attached, Slots},
    cpu,
    devices::{
        DeviceError,
        serial::{SERIAL_GSI, SERIAL_PORT, SERIAL_PORTS, SerialConsole},
        tap::{Tap, TapOptions, TapWriter},
        virtio::{
            blk::BlkDevice,
            net::{NetConfig as CardConfig, NetDevice},
            rng::{HostEntropy, RngDevice},
        },
        worker::{DeviceWorker, Quiesced},
    },
    interrupts::GsiRouter,
    layout::KVM_PAGES,
    machine::{Control, Machine, Net, Phase},
    memory, raw,
    vcpu::{
        seat::{Seat, Waiter},
        state::StateKit,
        thread::{Buses, Vcpu},
    },
};

/// One page for VT-x's identity map, and three for its real mode, just below 4 GiB where no memory lies.
const IDENTITY_MAP_ADDRESS: u64 = KVM_PAGES.start;
const TSS_ADDRESS: usize = KVM_PAGES.start as usize + types::PAGE_SIZE;

/// Events that may wait to be read: each parks its vCPU, so more than this cannot be outstanding.
const EVENTS_MAX: usize = 2 * MAX_VCPUS as usize;

/// What the machine cannot do without.
const NEEDED: [(Cap, &str); 9] = [
    (Cap::Irqchip, "in-kernel interrupt chips (KVM_CAP_IRQCHIP)"),
    (Cap::UserMemory, "user memory slots (KVM_CAP_USER_MEMORY)"),
    (Cap::Ioeventfd, "ioeventfd (KVM_CAP_IOEVENTFD)"),
    (Cap::Irqfd, "irqfd (KVM_CAP_IRQFD)"),
    (Cap::IrqRouting, "interrupt routing (KVM_CAP_IRQ_ROUTING)"),
    (Cap::ImmediateExit, "immediate exit (KVM_CAP_IMMEDIATE_EXIT)"),
    (Cap::AdjustClock, "an adjustable clock (KVM_CAP_ADJUST_CLOCK)"),
    (Cap::VcpuEvents, "vCPU events (KVM_CAP_VCPU_EVENTS)"),
    (Cap::Debugregs, "debug registers (KVM_CAP_DEBUGREGS)"),
];

/// Opens `/dev/kvm` and checks what every machine needs.
///
/// # Errors
/// With the remedy, when it cannot be opened, or naming what is missing.
pub fn open_kvm() -> Result<Kvm, VmmError> {
    let kvm = Kvm::new().map_err(|errno| VmmError::OpenKvm {
        source: std::io::Error::from_raw_os_error(errno.errno()),
        remedy: match errno.errno() {
            libc::ENOENT => "load the module (modprobe kvm_intel or kvm_amd) and enable virtualisation in the firmware",
            libc::EACCES | libc::EPERM => "add the user to the group of /dev/kvm (usermod -aG kvm USER, then log in again) or run as root",
            libc::ENODEV | libc::ENXIO => {
                "this processor or the hypervisor under it offers no virtualisation; enable it in the firmware or use another host"
            }
            _ => "see the kernel's log (dmesg)",
        },
    })?;
    for (cap, name) in NEEDED {
        if !kvm.check_extension(cap) {
            return Err(VmmError::Missing(name));
        }
    }
    Ok(kvm)
}

fn device(name: &str) -> impl Fn(DeviceError) -> VmmError {
    move |error| VmmError::Device { device: name.to_owned(), reason: error.to_string() }
}

fn check_shape(config: &MachineConfig, sinks: &Sinks) -> Result<(), VmmError> {
    if config.vcpus == 0 || config.vcpus > MAX_VCPUS {
        return Err(VmmError::Config(format!("{} vCPUs; a machine has 1 to {MAX_VCPUS}", config.vcpus)));
    }
    if config.nets.len() > MAX_NETS {
        return Err(VmmError::Config(format!("{} network interfaces; a machine has at most {MAX_NETS}", config.nets.len())));
    }
    if sinks.disks.len() > MAX_DISKS {
        return Err(VmmError::Config(format!("{} disks; a machine has at most {MAX_DISKS}", sinks.disks.len())));
    }
    Ok(())
}

/// Makes a machine; see [`Machine::new`].
pub(crate) fn build(config: &MachineConfig, sinks: Sinks) -> Result<Machine, VmmError> {
    check_shape(config, &sinks)?;
    let kvm = open_kvm()?;
    let cpu_table = cpu_table(&kvm, config)?;
    let (guest_memory, layout) = memory::map(&config.memory)?;
    let memory = Arc::new(guest_memory);
    let vm = Arc::new(kvm.create_vm().map_err(VmmError::kvm("KVM_CREATE_VM"))?);
    if usize::from(config.vcpus) > kvm.get_max_vcpus() {
        return Err(VmmError::Config(format!("{} vCPUs; this host's KVM allows {}", config.vcpus, kvm.get_max_vcpus())));
    }
    // Before the first vCPU: the dirty ring is enabled here.
    let tracking = dirty_tracking::prepare(&vm, config.dirty, layout.pages())?;
    create_chips(&vm)?;
    let router = Arc::new(GsiRouter::new(Arc::clone(&vm)).map_err(VmmError::io("KVM_SET_GSI_ROUTING"))?);
    add_memory(&vm, &layout)?;

    let mut buses = Buses::default();
    let mut slots = Slots::new(config.bus, &vm, &router, &mut buses);
    let nets = add_nets(config, &sinks, &memory, &mut slots)?;
    let disks = add_disks(&sinks, &memory, &mut slots)?;
    if config.rng {
        let source = RngDevice::new(GuestMemory::clone(&memory), Box::new(HostEntropy)).map_err(device("rng"))?;
        slots.attach("rng".to_owned(), Arc::new(Mutex::new(source)))?;
    }
    let (devices, pci) = slots.finish()?;
    let serial = add_serial(&vm, &sinks, &mut buses)?;
    let platform = add_platform(&vm, &mut buses)?;

    let vcpus = create_vcpus(&vm, &cpu_table, config.vcpus)?;
    let fds: Vec<_> = vcpus.iter().map(AsRawFd::as_raw_fd).collect();
    let descriptors = fds.iter().copied().chain([vm.as_raw_fd()]).collect();
    let tracker = tracking.finish(Arc::clone(&vm), &layout, &fds, Arc::clone(&memory))?;
    let kit = state_kit(&kvm, &vm, &vcpus, config.cpu, &cpu_table)?;
    let tsc_khz = vcpus[0].get_tsc_khz().unwrap_or(0);
    // As a machine with one vCPU would have it: the number of vCPUs is told and compared by itself.
    let cpu = cpu::describe(&kvm, config.cpu, &cpu::for_vcpu(&cpu_table, 0, 1), &kit.msr_indices, tsc_khz);

    raw::install_kick_handler().map_err(VmmError::io("installing the signal handler"))?;
    let (events_in, events) = bounded(EVENTS_MAX);
    let waiter = Arc::new(Waiter::default());
    let (seats, threads) = seat_vcpus(vcpus, &kit, &Arc::new(buses), &events_in, &waiter)?;
    let (worker, quiesced) = start_worker(&devices)?;
    tracing::debug!(vcpus = config.vcpus, mib = config.memory.bytes >> 20, msrs = kit.msr_indices.len(), tracking = ?tracker.vcpu_kind(), "machine made");
    Ok(Machine {
        vm,
        memory,
        layout,
        bytes: config.memory.bytes,
        kit,
        tsc_khz: AtomicU32::new(tsc_khz),
        host_tsc_khz: tsc_khz,
        cpu,
        seats,
        waiter,
        threads: Mutex::new(threads),
        tracker: Mutex::new(tracker),
        devices,
        pci,
        nets,
        disks,
        serial,
        platform,
        power_on: None,
        worker_handle: worker.handle(),
        worker: Mutex::new(Some(worker)),
        control: Mutex::new(Control { phase: Phase::Empty, quiesced: Some(quiesced) }),
        events,
        descriptors,
    })
}

fn create_chips(vm: &VmFd) -> Result<(), VmmError> {
    vm.set_identity_map_address(IDENTITY_MAP_ADDRESS).map_err(VmmError::kvm("KVM_SET_IDENTITY_MAP_ADDR"))?;
    vm.set_tss_address(TSS_ADDRESS).map_err(VmmError::kvm("KVM_SET_TSS_ADDR"))?;
    vm.create_irq_chip().map_err(VmmError::kvm("KVM_CREATE_IRQCHIP"))?;
    let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
    vm.create_pit2(pit).map_err(VmmError::kvm("KVM_CREATE_PIT2"))
}

fn add_memory(vm: &VmFd, layout: &Layout) -> Result<(), VmmError> {
    for slot in layout.slots() {
        let region = kvm_userspace_memory_region {
            slot: slot.number,
            flags: 0,
            guest_phys_addr: slot.first.address(),
            memory_size: slot.pages * types::PAGE_SIZE as u64,
            userspace_addr: slot.host_address,
        };
        // SAFETY: the range is a mapping of exactly this size that the machine's `memory` owns; the machine keeps it for longer than the vCPUs run
        // (its threads are joined before its fields are dropped), and slots do not overlap.
        unsafe { vm.set_user_memory_region(region) }.map_err(VmmError::kvm("KVM_SET_USER_MEMORY_REGION"))?;
    }
    Ok(())
}

fn add_nets(config: &MachineConfig, sinks: &Sinks, memory: &Arc<GuestMemory>, slots: &mut Slots<'_>) -> Result<Vec<Net>, VmmError> {
    let mut nets = Vec::with_capacity(config.nets.len());
    for (index, net) in config.nets.iter().enumerate() {
        let failed = |reason: String| VmmError::Device { device: format!("net{index} ({})", net.tap), reason };
        let tap = Tap::open(&net.tap, TapOptions::default()).map_err(|error| failed(error.to_string()))?;
        let writer: TapWriter = tap.writer();
        let card = CardConfig { port: index as u8, mac: net.mac };
        let card = NetDevice::new(card, GuestMemory::clone(memory), Arc::clone(&sinks.frames), Box::new(tap));
        let card = Arc::new(Mutex::new(card.map_err(|error| failed(error.to_string()))?));
        slots.attach(format!("net{index}"), Arc::clone(&card))?;
        nets.push(Net { card, writer });
    }
    Ok(nets)
}

fn add_disks(sinks: &Sinks, memory: &Arc<GuestMemory>, slots: &mut Slots<'_>) -> Result<Vec<Arc<Mutex<BlkDevice>>>, VmmError> {
    let mut disks = Vec::with_capacity(sinks.disks.len());
    for (index, backend) in sinks.disks.iter().enumerate() {
        let index = DiskIndex(index as u8);
        let name = index.to_string();
        let disk = BlkDevice::new(index, GuestMemory::clone(memory), Arc::clone(backend)).map_err(device(&name))?;
        let disk = Arc::new(Mutex::new(disk));
        slots.attach(name, Arc::clone(&disk))?;
        disks.push(disk);
    }
    Ok(disks)
}

fn add_serial(vm: &VmFd, sinks: &Sinks, buses: &mut Buses) -> Result<Arc<Mutex<SerialConsole>>, VmmError> {
    let serial = SerialConsole::new(Arc::clone(&sinks.console)).map_err(device("serial console"))?;
    vm.register_irqfd(serial.irqfd(), SERIAL_GSI).map_err(VmmError::kvm("KVM_IRQFD"))?;
    let serial = Arc::new(Mutex::new(serial));
    let inserted = buses.ports.insert(SERIAL_PORT, SERIAL_PORTS, Arc::clone(&serial) as _);
    inserted.map_err(|error| VmmError::Device { device: "serial console".into(), reason: error.to_string() })?;
    Ok(serial)
}

fn add_platform(vm: &VmFd, buses: &mut Buses) -> Result<Arc<Mutex<Platform>>, VmmError> {
    let platform = Platform::new([0; 16]).map_err(device("ACPI events"))?;
    vm.register_irqfd(platform.irqfd(), acpi::EVENTS_GSI).map_err(VmmError::kvm("KVM_IRQFD"))?;
    let platform = Arc::new(Mutex::new(platform));
    let inserted = buses.ports.insert(u64::from(acpi::PORTS.start), acpi::PORTS.len() as u64, Arc::clone(&platform) as _);
    inserted.map_err(|error| VmmError::Device { device: "ACPI events".into(), reason: error.to_string() })?;
    Ok(platform)
}

/// What the chosen model shows on this host.
fn cpu_table(kvm: &Kvm, config: &MachineConfig) -> Result<Vec<kvm_cpuid_entry2>, VmmError> {
    let table = cpu::table(config.cpu, &cpu::supported(kvm)?)
        .map_err(|missing| VmmError::CpuModel { model: config.cpu.name(), missing: missing.join(", ") })?;
    let end = memory::end(config.memory.bytes);
    if end > cpu::address_space(&table) {
        return Err(VmmError::Config(format!(
            "guest memory ends at {end:#x}, beyond what a {} processor can address here; give the guest less memory, or use --cpu host",
            config.cpu
        )));
    }
    Ok(table)
}

fn create_vcpus(vm: &VmFd, table: &[kvm_cpuid_entry2], count: u8) -> Result<Vec<VcpuFd>, VmmError> {
    (0..count)
        .map(|index| {
            let vcpu = vm.create_vcpu(u64::from(index)).map_err(VmmError::kvm("KVM_CREATE_VCPU"))?;
            let cpuid = CpuId::from_entries(&cpu::for_vcpu(table, index, count))
                .map_err(|_| VmmError::Missing("room for the CPUID (more leaves than KVM_SET_CPUID2 takes)"))?;
            vcpu.set_cpuid2(&cpuid).map_err(VmmError::kvm("KVM_SET_CPUID2"))?;
            Ok(vcpu)
        })
        .collect()
}

fn state_kit(kvm: &Kvm, vm: &VmFd, vcpus: &[VcpuFd], model: CpuModel, table: &[kvm_cpuid_entry2]) -> Result<StateKit, VmmError> {
    let sync = vm.check_extension_int(Cap::SyncRegs).max(0) as u32;
    Ok(StateKit {
        msr_indices: StateKit::usable_msrs(kvm, &vcpus[0], model)?,
        xsave_size: vm.check_extension_raw(KVM_CAP_XSAVE2.into()).max(0) as usize,
        sregs2: vm.check_extension_raw(KVM_CAP_SREGS2.into()) > 0,
        sync_regs: sync & KVM_SYNC_X86_VALID_FIELDS == KVM_SYNC_X86_VALID_FIELDS,
        tsc_offset: raw::get_tsc_offset(&vcpus[0]).is_ok(),
        xcrs: vm.check_extension(Cap::Xcrs),
        fixed_xcr0: !cpu::has_xsave(table),
        xfeatures: cpu::xfeatures(model, table),
        several: vcpus.len() > 1,
    })
}

type Seated = (Vec<Arc<Seat>>, Vec<JoinHandle<()>>);

fn seat_vcpus(
    vcpus: Vec<VcpuFd>,
    kit: &StateKit,
    buses: &Arc<Buses>,
    events: &Sender<MachineEvent>,
    waiter: &Arc<Waiter>,
) -> Result<Seated, VmmError> {
    let mut made = Vec::with_capacity(vcpus.len());
    for (index, fd) in vcpus.into_iter().enumerate() {
        let page = raw::RunPage::new(fd.as_raw_fd()).map_err(VmmError::io("mapping a vCPU's shared page"))?;
        let seat = Arc::new(Seat::new(index, page, Arc::clone(waiter)));
        let vcpu = Vcpu::new(fd, kit.clone(), Arc::clone(&seat), Arc::clone(buses), events.clone())?;
        made.push((seat, vcpu));
    }
    let mut seats = Vec::with_capacity(made.len());
    let mut threads = Vec::with_capacity(made.len());
    for (seat, vcpu) in made {
        let spawned = thread::Builder::new().name(format!("vcpu{}", seat.index)).spawn(move || vcpu.serve());
        match spawned {
            Ok(thread) => threads.push(thread),
            Err(source) => {
                crate::machine::end_threads(&seats, threads);
                return Err(VmmError::Kvm { what: "starting a vCPU's thread", source });
            }
        }
        seats.push(seat);
    }
    Ok((seats, threads))
}

fn start_worker(devices: &[Attached]) -> Result<(DeviceWorker, Quiesced), VmmError> {
    let served = devices.iter().map(Attached::served).collect();
    DeviceWorker::start(served).map_err(|error| VmmError::Device { device: "device worker".into(), reason: error.to_string() })
}
