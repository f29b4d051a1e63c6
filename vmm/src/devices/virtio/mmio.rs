//! The virtio-mmio transport, version 2 (virtio 1.2, section 4.2).
//!
//! Lives here: the register file. Not here: what registers do (the core), nor the ioeventfd and irqfd ioctls (the machine registers what
//! [`MmioTransport::kicks`] and [`MmioTransport::irqfd`] give it). On the fast path this code does not run at all: kicks go to the
//! ioeventfds, interrupts come from the irqfd. Guards S7.

use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::EventFd;

use super::{Interrupt, QUEUE_SIZE_MAX, VirtioDevice, set_high, set_low};
use crate::devices::{BusDevice, DeviceError, lock};

/// Bytes of guest address space that one device takes.
pub const MMIO_LENGTH: u64 = 0x1000;
/// Offset of QueueNotify: an ioeventfd per queue belongs here, 4 bytes, matching the queue's index as data.
pub const QUEUE_NOTIFY: u64 = 0x050;

const MAGIC: u64 = 0x000;
const VERSION: u64 = 0x004;
const DEVICE_ID: u64 = 0x008;
const VENDOR_ID: u64 = 0x00c;
const DEVICE_FEATURES: u64 = 0x010;
const DEVICE_FEATURES_SEL: u64 = 0x014;
const DRIVER_FEATURES: u64 = 0x020;
const DRIVER_FEATURES_SEL: u64 = 0x024;
const QUEUE_SEL: u64 = 0x030;
const QUEUE_NUM_MAX: u64 = 0x034;
const QUEUE_NUM: u64 = 0x038;
const QUEUE_READY: u64 = 0x044;
const INTERRUPT_STATUS: u64 = 0x060;
const INTERRUPT_ACK: u64 = 0x064;
const STATUS: u64 = 0x070;
const QUEUE_DESC_LOW: u64 = 0x080;
const QUEUE_DESC_HIGH: u64 = 0x084;
const QUEUE_DRIVER_LOW: u64 = 0x090;
const QUEUE_DRIVER_HIGH: u64 = 0x094;
const QUEUE_DEVICE_LOW: u64 = 0x0a0;
const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
const SHM_LEN_LOW: u64 = 0x0b0;
const SHM_BASE_HIGH: u64 = 0x0bc;
const CONFIG_GENERATION: u64 = 0x0fc;
const CONFIG: u64 = 0x100;

const MAGIC_VALUE: u32 = u32::from_le_bytes(*b"virt");
const VENDOR_VALUE: u32 = u32::from_le_bytes(*b"LKST");

/// One device's registers on the bus.
pub struct MmioTransport {
    device: Arc<Mutex<dyn VirtioDevice>>,
    // Beside the device's lock, so that a guest's interrupt handler does not wait for a batch of the worker.
    interrupt: Arc<Interrupt>,
    line: Arc<EventFd>,
    kicks: Vec<Arc<EventFd>>,
}

impl MmioTransport {
    /// Registers for `device`, which has no other transport.
    ///
    /// # Errors
    /// [`DeviceError::EventFd`].
    pub fn new<D: VirtioDevice + 'static>(device: Arc<Mutex<D>>) -> Result<MmioTransport, DeviceError> {
        let (interrupt, kicks) = {
            let device = lock(&device);
            let core = device.core();
            (Arc::clone(core.interrupt()), core.kicks())
        };
        let line = interrupt.wire_to_line()?;
        Ok(MmioTransport { device, interrupt, line, kicks })
    }

    /// The eventfds to register as ioeventfds at base + [`QUEUE_NOTIFY`], the position in the slice being the datamatch.
    #[must_use]
    pub fn kicks(&self) -> &[Arc<EventFd>] {
        &self.kicks
    }

    /// The eventfd to register as irqfd on the device's (edge-triggered) line.
    #[must_use]
    pub fn irqfd(&self) -> &EventFd {
        &self.line
    }

    fn read_register(&self, offset: u64) -> u32 {
        match offset {
            MAGIC => return MAGIC_VALUE,
            VERSION => return 2,
            VENDOR_ID => return VENDOR_VALUE,
            INTERRUPT_STATUS => return self.interrupt.status(),
            // There are no shared memory regions: length and base read as all ones.
            SHM_LEN_LOW..=SHM_BASE_HIGH => return u32::MAX,
            _ => {}
        }
        let mut device = lock(&self.device);
        match offset {
            DEVICE_ID => device.device_type(),
            DEVICE_FEATURES => device.core().offered_features_word(),
            QUEUE_NUM_MAX => device.core().selected_queue().map_or(0, |_| u32::from(QUEUE_SIZE_MAX)),
            QUEUE_READY => device.core().selected_queue().is_some_and(|queue| queue.ready()).into(),
            STATUS => device.core().status(),
            CONFIG_GENERATION => device.core().config_generation(),
            _ => {
                device.core_mut().protocol_error("a register read that does not exist or cannot be read");
                0
            }
        }
    }

    fn write_register(&self, offset: u64, value: u32) {
        match offset {
            INTERRUPT_ACK => return self.interrupt.acknowledge(value),
            QUEUE_NOTIFY => {
                // Only without an ioeventfd for this queue, as in tests, or for a queue that does not exist.
                if let Some(kick) = usize::try_from(value).ok().and_then(|queue| self.kicks.get(queue)) {
                    if let Err(error) = kick.write(1) {
                        tracing::trace!(%error, "kick already pending");
                    }
                    return;
                }
            }
            _ => {}
        }
        let mut device = lock(&self.device);
        let core = device.core_mut();
        match offset {
            DEVICE_FEATURES_SEL => core.device_features_page = value,
            DRIVER_FEATURES_SEL => core.driver_features_page = value,
            DRIVER_FEATURES => core.set_driver_features_word(value),
            QUEUE_SEL => core.selected_queue = value,
            QUEUE_READY => core.set_queue_ready(value & 1 != 0),
            STATUS if value == 0 => {
                core.reset();
                device.on_reset();
            }
            STATUS => core.set_status(value),
            QUEUE_NUM | QUEUE_DESC_LOW | QUEUE_DESC_HIGH | QUEUE_DRIVER_LOW | QUEUE_DRIVER_HIGH | QUEUE_DEVICE_LOW | QUEUE_DEVICE_HIGH => {
                let Some(queue) = core.configurable_queue() else { return };
                let registers = &mut queue.registers;
                match offset {
                    QUEUE_NUM => registers.size = value,
                    QUEUE_DESC_LOW => set_low(&mut registers.descriptors, value),
                    QUEUE_DESC_HIGH => set_high(&mut registers.descriptors, value),
                    QUEUE_DRIVER_LOW => set_low(&mut registers.available, value),
                    QUEUE_DRIVER_HIGH => set_high(&mut registers.available, value),
                    QUEUE_DEVICE_LOW => set_low(&mut registers.used, value),
                    _ => set_high(&mut registers.used, value),
                }
            }
            _ => core.protocol_error("a register written that does not exist or cannot be written"),
        }
    }
}

impl BusDevice for MmioTransport {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if offset >= CONFIG {
            data.fill(0);
            return lock(&self.device).read_config(offset - CONFIG, data);
        }
        if let Ok(register) = <&mut [u8; 4]>::try_from(&mut *data) {
            *register = self.read_register(offset).to_le_bytes();
        } else {
            data.fill(0);
            lock(&self.device).core_mut().protocol_error("a register read that is not 4 bytes wide");
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if offset >= CONFIG {
            lock(&self.device).core_mut().protocol_error("the configuration space written, which is read-only");
        } else if let Ok(register) = <[u8; 4]>::try_from(data) {
            self.write_register(offset, u32::from_le_bytes(register));
        } else {
            lock(&self.device).core_mut().protocol_error("a register write that is not 4 bytes wide");
        }
    }
}

#[cfg(test)]
#[path = "mmio_tests.rs"]
mod tests;
