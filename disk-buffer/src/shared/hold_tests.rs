//! The held writes against a naive model: a byte array that every write changes at once, and a device that carries out what it is handed in any order that the engine's queue allows.

use std::collections::{HashMap, HashSet};

use proptest::collection::vec;
use proptest::prelude::*;
use types::block::{DiskChange, DiskIndex, SECTOR};

use super::*;
use crate::engine::queue::{Access, Id, Queue};
use crate::shared::kept::Kept;

const SECTORS: usize = 2400;
const LIMITS: Limits = Limits { soft_bytes: 256 << 10, soft_writes: 16, hard_bytes: 1 << 20, hard_writes: 64 };

/// What a disk must read as.
#[derive(Clone, PartialEq, Eq)]
struct Model {
    bytes: Vec<u8>,
    /// Discarded since it was last written: it, or zeros.
    loose: Vec<bool>,
}

impl Model {
    fn new() -> Model {
        Model { bytes: vec![0; SECTORS * SECTOR as usize], loose: vec![false; SECTORS] }
    }

    fn change(&mut self, write: &DiskWrite) {
        let discard = matches!(write.change, DiskChange::Discard { .. });
        let (from, to) = (write.offset as usize, (write.offset + write.len()) as usize);
        match &write.change {
            DiskChange::Data(data) => self.bytes[from..to].copy_from_slice(data),
            DiskChange::Zeroes { .. } => self.bytes[from..to].fill(0),
            DiskChange::Discard { .. } => {}
        }
        self.loose[from / SECTOR as usize..to / SECTOR as usize].fill(discard);
    }

    /// The sector in which `bytes`, read from `first` on, are not what they must be.
    fn differs(&self, first: usize, bytes: &[u8], but: &HashSet<usize>) -> Option<usize> {
        bytes.chunks(SECTOR as usize).enumerate().map(|(index, sector)| (first + index, sector)).find_map(|(index, sector)| {
            let at = index * SECTOR as usize;
            let same = self.bytes[at..at + SECTOR as usize] == *sector;
            let fits = same || self.loose[index] && sector.iter().all(|byte| *byte == 0) || but.contains(&index);
            (!fits).then_some(index)
        })
    }
}

/// What the device is doing.
enum Doing {
    Issued(Seq, DiskWrite),
    Direct(DiskWrite),
    /// With what it must find, at the time when it was asked.
    Read(View, std::ops::Range<usize>, Model, HashSet<usize>),
}

/// A node that runs the guest, its device, and its standby.
struct World {
    hold: Hold,
    device: Vec<u8>,
    queue: Queue,
    ready: Vec<Id>,
    doing: HashMap<Id, Doing>,
    model: Model,
    /// Sealed and not sent, with the disk as it was then.
    sealed: VecDeque<(Epoch, Vec<DiskWrite>, Model)>,
    sent: VecDeque<(Epoch, Model)>,
    /// The disk at the newest commit.
    committed: Option<(Epoch, Model)>,
    kept: Kept,
    /// Said by the primary and not heard by the standby.
    word: Option<Epoch>,
    epoch: Epoch,
    tag: u64,
    /// Acknowledged writes that the device has.
    done: HashSet<Seq>,
    flushes: HashMap<u64, Seq>,
    /// Sectors with writes that are not acknowledged, by their tags.
    unsure: HashMap<u64, Vec<usize>>,
    /// Numbers of writes whose answer the guest waits for.
    guests: HashSet<Seq>,
}

#[derive(Clone, Debug)]
enum Step {
    Write(usize, usize, u8),
    Zero(usize, usize),
    Discard(usize, usize),
    Read(usize, usize),
    Flush,
    Hold,
    Seal,
    Unseal,
    Send,
    Commit,
    Release,
    Hear,
    Issue(usize),
    Complete(usize, bool),
    StrikeOut,
    TakeOver(Vec<bool>),
}

fn place() -> impl Strategy<Value = (usize, usize)> {
    // Up to 1 MiB; a small part of the disk is hot.
    let len = prop_oneof![4 => Just(1usize), 4 => Just(8), 2 => 1usize..64, 1 => 64usize..=2048];
    (prop_oneof![0usize..64, 0..SECTORS], len).prop_map(|(first, len)| (first.min(SECTORS - len), len))
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (place(), any::<u8>()).prop_map(|((first, len), byte)| Step::Write(first, len, byte)),
        2 => place().prop_map(|(first, len)| Step::Zero(first, len)),
        2 => place().prop_map(|(first, len)| Step::Discard(first, len)),
        5 => place().prop_map(|(first, len)| Step::Read(first, len)),
        2 => Just(Step::Flush),
        3 => Just(Step::Hold),
        5 => Just(Step::Seal),
        1 => Just(Step::Unseal),
        5 => Just(Step::Send),
        5 => Just(Step::Commit),
        5 => Just(Step::Release),
        2 => Just(Step::Hear),
        8 => (1usize..8).prop_map(Step::Issue),
        12 => (any::<usize>(), any::<bool>()).prop_map(|(which, holes)| Step::Complete(which, holes)),
        1 => Just(Step::StrikeOut),
        2 => vec(any::<bool>(), 0..12).prop_map(Step::TakeOver),
    ]
}

impl World {
    fn new() -> World {
        World {
            hold: Hold::new(LIMITS),
            device: Model::new().bytes,
            queue: Queue::new(4096),
            ready: Vec::new(),
            doing: HashMap::new(),
            model: Model::new(),
            sealed: VecDeque::new(),
            sent: VecDeque::new(),
            committed: None,
            kept: Kept::new(LIMITS),
            word: None,
            epoch: Epoch::NONE,
            tag: 0,
            done: HashSet::new(),
            flushes: HashMap::new(),
            unsure: HashMap::new(),
            guests: HashSet::new(),
        }
    }

    fn ask(&mut self, access: Access, doing: Doing) {
        let id = self.queue.submit(access, None);
        self.doing.insert(id, doing);
    }

    fn write(&mut self, first: usize, change: DiskChange) {
        let write = DiskWrite { disk: DiskIndex(0), offset: first as u64 * SECTOR, change };
        let range = write.offset..write.offset + write.len();
        self.tag += 1;
        let seq = self.hold.next;
        match self.hold.write(write.clone(), self.tag) {
            Taken::Full => return,
            Taken::Held(room) => {
                assert_ne!(room, Room::None);
                assert!(self.hold.bytes() <= LIMITS.hard_bytes);
            }
            Taken::Queued => {
                self.guests.insert(seq);
                self.unsure.insert(self.tag, (first..first + (write.len() / SECTOR) as usize).collect());
            }
            Taken::Direct => self.ask(Access::Write(range), Doing::Direct(write.clone())),
        }
        self.model.change(&write);
    }

    fn read(&mut self, first: usize, len: usize) {
        let (offset, bytes) = (first as u64 * SECTOR, len as u64 * SECTOR);
        let view = self.hold.read(offset, bytes);
        let unsure: HashSet<usize> = self.unsure.values().flatten().copied().collect();
        if view.is_whole() {
            let mut found = vec![0xee; bytes as usize];
            view.apply(&mut found);
            assert_eq!(self.model.differs(first, &found, &unsure), None, "a read from the overlay");
            return;
        }
        let model = self.model.clone();
        self.ask(Access::Read(offset..offset + bytes), Doing::Read(view, offset as usize..(offset + bytes) as usize, model, unsure));
    }

    fn flush(&mut self) {
        self.tag += 1;
        let bound = self.hold.next;
        match self.hold.flush(self.tag) {
            Flushing::Now => self.honoured(bound),
            Flushing::Waits { .. } => drop(self.flushes.insert(self.tag, bound)),
        }
    }

    fn honoured(&self, bound: Seq) {
        let missing = (0..bound.0).map(Seq).find(|seq| !self.done.contains(seq) && !self.guests.contains(seq));
        assert_eq!(missing, None, "a flush was answered before a write before it was on the device");
    }

    fn outcome(&mut self, outcome: Outcome) {
        assert_eq!((outcome.lost, outcome.flush_failed.len()), (None, 0));
        for (tag, _) in outcome.answers {
            self.unsure.remove(&tag);
        }
        for tag in outcome.flush {
            let bound = self.flushes.remove(&tag).expect("each once");
            self.honoured(bound);
        }
        if let Some((_, epoch)) = outcome.on_device {
            self.word = Some(epoch);
        }
    }

    /// Carries out what the device's queue allows, the `which`th of it.
    fn complete(&mut self, which: usize, holes: bool) -> bool {
        self.ready.extend(std::iter::from_fn(|| self.queue.next_ready()));
        if self.ready.is_empty() {
            return false;
        }
        let id = self.ready.swap_remove(which % self.ready.len());
        let mut onto = |write: &DiskWrite| {
            let place = write.offset as usize..(write.offset + write.len()) as usize;
            match &write.change {
                DiskChange::Data(data) => self.device[place].copy_from_slice(data),
                DiskChange::Zeroes { .. } => self.device[place].fill(0),
                // A device may or may not be able to.
                DiskChange::Discard { .. } if holes => self.device[place].fill(0),
                DiskChange::Discard { .. } => {}
            }
        };
        match self.doing.remove(&id).expect("in the queue") {
            Doing::Direct(write) => onto(&write),
            Doing::Issued(seq, write) => {
                onto(&write);
                self.done.insert(seq);
                let outcome = self.hold.issued(seq, Ok(()));
                self.outcome(outcome);
            }
            Doing::Read(view, place, model, unsure) => {
                let first = place.start / SECTOR as usize;
                let mut found = self.device[place].to_vec();
                view.apply(&mut found);
                assert_eq!(model.differs(first, &found, &unsure), None, "a read from the device");
            }
        }
        self.queue.complete(id);
        true
    }

    fn settle(&mut self) {
        while {
            self.issue(usize::MAX);
            self.complete(0, true)
        } {}
    }

    fn issue(&mut self, most: usize) {
        for _ in 0..most {
            let Some((seq, write)) = self.hold.next_issue() else { return };
            self.ask(Access::Write(write.offset..write.offset + write.len()), Doing::Issued(seq, write));
        }
    }

    fn alone(&mut self) {
        self.sealed.clear();
        self.sent.clear();
        self.committed = None;
        self.word = None;
        self.epoch = Epoch::NONE;
        self.kept = Kept::new(LIMITS);
    }

    fn take_over(&mut self, carried_out: &[bool]) {
        let Some((_, model)) = self.committed.take() else { return };
        // Of what the old node had handed out, some is carried out before it is shut out.
        carried_out.iter().take_while(|more| **more).all(|_| self.complete(1, false));
        let kept = std::mem::replace(&mut self.kept, Kept::new(LIMITS));
        self.alone();
        self.model = model;
        self.hold = Hold::taking_over(LIMITS, kept.take_over());
        (self.queue, self.ready, self.doing) = (Queue::new(4096), Vec::new(), HashMap::new());
        self.done.clear();
        self.flushes.clear();
        self.unsure.clear();
        self.guests.clear();
        self.read(0, SECTORS);
        self.complete(0, false);
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Write(first, len, byte) => {
                // Each sector another.
                let bytes: Vec<u8> = (0..len * SECTOR as usize).map(|at| byte.wrapping_add((at / SECTOR as usize) as u8)).collect();
                self.write(first, DiskChange::Data(bytes.into()));
            }
            Step::Zero(first, len) => self.write(first, DiskChange::Zeroes { len: len as u64 * SECTOR, may_unmap: true }),
            Step::Discard(first, len) => self.write(first, DiskChange::Discard { len: len as u64 * SECTOR }),
            Step::Read(first, len) => self.read(first, len),
            Step::Flush => self.flush(),
            Step::Hold => self.hold.hold(Generation(1)),
            Step::Seal if self.hold.holds() => {
                if self.epoch == Epoch::NONE {
                    // Whatever was not held is on the device before there is anything to take over.
                    self.settle();
                }
                self.epoch = self.epoch.next();
                let writes = self.hold.seal(self.epoch).expect("the next").to_vec();
                self.sealed.push_back((self.epoch, writes, self.model.clone()));
            }
            Step::Unseal => {
                if let Some((first, ..)) = self.sealed.front() {
                    self.hold.unseal(*first);
                    self.epoch = Epoch(first.0 - 1);
                    self.sealed.clear();
                }
            }
            Step::Send => {
                if let Some((epoch, writes, model)) = self.sealed.pop_front() {
                    self.kept.stage(epoch, writes).expect("the next");
                    self.sent.push_back((epoch, model));
                }
            }
            Step::Commit => {
                if let Some((epoch, model)) = self.sent.pop_front() {
                    self.kept.commit(epoch).expect("staged");
                    self.committed = Some((epoch, model));
                }
            }
            Step::Release => {
                if let Some((epoch, _)) = &self.committed {
                    self.hold.release(&Commit::attest(Generation(1), *epoch));
                }
            }
            Step::Hear => {
                if let Some(epoch) = self.word.take() {
                    self.kept.on_device(epoch);
                }
            }
            Step::Issue(most) => self.issue(most),
            Step::Complete(which, holes) => drop(self.complete(which, holes)),
            Step::StrikeOut => {
                self.alone();
                let outcome = self.hold.go_through();
                self.outcome(outcome);
            }
            Step::TakeOver(carried_out) => self.take_over(&carried_out),
            Step::Seal => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn reads_flushes_and_takeovers_find_what_the_guest_wrote_whatever_the_order_of_things(steps in vec(step(), 1..250)) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
        }
        world.take_over(&[]);
        let outcome = world.hold.go_through();
        world.outcome(outcome);
        world.settle();
        prop_assert!(world.hold.is_settled() && world.flushes.is_empty() && world.unsure.is_empty());
        prop_assert!(world.hold.overlay.is_empty());
        prop_assert_eq!(world.hold.bytes(), 0);
        prop_assert_eq!(world.model.differs(0, &world.device, &HashSet::new()), None);
    }
}

fn data(offset: u64, byte: u8, len: usize) -> DiskWrite {
    DiskWrite { disk: DiskIndex(0), offset, change: DiskChange::Data(vec![byte; len].into()) }
}

fn commit(epoch: u64) -> Commit {
    Commit::attest(Generation(3), Epoch(epoch))
}

/// Holding, with one write in the open epoch.
fn holding() -> Hold {
    let mut hold = Hold::new(LIMITS);
    hold.hold(Generation(3));
    assert_eq!(hold.write(data(0, 1, 512), 1), Taken::Held(Room::Enough));
    hold
}

#[test]
fn a_write_is_handed_out_after_its_epochs_commit_and_not_before() {
    let mut hold = holding();
    assert_eq!(hold.next_issue(), None, "open");
    hold.seal(Epoch(1)).unwrap();
    hold.write(data(512, 2, 512), 2);
    assert_eq!(hold.next_issue(), None, "sealed");

    hold.release(&commit(1));

    assert_eq!(hold.next_issue(), Some((Seq(0), data(0, 1, 512))));
    assert_eq!(hold.next_issue(), None, "the next epoch's");
    let outcome = hold.issued(Seq(0), Ok(()));
    assert_eq!(outcome.on_device, Some((Generation(3), Epoch(1))));
}

#[test]
fn a_flush_waits_for_its_writes_and_asks_for_the_epochs_end_only_when_that_helps() {
    let mut hold = holding();
    assert_eq!(hold.flush(10), Flushing::Waits { ends_epoch: true });
    hold.seal(Epoch(1)).unwrap();
    assert_eq!(hold.flush(11), Flushing::Waits { ends_epoch: false });
    hold.write(data(512, 2, 512), 2);
    hold.release(&commit(1));
    hold.next_issue().unwrap();

    let outcome = hold.issued(Seq(0), Ok(()));

    assert_eq!(outcome.flush, [10, 11], "not for the write behind them");
}

#[test]
fn straight_through_nothing_is_in_the_way_of_a_write_or_a_flush() {
    let mut hold = Hold::new(LIMITS);
    assert_eq!(hold.write(data(0, 1, 512), 1), Taken::Direct);
    assert_eq!(hold.flush(2), Flushing::Now);
}

#[test]
fn after_a_strike_out_a_write_goes_behind_what_was_held_and_is_answered_by_the_device() {
    let mut hold = holding();
    assert_eq!(hold.go_through(), Outcome::default());

    assert_eq!(hold.write(data(0, 2, 512), 7), Taken::Queued);

    assert_eq!(hold.next_issue(), Some((Seq(0), data(0, 1, 512))));
    assert_eq!(hold.next_issue(), Some((Seq(1), data(0, 2, 512))));
    assert_eq!(hold.issued(Seq(0), Ok(())).answers, []);
    assert_eq!(hold.issued(Seq(1), Err(5)).answers, [(7, Err(5))]);
    assert_eq!(hold.failed(), None, "the guest was told, by the answer");
    assert_eq!(hold.write(data(0, 2, 512), 8), Taken::Direct);
}

#[test]
fn a_failure_while_a_standby_can_serve_is_told_once_and_nothing_follows_it() {
    let mut hold = holding();
    hold.write(data(512, 2, 512), 2);
    hold.flush(3);
    hold.seal(Epoch(1)).unwrap();
    hold.release(&commit(1));
    hold.next_issue().unwrap();

    let outcome = hold.issued(Seq(0), Err(5));

    assert_eq!(outcome, Outcome { lost: Some(5), ..Outcome::default() });
    assert_eq!(hold.next_issue(), None);
    // Nobody is left who could.
    assert_eq!(hold.go_through().flush_failed, [(3, 5)]);
    assert_eq!(hold.failed(), Some(5));
}

#[test]
fn a_failure_of_what_was_taken_over_fails_the_flushes_and_what_waits() {
    let mut hold = Hold::taking_over(LIMITS, vec![data(0, 1, 512)]);
    assert_eq!(hold.write(data(0, 2, 512), 7), Taken::Queued);
    assert!(matches!(hold.flush(8), Flushing::Waits { ends_epoch: false }));
    hold.next_issue().unwrap();

    let outcome = hold.issued(Seq(0), Err(28));

    let expected = Outcome { lost: Some(28), flush_failed: vec![(8, 28)], answers: vec![(7, Err(28))], ..Outcome::default() };
    assert_eq!(outcome, expected);
}

#[test]
fn a_node_that_may_not_write_any_more_hands_nothing_out_and_an_answer_that_comes_late_is_nobodys() {
    let mut hold = holding();
    hold.seal(Epoch(1)).unwrap();
    hold.write(data(0, 2, 512), 2);
    hold.release(&commit(1));
    hold.next_issue().unwrap();

    hold.drop_all();

    assert_eq!(hold.next_issue(), None);
    assert_eq!(hold.issued(Seq(0), Ok(())), Outcome::default());
    assert!(hold.read(0, 512).is_empty());
}

#[test]
fn what_is_held_is_bounded_until_the_device_has_it() {
    let limits = Limits { soft_bytes: 512, soft_writes: 16, hard_bytes: 1024, hard_writes: 64 };
    let mut hold = Hold::new(limits);
    hold.hold(Generation(3));
    assert_eq!(hold.write(data(0, 1, 512), 1), Taken::Held(Room::Pressure));
    hold.write(data(0, 1, 512), 2);
    assert_eq!(hold.write(data(0, 1, 512), 3), Taken::Full);
    hold.seal(Epoch(1)).unwrap();
    hold.release(&commit(1));
    assert_eq!(hold.write(data(0, 1, 512), 3), Taken::Full, "committed is not enough");
    assert!(!hold.roomy());

    hold.next_issue().unwrap();
    hold.issued(Seq(0), Ok(()));

    assert!(hold.roomy());
    assert!(matches!(hold.write(data(0, 1, 512), 3), Taken::Held(_)));
}

/// A standby keeps what its primary has already written and not yet said so of: together that may be more than one node holds.
#[test]
fn after_a_takeover_that_brought_more_than_is_held_nothing_is_held_until_the_device_has_it() {
    let limits = Limits { soft_bytes: 512, soft_writes: 16, hard_bytes: 1024, hard_writes: 64 };
    let mut hold = Hold::taking_over(limits, (0..3).map(|sector| data(sector, 1, 512)).collect());
    hold.hold(Generation(3));
    assert_eq!((hold.write(data(9, 1, 512), 1), hold.roomy()), (Taken::Full, false));

    for seq in 0..3 {
        hold.next_issue().unwrap();
        hold.issued(Seq(seq), Ok(()));
    }

    assert!(hold.roomy());
    assert!(matches!(hold.write(data(9, 1, 512), 1), Taken::Held(_)));
}

#[test]
fn so_many_writes_and_bytes_are_with_the_device_at_a_time_and_one_always() {
    let many = vec![data(0, 1, 512); ISSUE_WRITES + 1];
    let mut hold = Hold::taking_over(Limits::default(), many);
    assert_eq!(std::iter::from_fn(|| hold.next_issue()).count(), ISSUE_WRITES);

    let large = vec![data(0, 1, ISSUE_BYTES + 512), data(0, 1, 512)];
    let mut hold = Hold::taking_over(Limits::default(), large);
    assert_eq!(std::iter::from_fn(|| hold.next_issue()).count(), 1);
}
