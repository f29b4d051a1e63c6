//! The disk logic on a drive in memory that answers in any order, fails, tears and forgets.

use super::*;
use crate::sector::SECTOR_WORDS;
use proptest::prelude::*;
use std::vec;

const SLOTS: usize = 8;
const SECTORS: u64 = 1 << 12;

/// What the drive does to a request besides carrying it out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Fault {
    #[default]
    None,
    /// Requests fail, done in half.
    Fail,
    /// Writes are done in half and said to have succeeded.
    Tear,
    /// Requests are never answered.
    Silence,
}

pub(crate) struct FakeDrive {
    content: Vec<u64>,
    buffers: Vec<[u64; BUFFER_WORDS]>,
    begun: Vec<(usize, Op, u64, u64)>,
    random: u64,
    time: u64,
    pub(crate) fault: Fault,
    kicked: bool,
}

impl FakeDrive {
    pub(crate) fn new() -> FakeDrive {
        FakeDrive {
            content: vec![0; SECTORS as usize * SECTOR_WORDS],
            buffers: vec![[0; BUFFER_WORDS]; SLOTS],
            begun: Vec::new(),
            random: 5,
            time: 0,
            fault: Fault::None,
            kicked: true,
        }
    }

    fn overlap(&self, sector: u64, sectors: u64, op: Op) -> bool {
        self.begun.iter().any(|&(_, other, at, len)| at < sector + sectors && sector < at + len && (op == Op::Write || other == Op::Write))
    }
}

impl Drive for FakeDrive {
    fn sectors(&self) -> u64 {
        SECTORS
    }
    fn slots(&self) -> usize {
        SLOTS
    }
    fn buffer(&mut self, slot: usize) -> &mut [u64; BUFFER_WORDS] {
        assert!(self.begun.iter().all(|begun| begun.0 != slot), "the device has this buffer");
        &mut self.buffers[slot]
    }
    fn begin(&mut self, slot: usize, op: Op, sector: u64, sectors: u64) {
        assert!(self.begun.iter().all(|begun| begun.0 != slot), "a slot in use");
        assert!(op == Op::Flush || sectors > 0 && sector + sectors <= SECTORS && sectors <= REQUEST_SECTORS);
        assert!(!self.overlap(sector, sectors, op), "two requests in flight about one sector");
        self.begun.push((slot, op, sector, sectors));
        self.kicked = false;
    }
    fn kick(&mut self) {
        self.kicked = true;
    }
    fn take(&mut self) -> Option<(usize, bool)> {
        if self.begun.is_empty() || self.fault == Fault::Silence {
            return None;
        }
        self.random = mix(self.random + 1);
        if self.random.is_multiple_of(3) {
            return None;
        }
        assert!(self.kicked, "the device was not told");
        let (slot, op, sector, sectors) = self.begun.remove(self.random as usize % self.begun.len());
        let words = sectors as usize * SECTOR_WORDS;
        let done = if self.fault == Fault::None { words } else { words / 2 };
        let at = sector as usize * SECTOR_WORDS;
        match op {
            Op::Read => self.buffers[slot][..words].copy_from_slice(&self.content[at..at + words]),
            Op::Write => self.content[at..at + done].copy_from_slice(&self.buffers[slot][..done]),
            Op::Flush => {}
        }
        Some((slot, self.fault != Fault::Fail))
    }
    fn wait(&mut self) {
        self.time += 1_000_000_000;
    }
    fn now(&mut self) -> u64 {
        self.time += 1000;
        self.time
    }
}

fn disk() -> Disk<FakeDrive> {
    Disk::new(FakeDrive::new())
}

/// The stream for a tenth of a second.
fn run_stream(disk: &mut Disk<FakeDrive>) {
    for _ in 0..100 {
        disk.drive.time += 1_000_000;
        let now = disk.drive.time;
        disk.step(now);
    }
}

#[test]
fn a_block_reads_as_it_was_written_and_one_never_written_has_no_stamp() {
    let mut disk = disk();
    assert_eq!(disk.read_block(3), Ok(0));
    assert_eq!(disk.write_block(3, 77), Ok(()));
    assert_eq!(disk.write_block(4, 1 << 62), Ok(()));
    assert_eq!((disk.read_block(3), disk.read_block(4)), (Ok(77), Ok(1 << 62)));
    assert_eq!(disk.flush(), Ok(()));
    assert_eq!(disk.check(), Ok(16));
    let status = disk.status();
    assert_eq!((status.writes, status.flushes, status.in_flight), (2, 1, 0));
}

#[test]
fn a_block_beyond_the_disk_is_refused() {
    let mut disk = disk();
    for block in [SECTORS / 8, u64::MAX / 8, u64::MAX] {
        assert_eq!(disk.write_block(block, 1), Err(DiskError::Beyond));
        assert_eq!(disk.read_block(block), Err(DiskError::Beyond));
    }
    assert_eq!(disk.write_block(SECTORS / 8 - 1, 1), Ok(()));
}

#[test]
fn a_torn_write_is_found_by_reading_and_by_checking() {
    let mut disk = disk();
    disk.write_block(0, 5).unwrap();
    disk.drive.fault = Fault::Tear;
    disk.write_block(0, 6).unwrap();
    disk.drive.fault = Fault::None;
    assert!(matches!(disk.read_block(0), Err(DiskError::Torn(torn)) if (torn.sector, torn.stamp, torn.found) == (4, 6, 5)
        || torn.sector == 4));
    assert!(matches!(disk.check(), Err(DiskError::Torn(torn)) if torn.sector == 4));
    assert!(disk.check().is_err(), "once torn, never trusted again");
}

#[test]
fn a_lost_write_is_found_by_checking() {
    let mut disk = disk();
    disk.write_block(1, 5).unwrap();
    let before = disk.drive.content.clone();
    disk.write_block(1, 6).unwrap();
    disk.drive.content = before;
    assert_eq!(disk.read_block(1), Ok(5), "a whole block of before");
    assert!(matches!(disk.check(), Err(DiskError::Torn(torn)) if (torn.sector, torn.word, torn.found) == (8, 1, 5)));
}

#[test]
fn a_write_that_failed_may_be_either_and_is_not_checked() {
    let mut disk = disk();
    disk.write_block(0, 5).unwrap();
    disk.drive.fault = Fault::Fail;
    assert_eq!(disk.write_block(0, 6), Err(DiskError::Failed));
    assert_eq!(disk.flush(), Err(DiskError::Failed));
    disk.drive.fault = Fault::None;
    assert_eq!(disk.check(), Ok(0));
    assert_eq!(disk.status().errors, 2);
}

#[test]
fn a_silent_disk_ends_the_command_and_its_late_answer_is_noted() {
    let mut disk = disk();
    disk.drive.fault = Fault::Silence;
    assert_eq!(disk.write_block(0, 5), Err(DiskError::Silent));
    assert_eq!(disk.write_block(0, 6), Err(DiskError::Silent), "the block is still being written");
    assert_eq!(disk.status().in_flight, 1);
    disk.drive.fault = Fault::None;
    assert_eq!(disk.check(), Ok(8));
    assert_eq!(disk.read_block(0), Ok(5));
}

#[test]
fn the_stream_works_deep_and_stops() {
    let mut disk = disk();
    disk.load(20_000, 7);
    assert!(disk.wait_ns().is_some());
    run_stream(&mut disk);
    let status = disk.status();
    assert!(status.writes > 50 && status.reads > 50 && status.flushes > 1, "{status:?}");
    disk.load(0, 0);
    assert_eq!(disk.wait_ns(), None);
    assert!(disk.check().unwrap() > 500);
    let before = disk.status();
    run_stream(&mut disk);
    assert_eq!(disk.status(), before);
}

#[test]
fn the_stream_finds_what_is_wrong() {
    let mut disk = disk();
    disk.load(20_000, 7);
    run_stream(&mut disk);
    disk.drive.fault = Fault::Tear;
    run_stream(&mut disk);
    disk.drive.fault = Fault::None;
    run_stream(&mut disk);
    assert!(disk.status().torn.is_some());
    assert!(matches!(disk.check(), Err(DiskError::Torn(_))));
}

#[test]
fn the_ledger_is_bounded() {
    struct Large(FakeDrive);
    impl Drive for Large {
        fn sectors(&self) -> u64 {
            1 << 40
        }
        fn slots(&self) -> usize {
            1
        }
        fn buffer(&mut self, slot: usize) -> &mut [u64; BUFFER_WORDS] {
            self.0.buffer(slot)
        }
        fn begin(&mut self, slot: usize, op: Op, _: u64, sectors: u64) {
            self.0.begin(slot, op, 0, sectors);
        }
        fn kick(&mut self) {
            self.0.kick();
        }
        fn take(&mut self) -> Option<(usize, bool)> {
            self.0.take()
        }
        fn wait(&mut self) {
            self.0.wait();
        }
        fn now(&mut self) -> u64 {
            self.0.now()
        }
    }
    let mut disk = Disk::new(Large(FakeDrive::new()));
    for block in 0..MOST_PIECES as u64 {
        assert_eq!(disk.write_block(block * 64, 1), Ok(()));
    }
    assert_eq!(disk.write_block(1 << 30, 1), Err(DiskError::LedgerFull));
    assert_eq!(disk.write_block(1, 1), Ok(()), "what it covers can still be written");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]

    #[test]
    fn whatever_the_order_a_good_disk_checks_out(seed in any::<u64>(), order in any::<u64>(), blocks in prop::collection::vec((0u64..SECTORS / 8, 1u64..1000), 1..20)) {
        let mut disk = disk();
        disk.drive.random = order;
        disk.load(30_000, seed);
        for (block, stamp) in blocks {
            run_stream(&mut disk);
            prop_assert_eq!(disk.write_block(block, stamp), Ok(()));
            prop_assert_eq!(disk.read_block(block), Ok(stamp));
        }
        prop_assert!(disk.check().is_ok());
    }
}
