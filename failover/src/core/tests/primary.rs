//! A primary: the gate and the record, going on alone, doubts about its right to run, a disk that fails, the end of its guest.

use super::*;

#[test]
fn the_gate_closes_before_the_standby_is_recorded() {
    let mut a = Bench::new("a", 1, None);
    a.put(Event::StartPrimary { abandon_standby: false });
    a.settle();
    a.put(Event::StandbyLinked { node: id("b") });
    let mut actions = Vec::new();
    a.node.handle(Event::SyncReady, 0, &mut actions);
    let place = |wanted: fn(&Action) -> bool| actions.iter().position(wanted).expect("ordered");
    assert!(place(|a| *a == Action::Gate) < place(|a| matches!(a, Action::Arbiter { request: Request::Swap { .. }, .. })));
}

#[test]
fn commits_release_only_when_recorded_and_committed_whichever_comes_first() {
    for commit_first in [true, false] {
        let mut a = Bench::new("a", 1, None);
        a.put(Event::StartPrimary { abandon_standby: false });
        a.settle();
        a.put(Event::StandbyLinked { node: id("b") });
        a.put(Event::SyncReady);
        a.take_log();
        if commit_first {
            a.put(Event::FirstCommit { epoch: Epoch(1) });
        } else {
            a.settle();
        }
        assert!(!a.take_log().contains(&Action::Protect));
        if commit_first {
            a.settle();
        } else {
            a.put(Event::FirstCommit { epoch: Epoch(1) });
        }
        assert!(a.take_log().contains(&Action::Protect));
    }
}

#[test]
fn going_on_alone_opens_the_gate_only_after_the_next_generation_is_won() {
    let mut a = Bench::protected();
    a.put(Event::PeerGone { cause: "closed".to_owned() });
    assert_eq!(a.take_log(), [Action::Hold, Action::DropLink]);
    a.settle();
    assert_eq!(a.record, Some(record(2, "a", 1, None)));
    assert_eq!(a.take_log(), [Action::Ungate { generation: Generation(2) }]);
}

#[test]
fn an_unanswered_strike_out_keeps_the_gate_closed_until_the_record_is_read() {
    let mut a = Bench::protected();
    a.put(Event::PeerGone { cause: "closed".to_owned() });
    a.take_log();
    // It happened, and its answer is lost.
    let (id, request) = a.asked.pop().unwrap();
    a.perform(&request);
    a.put(Event::ArbiterReply { id, answer: Answer::Failed { why: "lost".to_owned() } });
    assert_eq!(a.take_log(), []);
    a.wait();
    assert!(matches!(a.asked[..], [(_, Request::Read)]));
    a.settle();
    assert_eq!(a.take_log(), [Action::Ungate { generation: Generation(2) }]);
}

#[test]
fn a_request_that_is_never_answered_is_given_up_and_asked_again_ever_more_rarely() {
    let mut a = Bench::protected();
    a.put(Event::PeerGone { cause: "closed".to_owned() });
    a.take_log();
    let mut pauses = Vec::new();
    for _ in 0..12 {
        let from = a.now;
        a.fail();
        a.wait();
        pauses.push(a.now - from);
    }
    assert!(pauses.is_sorted() && pauses[0] == 10 * MS && pauses[11] == 1000 * MS, "{pauses:?}");
    let (old, _) = a.asked.pop().unwrap();
    a.wait();
    a.wait();
    a.put(Event::ArbiterReply { id: old, answer: Answer::Done });
    assert_eq!(a.take_log(), []);
}

#[test]
fn the_loser_shuts_its_gate_and_stops_its_guest_for_good() {
    let mut a = Bench::protected();
    a.record = Some(record(2, "b", 2, None));
    a.put(Event::PeerGone { cause: "closed".to_owned() });
    a.settle();
    assert!(matches!(&a.take_log()[2..], [Action::ShutGate, Action::StopGuest { .. }, Action::DropLink]));
    a.put(Event::StandbyLinked { node: id("b") });
    a.put(Event::Tick);
    assert!(a.take_log().is_empty() && a.asked.is_empty());
}

#[test]
fn another_process_of_the_same_name_is_not_taken_for_oneself() {
    let mut a = Bench::protected();
    a.put(Event::PeerGone { cause: "closed".to_owned() });
    a.record = Some(record(2, "a", 77, None));
    a.settle();
    assert!(a.take_log().contains(&Action::ShutGate));
}

#[test]
fn a_record_that_vanished_or_is_older_grants_nothing() {
    for left in [None, Some(record(0, "a", 1, None))] {
        let mut a = Bench::protected();
        a.record = left;
        a.put(Event::PeerGone { cause: "closed".to_owned() });
        a.take_log();
        for _ in 0..5 {
            a.settle();
            a.wait();
        }
        assert_eq!(a.take_log(), []);
        assert_eq!(a.node.protection(), Protection::Held);
    }
}

#[test]
fn a_standby_lost_while_memory_is_copied_needs_no_arbiter() {
    let mut a = Bench::new("a", 1, None);
    a.put(Event::StartPrimary { abandon_standby: false });
    a.settle();
    a.take_log();
    a.put(Event::StandbyLinked { node: id("b") });
    a.put(Event::PeerGone { cause: "closed".to_owned() });
    assert_eq!(a.take_log(), [Action::DropLink]);
    assert!(a.asked.is_empty() && a.node.accepts_standby());
}

#[test]
fn a_stalled_primary_releases_nothing_until_the_record_is_read_after_the_stall() {
    let mut a = Bench::protected();
    // A watch was under way when the node fell asleep: its answer is of the time before.
    a.now = a.node.deadline_ns().unwrap();
    a.put(Event::Tick);
    let (old, _) = a.asked.pop().unwrap();
    a.put(Event::Stalled { gap_ns: 500 * MS });
    assert_eq!(a.take_log(), [Action::HoldRelease]);
    let answer = Answer::Read(a.record.clone());
    a.put(Event::ArbiterReply { id: old, answer });
    assert_eq!(a.take_log(), []);
    a.settle();
    assert_eq!(a.take_log(), [Action::ResumeRelease]);
}

#[test]
fn a_rumour_of_a_newer_generation_is_checked_and_not_believed() {
    let mut a = Bench::protected();
    a.put(Event::NewerGeneration { generation: Generation(9) });
    a.settle();
    assert_eq!(a.take_log(), []);
    a.record = Some(record(2, "b", 2, None));
    a.put(Event::NewerGeneration { generation: Generation(9) });
    a.settle();
    assert!(a.take_log().contains(&Action::ShutGate));
}

#[test]
fn the_end_of_the_guest_is_told_and_its_standby_struck_out() {
    let mut a = Bench::protected();
    a.put(Event::GuestEnded { reason: "power-off".to_owned() });
    a.settle();
    assert_eq!(a.record, Some(record(2, "a", 1, None)));
    let log = a.take_log();
    assert!(matches!(log[..], [Action::TellShutdown { .. }, Action::Ungate { .. }, Action::DropLink, Action::Finished]));
}

fn disk_failed() -> Event {
    Event::DiskFailed { reason: "disk0: no space left".to_owned() }
}

/// What a node that gives up orders.
fn giving_up() -> [Action; 3] {
    [Action::ShutGate, Action::GiveUp { reason: "disk0: no space left".to_owned() }, Action::DropLink]
}

#[test]
fn a_protected_primary_whose_disk_fails_gives_up_without_a_word_to_its_standby() {
    let mut a = Bench::protected();
    a.put(disk_failed());
    assert_eq!(a.take_log(), giving_up());
    assert_eq!(a.node.role(), Role::Stopped);
    // Nothing is said to the arbiter: its record still names the standby, which is granted the guest.
    assert_eq!((a.asked.len(), a.record.clone()), (0, Some(record(1, "a", 1, Some("b")))));
}

#[test]
fn a_disk_that_fails_before_the_standby_is_of_use_waits_until_it_is() {
    let mut a = Bench::new("a", 1, None);
    a.put(Event::StartPrimary { abandon_standby: false });
    a.settle();
    a.put(Event::StandbyLinked { node: id("b") });
    a.take_log();
    a.put(disk_failed());
    assert_eq!(a.take_log(), []);
    a.put(Event::StandbySight { trouble: None });
    assert_eq!(a.take_log(), []);
    a.put(Event::SyncReady);
    a.settle();
    a.put(disk_failed());
    a.take_log();
    a.put(Event::FirstCommit { epoch: Epoch(1) });
    assert_eq!(a.take_log(), giving_up());
}

#[test]
fn a_failed_disk_is_the_guests_business_where_no_standby_can_serve() {
    // Alone; lost while memory was copied; struck out: in each the node runs on, and a later standby is not taken for one that could have helped.
    let mut alone = Bench::new("a", 1, None);
    alone.put(Event::StartPrimary { abandon_standby: false });
    alone.settle();
    let mut copying = Bench::new("a", 1, None);
    copying.put(Event::StartPrimary { abandon_standby: false });
    copying.settle();
    copying.put(Event::StandbyLinked { node: id("b") });
    copying.put(disk_failed());
    copying.put(Event::PeerGone { cause: "closed".to_owned() });
    let mut striking = Bench::protected();
    striking.put(Event::PeerGone { cause: "closed".to_owned() });
    striking.put(disk_failed());
    striking.settle();
    for mut a in [alone, copying, striking] {
        a.put(disk_failed());
        assert_eq!(a.node.protection(), Protection::Unprotected);
        a.put(Event::StandbyLinked { node: id("b") });
        a.put(Event::SyncReady);
        a.settle();
        a.put(Event::StandbySight { trouble: None });
        a.put(Event::FirstCommit { epoch: Epoch(1) });
        assert_eq!((a.node.role(), a.node.protection()), (Role::Primary, Protection::Protected));
    }
}
