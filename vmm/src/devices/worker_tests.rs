//! The worker: parked means parked, nothing is lost by parking, and frames flow end to end.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::AtomicUsize;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use super::*;
use crate::devices::virtio::net::testing::{BOTH, HEADER, RX, TX, TestGuest, frame};

const PATIENCE: Duration = Duration::from_secs(10);

/// A device that reports each batch and never has enough.
struct Greedy {
    kick: Arc<EventFd>,
    batches: Arc<AtomicUsize>,
    first: Sender<()>,
    more: bool,
}

impl WorkerDevice for Greedy {
    fn kicks(&self) -> Vec<Arc<EventFd>> {
        vec![Arc::clone(&self.kick)]
    }
    fn input(&self) -> Option<RawFd> {
        None
    }
    fn run_batch(&mut self, _leave: &AtomicBool) -> Batch {
        self.batches.fetch_add(1, Ordering::SeqCst);
        let _ = self.first.send(());
        Batch { more: self.more, ..Batch::default() }
    }
    fn retry(&mut self) {}
}

fn greedy(more: bool) -> (Arc<Mutex<Greedy>>, Arc<EventFd>, Arc<AtomicUsize>, Receiver<()>) {
    let kick = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    let batches = Arc::new(AtomicUsize::new(0));
    let (first, seen) = channel();
    let device = Greedy { kick: kick.clone(), batches: batches.clone(), first, more };
    (Arc::new(Mutex::new(device)), kick, batches, seen)
}

#[test]
fn a_parked_worker_runs_no_batch_however_busy_the_device_is() {
    let (device, kick, batches, seen) = greedy(true);
    let (worker, parked) = DeviceWorker::start(vec![device]).unwrap();
    drop(parked);
    kick.write(1).unwrap();
    seen.recv_timeout(PATIENCE).unwrap();
    let mut longest = Duration::ZERO;

    for _ in 0..200 {
        let begin = Instant::now();
        let parked = worker.handle().quiesce();
        longest = longest.max(begin.elapsed());
        let count = batches.load(Ordering::SeqCst);
        while seen.try_recv().is_ok() {}
        std::thread::yield_now();
        assert_eq!(batches.load(Ordering::SeqCst), count);
        drop(parked);
        seen.recv_timeout(PATIENCE).expect("the worker goes on when the guard is dropped");
    }
    println!("quiescing a worker that never sleeps took at most {longest:?}");
}

#[test]
fn nothing_runs_before_the_start_and_a_kick_while_parked_is_served_afterwards() {
    let (device, kick, batches, seen) = greedy(false);
    kick.write(1).unwrap();
    let (worker, parked) = DeviceWorker::start(vec![device]).unwrap();
    assert_eq!(batches.load(Ordering::SeqCst), 0);
    drop(parked);
    seen.recv_timeout(PATIENCE).unwrap();

    let parked = worker.handle().quiesce();
    kick.write(1).unwrap();
    assert!(seen.try_recv().is_err());
    drop(parked);
    seen.recv_timeout(PATIENCE).unwrap();
    assert_eq!(batches.load(Ordering::SeqCst), 2);
}

#[test]
fn a_greedy_device_does_not_starve_its_neighbour() {
    let (greedy_one, greedy_kick, _, greedy_seen) = greedy(true);
    let (modest, modest_kick, _, modest_seen) = greedy(false);
    let (_worker, parked) = DeviceWorker::start(vec![greedy_one, modest]).unwrap();
    drop(parked);
    greedy_kick.write(1).unwrap();
    greedy_seen.recv_timeout(PATIENCE).unwrap();
    for _ in 0..50 {
        modest_kick.write(1).unwrap();
        modest_seen.recv_timeout(PATIENCE).unwrap();
    }
}

#[test]
fn the_worker_ends_when_dropped_parked_or_not() {
    let (device, kick, _, seen) = greedy(true);
    let (worker, parked) = DeviceWorker::start(vec![device]).unwrap();
    kick.write(1).unwrap();
    drop(worker);
    drop(parked);
    assert!(seen.recv_timeout(PATIENCE).is_err(), "the device is gone with the thread, unserved");

    let (device, kick, _, seen) = greedy(true);
    let (worker, parked) = DeviceWorker::start(vec![device]).unwrap();
    drop(parked);
    kick.write(1).unwrap();
    seen.recv_timeout(PATIENCE).unwrap();
    drop(worker);
}

#[test]
fn frames_flow_both_ways_and_stand_still_while_parked() {
    let mut guest = TestGuest::new();
    guest.rings[RX].size = 256;
    guest.start(BOTH);
    for index in 0..200 {
        guest.offer_buffer(index, 2048);
    }
    let (worker, parked) = DeviceWorker::start(vec![guest.device.clone()]).unwrap();
    guest.offer_frame(0, &frame(1, 60));
    guest.transport.kicks()[TX].write(1).unwrap();
    guest.wire.send(&frame(2, 60)).unwrap();
    assert!(guest.sink.frames().is_empty());
    drop(parked);
    guest.sink.wait_for(1);

    guest.wire.set_nonblocking(false).unwrap();
    for tag in 0..100 {
        guest.wire.send(&frame(tag, 60)).unwrap();
    }
    wait(|| guest.used(RX).len() == 101);
    assert_eq!(guest.received(100, 72)[HEADER..], frame(99, 60));

    let parked = worker.handle().quiesce();
    guest.dirty_pages();
    guest.wire.send(&frame(3, 60)).unwrap();
    guest.offer_frame(1, &frame(4, 60));
    let offered = guest.dirty_pages();
    guest.transport.kicks()[TX].write(1).unwrap();
    std::thread::yield_now();
    assert_eq!(guest.used(RX).len(), 101);
    assert!(guest.dirty_pages().is_empty() && !offered.is_empty());
    drop(parked);
    guest.sink.wait_for(2);
    wait(|| guest.used(RX).len() == 102);
}

#[test]
fn a_full_sink_is_offered_its_frame_again_on_retry_and_after_parking() {
    let guest = TestGuest::running(BOTH);
    guest.sink.set_capacity(0);
    let (worker, parked) = DeviceWorker::start(vec![guest.device.clone()]).unwrap();
    drop(parked);
    for tag in 0..2 {
        guest.offer_frame(tag.into(), &frame(tag, 60));
    }
    guest.transport.kicks()[TX].write(1).unwrap();
    let metrics = crate::devices::lock(&guest.device).metrics();
    wait(|| metrics.counts().tx_sink_full == 1);

    guest.sink.set_capacity(1);
    worker.handle().retry();
    wait(|| metrics.counts().tx_sink_full == 2);
    assert_eq!(guest.sink.frames(), [frame(0, 60)]);

    guest.sink.set_capacity(2);
    drop(worker.handle().quiesce());
    assert_eq!(guest.sink.wait_for(2), [frame(0, 60), frame(1, 60)]);
}

/// A TAP whose interface is deleted reads as an error for ever; the worker must neither spin nor die.
#[test]
fn a_dead_input_does_not_keep_the_worker_busy() {
    struct Dead {
        fd: UnixDatagram,
        reads: Arc<AtomicUsize>,
    }
    impl crate::devices::tap::FrameSource for Dead {
        fn read_frame(&mut self, _: &mut [u8]) -> io::Result<Option<usize>> {
            self.reads.fetch_add(1, Ordering::SeqCst);
            Err(io::Error::from_raw_os_error(libc::EBADFD))
        }
        fn as_raw_fd(&self) -> RawFd {
            self.fd.as_raw_fd()
        }
    }
    let (fd, wire) = UnixDatagram::pair().unwrap();
    wire.send(b"always readable").unwrap();
    let reads = Arc::new(AtomicUsize::new(0));
    let guest = TestGuest::with_source(Box::new(Dead { fd, reads: reads.clone() }));
    guest.offer_buffer(0, 2048);
    let (_worker, parked) = DeviceWorker::start(vec![guest.device.clone()]).unwrap();
    drop(parked);

    for round in 1..=3 {
        guest.offer_frame(round, &frame(1, 60));
        guest.transport.kicks()[TX].write(1).unwrap();
        guest.sink.wait_for(round.into());
        wait(|| reads.load(Ordering::SeqCst) == usize::from(round));
    }
    assert_eq!(reads.load(Ordering::SeqCst), 3, "one read per kick");
    drop(OwnedFd::from(wire));
}

/// For a state that no event announces.
fn wait(condition: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "waited too long");
        std::thread::yield_now();
    }
}
