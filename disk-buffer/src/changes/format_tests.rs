//! The bytes of the change log: golden, torn at every byte, damaged, of other versions.

use std::path::Path;

use super::*;
use crate::regions::REGION_BYTES;

/// Two bitmap sectors' worth of regions and a bit.
const BYTES: u64 = (SECTOR_REGIONS as u64 * 2 + 5) * REGION_BYTES - 512;

fn header(sequence: u64) -> Header {
    Header {
        id: DataId(0x0102_0304_0506_0708),
        bytes: BYTES,
        current: DataId(0x1111),
        base: DataId(0x2222),
        joining: DataId(0x3333),
        sequence,
        state: CopyState::Following,
        image: ImageFile { inode: 0x4444, born: 0x5555 },
    }
}

fn set(regions: &[u32]) -> RegionSet {
    let mut set = RegionSet::new(BYTES);
    regions.iter().for_each(|region| {
        set.insert(*region);
    });
    set
}

fn parse(bytes: &[u8]) -> Result<Content, DiskError> {
    read(bytes, BYTES, Path::new("log"))
}

#[test]
fn the_bytes_are_those_that_are_written_down() {
    let mut expected = [0u8; 512];
    expected[..8].copy_from_slice(b"LKSTPCHG");
    expected[8..16].copy_from_slice(&[1, 0, 0, 0, 0, 0, 0x10, 0]);
    expected[16..24].copy_from_slice(&[8, 7, 6, 5, 4, 3, 2, 1]);
    expected[24..32].copy_from_slice(&BYTES.to_le_bytes());
    expected[32..34].copy_from_slice(&[0x11, 0x11]);
    expected[40..42].copy_from_slice(&[0x22, 0x22]);
    expected[48..50].copy_from_slice(&[0x33, 0x33]);
    expected[56] = 7;
    expected[64] = 2;
    expected[72..74].copy_from_slice(&[0x44, 0x44]);
    expected[80..82].copy_from_slice(&[0x55, 0x55]);
    let sum = xxh3_64(&expected[..504]);
    expected[504..].copy_from_slice(&sum.to_le_bytes());
    assert_eq!(header(7).encode(), expected);
    // So that the digest itself is pinned, too.
    assert_eq!(sum, GOLDEN_HEADER_SUM, "{sum:#x}");

    let sector = encode_bitmap(&set(&[SECTOR_REGIONS, SECTOR_REGIONS + 10]), 1);
    let mut expected = [0u8; 512];
    expected[0] = 1;
    expected[1] = 1 << 2;
    expected[496] = 1;
    let sum = xxh3_64(&expected[..504]);
    expected[504..].copy_from_slice(&sum.to_le_bytes());
    assert_eq!(sector, expected);
}

/// xxh3-64 of the first 504 bytes of the header above.
const GOLDEN_HEADER_SUM: u64 = 0x3a96_ad97_cc28_449b;

#[test]
fn a_whole_log_reads_as_it_was_written() {
    let (header, set) = (header(3), set(&[0, 17, SECTOR_REGIONS - 1, SECTOR_REGIONS, SECTOR_REGIONS * 2 + 4]));
    let content = parse(&write(&header, &set)).unwrap();
    assert_eq!(content, Content { header, set, damaged: 0 });
}

#[test]
fn a_header_update_torn_at_any_byte_leaves_the_old_header_or_the_new() {
    let (old, new) = (header(3), Header { state: CopyState::Copying, current: DataId(9), ..header(4) });
    let bytes = write(&old, &set(&[1]));
    let sector = new.encode();
    // The first copy is being written, the second is old; then the second is being written, the first is new.
    for (copy, at) in HEADER_AT.into_iter().enumerate() {
        for cut in 0..=SECTOR_BYTES {
            let mut torn = bytes.clone();
            if copy == 1 {
                torn[..SECTOR_BYTES].copy_from_slice(&sector);
            }
            torn[at as usize..at as usize + cut].copy_from_slice(&sector[..cut]);
            let found = parse(&torn).unwrap().header;
            let expected = if copy == 1 { new } else { found };
            assert!(found == expected && (found == old || found == new), "copy {copy}, cut at {cut}");
            assert!(cut < SECTOR_BYTES || found == new);
        }
    }
}

#[test]
fn a_bitmap_update_torn_at_any_byte_loses_no_mark_old_or_new() {
    let (before, after) = (set(&[3, 5]), set(&[3, 5, 4, 900]));
    let bytes = write(&header(1), &before);
    let sector = encode_bitmap(&after, 0);
    for cut in 0..=SECTOR_BYTES {
        let mut torn = bytes.clone();
        let at = BITMAP_AT as usize;
        torn[at..at + cut].copy_from_slice(&sector[..cut]);
        let found = parse(&torn).unwrap();
        assert!(before.iter().all(|region| found.set.contains(region)), "cut at {cut}: an old mark is gone");
        let whole = found.damaged == 0;
        assert!(!whole || found.set == before || found.set == after, "cut at {cut}: neither old nor new");
        assert!(cut < SECTOR_BYTES || found.set == after);
    }
}

#[test]
fn a_log_cut_short_at_any_byte_marks_too_much_or_is_refused() {
    let (header, set) = (header(1), set(&[7, SECTOR_REGIONS + 1]));
    let bytes = write(&header, &set);
    for cut in (0..bytes.len()).filter(|cut| cut % 37 == 0 || cut % 512 < 2) {
        match parse(&bytes[..cut]) {
            Ok(found) => {
                assert_eq!(found.header, header);
                assert!(set.iter().all(|region| found.set.contains(region)), "cut at {cut}");
            }
            Err(error) => assert!(cut < SECTOR_BYTES, "cut at {cut}: {error}"),
        }
    }
}

#[test]
fn any_damaged_byte_of_the_bitmap_marks_the_whole_sector() {
    let bytes = write(&header(1), &set(&[7]));
    for at in BITMAP_AT as usize..BITMAP_AT as usize + SECTOR_BYTES {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x40;
        let found = parse(&damaged).unwrap();
        assert_eq!((found.damaged, found.set.count()), (1, SECTOR_REGIONS), "byte {at}");
    }
}

#[test]
fn a_damaged_header_is_replaced_by_its_twin_and_two_are_an_error() {
    let bytes = write(&header(1), &set(&[]));
    for at in 0..SECTOR_BYTES {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1;
        assert_eq!(parse(&damaged).unwrap().header, header(1), "byte {at}");
        damaged[HEADER_AT[1] as usize + 100] ^= 1;
        let error = parse(&damaged).unwrap_err();
        assert!(matches!(error, DiskError::LogDamaged { .. } | DiskError::NotALog(_)), "byte {at}: {error}");
    }
}

#[test]
fn another_version_is_refused_by_its_number() {
    let mut bytes = write(&header(1), &set(&[]));
    for at in HEADER_AT.map(|at| at as usize) {
        bytes[at + 8] = 2;
        let sum = xxh3_64(&bytes[at..at + 504]);
        bytes[at + 504..at + 512].copy_from_slice(&sum.to_le_bytes());
    }
    let error = parse(&bytes).unwrap_err();
    assert!(matches!(error, DiskError::LogVersion { found: 2, known: 1, .. }), "{error}");
}

#[test]
fn something_else_in_the_logs_place_and_another_disks_log_are_refused() {
    assert!(matches!(parse(&vec![b'x'; 20_000]), Err(DiskError::NotALog(_))));
    assert!(matches!(read(&write(&header(1), &set(&[])), BYTES + 512, Path::new("log")), Err(DiskError::LogOfOther { .. })));
}
