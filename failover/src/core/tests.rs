//! Properties of the role machine, one node at a time. What many nodes do together is the simulation's business (`tests/`).
//!
//! Here: one node with its arbiter, how it starts, and what no sequence of events may bring about. Role by role: the files in `core/tests/`.

use proptest::prelude::*;

use super::*;

mod fencing;
mod primary;
mod sight;
mod standby;

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

    /// A primary `a` in generation 1 with `b` recorded, which has committed nothing yet.
    fn recorded() -> Bench {
        let mut a = Bench::new("a", 1, None);
        a.put(Event::StartPrimary { abandon_standby: false });
        a.settle();
        a.put(Event::StandbyLinked { node: id("b") });
        a.put(Event::SyncReady);
        a.settle();
        a
    }

    /// The same, committed.
    fn protected() -> Bench {
        let mut a = Bench::recorded();
        a.put(Event::FirstCommit { epoch: Epoch(1) });
        a.put(Event::StandbySight { trouble: None });
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
fn a_forced_start_replaces_what_it_read_first_and_nothing_that_came_after() {
    // The owner's last request names a standby; that standby takes over; the record was absent and is not any more.
    for (before, after) in [
        (Some(record(4, "b", 1, None)), record(4, "b", 1, Some("c"))),
        (Some(record(4, "b", 1, Some("c"))), record(5, "c", 2, None)),
        (None, record(1, "c", 2, None)),
    ] {
        let mut a = Bench::new("a", 9, before);
        a.put(Event::StartPrimary { abandon_standby: true });
        a.settle_reads();
        a.record = Some(after.clone());

        a.settle();

        assert!(matches!(&a.take_log()[..], [Action::Refused { reason }] if reason.contains("changed")), "{after:?}");
        assert_eq!(a.record, Some(after));
    }
}

#[test]
fn a_forced_start_whose_answer_was_lost_is_granted_by_the_record() {
    let mut a = Bench::new("a", 9, Some(record(4, "b", 1, Some("c"))));
    a.put(Event::StartPrimary { abandon_standby: true });
    a.settle_reads();

    let request = a.fail();
    a.perform(&request);
    a.wait();
    a.settle();

    assert_eq!(a.record, Some(record(5, "a", 9, None)));
    assert_eq!(a.take_log(), [Action::Boot { generation: Generation(5) }]);
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
        1 => prop::option::of(Just(String::new())).prop_map(|trouble| Event::StandbySight { trouble }),
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
