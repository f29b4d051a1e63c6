//! Virtio devices and the bus they are on: each gets its transport, its kicks an ioeventfd each, its interrupts an irqfd each.
//!
//! Lives here: the one place that knows device, transport and KVM together. Not here: which devices a machine has (`setup`), what they do. Every machine attaches the
//! same devices in the same order: that is what makes a captured state fit (S5).

use std::sync::{Arc, Mutex};

use kvm_ioctls::{IoEventAddress, VmFd};

use crate::{
    Bus, TransportState, VirtioState, VmmError,
    devices::{
        DeviceError, MachineDevice, lock,
        virtio::{
            MmioTransport,
            mmio::{MMIO_LENGTH, QUEUE_NOTIFY},
        },
        worker::WorkerDevice,
    },
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
}

impl Attached {
    /// The device's and its transport's state. The machine is paused.
    pub(crate) fn save(&self) -> VirtioState {
        let transport = match self.place {
            Place::Mmio(_) => TransportState::Mmio,
        };
        VirtioState { device: lock(&self.device).save_state(), transport }
    }

    /// Puts a saved state into device and transport. Before the first start.
    pub(crate) fn restore(&self, saved: &VirtioState) -> Result<(), DeviceError> {
        match (&self.place, &saved.transport) {
            (Place::Mmio(_), TransportState::Mmio) => {}
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

    /// The device as the worker serves it.
    pub(crate) fn served(&self) -> Arc<Mutex<dyn WorkerDevice>> {
        Arc::clone(&self.device) as _
    }
}

/// The windows of those devices that are on the mmio bus.
pub(crate) fn mmio_windows(devices: &[Attached]) -> Vec<MmioWindow> {
    devices
        .iter()
        .map(|attached| match attached.place {
            Place::Mmio(window) => window,
        })
        .collect()
}

/// Takes a machine's devices one after the other and gives each the next place.
pub(crate) struct Slots<'a> {
    bus: Bus,
    vm: &'a Arc<VmFd>,
    buses: &'a mut Buses,
    attached: Vec<Attached>,
}

impl<'a> Slots<'a> {
    /// No device yet.
    pub(crate) fn new(bus: Bus, vm: &'a Arc<VmFd>, buses: &'a mut Buses) -> Result<Slots<'a>, VmmError> {
        if bus == Bus::Pci {
            return Err(VmmError::Config("this program has no PCI bus; use virtio-mmio".into()));
        }
        Ok(Slots { bus, vm, buses, attached: Vec::new() })
    }

    /// Gives `device` the next place.
    ///
    /// # Errors
    /// When there is no place left, or KVM refuses.
    pub(crate) fn attach<D: MachineDevice + 'static>(&mut self, name: String, device: Arc<Mutex<D>>) -> Result<(), VmmError> {
        let place = match self.bus {
            Bus::Mmio | Bus::Pci => self.attach_mmio(&name, &device)?,
        };
        self.attached.push(Attached { name, device, place });
        Ok(())
    }

    /// All devices, in the order in which they came.
    pub(crate) fn finish(self) -> Vec<Attached> {
        self.attached
    }

    fn attach_mmio<D: MachineDevice + 'static>(&mut self, name: &str, device: &Arc<Mutex<D>>) -> Result<Place, VmmError> {
        let failed = |reason: String| VmmError::Device { device: name.to_owned(), reason };
        let index = self.attached.len();
        let window = layout::mmio_window(index).ok_or_else(|| {
            VmmError::Config(format!(
                "{name} is one device too many: virtio-mmio has interrupt lines for {index}; use virtio-pci or fewer devices"
            ))
        })?;
        let transport = MmioTransport::new(Arc::clone(device)).map_err(|error| failed(error.to_string()))?;
        for (queue, kick) in transport.kicks().iter().enumerate() {
            let at = IoEventAddress::Mmio(window.base + QUEUE_NOTIFY);
            self.vm.register_ioevent(kick, &at, queue as u32).map_err(VmmError::kvm("KVM_IOEVENTFD"))?;
        }
        self.vm.register_irqfd(transport.irqfd(), window.gsi).map_err(VmmError::kvm("KVM_IRQFD"))?;
        let inserted = self.buses.memory.insert(window.base, MMIO_LENGTH, Arc::new(Mutex::new(transport)));
        inserted.map_err(|error| failed(error.to_string()))?;
        Ok(Place::Mmio(window))
    }
}
