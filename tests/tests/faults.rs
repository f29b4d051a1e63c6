//! A process dies at the worst moments of an epoch's life: whatever the moment, nothing acknowledged is lost and nothing torn ever runs (S1, S2, S4, S6).
//!
//! The moments are those of `types::fault`; the node that is to die has `LOCKSTEP_FAULT` in its environment.

mod program;

use std::time::Duration;

use lockstep::demo::world::Host;
use lockstep_tests::e2e::clients::{Clients, under_load};
use lockstep_tests::e2e::lab::{self, Guest, Lab, dirty, dirty_in_sequence, prove_memory};
use lockstep_tests::e2e::{Spec, Watchdog};
use types::Generation;
use types::event::NodeEventKind;

/// Bound of a whole test here.
const TEST: Duration = Duration::from_secs(120);
/// Writes that must be acknowledged to show that things go on.
const SOME: u64 = 50;
/// Pages a second that the guest dirties.
const DIRTY: u32 = 5_000;
/// So late a turn comes long after the first copy, in the middle of the clients' load.
const UNDER_LOAD: u32 = 500;

/// The primary dies at `point` before the standby has one whole epoch: the standby must not activate, and stays of use to the next primary.
fn dies_before_it_is_protected(point: &str, turn: u32) {
    if !lab::available() {
        return;
    }
    let _watchdog = Watchdog::new(TEST);
    let lab = Lab::new(program::lockstep(), Guest::default());
    let (mut a, mut b) = lab.pair(&Spec::primary(Host::A, "a").dying(point, turn), &Spec::standby(Host::B, "b"));

    a.until_dead();
    b.until_state("primary lost before the first whole epoch");
    assert_eq!(b.activations(), []);
    let frames = lab.frames_released(Host::B);

    // The operator gives the dead primary up: its standby may or may not have been recorded, and a recorded one keeps others from starting.
    std::fs::remove_file(lab.arbiter_directory().join("record")).expect("the record is removed");
    // The same node starts anew: what the standby got of the first life must not be mixed into what it gets now (digests are compared).
    let mut again = lab.start(&Spec::primary(Host::A, "a-again").with("node", "a"));
    let generation = again.until_protected(0);
    assert_eq!(lab.frames_released(Host::B), frames, "a standby says nothing");
    let mut guest = lab.connect();
    under_load(&lab, Clients::default(), |load| {
        load.until_more(SOME);
        again.kill();
        assert_eq!(b.until_activated().generation, generation.next());
        load.until_more(SOME);
    });
    prove_memory(&mut guest);
    assert_eq!(b.activations().len(), 1);
}

#[test]
fn a_primary_that_dies_in_the_first_copy_leaves_nothing_to_activate_from() {
    dies_before_it_is_protected("mid-sync", 20);
}

#[test]
fn a_primary_that_dies_in_the_pause_of_its_first_epoch_leaves_nothing_to_activate_from() {
    dies_before_it_is_protected("mid-pause", 1);
}

/// The primary dies at `point` under load: the standby takes over and nobody notices.
fn dies_under_load(point: &str) {
    if !lab::available() {
        return;
    }
    let _watchdog = Watchdog::new(TEST);
    // Without --verify-memory, whose comparison of all memory makes epochs wait for each other: here several of them are to be under way.
    let lab = Lab::new(program::lockstep(), Guest { vcpus: 2, verify: false, ..Guest::default() });
    let (mut a, mut b) = lab.pair(&Spec::primary(Host::A, "a").dying(point, UNDER_LOAD), &Spec::standby(Host::B, "b"));
    let mut guest = lab.connect();

    under_load(&lab, Clients { pipelined: true, ..Clients::default() }, |load| {
        dirty(&mut guest, DIRTY);
        a.until_dead();
        assert!(load.acknowledged() > 0, "it died too early to prove anything");
        assert_eq!(b.until_activated().generation, Generation(2));
        load.until_more(SOME);
    });

    prove_memory(&mut guest);
    assert_eq!(b.activations().len(), 1);
}

#[test]
fn a_primary_that_dies_in_a_pause_loses_nothing() {
    dies_under_load("mid-pause");
}

#[test]
fn a_primary_that_dies_while_it_sends_an_epoch_loses_nothing() {
    dies_under_load("mid-send");
}

#[test]
fn a_primary_that_dies_between_commit_and_release_loses_nothing() {
    dies_under_load("before-release");
}

#[test]
fn a_standby_that_dies_while_it_applies_costs_the_guest_nothing() {
    if !lab::available() {
        return;
    }
    let _watchdog = Watchdog::new(TEST);
    let lab = Lab::new(program::lockstep(), Guest::default());
    let (mut a, mut b) = lab.pair(&Spec::primary(Host::A, "a"), &Spec::standby(Host::B, "b").dying("mid-apply", UNDER_LOAD));
    let mut guest = lab.connect();

    under_load(&lab, Clients { pipelined: true, ..Clients::default() }, |load| {
        dirty(&mut guest, DIRTY);
        let protected = a.until_protected(0);
        b.until_dead();
        a.until_alone(protected);
        load.until_more(SOME);
    });

    prove_memory(&mut guest);
    assert!(a.exited().is_none(), "the primary runs on");
}

#[test]
fn a_standby_that_dies_after_its_grant_leaves_nobody_who_runs_an_old_state() {
    if !lab::available() {
        return;
    }
    let _watchdog = Watchdog::new(TEST);
    let lab = Lab::new(program::lockstep(), Guest::default());
    let (mut a, mut b) = lab.pair(&Spec::primary(Host::A, "a"), &Spec::standby(Host::B, "b").dying("mid-activation", 1));
    let mut guest = lab.connect();
    dirty(&mut guest, DIRTY);
    a.until_protected(0);
    let silent = lab.frames_released(Host::B);

    a.kill();
    b.until_dead();
    assert_eq!(b.activations(), []);

    // Both copies are gone. Neither a fresh standby nor the old primary's name may bring up anything by itself.
    let mut again = lab.start(&Spec::primary(Host::A, "a-again").with("node", "a"));
    assert_eq!(again.until_exit(), Some(1), "{}", lab.log("a-again"));
    assert!(lab.log("a-again").contains("b runs this VM in generation 2"), "{}", lab.log("a-again"));
    let mut fresh = lab.start(&Spec::standby(Host::B, "b-again").with("node", "b"));
    fresh.until_ready();
    assert_eq!(fresh.activations(), []);
    assert_eq!(lab.frames_released(Host::B), silent, "nothing of the guest is heard again");
}

/// Of the window in the test below.
const WINDOW_PAGES: u64 = 1024;

#[test]
fn a_page_that_a_checkpoint_missed_is_found_within_a_turn_and_the_guest_protected_anew() {
    if !lab::available() {
        return;
    }
    let _watchdog = Watchdog::new(TEST);
    let lab = Lab::new(program::lockstep(), Guest { verify: false, ..Guest::default() });
    let window = "verify-memory=4M";
    let (mut a, mut b) =
        lab.pair(&Spec::primary(Host::A, "a").dying("miss-page", 1).flag(window), &Spec::standby(Host::B, "b").flag(window));
    let mut guest = lab.connect();
    let generation = a.until_protected(0);
    // In sequence and not for long: no page is written a second time, which would have it sent after all.
    dirty_in_sequence(&mut guest, 20_000);
    lab.until_logged("a", "a page is left out of the epoch");
    dirty_in_sequence(&mut guest, 0);
    under_load(&lab, Clients::default(), |load| {
        lab.until_logged("b", "the standby's memory is not the primary's");
        // Copied anew, and compared on.
        assert_eq!(a.until_alone(generation), generation.next());
        let gone = a.peers_gone()[0].0;
        a.until_protected(gone);
        let (verified, all) = b.until("memory to be compared", |e| match e.what {
            NodeEventKind::MemoryVerified { pages, guest_pages } if e.at_ns > gone => Some((pages, guest_pages)),
            _ => None,
        });
        assert!(verified >= WINDOW_PAGES && verified.is_multiple_of(WINDOW_PAGES) && all == 64 << 8, "{verified} of {all}");
        load.until_more(SOME);
    });
    assert_eq!(a.peers_gone().len(), 1, "only what was missed is found");

    let word_after = |log: &str, words: &str| {
        let from = log.split(words).nth(1).expect("it was logged");
        from.chars().skip_while(|c| *c != '0').take_while(|c| c.is_ascii_alphanumeric()).collect::<String>()
    };
    let missed = word_after(&lab.log("a"), "page=");
    assert_eq!(word_after(&lab.log("b"), "not the primary's: page "), missed, "named");
    assert_eq!(b.activations(), []);
    prove_memory(&mut guest);
}
