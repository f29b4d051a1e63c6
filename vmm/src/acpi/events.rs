//! The event device: tells the guest that its power button was pressed. And what of the platform follows the guest.
//!
//! Lives here: the port that the guest reads events from, their interrupt, saved state. Not here: the method that reads it ([`super::dsdt`]), sleep and reset,
//! which end a vCPU's run ([`crate::vcpu`]). Guards S5: an event that the guest has not read yet is state, and its interrupt is raised again after a restore.

use std::io;

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{EVENTS, PORTS};
use crate::devices::{BusDevice, DeviceError};

/// Offset of the one register that is answered here.
const EVENTS_OFFSET: u64 = (EVENTS - PORTS.start) as u64;

/// What of the platform must follow the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlatformState {
    /// Events that the guest has not read.
    pub(crate) events: u8,
    /// The VM generation ID.
    pub(crate) generation_id: [u8; 16],
}

/// The device, behind a mutex shared by vCPU threads and whoever presses the button.
pub(crate) struct Platform {
    state: PlatformState,
    line: EventFd,
}

impl Platform {
    pub(crate) fn new(generation_id: [u8; 16]) -> Result<Platform, DeviceError> {
        let line = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)
            .map_err(|source| DeviceError::EventFd { purpose: "the event device's interrupt", source })?;
        Ok(Platform { state: PlatformState { events: 0, generation_id }, line })
    }

    /// The eventfd to register as irqfd on [`super::EVENTS_GSI`].
    pub(crate) fn irqfd(&self) -> &EventFd {
        &self.line
    }

    pub(crate) fn generation_id(&self) -> [u8; 16] {
        self.state.generation_id
    }

    /// Gives the machine another identity, before a guest is loaded into it: loading writes it to where the guest finds it.
    pub(crate) fn set_generation_id(&mut self, id: [u8; 16]) {
        self.state.generation_id = id;
    }

    /// Has the guest see `event`.
    pub(crate) fn raise(&mut self, event: u8) {
        self.state.events |= event;
        self.interrupt();
    }

    fn interrupt(&self) {
        match self.line.write(1) {
            // A counter at its limit: the interrupt is pending already.
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                tracing::warn!(%error, "the event device's interrupt cannot be raised")
            }
            _ => {}
        }
    }

    pub(crate) fn save(&self) -> PlatformState {
        self.state.clone()
    }

    /// Sets a saved state. After the interrupt chips are set.
    pub(crate) fn restore(&mut self, state: &PlatformState) {
        self.state = state.clone();
        if self.state.events != 0 {
            self.interrupt();
        }
    }

    /// To power-on state: nothing has happened yet, and the machine is the same one as before.
    pub(crate) fn reset(&mut self) {
        self.state.events = 0;
    }
}

impl BusDevice for Platform {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        // Sleep status reads as "never woke up", the others as nothing.
        data.fill(0);
        if let (EVENTS_OFFSET, Some(first)) = (offset, data.first_mut()) {
            *first = std::mem::take(&mut self.state.events);
        }
    }

    fn write(&mut self, _offset: u64, _data: &[u8]) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::acpi::EVENT_POWER_BUTTON;

    fn read(platform: &mut Platform, offset: u64) -> u8 {
        let mut data = [0xff];
        platform.read(offset, &mut data);
        data[0]
    }

    #[test]
    fn an_event_interrupts_once_and_is_read_once() {
        let mut platform = Platform::new([0; 16]).unwrap();
        platform.raise(EVENT_POWER_BUTTON);

        assert_eq!(platform.irqfd().read().unwrap(), 1);
        assert_eq!(read(&mut platform, EVENTS_OFFSET), EVENT_POWER_BUTTON);
        assert_eq!(read(&mut platform, EVENTS_OFFSET), 0);
    }

    #[test]
    fn an_unread_event_survives_a_restore_with_its_interrupt_and_not_a_reset() {
        let mut before = Platform::new([7; 16]).unwrap();
        before.raise(EVENT_POWER_BUTTON);

        let mut after = Platform::new([0; 16]).unwrap();
        after.restore(&before.save());
        assert_eq!(after.irqfd().read().unwrap(), 1);
        assert_eq!(after.generation_id(), [7; 16]);

        after.reset();
        assert_eq!(read(&mut after, EVENTS_OFFSET), 0);
        assert_eq!(after.generation_id(), [7; 16]);
    }

    #[test]
    fn odd_accesses_are_survived() {
        let mut platform = Platform::new([0; 16]).unwrap();
        for offset in [0, 1, 2, 3, 4, u64::MAX] {
            for width in [0, 1, 2, 4, 8] {
                platform.write(offset, &vec![0xff; width]);
                platform.read(offset, &mut vec![0; width]);
            }
        }
    }
}
