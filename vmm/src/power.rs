//! The machine's power: booting it, its button, reset, and its identity.
//!
//! Lives here: what puts a machine into the state of a PC that was just switched on, with a kernel ready to be entered. Not here: what is in memory then
//! ([`crate::boot`]), who decides ([`crate::MachineEvent`] tells). Guards S5: a reset writes memory through its log and leaves every part in a state that
//! the next capture carries, so it is guest progress like any other, and may happen while the machine is protected.
//!
//! **How a reset is done.** Each machine captures its own state when it has just been made and nothing has run. A reset restores that state into the stopped
//! machine, part by part, except what goes on counting through a PC's reset: the time stamp counters and kvmclock. Then the boot images are loaded again.
//! What else is in memory stays: as on a PC, and because clearing it would make a guest's reboot cost a copy of all of memory.

use crate::{
    BootConfig, BootImages, Machine, Paused, VmmError,
    acpi::{EVENT_POWER_BUTTON, Hardware},
    attach,
    boot::{self, Entry, entry},
    devices::{DeviceError, lock},
    machine::Phase,
    raw,
    vcpu::{Ending, state},
};

fn failed(device: &str) -> impl FnOnce(DeviceError) -> VmmError {
    move |error| VmmError::Device { device: device.to_owned(), reason: error.to_string() }
}

impl Machine {
    /// Loads a kernel and prepares the first vCPU to enter it. For the primary, once, before `start`.
    ///
    /// # Errors
    /// When an image cannot be read or is not one, or the machine is not empty.
    pub fn boot(&mut self, boot: &BootConfig) -> Result<(), VmmError> {
        self.boot_images(&BootImages::open(boot)?)
    }

    /// As [`Machine::boot`], from images that are open already. The guest becomes another than any before: it gets a new VM generation ID.
    ///
    /// # Errors
    /// When an image cannot be read or is not one, or the machine is not empty.
    pub fn boot_images(&mut self, images: &BootImages) -> Result<(), VmmError> {
        if lock(&self.control).phase != Phase::Empty {
            return Err(VmmError::WrongState { what: "boot the machine", why: "it holds a guest already" });
        }
        lock(&self.platform).set_generation_id(raw::random_id().map_err(VmmError::io("getrandom"))?);
        let entry = boot::load(images, &self.memory, self.bytes, &self.hardware())?;
        self.enter(entry)?;
        lock(&self.control).phase = Phase::Booted;
        Ok(())
    }

    /// Has the first vCPU begin at `entry`.
    fn enter(&self, entry: Entry) -> Result<(), VmmError> {
        self.on_vcpu(0, move |vcpu| {
            let sregs = vcpu.fd.get_sregs().map_err(VmmError::kvm("KVM_GET_SREGS"))?;
            let (regs, sregs) = entry::registers(entry, sregs);
            vcpu.fd.set_sregs(&sregs).map_err(VmmError::kvm("KVM_SET_SREGS"))?;
            vcpu.fd.set_regs(&regs).map_err(VmmError::kvm("KVM_SET_REGS"))
        })
    }

    fn hardware(&self) -> Hardware {
        Hardware {
            vcpus: self.seats.len() as u8,
            mmio: attach::mmio_windows(&self.devices),
            pci: self.pci.is_some(),
            generation_id: lock(&self.platform).generation_id(),
        }
    }

    /// Presses the power button, as a person would: a guest that listens shuts itself down and the machine says so with
    /// [`crate::MachineEvent::Shutdown`]. One that does not (the built-in guest, a kernel that is still booting) takes no notice.
    pub fn press_power_button(&self) {
        lock(&self.platform).raise(EVENT_POWER_BUTTON);
    }
}

impl Paused<'_> {
    /// Whether a vCPU stands still because the guest asked for a reset that has not been carried out.
    #[must_use]
    pub fn reset_is_asked(&self) -> bool {
        self.machine().seats.iter().any(|seat| seat.ending() == Some(Ending::Reset))
    }

    /// Puts the machine into the state of power-on and loads `images`, so that the guest boots anew when the pause ends. The VM generation ID stays: the
    /// guest is the one it was.
    ///
    /// # Errors
    /// When an image cannot be read any more or KVM refuses; the machine must then not be resumed.
    pub fn reset(&mut self, images: &BootImages) -> Result<(), VmmError> {
        let machine = self.machine();
        let Some(power_on) = &machine.power_on else {
            return Err(VmmError::WrongState { what: "reset the machine", why: "its state at power-on was not captured" });
        };
        images.warn_if_changed();
        let entry = boot::load(images, &machine.memory, machine.bytes, &machine.hardware())?;
        for (index, saved) in power_on.vcpus.iter().enumerate() {
            let (kit, saved) = (machine.kit.clone(), Box::new(saved.clone()));
            machine.on_vcpu(index, move |vcpu| state::reset(&vcpu.fd, &kit, &saved))?;
        }
        power_on.vm.restore_chips(&machine.vm)?;
        if let (Some(root), Some(saved)) = (&machine.pci, &power_on.pci) {
            root.restore(saved).map_err(failed("PCI bus"))?;
        }
        for (attached, saved) in machine.devices.iter().zip(&power_on.devices) {
            attached.reset(saved).map_err(failed(&attached.name))?;
        }
        lock(&machine.serial).restore(&power_on.serial).map_err(failed("serial console"))?;
        lock(&machine.platform).reset();
        machine.enter(entry)?;
        machine.seats.iter().for_each(|seat| seat.end_was_undone());
        tracing::debug!("the machine was reset");
        Ok(())
    }
}
