//! The writes that the guest has its answer to and the device does not have yet: which are held for their epoch's commit, which may go, what reads see, what a flush waits for. Pure.
//!
//! Lives here: one disk of the node that runs the guest. Not here: the device and the guest's requests ([`super::disk`]), what a standby keeps ([`super::kept`]). Guards S1 (no write is handed out before
//! its epoch's commit, or before no other node can ever take over) and S4 (the order of writes is kept, and a flush is answered when everything before it is on the device).
//!
//! A write has a number ([`Seq`]). Numbers are handed out for carrying out in their order, so the engine, which keeps requests that overlap in the order in which it gets them, never has a later one before an
//! earlier one that it overlaps.

use std::collections::VecDeque;
use std::sync::Arc;

use types::block::DiskWrite;
use types::{Commit, Epoch, Generation};

use crate::record::{Limits, Record, Room};

use super::overlay::{Overlay, View};

/// Writes handed out and not answered by the device, at most: what keeps a fast device busy.
pub const ISSUE_WRITES: usize = 128;
/// The same in bytes (one write always goes): each is copied once to aligned memory while it is under way.
pub const ISSUE_BYTES: usize = 16 << 20;

/// The place of a write in the order in which the guest made them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seq(pub u64);

/// What becomes of a write of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It is held: the guest has its answer at once. Never [`Room::None`].
    Held(Room),
    /// It goes to the device behind older ones; the guest has its answer from [`Outcome::answers`].
    Queued,
    /// Nothing is in its way: it goes to the device now, and this machine does not follow it.
    Direct,
    /// There is no room; nothing was taken.
    Full,
}

/// What becomes of a flush of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flushing {
    /// Everything before it is with the device: its cache is to be flushed, then the guest has its answer.
    Now,
    /// It waits ([`Outcome::flush`] has it when its time has come).
    Waits {
        /// For the open epoch's commit among others: the epoch should end.
        ends_epoch: bool,
    },
}

/// What followed from an event.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Writes of the guest that the device has answered, with its error numbers.
    pub answers: Vec<(u64, Result<(), i32>)>,
    /// Flushes whose time has come.
    pub flush: Vec<u64>,
    /// Flushes that will never be honoured, with the error number.
    pub flush_failed: Vec<(u64, i32)>,
    /// Everything up to this epoch is on the device.
    pub on_device: Option<(Generation, Epoch)>,
    /// A write that the guest has its answer to has failed, the first one; no more are handed out.
    pub lost: Option<i32>,
}

/// Whose writes a batch has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// A committed epoch's.
    Epoch(Generation, Epoch),
    /// Of a time that no commit is waited for: a strike-out's, a takeover's.
    Alone,
    /// One write whose answer the guest waits for.
    Guest(u64),
}

/// Writes that may be handed out, in order. Never empty.
#[derive(Debug)]
struct Batch {
    origin: Origin,
    first: Seq,
    writes: Arc<Vec<DiskWrite>>,
    /// So many, from the first on, were handed out.
    handed: usize,
    /// The device has them.
    done: Vec<bool>,
    /// So many, from the first on, are all done.
    front: usize,
}

impl Batch {
    fn new(origin: Origin, first: Seq, writes: Arc<Vec<DiskWrite>>) -> Batch {
        let done = vec![false; writes.len()];
        Batch { origin, first, writes, handed: 0, done, front: 0 }
    }

    fn is_done(&self) -> bool {
        self.front == self.writes.len()
    }
}

/// The writes of one disk that are not on its device.
#[derive(Debug)]
pub struct Hold {
    limits: Limits,
    /// What no commit has come for; none while writes go straight through.
    record: Option<Record>,
    /// What may be handed out.
    going: VecDeque<Batch>,
    overlay: Overlay,
    /// The next write's number.
    next: Seq,
    /// The number of the record's first write: everything below is in `going`, or on the device.
    taken: Seq,
    /// What the guest has its answer to and the device does not have.
    bytes: usize,
    writes: usize,
    /// Handed out and not answered.
    under_way: usize,
    under_way_bytes: usize,
    /// Flushes, with the number of the first write that they do not wait for.
    flushes: VecDeque<(Seq, u64)>,
    failed: Option<i32>,
}

impl Hold {
    /// Writes go straight through.
    #[must_use]
    pub fn new(limits: Limits) -> Hold {
        Hold {
            limits,
            record: None,
            going: VecDeque::new(),
            overlay: Overlay::default(),
            next: Seq(0),
            taken: Seq(0),
            bytes: 0,
            writes: 0,
            under_way: 0,
            under_way_bytes: 0,
            flushes: VecDeque::new(),
            failed: None,
        }
    }

    /// A takeover: these writes, which the guest had its answers to at another node, may or may not be on the device.
    #[must_use]
    pub fn taking_over(limits: Limits, kept: Vec<DiskWrite>) -> Hold {
        let mut hold = Hold::new(limits);
        for write in &kept {
            hold.number(write);
        }
        hold.let_go(kept, Origin::Alone);
        hold
    }

    /// Gives an acknowledged write its number, and its place in the overlay.
    fn number(&mut self, write: &DiskWrite) {
        self.overlay.cover(self.next, write.offset, &write.change);
        self.next.0 += 1;
        self.bytes += write.payload();
        self.writes += 1;
    }

    /// The oldest recorded writes may be handed out.
    fn let_go(&mut self, writes: impl Into<Arc<Vec<DiskWrite>>>, origin: Origin) {
        let writes = writes.into();
        if !writes.is_empty() {
            let first = self.taken;
            self.taken.0 += writes.len() as u64;
            self.going.push_back(Batch::new(origin, first, writes));
        }
    }

    /// From now on writes are held for their epoch of this generation.
    pub fn hold(&mut self, generation: Generation) {
        if self.record.is_none() {
            self.taken = self.next;
            self.record = Some(Record::new(self.limits, generation));
        }
    }

    /// Writes are held for their epoch.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.record.is_some()
    }

    /// Everything that may be handed out is on the device.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.going.is_empty()
    }

    /// The error of an acknowledged write that could not be carried out: the disk can be trusted no more.
    #[must_use]
    pub fn failed(&self) -> Option<i32> {
        self.failed
    }

    /// A write of the guest.
    pub fn write(&mut self, write: DiskWrite, tag: u64) -> Taken {
        if self.record.is_some() {
            if self.bytes + write.payload() > self.limits.hard_bytes || self.writes >= self.limits.hard_writes {
                return Taken::Full;
            }
            self.number(&write);
            return match &mut self.record {
                // It has at most what is held in all.
                Some(record) => Taken::Held(record.push(write)),
                None => Taken::Full,
            };
        }
        if self.going.is_empty() {
            return Taken::Direct;
        }
        let first = self.next;
        self.next.0 += 1;
        self.taken = self.next;
        self.going.push_back(Batch::new(Origin::Guest(tag), first, Arc::new(vec![write])));
        Taken::Queued
    }

    /// What a read of the guest sees that the device does not have.
    #[must_use]
    pub fn read(&self, offset: u64, len: u64) -> View {
        self.overlay.look(&(offset..offset + len))
    }

    /// A flush of the guest.
    pub fn flush(&mut self, tag: u64) -> Flushing {
        if self.oldest() == self.next {
            return Flushing::Now;
        }
        self.flushes.push_back((self.next, tag));
        Flushing::Waits { ends_epoch: self.record.as_ref().is_some_and(|record| !record.open_is_empty()) }
    }

    /// The oldest write that is not on the device.
    fn oldest(&self) -> Seq {
        match (self.going.front(), &self.record) {
            (Some(batch), _) => Seq(batch.first.0 + batch.front as u64),
            (None, Some(record)) if !record.is_empty() => self.taken,
            (None, _) => self.next,
        }
    }

    /// Gives what was held since the last sealing to `epoch`.
    ///
    /// # Errors
    /// The epoch that may be sealed; none while writes go straight through.
    pub fn seal(&mut self, epoch: Epoch) -> Result<Arc<Vec<DiskWrite>>, Option<Epoch>> {
        self.record.as_mut().ok_or(None)?.seal(epoch).map_err(Some)
    }

    /// Gives up `epoch` and every later sealed one.
    pub fn unseal(&mut self, epoch: Epoch) {
        if let Some(record) = &mut self.record {
            record.unseal(epoch);
        }
    }

    /// The standby holds every epoch up to the commit's: its writes may be handed out. Whether there are any.
    pub fn release(&mut self, commit: &Commit) -> bool {
        let before = self.taken;
        let released = self.record.as_mut().map(|record| record.release(commit)).unwrap_or_default();
        for (epoch, writes) in released {
            self.let_go(writes, Origin::Epoch(commit.generation(), epoch));
        }
        self.taken > before
    }

    /// Newest epoch whose commit was given.
    #[must_use]
    pub fn released(&self) -> Epoch {
        self.record.as_ref().map_or(Epoch::NONE, Record::released)
    }

    /// No other node can take over: everything held may be handed out, and writes go straight through.
    pub fn go_through(&mut self) -> Outcome {
        let mut outcome = Outcome::default();
        for batch in &mut self.going {
            if let Origin::Epoch(..) = batch.origin {
                batch.origin = Origin::Alone;
            }
        }
        if let Some(record) = self.record.take() {
            self.let_go(record.into_writes(), Origin::Alone);
        }
        if let Some(errno) = self.failed {
            self.give_up(errno, &mut outcome);
        }
        outcome
    }

    /// This node may never write again: whatever is held is dropped, and nothing more is handed out.
    pub fn drop_all(&mut self) {
        *self = Hold { next: self.next, taken: self.next, ..Hold::new(self.limits) };
    }

    /// The next write to be carried out, if there is one and room for it.
    pub fn next_issue(&mut self) -> Option<(Seq, DiskWrite)> {
        if self.failed.is_some() || self.under_way >= ISSUE_WRITES {
            return None;
        }
        let batch = self.going.iter_mut().find(|batch| batch.handed < batch.writes.len())?;
        let write = &batch.writes[batch.handed];
        if self.under_way > 0 && self.under_way_bytes + write.payload() > ISSUE_BYTES {
            return None;
        }
        let seq = Seq(batch.first.0 + batch.handed as u64);
        batch.handed += 1;
        self.under_way += 1;
        self.under_way_bytes += write.payload();
        Some((seq, write.clone()))
    }

    /// What the device had taken is lost after all.
    pub fn lose(&mut self, errno: i32) -> Outcome {
        let mut outcome = Outcome::default();
        if self.failed.is_none() {
            self.failed = Some(errno);
            outcome.lost = Some(errno);
        }
        if self.record.is_none() {
            self.give_up(errno, &mut outcome);
        }
        outcome
    }

    /// The device's answer to a write that was handed out.
    pub fn issued(&mut self, seq: Seq, answer: Result<(), i32>) -> Outcome {
        let mut outcome = Outcome::default();
        let at = self.going.partition_point(|batch| batch.first.0 + batch.writes.len() as u64 <= seq.0);
        // What was dropped meanwhile is nobody's business.
        let Some(batch) = self.going.get_mut(at).filter(|batch| batch.first <= seq) else { return outcome };
        let index = (seq.0 - batch.first.0) as usize;
        let write = &batch.writes[index];
        self.under_way -= 1;
        self.under_way_bytes -= write.payload();
        match (batch.origin, answer) {
            (Origin::Guest(tag), answer) => outcome.answers.push((tag, answer)),
            (_, Ok(())) => {
                self.overlay.uncover(seq, &(write.offset..write.offset + write.len()));
                self.bytes -= write.payload();
                self.writes -= 1;
            }
            (_, Err(errno)) => {
                // Not done, and never will be: what waits for it waits for ever, or is given up.
                return self.lose(errno);
            }
        }
        batch.done[index] = true;
        while batch.done.get(batch.front) == Some(&true) {
            batch.front += 1;
        }
        while let Some(batch) = self.going.pop_front_if(|batch| batch.is_done()) {
            if let Origin::Epoch(generation, epoch) = batch.origin {
                outcome.on_device = Some((generation, epoch));
            }
        }
        let oldest = self.oldest();
        while let Some((_, tag)) = self.flushes.pop_front_if(|(seq, _)| *seq <= oldest) {
            outcome.flush.push(tag);
        }
        outcome
    }

    /// A guest that was turned away may try again.
    #[must_use]
    pub fn roomy(&self) -> bool {
        let Limits { soft_bytes, soft_writes, hard_bytes, hard_writes } = self.limits;
        self.record.is_none() || self.writes == 0 || self.bytes + soft_bytes <= hard_bytes && self.writes + soft_writes <= hard_writes
    }

    /// Bytes that the guest has its answer for and the device does not have.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Nobody else can carry out what failed here: the guest is told, by its flushes and by every later request.
    fn give_up(&mut self, errno: i32, outcome: &mut Outcome) {
        outcome.flush_failed.extend(self.flushes.drain(..).map(|(_, tag)| (tag, errno)));
        self.going.retain(|batch| match batch.origin {
            Origin::Guest(tag) if batch.handed == 0 => {
                outcome.answers.push((tag, Err(errno)));
                false
            }
            _ => true,
        });
    }
}

#[cfg(test)]
#[path = "hold_tests.rs"]
mod tests;
