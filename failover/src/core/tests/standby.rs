//! A standby: when it asks to take over, when it activates, and when it stands down.

use super::*;

#[test]
fn a_standby_stops_committing_before_it_asks_and_activates_only_when_granted() {
    let mut b = Bench::standing();
    let mut actions = Vec::new();
    b.node.handle(Event::PeerGone { cause: "closed".to_owned() }, 0, &mut actions);
    assert_eq!(actions[0], Action::StopCommitting);
    let Some(Action::Arbiter { id, request }) = actions.pop() else { panic!("asks last: {actions:?}") };
    let answer = b.perform(&request);
    assert_eq!(answer, Answer::Done, "the record was read ahead");
    b.put(Event::ArbiterReply { id, answer });
    assert_eq!(b.take_log(), [Action::Activate { generation: Generation(2) }]);
    assert_eq!(b.record, Some(record(2, "b", 2, None)));
    assert_eq!(b.node.role(), Role::Primary);
}

#[test]
fn a_standby_without_a_whole_epoch_never_asks() {
    let mut b = Bench::new("b", 2, Some(record(1, "a", 1, Some("b"))));
    b.put(Event::StartStandby);
    b.put(Event::PrimaryLinked { generation: Generation(1) });
    b.put(Event::PeerGone { cause: "closed".to_owned() });
    assert!(b.asked.iter().all(|(_, request)| *request == Request::Read), "it looks, and asks for nothing: {:?}", b.asked);
    assert!(matches!(b.take_log()[..], [Action::StopCommitting, Action::DropLink, Action::StandDown { .. }]));
    assert!(b.node.accepts_primary());
}

#[test]
fn a_standby_that_is_not_recorded_keeps_what_it_holds_and_looks_again() {
    let mut b = Bench::new("b", 2, Some(record(1, "a", 1, None)));
    b.put(Event::StartStandby);
    b.put(Event::PrimaryLinked { generation: Generation(1) });
    b.put(Event::Committed { epoch: Epoch(1) });
    b.put(Event::PeerGone { cause: "silent".to_owned() });
    b.take_log();
    b.settle();
    assert_eq!(b.take_log(), []);
    assert!(!b.node.accepts_primary());
    // The dead primary's late request arrives.
    b.record = Some(record(1, "a", 1, Some("b")));
    b.wait();
    b.settle();
    assert_eq!(b.take_log(), [Action::Activate { generation: Generation(2) }]);
}

#[test]
fn a_standby_whose_primary_went_on_alone_stands_down() {
    let mut b = Bench::standing();
    b.record = Some(record(2, "a", 1, None));
    b.put(Event::PeerGone { cause: "silent".to_owned() });
    b.settle();
    assert!(matches!(b.take_log().last(), Some(Action::StandDown { .. })));
}

#[test]
fn a_standby_never_activates_after_a_shutdown() {
    let mut b = Bench::standing();
    b.put(Event::PeerShutdown { reason: "power-off".to_owned() });
    b.put(Event::PeerGone { cause: "closed".to_owned() });
    b.settle();
    assert!(!b.take_log().iter().any(|a| matches!(a, Action::Activate { .. })));
    assert_eq!(b.record, Some(record(1, "a", 1, Some("b"))));
}

#[test]
fn an_unanswered_grant_is_not_a_grant_until_it_is_read() {
    let mut b = Bench::standing();
    b.put(Event::PeerGone { cause: "closed".to_owned() });
    b.take_log();
    let (id, request) = b.asked.pop().unwrap();
    b.perform(&request);
    b.put(Event::ArbiterReply { id, answer: Answer::Failed { why: "lost".to_owned() } });
    assert_eq!(b.take_log(), []);
    b.wait();
    b.settle();
    assert_eq!(b.take_log(), [Action::Activate { generation: Generation(2) }]);
}
