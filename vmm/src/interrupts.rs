//! KVM's table of interrupt routes: what each line (GSI) does when it is raised.
//!
//! Lives here: the table, which has this one owner because KVM takes it only whole. Not here: who raises lines. Guards S5: the table is no state; it follows from the
//! devices' MSI-X tables and is rebuilt when these are restored.
//!
//! Lines 0 to 23 are the IOAPIC's pins, and nothing else's: KVM's own table (arch/x86/kvm/irq_comm.c, default_routing) leads the first 16 to the 8259s too, which guests are
//! told do not exist (ACPI of reduced hardware) and so never set up; they would inject vectors 0 to 15. Lines from 24 on are messages. They go to vectors in the order
//! in which devices are made, and no guest ever sees their numbers.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex},
};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_MAX_IRQ_ROUTES, KvmIrqRouting, kvm_irq_routing_entry,
    kvm_irq_routing_irqchip, kvm_irq_routing_msi,
};
use kvm_ioctls::VmFd;

use crate::{
    devices::{
        lock,
        pci::{MsiMessage, MsiRouter},
    },
    layout::LAST_PIN,
};

/// First line that is a message.
const FIRST_MESSAGE: u32 = LAST_PIN + 1;

/// The owner of the table.
pub(crate) struct GsiRouter {
    vm: Arc<VmFd>,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    given: u32,
    messages: BTreeMap<u32, MsiMessage>,
}

impl GsiRouter {
    /// Sets the table for a VM that has its interrupt chips: pins, and no messages.
    ///
    /// # Errors
    /// The kernel's, when it does not take the table.
    pub(crate) fn new(vm: Arc<VmFd>) -> io::Result<GsiRouter> {
        let router = GsiRouter { vm, table: Mutex::default() };
        router.route(&[])?;
        Ok(router)
    }

    /// Gives out `count` lines for messages. None when KVM's table could not hold them.
    pub(crate) fn lines(&self, count: usize) -> Option<Vec<u32>> {
        let mut table = lock(&self.table);
        let first = FIRST_MESSAGE + table.given;
        let after = u32::try_from(count).ok().and_then(|count| first.checked_add(count))?;
        if after as usize + pins().len() > KVM_MAX_IRQ_ROUTES {
            return None;
        }
        table.given = after - FIRST_MESSAGE;
        Some((first..after).collect())
    }
}

impl MsiRouter for GsiRouter {
    fn route(&self, changes: &[(u32, Option<MsiMessage>)]) -> io::Result<()> {
        let mut table = lock(&self.table);
        let mut messages = table.messages.clone();
        for (gsi, message) in changes {
            match message {
                Some(message) => messages.insert(*gsi, *message),
                None => messages.remove(gsi),
            };
        }
        let mut entries = pins();
        entries.extend(messages.iter().map(|(gsi, message)| message_entry(*gsi, *message)));
        let routing = KvmIrqRouting::from_entries(&entries).map_err(|error| io::Error::other(format!("{error:?}")))?;
        self.vm.set_gsi_routing(&routing).map_err(|errno| io::Error::from_raw_os_error(errno.errno()))?;
        table.messages = messages;
        Ok(())
    }
}

/// Every pin's route.
fn pins() -> Vec<kvm_irq_routing_entry> {
    (0..=LAST_PIN)
        .map(|pin| {
            let mut entry = kvm_irq_routing_entry { gsi: pin, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
            entry.u.irqchip = kvm_irq_routing_irqchip { irqchip: KVM_IRQCHIP_IOAPIC, pin };
            entry
        })
        .collect()
}

fn message_entry(gsi: u32, message: MsiMessage) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    entry.u.msi = kvm_irq_routing_msi { address_lo: message.address, address_hi: 0, data: message.data, ..Default::default() };
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A router over a real VM with interrupt chips; none, loudly, where there is no KVM and it is not required.
    fn router() -> Option<GsiRouter> {
        match crate::open_kvm() {
            Ok(kvm) => {
                let vm = kvm.create_vm().unwrap();
                vm.create_irq_chip().unwrap();
                Some(GsiRouter::new(Arc::new(vm)).unwrap())
            }
            Err(error) => {
                assert!(!std::env::var("LOCKSTEP_REQUIRE_KVM").is_ok_and(|value| value == "1"), "{error}");
                eprintln!("SKIPPED, NOTHING TESTED: {error}");
                None
            }
        }
    }

    #[test]
    fn every_pin_has_its_route_and_messages_come_after() {
        let entries = pins();
        assert_eq!(entries.len(), 24);
        assert!(entries.iter().all(|entry| entry.gsi <= LAST_PIN));
        assert_eq!(FIRST_MESSAGE, 24);
    }

    #[test]
    fn lines_are_given_out_once_and_end_where_kvms_table_does() {
        let Some(router) = router() else { return };
        assert_eq!(router.lines(3).unwrap(), [24, 25, 26]);
        assert_eq!(router.lines(2).unwrap(), [27, 28]);
        assert!(router.lines(KVM_MAX_IRQ_ROUTES).is_none());
        assert!(router.lines(usize::MAX).is_none());
        assert_eq!(router.lines(1).unwrap(), [29], "a refusal takes none");
    }

    #[test]
    fn kvm_takes_messages_added_changed_and_removed_whatever_a_guest_put_in() {
        let Some(router) = router() else { return };
        let message = |data| Some(MsiMessage { address: 0xfee0_0000, data });
        router.route(&[(24, message(0x31)), (25, message(0x32))]).unwrap();
        router.route(&[(24, message(u32::MAX)), (25, None)]).unwrap();
        assert_eq!(lock(&router.table).messages.len(), 1);
        router.route(&[(26, Some(MsiMessage { address: 0xfeef_ffff, data: 0 })), (25, None)]).unwrap();
        assert_eq!(lock(&router.table).messages.len(), 2);
    }
}
