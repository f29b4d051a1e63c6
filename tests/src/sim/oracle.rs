//! What must never be seen, and what was seen. The oracle sees everything: what was released, what the standbys committed, the arbiter's
//! record at every moment; the nodes see none of it.

use std::collections::BTreeMap;
use std::fmt;

use failover::Record;
use types::{Epoch, Generation};

use super::disk::{Disk, REGIONS};
use super::guest::{Answer, CLIENTS, Guest, PAGES};
use super::messages::slot_of;

/// Something that must not be was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The property, `S1` to `S6` or `liveness`.
    pub property: &'static str,
    /// What was seen, and when.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.property, self.what)
    }
}

/// What happened in a run: so that a test can tell that its runs proved something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Operations that clients saw answered.
    pub acknowledged: u64,
    /// Epochs committed by standbys.
    pub commits: u64,
    /// Standbys that took over.
    pub activations: u64,
    /// Primaries that went on alone after losing a standby.
    pub strike_outs: u64,
    /// Primaries that lost and stopped.
    pub fences: u64,
    /// Standbys that became protected.
    pub protections: u64,
    /// Epochs thrown away because they were not whole.
    pub torn: u64,
    /// Times a guest was held still because its output could not leave.
    pub guest_holds: u64,
    /// Output released by a node whose generation was over already (all of it checked to be a duplicate).
    pub stale_releases: u64,
    /// Swaps whose outcome was not told to the node that asked.
    pub unanswered_swaps: u64,
    /// Primaries whose disk failed and that left the guest to their standby.
    pub give_ups: u64,
    /// Starts as a primary that were refused.
    pub refusals: u64,
    /// Starts against the record, by the operator's word.
    pub forced: u64,
    /// Those of them on a node other than the one that spoke to the clients last.
    pub given_up: u64,
    /// Grants with which older owners were shut out of the shared disk.
    pub fenced: u64,
    /// Writes of an owner that had been shut out.
    pub shut_out: u64,
    /// First copies of a whole disk.
    pub full_copies: u64,
    /// First copies of what had changed on a disk.
    pub partial_copies: u64,
    /// Standbys whose disk did not fit the primary's.
    pub refused_disks: u64,
    /// Things that happened.
    pub happenings: u64,
}

impl Stats {
    /// Adds another run's.
    pub fn add(&mut self, other: &Stats) {
        self.acknowledged += other.acknowledged;
        self.commits += other.commits;
        self.activations += other.activations;
        self.strike_outs += other.strike_outs;
        self.fences += other.fences;
        self.protections += other.protections;
        self.torn += other.torn;
        self.guest_holds += other.guest_holds;
        self.stale_releases += other.stale_releases;
        self.unanswered_swaps += other.unanswered_swaps;
        self.give_ups += other.give_ups;
        self.refusals += other.refusals;
        self.full_copies += other.full_copies;
        self.partial_copies += other.partial_copies;
        self.refused_disks += other.refused_disks;
        self.forced += other.forced;
        self.given_up += other.given_up;
        self.fenced += other.fenced;
        self.shut_out += other.shut_out;
        self.happenings += other.happenings;
    }
}

/// Who releases, and by what right.
#[derive(Clone, Copy, Debug)]
pub(super) struct Releaser {
    pub slot: usize,
    pub instance: u64,
    pub generation: Generation,
    /// The commit that pays for it; `None`: the gate is open.
    pub commit: Option<Epoch>,
}

/// What a primary was at the end of an epoch.
#[derive(Debug)]
struct Snapshot {
    pages: [u64; PAGES],
    disk: [u64; REGIONS],
}

#[derive(Debug, Default)]
pub(super) struct Oracle {
    /// The arbiter's true record.
    pub record: Option<Record>,
    /// The newest epoch that a standby committed, by generation.
    committed: BTreeMap<Generation, Epoch>,
    /// The primary's state at the end of each epoch.
    snapshots: BTreeMap<(Generation, Epoch), Snapshot>,
    /// The state from which each generation was activated.
    activated: BTreeMap<Generation, Guest>,
    /// Who spoke to the clients of this VM last, with the right to.
    teller: Option<usize>,
    /// Who released in each generation.
    releasers: BTreeMap<Generation, (usize, u64)>,
    /// The one answer that each operation may ever get; index 0 is operation 1.
    answers: [Vec<u32>; CLIENTS],
    pub stats: Stats,
}

type Checked = Result<(), Violation>;

fn broken(property: &'static str, what: String) -> Checked {
    Err(Violation { property, what })
}

impl Oracle {
    /// The VM starts from nothing: whatever was said before is another VM's.
    pub(super) fn new_life(&mut self) {
        self.answers = Default::default();
        self.teller = None;
        self.snapshots.clear();
    }

    /// A node counts itself as protected: somebody must be recorded who could take over.
    pub(super) fn protects(&self, slot: usize, generation: Generation) -> Checked {
        match &self.record {
            Some(record) if record.generation == generation && record.standby.is_none() => {
                broken("S3", format!("n{slot} counts on a standby while the record is {record:?}"))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn standby_committed(&mut self, generation: Generation, epoch: Epoch) {
        self.stats.commits += 1;
        let newest = self.committed.entry(generation).or_default();
        *newest = epoch.max(*newest);
    }

    pub(super) fn captured(&mut self, generation: Generation, epoch: Epoch, pages: [u64; PAGES], disk: [u64; REGIONS]) {
        self.snapshots.insert((generation, epoch), Snapshot { pages, disk });
    }

    /// The record changes.
    pub(super) fn record_changes(&mut self, new: &Record) -> Checked {
        if let Some(old) = &self.record {
            let same_grant = new.generation == old.generation && new.is_owned_by(&old.owner, old.instance);
            if !same_grant && new.generation != old.generation.next() {
                return broken("S3", format!("the record went from {old:?} to {new:?}"));
            }
        }
        self.record = Some(new.clone());
        Ok(())
    }

    fn owns(&self, slot: usize, instance: u64, generation: Generation) -> bool {
        self.record.as_ref().is_some_and(|r| r.generation == generation && r.instance == instance && slot_of(r) == slot)
    }

    pub(super) fn released(&mut self, by: Releaser, answer: Answer) -> Checked {
        let first = self.releasers.entry(by.generation).or_insert((by.slot, by.instance));
        if *first != (by.slot, by.instance) {
            return broken("S3", format!("two nodes release in generation {}: {first:?} and {by:?}", by.generation));
        }
        match by.commit {
            None => {
                let alone = self.owns(by.slot, by.instance, by.generation) && self.record.as_ref().is_some_and(|r| r.standby.is_none());
                if !alone {
                    return broken("S3", format!("{by:?} released {answer:?} without a commit while the record is {:?}", self.record));
                }
            }
            Some(epoch) => {
                if self.committed.get(&by.generation).is_none_or(|newest| epoch > *newest) {
                    return broken("S1", format!("{by:?} released {answer:?} before its commit"));
                }
                if !self.owns(by.slot, by.instance, by.generation) {
                    self.stats.stale_releases += 1;
                    let after = self.activated.range(by.generation.next()..).next();
                    if after.is_some_and(|(_, guest)| guest.last(answer.client).seq < answer.seq) {
                        return broken("S3", format!("{by:?} released {answer:?}, which its successor does not know"));
                    }
                }
            }
        }
        if self.owns(by.slot, by.instance, by.generation) {
            self.teller = Some(by.slot);
        }
        self.only_answer(answer)
    }

    /// No operation is ever answered in two ways, and none is skipped.
    fn only_answer(&mut self, answer: Answer) -> Checked {
        let told = &mut self.answers[answer.client];
        match (answer.seq as usize).checked_sub(1) {
            Some(at) if at < told.len() => {
                if told[at] != answer.value {
                    return broken("S4", format!("{answer:?} was answered {} before", told[at]));
                }
            }
            Some(at) if at == told.len() => told.push(answer.value),
            _ => return broken("S4", format!("{answer:?} follows {} answers", told.len())),
        }
        Ok(())
    }

    pub(super) fn activates(
        &mut self,
        slot: usize,
        instance: u64,
        generation: Generation,
        from: (Generation, Epoch),
        guest: Guest,
    ) -> Checked {
        self.stats.activations += 1;
        match self.snapshots.get(&from) {
            Some(was) if was.pages == guest.pages => {}
            Some(was) => return broken("S2", format!("n{slot} activates from {:?}, but epoch {from:?} was {was:?}", guest.pages)),
            None => return broken("S2", format!("n{slot} activates from {from:?}, which never was an epoch")),
        }
        self.knows_all_answers(slot, &guest)?;
        if !self.owns(slot, instance, generation) {
            return broken("S3", format!("n{slot} activates in generation {generation} while the record is {:?}", self.record));
        }
        self.activated.insert(generation, guest);
        Ok(())
    }

    /// A standby's disk holds what the primary's held at the end of the epoch that was applied, all of it and nothing else. So a guest that is taken over finds on
    /// its disk what it had written.
    pub(super) fn follows(&self, slot: usize, epoch: (Generation, Epoch), disk: &Disk) -> Checked {
        match self.snapshots.get(&epoch) {
            Some(was) if was.disk != disk.read() => {
                broken("S2", format!("n{slot} has applied {epoch:?}, which was {:?}, and its disk holds {:?}", was.disk, disk.read()))
            }
            _ => Ok(()),
        }
    }

    /// A guest that is started from its disk finds there whatever it had flushed and told. Where the start was forced, that is promised to whoever spoke last; the others give up what they lack.
    pub(super) fn starts(&mut self, slot: usize, disk: &Disk, forced: bool) -> Checked {
        if !disk.is_fit() {
            return broken("S4", format!("n{slot} starts a guest from an incomplete disk"));
        }
        if forced {
            self.stats.forced += 1;
            if self.teller.is_some_and(|teller| teller != slot) {
                self.stats.given_up += 1;
                return Ok(());
            }
        }
        let guest = Guest { pages: disk.pages(), dirty: 0 };
        self.knows_all_answers(slot, &guest)
    }

    /// Nothing acknowledged is lost.
    pub(super) fn knows_all_answers(&self, slot: usize, guest: &Guest) -> Checked {
        for (client, told) in self.answers.iter().enumerate() {
            let last = guest.last(client);
            let known = told.last().is_none_or(|value| {
                let told_seq = told.len() as u32;
                last.seq > told_seq || (last.seq == told_seq && last.value == *value)
            });
            if !known {
                return broken(
                    "S4",
                    format!("n{slot} runs with {last:?}, but client {client} was told {} answers, the last {:?}", told.len(), told.last()),
                );
            }
        }
        Ok(())
    }
}
