//! A guest that writes anything anywhere: the worst is that it no longer finds its own device (S7).

use proptest::prelude::*;

use super::testing::*;
use crate::devices::virtio::net::testing::{BOTH, TX, frame};
use crate::devices::{MachineDevice, lock};
use crate::layout::{PCI_BARS, PCI_ECAM, PCI_PORTS};

#[derive(Clone, Debug)]
enum Access {
    Memory { address: u64, data: Vec<u8> },
    Port { address: u64, data: Vec<u8> },
    Batch,
}

/// Values that mean something somewhere, besides any.
fn data() -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![
        any::<u32>(),
        prop::sample::select(vec![
            0u32,
            1,
            2,
            6,
            0xf,
            0x8000,
            0xc000,
            0xffff_ffff,
            0xfee0_0000,
            BAR as u32,
            0xe200_0000,
            0x8000_0804,
            4,
            0x14
        ])
    ];
    prop_oneof![
        4 => word.clone().prop_map(|word| word.to_le_bytes().to_vec()),
        2 => word.clone().prop_map(|word| word.to_le_bytes()[..2].to_vec()),
        2 => word.prop_map(|word| word.to_le_bytes()[..1].to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..17),
    ]
}

fn access() -> impl Strategy<Value = Access> {
    let own = PCI_ECAM.start + (1 << 15);
    let address = prop_oneof![
        6 => own..own + 0xb0,
        1 => PCI_ECAM,
        4 => (0u64..6, 0u64..0x40).prop_map(|(page, offset)| BAR + page * 0x1000 + offset),
        1 => PCI_BARS,
        1 => 0xe200_0000u64..0xe200_8000,
    ];
    prop_oneof![
        8 => (address, data()).prop_map(|(address, data)| Access::Memory { address, data }),
        2 => (PCI_PORTS, data()).prop_map(|(address, data)| Access::Port { address, data }),
        1 => Just(Access::Batch),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// No panic; doorbells only where the decoded BAR is, inside the window; no identity lost; any state reached can be saved and restored; and after a reset by the
    /// rules the device works again.
    #[test]
    fn no_access_does_harm_and_a_reset_always_helps(accesses in prop::collection::vec(access(), 0..120), running in any::<bool>()) {
        let mut guest = PciGuest::new();
        if running {
            guest.start(BOTH);
        }
        let identity = guest.config(0, 4);
        for access in &accesses {
            match access {
                Access::Memory { address, data } => {
                    guest.space.write(*address, data);
                    guest.space.read(*address, &mut vec![0; data.len()]);
                }
                Access::Port { address, data } => {
                    guest.ports.write(*address, data);
                    guest.ports.read(*address, &mut vec![0; data.len()]);
                }
                Access::Batch => {
                    guest.run();
                }
            }
            let bar = guest.config(0x10, 4);
            let decoded = guest.config(4, 2) & 2 != 0;
            let bells = guest.kvm.addresses();
            if !decoded || bar < PCI_BARS.start || bar + 0x8000 > PCI_BARS.end {
                prop_assert!(bells.is_empty());
            } else {
                prop_assert_eq!(bells, vec![bar + 0x3000, bar + 0x3004]);
            }
            prop_assert!(lock(&guest.kvm.routes).values().all(|message| message.address >> 20 == 0xfee));
        }
        prop_assert_eq!(guest.config(0, 4), identity);

        let (device, function, root) = (lock(&guest.device).save_state(), lock(&guest.function).save(), guest.root.save());
        let mut other = PciGuest::with_memory(guest.memory.clone());
        lock(&other.function).restore(&function).unwrap();
        lock(&other.device).restore_state(&device).unwrap();
        other.root.restore(&root).unwrap();
        prop_assert_eq!(lock(&other.function).save(), function);
        prop_assert_eq!(other.kvm.addresses(), guest.kvm.addresses());
        lock(&other.device).wake().unwrap();

        // A new driver sets it up by the rules.
        other.set_config(other.found.msix_at + 2, 2, 0);
        other.set_config(0x10, 4, BAR);
        for queue in 0..2 {
            let rings = other.rings[queue];
            for at in [rings.available, rings.used] {
                vm_memory::Bytes::write_slice(&other.memory, &[0; 256], vm_memory::GuestAddress(at)).unwrap();
            }
        }
        other.start(BOTH);
        other.offer_frame(0, &frame(1, 60));
        other.run();
        prop_assert_eq!(other.used(TX).len(), 1);
        prop_assert_eq!(other.fired()[2], 1);
    }
}
