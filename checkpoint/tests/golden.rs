//! The bytes on the wire, spelled out: a change here is a new version of the format.

mod support;

use checkpoint::codec;
use checkpoint::delta::{DeltaOutcome, encode_delta};
use checkpoint::digest::{EpochChain, bytes_digest};
use checkpoint::message::{Hello, InputFrame, Message, MessageError, Welcome, decode, encode};
use checkpoint::{DiskBlock, Encoder, EncoderConfig, EpochInput, EpochTail, GuestBus, GuestShape, MemoryDigest, VerifyMemory};
use support::map;
use types::block::{DiskChange, DiskIndex, DiskWrite};
use types::cpu::{CpuLeaf, GuestCpu};
use types::{Epoch, Generation, Gfn, NodeId, Output, OutputPort, PAGE_SIZE, VmId};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn cpu(more: &[(u32, u32)]) -> GuestCpu {
    let leaf = |(function, ecx): &(u32, u32)| CpuLeaf { function: *function, index: 0, registers: [0, 0, *ecx, 0] };
    GuestCpu {
        model: "host".into(),
        leaves: more.iter().map(leaf).collect(),
        msrs: vec![0x10],
        arch_capabilities: 3,
        tsc_khz: 4,
        tsc_scaling: true,
    }
}

fn shape() -> GuestShape {
    GuestShape { memory_bytes: 256 << 20, vcpus: 2, nets: vec![[2, 0, 0, 0, 0, 1]], bus: GuestBus::Pci, rng: false, cpu: cpu(&[(1, 5)]) }
}

#[test]
fn the_bytes_of_a_part() {
    let mut encoder = Encoder::new(EncoderConfig { slot_bytes: 64 << 10, delta_pages: 4 }).unwrap();
    let mut out = encoder.part_buffer();
    let gfns = [Gfn(0x10), Gfn(0x11)];
    let mut arena = vec![0; 2 * PAGE_SIZE];
    arena[PAGE_SIZE] = 1;
    for index in 0..2 {
        encoder.sync_part(Generation(2), index, &gfns, &arena, &mut out).unwrap();
    }
    arena[PAGE_SIZE + 16] = 0xAB;
    let mut parts = encoder.epoch(EpochInput { generation: Generation(2), epoch: Epoch(7), gfns: &gfns, arena: &arena, tail: &[1, 2, 3] });
    assert!(parts.next_part(&mut out).unwrap());

    let bytes = support::gather(&out, &arena);
    let header = [
        "4c4b535450415254", // magic
        "0200",             // version
        "02",               // EPOCH
        "01",               // LAST
        "00000000",         // part index
        "0200000000000000", // generation
        "0700000000000000", // epoch
        "02000000",         // records
        "0c000000",         // payload bytes
        "0b000000",         // tail bytes
        "000000000000000000000000",
        "e86ab48ea50ba33b", // digest
    ];
    let body = [
        "0100010000000000",         // page 0x10: zero
        "0c10010000000000",         // page 0x11: a delta of 12 bytes
        "02000100ab00000000000000", // word 2, one word
        "010203",                   // tail
        "5179eb6025d64855",         // epoch digest
    ];
    assert_eq!(hex(&bytes), header.concat() + &body.concat());

    // Both digests again, from the description of the format alone.
    let mut zeroed = bytes.clone();
    zeroed[56..64].fill(0);
    assert_eq!(bytes_digest(&zeroed).to_le_bytes(), bytes[56..64]);
    assert_eq!(EpochChain::new(Generation(2), Epoch(7)).value().to_le_bytes(), bytes[bytes.len() - 8..]);
}

#[test]
fn the_bytes_of_a_sync_part_with_disk_blocks() {
    let mut encoder = Encoder::new(EncoderConfig { slot_bytes: 64 << 10, delta_pages: 4 }).unwrap();
    let mut out = encoder.part_buffer();
    let named = |disk, block| DiskBlock { disk: DiskIndex(disk), block }.name().unwrap();
    let gfns = [Gfn(0x10), named(0, 3), named(1, 0x7ff)];
    let mut arena = vec![0; 3 * PAGE_SIZE];
    arena[2 * PAGE_SIZE] = 0xDB;

    encoder.sync_part(Generation(2), 9, &gfns, &arena, &mut out).unwrap();

    let bytes = support::gather(&out, &arena);
    let header = [
        "4c4b535450415254", // magic
        "0200",             // version
        "01",               // SYNC
        "00",               // not LAST
        "09000000",         // part index
        "0200000000000000", // generation
        "0000000000000000", // epoch
        "03000000",         // records
        "00100000",         // payload bytes
        "00000000",         // tail bytes
        "000000000000000000000000",
        "6562316ae9e2bb4d", // digest
    ];
    let body = [
        "0100010000000000", // page 0x10: zero
        "0130000000000080", // block 3 of disk 0: zero
        "00f07f0000008080", // block 0x7ff of disk 1: raw
        "db",
    ];
    assert_eq!(hex(&bytes[..64 + 3 * 8 + 1]), header.concat() + &body.concat());
    assert_eq!(bytes.len(), 64 + 3 * 8 + PAGE_SIZE);
}

#[test]
fn the_bytes_of_a_delta() {
    let mut base = [0; PAGE_SIZE];
    let mut page = base;
    page[8] = 1;
    page[23] = 2;
    page[PAGE_SIZE - 1] = 3;
    // A run across the boundary of two comparison groups.
    page[63 * 8] = 4;
    page[64 * 8] = 5;
    let mut out = [0; 2048];
    let outcome = encode_delta(&mut base, &page, &mut out);
    let expected =
        "0100020001000000000000000000000000000002".to_owned() + "3f00020004000000000000000500000000000000" + "ff0101000000000000000003";
    assert_eq!(outcome, DeltaOutcome::Written(expected.len() / 2));
    assert_eq!(hex(&out[..expected.len() / 2]), expected);
    assert_eq!(base, page);
}

#[test]
fn the_bytes_of_a_tail() {
    let tail = EpochTail {
        machine: vec![1, 2, 3],
        output: vec![
            Output { port: OutputPort::Net(5), bytes: vec![0xEE; 4] },
            Output { port: OutputPort::Console, bytes: b"ok".to_vec() },
        ],
        memory: Some(MemoryDigest::of_digests(&map(2), |gfn| gfn.0 as u32)),
        disks: vec![
            DiskWrite { disk: DiskIndex(1), offset: 4096, change: DiskChange::Data([0xD1, 0xD2].into()) },
            DiskWrite { disk: DiskIndex(0), offset: 512, change: DiskChange::Zeroes { len: 1024, may_unmap: true } },
            DiskWrite { disk: DiskIndex(0), offset: 0, change: DiskChange::Discard { len: 512 } },
        ],
    };
    let mut bytes = Vec::new();
    tail.encode_into(&mut bytes).unwrap();
    assert_eq!(
        hex(&bytes),
        concat!(
            "03010203",                         // machine
            "02000504eeeeeeee01026f6b",         // output
            "0102000400000000fbe80304e8030000", // digests of two windows of memory: first frame, digests
            "0301fb00100002d1d2",               // disks: data
            "00fb000201fb000401",               // zeroes
            "000002fb0002"                      // discard
        )
    );
}

#[test]
fn the_bytes_of_the_control_messages() {
    let hello = Message::Hello(Hello {
        protocol: 3,
        vm: VmId("shop".into()),
        node: NodeId("a".into()),
        generation: Generation(3),
        shape: shape(),
        boot: 0x0102_0304_0506_0708,
        verify_memory: VerifyMemory::Window { pages: 300 },
        disks: vec![0xd0, 0xd1],
    });
    let cases = [
        (
            hello,
            concat!(
                "4c4b050000030473686f70016103", // magic, protocol, Hello; VM, node, generation
                "fc000000100201020000000001",   // memory, vCPUs, ports
                "010004686f7374",               // on PCI, without random numbers; the CPU: "host"
                "01010000000500",               // one leaf
                "0110030401",                   // one register, capabilities, TSC
                "fd0807060504030201",           // what it boots from
                "02fb2c01",                     // with digests of windows of so many pages
                "02d0d1"                        // disks
            ),
        ),
        (
            Message::Welcome(Welcome { node: NodeId("b".into()), slots: 300, slot_bytes: 1 << 20, disks: vec![0xd2] }),
            "4c4b0500010162fb2c01fc0000100001d2",
        ),
        (Message::Refuse { reason: "no".into() }, "4c4b050002026e6f"),
        (Message::Heartbeat { generation: Generation(3), sequence: 251 }, "4c4b05000303fbfb00"),
        (Message::Commit { generation: Generation(3), epoch: Epoch(9) }, "4c4b0500040309"),
        (Message::Durable { generation: Generation(3), disk: DiskIndex(1), epoch: Epoch(9) }, "4c4b050005030109"),
        (Message::Recorded { generation: Generation(3) }, "4c4b05000603"),
        (Message::Shutdown { reason: "off".into() }, "4c4b050007036f6666"),
        (
            Message::Input { generation: Generation(3), frames: vec![InputFrame { epoch: Epoch(7), port: 1, bytes: vec![0xab, 0xcd] }] },
            "4c4b0500080301070102abcd",
        ),
        (Message::Issued { generation: Generation(3), disk: DiskIndex(1), epoch: Epoch(9) }, "4c4b050009030109"),
        (Message::Sight { generation: Generation(3), trouble: None }, "4c4b05000a0300"),
        (Message::Sight { generation: Generation(3), trouble: Some("no".into()) }, "4c4b05000a0301026e6f"),
    ];
    for (message, expected) in cases {
        let bytes = encode(&message).unwrap();
        assert_eq!(hex(&bytes), expected, "{message:?}");
        assert_eq!(decode(&bytes).unwrap(), message);
        for len in 0..bytes.len() {
            assert!(decode(&bytes[..len]).is_err(), "{message:?} cut to {len} bytes");
        }
        assert!(decode(&[bytes.as_slice(), &[0]].concat()).is_err(), "{message:?} with a byte more");
    }
}

#[test]
fn messages_of_another_protocol_or_size_are_refused_by_name() {
    let mut bytes = encode(&Message::Recorded { generation: Generation(3) }).unwrap();
    bytes[2] = 9;
    assert!(matches!(decode(&bytes), Err(MessageError::Version { theirs: 9, ours: 5 })));
    assert!(decode(&bytes).unwrap_err().to_string().contains("control protocol 9"));
    assert!(matches!(decode(b"GET / HTTP/1.1"), Err(MessageError::NotAMessage)));
    assert!(matches!(decode(&[0; 70_000]), Err(MessageError::TooLarge { bytes: 70_000 })));
    let long = Message::Refuse { reason: "x".repeat(70_000) };
    assert!(matches!(encode(&long), Err(MessageError::TooLarge { .. })));
}

#[test]
fn a_shape_that_differs_is_told_in_words() {
    let ours = shape();
    assert_eq!(ours.mismatch(&ours.clone()), None);
    let theirs = GuestShape {
        memory_bytes: 512 << 20,
        vcpus: 4,
        nets: vec![[2, 0, 0, 0, 0, 0xFF]],
        bus: GuestBus::Mmio,
        rng: true,
        cpu: cpu(&[(1, 5 | 1 << 28)]),
    };
    assert_eq!(
        ours.mismatch(&theirs).unwrap(),
        "memory is 256 MiB here and 512 MiB at the peer; vCPUs: 2 here and 4 at the peer; \
         network port 0 has MAC 02:00:00:00:00:01 here and 02:00:00:00:00:ff at the peer; \
         virtio devices are on pci here and on mmio at the peer (--bus); a source of random numbers: none here and one at the peer (--rng); \
         the CPU here lacks avx; processors that differ can protect each other with --cpu x86-64-v3 or x86-64-v2 at both nodes"
    );
    let fewer = GuestShape { nets: vec![], ..shape() };
    assert_eq!(ours.mismatch(&fewer).unwrap(), "network ports: 1 here and 0 at the peer");
}

#[test]
fn structures_beyond_the_limit_are_neither_written_nor_read() {
    let huge = vec![0u8; codec::MAX_ENCODED_BYTES + 1];
    let mut out = vec![42];
    assert!(matches!(codec::encode_into(&huge, &mut out), Err(codec::CodecError::TooLarge { .. })));
    assert_eq!(out, [42], "nothing is appended on an error");
    assert!(matches!(codec::decode::<Vec<u8>>(&huge), Err(codec::CodecError::TooLarge { .. })));
    assert!(matches!(codec::decode::<u8>(&[1, 2]), Err(codec::CodecError::Trailing { extra: 1, .. })));
}
