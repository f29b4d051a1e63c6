//! S7: damaged, truncated and invented bytes end in an error, and never in other data. S2: nor does a damaged part ever pass.

mod support;

use checkpoint::decode::WireError;
use checkpoint::delta::{Delta, DeltaError};
use checkpoint::fuzz::{self, with_right_digest};
use checkpoint::{EpochTail, GuestMap, Part, message};
use rand::{Rng, SeedableRng, rngs::StdRng};
use support::{block, part_of_every_kind, part_with_blocks};
use types::block::{DiskChange, DiskIndex, DiskWrite};

const RECORDS_AT: usize = 64;

#[test]
fn a_part_with_any_one_bit_flipped_is_refused() {
    let (map, bytes) = part_of_every_kind();
    assert!(Part::parse(&bytes, &map).is_ok());
    let mut damaged = bytes.clone();
    for at in 0..bytes.len() {
        for bit in 0..8 {
            damaged[at] ^= 1 << bit;
            assert!(Part::parse(&damaged, &map).is_err(), "bit {bit} of byte {at}");
            damaged[at] = bytes[at];
        }
    }
}

#[test]
fn a_part_cut_off_or_drawn_out_anywhere_is_refused() {
    let (map, bytes) = part_of_every_kind();
    for len in 0..bytes.len() {
        assert!(Part::parse(&bytes[..len], &map).is_err(), "{len} bytes");
        assert!(Part::parse(&with_right_digest(&bytes[..len]), &map).is_err(), "{len} bytes with a right digest");
    }
    let longer = [bytes.as_slice(), &[0]].concat();
    assert!(matches!(Part::parse(&with_right_digest(&longer), &map), Err(WireError::Length { .. })));
}

/// The part with a change and a digest that fits it: what only the checks behind the digest can find.
fn forged(change: impl FnOnce(&mut Vec<u8>)) -> WireError {
    let (map, mut bytes) = part_of_every_kind();
    change(&mut bytes);
    Part::parse(&with_right_digest(&bytes), &map).expect_err("a malformed part was accepted")
}

fn set_record(bytes: &mut [u8], index: usize, word: u64) {
    bytes[RECORDS_AT + index * 8..][..8].copy_from_slice(&word.to_le_bytes());
}

#[test]
fn another_version_is_refused_by_name() {
    let error = forged(|bytes| bytes[8] = 9);
    assert_eq!(error, WireError::Version { theirs: 9, ours: 2 });
    assert!(error.to_string().contains("format 9") && error.to_string().contains("only format 2"));
}

#[test]
fn a_malformed_header_is_refused_with_a_right_digest_too() {
    assert!(matches!(forged(|bytes| bytes[0] = b'X'), WireError::Magic { .. }));
    assert!(matches!(forged(|bytes| bytes[10] = 3), WireError::Header { field: "kind", .. }));
    assert!(matches!(forged(|bytes| bytes[11] = 2), WireError::Header { field: "flags", .. }));
    assert!(matches!(forged(|bytes| bytes[50] = 1), WireError::Header { field: "reserved bytes", .. }));
    assert!(matches!(forged(|bytes| bytes[15] = 1), WireError::Header { field: "part index", .. }));
    assert!(matches!(forged(|bytes| bytes[24..32].fill(0)), WireError::Header { .. }));
    assert!(matches!(forged(|bytes| bytes[10] = 1), WireError::Header { .. }));
    assert!(matches!(forged(|bytes| bytes[32..36].fill(0xFF)), WireError::Header { field: "part bytes", .. }));
    assert!(matches!(forged(|bytes| bytes[36..40].fill(0xFF)), WireError::Header { field: "part bytes", .. }));
    assert!(matches!(forged(|bytes| bytes[40] ^= 1), WireError::Length { .. }));
}

#[test]
fn malformed_records_are_refused_with_a_right_digest_too() {
    // The records are: 1 zero, 2 delta of 24 bytes, 1001 raw; pages 0..4 and 1000..1004 exist.
    assert!(matches!(forged(|b| set_record(b, 0, 2 << 12 | 1)), WireError::Order { .. }));
    assert!(matches!(forged(|b| set_record(b, 0, 3 << 12 | 1)), WireError::Order { .. }));
    assert!(matches!(forged(|b| set_record(b, 2, 1004 << 12)), WireError::OutsideMemory { .. }));
    assert!(matches!(forged(|b| set_record(b, 2, ((1 << 51) - 1) << 12)), WireError::OutsideMemory { .. }));
    assert!(matches!(forged(|b| set_record(b, 2, 1001 << 12 | 1)), WireError::Payload { .. }));
    assert!(matches!(forged(|b| set_record(b, 0, 1 << 12)), WireError::Payload { .. } | WireError::Delta { .. }));
    assert!(matches!(forged(|b| set_record(b, 1, 2 << 12 | 23)), WireError::Delta { .. }));
    assert!(matches!(forged(|b| set_record(b, 1, 2 << 12 | 12)), WireError::Payload { .. }));
    let first_run = RECORDS_AT + 3 * 8;
    assert!(matches!(forged(|b| b[first_run + 1] = 0xFF), WireError::Delta { source: DeltaError::OutsidePage { .. }, .. }));
}

#[test]
fn disk_blocks_outside_their_disk_in_an_epoch_or_as_deltas_are_refused() {
    // In an epoch, even where such a block exists.
    let in_epoch = forged(|b| set_record(b, 2, block(0, 1).0 << 12));
    assert!(matches!(in_epoch, WireError::Block { how: "in an epoch", .. }), "{in_epoch}");

    // The records are: pages 1 and 1001, then blocks 0 and 255 of disk 0 and block 16 of disk 1. Disk 0 has 256 blocks, disk 1 has 17.
    let forged = |index, word: u64| {
        let (map, mut bytes) = part_with_blocks();
        set_record(&mut bytes, index, word);
        Part::parse(&with_right_digest(&bytes), &map).map(drop)
    };
    let (map, bytes) = part_with_blocks();
    assert!(Part::parse(&bytes, &map).is_ok());
    assert!(matches!(forged(3, block(0, 256).0 << 12 | 1), Err(WireError::OutsideDisk { .. })));
    assert!(matches!(forged(4, block(1, 17).0 << 12), Err(WireError::OutsideDisk { .. })));
    assert!(matches!(forged(4, block(2, 0).0 << 12), Err(WireError::OutsideDisk { .. })));
    assert!(matches!(forged(4, u64::MAX << 12), Err(WireError::OutsideDisk { .. })));
    assert!(matches!(forged(4, block(1, 16).0 << 12 | 24), Err(WireError::Block { how: "as a delta", .. })));
    assert!(matches!(forged(4, block(0, 255).0 << 12), Err(WireError::Order { .. })));
    assert!(matches!(forged(1, block(0, 0).0 << 12), Err(WireError::Order { .. })));
    assert!(matches!(forged(2, 1002 << 12 | 1), Err(WireError::Payload { .. })));
}

#[test]
fn disk_writes_outside_their_disk_or_in_parts_of_sectors_are_found() {
    let map = support::map(8);
    let checked = |disk, offset, change: DiskChange| {
        EpochTail { disks: vec![DiskWrite { disk: DiskIndex(disk), offset, change }], ..EpochTail::default() }.check_disks(&map)
    };
    let data = |len: usize| DiskChange::Data(vec![7; len].into());
    let (first, second) = (support::DISKS[0], support::DISKS[1]);
    assert_eq!(checked(0, first - 512, data(512)), Ok(()));
    assert_eq!(checked(1, 0, DiskChange::Discard { len: second }), Ok(()));
    for (disk, offset, change) in [
        (0, first - 512, data(1024)),
        (0, first, data(512)),
        (0, u64::MAX - 511, data(512)),
        (0, 512, DiskChange::Zeroes { len: u64::MAX - 511, may_unmap: false }),
        (1, 512, DiskChange::Discard { len: second }),
        (2, 0, data(512)),
        (0, 100, data(512)),
        (0, 0, data(100)),
        (0, 0, data(0)),
    ] {
        let error = checked(disk, offset, change).expect_err("a wild write was accepted");
        assert_eq!((error.disk, error.offset), (DiskIndex(disk), offset));
    }
}

#[test]
fn deltas_that_leave_their_page_overlap_or_end_early_are_refused() {
    let run = |first: u16, words: u16| [first.to_le_bytes(), words.to_le_bytes()].concat();
    let full = |first, words: u16| [run(first, words), vec![7; usize::from(words) * 8]].concat();
    assert!(Delta::parse(&full(511, 1)).is_ok());
    assert!(Delta::parse(&full(0, 510)).is_ok());
    assert_eq!(Delta::parse(&[]), Err(DeltaError::Truncated));
    assert_eq!(Delta::parse(&full(512, 1)), Err(DeltaError::OutsidePage { first: 512, words: 1 }));
    assert_eq!(Delta::parse(&full(511, 2)), Err(DeltaError::OutsidePage { first: 511, words: 2 }));
    assert_eq!(Delta::parse(&full(u16::MAX, 1)), Err(DeltaError::OutsidePage { first: u16::MAX, words: 1 }));
    assert_eq!(Delta::parse(&run(3, 0)), Err(DeltaError::OutsidePage { first: 3, words: 0 }));
    assert_eq!(Delta::parse(&[full(3, 2), full(4, 1)].concat()), Err(DeltaError::Overlap { first: 4 }));
    for len in 1..full(3, 2).len() {
        assert_eq!(Delta::parse(&full(3, 2)[..len]), Err(DeltaError::Truncated));
    }
}

#[test]
fn invented_and_mutated_bytes_never_panic() {
    let (map, part) = part_of_every_kind();
    let tail = {
        let mut bytes = Vec::new();
        let memory = Some(checkpoint::MemoryDigest::of_digests(&map, |gfn| gfn.0 as u32));
        EpochTail { memory, ..support::tail(b"machine") }.encode_into(&mut bytes).unwrap();
        bytes
    };
    let hello = message::encode(&message::Message::Refuse { reason: "no".into() }).unwrap();
    let delta = part[88..112].to_vec();
    let mut stream = Vec::new();
    for epoch in 1..4u64 {
        let mut encoder = support::encoder(8192, 0);
        let parts = support::encode_epoch(&mut encoder, types::Epoch(epoch), &[], &[], &support::tail(&[9; 9000]));
        assert!(parts.len() > 1);
        for part in parts {
            stream.extend_from_slice(&(part.len() as u16).to_le_bytes());
            stream.extend_from_slice(&part);
        }
    }
    assert_eq!(fuzz::stream(&stream), 3, "the sample itself is whole");
    type Target = (fn(&[u8]), Vec<u8>);
    let targets: [Target; 6] = [
        (fuzz::part, part),
        (fuzz::part, part_with_blocks().1),
        (fuzz::tail, tail),
        (fuzz::message, hello),
        (fuzz::delta, delta),
        (|bytes| _ = fuzz::stream(bytes), stream),
    ];
    let mut rng = StdRng::seed_from_u64(0x10c_257e9);
    for (target, sample) in targets {
        target(&sample);
        for _ in 0..5000 {
            let mut bytes = sample.clone();
            for _ in 0..rng.random_range(1..6) {
                mutate(&mut bytes, &mut rng);
            }
            target(&bytes);
        }
        for _ in 0..5000 {
            let mut bytes = vec![0; rng.random_range(0..300)];
            rng.fill(bytes.as_mut_slice());
            target(&bytes);
        }
    }
}

/// One change of the kinds that break parsers: a byte, a number at its edge, a cut, a repetition. Mostly near the front, where lengths are.
fn mutate(bytes: &mut Vec<u8>, rng: &mut StdRng) {
    if bytes.is_empty() {
        return;
    }
    let end = if rng.random_bool(0.7) { bytes.len().min(120) } else { bytes.len() };
    let at = rng.random_range(0..end);
    match rng.random_range(0..5) {
        0 => bytes[at] = rng.random(),
        1 => bytes[at] ^= 1 << rng.random_range(0..8),
        2 => {
            let edge = [0u64, 1, u64::MAX, u64::MAX >> 1, 0xFFFF_FFFF, 4096][rng.random_range(0..6)].to_le_bytes();
            let len = [1, 2, 4, 8][rng.random_range(0..4)].min(bytes.len() - at);
            bytes[at..at + len].copy_from_slice(&edge[..len]);
        }
        3 => bytes.truncate(at),
        _ => {
            let copied = bytes[at..(at + 16).min(bytes.len())].to_vec();
            bytes.splice(at..at, copied);
        }
    }
}

#[test]
fn a_huge_claimed_length_is_refused_before_memory_is_reserved() {
    // A machine state of 2^62 bytes, as bincode writes that length.
    let mut bytes = vec![253];
    bytes.extend_from_slice(&(1u64 << 62).to_le_bytes());
    bytes.extend_from_slice(&[0; 100]);
    assert!(EpochTail::decode(&bytes).is_err());
    let mut message = message::encode(&message::Message::Refuse { reason: String::new() }).unwrap();
    message.pop();
    message.extend_from_slice(&bytes);
    assert!(message::decode(&message).is_err());
}

#[test]
fn memory_maps_join_what_touches_and_know_their_holes() {
    let map = GuestMap::new([8..10, 0..4, 3..6, 7..7, 10..11]);
    assert_eq!(map.ranges(), [0..6, 8..11]);
    assert_eq!(map.pages(), 9);
    assert!(!map.contains(types::Gfn(6)) && map.contains(types::Gfn(5)) && !map.contains(types::Gfn(11)));
    assert_eq!(GuestMap::from_regions([(4096, 8192), (1 << 32, 4096)]).ranges(), [1..3, (1 << 20)..(1 << 20) + 1]);
}
