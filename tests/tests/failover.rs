//! Failovers one after the other: a standby that dies, a primary that hangs and comes back, five takeovers in a row (S3, S4).

mod program;

use std::time::Duration;

use lockstep::demo::resp::Reply;
use lockstep::demo::world::Host;
use lockstep_tests::e2e::clients::{Clients, under_load};
use lockstep_tests::e2e::lab::{self, Guest, Lab, dirty, prove_memory};
use lockstep_tests::e2e::{Spec, Watchdog};
use types::Generation;

/// Bound of a whole test here.
const TEST: Duration = Duration::from_secs(120);
/// Writes that must be acknowledged to show that things go on.
const SOME: u64 = 50;
/// Pages a second that the guest dirties.
const DIRTY: u32 = 5_000;

#[test]
fn a_primary_that_hung_releases_nothing_when_it_wakes_and_ends_fenced() {
    if !lab::available() {
        return;
    }
    let _watchdog = Watchdog::new(TEST);
    let lab = Lab::new(program::lockstep(), Guest { detection: "300ms", ..Guest::default() });
    let (mut a, mut b) = lab.pair(&Spec::primary(Host::A, "a"), &Spec::standby(Host::B, "b"));
    let mut guest = lab.connect();

    under_load(&lab, Clients { pipelined: true, ..Clients::default() }, |load| {
        dirty(&mut guest, DIRTY);
        a.until_protected(0);
        load.until_more(SOME);
        a.hang().expect("stopped");
        assert_eq!(b.until_activated().generation, Generation(2));
        let gone = b.peers_gone();
        assert!(gone[0].1.contains("silent"), "a process that only stands still is found out by its silence: {gone:?}");
        let released = lab.frames_released(Host::A);
        load.until_more(SOME);
        a.wake().expect("woken");
        a.until_fenced();
        load.until_more(SOME);
        assert_eq!(lab.frames_released(Host::A), released, "a stale primary releases nothing");
    });

    prove_memory(&mut guest);
    assert_eq!(b.activations().len(), 1);
}

#[test]
fn a_guest_outlives_its_standby_gets_another_and_fails_over_to_that() {
    if !lab::available() {
        return;
    }
    let _watchdog = Watchdog::new(TEST);
    let lab = Lab::new(program::lockstep(), Guest::default());
    let (mut a, mut b) = lab.pair(&Spec::primary(Host::A, "a"), &Spec::standby(Host::B, "b"));
    let mut guest = lab.connect();

    under_load(&lab, Clients { pipelined: true, ..Clients::default() }, |load| {
        dirty(&mut guest, DIRTY);
        let first = a.until_protected(0);
        load.until_more(SOME);
        let killed_ns = b.kill();
        let alone = a.until_alone(first);
        load.until_more(SOME);
        let mut second = lab.start(&Spec::standby(Host::B, "b2"));
        assert_eq!(a.until_protected(killed_ns), alone);
        load.until_more(SOME);
        a.kill();
        assert_eq!(second.until_activated().generation, alone.next());
        load.until_more(SOME);
        // Read back while the survivor lives.
        second
    });

    assert_eq!(b.activations(), []);
}

#[test]
fn a_primary_that_is_told_to_stop_ends_its_guest_and_can_be_started_again() {
    if !lab::available() {
        return;
    }
    let _watchdog = Watchdog::new(TEST);
    let lab = Lab::new(program::lockstep(), Guest::default());
    let (mut a, mut b) = lab.pair(&Spec::primary(Host::A, "a"), &Spec::standby(Host::B, "b"));
    a.until_protected(0);

    a.terminate().expect("told");
    assert_eq!(a.until_exit(), Some(0));
    b.until_state("the guest ended on purpose");
    let mut again = lab.start(&Spec::primary(Host::A, "a-again").with("node", "a"));
    again.until_protected(0);

    assert_eq!(b.activations(), [], "a guest that was ended on purpose is not brought back");
}

#[test]
fn a_guest_that_powers_off_is_not_brought_back() {
    if !lab::available() {
        return;
    }
    let _watchdog = Watchdog::new(TEST);
    let lab = Lab::new(program::lockstep(), Guest::default());
    let (mut a, mut b) = lab.pair(&Spec::primary(Host::A, "a"), &Spec::standby(Host::B, "b"));
    let mut guest = lab.connect();
    a.until_protected(0);

    let reply = guest.ask(&[b"SHUTDOWN"]).expect("the guest's last word is released");
    assert_eq!(reply, Reply::Status("OK".to_owned()));
    assert_eq!(a.until_exit(), Some(0));
    b.until_state("the guest ended on purpose");
    let mut again = lab.start(&Spec::primary(Host::A, "a-again").with("node", "a"));
    again.until_protected(0);

    assert_eq!(b.activations(), []);
}

#[test]
fn five_failovers_in_a_row_with_the_same_connections() {
    if !lab::available() {
        return;
    }
    let _watchdog = Watchdog::new(TEST);
    let lab = Lab::new(program::lockstep(), Guest { vcpus: 2, ..Guest::default() });
    let (mut runner, mut standby) = lab.pair(&Spec::primary(Host::A, "n0"), &Spec::standby(Host::B, "n1"));
    let mut guest = lab.connect();

    let (survivors, _) = under_load(&lab, Clients { careful: 3, pipelined: true, seed: 5 }, |load| {
        dirty(&mut guest, DIRTY);
        let mut host = Host::A;
        let mut since_ns = 0;
        for failover in 1..=5 {
            let before = runner.until_protected(since_ns);
            load.until_more(SOME);
            since_ns = runner.kill();
            let activation = standby.until_activated();
            assert_eq!(activation.generation, before.next(), "failover {failover}");
            load.until_more(SOME);
            let next = lab.start(&Spec::standby(host, &format!("n{}", failover + 1)));
            runner = std::mem::replace(&mut standby, next);
            host = host.other();
        }
        runner.until_protected(since_ns);
        load.until_more(SOME);
        (runner, standby)
    });

    prove_memory(&mut guest);
    assert_eq!(survivors.0.activations().len(), 1);
    assert_eq!(survivors.1.activations(), []);
}
