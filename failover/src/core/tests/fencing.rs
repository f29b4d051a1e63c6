//! Between the grant and the guest: nothing runs before older owners are shut out of the shared disks.

use super::*;
use crate::fence::Predecessor;

/// A standby `b` with shared disks, recorded, with an epoch committed, whose primary `a` is gone and which has the grant.
fn granted() -> Bench {
    let mut b = Bench::new("b", 2, Some(record(1, "a", 1, Some("b"))));
    b.node = Node::new(Config { fence: true, ..Config::new(id("b"), 2) });
    let mut b = b.joined();
    b.put(Event::PeerGone { cause: "closed".to_owned() });
    b.settle();
    b
}

fn left(generation: u64, owner: &str, instance: u64, unfenced: &[&str]) -> Record {
    Record { unfenced: unfenced.iter().map(|name| left_node(name)).collect(), ..record(generation, owner, instance, None) }
}

fn left_node(name: &str) -> Predecessor {
    Predecessor { node: id(name), host: None }
}

fn fenced(generation: u64) -> Event {
    Event::Fenced { generation: Generation(generation) }
}

const ACTIVATE: Action = Action::Activate { generation: Generation(2) };

#[test]
fn a_takeover_shuts_the_old_owner_out_before_it_activates() {
    let mut b = granted();
    let record = left(2, "b", 2, &["a"]);
    assert_eq!(b.record, Some(record.clone()), "and says who is not shut out yet, should it die over it");
    let fence = Action::Fence { record, old: vec![left_node("a")] };
    assert_eq!(b.take_log(), [Action::StopCommitting, Action::DropLink, fence]);
    assert_eq!(b.node.protection(), Protection::Fencing);
    assert!(!b.node.accepts_primary() && !b.node.accepts_standby());

    b.put(fenced(2));

    assert_eq!(b.take_log(), [ACTIVATE]);
    b.settle();
    assert_eq!(b.record, Some(left(2, "b", 2, &[])), "the next owner need not shut it out again");
}

#[test]
fn failures_and_what_concerns_another_grant_activate_nothing() {
    let mut b = granted();
    b.take_log();
    b.put(Event::FenceFailed { generation: Generation(2), why: "no answer".to_owned() });
    b.put(fenced(1));
    b.put(fenced(3));
    b.settle();
    assert_eq!(b.take_log(), []);
    b.put(fenced(2));
    assert_eq!(b.take_log(), [ACTIVATE]);
}

#[test]
fn the_record_is_watched_meanwhile_and_a_grant_that_is_over_is_given_up() {
    let mut b = granted();
    b.take_log();
    b.record = Some(record(3, "c", 5, None));
    b.wait();
    b.settle();
    assert!(matches!(b.take_log()[..], [Action::StopCommitting, Action::DropLink, Action::StandDown { .. }]));
    b.put(fenced(2));
    assert_eq!(b.take_log(), []);
}

#[test]
fn a_node_that_slept_over_it_reads_the_record_first() {
    let mut b = granted();
    b.take_log();
    b.put(Event::Stalled { gap_ns: 60_000 * MS });
    b.put(fenced(2));
    assert_eq!(b.take_log(), [], "the record may be another's");
    b.settle();
    assert_eq!(b.take_log(), [ACTIVATE]);
    // And where it is another's nothing runs.
    let mut b = granted();
    b.take_log();
    b.put(Event::Stalled { gap_ns: 60_000 * MS });
    b.put(fenced(2));
    b.record = Some(record(3, "b", 9, None));
    b.settle();
    assert!(matches!(b.take_log().last(), Some(Action::StandDown { .. })));
}

#[test]
fn an_arbiter_without_an_answer_neither_activates_nor_gives_up() {
    let mut b = granted();
    b.take_log();
    b.put(Event::Stalled { gap_ns: 60_000 * MS });
    b.fail();
    b.put(fenced(2));
    assert_eq!(b.take_log(), []);
    b.wait();
    b.settle();
    assert_eq!(b.take_log(), [ACTIVATE]);
}

#[test]
fn a_cold_start_shuts_out_whoever_may_be_left_but_not_itself() {
    for (before, abandon, expected) in [
        (None, false, &[][..]),
        (Some(record(4, "a", 1, None)), false, &[]),
        // It died before its predecessor was shut out.
        (Some(left(4, "a", 1, &["b"])), false, &["b"]),
        (Some(record(4, "b", 1, None)), true, &["b"]),
        (Some(left(4, "c", 1, &["b"])), true, &["b", "c"]),
        (Some(left(4, "b", 1, &["a"])), true, &["b"]),
    ] {
        let mut a = Bench::new("a", 9, before.clone());
        a.node = Node::new(Config { fence: true, ..Config::new(id("a"), 9) });
        a.put(Event::StartPrimary { abandon_standby: abandon });
        a.settle();
        let [Action::Fence { record, old }] = &a.take_log()[..] else { panic!("{before:?}: no fence") };
        assert_eq!(*record, left(record.generation.0, "a", 9, expected), "{before:?}");
        assert_eq!(*old, record.unfenced);
        let generation = record.generation;
        a.put(Event::Fenced { generation });
        assert_eq!(a.take_log(), [Action::Boot { generation }]);
    }
}

/// A cold start of `a` on host `h1`, with shared disks; what it orders.
fn cold_start_on_h1(before: Record, abandon_standby: bool) -> Vec<Action> {
    let mut a = Bench::new("a", 9, Some(before));
    a.node = Node::new(Config { fence: true, host: Some(host("h1")), ..Config::new(id("a"), 9) });
    a.put(Event::StartPrimary { abandon_standby });
    a.settle();
    a.take_log()
}

fn host(host: &str) -> HostId {
    HostId::try_from(format!("{:0>16}", host.trim_start_matches('h'))).expect("an identity")
}

#[test]
fn an_owner_of_this_nodes_name_on_another_host_is_shut_out_like_any_other() {
    let owner = |host_of_owner: Option<&str>| Record { host: host_of_owner.map(host), ..record(4, "a", 1, None) };
    // An older release did not tell the host: the name counts, as it did there.
    for (before, expected) in [(owner(None), None), (owner(Some("h1")), None), (owner(Some("h2")), Some("h2"))] {
        let log = cold_start_on_h1(before, true);
        let [Action::Fence { record, old }] = &log[..] else { panic!("{log:?}") };
        let expected: Vec<_> = expected.map(|h| Predecessor { node: id("a"), host: Some(host(h)) }).into_iter().collect();
        assert_eq!(*old, expected);
        assert_eq!((&record.unfenced, &record.host), (&expected, &Some(host("h1"))));
    }
    // Carried over from a grant that came to nothing.
    let left = vec![Predecessor { node: id("a"), host: Some(host("h2")) }, Predecessor { node: id("a"), host: Some(host("h1")) }];
    let log = cold_start_on_h1(Record { unfenced: left.clone(), ..owner(Some("h2")) }, true);
    let [Action::Fence { old, .. }] = &log[..] else { panic!("{log:?}") };
    assert_eq!(*old, left[..1]);
}

#[test]
fn a_takeover_from_a_primary_of_the_same_name_on_another_host_shuts_it_out() {
    let mut b = Bench::new("a", 2, Some(Record { host: Some(host("h1")), ..record(1, "a", 1, Some("a")) }));
    b.node = Node::new(Config { fence: true, host: Some(host("h2")), ..Config::new(id("a"), 2) });
    b.put(Event::StartStandby);
    b.put(Event::PrimaryLinked { generation: Generation(1) });
    b.put(Event::Committed { epoch: Epoch(1) });
    b.put(Event::Recorded { generation: Generation(1) });
    b.settle();
    b.put(Event::PeerGone { cause: "closed".to_owned() });
    b.settle();
    let log = b.take_log();
    let Some(Action::Fence { old, .. }) = log.last() else { panic!("{log:?}") };
    assert_eq!(*old, [Predecessor { node: id("a"), host: Some(host("h1")) }]);
}

#[test]
fn a_host_does_not_take_the_vm_of_another_host_of_its_name_unasked() {
    let log = cold_start_on_h1(Record { host: Some(host("h2")), ..record(4, "a", 1, None) }, false);
    let [Action::Refused { reason }] = &log[..] else { panic!("{log:?}") };
    assert!(
        reason.contains("0002") && reason.contains("0001") && reason.contains("--node") && reason.contains("--abandon-standby"),
        "{reason}"
    );
}

#[test]
fn a_start_whose_grant_goes_to_another_is_refused() {
    let mut a = Bench::new("a", 9, None);
    a.node = Node::new(Config { fence: true, ..Config::new(id("a"), 9) });
    a.put(Event::StartPrimary { abandon_standby: false });
    a.settle();
    a.take_log();
    a.record = Some(record(2, "b", 5, None));
    a.wait();
    a.settle();
    assert!(matches!(a.take_log()[..], [Action::Refused { .. }]));
    a.put(fenced(1));
    assert_eq!(a.take_log(), []);
}

#[test]
fn a_primary_that_is_shut_out_of_a_disk_stops_its_guest_at_once() {
    let mut a = Bench::protected();
    a.put(Event::ShutOut { reason: "vda: refused".to_owned() });
    let log = a.take_log();
    let [Action::ShutGate, Action::StopGuest { reason }, Action::DropLink] = &log[..] else { panic!("{log:?}") };
    assert!(reason.contains("shut out") && reason.contains("vda"), "{reason}");
    assert!(a.asked.is_empty(), "and changes nothing in the record: its standby may take over");
}
