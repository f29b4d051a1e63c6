//! Which of the two ways shuts older owners out of which disks, and what is refused: with fakes for both.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use types::{Generation, NodeId};

use super::*;

/// A device that can be reserved or not, and counts how often it was.
struct Device {
    able: bool,
    reserved: Arc<AtomicUsize>,
}

impl Fence for Device {
    fn shut_out(&self, _: &[Predecessor], _: &Owner, _: &dyn Grant) -> Result<(), FenceError> {
        self.reserved.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn probe(&self) -> Result<(), FenceError> {
        if self.able { Ok(()) } else { Err(FenceError::NotSupported { device: "/dev/x".to_owned(), why: "no such call".to_owned() }) }
    }

    fn release(&self, _: &Owner, _: bool) {}
}

struct Granted(bool);

impl Grant for Granted {
    fn confirm(&self) -> Result<(), FenceError> {
        if self.0 { Ok(()) } else { Err(FenceError::Over { owner: NodeId("c".to_owned()), generation: Generation(9) }) }
    }

    fn wanted(&self) -> bool {
        true
    }
}

fn fences(able: &[bool], command: Option<&str>) -> (Result<DiskFences, FenceError>, Arc<AtomicUsize>) {
    let reserved = Arc::new(AtomicUsize::new(0));
    let device = |able: &bool| ("disk".to_owned(), Box::new(Device { able: *able, reserved: Arc::clone(&reserved) }) as Box<dyn Fence>);
    (DiskFences::choose(able.iter().map(device), command.map(FenceCommand::new)), reserved)
}

fn shut_out(fence: &DiskFences, old: bool, granted: bool) -> Result<(), FenceError> {
    let old: Vec<Predecessor> = old.then(|| Predecessor { node: NodeId("a".to_owned()), host: None }).into_iter().collect();
    let me = Owner { vm: VmId("vm0".to_owned()), node: NodeId("b".to_owned()), host: None, instance: 1, generation: Generation(2) };
    fence.shut_out(&old, &me, &Granted(granted))
}

#[test]
fn disks_that_can_be_reserved_need_no_command() {
    let (fence, reserved) = fences(&[true, true], Some("false"));
    shut_out(&fence.unwrap(), true, true).expect("the command is not run");
    assert_eq!(reserved.load(Ordering::Relaxed), 2);
}

#[test]
fn one_disk_that_cannot_be_reserved_needs_the_command() {
    let (fence, reserved) = fences(&[true, false], Some("false"));
    let error = shut_out(&fence.unwrap(), true, true).expect_err("the command failed");
    assert!(matches!(error, FenceError::CommandFailed { .. }), "{error}");
    assert_eq!(reserved.load(Ordering::Relaxed), 1, "what can be reserved is, all the same");
    let (fence, _) = fences(&[true, false], Some("true"));
    shut_out(&fence.unwrap(), true, true).expect("fenced");
}

#[test]
fn without_reservations_and_command_nothing_starts_and_the_remedy_is_told() {
    let (fence, _) = fences(&[true, false], None);
    let error = fence.err().expect("no fence").to_string();
    assert!(error.contains("--fence-command") && error.contains("mode=mirror"), "{error}");
}

#[test]
fn nobody_is_killed_where_no_other_node_can_be_left() {
    let (fence, _) = fences(&[false], Some("false"));
    shut_out(&fence.unwrap(), false, true).expect("nobody to fence");
}

#[test]
fn a_node_whose_grant_is_over_kills_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let mark = directory.path().join("killed");
    let (fence, _) = fences(&[false], Some(&format!("touch {}", mark.display())));
    let error = shut_out(&fence.unwrap(), true, false).expect_err("over");
    assert!(matches!(error, FenceError::Over { .. }), "{error}");
    assert!(!mark.exists());
}
