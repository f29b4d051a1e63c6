//! A disk served by the device worker: answers wake it, parking stops everything, and a full backend is tried again on the word.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::testing::*;
use crate::devices::worker::DeviceWorker;

const PATIENCE: Duration = Duration::from_secs(10);

/// For a state that no event announces.
fn wait(condition: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "waited too long");
        std::thread::yield_now();
    }
}

fn kick(guest: &Guest) {
    guest.driver.transport.kicks()[0].write(1).unwrap();
}

#[test]
fn an_answer_of_the_disk_wakes_the_worker_and_a_parked_one_gives_none() {
    let mut guest = Guest::running(ALL);
    let (worker, parked) = DeviceWorker::start(vec![guest.driver.device.clone()]).unwrap();
    guest.offer(0, T_IN, 0, &[(data_at(0), 4096)]);
    kick(&guest);
    assert!(guest.disk.pending().is_empty(), "parked from the start");
    drop(parked);
    wait(|| guest.disk.pending().len() == 1);
    guest.disk.answer(0);
    wait(|| guest.driver.used_index() == 1);
    assert!(guest.driver.transport.irqfd().read().is_ok());

    guest.offer(1, T_FLUSH, 0, &[]);
    kick(&guest);
    wait(|| guest.disk.pending().len() == 1);
    let parked = worker.handle().quiesce();
    guest.disk.answer(0);
    guest.offer(2, T_FLUSH, 0, &[]);
    guest.driver.dirty_pages();
    kick(&guest);
    std::thread::yield_now();
    assert_eq!((guest.driver.used_index(), guest.disk.pending().len()), (1, 0));
    assert!(guest.driver.dirty_pages().is_empty());
    drop(parked);
    wait(|| guest.driver.used_index() == 2 && guest.disk.pending().len() == 1);
    guest.disk.answer_all();
    wait(|| guest.driver.used_index() == 3);
    assert_eq!(guest.driver.used().iter().map(|used| used.0).collect::<Vec<_>>(), [0, 1, 2]);
}

#[test]
fn what_a_full_backend_refused_is_offered_again_on_retry_and_after_parking() {
    let guest = Guest::running(ALL);
    let (worker, parked) = DeviceWorker::start(vec![guest.driver.device.clone()]).unwrap();
    drop(parked);
    let metrics = crate::devices::lock(&guest.driver.device).metrics();
    guest.disk.set_capacity(1);
    for head in 0..3 {
        guest.offer(head, T_FLUSH, 0, &[]);
    }
    kick(&guest);
    wait(|| metrics.counts().held_up == 1);
    guest.disk.set_capacity(2);
    worker.handle().retry();
    wait(|| guest.disk.pending().len() == 2 && metrics.counts().held_up == 2);
    guest.disk.set_capacity(3);
    drop(worker.handle().quiesce());
    wait(|| guest.disk.pending().len() == 3);
}

#[test]
fn a_disk_that_answers_at_once_and_without_end_does_not_keep_the_worker_from_parking() {
    let guest = Guest::running(ALL);
    let (worker, parked) = DeviceWorker::start(vec![guest.driver.device.clone()]).unwrap();
    drop(parked);
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let answering = {
        let (disk, stop) = (guest.disk.clone(), stop.clone());
        std::thread::spawn(move || {
            while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                disk.answer_all();
                std::thread::yield_now();
            }
        })
    };
    let mut longest = Duration::ZERO;
    for round in 0..200u16 {
        let head = round % 64;
        guest.offer(head, T_OUT, 0, &[(0x10_0000, 1 << 20)]);
        kick(&guest);
        // Into the copy, some time.
        let kicked = Instant::now();
        while kicked.elapsed() < Duration::from_micros(u64::from(round % 40) * 10) {
            std::hint::spin_loop();
        }
        let begin = Instant::now();
        let parked = worker.handle().quiesce();
        longest = longest.max(begin.elapsed());
        let before = guest.driver.used_index();
        std::thread::yield_now();
        assert_eq!(guest.driver.used_index(), before);
        drop(parked);
        wait(|| guest.driver.used_index() == round + 1);
    }
    stop.store(true, std::sync::atomic::Ordering::SeqCst);
    answering.join().unwrap();
    println!("parking a worker that copies 1 MiB a request took at most {longest:?}");
}
