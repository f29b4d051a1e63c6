//! What the guest does with a disk: single writes and reads on command, a stream of them in the background, and the proof that the disk holds what was written.
//!
//! The ledger says which stamp each sector carries, and changes when the device has completed a write, never before. No two requests in flight touch the same
//! sector when one of them writes, as a file system sees to (the order of such would be nobody's); over time they overlap all the more. Not here: rings and
//! registers (the [`Drive`]). Guards S4's and S5's tests: memory and disk are set back together or not at all, and a write that was acknowledged is read again.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use crate::dirtier::Pacer;
use crate::sector::{self, SECTOR_WORDS, Torn};
use crate::stamp::mix;

/// Sectors of the largest request: 64 KiB.
pub const REQUEST_SECTORS: u64 = 128;
/// Words of a request's buffer.
pub const BUFFER_WORDS: usize = REQUEST_SECTORS as usize * SECTOR_WORDS;
/// Sectors of a block as `DWRITE` and `DREAD` count them: 4 KiB.
pub const BLOCK_SECTORS: u64 = 8;
/// Most operations per second of the background stream: beyond what one vCPU and any disk can do.
pub const MOST_OPS: u64 = 1_000_000;
/// How long a command waits for the disk. Far above any failover, in which a request stands still.
pub const PATIENCE_NS: u64 = 60_000_000_000;

/// Sectors that one piece of the ledger covers.
const PIECE: u64 = 512;
/// Pieces of a ledger at most: 64 MiB of disk in 1 MiB of memory.
const MOST_PIECES: usize = 256;
/// The stream works on this much of the disk, from its start, so that its requests meet often: 32 MiB.
const LOAD_SECTORS: u64 = 1 << 16;
/// Half of the stream's requests go to this much: 1 MiB.
const HOT_SECTORS: u64 = 1 << 11;
/// Operations begun or ended in one step of the stream, so that a request of a client waits little.
const STEP: u64 = 16;

/// What is asked of a drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Fill the slot's buffer.
    Read,
    /// Write the slot's buffer.
    Write,
    /// Make what was written durable.
    Flush,
}

/// A disk's driver: requests in numbered slots, each with a buffer of its own.
pub trait Drive {
    /// Size in sectors.
    fn sectors(&self) -> u64;
    /// Number of slots.
    fn slots(&self) -> usize;
    /// A slot's buffer; not while the device has it.
    fn buffer(&mut self, slot: usize) -> &mut [u64; BUFFER_WORDS];
    /// Gives a slot to the device; it is told of it with the next [`Drive::kick`].
    fn begin(&mut self, slot: usize, op: Op, sector: u64, sectors: u64);
    /// Tells the device of what was begun.
    fn kick(&mut self);
    /// A slot that the device has ended, and whether it succeeded.
    fn take(&mut self) -> Option<(usize, bool)>;
    /// Returns when something may have ended, or after a while.
    fn wait(&mut self);
    /// The time in nanoseconds.
    fn now(&mut self) -> u64;
}

/// Why a command about a disk could not be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskError {
    /// The disk answered with an error.
    Failed,
    /// The disk did not answer for [`PATIENCE_NS`].
    Silent,
    /// The disk ends before that.
    Beyond,
    /// The ledger covers as much as it can.
    LedgerFull,
    /// The disk does not hold what was written to it.
    Torn(Torn),
}

/// Numbers for `DSTAT`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskStatus {
    /// Size in sectors.
    pub sectors: u64,
    /// Operations per second of the stream.
    pub rate: u64,
    /// Reads that ended well.
    pub reads: u64,
    /// Writes that ended well.
    pub writes: u64,
    /// Flushes that ended well.
    pub flushes: u64,
    /// Requests that ended with an error.
    pub errors: u64,
    /// Requests that the device has.
    pub in_flight: u64,
    /// What a read of the stream, or a check, found first.
    pub torn: Option<Torn>,
}

/// What the commands do with a disk.
pub trait DiskControl {
    /// Writes a block whose every word carries `stamp`, and returns when the device has completed it.
    ///
    /// # Errors
    /// [`DiskError`]; the block may then hold either content.
    fn write_block(&mut self, block: u64, stamp: u64) -> Result<(), DiskError>;
    /// Reads a block and returns the stamp that it carries, 0 of one never written.
    ///
    /// # Errors
    /// [`DiskError`].
    fn read_block(&mut self, block: u64) -> Result<u64, DiskError>;
    /// Makes what was written durable.
    ///
    /// # Errors
    /// [`DiskError`].
    fn flush(&mut self) -> Result<(), DiskError>;
    /// Starts the stream, or changes it; a rate of 0 stops it.
    fn load(&mut self, rate: u64, seed: u64);
    /// Reads everything back that this guest wrote, and returns how many sectors that is.
    ///
    /// # Errors
    /// [`DiskError`]; also when the stream read something wrong at any time before.
    fn check(&mut self) -> Result<u64, DiskError>;
    /// Numbers.
    fn status(&self) -> DiskStatus;
}

/// What a slot is used for.
#[derive(Clone, Copy, Debug)]
struct Job {
    op: Op,
    sector: u64,
    sectors: u64,
    stamp: u64,
    /// A command waits for it and looks at what was read itself.
    awaited: bool,
}

/// A disk with its ledger.
pub struct Disk<D> {
    drive: D,
    jobs: Vec<Option<Job>>,
    /// Slots whose awaited job has ended, and how.
    ended: Vec<Option<bool>>,
    ledger: BTreeMap<u64, Box<[u64; PIECE as usize]>>,
    pacer: Pacer,
    random: u64,
    version: u64,
    status: DiskStatus,
}

impl<D: Drive> Disk<D> {
    /// A disk of which nothing is known.
    pub fn new(drive: D) -> Disk<D> {
        let slots = drive.slots();
        let status = DiskStatus { sectors: drive.sectors(), ..DiskStatus::default() };
        Disk {
            drive,
            jobs: alloc::vec![None; slots],
            ended: alloc::vec![None; slots],
            ledger: BTreeMap::new(),
            pacer: Pacer::new(0, 0),
            random: 0,
            version: 0,
            status,
        }
    }

    /// The driver.
    pub fn drive(&mut self) -> &mut D {
        &mut self.drive
    }

    /// Whether the device has requests.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.jobs.iter().any(Option::is_some)
    }

    /// Ends what the device has ended and begins what is due of the stream, at most a few of each; `false` when there was nothing.
    pub fn step(&mut self, now: u64) -> bool {
        let mut progress = false;
        for _ in 0..STEP {
            if !self.poll() {
                break;
            }
            progress = true;
        }
        let mut begun = false;
        for _ in 0..self.pacer.take(now, STEP) {
            begun |= self.begin_random();
        }
        if begun {
            self.drive.kick();
        }
        progress | begun
    }

    /// Nanoseconds until something of the stream is due; `None` when it stands.
    #[must_use]
    pub fn wait_ns(&self) -> Option<u64> {
        self.pacer.wait_ns()
    }

    /// Begins one request of the stream; passed over when there is no slot, or its sectors are in use.
    fn begin_random(&mut self) -> bool {
        let area = self.status.sectors.min(LOAD_SECTORS);
        let choice = self.draw();
        let sectors = 1u64 << (choice % 8);
        let range = if choice >> 8 & 1 == 0 { area.min(HOT_SECTORS) } else { area };
        let Some(room) = range.checked_sub(sectors) else {
            return false;
        };
        let sector = self.draw() % (room + 1);
        let (op, sectors) = match choice >> 16 & 0xff {
            0..8 => (Op::Flush, 0),
            8..140 => (Op::Write, sectors),
            _ => (Op::Read, sectors),
        };
        if op == Op::Write && !self.prepare_ledger(sector, sectors) {
            return false;
        }
        self.version += 1;
        let job = Job { op, sector, sectors, stamp: self.version, awaited: false };
        match self.free_slot(&job) {
            Some(slot) => self.begin(slot, job),
            None => return false,
        }
        true
    }

    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.random)
    }

    /// A slot for the job, unless it would meet another in flight.
    fn free_slot(&self, job: &Job) -> Option<usize> {
        let meets = |other: &Job| {
            let apart = other.sector + other.sectors <= job.sector || job.sector + job.sectors <= other.sector;
            !apart && (other.op == Op::Write || job.op == Op::Write)
        };
        let free = self.jobs.iter().zip(&self.ended).position(|(job, ended)| job.is_none() && ended.is_none())?;
        (!self.jobs.iter().flatten().any(meets)).then_some(free)
    }

    fn begin(&mut self, slot: usize, job: Job) {
        if job.op == Op::Write {
            let words = job.sectors as usize * SECTOR_WORDS;
            sector::fill(&mut self.drive.buffer(slot)[..words], job.sector, job.stamp);
        }
        self.jobs[slot] = Some(job);
        self.status.in_flight += 1;
        self.drive.begin(slot, job.op, job.sector, job.sectors);
    }

    /// Ends one request that the device has ended.
    fn poll(&mut self) -> bool {
        let Some((slot, good)) = self.drive.take() else {
            return false;
        };
        let Some(job) = self.jobs.get_mut(slot).and_then(Option::take) else {
            return true;
        };
        self.status.in_flight -= 1;
        match (job.op, good) {
            (_, false) => self.status.errors += 1,
            (Op::Read, true) => self.status.reads += 1,
            (Op::Write, true) => self.status.writes += 1,
            (Op::Flush, true) => self.status.flushes += 1,
        }
        match job.op {
            // A write that failed may have been done in part: nothing is known of these sectors any more.
            Op::Write => self.note(job.sector, job.sectors, if good { job.stamp } else { 0 }),
            Op::Read if good && !job.awaited => {
                if let Err(torn) = self.compare(slot, job.sector, job.sectors) {
                    self.status.torn.get_or_insert(torn);
                }
            }
            Op::Read | Op::Flush => {}
        }
        if job.awaited {
            self.ended[slot] = Some(good);
        }
        true
    }

    /// Compares what was read with the ledger; returns how many sectors it knows.
    fn compare(&mut self, slot: usize, first: u64, sectors: u64) -> Result<u64, Torn> {
        let mut known = 0;
        for sector in first..first + sectors {
            let stamp = self.known(sector);
            if stamp != 0 {
                let from = (sector - first) as usize * SECTOR_WORDS;
                sector::verify(&self.drive.buffer(slot)[from..from + SECTOR_WORDS], sector, stamp)?;
                known += 1;
            }
        }
        Ok(known)
    }

    fn known(&self, sector: u64) -> u64 {
        self.ledger.get(&(sector / PIECE)).map_or(0, |piece| piece[(sector % PIECE) as usize])
    }

    /// Makes room in the ledger for these sectors; `false` when it is full.
    fn prepare_ledger(&mut self, sector: u64, sectors: u64) -> bool {
        for piece in sector / PIECE..=(sector + sectors - 1) / PIECE {
            if !self.ledger.contains_key(&piece) {
                if self.ledger.len() == MOST_PIECES {
                    return false;
                }
                self.ledger.insert(piece, Box::new([0; PIECE as usize]));
            }
        }
        true
    }

    fn note(&mut self, sector: u64, sectors: u64, stamp: u64) {
        for sector in sector..sector + sectors {
            if let Some(piece) = self.ledger.get_mut(&(sector / PIECE)) {
                piece[(sector % PIECE) as usize] = stamp;
            }
        }
    }

    /// Carries out one request and waits for its end; its slot, whose buffer holds what was read.
    fn carry_out(&mut self, op: Op, sector: u64, sectors: u64, stamp: u64) -> Result<usize, DiskError> {
        let job = Job { op, sector, sectors, stamp, awaited: true };
        let deadline = self.drive.now() + PATIENCE_NS;
        let slot = loop {
            if let Some(slot) = self.free_slot(&job) {
                break slot;
            }
            self.wait(deadline)?;
        };
        self.begin(slot, job);
        self.drive.kick();
        loop {
            if let Some(good) = self.ended[slot].take() {
                return if good { Ok(slot) } else { Err(DiskError::Failed) };
            }
            if let Err(silent) = self.wait(deadline) {
                // Nobody waits for it any more; its end is noted like that of any other.
                if let Some(job) = &mut self.jobs[slot] {
                    job.awaited = false;
                }
                return Err(silent);
            }
        }
    }

    /// Waits until something has ended.
    fn wait(&mut self, deadline: u64) -> Result<(), DiskError> {
        while !self.poll() {
            if self.drive.now() >= deadline {
                return Err(DiskError::Silent);
            }
            self.drive.wait();
        }
        Ok(())
    }

    /// The sectors of a block on this disk.
    fn block(&self, block: u64) -> Result<u64, DiskError> {
        let first = block.checked_mul(BLOCK_SECTORS).ok_or(DiskError::Beyond)?;
        let end = first.checked_add(BLOCK_SECTORS).ok_or(DiskError::Beyond)?;
        if end <= self.status.sectors { Ok(first) } else { Err(DiskError::Beyond) }
    }
}

impl<D: Drive> DiskControl for Disk<D> {
    fn write_block(&mut self, block: u64, stamp: u64) -> Result<(), DiskError> {
        let first = self.block(block)?;
        if !self.prepare_ledger(first, BLOCK_SECTORS) {
            return Err(DiskError::LedgerFull);
        }
        self.carry_out(Op::Write, first, BLOCK_SECTORS, stamp).map(drop)
    }

    fn read_block(&mut self, block: u64) -> Result<u64, DiskError> {
        let first = self.block(block)?;
        let slot = self.carry_out(Op::Read, first, BLOCK_SECTORS, 0)?;
        let words = &self.drive.buffer(slot)[..BLOCK_SECTORS as usize * SECTOR_WORDS];
        sector::stamp_of(words, first..first + BLOCK_SECTORS).map_err(DiskError::Torn)
    }

    fn flush(&mut self) -> Result<(), DiskError> {
        self.carry_out(Op::Flush, 0, 0, 0).map(drop)
    }

    fn load(&mut self, rate: u64, seed: u64) {
        self.status.rate = rate;
        self.random = seed;
        let now = self.drive.now();
        self.pacer = Pacer::new(rate, now);
    }

    fn check(&mut self) -> Result<u64, DiskError> {
        let deadline = self.drive.now() + PATIENCE_NS;
        while self.is_busy() {
            self.wait(deadline)?;
        }
        if let Some(torn) = self.status.torn {
            return Err(DiskError::Torn(torn));
        }
        let mut known = 0;
        let pieces: Vec<u64> = self.ledger.keys().copied().collect();
        for piece in pieces {
            let end = ((piece + 1) * PIECE).min(self.status.sectors);
            let mut first = piece * PIECE;
            while first < end {
                let sectors = REQUEST_SECTORS.min(end - first);
                if (first..first + sectors).all(|sector| self.known(sector) == 0) {
                    first += sectors;
                    continue;
                }
                let slot = self.carry_out(Op::Read, first, sectors, 0)?;
                known += self.compare(slot, first, sectors).map_err(|torn| {
                    self.status.torn = Some(torn);
                    DiskError::Torn(torn)
                })?;
                first += sectors;
            }
        }
        Ok(known)
    }

    fn status(&self) -> DiskStatus {
        self.status
    }
}

#[cfg(test)]
#[path = "tests/disk.rs"]
pub(crate) mod tests;
