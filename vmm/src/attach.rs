//! Virtio devices and the bus they are on: each gets its transport, its kicks an ioeventfd each, its interrupts an irqfd each.
//!
//! Lives here: the one place that knows device, transport and KVM together. Not here: which devices a machine has (`setup`), what they do. Every machine attaches the
//! same devices in the same order: that is what makes a captured state fit (S5).

use std::{
    io,
    sync::{Arc, Mutex},
};

use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::EventFd;

use crate::{
    Bus, TransportState, VirtioState, VmmError,
    devices::{
        DeviceError, MachineDevice, lock,
        pci::{Doorbells, PciFunction, PciRoot, msix::VECTORS_MAX, root::PCI_DEVICES},
        virtio::{
            MmioTransport, VirtioPci,
            mmio::{MMIO_LENGTH, QUEUE_NOTIFY},
            pci::BAR_SIZE,
        },
        worker::WorkerDevice,
    },
    interrupts::GsiRouter,
    layout::{self, MmioWindow},
    vcpu::thread::Buses,
};

/// A virtio device in its place.
pub(crate) struct Attached {
    /// What messages call it: "net0".
    pub name: String,
    device: Arc<Mutex<dyn MachineDevice>>,
    place: Place,
}

/// Where a device is.
enum Place {
    Mmio(MmioWindow),
    Pci(Arc<Mutex<VirtioPci>>),
}

impl Attached {
    /// The device's and its transport's state. The machine is paused.
    pub(crate) fn save(&self) -> VirtioState {
        let transport = match &self.place {
            Place::Mmio(_) => TransportState::Mmio,
            Place::Pci(function) => TransportState::Pci(lock(function).save()),
        };
        VirtioState { device: lock(&self.device).save_state(), transport }
    }

    /// Puts a saved state into device and transport. Before the first start.
    pub(crate) fn restore(&self, saved: &VirtioState) -> Result<(), DeviceError> {
        match (&self.place, &saved.transport) {
            (Place::Mmio(_), TransportState::Mmio) => {}
            (Place::Pci(function), TransportState::Pci(state)) => lock(function).restore(state)?,
            _ => return Err(DeviceError::StateMismatch { device: "virtio transport", reason: "it was on another kind of bus".into() }),
        }
        lock(&self.device).restore_state(&saved.device)
    }

    /// Puts device and transport into the state that `power_on` was captured in, whatever the guest had done with them.
    pub(crate) fn reset(&self, power_on: &VirtioState) -> Result<(), DeviceError> {
        {
            let mut device = lock(&self.device);
            device.core_mut().reset();
            device.on_reset();
        }
        self.restore(power_on)
    }

    /// The last step before the first run of a restored machine.
    pub(crate) fn activate(&self) -> Result<(), DeviceError> {
        lock(&self.device).wake()
    }

    /// The guest has a driver for the device, and it is at work.
    pub(crate) fn is_driven(&self) -> bool {
        lock(&self.device).core().is_running()
    }

    /// The device as the worker serves it.
    pub(crate) fn served(&self) -> Arc<Mutex<dyn WorkerDevice>> {
        Arc::clone(&self.device) as _
    }
}

/// The windows of those devices that are on the mmio bus.
pub(crate) fn mmio_windows(devices: &[Attached]) -> Vec<MmioWindow> {
    let window = |attached: &Attached| match attached.place {
        Place::Mmio(window) => Some(window),
        Place::Pci(_) => None,
    };
    devices.iter().filter_map(window).collect()
}

/// What a bus needs while devices come.
enum Backplane {
    Mmio,
    Pci { router: Arc<GsiRouter>, functions: Vec<Arc<Mutex<dyn PciFunction>>> },
}

/// Takes a machine's devices one after the other and gives each the next place.
pub(crate) struct Slots<'a> {
    vm: &'a Arc<VmFd>,
    buses: &'a mut Buses,
    backplane: Backplane,
    attached: Vec<Attached>,
}

impl<'a> Slots<'a> {
    /// No device yet. The VM has its interrupt chips.
    pub(crate) fn new(bus: Bus, vm: &'a Arc<VmFd>, router: &Arc<GsiRouter>, buses: &'a mut Buses) -> Slots<'a> {
        let backplane = match bus {
            Bus::Mmio => Backplane::Mmio,
            Bus::Pci => Backplane::Pci { router: Arc::clone(router), functions: Vec::new() },
        };
        Slots { vm, buses, backplane, attached: Vec::new() }
    }

    /// Gives `device` the next place.
    ///
    /// # Errors
    /// When there is no place left, or KVM refuses.
    pub(crate) fn attach<D: MachineDevice + 'static>(&mut self, name: String, device: Arc<Mutex<D>>) -> Result<(), VmmError> {
        let place = match &mut self.backplane {
            Backplane::Mmio => attach_mmio(self.vm, self.buses, self.attached.len(), &name, &device)?,
            Backplane::Pci { router, functions } => {
                let function = attach_pci(self.vm, router, functions.len(), &name, &device)?;
                functions.push(Arc::clone(&function) as _);
                Place::Pci(function)
            }
        };
        self.attached.push(Attached { name, device, place });
        Ok(())
    }

    /// All devices, in the order in which they came, and the PCI bus if that is what they are on.
    ///
    /// # Errors
    /// When the bus's own ranges are taken: a mistake in the machine's layout.
    pub(crate) fn finish(self) -> Result<(Vec<Attached>, Option<Arc<PciRoot>>), VmmError> {
        let root = match self.backplane {
            Backplane::Mmio => None,
            Backplane::Pci { functions, .. } => {
                let root = Arc::new(PciRoot::new(functions));
                let inserted = root.insert(&mut self.buses.ports, &mut self.buses.memory);
                inserted.map_err(|error| VmmError::Device { device: "PCI bus".into(), reason: error.to_string() })?;
                Some(root)
            }
        };
        Ok((self.attached, root))
    }
}

fn attach_mmio<D: MachineDevice + 'static>(
    vm: &VmFd,
    buses: &mut Buses,
    index: usize,
    name: &str,
    device: &Arc<Mutex<D>>,
) -> Result<Place, VmmError> {
    let failed = |reason: String| VmmError::Device { device: name.to_owned(), reason };
    let window = layout::mmio_window(index).ok_or_else(|| {
        VmmError::Config(format!(
            "{name} is one virtio device too many: virtio-mmio has interrupt lines for {index}; use virtio-pci or fewer devices"
        ))
    })?;
    let transport = MmioTransport::new(Arc::clone(device)).map_err(|error| failed(error.to_string()))?;
    for (queue, kick) in transport.kicks().iter().enumerate() {
        let at = IoEventAddress::Mmio(window.base + QUEUE_NOTIFY);
        vm.register_ioevent(kick, &at, queue as u32).map_err(VmmError::kvm("KVM_IOEVENTFD"))?;
    }
    vm.register_irqfd(transport.irqfd(), window.gsi).map_err(VmmError::kvm("KVM_IRQFD"))?;
    let inserted = buses.memory.insert(window.base, MMIO_LENGTH, Arc::new(Mutex::new(transport)));
    inserted.map_err(|error| failed(error.to_string()))?;
    Ok(Place::Mmio(window))
}

fn attach_pci<D: MachineDevice + 'static>(
    vm: &Arc<VmFd>,
    router: &Arc<GsiRouter>,
    index: usize,
    name: &str,
    device: &Arc<Mutex<D>>,
) -> Result<Arc<Mutex<VirtioPci>>, VmmError> {
    // Device 0 is the host bridge.
    if index + 1 >= PCI_DEVICES {
        return Err(VmmError::Config(format!("{name} is one virtio device too many: a PCI bus holds {index}; use fewer devices")));
    }
    let vectors = lock(device).core().queues.len() + 1;
    let gsis = (vectors <= VECTORS_MAX).then(|| router.lines(vectors)).flatten();
    let gsis =
        gsis.ok_or_else(|| VmmError::Config(format!("no interrupts are left for {name}; use fewer devices, or fewer queues for each")))?;
    let address = layout::PCI_BARS.start as u32 + (index as u32 + 1) * BAR_SIZE;
    let doorbells = Arc::new(KvmDoorbells(Arc::clone(vm)));
    let function = VirtioPci::new(Arc::clone(device), address, Arc::clone(router) as _, &gsis, doorbells)
        .map_err(|error| VmmError::Device { device: name.to_owned(), reason: error.to_string() })?;
    for (gsi, irqfd) in function.msix().irqfds() {
        vm.register_irqfd(irqfd, gsi).map_err(VmmError::kvm("KVM_IRQFD"))?;
    }
    Ok(Arc::new(Mutex::new(function)))
}

/// Doorbells as ioeventfds by address: whatever is written, of whatever width. Without length, VT-x need not even decode the guest's instruction.
struct KvmDoorbells(Arc<VmFd>);

impl Doorbells for KvmDoorbells {
    fn add(&self, address: u64, event: &EventFd) -> io::Result<()> {
        let added = self.0.register_ioevent(event, &IoEventAddress::Mmio(address), NoDatamatch);
        added.map_err(|errno| io::Error::from_raw_os_error(errno.errno()))
    }

    fn remove(&self, address: u64, event: &EventFd) {
        if let Err(errno) = self.0.unregister_ioevent(event, &IoEventAddress::Mmio(address), NoDatamatch) {
            tracing::error!(address, %errno, "KVM does not give back a doorbell; writes there may still kick a queue, which does no harm");
        }
    }
}
