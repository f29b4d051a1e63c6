//! The register file as a driver meets it: identification, negotiation, the order of the status bits.

use super::*;
use crate::devices::virtio::net::testing::{BOTH, MAC, RX, TX, TestGuest};
use crate::devices::virtio::{F_EVENT_IDX, F_VERSION_1, STATUS_DRIVER_OK, STATUS_FEATURES_OK};

fn protocol_errors(guest: &TestGuest) -> u64 {
    lock(&guest.device).core().protocol_errors()
}

#[test]
fn a_driver_finds_a_modern_network_card_with_two_queues() {
    let mut guest = TestGuest::new();
    assert_eq!(guest.read(MAGIC), 0x7472_6976);
    assert_eq!(guest.read(VERSION), 2);
    assert_eq!(guest.read(DEVICE_ID), 1);
    let mut features = [0; 3];
    for (page, word) in features.iter_mut().enumerate() {
        guest.write(DEVICE_FEATURES_SEL, page as u32);
        *word = guest.read(DEVICE_FEATURES);
    }
    assert_eq!(u64::from(features[1]) << 32 | u64::from(features[0]), F_VERSION_1 | F_EVENT_IDX | 1 << 5);
    assert_eq!(features[2], 0);
    for (queue, largest) in [(0, 256), (1, 256), (2, 0), (u32::MAX, 0)] {
        guest.write(QUEUE_SEL, queue);
        assert_eq!(guest.read(QUEUE_NUM_MAX), largest);
        assert_eq!(guest.read(QUEUE_READY), 0);
    }
    assert_eq!(guest.read(SHM_LEN_LOW), u32::MAX);
    assert_eq!(protocol_errors(&guest), 0);
}

#[test]
fn the_configuration_space_holds_the_mac_in_any_width_and_zeroes_behind_it() {
    let mut guest = TestGuest::new();
    let mut bytes = [0xaa; 8];
    for (offset, byte) in bytes.iter_mut().enumerate() {
        guest.transport.read(CONFIG + offset as u64, std::slice::from_mut(byte));
    }
    assert_eq!(bytes, [MAC[0], MAC[1], MAC[2], MAC[3], MAC[4], MAC[5], 0, 0]);
    let mut wide = [0; 4];
    guest.transport.read(CONFIG + 2, &mut wide);
    assert_eq!(wide, MAC[2..]);
    guest.transport.read(u64::MAX, &mut wide);
    assert_eq!(wide, [0; 4]);
}

#[test]
fn features_that_were_not_offered_or_lack_version_1_are_not_accepted() {
    for features in [F_VERSION_1 | 1, F_VERSION_1 | 1 << 40, F_EVENT_IDX, 0] {
        let mut guest = TestGuest::new();
        guest.negotiate(features);
        assert_eq!(guest.status() & STATUS_FEATURES_OK, 0, "{features:#x}");
        assert_eq!(protocol_errors(&guest), 1);
    }
    let mut guest = TestGuest::new();
    guest.negotiate(F_VERSION_1);
    assert_eq!(guest.status(), 11);
}

#[test]
fn the_status_cannot_skip_or_go_back_except_to_zero() {
    let mut guest = TestGuest::new();
    guest.write(STATUS, 7);
    assert_eq!(guest.status() & STATUS_DRIVER_OK, 0, "DRIVER_OK needs FEATURES_OK");
    guest.start(BOTH);
    assert_eq!(guest.status(), 15);
    guest.write(STATUS, 1);
    assert_eq!(guest.status(), 15);
    guest.write(STATUS, 15 | 64);
    assert_eq!(guest.status(), 15, "only the device sets NEEDS_RESET");
    guest.write(STATUS, 0);
    assert_eq!(guest.status(), 0);
    guest.write(QUEUE_SEL, TX as u32);
    assert_eq!(guest.read(QUEUE_READY), 0);
}

#[test]
fn a_running_queue_cannot_be_moved() {
    let mut guest = TestGuest::running(BOTH);
    let before = lock(&guest.device).save();
    guest.write(QUEUE_SEL, RX as u32);
    for register in [QUEUE_NUM, QUEUE_DESC_LOW, QUEUE_DESC_HIGH, QUEUE_DRIVER_LOW, QUEUE_DRIVER_HIGH, QUEUE_DEVICE_LOW, QUEUE_DEVICE_HIGH] {
        guest.write(register, 0x1230);
    }
    guest.write(DRIVER_FEATURES, 0);
    guest.write(QUEUE_SEL, TX as u32);
    assert_eq!(lock(&guest.device).save(), before);
    assert_eq!(protocol_errors(&guest), 8);
}

#[test]
fn accesses_of_odd_width_or_to_no_register_change_nothing() {
    let mut guest = TestGuest::running(BOTH);
    let before = lock(&guest.device).save();
    for width in [0, 1, 2, 3, 5, 8] {
        for offset in [STATUS, QUEUE_READY, INTERRUPT_ACK, 0xff] {
            guest.transport.write(offset, &vec![0; width]);
            let mut data = vec![0xaa; width];
            guest.transport.read(offset, &mut data);
            assert!(data.iter().all(|byte| *byte == 0));
        }
    }
    guest.transport.write(CONFIG, &[1; 4]);
    guest.write(QUEUE_NOTIFY, 99);
    guest.write(MAGIC, 1);
    assert_eq!(lock(&guest.device).save(), before);
}

/// The handler of a guest's interrupt must not wait for a batch in the worker.
#[test]
fn the_interrupt_registers_answer_while_the_device_is_locked() {
    let mut guest = TestGuest::running(BOTH);
    let device = guest.device.clone();
    let _batch = lock(&device);
    assert_eq!(guest.read(INTERRUPT_STATUS), 0);
    guest.write(INTERRUPT_ACK, 3);
    guest.write(QUEUE_NOTIFY, 0);
}
