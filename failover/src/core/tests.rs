//! Properties of the role machine, one node at a time. What many nodes do together is the simulation's business (`tests/`).

use proptest::prelude::*;

use super::*;

mod fencing;

const MS: u64 = 1_000_000;

fn id(name: &str) -> NodeId {
    NodeId(name.to_owned())
}

fn record(generation: u64, owner: &str, instance: u64, standby: Option<&str>) -> Record {
    Record { generation: Generation(generation), owner: id(owner), host: None, instance, standby: standby.map(id), unfenced: Vec::new() }
}

/// A node with its arbiter's record at hand.
#[derive(Clone)]
struct Bench {
    node: Node,
    record: Option<Record>,
    now: u64,
    /// Everything ordered, arbiter requests excepted.
    log: Vec<Action>,
    /// Requests not answered yet.
    asked: Vec<(RequestId, Request)>,
}

impl Bench {
    fn new(name: &str, instance: u64, record: Option<Record>) -> Bench {
        Bench { node: Node::new(Config::new(id(name), instance)), record, now: 0, log: Vec::new(), asked: Vec::new() }
    }

    fn put(&mut self, event: Event) {
        let mut actions = Vec::new();
        self.node.handle(event, self.now, &mut actions);
        for action in actions {
            match action {
                Action::Arbiter { id, request } => self.asked.push((id, request)),
                Action::Report { .. } => {}
                other => self.log.push(other),
            }
        }
    }

    /// Answers truthfully until nothing is asked.
    fn settle(&mut self) {
        while let Some((id, request)) = self.asked.pop() {
            let answer = self.perform(&request);
            self.put(Event::ArbiterReply { id, answer });
        }
    }

    fn perform(&mut self, request: &Request) -> Answer {
        match request {
            Request::Read => Answer::Read(self.record.clone()),
            Request::Swap { expect, new } if *expect == self.record => {
                self.record = Some(new.clone());
                Answer::Done
            }
            Request::Swap { .. } => Answer::Lost(self.record.clone()),
        }
    }

    /// The same, until a change is asked for.
    fn settle_reads(&mut self) {
        while let Some((id, request)) = self.asked.pop_if(|(_, request)| *request == Request::Read) {
            let answer = self.perform(&request);
            self.put(Event::ArbiterReply { id, answer });
        }
    }

    /// The one question that is open gets no answer.
    fn fail(&mut self) -> Request {
        let (id, request) = self.asked.pop().expect("a question is open");
        self.put(Event::ArbiterReply { id, answer: Answer::Failed { why: "lost".to_owned() } });
        request
    }

    fn wait(&mut self) {
        self.now = self.node.deadline_ns().expect("the node waits for something");
        self.put(Event::Tick);
    }

    fn take_log(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.log)
    }

    /// A primary `a` in generation 1 with `b` recorded and committed.
    fn protected() -> Bench {
        let mut a = Bench::new("a", 1, None);
        a.put(Event::StartPrimary { abandon_standby: false });
        a.settle();
        a.put(Event::StandbyLinked { node: id("b") });
        a.put(Event::SyncReady);
        a.settle();
        a.put(Event::FirstCommit { epoch: Epoch(1) });
        assert_eq!(a.node.protection(), Protection::Protected);
        a.take_log();
        a
    }

    /// A standby `b` of `a` in generation 1, recorded, with an epoch committed.
    fn standing() -> Bench {
        Bench::new("b", 2, Some(record(1, "a", 1, Some("b")))).joined()
    }

    /// Joins `a` in generation 1 and commits an epoch.
    fn joined(mut self) -> Bench {
        self.put(Event::StartStandby);
        self.put(Event::PrimaryLinked { generation: Generation(1) });
        self.put(Event::Committed { epoch: Epoch(1) });
        self.put(Event::Recorded { generation: Generation(1) });
        self.settle();
        self.take_log();
        self
    }
}

#[test]
fn a_first_start_is_granted_generation_one() {
    let mut a = Bench::new("a", 1, None);
    a.put(Event::StartPrimary { abandon_standby: false });
    a.settle();
    assert_eq!(a.record, Some(record(1, "a", 1, None)));
    assert_eq!(a.take_log(), [Action::Boot { generation: Generation(1) }]);
}

#[test]
fn a_restart_of_an_unprotected_owner_is_granted_the_next_generation() {
    let mut a = Bench::new("a", 9, Some(record(4, "a", 1, None)));
    a.put(Event::StartPrimary { abandon_standby: false });
    a.settle();
    assert_eq!(a.record, Some(record(5, "a", 9, None)));
}

#[test]
fn a_start_is_refused_while_a_standby_may_hold_the_guest_or_another_owns_it() {
    for before in [record(4, "a", 1, Some("b")), record(4, "b", 1, None), record(4, "b", 1, Some("a"))] {
        let mut a = Bench::new("a", 9, Some(before.clone()));
        a.put(Event::StartPrimary { abandon_standby: false });
        a.settle();
        assert!(matches!(a.take_log()[..], [Action::Refused { .. }]), "{before:?}");
        assert_eq!(a.record, Some(before));
        assert_eq!(a.node.role(), Role::Stopped);
    }
}

#[test]
fn an_explicitly_abandoned_standby_is_no_obstacle() {
    let mut a = Bench::new("a", 9, Some(record(4, "a", 1, Some("b"))));
    a.put(Event::StartPrimary { abandon_standby: true });
    a.settle();
    assert_eq!(a.record, Some(record(5, "a", 9, None)));
}

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
fn a_grant_that_came_before_a_sleep_is_read_again_before_it_counts() {
    // A start, and a takeover: the arbiter has answered, then the node slept, then it finds the answer.
    let mut a = Bench::new("a", 9, None);
    a.put(Event::StartPrimary { abandon_standby: false });
    a.settle_reads();
    let mut b = Bench::standing();
    b.put(Event::PeerGone { cause: "closed".to_owned() });
    b.settle_reads();
    b.take_log();
    for (mut bench, lost) in [(a.clone(), false), (b.clone(), false), (a, true), (b, true)] {
        let (id, request) = bench.asked.pop().expect("the grant is asked for");
        let answer = bench.perform(&request);
        assert_eq!(answer, Answer::Done);
        if lost {
            bench.record = Some(record(9, "c", 5, None));
        }

        bench.put(Event::Stalled { gap_ns: 60_000 * MS });
        bench.put(Event::ArbiterReply { id, answer });
        assert_eq!(bench.take_log(), [], "the answer is of another time");
        bench.settle();

        let log = bench.take_log();
        let runs = log.iter().any(|action| matches!(action, Action::Boot { .. } | Action::Activate { .. }));
        assert_eq!(runs, !lost, "{log:?}");
    }
}

#[test]
fn a_guest_that_is_ready_is_started_only_when_a_doubt_about_the_grant_is_settled() {
    let mut a = Bench::new("a", 1, None);
    a.put(Event::StartPrimary { abandon_standby: false });
    a.settle();
    a.take_log();
    for lost in [false, true] {
        a.put(Event::Confirm { gap_ns: 60_000 * MS });
        assert_eq!(a.take_log(), [Action::HoldRelease]);
        a.fail();
        assert_eq!(a.take_log(), [], "no answer is no grant");
        if lost {
            a.record = Some(record(2, "c", 5, None));
        }
        a.wait();
        a.settle();
        let log = a.take_log();
        match lost {
            false => assert_eq!(log, [Action::ResumeRelease]),
            true => assert!(matches!(log[..], [Action::ShutGate, Action::StopGuest { .. }, Action::DropLink]), "{log:?}"),
        }
    }
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
        a.put(Event::FirstCommit { epoch: Epoch(1) });
        assert_eq!((a.node.role(), a.node.protection()), (Role::Primary, Protection::Protected));
    }
}

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
    assert!(b.asked.is_empty());
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

fn any_record() -> impl Strategy<Value = Option<Record>> {
    prop::option::of((0..4u64, "[ab]", 0..3u64, prop::option::of("[ab]")).prop_map(|(g, o, i, s)| record(g, &o, i, s.as_deref())))
}

fn any_event() -> impl Strategy<Value = Event> {
    let answer = prop_oneof![
        any_record().prop_map(Answer::Read),
        Just(Answer::Done),
        any_record().prop_map(Answer::Lost),
        Just(Answer::Failed { why: String::new() }),
    ];
    prop_oneof![
        6 => (0..20u64, answer).prop_map(|(id, answer)| Event::ArbiterReply { id, answer }),
        2 => Just(Event::Tick),
        1 => any::<bool>().prop_map(|abandon_standby| Event::StartPrimary { abandon_standby }),
        1 => Just(Event::StartStandby),
        1 => Just(Event::PeerGone { cause: String::new() }),
        1 => Just(Event::Stalled { gap_ns: u64::MAX }),
        1 => (0..5u64).prop_map(|g| Event::NewerGeneration { generation: Generation(g) }),
        1 => "[ab]".prop_map(|n| Event::StandbyLinked { node: id(&n) }),
        1 => Just(Event::SyncReady),
        1 => (0..3u64).prop_map(|e| Event::FirstCommit { epoch: Epoch(e) }),
        1 => Just(Event::GuestEnded { reason: String::new() }),
        1 => (0..4u64).prop_map(|g| Event::PrimaryLinked { generation: Generation(g) }),
        1 => (0..3u64).prop_map(|e| Event::Committed { epoch: Epoch(e) }),
        1 => (0..4u64).prop_map(|g| Event::Recorded { generation: Generation(g) }),
        1 => Just(Event::PeerShutdown { reason: String::new() }),
        2 => (0..5u64).prop_map(|g| Event::Fenced { generation: Generation(g) }),
        1 => (0..5u64).prop_map(|g| Event::FenceFailed { generation: Generation(g), why: String::new() }),
        1 => Just(Event::ShutOut { reason: String::new() }),
    ]
}

proptest! {
    /// Whatever comes, in whatever order: no panic, at most one question at a time for each call, and nothing after the end.
    #[test]
    fn no_sequence_of_events_upsets_the_machine(events in prop::collection::vec((any_event(), 0..3_000 * MS), 1..60), fence in any::<bool>()) {
        let mut node = Node::new(Config { fence, ..Config::new(id("a"), 1) });
        let (mut now, mut shut) = (0u64, false);
        let mut fencing = None;
        for (event, pause) in events {
            now += pause;
            let mut actions = Vec::new();
            let fenced = match &event {
                Event::Fenced { generation } => Some(*generation),
                _ => None,
            };
            node.handle(event, now, &mut actions);
            for action in &actions {
                match action {
                    Action::Fence { record, .. } => fencing = Some((record.generation, false)),
                    Action::Boot { generation } | Action::Activate { generation } if fence => {
                        let done = fencing.is_some_and(|(of, done)| of == *generation && (done || fenced == Some(of)));
                        prop_assert!(done, "{action:?} and nobody was shut out");
                    }
                    _ => {}
                }
            }
            if let (Some((of, done)), Some(fenced)) = (&mut fencing, fenced) {
                *done |= *of == fenced;
            }
            let asked = actions.iter().filter(|a| matches!(a, Action::Arbiter { .. })).count();
            prop_assert!(asked <= 1);
            if shut {
                prop_assert!(actions.is_empty(), "after the end: {actions:?}");
            }
            shut |= actions.contains(&Action::ShutGate);
        }
    }
}
