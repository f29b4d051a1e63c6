//! A virtio device as a PCI function: configuration space, and what lies where behind its BAR.
//!
//! Lives here: dispatch, doorbells that follow the BAR, save and restore. Not here: the registers that set the device up ([`super::common`]), nor the MSI-X table's
//! workings ([`Msix`]). Guards S7.

use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::EventFd;

use super::{
    common,
    state::{PCI_STATE_VERSION, PciState},
};
use crate::devices::{
    DeviceError, lock,
    pci::{
        ConfigSpace, Doorbells, MsiRouter, Msix, PciFunction,
        config::{BAR0, CAP_MSIX, CAP_VENDOR, COMMAND, Identity, STATUS, STATUS_INTERRUPT, touches},
        msix::{CONTROL_ENABLE, CONTROL_MASK_ALL, ENTRY_SIZE},
        root::is_in_window,
    },
    virtio::{
        VirtioDevice,
        interrupt::{Interrupt, Messages},
    },
};

/// Memory of a function: a page for each structure, so that a guest's operating system can map each alone.
pub const BAR_SIZE: u32 = 0x8000;
const COMMON: u64 = 0x0000;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const TABLE: u64 = 0x4000;
const PENDING: u64 = 0x5000;
/// Space kept for each of them.
const STRUCTURE: u64 = 0x1000;
const STRUCTURE_MASK: u64 = !(STRUCTURE - 1);
/// Bytes from one queue's doorbell to the next.
const NOTIFY_STEP: u32 = 4;

const VENDOR: u16 = 0x1af4;
/// Device number of a modern virtio device: this and its device type (4.1.2.1).
const FIRST_DEVICE: u16 = 0x1040;
/// Not that of a transitional device: 0x40 or above.
const SUBSYSTEM: u16 = 0x1100;

/// `cfg_type` values (4.1.4).
const CAP_COMMON: u8 = 1;
const CAP_NOTIFY: u8 = 2;
const CAP_ISR: u8 = 3;
const CAP_DEVICE: u8 = 4;
const CAP_PCI_CFG: u8 = 5;

/// Fields of the window capability, from its start.
const WINDOW_BAR: usize = 4;
const WINDOW_OFFSET: usize = 8;
const WINDOW_LENGTH: usize = 12;
const WINDOW_DATA: usize = 16;

/// A device on the PCI bus.
pub struct VirtioPci {
    device: Arc<Mutex<dyn VirtioDevice>>,
    // Beside the device's lock, so that a guest's interrupt handler does not wait for a batch of the worker.
    interrupt: Arc<Interrupt>,
    messages: Arc<Messages>,
    kicks: Vec<Arc<EventFd>>,
    doorbells: Arc<dyn Doorbells>,
    /// Where doorbells are: the address of the first, and which of them KVM has taken.
    placed: Option<(u64, Vec<bool>)>,
    space: ConfigSpace,
    msix_at: usize,
    window_at: usize,
}

/// Class code by device type: what tools call the device; drivers do not look at it.
fn class(device_type: u32) -> u32 {
    match device_type {
        1 => 0x02_0000,
        2 => 0x01_8000,
        _ => 0xff_0000,
    }
}

/// `struct virtio_pci_cap` behind number and link: length, type, BAR 0, padding, offset, length.
fn capability(kind: u8, offset: u64, length: u32, more: &[u8]) -> Vec<u8> {
    let head = [16 + more.len() as u8, kind, 0, 0, 0, 0];
    [&head[..], &(offset as u32).to_le_bytes(), &length.to_le_bytes(), more].concat()
}

impl VirtioPci {
    /// A function for `device`, which has no other transport: its memory at `address` to begin with, not decoded, and one MSI-X vector on each line of `gsis`, one for
    /// each queue and one for configuration changes.
    ///
    /// # Errors
    /// [`DeviceError::EventFd`].
    pub fn new<D: VirtioDevice + 'static>(
        device: Arc<Mutex<D>>,
        address: u32,
        router: Arc<dyn MsiRouter>,
        gsis: &[u32],
        doorbells: Arc<dyn Doorbells>,
    ) -> Result<VirtioPci, DeviceError> {
        let (device_type, interrupt, kicks) = {
            let device = lock(&device);
            let core = device.core();
            (device.device_type(), Arc::clone(core.interrupt()), core.kicks())
        };
        let msix = Msix::new(router, gsis)?;
        let vectors = msix.vectors() as u16;
        assert!(kicks.len() < usize::from(vectors), "a vector for each queue and one more: whoever attaches the device gives them");
        let identity = Identity {
            id: (VENDOR, FIRST_DEVICE + device_type as u16),
            subsystem: (VENDOR, SUBSYSTEM),
            class: class(device_type),
            revision: 1,
        };
        let mut space = ConfigSpace::new(identity);
        space.set_memory(address, BAR_SIZE);
        let msix_body = [&(vectors - 1).to_le_bytes()[..], &(TABLE as u32).to_le_bytes(), &(PENDING as u32).to_le_bytes()].concat();
        let msix_at = space.add_capability(CAP_MSIX, &msix_body, &(CONTROL_ENABLE | CONTROL_MASK_ALL).to_le_bytes());
        space.add_capability(CAP_VENDOR, &capability(CAP_COMMON, COMMON, common::COMMON_LENGTH, &[]), &[]);
        space.add_capability(CAP_VENDOR, &capability(CAP_ISR, ISR, 1, &[]), &[]);
        space.add_capability(CAP_VENDOR, &capability(CAP_DEVICE, DEVICE, STRUCTURE as u32, &[]), &[]);
        let doorbell_bytes = kicks.len() as u32 * NOTIFY_STEP;
        space.add_capability(CAP_VENDOR, &capability(CAP_NOTIFY, NOTIFY, doorbell_bytes, &NOTIFY_STEP.to_le_bytes()), &[]);
        let mut window_bits = [0; WINDOW_DATA + 4 - 2];
        window_bits[WINDOW_BAR - 2] = 0xff;
        window_bits[WINDOW_OFFSET - 2..].fill(0xff);
        let window_at = space.add_capability(CAP_VENDOR, &capability(CAP_PCI_CFG, 0, 0, &[0; 4]), &window_bits);
        let messages = interrupt.wire_to_messages(msix, kicks.len());
        Ok(VirtioPci { device, interrupt, messages, kicks, doorbells, placed: None, space, msix_at, window_at })
    }

    /// The function's MSI-X table, whose irqfds are to be registered.
    #[must_use]
    pub fn msix(&self) -> &Msix {
        self.messages.msix()
    }

    /// The function's state. The machine is paused.
    #[must_use]
    pub fn save(&self) -> PciState {
        PciState {
            version: PCI_STATE_VERSION,
            config: self.space.save(),
            msix: self.msix().save(),
            config_vector: self.messages.config_vector(),
            queue_vectors: (0..self.kicks.len()).map(|queue| self.messages.queue_vector(queue)).collect(),
        }
    }

    /// Puts a saved state into this function and rebuilds routes and doorbells. Before the first start.
    ///
    /// # Errors
    /// [`DeviceError::StateVersion`] or [`DeviceError::StateMismatch`]; the machine is then not to be started.
    pub fn restore(&mut self, state: &PciState) -> Result<(), DeviceError> {
        if state.version != PCI_STATE_VERSION {
            return Err(DeviceError::StateVersion { device: "a PCI function", found: state.version, known: PCI_STATE_VERSION });
        }
        if state.queue_vectors.len() != self.kicks.len() {
            let reason = format!("{} queues saved, {} here", state.queue_vectors.len(), self.kicks.len());
            return Err(DeviceError::StateMismatch { device: "PCI function", reason });
        }
        self.space.restore(&state.config)?;
        self.msix().restore(&state.msix, self.message_control())?;
        self.messages.set_config_vector(state.config_vector);
        for (queue, vector) in state.queue_vectors.iter().enumerate() {
            self.messages.set_queue_vector(queue, *vector);
        }
        self.place_doorbells();
        Ok(())
    }

    fn message_control(&self) -> u16 {
        self.space.u16(self.msix_at + 2)
    }

    /// Puts the doorbells where the BAR is now.
    fn place_doorbells(&mut self) {
        let wanted = self.space.memory().filter(is_in_window).map(|(base, _)| base + NOTIFY);
        if wanted == self.placed.as_ref().map(|(first, _)| *first) {
            return;
        }
        let address = |first: u64, queue: usize| first + queue as u64 * u64::from(NOTIFY_STEP);
        if let Some((first, taken)) = self.placed.take() {
            for (queue, kick) in self.kicks.iter().enumerate().filter(|(queue, _)| taken[*queue]) {
                self.doorbells.remove(address(first, queue), kick);
            }
        }
        let Some(first) = wanted else { return };
        let add = |(queue, kick): (usize, &Arc<EventFd>)| {
            let added = self.doorbells.add(address(first, queue), kick);
            if let Err(error) = &added {
                tracing::warn!(queue, %error, "KVM does not take a doorbell; this queue's kicks take the slow way");
            }
            added.is_ok()
        };
        self.placed = Some((first, self.kicks.iter().enumerate().map(add).collect()));
    }

    /// What the window capability points at, if the driver has set it up well: an offset behind BAR 0 and a width.
    fn window(&self) -> Option<(u64, usize)> {
        let at = self.window_at;
        let (offset, length) = (self.space.u32(at + WINDOW_OFFSET), self.space.u32(at + WINDOW_LENGTH));
        let bar = self.space.u16(at + WINDOW_BAR) & 0xff;
        let valid = bar == 0 && matches!(length, 1 | 2 | 4) && offset.is_multiple_of(length) && offset < BAR_SIZE;
        valid.then_some((offset.into(), length as usize))
    }
}

impl PciFunction for VirtioPci {
    fn read_config(&mut self, offset: usize, data: &mut [u8]) {
        let at = self.window_at + WINDOW_DATA;
        if touches(offset, data.len(), at, 4)
            && let Some((target, length)) = self.window()
        {
            let mut bytes = [0; 4];
            self.read_memory(target, &mut bytes[..length]);
            self.space.set(at, &bytes[..length]);
        }
        self.space.read(offset, data);
        // The bit tells of INTx, of which MSI-X takes the place.
        if touches(offset, data.len(), STATUS, 1) && self.message_control() & CONTROL_ENABLE == 0 && self.interrupt.status() != 0 {
            data[STATUS - offset] |= STATUS_INTERRUPT as u8;
        }
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        self.space.write(offset, data);
        if touches(offset, data.len(), COMMAND, 2) || touches(offset, data.len(), BAR0, 4) {
            self.place_doorbells();
        }
        if touches(offset, data.len(), self.msix_at + 2, 2) {
            self.msix().set_control(self.message_control());
        }
        let at = self.window_at + WINDOW_DATA;
        if touches(offset, data.len(), at, 4)
            && let Some((target, length)) = self.window()
        {
            let bytes = self.space.u32(at).to_le_bytes();
            self.write_memory(target, &bytes[..length]);
        }
    }

    fn memory(&self) -> Option<(u64, u64)> {
        self.space.memory()
    }

    fn read_memory(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let within = offset & !STRUCTURE_MASK;
        match offset & STRUCTURE_MASK {
            COMMON => common::read(&mut *lock(&self.device), &self.messages, within, data),
            ISR if within == 0 && !data.is_empty() => data[0] = self.interrupt.take_status() as u8,
            DEVICE => lock(&self.device).read_config(within, data),
            TABLE => self.msix().read_table(within, data),
            PENDING => self.msix().read_pending(within, data),
            // Doorbells have nothing to say.
            _ => {}
        }
    }

    fn write_memory(&mut self, offset: u64, data: &[u8]) {
        let within = offset & !STRUCTURE_MASK;
        match offset & STRUCTURE_MASK {
            COMMON => common::write(&mut *lock(&self.device), &self.messages, within, data),
            DEVICE => lock(&self.device).core_mut().protocol_error("the configuration space written, which is read-only"),
            NOTIFY => {
                // Only where KVM has no eventfd for it, or through the window.
                let queue = usize::try_from(within / u64::from(NOTIFY_STEP)).ok();
                if let Some(kick) = queue.and_then(|queue| self.kicks.get(queue))
                    && let Err(error) = kick.write(1)
                {
                    tracing::trace!(%error, "kick already pending");
                }
            }
            TABLE => self.msix().write_table(within, data),
            _ => {}
        }
    }
}

const _: () = assert!(crate::devices::pci::msix::VECTORS_MAX * ENTRY_SIZE <= STRUCTURE as usize);
