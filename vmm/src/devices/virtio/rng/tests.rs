//! The entropy source: what it gives, within which bounds, and what a hostile driver gets.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::device::{BATCH_REQUESTS, REQUEST_BYTES};
use super::*;
use crate::devices::lock;
use crate::devices::virtio::testing::{Driver, copy_of, memory};
use crate::devices::virtio::{F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1};
use crate::devices::worker::WorkerDevice;

const ALL: u64 = F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC;

/// Counts up, and can run dry.
#[derive(Clone, Default)]
struct Counting {
    next: Arc<AtomicU64>,
    dry: Arc<AtomicBool>,
}

impl Entropy for Counting {
    fn fill(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        if self.dry.load(Ordering::SeqCst) {
            return Err(io::Error::from_raw_os_error(libc::EAGAIN));
        }
        bytes.fill_with(|| self.next.fetch_add(1, Ordering::SeqCst) as u8 | 1);
        Ok(())
    }
}

fn running() -> (Driver<RngDevice>, Counting) {
    let (memory, source) = (memory(), Counting::default());
    let mut driver = Driver::new(memory.clone(), RngDevice::new(memory, Box::new(source.clone())).unwrap());
    driver.start(ALL);
    (driver, source)
}

#[test]
fn a_request_is_filled_over_all_its_buffers() {
    let (mut driver, _) = running();
    assert_eq!(driver.read(8), 4, "device type");
    driver.set_chain(0, &[(0x10_0000, 3, true), (0x11_0000, 0, true), (0x12_0000, 61, true)]);
    driver.make_available(0);
    assert!(!driver.run().more);
    assert_eq!(driver.used(), [(0, 64)]);
    assert!(driver.bytes(0x10_0000, 3).iter().chain(&driver.bytes(0x12_0000, 61)).all(|&byte| byte != 0));
    assert_eq!(driver.bytes(0x10_0003, 1), [0]);
    assert!(driver.forget_events(), "the driver is interrupted");
    assert_eq!(lock(&driver.device).metrics().counts().bytes, 64);
}

#[test]
fn a_request_for_very_much_gets_a_part_and_a_batch_is_bounded() {
    let (mut driver, _) = running();
    for head in 0..64 {
        driver.set_chain(head, &[(0x10_0000, 1 << 20, true)]);
        driver.make_available(head);
    }
    driver.dirty_pages();
    assert!(driver.run().more);
    assert_eq!(driver.used(), (0..BATCH_REQUESTS as u16).map(|head| (head, REQUEST_BYTES as u32)).collect::<Vec<_>>());
    assert!(driver.dirty_pages().contains(&0x10_0000));
    assert!(lock(&driver.device).run_batch(&AtomicBool::new(true)).more, "asked to leave, it comes back");
    assert!(driver.used().is_empty());
    driver.run_all();
    assert_eq!(driver.used().len(), 64 - BATCH_REQUESTS);
}

#[test]
fn without_entropy_the_request_waits_for_the_next_kick() {
    let (mut driver, source) = running();
    source.dry.store(true, Ordering::SeqCst);
    driver.set_chain(0, &[(0x10_0000, 8, true)]);
    driver.make_available(0);
    assert!(!driver.run().more, "no busy loop");
    source.dry.store(false, Ordering::SeqCst);
    driver.run();
    assert_eq!(driver.used(), [(0, 8)]);
}

#[test]
fn a_hostile_request_breaks_the_device_until_it_is_reset() {
    for (buffers, reason) in [
        (&[(0x10_0000u64, 8u32, false)][..], "may not write"),
        (&[(0x10_0000, 0, true)], "0 bytes"),
        (&[(1 << 50, 8, true)], "outside guest memory"),
        (&[(u64::MAX, 8, true)], "outside guest memory"),
    ] {
        let (mut driver, _) = running();
        driver.set_chain(0, buffers);
        driver.make_available(0);
        driver.run();
        let why = driver.broken().expect("broken");
        assert!(why.contains(reason), "{why}");
        assert!(driver.used().is_empty());
        driver.start(ALL);
        driver.set_chain(0, &[(0x10_0000, 8, true)]);
        driver.make_available(0);
        driver.run();
        assert_eq!(driver.used(), [(0, 8)]);
    }
}

#[test]
fn a_restored_source_serves_what_the_saved_one_had_not() {
    let (driver, _) = running();
    driver.set_chain(0, &[(0x10_0000, 8, true)]);
    driver.make_available(0);
    let state = lock(&driver.device).save();
    let memory = copy_of(&driver.memory);
    let mut other = Driver::new(memory.clone(), RngDevice::new(memory, Box::new(HostEntropy)).unwrap());
    lock(&other.device).restore(&state).unwrap();
    lock(&other.device).activate();
    assert!(other.forget_events(), "queue and interrupt are signalled");
    other.run();
    assert_eq!(other.used(), [(0, 8)]);
    let mut old = state;
    old.version += 1;
    assert!(lock(&other.device).restore(&old).is_err());
}

#[test]
fn the_hosts_bytes_differ_each_time() {
    let (mut first, mut second) = ([0; 300], [0; 300]);
    HostEntropy.fill(&mut first).unwrap();
    HostEntropy.fill(&mut second).unwrap();
    assert_ne!(first, second);
}
