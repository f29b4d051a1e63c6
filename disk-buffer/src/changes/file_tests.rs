//! The log's file: what survives, what is repaired.

use super::*;
use crate::identity::{CopyState, DataId};
use crate::regions::REGION_BYTES;

const BYTES: u64 = 10 * REGION_BYTES;

fn create(path: &Path) -> LogFile {
    let before = path.exists();
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
    let mut log = LogFile::create(path, header, &RegionSet::new(BYTES)).unwrap();
    assert_eq!(path.exists(), before, "it has no name before it has something to say");
    log.update(|_| ()).unwrap();
    assert!(path.exists());
    log
}

fn names(directory: &tempfile::TempDir) -> Vec<String> {
    let names = std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.collect()
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
    assert_eq!((read.header().current, read.header().state, read.header().sequence), (DataId(77), CopyState::Copying, 4));
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

#[test]
fn a_new_log_that_nothing_was_said_in_leaves_nothing_and_the_old_one_as_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    let header = *create(&path).header();
    let old = std::fs::read(&path).unwrap();

    drop(LogFile::create(&path, Header { id: DataId(9), ..header }, &RegionSet::new(BYTES)).unwrap());
    // As on a file system without nameless files.
    let mut made = LogFile::create(&path, header, &RegionSet::new(BYTES)).unwrap();
    std::fs::write(in_the_making(&path), b"half").unwrap();
    made.birth = Birth::Made;
    drop(made);

    assert_eq!((names(&directory), std::fs::read(&path).unwrap()), (vec!["log".to_owned()], old));
    let mut new = LogFile::create(&path, Header { id: DataId(9), ..header }, &RegionSet::new(BYTES)).unwrap();
    new.update(|_| ()).unwrap();
    assert_eq!(LogFile::open(&path, BYTES).unwrap().unwrap().0.header().id, DataId(9), "it takes the old one's place");
    assert_eq!(names(&directory), ["log"]);
}

#[test]
fn a_place_where_no_log_can_be_is_refused_with_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let header = *create(&directory.path().join("log")).header();
    let refused = |path: PathBuf| match LogFile::open(&path, BYTES) {
        Ok(None) => LogFile::create(&path, header, &RegionSet::new(BYTES)).unwrap_err().to_string(),
        other => other.unwrap_err().to_string(),
    };
    for (path, words) in [("missing/log", "make its directory"), ("", "name a file"), ("log/log", "make its directory")] {
        let error = refused(directory.path().join(path));
        assert!(error.contains(words), "{path}: {error}");
    }
    assert!(
        DiskError::log("created", Path::new("/x"))(io::Error::from_raw_os_error(libc::EROFS)).to_string().contains("mounted read-only")
    );
}
