//! The replication wire is cut, silently and in every direction, with and without an arbiter: exactly one of the two nodes goes on, clients
//! lose nothing, and without the arbiter's word nothing is released (S3, S4).

mod program;

use std::time::{Duration, Instant};

use lockstep::demo::client::Connection;
use lockstep::demo::world::{Cut, Host};
use lockstep_tests::e2e::clients::{Clients, Load, under_load};
use lockstep_tests::e2e::lab::{self, Guest, Lab, dirty, prove_memory};
use lockstep_tests::e2e::node::{Verdict, contest};
use lockstep_tests::e2e::{Node, Spec, Watchdog};
use types::Generation;

/// Bound of a whole test here.
const TEST: Duration = Duration::from_secs(120);
/// Writes that must be acknowledged to show that things go on.
const SOME: u64 = 50;
/// Pages a second that the guest dirties.
const DIRTY: u32 = 5_000;
/// Silence is found out soon, and yet not by a busy test machine.
const DETECTION: &str = "400ms";
/// So long nothing may be heard of a guest that nobody may run; shorter than a client waits for its answer.
const SILENCE: Duration = Duration::from_millis(1500);

fn lab() -> Lab {
    Lab::new(program::lockstep(), Guest { detection: DETECTION, ..Guest::default() })
}

struct Pair {
    a: Node,
    b: Node,
}

/// A protected pair under load, to which `happens` something; everything is judged in the end.
fn protected_pair(lab: &Lab, happens: impl FnOnce(&mut Pair, Generation, &Load<'_>)) {
    let (a, b) = lab.pair(&Spec::primary(Host::A, "a"), &Spec::standby(Host::B, "b"));
    let mut pair = Pair { a, b };
    let mut guest: Connection = lab.connect();
    under_load(lab, Clients { pipelined: true, ..Clients::default() }, |load| {
        dirty(&mut guest, DIRTY);
        let generation = pair.a.until_protected(0);
        load.until_more(SOME);
        happens(&mut pair, generation, load);
        load.until_more(SOME);
    });
    prove_memory(&mut guest);
}

/// The loser of a contest runs nothing: it stood down as a standby, or it is fenced.
fn assert_loser_is_out(pair: &mut Pair, verdict: Verdict) {
    match verdict {
        Verdict::WentOn => {
            assert_eq!(pair.b.activations(), []);
            assert!(pair.a.exited().is_none());
        }
        Verdict::TookOver => {
            pair.a.until_fenced();
            assert_eq!(pair.b.activations().len(), 1);
        }
    }
}

fn one_goes_on_when_the_wire_is_cut(cut: Cut) {
    if !lab::available() {
        return;
    }
    let _watchdog = Watchdog::new(TEST);
    let lab = lab();
    protected_pair(&lab, |pair, before, load| {
        lab.world.cut_replication(cut).expect("cut");
        let (verdict, generation) = contest(&mut pair.a, &mut pair.b, before);
        assert_eq!(generation, before.next());
        load.until_more(SOME);
        assert_loser_is_out(pair, verdict);
        lab.world.heal_replication().expect("mended");
        if verdict == Verdict::WentOn {
            // The standby that was struck out is taken in again.
            let healed_ns = lockstep::host::monotonic_ns();
            assert_eq!(pair.a.until_protected(healed_ns), generation);
        }
        load.until_more(SOME);
        assert_loser_is_out(pair, verdict);
    });
}

#[test]
fn one_goes_on_when_nothing_arrives_either_way() {
    one_goes_on_when_the_wire_is_cut(Cut::Both);
}

#[test]
fn one_goes_on_when_nothing_arrives_from_the_primary() {
    one_goes_on_when_the_wire_is_cut(Cut::FromA);
}

#[test]
fn one_goes_on_when_nothing_arrives_from_the_standby() {
    one_goes_on_when_the_wire_is_cut(Cut::FromB);
}

#[test]
fn one_goes_on_when_a_host_loses_its_whole_replication_port() {
    if !lab::available() {
        return;
    }
    let _watchdog = Watchdog::new(TEST);
    let lab = lab();
    protected_pair(&lab, |pair, before, load| {
        lab.world.set_wire(Host::B, lockstep::demo::world::Wire::Replication, false).expect("unplugged");
        let (verdict, _) = contest(&mut pair.a, &mut pair.b, before);
        load.until_more(SOME);
        assert_loser_is_out(pair, verdict);
    });
}

/// Neither host hears anything of the guest's for a while: it is held still, whoever would like to run it.
fn assert_silence(lab: &Lab, load: &Load<'_>) {
    let released = || (lab.frames_released(Host::A), lab.frames_released(Host::B));
    let (before, acknowledged) = (released(), load.acknowledged());
    let until = Instant::now() + SILENCE;
    while Instant::now() < until {
        assert_eq!(released(), before, "output left although the arbiter gave nobody the right to release it");
        std::thread::sleep(Duration::from_millis(50));
    }
    // What was in the wires and in the clients when the counters were read may still have been counted.
    assert!(load.acknowledged() <= acknowledged + 64, "clients were answered by a guest that nobody may run");
}

/// The arbiter is made unavailable by `lose` and brought back by `bring_back` while the wire is cut.
fn nobody_goes_on_without_the_arbiter(lose: impl FnOnce(&Lab), bring_back: impl FnOnce(&Lab)) {
    if !lab::available() {
        return;
    }
    let _watchdog = Watchdog::new(TEST);
    let lab = lab();
    protected_pair(&lab, |pair, before, load| {
        lose(&lab);
        lab.world.cut_replication(Cut::Both).expect("cut");
        pair.a.until_held();
        pair.b.until_state("asking for the grant");
        assert_silence(&lab, load);
        assert_eq!(pair.b.activations(), []);
        bring_back(&lab);
        let (verdict, generation) = contest(&mut pair.a, &mut pair.b, before);
        assert_eq!(generation, before.next());
        load.until_more(SOME);
        assert_loser_is_out(pair, verdict);
    });
}

#[test]
fn nobody_goes_on_while_the_arbiters_directory_is_gone() {
    let away = |lab: &Lab| lab.directory().join("away");
    nobody_goes_on_without_the_arbiter(
        |lab| std::fs::rename(lab.arbiter_directory(), away(lab)).expect("moved away"),
        |lab| std::fs::rename(away(lab), lab.arbiter_directory()).expect("moved back"),
    );
}

#[test]
fn nobody_goes_on_while_a_file_is_in_the_place_of_the_arbiters_directory() {
    let away = |lab: &Lab| lab.directory().join("away");
    nobody_goes_on_without_the_arbiter(
        |lab| {
            std::fs::rename(lab.arbiter_directory(), away(lab)).expect("moved away");
            std::fs::write(lab.arbiter_directory(), "not a directory").expect("written");
        },
        |lab| {
            std::fs::remove_file(lab.arbiter_directory()).expect("removed");
            std::fs::rename(away(lab), lab.arbiter_directory()).expect("moved back");
        },
    );
}

#[test]
fn nobody_goes_on_while_the_arbiters_record_is_damaged() {
    let record = |lab: &Lab| lab.arbiter_directory().join("record");
    let kept = |lab: &Lab| lab.directory().join("kept");
    nobody_goes_on_without_the_arbiter(
        |lab| {
            std::fs::copy(record(lab), kept(lab)).expect("copied");
            std::fs::write(lab.directory().join("bad"), "{ \"version\": 1, ").expect("written");
            std::fs::rename(lab.directory().join("bad"), record(lab)).expect("replaced");
        },
        |lab| std::fs::rename(kept(lab), record(lab)).expect("put back"),
    );
}

#[test]
fn an_arbiter_that_is_gone_for_a_while_costs_a_protected_guest_nothing() {
    if !lab::available() {
        return;
    }
    let _watchdog = Watchdog::new(TEST);
    let lab = lab();
    protected_pair(&lab, |pair, before, load| {
        let away = lab.directory().join("away");
        std::fs::rename(lab.arbiter_directory(), &away).expect("moved away");
        // Longer than the primary goes without looking at the record.
        let until = Instant::now() + Duration::from_secs(3);
        while Instant::now() < until {
            load.until_more(SOME);
        }
        assert_eq!(pair.a.peers_gone(), []);
        std::fs::rename(&away, lab.arbiter_directory()).expect("moved back");
        pair.a.kill();
        assert_eq!(pair.b.until_activated().generation, before.next());
    });
}
