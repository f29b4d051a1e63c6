//! Properties of the pipeline.

use super::*;

const US: u64 = 1_000;
const MS: u64 = 1_000_000;
/// The defaults' bounds on how long output waits: with commits outstanding, and without.
const WAIT: u64 = 200 * US;
const GATHER: u64 = 15 * US;
const G: Generation = Generation(3);
/// The first output of an epoch.
const OUTPUT: Event = Event::Output { first: true, pressure: false };

struct Bench {
    pipeline: Pipeline,
    now: u64,
}

impl Bench {
    fn new() -> Bench {
        Bench { pipeline: Pipeline::new(Policy::default()), now: 0 }
    }

    fn put(&mut self, event: Event) -> Vec<Action> {
        self.put_beside_a_sleeper(event).0
    }

    /// Also what a thread that sleeps until the deadline must know.
    fn put_beside_a_sleeper(&mut self, event: Event) -> (Vec<Action>, Deadline) {
        let mut actions = Vec::new();
        let deadline = self.pipeline.handle(event, self.now, &mut actions);
        (actions, deadline)
    }

    fn after(&mut self, ns: u64) -> Vec<Action> {
        self.now += ns;
        self.put(Event::Tick)
    }

    fn mode(&mut self, mode: Mode) -> Vec<Action> {
        self.put(Event::Mode { mode, generation: G })
    }

    fn captured(&mut self, epoch: u64) -> Vec<Action> {
        self.put(Event::Captured { generation: G, epoch: Epoch(epoch), pages: 10 })
    }

    fn committed(&mut self, epoch: u64) -> Vec<Action> {
        self.put(Event::Committed { generation: G, epoch: Epoch(epoch) })
    }

    fn sent(&mut self, epoch: u64) {
        assert_eq!(self.put(Event::Sent { generation: G, epoch: Epoch(epoch) }), []);
    }

    /// Protected, with epoch 1 committed and epoch 2 open.
    fn protected() -> Bench {
        let mut bench = Bench::new();
        bench.mode(Mode::Gated);
        bench.captured(1);
        bench.sent(1);
        bench.committed(1);
        bench.mode(Mode::Protected);
        bench
    }

    /// Ends the open epoch on output, captures and sends it.
    fn output_epoch(&mut self, epoch: u64) {
        self.put(OUTPUT);
        let ended = self.after(WAIT);
        assert_eq!(ended, [end(epoch, EndReason::Output)]);
        self.captured(epoch);
        self.sent(epoch);
    }
}

fn end(epoch: u64, reason: EndReason) -> Action {
    Action::EndEpoch { generation: G, epoch: Epoch(epoch), reason }
}

fn release(epoch: u64) -> Action {
    Action::Release(Commit::attest(G, Epoch(epoch)))
}

#[test]
fn the_first_epoch_ends_as_soon_as_the_gate_is_closed() {
    let mut bench = Bench::new();
    assert_eq!(bench.mode(Mode::Syncing), []);
    assert_eq!(bench.mode(Mode::Gated), [end(1, EndReason::First)]);
}

#[test]
fn a_commit_releases_nothing_before_protection_and_everything_so_far_with_it() {
    let mut bench = Bench::new();
    bench.mode(Mode::Gated);
    bench.captured(1);
    bench.sent(1);
    assert_eq!(bench.committed(1), [Action::FirstCommit(Epoch(1))]);
    bench.output_epoch(2);
    assert_eq!(bench.committed(2), []);
    assert_eq!(bench.mode(Mode::Protected), [release(2)]);
}

#[test]
fn output_ends_its_epoch_after_its_bound_and_not_before() {
    let mut bench = Bench::protected();
    bench.put(OUTPUT);
    assert_eq!(bench.pipeline.deadline_ns(), Some(bench.now + GATHER));
    assert_eq!(bench.after(GATHER - US), []);
    assert_eq!(bench.after(US), [end(2, EndReason::Output)]);
}

#[test]
fn output_waits_longer_while_a_commit_is_outstanding_and_ends_its_epoch_with_that_commit() {
    let mut bench = Bench::protected();
    bench.output_epoch(2);
    bench.put(OUTPUT);
    assert_eq!(bench.pipeline.deadline_ns(), Some(bench.now + WAIT));
    assert_eq!(bench.after(GATHER), []);
    assert_eq!(bench.committed(2), [release(2), end(3, EndReason::Output)]);

    let mut bench = Bench::protected();
    bench.output_epoch(2);
    bench.put(OUTPUT);
    assert_eq!(bench.after(WAIT - US), []);
    assert_eq!(bench.after(US), [end(3, EndReason::Output)]);
}

#[test]
fn output_reported_while_an_epoch_ends_is_not_forgotten() {
    let mut bench = Bench::protected();
    bench.put(OUTPUT);
    bench.after(WAIT);
    bench.put(OUTPUT);
    assert_eq!(bench.captured(2), []);
    bench.sent(2);
    assert_eq!(bench.after(WAIT), [end(3, EndReason::Output)]);
}

#[test]
fn no_epoch_ends_for_output_or_age_behind_one_that_still_waits_for_the_sender() {
    let mut bench = Bench::protected();
    bench.put(OUTPUT);
    bench.after(WAIT);
    bench.captured(2);
    bench.put(Event::DirtyEstimate { pages: 1 });
    assert_eq!(bench.put_beside_a_sleeper(OUTPUT), (vec![], Deadline::Stands), "nobody is woken for it");

    assert_eq!(bench.after(100 * MS), [Action::SampleDirty]);
    assert!(bench.pipeline.deadline_ns().is_some_and(|at| at > bench.now));

    assert_eq!(bench.put(Event::Sent { generation: G, epoch: Epoch(2) }), [end(3, EndReason::Output)]);
}

#[test]
fn output_that_comes_just_before_its_predecessor_is_handed_on_is_not_slept_over() {
    let mut bench = Bench::protected();
    bench.put(OUTPUT);
    bench.after(WAIT);
    bench.captured(2);
    bench.put(Event::DirtyEstimate { pages: 0 });
    let sleeps_until = bench.pipeline.deadline_ns();
    assert_eq!(bench.put_beside_a_sleeper(OUTPUT), (vec![], Deadline::Stands), "behind epoch 2 it would leave no earlier");
    assert_eq!(bench.pipeline.deadline_ns(), sleeps_until);

    let woken = bench.put_beside_a_sleeper(Event::Sent { generation: G, epoch: Epoch(2) });

    assert_eq!(woken, (vec![], Deadline::Earlier));
    assert_eq!(bench.pipeline.deadline_ns(), Some(bench.now + WAIT));
}

#[test]
fn a_sleeper_is_woken_once_for_what_brings_the_deadline_forward_and_for_nothing_else() {
    let mut bench = Bench::protected();
    assert_eq!(bench.put_beside_a_sleeper(OUTPUT), (vec![], Deadline::Earlier));
    assert_eq!(bench.put_beside_a_sleeper(OUTPUT), (vec![], Deadline::Stands));
    bench.after(WAIT);
    bench.captured(2);
    assert_eq!(
        bench.put_beside_a_sleeper(Event::Sent { generation: G, epoch: Epoch(2) }),
        (vec![], Deadline::Stands),
        "nothing waits for it"
    );
    assert_eq!(bench.put_beside_a_sleeper(Event::Committed { generation: G, epoch: Epoch(2) }), (vec![release(2)], Deadline::Stands));

    for epoch in 3..7 {
        bench.output_epoch(epoch);
    }
    assert_eq!(bench.put_beside_a_sleeper(OUTPUT), (vec![], Deadline::Stands), "no epoch may end");
    assert_eq!(bench.put_beside_a_sleeper(Event::Committed { generation: G, epoch: Epoch(3) }), (vec![release(3)], Deadline::Earlier));
}

#[test]
fn a_dirty_set_over_budget_and_a_full_buffer_do_not_wait_for_the_sender() {
    for event in [Event::DirtyEstimate { pages: 4096 }, Event::Output { first: false, pressure: true }] {
        let mut bench = Bench::protected();
        bench.put(OUTPUT);
        bench.after(WAIT);
        bench.captured(2);
        assert!(matches!(bench.put(event)[..], [Action::EndEpoch { epoch: Epoch(3), .. }]));
    }
}

#[test]
fn pressure_and_the_dirty_budget_end_an_epoch_at_once() {
    let mut bench = Bench::protected();
    assert_eq!(bench.put(Event::Output { first: false, pressure: true }), [end(2, EndReason::Pressure)]);
    let mut bench = Bench::protected();
    assert_eq!(bench.put(Event::DirtyEstimate { pages: 4096 }), [end(2, EndReason::Dirty)]);
}

#[test]
fn something_dirty_is_sent_after_the_longest_interval_and_nothing_dirty_never() {
    let mut bench = Bench::protected();
    bench.now += 26 * MS;
    assert_eq!(bench.put(Event::DirtyEstimate { pages: 0 }), []);
    assert_eq!(bench.put(Event::DirtyEstimate { pages: 1 }), [end(2, EndReason::Interval)]);
}

#[test]
fn an_idle_guest_is_looked_at_ten_times_a_second() {
    let mut bench = Bench::protected();
    let (mut looks, mut wakes) = (0, 0);
    while bench.now < 10_000 * MS {
        let at = bench.pipeline.deadline_ns().unwrap();
        assert!(at > bench.now || wakes == 0, "spins at {at}");
        bench.now = at;
        wakes += 1;
        if bench.put(Event::Tick) == [Action::SampleDirty] {
            looks += 1;
            assert_eq!(bench.put(Event::DirtyEstimate { pages: 0 }), []);
        }
    }
    assert!((95..115).contains(&looks) && wakes < 120, "{looks} looks, {wakes} wakes");
}

#[test]
fn while_commits_lag_the_next_epoch_waits_and_grows() {
    let mut bench = Bench::protected();
    for epoch in 2..6 {
        bench.output_epoch(epoch);
    }
    bench.put(Event::Output { first: true, pressure: true });
    assert_eq!(bench.after(50 * MS), []);
    assert_eq!(bench.pipeline.deadline_ns(), None);
    assert_eq!(bench.committed(2), [release(2), end(6, EndReason::Pressure)]);
}

#[test]
fn a_commit_that_cannot_be_is_a_fault_and_releases_nothing() {
    let cases: [(u64, u64); 4] = [(3, 3), (3, 1), (2, 2), (3, 99)];
    for (generation, epoch) in cases {
        let mut bench = Bench::protected();
        bench.output_epoch(2);
        bench.output_epoch(3);
        let actions = bench.put(Event::Committed { generation: Generation(generation), epoch: Epoch(epoch) });
        assert!(matches!(actions[..], [Action::MergeBack(Epoch(2)), Action::MergeBack(Epoch(3)), Action::DropLink(_)]), "{actions:?}");
        assert_eq!(bench.committed(2), []);
    }
}

#[test]
fn a_commit_for_an_epoch_that_was_not_sent_is_a_fault() {
    let mut bench = Bench::protected();
    bench.put(OUTPUT);
    bench.after(100 * US);
    bench.captured(2);
    let actions = bench.committed(2);
    assert_eq!(actions.last(), Some(&Action::DropLink(LinkFault::WrongEpoch { epoch: Epoch(2), expected: None })));
}

#[test]
fn a_failed_capture_is_tried_again_after_a_pause_under_the_same_number() {
    let mut bench = Bench::protected();
    bench.put(OUTPUT);
    bench.after(100 * US);
    assert_eq!(bench.put(Event::CaptureFailed { generation: G, epoch: Epoch(2) }), []);
    assert_eq!(bench.after(499 * US), []);
    assert_eq!(bench.after(US), [end(2, EndReason::Output)]);
}

#[test]
fn what_was_in_flight_goes_back_when_the_link_is_lost_and_so_does_a_late_capture() {
    let mut bench = Bench::protected();
    bench.output_epoch(2);
    bench.put(OUTPUT);
    bench.after(100 * US);
    assert_eq!(bench.put(Event::LinkLost), [Action::MergeBack(Epoch(2))]);
    assert_eq!(bench.captured(3), [Action::MergeBack(Epoch(3))]);
    assert_eq!(bench.pipeline.in_flight(), 0);
}

#[test]
fn an_epoch_that_cannot_be_sent_takes_all_later_ones_with_it() {
    let mut bench = Bench::protected();
    bench.output_epoch(2);
    bench.output_epoch(3);
    let actions = bench.put(Event::SendFailed { generation: G, epoch: Epoch(2) });
    assert_eq!(actions, [Action::MergeBack(Epoch(2)), Action::MergeBack(Epoch(3)), Action::DropLink(LinkFault::SendFailed(Epoch(2)))]);
}

#[test]
fn a_guest_held_for_want_of_room_runs_again_with_the_next_release() {
    let mut bench = Bench::protected();
    bench.output_epoch(2);
    assert!(bench.put(Event::OutputFull).contains(&Action::HoldGuest(HoldReason::AwaitingCommit)));
    assert!(bench.committed(2).contains(&Action::ResumeGuest));
}

#[test]
fn a_guest_held_without_a_grant_runs_again_when_the_gate_opens() {
    let mut bench = Bench::protected();
    bench.put(Event::LinkLost);
    bench.mode(Mode::Held);
    assert_eq!(bench.put(Event::OutputFull), [Action::HoldGuest(HoldReason::NoGrant)]);
    assert_eq!(bench.put(Event::OutputFull), []);
    assert_eq!(bench.mode(Mode::Unprotected), [Action::ResumeGuest]);
}

#[test]
fn nothing_is_released_on_hold_and_all_of_it_after() {
    let mut bench = Bench::protected();
    bench.output_epoch(2);
    assert_eq!(bench.put(Event::HoldRelease(true)), []);
    assert_eq!(bench.committed(2), []);
    assert_eq!(bench.put(Event::HoldRelease(false)), [release(2)]);
}

#[test]
fn on_hold_with_an_open_gate_the_guest_is_held() {
    let mut bench = Bench::new();
    assert_eq!(bench.put(Event::HoldRelease(true)), [Action::HoldGuest(HoldReason::Unconfirmed)]);
    assert_eq!(bench.put(Event::HoldRelease(false)), [Action::ResumeGuest]);
}

#[test]
fn a_capture_of_an_older_generation_is_not_taken_for_the_new_ones() {
    let mut bench = Bench::new();
    bench.mode(Mode::Gated);
    bench.put(Event::LinkLost);
    bench.put(Event::Mode { mode: Mode::Unprotected, generation: Generation(4) });
    bench.put(Event::Mode { mode: Mode::Gated, generation: Generation(4) });
    assert_eq!(bench.captured(1), [Action::MergeBack(Epoch(1))]);
    assert_eq!(bench.pipeline.open_epoch(), Epoch(1));
}
