//! The function as a driver meets it, and what save and restore preserve.

use std::sync::atomic::Ordering;

use super::testing::*;
use super::*;
use crate::devices::pci::MsiMessage;
use crate::devices::virtio::net::testing::{BOTH, HEADER, MAC, RX, TX, frame};
use crate::devices::virtio::{F_EVENT_IDX, F_VERSION_1, VirtioDevice};
use crate::devices::{DeviceError, MachineDevice, lock};
use crate::layout::PCI_BARS;

#[test]
fn a_driver_finds_a_modern_network_card_by_its_numbers_and_capabilities() {
    let guest = PciGuest::new();
    assert_eq!(guest.config(0, 4), 0x1041_1af4);
    assert_eq!(guest.config(8, 4), 0x0200_0001);
    assert_eq!(guest.config(0x0e, 1), 0, "a plain function, alone in its device");
    assert_eq!(guest.config(0x3d, 1), 0, "no INTx pin");
    let found = guest.found;
    assert_eq!(guest.config(found.msix_at + 2, 2), 2, "three vectors, disabled");
    assert_eq!(found.structures[COMMON].1, 56);
    assert_eq!(found.structures[ISR].1, 1);
    assert!(found.structures[DEVICE].1 >= 6);
    assert_eq!(found.notify_step, 4);
    assert!(found.window_at != 0);
    // Nothing overlaps, and all of it is behind the BAR.
    let mut ranges: Vec<_> = found.structures[1..=4].to_vec();
    ranges.extend([(found.table, 48), (found.pending, 8)]);
    ranges.sort_unstable();
    assert!(ranges.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0));
    assert!(ranges.iter().all(|(offset, length)| offset + length <= BAR_SIZE));
}

#[test]
fn features_queues_and_configuration_read_as_on_the_other_transport() {
    let guest = PciGuest::new();
    guest.set_config(4, 2, 2);
    let mut features = 0;
    for word in 0..3u64 {
        guest.write(COMMON, 0, 4, word);
        assert_eq!(guest.read(COMMON, 0, 4), word);
        let value = guest.read(COMMON, 4, 4);
        features |= value.checked_shl(32 * word as u32).unwrap_or(0);
        assert!(word < 2 || value == 0);
    }
    assert_eq!(features, F_VERSION_1 | F_EVENT_IDX | 1 << 5);
    assert_eq!(guest.read(COMMON, 0x12, 2), 2);
    for (queue, size) in [(0, 256), (1, 256), (2, 0), (0xffff, 0)] {
        guest.write(COMMON, 0x16, 2, queue);
        assert_eq!(guest.read(COMMON, 0x18, 2), size);
        assert_eq!(guest.read(COMMON, 0x1a, 2), 0xffff);
        assert_eq!(guest.read(COMMON, 0x1c, 2), 0);
        assert_eq!(guest.read(COMMON, 0x1e, 2), if size == 0 { 0 } else { queue });
    }
    let mac: Vec<u8> = (0..8).map(|at| guest.read(DEVICE, at, 1) as u8).collect();
    assert_eq!(mac, [&MAC[..], &[0, 0]].concat());
    assert_eq!(lock(&guest.device).core().protocol_errors(), 0);
}

#[test]
fn frames_flow_and_each_queue_has_its_own_interrupt() {
    let guest = PciGuest::running(BOTH);
    assert_eq!(guest.status(), 15);
    let routes: Vec<_> = lock(&guest.kvm.routes).clone().into_iter().collect();
    assert_eq!(routes, [0u32, 1, 2].map(|vector| (GSI + vector, MsiMessage { address: 0xfee0_0000, data: 0x40 + vector })));

    guest.offer_frame(0, &frame(1, 60));
    guest.run();
    assert_eq!(guest.sink.frames(), [frame(1, 60)]);
    assert_eq!(guest.fired(), [0, 0, 1]);

    guest.offer_buffer(0, 2048);
    guest.wire.send(&frame(2, 60)).unwrap();
    guest.run();
    assert_eq!(guest.received(0, 72)[HEADER..], frame(2, 60));
    assert_eq!(guest.fired(), [0, 1, 0]);
    assert_eq!(guest.read(ISR, 0, 1), 0, "with MSI-X the status tells of no queue");
}

#[test]
fn a_broken_device_raises_the_configuration_vector() {
    let guest = PciGuest::running(BOTH);
    guest.set_avail_index(TX, 9999);
    guest.run();
    assert_eq!(guest.status() & 64, 64);
    assert_eq!(guest.fired(), [1, 0, 0]);
    assert_eq!(guest.read(COMMON, 0x15, 1), 1, "and the generation moves");
    assert_eq!(guest.read(ISR, 0, 1), 2);
    assert_eq!(guest.read(ISR, 0, 1), 0, "reading the status clears it");
}

#[test]
fn without_msix_a_driver_can_poll_the_status() {
    let mut guest = PciGuest::new();
    guest.negotiate(BOTH);
    for queue in [RX, TX] {
        guest.set_queue(queue, guest.rings[queue]);
    }
    guest.write(COMMON, 0x14, 1, 15);
    guest.offer_frame(0, &frame(1, 60));
    guest.run();
    assert_eq!(guest.config(6, 2) & 8, 8, "interrupt status in configuration space");
    assert_eq!(guest.read(ISR, 0, 1), 1);
    assert_eq!(guest.config(6, 2) & 8, 0);
    assert_eq!(guest.fired(), [0; 3]);
}

#[test]
fn a_masked_queues_interrupt_is_seen_in_the_pending_bits_and_comes_with_the_unmasking() {
    let guest = PciGuest::running(BOTH);
    let entry = guest.bar + u64::from(guest.found.table) + 2 * 16;
    guest.put(entry + 12, 4, 1);
    guest.offer_frame(0, &frame(1, 60));
    guest.run();
    assert_eq!(guest.fired(), [0; 3]);
    assert_eq!(guest.get(guest.bar + u64::from(guest.found.pending), 8), 4);
    guest.put(entry + 12, 4, 0);
    assert_eq!(guest.fired(), [0, 0, 1]);
    assert_eq!(guest.get(guest.bar + u64::from(guest.found.pending), 8), 0);
}

#[test]
fn a_vector_that_does_not_exist_reads_back_as_none_and_a_reset_takes_all_away() {
    let guest = PciGuest::running(BOTH);
    guest.write(COMMON, 0x10, 2, 3);
    assert_eq!(guest.read(COMMON, 0x10, 2), 0xffff);
    guest.write(COMMON, 0x10, 2, 2);
    guest.write(COMMON, 0x14, 1, 0);
    assert_eq!(guest.read(COMMON, 0x14, 1), 0, "a reset is done when the status reads zero");
    assert_eq!(guest.read(COMMON, 0x10, 2), 0xffff);
    for queue in 0..2 {
        guest.write(COMMON, 0x16, 2, queue);
        assert_eq!(guest.read(COMMON, 0x1a, 2), 0xffff);
        assert_eq!(guest.read(COMMON, 0x1c, 2), 0);
    }
}

#[test]
fn doorbells_follow_the_bar_and_go_when_it_is_not_decoded() {
    let guest = PciGuest::new();
    let bells = |bar: u64| vec![bar + 0x3000, bar + 0x3004];
    assert!(guest.kvm.addresses().is_empty());
    guest.set_config(4, 2, 2);
    assert_eq!(guest.kvm.addresses(), bells(BAR));
    // Sizing with decoding left on: for a moment the BAR is elsewhere.
    guest.set_config(0x10, 4, 0xffff_ffff);
    assert!(guest.kvm.addresses().is_empty());
    assert_eq!(guest.config(0x10, 4), 0xffff_8000);
    let moved = PCI_BARS.start + 0x100_0000;
    guest.set_config(0x10, 4, moved);
    assert_eq!(guest.kvm.addresses(), bells(moved));
    guest.set_config(0x10, 4, 0x10_0000);
    assert!(guest.kvm.addresses().is_empty(), "not over memory");
    guest.set_config(0x10, 4, moved);
    guest.set_config(4, 1, 0);
    assert!(guest.kvm.addresses().is_empty());
}

#[test]
fn a_kick_that_kvm_did_not_take_works_all_the_same() {
    let guest = PciGuest::new();
    guest.kvm.refuse.store(true, Ordering::SeqCst);
    guest.set_config(4, 2, 2);
    assert!(guest.kvm.addresses().is_empty());
    guest.take_kicks();
    for (queue, kicked) in [(0u64, [true, false]), (1, [false, true]), (2, [false, false])] {
        guest.put(guest.bar + 0x3000 + 4 * queue, 2, queue);
        assert_eq!(guest.take_kicks(), kicked);
    }
    guest.kvm.refuse.store(false, Ordering::SeqCst);
    guest.set_config(4, 2, 0);
    guest.set_config(4, 2, 2);
    assert_eq!(guest.kvm.addresses().len(), 2, "and is offered again when the BAR is");
}

/// A driver that has no way to the BAR reaches all of it through configuration space (4.1.4.9).
#[test]
fn the_window_in_configuration_space_reaches_every_structure() {
    let guest = PciGuest::running(BOTH);
    let window = |offset: u64, length: u64| {
        guest.set_config(guest.found.window_at + 4, 1, 0);
        guest.set_config(guest.found.window_at + 8, 4, offset);
        guest.set_config(guest.found.window_at + 12, 4, length);
    };
    let data = guest.found.window_at + 16;
    window(u64::from(guest.found.structures[COMMON].0) + 0x14, 1);
    assert_eq!(guest.config(data, 4) & 0xff, 15);
    window(u64::from(guest.found.structures[DEVICE].0), 4);
    assert_eq!(guest.config(data, 4) as u32, u32::from_le_bytes([MAC[0], MAC[1], MAC[2], MAC[3]]));
    window(u64::from(guest.found.structures[NOTIFY].0) + 4, 2);
    guest.set_config(data, 4, 1);
    assert_eq!(guest.take_kicks(), [false, true]);
    window(u64::from(guest.found.structures[COMMON].0) + 0x14, 1);
    guest.set_config(data, 4, 0);
    assert_eq!(guest.status(), 0, "reset through the window");
    for (offset, length) in [(1, 2), (0, 3), (u64::from(BAR_SIZE), 4), (0xffff_fffc, 4), (0, 8), (0, 0)] {
        window(offset, length);
        guest.set_config(data, 4, 0x0b0b_0b0b);
        assert_eq!(guest.config(data, 4), 0x0b0b_0b0b, "a window that is not well set up is plain storage");
    }
}

#[test]
fn a_restored_function_goes_on_where_the_saved_one_stopped_and_raises_every_interrupt() {
    let mut guest = PciGuest::running(BOTH);
    guest.bar = PCI_BARS.start + 0x20_0000;
    guest.set_config(0x10, 4, guest.bar);
    guest.set_config(guest.found.window_at + 8, 4, 0x14);
    // Vector 1 is masked, and something waits behind it.
    let entry = guest.bar + u64::from(guest.found.table) + 16;
    guest.put(entry + 12, 4, 1);
    guest.offer_buffer(0, 2048);
    guest.wire.send(&frame(1, 60)).unwrap();
    guest.run();
    guest.offer_frame(0, &frame(2, 60));
    let (device, function) = (lock(&guest.device).save_state(), lock(&guest.function).save());
    let text = serde_json::to_string(&function).unwrap();
    assert_eq!(serde_json::from_str::<PciState>(&text).unwrap(), function);

    let mut other = PciGuest::with_memory(guest.memory.clone());
    other.bar = guest.bar;
    lock(&other.function).restore(&function).unwrap();
    lock(&other.device).restore_state(&device).unwrap();
    assert_eq!(lock(&other.function).save(), function);
    assert_eq!(*lock(&other.kvm.routes), {
        let mut routes = lock(&guest.kvm.routes).clone();
        routes.remove(&(GSI + 1));
        routes
    });
    assert_eq!(other.kvm.addresses(), guest.kvm.addresses());
    assert_eq!(other.fired(), [0; 3], "nothing before the activation");

    lock(&other.device).wake().unwrap();

    assert_eq!(other.take_kicks(), [true, true]);
    assert_eq!(other.fired(), [1, 0, 1], "the masked one waits");
    other.put(entry + 12, 4, 0);
    assert_eq!(other.fired(), [0, 1, 0]);
    assert_eq!(lock(&other.kvm.routes).len(), 3);
    other.run();
    assert_eq!(other.sink.frames(), [frame(2, 60)]);
    assert_eq!(other.fired(), [0, 0, 1]);
}

#[test]
fn a_state_that_does_not_fit_is_refused_by_name() {
    let guest = PciGuest::running(BOTH);
    let good = lock(&guest.function).save();
    let refused = |change: &dyn Fn(&mut PciState)| {
        let mut state = good.clone();
        change(&mut state);
        lock(&PciGuest::new().function).restore(&state).expect_err("must be refused")
    };
    assert!(matches!(refused(&|state| state.version = 2), DeviceError::StateVersion { found: 2, .. }));
    assert!(matches!(refused(&|state| state.config[2] = 0x42), DeviceError::StateMismatch { .. }));
    assert!(matches!(refused(&|state| state.config.clear()), DeviceError::StateMismatch { .. }));
    assert!(matches!(refused(&|state| state.msix.entries.clear()), DeviceError::StateMismatch { .. }));
    assert!(matches!(refused(&|state| state.queue_vectors.push(0)), DeviceError::StateMismatch { .. }));
    lock(&PciGuest::new().function).restore(&good).unwrap();
}

/// The handler of a guest's interrupt, and whoever masks one, must not wait for a batch in the worker.
#[test]
fn status_and_masks_answer_while_the_device_is_locked() {
    let guest = PciGuest::running(BOTH);
    let device = guest.device.clone();
    let _batch = lock(&device);
    assert_eq!(guest.read(ISR, 0, 1), 0);
    guest.program(1, 0x55);
    assert_eq!(lock(&guest.kvm.routes)[&(GSI + 1)].data, 0x55);
    guest.put(guest.bar + 0x3000, 2, 0);
}
