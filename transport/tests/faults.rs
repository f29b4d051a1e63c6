//! The in-process link's faults do what they say.

mod common;

use std::time::{Duration, Instant};

use common::{NOW, SOON, inproc, pattern, post};
use transport::inproc::Direction;

#[test]
fn a_cut_is_seen_at_once_at_both_ends_on_both_connections() {
    let (mut link, faults) = inproc(4);
    link.primary.control_tx.send(b"lost").unwrap();
    faults.cut();
    assert!(link.standby.control_rx.receive(SOON).unwrap_err().is_peer_gone());
    assert!(link.standby.data.receive(SOON).unwrap_err().is_peer_gone());
    assert!(link.primary.control_rx.receive(SOON).unwrap_err().is_peer_gone());
    assert!(link.primary.data.acquire(SOON).unwrap_err().is_peer_gone());
    assert!(link.primary.control_tx.send(b"x").unwrap_err().is_peer_gone());
}

#[test]
fn dropped_control_messages_never_arrive_and_later_ones_do() {
    let (mut link, faults) = inproc(4);
    faults.drop_control(Direction::ToStandby, 2);
    for message in [b"1", b"2", b"3"] {
        link.primary.control_tx.send(message).unwrap();
        link.standby.control_tx.send(message).unwrap();
    }
    assert_eq!(link.standby.control_rx.receive(SOON).unwrap().unwrap(), b"3");
    assert!(link.standby.control_rx.receive(NOW).unwrap().is_none());
    assert_eq!(link.primary.control_rx.receive(SOON).unwrap().unwrap(), b"1");
}

#[test]
fn a_delayed_message_and_slot_arrive_in_order_and_not_early() {
    let (mut link, faults) = inproc(4);
    let (region, _bytes) = pattern(&mut link, 4096, 1);
    let delay = Duration::from_millis(20);
    faults.delay(delay);
    let began = Instant::now();
    link.primary.control_tx.send(b"late").unwrap();
    post(&mut link, region, 0, 100, 1);
    assert!(link.standby.control_rx.receive(NOW).unwrap().is_none());
    assert_eq!(link.standby.control_rx.receive(SOON).unwrap().unwrap(), b"late");
    assert!(link.standby.data.receive(SOON).unwrap().is_some());
    assert!(began.elapsed() >= delay);
}

#[test]
fn exactly_one_byte_of_exactly_one_slot_is_corrupted() {
    let (mut link, faults) = inproc(4);
    let (region, bytes) = pattern(&mut link, 4096, 2);
    faults.corrupt_next_slot(77);
    post(&mut link, region, 0, 4096, 1);
    post(&mut link, region, 0, 4096, 2);
    let first = link.standby.data.receive(SOON).unwrap().unwrap();
    let wrong: Vec<_> = (0..4096).filter(|i| first[*i] != bytes[*i]).collect();
    assert_eq!(wrong, [77]);
    assert_eq!(link.standby.data.receive(SOON).unwrap().unwrap()[..], bytes[..4096]);
}

#[test]
fn a_slot_cut_before_its_end_never_arrives() {
    let (mut link, faults) = inproc(4);
    let (region, _bytes) = pattern(&mut link, 4096, 3);
    let slot = link.primary.data.acquire(SOON).unwrap().unwrap();
    faults.cut_before_next_end();
    link.primary.data.post_write(slot, 0, &[transport::Piece { region, offset: 0, len: 9 }]).unwrap();
    assert!(link.primary.data.post_end(slot, 9, 1).unwrap_err().is_peer_gone());
    assert!(link.standby.data.receive(SOON).unwrap_err().is_peer_gone());
}
