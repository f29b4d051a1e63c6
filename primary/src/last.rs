//! The end of a guest in good order, when the record names no standby: what becomes of its disks and of their reservations.
//!
//! Lives here: the order. Not here: the doing (`disk-buffer`, `failover::fence`). Guards S3 and S4 on shared disks: a reservation keeps other nodes' writes from this node's; it is given up only when no write of this node is on its way any
//! more. Not left to the disks' own end: threads that hang may hold them for longer than the process lives.

use std::time::Duration;

use disk_buffer::Disks;
use failover::fence::FenceRunner;

/// How long the disks may take for what the guest had its answer to: far more than a disk that works takes for what it may hold (64 MiB), and below what an operator waits.
const LAST_WRITES: Duration = Duration::from_secs(5);

/// First the writes, then the reservation; where the writes are not done, it stays.
pub(crate) fn give_back(disks: &Disks, fence: Option<&FenceRunner>) {
    give_back_within(disks, fence, LAST_WRITES);
}

fn give_back_within(disks: &Disks, fence: Option<&FenceRunner>, bound: Duration) {
    match disks.finish(bound) {
        Ok(()) => {
            if let Some(fence) = fence {
                fence.release();
            }
        }
        Err(error) => tracing::error!(
            %error,
            reserved = fence.is_some(),
            "the guest's last writes to a disk may be lost (those that it had not flushed); a device that is reserved for this host stays so, and the next owner takes it over"
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Arc, Mutex};

    use disk_buffer::disk::Tuning;
    use disk_buffer::engine::faults::{Asked, Strike};
    use disk_buffer::{Disk, DiskOptions, Fenced, Mode};
    use failover::fence::{Fence, FenceError, FenceNews, Grant, Owner, Predecessor};
    use failover::memory::MemoryArbiter;
    use failover::{Arbiter, Record};
    use types::block::{BlockOp, BlockRequest, DiskIndex};
    use types::{Generation, NodeId, VmId};

    use super::*;

    const BYTES: u64 = 1 << 20;

    /// Notes what the disk holds each time that the reservation is given up.
    struct Noting {
        path: PathBuf,
        at_release: Mutex<Vec<u8>>,
    }

    impl Fence for Noting {
        fn shut_out(&self, _: &[Predecessor], _: &Owner, _: &dyn Grant) -> Result<(), FenceError> {
            Ok(())
        }

        fn probe(&self) -> Result<(), FenceError> {
            Ok(())
        }

        fn release(&self, _: &Owner, _: bool) {
            self.at_release.lock().unwrap().push(std::fs::read(&self.path).unwrap()[0]);
        }
    }

    /// A fence that has succeeded for the first grant.
    fn fenced(path: &Path) -> (Arc<Noting>, FenceRunner) {
        let record = Record {
            generation: Generation(1),
            owner: NodeId("a".to_owned()),
            host: None,
            instance: 7,
            standby: None,
            unfenced: Vec::new(),
        };
        let mut arbiter = MemoryArbiter::default();
        arbiter.swap(None, &record).unwrap();
        let noting = Arc::new(Noting { path: path.to_owned(), at_release: Mutex::default() });
        let fence = Arc::clone(&noting) as Arc<dyn Fence>;
        let mut runner = FenceRunner::new(fence, VmId("vm0".to_owned()), Arc::new(move || Box::new(arbiter.clone())));
        runner.start(record, Vec::new()).unwrap();
        assert!(matches!(runner.news().recv().unwrap(), FenceNews::Done { .. }));
        (noting, runner)
    }

    /// A shared disk whose medium takes no write while the switch is on, with one write of the guest on its way.
    fn writing(path: &Path, hangs: &Arc<AtomicBool>) -> Disks {
        std::fs::File::create(path).unwrap().set_len(BYTES).unwrap();
        let on = Arc::clone(hangs);
        let faults = move |asked| {
            while matches!(asked, Asked::Write(..)) && on.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            Strike::Pass
        };
        let options = DiskOptions { path: path.to_owned(), mode: Mode::Shared, fenced: Some(Fenced::attest()), ..DiskOptions::default() };
        let disk = Disk::open_with(DiskIndex(0), &options, Tuning { faults: Some(Arc::new(faults)), ..Tuning::default() }).unwrap();
        disk.start_primary().unwrap();
        disk.submit(BlockRequest { tag: 1, op: BlockOp::Write { offset: 0, data: vec![5; 4096].into() } }).unwrap();
        Disks::of(vec![Arc::new(disk)])
    }

    #[test]
    fn a_reservation_is_given_up_when_the_last_write_is_on_the_disk_and_not_before() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        let hangs = Arc::new(AtomicBool::new(true));
        let disks = writing(&path, &hangs);
        let (noting, runner) = fenced(&path);

        // Somebody else holds the disks as well, as a thread that hangs would.
        let held = disks.clone();
        std::thread::scope(|scope| {
            let ending = scope.spawn(|| give_back(&disks, Some(&runner)));
            assert!(!ending.is_finished() && noting.at_release.lock().unwrap().is_empty());
            hangs.store(false, Ordering::SeqCst);
        });
        drop(held);

        assert_eq!(*noting.at_release.lock().unwrap(), [5]);
    }

    #[test]
    fn a_reservation_stays_where_writes_are_still_on_their_way_or_a_standby_may_hold_the_guest() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        let hangs = Arc::new(AtomicBool::new(true));
        let disks = writing(&path, &hangs);
        let (noting, runner) = fenced(&path);

        give_back_within(&disks, Some(&runner), Duration::from_millis(50));
        hangs.store(false, Ordering::SeqCst);
        disks.shut();
        give_back(&disks, Some(&runner));

        assert!(noting.at_release.lock().unwrap().is_empty());
    }
}
