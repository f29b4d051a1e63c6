//! An epoch is not sent before its writes' regions are durably marked at the primary: else both hosts could stop with a difference that no log knows of.

mod common;

use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use common::*;
use disk_buffer::disk::Tuning;
use disk_buffer::engine::faults::{Asked, Faults, Strike};
use disk_buffer::{CopyState, DiskError, Disks, Marking};
use types::{Commit, Epoch, Generation};

const BYTES: u64 = 8 * MIB;

/// Holds back what would be written to the change log, or fails it.
#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<Option<Strike>>, Condvar)>);

impl Gate {
    fn open(&self, strike: Strike) {
        *self.0.0.lock().unwrap() = Some(strike);
        self.0.1.notify_all();
    }

    fn close(&self) {
        *self.0.0.lock().unwrap() = None;
    }
}

impl Faults for Gate {
    fn strike(&self, asked: Asked) -> Strike {
        match asked {
            Asked::LogWrite => self.0.1.wait_while(self.0.0.lock().unwrap(), |strike| strike.is_none()).unwrap().unwrap(),
            _ => Strike::Pass,
        }
    }
}

/// Two hosts, protected, with nothing marked; then the primary's log can be written to no more.
fn held(one: &Medium, two: &Medium) -> (Host, Host, Gate) {
    let gate = Gate::default();
    gate.open(Strike::Pass);
    let primary = Host::open_with(&one.options, Tuning { faults: Some(Arc::new(gate.clone())), ..tuning() });
    let standby = two.open();
    primary.disk.start_primary().unwrap();
    primary.write(MIB, 0x11, 4096);
    protect(&primary, &standby);
    standby.wait_durable(1);
    primary.disk.peer_durable(Epoch(1));
    primary.wait_cleared();
    (primary, standby, gate)
}

fn media(directory: &std::path::Path) -> (Medium, Medium) {
    (Medium::new(directory, "one", BYTES), Medium::new(directory, "two", BYTES))
}

fn submit(host: &Host, offset: u64, byte: u8) {
    host.submit(1, write(offset, byte));
}

fn marking(host: &Host) -> Marking {
    Disks::of(vec![Arc::clone(&host.disk)]).marking()
}

#[test]
fn what_the_standby_has_is_marked_at_the_primary_when_both_hosts_stop() {
    let directory = tempfile::tempdir().unwrap();
    let (one, two) = media(directory.path());
    let log = directory.path().join("one.lockstep");
    let (primary, standby, gate) = held(&one, &two);
    gate.close();
    submit(&primary, 3 * MIB, 0x33);
    let writes = primary.disk.seal(Epoch(2)).unwrap();
    let mut marking = marking(&primary);
    let early = marking.wait(Duration::from_millis(20)).unwrap();
    if !early {
        gate.open(Strike::Pass);
        assert!(marking.wait(BOUND).unwrap());
    }
    // The epoch is sent; the primary's host stops at this moment, before it has made the write.
    let found = std::fs::read(&log).unwrap();
    standby.disk.stage(Epoch(2), writes.to_vec()).unwrap();
    standby.disk.commit(Epoch(2)).unwrap();
    standby.wait_durable(2);
    gate.open(Strike::Pass);
    drop(primary);
    std::fs::write(&log, found).unwrap();
    let mut content = std::fs::read(one.path()).unwrap();
    content[3 * MIB as usize..][..4096].fill(0);
    std::fs::write(one.path(), content).unwrap();
    // The standby's host stops, too, and does not take over.
    drop(standby);
    let (primary, standby) = (one.open(), two.open());
    assert_eq!(standby.disk.identity().unwrap().state, CopyState::Following);
    primary.disk.start_primary().unwrap();
    protect(&primary, &standby);
    standby.disk.wait_applied(BOUND).unwrap();
    assert!(standby.content() == primary.content(), "the copies differ, and no log knows");
    assert!(!early);
}

#[test]
fn only_a_first_write_into_a_region_makes_its_epoch_wait() {
    let directory = tempfile::tempdir().unwrap();
    let (one, two) = media(directory.path());
    let (primary, _standby, gate) = held(&one, &two);
    submit(&primary, 3 * MIB, 0x33);
    primary.disk.seal(Epoch(2)).unwrap();
    assert!(marking(&primary).wait(BOUND).unwrap());
    primary.disk.release(&Commit::attest(Generation(1), Epoch(2)));
    gate.close();
    submit(&primary, 3 * MIB + 8192, 0x44);
    primary.disk.seal(Epoch(3)).unwrap();
    assert!(marking(&primary).wait(Duration::ZERO).unwrap());
    gate.open(Strike::Pass);
}

#[test]
fn an_epoch_whose_regions_can_not_be_marked_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let (one, two) = media(directory.path());
    let (primary, _standby, gate) = held(&one, &two);
    gate.close();
    submit(&primary, 3 * MIB, 0x33);
    primary.disk.seal(Epoch(2)).unwrap();
    let mut before = marking(&primary);
    gate.open(Strike::Fail(libc::ENOSPC));
    let full = |marking: &mut Marking| match marking.wait(BOUND) {
        Err(DiskError::Failed { source, .. }) => source.raw_os_error() == Some(libc::ENOSPC),
        other => panic!("{other:?}"),
    };
    assert!(full(&mut before));
    assert!(full(&mut marking(&primary)), "it stays one");
}
