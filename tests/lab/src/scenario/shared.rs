//! Courses on a shared disk: an old owner that wakes up with a write in its hands, and hosts that lose their way to the storage and nothing else (S3, S4).
//!
//! Not here: hosts that die or hang, which is the same with any disk ([`super::faults`]); reservations without a guest ([`super::reservations`]).

use std::time::{Duration, Instant};

use types::event::NodeEventKind;

use super::Given;
use super::course::{Course, SERVED_BOUND};
use super::guest::{Disk, GuestSpec};
use super::node::{NODE_BOUND, Node};
use crate::error::LabError;
use crate::host::Host;
use crate::net::Net;
use crate::storage::LUN;

/// Which commit's writes a primary goes to sleep before, once it is protected: late enough for clients to be at work, and for a round after it to end before
/// the new primary does the same. Some five a second.
const ASLEEP: &str = "before-issue:120:stop";
/// How often a sleeper is looked for; its peer waits a second before it takes it for gone.
const LOOK: Duration = Duration::from_millis(100);
/// A path that is lost is given up after 5 s (`init/initiator.sh`); a standby's is cut for longer.
const CUT: Duration = Duration::from_secs(7);

/// Debian on two processors, its root on the storage host.
#[must_use]
pub fn databases() -> GuestSpec {
    // A flush waits for a commit here, which takes a tenth of a second under emulation. SQLite's write-ahead journal flushes once for a transaction, its
    // rollback journal four times.
    let parameters = "lab.stamp=1".to_owned();
    let debian = GuestSpec::debian("debian-6.12-redis-sqlite-shared-2cpu", "redis,sqlite-wal");
    GuestSpec { cpus: 2, disks: vec![Disk::shared(LUN)], parameters, ..debian }
}

/// The same on one processor.
#[must_use]
pub fn databases_on_one() -> GuestSpec {
    GuestSpec { name: "debian-6.12-redis-sqlite-shared", cpus: 1, ..databases() }
}

/// The same as [`databases`], with primaries that go to sleep between a commit and its writes to the disk.
#[must_use]
pub fn sleeper() -> GuestSpec {
    GuestSpec { environment: vec![("LOCKSTEP_FAULT", ASLEEP)], ..databases() }
}

fn is_asleep(host: &Host, node: &Node) -> Result<bool, LabError> {
    Ok(host.must(&format!("cut -d' ' -f3 /proc/{}/stat", node.pid()))?.trim() == "T")
}

/// The primary falls asleep with committed writes that it has not issued. Its successor writes to the same blocks; then it wakes up: the device
/// must refuse what it writes, and it must stop.
///
/// # Errors
/// What does not come about.
pub fn wake(course: &mut Course, (load, row, faults): Given<'_, '_>) -> Result<(), LabError> {
    course.will_stand_still();
    let deadline = Instant::now() + NODE_BOUND;
    loop {
        let host = course.primary.host();
        if is_asleep(course.lab.host(host)?, &course.primary)? {
            break;
        }
        if Instant::now() >= deadline {
            return Err(LabError::Found(format!("the primary does not fall asleep; the end of its log:\n{}", course.primary.log_tail())));
        }
        std::thread::sleep(LOOK);
    }
    let since = course.fault(faults);
    course.taken_over(since, load, row)?;
    // It is the standby now by its place.
    let (host, pid) = (course.standby.host(), course.standby.pid());
    let host = course.lab.host(host)?;
    let before = refusals(host)?;
    host.must(&format!("kill -CONT {pid}"))?;
    course.standby.until_fenced()?;
    let refused = refusals(course.standby_host()?)? - before;
    if refused == 0 {
        let log = course.standby.log_tail();
        return Err(LabError::Found(format!("the sleeper wrote nothing that the device would have refused; the end of its log:\n{log}")));
    }
    row.writes_refused += refused;
    load.until_more(SERVED_BOUND)?;
    course.protect_again()?;
    load.until_more(SERVED_BOUND)
}

/// Writes that the host's kernel has seen refused for a reservation.
fn refusals(host: &Host) -> Result<u64, LabError> {
    let count = host.must("dmesg | grep -c 'reservation conflict error.*(WRITE)' || true")?;
    count.trim().parse().map_err(|_| LabError::Found(format!("{}: no count but {count:?}", host.name())))
}

/// The primary's host loses its way to the storage, and nothing else: its node gives up and the standby serves. Then the standby's host does: the
/// guest does not notice.
///
/// # Errors
/// What does not come about.
pub fn cut(course: &mut Course, (load, row, faults): Given<'_, '_>) -> Result<(), LabError> {
    course.random_while();
    course.settle(load, row)?;
    let since = course.fault(faults);
    course.primary_host()?.cut_storage()?;
    course.taken_over(since, load, row)?;
    let given_up = |what: &NodeEventKind| matches!(what, NodeEventKind::GaveUp { .. } | NodeEventKind::Fenced { .. });
    course.standby.until("its role given up", 0, NODE_BOUND, |event| given_up(&event.what).then_some(()))?;
    let host = course.standby_host()?;
    host.heal(Net::Replication)?;
    until_storage(host)?;
    course.protect_again()?;
    load.until_more(SERVED_BOUND)?;

    let host = course.standby_host()?;
    host.cut_storage()?;
    let cut = Instant::now();
    while cut.elapsed() < CUT {
        load.until_more(SERVED_BOUND)?;
    }
    let host = course.standby_host()?;
    host.heal(Net::Replication)?;
    until_storage(host)?;
    if course.standby.activation().is_some() {
        return Err(LabError::Found("the standby took over because it lost its own storage".into()));
    }
    course.primary.until_protected()?;
    load.until_more(SERVED_BOUND)
}

/// Waits until the host can read from the storage again.
fn until_storage(host: &Host) -> Result<(), LabError> {
    let read = format!("until dd if={LUN} of=/dev/null bs=4096 count=1 iflag=direct 2>/dev/null; do sleep 0.1; done");
    host.exec(&read, NODE_BOUND).and_then(|output| match output.ok() {
        true => Ok(()),
        false => Err(LabError::Late { what: format!("{}'s way to the storage", host.name()), bound: NODE_BOUND, detail: String::new() }),
    })
}
