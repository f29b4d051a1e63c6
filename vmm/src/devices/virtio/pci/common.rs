//! The common configuration structure (virtio 1.2, section 4.1.4.3): how a driver sets a device up.
//!
//! Lives here: its registers, as a map from offset and width to the core. Not here: what they do. Guards S7: an access of another width than its register's, or to none,
//! is counted and changes nothing.

use crate::devices::virtio::{VirtioDevice, interrupt::Messages, set_high, set_low};

/// Length of the structure.
pub const COMMON_LENGTH: u32 = 0x38;

const DEVICE_FEATURE_SELECT: u64 = 0x00;
const DEVICE_FEATURE: u64 = 0x04;
const DRIVER_FEATURE_SELECT: u64 = 0x08;
const DRIVER_FEATURE: u64 = 0x0c;
const CONFIG_VECTOR: u64 = 0x10;
const NUM_QUEUES: u64 = 0x12;
const STATUS: u64 = 0x14;
const CONFIG_GENERATION: u64 = 0x15;
const QUEUE_SELECT: u64 = 0x16;
const QUEUE_SIZE: u64 = 0x18;
const QUEUE_VECTOR: u64 = 0x1a;
const QUEUE_ENABLE: u64 = 0x1c;
const QUEUE_NOTIFY_OFF: u64 = 0x1e;
const QUEUE_DESC_LOW: u64 = 0x20;
const QUEUE_DESC_HIGH: u64 = 0x24;
const QUEUE_DRIVER_LOW: u64 = 0x28;
const QUEUE_DRIVER_HIGH: u64 = 0x2c;
const QUEUE_DEVICE_LOW: u64 = 0x30;
const QUEUE_DEVICE_HIGH: u64 = 0x34;

/// Reads a register of the structure.
pub(super) fn read(device: &mut dyn VirtioDevice, messages: &Messages, offset: u64, data: &mut [u8]) {
    data.fill(0);
    let queues = device.core().queues.len() as u32;
    let core = device.core_mut();
    let selected = core.selected_queue;
    let queue = core.selected_queue().map(|queue| (queue.registers, queue.ready()));
    let address = |of: fn(&crate::devices::virtio::queue::QueueRegisters) -> u64| queue.map_or(0, |(registers, _)| of(&registers));
    let value = match (offset, data.len()) {
        (DEVICE_FEATURE_SELECT, 4) => core.device_features_page,
        (DEVICE_FEATURE, 4) => core.offered_features_word(),
        (DRIVER_FEATURE_SELECT, 4) => core.driver_features_page,
        (DRIVER_FEATURE, 4) => core.driver_features_word(),
        (CONFIG_VECTOR, 2) => messages.config_vector().into(),
        (NUM_QUEUES, 2) => queues,
        (STATUS, 1) => core.status(),
        (CONFIG_GENERATION, 1) => core.config_generation() & 0xff,
        (QUEUE_SELECT, 2) => selected,
        (QUEUE_SIZE, 2) => queue.map_or(0, |(registers, _)| registers.size),
        (QUEUE_VECTOR, 2) => messages.queue_vector(selected as usize).into(),
        (QUEUE_ENABLE, 2) => queue.is_some_and(|(_, ready)| ready).into(),
        // Each queue's doorbell is at its own index.
        (QUEUE_NOTIFY_OFF, 2) => queue.map_or(0, |_| selected),
        (QUEUE_DESC_LOW, 4) => address(|registers| registers.descriptors) as u32,
        (QUEUE_DESC_HIGH, 4) => (address(|registers| registers.descriptors) >> 32) as u32,
        (QUEUE_DRIVER_LOW, 4) => address(|registers| registers.available) as u32,
        (QUEUE_DRIVER_HIGH, 4) => (address(|registers| registers.available) >> 32) as u32,
        (QUEUE_DEVICE_LOW, 4) => address(|registers| registers.used) as u32,
        (QUEUE_DEVICE_HIGH, 4) => (address(|registers| registers.used) >> 32) as u32,
        _ => return core.protocol_error("a common configuration read that fits no register"),
    };
    for (to, from) in data.iter_mut().zip(value.to_le_bytes()) {
        *to = from;
    }
}

/// Writes a register of the structure.
pub(super) fn write(device: &mut dyn VirtioDevice, messages: &Messages, offset: u64, data: &[u8]) {
    let mut bytes = [0; 4];
    for (to, from) in bytes.iter_mut().zip(data) {
        *to = *from;
    }
    let value = u32::from_le_bytes(bytes);
    let core = device.core_mut();
    match (offset, data.len()) {
        (DEVICE_FEATURE_SELECT, 4) => core.device_features_page = value,
        (DRIVER_FEATURE_SELECT, 4) => core.driver_features_page = value,
        (DRIVER_FEATURE, 4) => core.set_driver_features_word(value),
        (CONFIG_VECTOR, 2) => messages.set_config_vector(value as u16),
        (STATUS, 1) if value == 0 => {
            core.reset();
            messages.reset();
            device.on_reset();
        }
        (STATUS, 1) => core.set_status(value),
        (QUEUE_SELECT, 2) => core.selected_queue = value,
        (QUEUE_VECTOR, 2) => messages.set_queue_vector(core.selected_queue as usize, value as u16),
        // Drivers may not write anything but 1: a queue goes out of use by a reset of the device.
        (QUEUE_ENABLE, 2) if value == 1 => core.set_queue_ready(true),
        (QUEUE_SIZE, 2) | (QUEUE_DESC_LOW..=QUEUE_DEVICE_HIGH, 4) if offset == QUEUE_SIZE || offset.is_multiple_of(4) => {
            let Some(queue) = core.configurable_queue() else { return };
            let registers = &mut queue.registers;
            match offset {
                QUEUE_SIZE => registers.size = value,
                QUEUE_DESC_LOW => set_low(&mut registers.descriptors, value),
                QUEUE_DESC_HIGH => set_high(&mut registers.descriptors, value),
                QUEUE_DRIVER_LOW => set_low(&mut registers.available, value),
                QUEUE_DRIVER_HIGH => set_high(&mut registers.available, value),
                QUEUE_DEVICE_LOW => set_low(&mut registers.used, value),
                _ => set_high(&mut registers.used, value),
            }
        }
        _ => core.protocol_error("a common configuration write that fits no register, or one that is not the driver's"),
    }
}
