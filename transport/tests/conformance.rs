//! The contract of a link, checked against every implementation. A new implementation joins the macro's list.

mod common;

use std::time::{Duration, Instant};

use common::{Link, NOW, SLOT, SOON, pattern, post};
use transport::{MAX_CONTROL_BYTES, Piece, SlotId, TransportError};

fn ended_slots_arrive_in_order_with_their_bytes(mut link: Link) {
    let (region, bytes) = pattern(&mut link, 64 * 4096, 1);
    for i in 0..6_u32 {
        post(&mut link, region, i as usize * 4096, 4096 * (1 + i), u64::from(i) + 1);
    }
    for i in 0..6_usize {
        let slot = link.standby.data.receive(SOON).unwrap().expect("an ended slot");
        assert_eq!(&slot[..], &bytes[i * 4096..][..4096 * (1 + i)], "slot {i}");
    }
}

fn a_gather_of_thousands_of_pieces_lands_whole(mut link: Link) {
    let (region, bytes) = pattern(&mut link, SLOT as usize * 2, 2);
    // Every other 256 bytes, backwards, so that no two pieces are neighbours: 4096 pieces in one slot.
    let pieces: Vec<Piece> = (0..4096).rev().map(|i| Piece { region, offset: i * 512, len: 256 }).collect();
    let slot = link.primary.data.acquire(SOON).unwrap().unwrap();
    link.primary.data.post_write(slot, 0, &pieces).unwrap();
    link.primary.data.post_end(slot, SLOT, 1).unwrap();
    link.primary.data.flush().unwrap();
    let got = receive_while_sending(&mut link);
    let want: Vec<u8> = pieces.iter().flat_map(|p| bytes[p.offset..][..p.len].iter().copied()).collect();
    assert!(got[..] == want[..]);
}

/// One slot, with both ends driven from this thread.
fn receive_while_sending(link: &mut Link) -> transport::Slot {
    let began = Instant::now();
    loop {
        assert!(began.elapsed() < SOON, "the slot never came");
        link.primary.data.completed(NOW).unwrap();
        if let Some(slot) = link.standby.data.receive(Duration::from_millis(1)).unwrap() {
            return slot;
        }
    }
}

fn writes_in_any_order_of_offsets_make_one_slot(mut link: Link) {
    let (region, bytes) = pattern(&mut link, 8192, 3);
    let slot = link.primary.data.acquire(SOON).unwrap().unwrap();
    link.primary.data.post_write(slot, 64, &[Piece { region, offset: 64, len: 8128 }]).unwrap();
    link.primary.data.post_write(slot, 0, &[Piece { region, offset: 0, len: 64 }]).unwrap();
    link.primary.data.post_end(slot, 8192, 1).unwrap();
    link.primary.data.flush().unwrap();
    let slot = link.standby.data.receive(SOON).unwrap().unwrap();
    assert_eq!(&slot[..], &bytes[..8192]);
}

fn an_exhausted_sender_gets_a_slot_as_soon_as_one_is_dropped(mut link: Link) {
    let (region, _bytes) = pattern(&mut link, 4096, 4);
    let slots = link.primary.data.geometry().slots;
    let held: Vec<_> = (0..slots)
        .map(|i| {
            post(&mut link, region, 0, 100, u64::from(i) + 1);
            link.standby.data.receive(SOON).unwrap().unwrap()
        })
        .collect();
    assert_eq!(link.primary.data.acquire(NOW).unwrap(), None);
    assert_eq!(link.staging.lent(), slots as usize);
    let freed = held.into_iter().nth(3).map(|slot| slot.id());
    assert_eq!(link.primary.data.acquire(SOON).unwrap().is_some(), freed.is_some());
}

fn a_dropped_slot_is_the_next_one_used(mut link: Link) {
    let (region, _bytes) = pattern(&mut link, 4096, 5);
    let first = post(&mut link, region, 0, 4096, 1);
    drop(link.standby.data.receive(SOON).unwrap().unwrap());
    // A few rounds at most: credits may travel a few at a time while the sender has plenty.
    let mut used = Vec::new();
    for ticket in 2..40 {
        used.push(post(&mut link, region, 0, 4096, ticket));
        drop(link.standby.data.receive(SOON).unwrap().unwrap());
    }
    used.push(first);
    used.sort();
    used.dedup();
    assert!(used.len() <= 8, "{} different slots used where a handful are warm", used.len());
}

fn an_epoch_larger_than_the_staging_flows_through(link: Link) {
    const TOTAL: u64 = 100;
    let Link { mut primary, mut standby, .. } = link;
    let region = transport::Region::new(SLOT as usize).unwrap();
    let id = primary.data.register(region.clone()).unwrap();
    let mut fill = region.claim_all().unwrap();
    fill.fill(0x5a);
    let frozen = fill.freeze();
    let receiving = std::thread::spawn(move || {
        for i in 0..TOTAL {
            let slot = standby.data.receive(SOON).unwrap().expect("an ended slot");
            assert_eq!(slot.len(), SLOT as usize - i as usize);
            assert!(slot.iter().all(|b| *b == 0x5a));
        }
        standby
    });
    let mut done = 0;
    for i in 0..TOTAL {
        let slot = primary.data.acquire(SOON).unwrap().expect("a credit");
        let len = SLOT - i as u32;
        primary.data.post_write(slot, 0, &[Piece { region: id, offset: 0, len: len as usize }]).unwrap();
        primary.data.post_end(slot, len, i + 1).unwrap();
        primary.data.flush().unwrap();
        done = primary.data.completed(NOW).unwrap().unwrap_or(done);
    }
    while done < TOTAL {
        done = primary.data.completed(SOON).unwrap().expect("everything completes");
    }
    assert_eq!(primary.data.completed(NOW).unwrap(), None);
    drop(receiving.join().unwrap());
    drop(frozen);
}

fn small_messages_pass_while_pages_are_stuck(mut link: Link) {
    let (region, _bytes) = pattern(&mut link, SLOT as usize, 6);
    let slots = link.primary.data.geometry().slots;
    for i in 0..slots {
        post(&mut link, region, 0, SLOT, u64::from(i) + 1);
    }
    // Nobody receives the pages; heartbeats go both ways all the same.
    for i in 0..100_u32 {
        link.primary.control_tx.send(&i.to_le_bytes()).unwrap();
        assert_eq!(link.standby.control_rx.receive(SOON).unwrap().unwrap(), i.to_le_bytes());
        link.standby.control_tx.send(&i.to_le_bytes()).unwrap();
        assert_eq!(link.primary.control_rx.receive(SOON).unwrap().unwrap(), i.to_le_bytes());
    }
}

fn messages_of_every_size_arrive_in_order_from_several_threads(link: Link) {
    let Link { primary, mut standby, .. } = link;
    let sizes = [0, 1, 3, 4, 4096, MAX_CONTROL_BYTES - 1, MAX_CONTROL_BYTES];
    let senders: Vec<_> = (0..3_u8)
        .map(|thread| {
            let tx = primary.control_tx.clone();
            std::thread::spawn(move || {
                for (i, size) in sizes.into_iter().enumerate() {
                    let mut message = vec![thread; size];
                    message.extend([thread, i as u8]);
                    message.truncate(MAX_CONTROL_BYTES);
                    tx.send(&message).unwrap();
                }
            })
        })
        .collect();
    let mut last = [None; 3];
    for _ in 0..3 * sizes.len() {
        let message = standby.control_rx.receive(SOON).unwrap().expect("a message");
        if message.len() < MAX_CONTROL_BYTES {
            let (thread, i) = (message[message.len() - 2] as usize, message[message.len() - 1]);
            assert!(last[thread] < Some(i), "thread {thread} overtook itself");
            last[thread] = Some(i);
        }
    }
    senders.into_iter().for_each(|s| s.join().unwrap());
}

fn an_oversize_message_is_refused_and_the_link_lives(mut link: Link) {
    let error = link.primary.control_tx.send(&vec![0; MAX_CONTROL_BYTES + 1]).unwrap_err();
    assert!(matches!(error, TransportError::Oversize { .. }), "{error}");
    link.primary.control_tx.send(b"alive").unwrap();
    assert_eq!(link.standby.control_rx.receive(SOON).unwrap().unwrap(), b"alive");
}

/// The best of a few counts: the threads of a test may have to wait for a core, and each try must see the death at all.
fn within_5_ms(once: impl Fn() -> Duration) {
    let best = (0..5).map(|_| once()).min().unwrap();
    assert!(best < Duration::from_millis(5), "took {best:?}");
}

fn latest(died: Instant, seen: [(TransportError, Instant); 2]) -> Duration {
    seen.into_iter()
        .map(|(error, at)| {
            assert!(error.is_peer_gone(), "{error}");
            at - died
        })
        .max()
        .unwrap()
}

fn the_death_of_the_primary_is_seen_on_both_connections_within_5_ms(make: impl Fn() -> Link) {
    within_5_ms(|| primary_dies(make()));
}

fn primary_dies(link: Link) -> Duration {
    let Link { primary, standby, .. } = link;
    let (mut control, mut data) = (standby.control_rx, standby.data);
    primary.control_tx.send(b"last words").unwrap();
    let on_control = std::thread::spawn(move || {
        assert_eq!(control.receive(SOON).unwrap().unwrap(), b"last words");
        let error = control.receive(SOON).unwrap_err();
        (error, Instant::now())
    });
    let on_data = std::thread::spawn(move || (data.receive(SOON).unwrap_err(), Instant::now()));
    let died = Instant::now();
    drop(primary);
    latest(died, [on_control.join().unwrap(), on_data.join().unwrap()])
}

fn the_death_of_the_standby_is_seen_by_a_sender_that_waits(make: impl Fn() -> Link) {
    within_5_ms(|| standby_dies(make()));
}

fn standby_dies(link: Link) -> Duration {
    let Link { primary, standby, .. } = link;
    let (mut control, mut data) = (primary.control_rx, primary.data);
    let slots = data.geometry().slots;
    (0..slots).for_each(|_| assert!(data.acquire(SOON).unwrap().is_some()));
    let on_control = std::thread::spawn(move || (control.receive(SOON).unwrap_err(), Instant::now()));
    let on_data = std::thread::spawn(move || (data.acquire(SOON).unwrap_err(), Instant::now()));
    let died = Instant::now();
    drop(standby);
    latest(died, [on_control.join().unwrap(), on_data.join().unwrap()])
}

fn an_ended_slot_outlives_its_sender_and_a_torn_one_never_arrives(link: Link) {
    let Link { mut primary, mut standby, .. } = link;
    let region = transport::Region::new(4096).unwrap();
    let id = primary.data.register(region).unwrap();
    let piece = Piece { region: id, offset: 0, len: 4096 };
    let whole = primary.data.acquire(SOON).unwrap().unwrap();
    primary.data.post_write(whole, 0, &[piece]).unwrap();
    primary.data.post_end(whole, 4096, 1).unwrap();
    let torn = primary.data.acquire(SOON).unwrap().unwrap();
    primary.data.post_write(torn, 0, &[piece]).unwrap();
    primary.data.flush().unwrap();
    drop(primary);
    assert_eq!(standby.data.receive(SOON).unwrap().unwrap().id(), whole);
    assert!(standby.data.receive(SOON).unwrap_err().is_peer_gone());
    assert!(standby.data.receive(SOON).unwrap_err().is_peer_gone());
}

fn a_receiver_that_times_out_loses_nothing(mut link: Link) {
    let (region, bytes) = pattern(&mut link, 4096, 7);
    for ticket in 1..50 {
        assert!(link.standby.data.receive(NOW).unwrap().is_none());
        assert!(link.standby.control_rx.receive(NOW).unwrap().is_none());
        post(&mut link, region, 0, 4096, ticket);
        assert_eq!(link.standby.data.receive(SOON).unwrap().unwrap()[..], bytes[..4096]);
    }
}

fn misuse_is_named_and_posts_nothing(mut link: Link) {
    let (region, bytes) = pattern(&mut link, 8192, 8);
    let data = &mut link.primary.data;
    let slot = data.acquire(SOON).unwrap().unwrap();
    let write = |offset, len| Piece { region, offset, len };
    assert!(matches!(data.post_write(SlotId(slot.0 + 1), 0, &[write(0, 1)]), Err(TransportError::SlotNotOwned(_))));
    assert!(matches!(data.post_write(slot, 0, &[write(8000, 1000)]), Err(TransportError::Misuse(_))));
    assert!(matches!(data.post_write(slot, SLOT - 10, &[write(0, 11)]), Err(TransportError::Misuse(_))));
    assert!(matches!(data.post_write(slot, 0, &[write(usize::MAX, 2)]), Err(TransportError::Misuse(_))));
    assert!(matches!(data.post_end(slot, 1, 1), Err(TransportError::Misuse(_))));
    let thawed = bytes.thaw();
    assert!(matches!(data.post_write(slot, 0, &[write(0, 100)]), Err(TransportError::Misuse(_))), "being written");
    let _frozen = thawed.freeze();
    data.post_write(slot, 0, &[write(0, 100)]).unwrap();
    data.post_end(slot, 100, 5).unwrap();
    assert!(matches!(data.post_end(slot, 100, 6), Err(TransportError::SlotNotOwned(_))));
    data.flush().unwrap();
    assert_eq!(link.standby.data.receive(SOON).unwrap().unwrap().len(), 100);
}

fn staging_serves_one_link_and_then_the_next_without_the_slots_still_read(link: Link) {
    let Link { mut primary, mut standby, staging, .. } = link;
    let region = transport::Region::new(4096).unwrap();
    let id = primary.data.register(region).unwrap();
    let slot = primary.data.acquire(SOON).unwrap().unwrap();
    primary.data.post_write(slot, 0, &[Piece { region: id, offset: 0, len: 10 }]).unwrap();
    primary.data.post_end(slot, 10, 1).unwrap();
    primary.data.flush().unwrap();
    let still_read = standby.data.receive(SOON).unwrap().unwrap();
    let (second, second_standby, _) = transport::inproc::pair();
    assert!(second_standby.open_data(staging.clone()).is_err(), "in use");
    drop((primary, standby, second));

    let (second, second_standby, _) = transport::inproc::pair();
    let second_standby = second_standby.open_data(staging.clone()).unwrap();
    let mut second = second.open_data(staging.geometry()).unwrap();
    let granted: Vec<_> = std::iter::from_fn(|| second.data.acquire(NOW).unwrap()).collect();
    assert_eq!(granted.len(), staging.geometry().slots as usize - 1);
    let id = still_read.id();
    drop(still_read);
    assert_eq!(second.data.acquire(SOON).unwrap(), Some(id));
    drop(second_standby);
}

macro_rules! conformance {
    (once: $($property:ident),*; often: $($often:ident),* $(,)?) => {
        mod tcp {
            $(#[test] fn $property() { super::$property(super::common::tcp(16)); })*
            $(#[test] fn $often() { super::$often(|| super::common::tcp(16)); })*
        }
        mod inproc {
            $(#[test] fn $property() { super::$property(super::common::inproc(16).0); })*
            $(#[test] fn $often() { super::$often(|| super::common::inproc(16).0); })*
        }
    };
}

conformance!(
    once:
    ended_slots_arrive_in_order_with_their_bytes,
    a_gather_of_thousands_of_pieces_lands_whole,
    writes_in_any_order_of_offsets_make_one_slot,
    an_exhausted_sender_gets_a_slot_as_soon_as_one_is_dropped,
    a_dropped_slot_is_the_next_one_used,
    an_epoch_larger_than_the_staging_flows_through,
    small_messages_pass_while_pages_are_stuck,
    messages_of_every_size_arrive_in_order_from_several_threads,
    an_oversize_message_is_refused_and_the_link_lives,
    an_ended_slot_outlives_its_sender_and_a_torn_one_never_arrives,
    a_receiver_that_times_out_loses_nothing,
    misuse_is_named_and_posts_nothing,
    staging_serves_one_link_and_then_the_next_without_the_slots_still_read;
    often:
    the_death_of_the_primary_is_seen_on_both_connections_within_5_ms,
    the_death_of_the_standby_is_seen_by_a_sender_that_waits,
);
