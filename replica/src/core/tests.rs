//! Properties of the staging.

use super::*;

const G: Generation = Generation(5);

fn put(standby: &mut Standby, event: Event) -> Vec<Action> {
    let mut actions = Vec::new();
    standby.handle(event, &mut actions);
    actions
}

fn part(epoch: u64) -> Event {
    Event::PartVerified { generation: G, epoch: Epoch(epoch) }
}

fn complete(epoch: u64) -> Event {
    Event::EpochComplete { generation: G, epoch: Epoch(epoch) }
}

/// With so many epochs committed.
fn with(epochs: u64) -> Standby {
    let mut standby = Standby::new(G);
    for epoch in 1..=epochs {
        put(&mut standby, part(epoch));
        put(&mut standby, complete(epoch));
    }
    standby
}

#[test]
fn a_complete_epoch_is_committed_before_it_is_applied() {
    let mut standby = Standby::new(G);
    assert_eq!(put(&mut standby, part(1)), []);
    let actions = put(&mut standby, complete(1));
    assert_eq!(actions, [Action::Commit { generation: G, epoch: Epoch(1) }, Action::Apply(Epoch(1))]);
}

#[test]
fn nothing_can_be_activated_from_before_the_first_whole_epoch() {
    let mut standby = Standby::new(G);
    put(&mut standby, Event::SyncPart);
    put(&mut standby, part(1));
    put(&mut standby, Event::StopCommitting);
    assert_eq!(standby.activation_point(), None);
}

#[test]
fn a_torn_epoch_is_discarded_and_never_activated_from() {
    let mut standby = with(2);
    put(&mut standby, part(3));
    assert_eq!(put(&mut standby, Event::LinkLost), [Action::DiscardTorn(Epoch(3))]);
    put(&mut standby, Event::StopCommitting);
    assert_eq!(standby.activation_point(), Some(Epoch(2)));
}

#[test]
fn a_corrupt_epoch_is_never_committed() {
    let mut standby = with(2);
    put(&mut standby, part(3));
    let actions = put(&mut standby, Event::Corrupt { what: "digest".to_owned() });
    assert_eq!(actions, [Action::DiscardTorn(Epoch(3)), Action::DropLink(LinkFault::Corrupt("digest".to_owned()))]);
    assert_eq!(put(&mut standby, complete(3)), []);
    assert_eq!(standby.committed(), Epoch(2));
}

#[test]
fn no_commit_is_produced_after_the_order_to_stop() {
    let mut standby = with(2);
    put(&mut standby, part(3));
    put(&mut standby, Event::StopCommitting);
    assert_eq!(put(&mut standby, complete(3)), []);
    assert_eq!(standby.activation_point(), Some(Epoch(2)));
}

#[test]
fn there_is_no_activation_point_while_commits_may_still_be_made() {
    assert_eq!(with(2).activation_point(), None);
}

#[test]
fn it_is_ready_when_all_that_is_committed_is_applied() {
    let mut standby = with(2);
    put(&mut standby, Event::StopCommitting);
    assert!(!standby.ready());
    put(&mut standby, Event::Applied { epoch: Epoch(2) });
    assert!(!standby.ready(), "out of order");
    put(&mut standby, Event::Applied { epoch: Epoch(1) });
    put(&mut standby, Event::Applied { epoch: Epoch(2) });
    assert!(standby.ready());
}

#[test]
fn an_epoch_out_of_order_or_of_another_generation_is_a_fault() {
    for event in [
        part(4),
        part(2),
        complete(4),
        Event::PartVerified { generation: Generation(4), epoch: Epoch(3) },
        Event::EpochComplete { generation: Generation(6), epoch: Epoch(3) },
        Event::SyncPart,
    ] {
        let mut standby = with(2);
        assert!(matches!(put(&mut standby, event.clone())[..], [Action::DropLink(_)]), "{event:?}");
        assert_eq!(standby.committed(), Epoch(2));
    }
}

#[test]
fn spoilt_memory_is_never_activated_from() {
    let mut standby = with(2);
    let actions = put(&mut standby, Event::ApplyFailed { epoch: Epoch(1) });
    assert_eq!(actions, [Action::DropLink(LinkFault::ApplyFailed(Epoch(1)))]);
    put(&mut standby, Event::StopCommitting);
    assert_eq!(standby.activation_point(), None);
}
