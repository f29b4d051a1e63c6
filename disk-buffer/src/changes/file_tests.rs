//! The log's file: what survives, what is repaired.

use super::*;
use crate::identity::{CopyState, DataId};
use crate::regions::REGION_BYTES;

const BYTES: u64 = 10 * REGION_BYTES;

fn create(path: &Path) -> LogFile {
    let header = Header {
        id: DataId(1),
        bytes: BYTES,
        current: DataId(2),
        base: DataId::NONE,
        joining: DataId::NONE,
        sequence: 1,
        state: CopyState::Consistent,
        image: crate::changes::ImageFile::default(),
    };
    LogFile::create(path, header, &RegionSet::new(BYTES)).unwrap()
}

#[test]
fn an_update_is_found_when_the_log_is_opened_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    let mut log = create(&path);
    log.update(|header| header.state = CopyState::Copying).unwrap();
    log.update(|header| header.current = DataId(77)).unwrap();
    let (read, set) = LogFile::open(&path, BYTES).unwrap().unwrap();
    assert_eq!((read.header(), set.count()), (log.header(), 0));
    assert_eq!((read.header().current, read.header().state, read.header().sequence), (DataId(77), CopyState::Copying, 3));
}

#[test]
fn no_log_is_no_error_and_a_half_made_one_does_not_count() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    std::fs::write(directory.path().join("log.new"), b"LKSTPCHG half").unwrap();
    assert!(LogFile::open(&path, BYTES).unwrap().is_none());
    create(&path);
    assert!(LogFile::open(&path, BYTES).unwrap().is_some());
    assert!(!directory.path().join("log.new").exists());
}

#[test]
fn a_torn_copy_of_the_header_is_repaired_at_once_so_that_the_next_tear_finds_a_whole_twin() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    create(&path);
    let whole = std::fs::read(&path).unwrap();
    for at in HEADER_AT.map(|at| at as usize) {
        let mut torn = whole.clone();
        torn[at + 30] ^= 0xff;
        std::fs::write(&path, &torn).unwrap();
        LogFile::open(&path, BYTES).unwrap().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), whole);
    }
}

#[test]
fn a_damaged_bitmap_is_written_again_as_it_counts() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    create(&path);
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(BITMAP_AT + 100).unwrap();
    let (_, set) = LogFile::open(&path, BYTES).unwrap().unwrap();
    assert_eq!(set.count(), 10);
    let (_, set) = LogFile::open(&path, BYTES).unwrap().unwrap();
    assert_eq!(set.count(), 10);
    assert_eq!(std::fs::metadata(&path).unwrap().len(), BITMAP_AT + 512);
}
