//! A node that sleeps between its grant and its guest's first instruction, while an operator starts the guest elsewhere by force: it wakes up to nothing (S3).
//!
//! Not here: nodes that sleep while their guest runs (`failover.rs`), or with a write to a shared disk in their hands (`fencing.rs`, the lab).

mod program;

use std::time::Duration;

use lockstep::demo::world::Host;
use lockstep_tests::e2e::lab::{self, Guest, Lab};
use lockstep_tests::e2e::{Node, Spec, Watchdog};
use types::event::NodeEventKind;

/// Bound of a whole test here.
const TEST: Duration = Duration::from_secs(120);
/// What a node takes for a sleep.
const DETECTION: &str = "400ms";
/// Longer than that: a shorter stop is not told from a busy host.
const SLEEP: Duration = Duration::from_millis(600);

fn lab() -> Lab {
    Lab::new(program::lockstep(), Guest { detection: DETECTION, ..Guest::default() })
}

/// A standby on host B that sleeps between its grant and its guest's start; host A's primary is dead.
fn asleep_in_its_activation(lab: &Lab) -> Node {
    let b = Spec { fault: Some("mid-activation:1:stop".to_owned()), ..Spec::standby(Host::B, "b") };
    let (mut a, mut b) = lab.pair(&Spec::primary(Host::A, "a"), &b);
    a.until_protected(0);
    let _ = lab.connect();
    a.kill();
    b.until_asleep();
    b
}

/// The operator's word: whoever had the guest is given up, and `c` starts it on this host.
fn forced_start(lab: &Lab, host: Host) -> Node {
    let mut c = lab.start(&Spec { standby: None, ..Spec::primary(host, "c") }.flag("abandon-standby"));
    c.until_ready();
    let _ = lab.connect();
    c
}

/// Wakes `sleeper`, which is on `host`, and sees it end without a frame of its guest.
fn wakes_up_to_nothing(lab: &Lab, sleeper: &mut Node, host: Host) {
    std::thread::sleep(SLEEP);
    let silent = lab.frames_released(host);
    sleeper.wake().expect("woken");
    sleeper.until_fenced();
    assert_eq!(lab.frames_released(host), silent, "nothing of its guest is heard");
}

#[test]
fn a_standby_that_sleeps_in_its_activation_and_loses_its_grant_sends_and_starts_nothing() {
    if !lab::available() {
        return;
    }
    let _watchdog = Watchdog::new(TEST);
    let lab = lab();
    let mut b = asleep_in_its_activation(&lab);
    let mut c = forced_start(&lab, Host::A);

    wakes_up_to_nothing(&lab, &mut b, Host::B);

    assert_eq!(b.activations(), []);
    assert!(c.exited().is_none(), "the guest runs on where it was started");
}

#[test]
fn a_primary_that_sleeps_before_its_start_and_loses_its_grant_sends_and_starts_nothing() {
    if !lab::available() {
        return;
    }
    let _watchdog = Watchdog::new(TEST);
    let lab = lab();
    let mut a = lab.start(&Spec { fault: Some("before-start:1:stop".to_owned()), standby: None, ..Spec::primary(Host::A, "a") });
    a.until_asleep();
    let mut c = forced_start(&lab, Host::B);

    wakes_up_to_nothing(&lab, &mut a, Host::A);

    assert!(!a.events().iter().any(|event| matches!(event.what, NodeEventKind::Ready)), "its guest never ran");
    assert!(c.exited().is_none(), "the guest runs on where it was started");
}

#[test]
fn a_node_that_only_slept_goes_on_from_where_it_was() {
    if !lab::available() {
        return;
    }
    let _watchdog = Watchdog::new(TEST);
    let lab = lab();
    let mut b = asleep_in_its_activation(&lab);
    std::thread::sleep(SLEEP);

    b.wake().expect("woken");

    b.until_state("so the record is read before the guest is started");
    b.until_activated();
    let _ = lab.connect();
}
