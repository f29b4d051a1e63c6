//! Says so when the guest's kernel shows no sign of the drivers that its devices need.
//!
//! Lives here: when to look, and what to advise. Not here: what a sign is (`vmm`: the driver has said DRIVER_OK). A guest without a driver for its disk waits in
//! its initramfs for ever, without a word to anybody outside: this is the word.

use std::sync::Arc;
use std::time::Duration;

use types::event::{NodeEventKind, Report};
use vmm::Machine;

use super::NodeError;
use crate::config::Bus;

/// How long a kernel may take to get to its drivers: half a minute is slow for a kernel that boots with its machine under emulation.
const PATIENCE: Duration = Duration::from_secs(60);

/// What to tell about the devices that have no driver, out of `devices`. Names are the machine's: "net0", "disk1", "rng".
fn warning(undriven: &[String], devices: usize, bus: Bus) -> Option<String> {
    let transport = match bus {
        Bus::Pci => "virtio_pci",
        Bus::Mmio => "virtio_mmio",
    };
    if undriven.is_empty() {
        return None;
    }
    let mut modules: Vec<&str> = Vec::new();
    // One driver at work proves the bus.
    if undriven.len() == devices {
        modules.push(transport);
    }
    for name in undriven {
        let module = match name.trim_end_matches(|c: char| c.is_ascii_digit()) {
            "net" => "virtio_net",
            "disk" => "virtio_blk",
            "rng" => "virtio_rng",
            _ => continue,
        };
        if !modules.contains(&module) {
            modules.push(module);
        }
    }
    let has = if undriven.len() == 1 { "has" } else { "have" };
    Some(format!(
        "after {} s {} {has} no driver in the guest: its kernel or initramfs may lack {}{}",
        PATIENCE.as_secs(),
        undriven.join(", "),
        modules.join(", "),
        if undriven.len() == devices { ", it may use another --bus, or it has not booted (see its console)" } else { "" }
    ))
}

/// Looks once, after a time, whether every device has found its driver.
///
/// # Errors
/// The host refuses a thread.
pub(super) fn watch(machine: &Arc<Machine>, bus: Bus, report: &Report) -> Result<(), NodeError> {
    let (machine, report) = (Arc::downgrade(machine), Arc::clone(report));
    let body = move || {
        std::thread::sleep(PATIENCE);
        let Some(machine) = machine.upgrade() else { return };
        if let Some(text) = warning(&machine.undriven_devices(), machine.devices(), bus) {
            tracing::warn!("{text}");
            report(NodeEventKind::Warning { text });
        }
    };
    let spawned = std::thread::Builder::new().name("drivers".to_owned()).spawn(body);
    spawned.map(drop).map_err(|source| NodeError::Host { what: "a thread that looks for drivers", source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(undriven: &[&str], devices: usize, bus: Bus) -> Option<String> {
        warning(&undriven.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>(), devices, bus)
    }

    #[test]
    fn a_guest_that_drives_everything_is_not_spoken_of() {
        assert_eq!(told(&[], 3, Bus::Pci), None);
    }

    #[test]
    fn a_device_without_a_driver_is_named_with_its_module() {
        let text = told(&["disk1"], 3, Bus::Pci).unwrap();
        assert!(text.contains("disk1 has no driver") && text.ends_with("virtio_blk"), "{text}");
    }

    #[test]
    fn when_nothing_is_driven_the_bus_is_suspected_too() {
        for (bus, module) in [(Bus::Pci, "virtio_pci"), (Bus::Mmio, "virtio_mmio")] {
            let text = told(&["net0", "net1", "disk0", "rng"], 4, bus).unwrap();
            assert!(text.contains("have no driver") && text.contains(&format!("{module}, virtio_net, virtio_blk, virtio_rng")), "{text}");
        }
    }
}
