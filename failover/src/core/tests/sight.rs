//! Whether the standby sees the record: what it tells, when, and what the primary makes of it.

use super::*;

const SECOND: u64 = 1_000 * MS;

/// What was told of the standby's sight since the last call.
fn told(bench: &mut Bench) -> Vec<Option<String>> {
    let sight = |action| match action {
        Action::TellSight { trouble } => Some(trouble),
        _ => None,
    };
    bench.take_log().into_iter().filter_map(sight).collect()
}

/// The standby `b`, told by `a` in generation 1 that it is recorded, where it reads `record`.
fn told_that_it_is_recorded(record: Option<Record>) -> Bench {
    Bench::new("b", 2, record).joined()
}

/// Every question goes unanswered until `until_ns`.
fn fail_until(bench: &mut Bench, until_ns: u64) {
    while bench.now < until_ns {
        bench.wait();
        while !bench.asked.is_empty() {
            assert_eq!(bench.fail(), Request::Read);
        }
    }
}

#[test]
fn a_standby_counts_as_protecting_only_once_it_has_read_itself_that_the_record_names_it() {
    let mut b = Bench::new("b", 2, Some(record(1, "a", 1, Some("b"))));
    b.put(Event::StartStandby);
    b.settle();
    b.put(Event::PrimaryLinked { generation: Generation(1) });
    b.put(Event::Committed { epoch: Epoch(1) });
    b.put(Event::Recorded { generation: Generation(1) });
    b.take_log();
    assert_eq!(b.node.protection(), Protection::Syncing, "it has not looked yet");

    b.settle();

    assert_eq!(told(&mut b), [None]);
    assert_eq!(b.node.protection(), Protection::Protected);
}

#[test]
fn a_standby_that_reads_another_record_says_so_and_never_counts_as_protecting() {
    // A file of its own; a copy from before it was recorded; one that names another.
    for (wrong, words) in [
        (None, "there is no record"),
        (Some(record(1, "a", 1, None)), "does not name it"),
        (Some(record(1, "a", 1, Some("c"))), "does not name it"),
    ] {
        let mut b = told_that_it_is_recorded(wrong);
        let begun = b.now;
        let mut all = Vec::new();
        let mut asked = 0;
        while b.now < begun + 60 * SECOND {
            b.wait();
            asked += b.asked.len();
            b.settle();
            all.extend(told(&mut b));
            assert_ne!(b.node.protection(), Protection::Protected);
            if b.now < begun + 2 * SECOND {
                assert_eq!(all, [], "caches may be behind for a moment");
            }
        }
        let [Some(trouble)] = &all[..] else { panic!("told once: {all:?}") };
        assert!(trouble.contains(words) && trouble.contains("--arbiter"), "{trouble}");
        assert!(asked <= 70, "storage is not spun on: {asked} reads in a minute");
        assert_eq!(b.node.protection(), Protection::Blind);
    }
}

#[test]
fn a_standby_looks_again_and_again_and_tells_of_trouble_that_lasts_and_of_its_end() {
    let mut b = Bench::standing();
    let begun = b.now;
    let bound = b.node.config.blind_ns;

    // A moment is nothing.
    fail_until(&mut b, begun + bound / 2);
    assert_eq!(told(&mut b), []);
    assert_eq!(b.node.protection(), Protection::Protected);
    b.wait();
    b.settle();
    let seen = b.now;
    fail_until(&mut b, seen + bound - SECOND);
    assert_eq!(told(&mut b), [], "counted from when it was last seen to fail");

    fail_until(&mut b, seen + 6 * bound);
    let all = told(&mut b);
    assert!(matches!(&all[..], [Some(why)] if why.contains("lost")), "once: {all:?}");
    assert_eq!(b.node.protection(), Protection::Blind);

    b.wait();
    b.settle();
    assert_eq!(told(&mut b), [None]);
    assert_eq!(b.node.protection(), Protection::Protected);
}

#[test]
fn a_standby_whose_look_hangs_says_so_too() {
    let mut b = Bench::standing();
    let end = b.now + 2 * b.node.config.blind_ns;
    while b.now < end {
        b.wait();
        b.asked.clear();
    }
    let all = told(&mut b);
    assert!(matches!(&all[..], [Some(why)] if why.contains("in time")), "{all:?}");
}

#[test]
fn a_blind_standby_still_takes_over_when_the_arbiter_is_back() {
    let mut b = Bench::standing();
    let end = b.now + 3 * b.node.config.blind_ns;
    fail_until(&mut b, end);
    b.put(Event::PeerGone { cause: "closed".to_owned() });
    b.take_log();
    let end = b.now + 60 * SECOND;
    fail_until(&mut b, end);
    assert_eq!(b.take_log(), [], "no answer is no grant");
    b.wait();
    b.settle();
    assert_eq!(b.take_log(), [Action::Activate { generation: Generation(2) }]);
}

#[test]
fn a_takeover_does_not_wait_for_a_look_that_is_under_way() {
    let mut b = Bench::standing();
    b.wait();
    assert!(matches!(b.asked.pop(), Some((_, Request::Read))), "the look that hangs");
    b.put(Event::PeerGone { cause: "closed".to_owned() });
    assert!(matches!(b.asked[..], [(_, Request::Swap { .. })]), "{:?}", b.asked);
}

#[test]
fn a_standby_that_waits_for_its_primary_tells_at_once_of_an_arbiter_out_of_reach() {
    let mut b = Bench::new("b", 2, None);
    b.put(Event::StartStandby);
    b.fail();
    assert!(matches!(&told(&mut b)[..], [Some(why)] if why.contains("lost")));
    let end = b.now + 60 * SECOND;
    fail_until(&mut b, end);
    assert_eq!(told(&mut b), [], "once");
    b.wait();
    b.settle();
    assert_eq!(told(&mut b), [None]);
    assert!(b.node.accepts_primary());
}

#[test]
fn a_primary_is_protected_only_when_its_standby_has_said_that_it_sees_the_record() {
    for sight_first in [true, false] {
        let mut a = Bench::recorded();
        if sight_first {
            a.put(Event::StandbySight { trouble: None });
            a.put(Event::FirstCommit { epoch: Epoch(1) });
        } else {
            a.put(Event::FirstCommit { epoch: Epoch(1) });
            assert!(a.take_log().contains(&Action::Protect), "output does not wait for it");
            assert_eq!(a.node.protection(), Protection::Syncing);
            a.put(Event::StandbySight { trouble: None });
        }
        assert_eq!(a.node.protection(), Protection::Protected);
    }
}

#[test]
fn a_blind_standby_is_shown_and_kept_and_its_successor_starts_anew() {
    let mut a = Bench::protected();
    a.put(Event::StandbySight { trouble: Some("no mount".to_owned()) });
    assert_eq!(a.node.protection(), Protection::Blind);
    assert_eq!(a.take_log(), [], "it is neither struck out nor is output held");
    assert!(a.asked.is_empty());

    a.put(Event::PeerGone { cause: "closed".to_owned() });
    a.settle();
    a.put(Event::StandbyLinked { node: id("c") });
    a.put(Event::SyncReady);
    a.settle();
    a.put(Event::FirstCommit { epoch: Epoch(1) });
    assert_eq!(a.node.protection(), Protection::Syncing);
}

#[test]
fn a_primary_whose_disk_fails_does_not_give_up_for_a_standby_that_could_not_take_over() {
    let mut a = Bench::protected();
    a.put(Event::StandbySight { trouble: Some("no mount".to_owned()) });
    a.put(Event::DiskFailed { reason: "EIO".to_owned() });
    assert_eq!(a.take_log(), []);

    a.put(Event::StandbySight { trouble: None });
    assert!(matches!(a.take_log()[..], [Action::ShutGate, Action::GiveUp { .. }, Action::DropLink]));
}
