//! What two nodes tell each other of a mirrored disk, spelled out: a change here is a new version of the control protocol (`checkpoint::message::PROTOCOL`), in whose Hello and Welcome it travels.

use checkpoint::codec;
use disk_buffer::regions::Run;
use disk_buffer::{CopyState, DataId, Disk, DiskOptions, Identity};
use types::block::DiskIndex;

/// As a real disk tells it, with known numbers in place of its random ones.
fn identity() -> Identity {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    std::fs::File::create(&path).unwrap().set_len(64 << 20).unwrap();
    let options = DiskOptions { path, serial: Some("db".to_owned()), ..DiskOptions::default() };
    let disk = Disk::open(DiskIndex(0), &options).unwrap();
    disk.start_primary().unwrap();
    Identity {
        id: DataId(0x0102_0304_0506_0708),
        current: DataId(0xa1),
        base: DataId(0xb2),
        joining: DataId::NONE,
        state: CopyState::Following,
        empty: true,
        overwrite: true,
        content: Some(0xc3),
        place: Some(0xd4),
        changed: vec![Run { first: 7, count: 1 }, Run { first: 300, count: 2 }],
        ..disk.identity().unwrap()
    }
}

#[test]
fn the_bytes_of_a_mirrored_disks_identity() {
    let identity = identity();

    let bytes = codec::encode(&vec![identity.clone()]).unwrap();

    let expected = concat!(
        "01",                                       // one disk
        "fd0807060504030201",                       // id
        "fc00000004",                               // bytes
        "00",                                       // mirror
        "00",                                       // not read-only
        "6462000000000000000000000000000000000000", // serial number
        "fb0002",                                   // blocks of 512 bytes
        "a1b200",                                   // current, base, joining
        "01",                                       // following
        "0101",                                     // empty, to be overwritten
        "01c3",                                     // content
        "020701fb2c0102",                           // two runs of regions
        "00",                                       // a file has no world-wide name
        "01d4",                                     // where it lies
    );
    let found: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(found, expected);
    assert_eq!(codec::decode::<Vec<Identity>>(&bytes).unwrap(), [identity]);
    for len in 0..bytes.len() {
        assert!(codec::decode::<Vec<Identity>>(&bytes[..len]).is_err(), "cut to {len} bytes");
    }
}

#[test]
fn every_state_of_a_copy_has_its_number() {
    for (state, number) in [(CopyState::Consistent, 0), (CopyState::Following, 1), (CopyState::Copying, 2)] {
        assert_eq!(codec::encode(&state).unwrap(), [number], "{state:?}");
    }
    for (mode, number) in [(disk_buffer::Mode::Mirror, 0), (disk_buffer::Mode::Shared, 1)] {
        assert_eq!(codec::encode(&mode).unwrap(), [number], "{mode}");
    }
}
