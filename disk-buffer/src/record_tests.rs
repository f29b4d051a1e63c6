//! The record: each write is given to exactly one epoch, in order; bounds hold.

use proptest::prelude::*;
use types::block::{DiskChange, DiskIndex};

use super::*;

fn write(offset: u64, bytes: usize) -> DiskWrite {
    DiskWrite { disk: DiskIndex(0), offset, change: DiskChange::Data(vec![0; bytes].into()) }
}

fn commit(epoch: Epoch) -> Commit {
    Commit::attest(Generation(1), epoch)
}

fn limits() -> Limits {
    Limits { soft_bytes: 1 << 20, soft_writes: 8, hard_bytes: 2 << 20, hard_writes: 16 }
}

#[test]
fn an_epoch_that_is_given_up_gives_its_writes_back_in_order() {
    let mut record = Record::new(limits(), Generation(1));
    record.push(write(1, 512));
    record.seal(Epoch(1)).unwrap();
    record.push(write(2, 512));
    record.seal(Epoch(2)).unwrap();
    record.push(write(3, 512));
    record.unseal(Epoch(1));
    let offsets: Vec<u64> = record.seal(Epoch(1)).unwrap().iter().map(|write| write.offset).collect();
    assert_eq!(offsets, [1, 2, 3]);
}

#[test]
fn an_epoch_is_sealed_once_and_in_order() {
    let mut record = Record::new(limits(), Generation(1));
    assert_eq!(record.seal(Epoch(2)), Err(Epoch(1)));
    record.seal(Epoch(1)).unwrap();
    assert_eq!(record.seal(Epoch(1)), Err(Epoch(2)));
}

#[test]
fn bytes_press_at_the_soft_bound_and_wait_at_the_hard_one_until_a_commit() {
    let mut record = Record::new(limits(), Generation(1));
    assert_eq!(record.push(write(0, 512 << 10)), Room::Enough);
    assert_eq!(record.push(write(0, 512 << 10)), Room::Pressure);
    assert_eq!(record.push(write(0, 1 << 20)), Room::Pressure);
    assert_eq!(record.push(write(0, 512)), Room::None);
    record.seal(Epoch(1)).unwrap();
    assert_eq!(record.push(write(0, 512)), Room::None, "sealed is not committed");
    assert!(!record.roomy());
    record.release(&commit(Epoch(1)));
    assert!(record.roomy());
    assert_eq!(record.push(write(0, 512)), Room::Enough);
}

#[test]
fn a_commit_of_an_older_generation_releases_nothing_of_the_epoch_of_the_same_number() {
    let mut record = Record::new(limits(), Generation(2));
    record.push(write(1, 512));
    record.seal(Epoch(1)).unwrap();

    assert!(record.release(&commit(Epoch(1))).is_empty());

    assert_eq!(record.released(), Epoch::NONE);
    assert_eq!(record.release(&Commit::attest(Generation(2), Epoch(1))).len(), 1);
}

#[test]
fn writes_without_content_are_bounded_by_their_number() {
    let mut record = Record::new(limits(), Generation(1));
    let zeroes = DiskWrite { disk: DiskIndex(0), offset: 0, change: DiskChange::Discard { len: 1 << 30 } };
    let rooms: Vec<Room> = (0..17).map(|_| record.push(zeroes.clone())).collect();
    assert_eq!((rooms[6], rooms[7], rooms[15], rooms[16]), (Room::Enough, Room::Pressure, Room::Pressure, Room::None));
}

#[test]
fn a_commit_of_what_was_not_sealed_releases_nothing() {
    let mut record = Record::new(limits(), Generation(1));
    record.push(write(0, 512));
    record.release(&commit(Epoch(1)));
    assert_eq!((record.bytes(), record.released()), (512, Epoch::NONE));
}

#[test]
fn limits_that_contradict_each_other_are_refused() {
    for wrong in [
        Limits { soft_bytes: 0, ..limits() },
        Limits { soft_writes: 0, ..limits() },
        Limits { soft_bytes: 4 << 20, ..limits() },
        Limits { soft_writes: 17, ..limits() },
        Limits { hard_bytes: 512 << 10, soft_bytes: 1024, ..limits() },
    ] {
        assert!(wrong.validate().is_err(), "{wrong:?}");
    }
    assert!(Limits::default().validate().is_ok());
}

proptest! {
    #[test]
    fn every_write_taken_is_committed_once_and_in_order(steps in prop::collection::vec((0u8..6, 1usize..9), 1..300)) {
        let mut record = Record::new(limits(), Generation(1));
        let (mut taken, mut committed, mut next) = (Vec::new(), Vec::new(), 0u64);
        let mut flights: VecDeque<(Epoch, Arc<Vec<DiskWrite>>)> = VecDeque::new();
        for (what, size) in steps {
            match what {
                0..3 => {
                    next += 1;
                    if record.push(write(next, size * 512)) != Room::None {
                        taken.push(next);
                    }
                }
                3 => {
                    let epoch = record.open_epoch();
                    flights.push_back((epoch, record.seal(epoch).unwrap()));
                }
                4 => if let Some((epoch, writes)) = flights.pop_front() {
                    record.release(&commit(epoch));
                    committed.extend(writes.iter().map(|write| write.offset));
                },
                _ => if let Some((epoch, _)) = flights.pop_back() {
                    record.unseal(epoch);
                },
            }
        }
        let epoch = record.open_epoch();
        flights.push_back((epoch, record.seal(epoch).unwrap()));
        for (epoch, writes) in flights {
            record.release(&commit(epoch));
            committed.extend(writes.iter().map(|write| write.offset));
        }
        prop_assert_eq!(committed, taken);
        prop_assert_eq!(record.bytes(), 0);
    }
}
