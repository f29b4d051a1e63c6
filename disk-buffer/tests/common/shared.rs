//! One device and two hosts in one process; used by the tests of shared disks.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use disk_buffer::disk::Tuning;
use disk_buffer::engine::faults::{Asked, Strike};
use disk_buffer::{DiskCopy, DiskEvent, DiskOptions, Fenced, Mode, Plan};
use types::block::BlockOp;
use types::{Commit, Epoch, Generation};

use super::{BOUND, Host, MIB, Switch, image, is_write, join, options, tuning};

pub const BYTES: u64 = 12 * MIB;

pub fn shared(path: &Path) -> DiskOptions {
    DiskOptions { mode: Mode::Shared, fenced: Some(Fenced::attest()), ..options(path) }
}

/// A device, and a primary that runs alone on it.
pub fn alone(directory: &Path, tuning: Tuning) -> Host {
    let host = Host::open_with(&shared(&image(directory, "device", BYTES)), tuning);
    host.disk.start_primary().unwrap();
    host
}

/// A standby of it that has joined, with writes being held from now on.
pub fn holding(primary: &Host, tuning: Tuning) -> (Host, DiskCopy) {
    let standby = Host::open_with(&shared(&primary.path), tuning);
    let (plan, mut copy) = join(primary, &standby);
    assert_eq!(plan, Plan::Nothing);
    assert_eq!(copy.next_pass().unwrap(), 0);
    assert!(copy.next_piece().unwrap().is_none());
    assert_eq!(copy.record(Generation(7)).unwrap(), 0);
    (standby, copy)
}

pub fn commit(epoch: u64) -> Commit {
    Commit::attest(Generation(7), Epoch(epoch))
}

/// Seals and sends an epoch; committed at the standby, which the primary does not know.
pub fn committed_there(primary: &Host, standby: &Host, epoch: u64) {
    let sealed = primary.disk.seal(Epoch(epoch)).unwrap();
    standby.disk.stage(Epoch(epoch), sealed.to_vec()).unwrap();
    standby.disk.commit(Epoch(epoch)).unwrap();
}

pub fn epoch(primary: &Host, standby: &Host, epoch: u64) {
    committed_there(primary, standby, epoch);
    primary.disk.release(&commit(epoch));
}

/// Protected, with epoch 1 committed.
pub fn pair(directory: &Path, tuning: Tuning) -> (Host, Host) {
    let primary = alone(directory, tuning.clone());
    let (standby, mut copy) = holding(&primary, Tuning { faults: None, ..tuning });
    assert!(copy.next_piece().unwrap().is_none());
    epoch(&primary, &standby, 1);
    (primary, standby)
}

pub fn wait_issued(primary: &Host, epoch: u64) {
    loop {
        match primary.events.recv_timeout(BOUND).unwrap() {
            DiskEvent::Issued { epoch: now, generation: Generation(7), .. } if now == Epoch(epoch) => return,
            DiskEvent::Issued { epoch: now, .. } if now < Epoch(epoch) => {}
            other => panic!("{other:?}"),
        }
    }
}

pub fn read(host: &Host, offset: u64, len: u32) -> Vec<u8> {
    host.ask(BlockOp::Read { offset, len }).result.unwrap().unwrap().into_vec()
}

/// A device whose writes hang while the switch is on.
pub fn hanging(tuning: Tuning) -> (Arc<AtomicBool>, Tuning) {
    let hangs = Arc::new(AtomicBool::new(false));
    let on = Arc::clone(&hangs);
    let faults = move |asked| {
        while matches!(asked, Asked::Write(..)) && on.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        Strike::Pass
    };
    (hangs, Tuning { faults: Some(Arc::new(faults)), ..tuning })
}

/// Writes fail with this error from the moment that the switch is thrown.
pub fn failing(errno: i32) -> (Switch, Tuning) {
    let switch = Switch::default();
    let faults = switch.fail(is_write, errno);
    (switch, Tuning { faults, ..tuning() })
}
