//! What a disk does in states that its outside cannot bring about at will.

use super::*;

const BYTES: u64 = 4 << 20;

fn options(directory: &std::path::Path) -> DiskOptions {
    let path = directory.join("image");
    std::fs::File::create(&path).unwrap().set_len(BYTES).unwrap();
    DiskOptions { path, ..DiskOptions::default() }
}

fn write(offset: u64) -> BlockOp {
    BlockOp::Write { offset, data: vec![1; 4096].into() }
}

#[test]
fn a_request_to_an_engine_that_has_ended_is_answered_with_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let disk = Disk::open(DiskIndex(0), &options(directory.path())).unwrap();
    disk.start_primary().unwrap();
    disk.inner.engine.stop();

    disk.submit(BlockRequest { tag: 7, op: write(0) }).unwrap();
    disk.submit(BlockRequest { tag: 8, op: BlockOp::Flush }).unwrap();

    let mut done = Vec::new();
    disk.take_done(&mut done);
    let error = |tag| BlockDone { tag, result: Err(BlockError::Io(libc::EIO)) };
    assert_eq!(done, [error(7), error(8)]);
    assert_eq!(disk.inner.lock().guest, 0);
}
