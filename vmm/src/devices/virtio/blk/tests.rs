//! What a well-behaved driver can rely on.

use std::sync::atomic::AtomicBool;

use types::block::{BlockError, BlockInfo, BlockOp, DISCARD_BYTES_MAX, REQUEST_BYTES_MAX, ZEROES_BYTES_MAX};

use super::device::{BATCH_REQUESTS, IN_FLIGHT_BYTES_MAX};
use super::testing::*;
use crate::devices::lock;
use crate::devices::virtio::F_VERSION_1;
use crate::devices::worker::WorkerDevice;

#[test]
fn what_was_written_is_read_again_at_every_size() {
    for features in [ALL, PLAIN] {
        let mut guest = Guest::running(features);
        for (head, length) in [(0u16, 512u32), (1, 4096), (2, 65536), (3, REQUEST_BYTES_MAX as u32)] {
            let (from, into, sector) = (0x10_0000, 0x20_0000, 8 * u64::from(head));
            let bytes = pattern(u64::from(length), length as usize);
            guest.driver.put(from, &bytes);

            assert_eq!(guest.carry(head, T_OUT, sector, &[(from, length)]), (0, 1));
            assert_eq!(guest.carry(head, T_IN, sector, &[(into, length)]), (0, length + 1));

            assert_eq!(guest.disk.content(sector * 512, length as usize), bytes);
            assert_eq!(guest.driver.bytes(into, length as usize), bytes);
        }
        let counts = guest.counts();
        assert_eq!((counts.reads, counts.writes, counts.read_bytes), (4, 4, counts.write_bytes));
    }
}

#[test]
fn a_request_may_be_cut_into_buffers_anywhere() {
    let mut guest = Guest::running(PLAIN);
    let bytes = pattern(9, 1024);
    // Written: a header in three pieces, an empty buffer, data in two, the last of them beyond 4 GiB.
    guest.driver.put(0x10_0000, &bytes[..100]);
    guest.driver.put(HIGH, &bytes[100..]);
    let header = header_at(0);
    guest.offer_plain(
        0,
        T_OUT,
        4,
        &[
            (header, 3, false),
            (header + 3, 12, false),
            (header + 15, 1, false),
            (u64::MAX, 0, false),
            (0x10_0000, 100, false),
            (HIGH, 924, false),
            (status_at(0), 1, true),
        ],
    );
    guest.driver.run_all();
    guest.disk.answer_all();
    guest.driver.run_all();
    assert_eq!((guest.status_of(0), guest.driver.used()), (0, vec![(0, 1)]));
    assert_eq!(guest.disk.content(2048, 1024), bytes);

    // Read: header and nothing else, then data and status in one buffer, and in three.
    for cuts in [&[1025u32][..], &[1, 1000, 24]] {
        let mut buffers = vec![(header_at(16), 16, false)];
        let mut at = 0x18_0000;
        for &cut in cuts {
            buffers.push((at, cut, true));
            at += u64::from(cut);
        }
        guest.driver.put(0x18_0000, &[0xaa; 1025]);
        guest.offer_plain(16, T_IN, 4, &buffers);
        guest.driver.run_all();
        guest.disk.answer_all();
        guest.driver.run_all();
        assert_eq!(guest.driver.used(), [(16, 1025)]);
        assert_eq!(guest.driver.bytes(0x18_0000, 1024), bytes);
        assert_eq!(guest.driver.bytes(0x18_0400, 1), [0], "the status is the last byte that the device may write");
    }
}

#[test]
fn flush_discard_and_zeroes_reach_the_disk_as_they_were_asked() {
    let mut guest = Guest::running(ALL);
    let range = |sector: u64, sectors: u32, flags: u32| [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat();
    assert_eq!(guest.carry(0, T_FLUSH, 0, &[]), (0, 1));
    for (command, bytes) in [(T_DISCARD, range(8, 16, 0)), (T_WRITE_ZEROES, range(24, 1, 0)), (T_WRITE_ZEROES, range(8191, 1, 1))] {
        guest.driver.put(data_at(1), &bytes);
        assert_eq!(guest.carry(1, command, 0, &[(data_at(1), 16)]), (0, 1));
    }
    assert_eq!(
        guest.disk.log(),
        [
            BlockOp::Flush,
            BlockOp::Discard { offset: 4096, len: 8192 },
            BlockOp::WriteZeroes { offset: 12288, len: 512, may_unmap: false },
            BlockOp::WriteZeroes { offset: DISK_BYTES - 512, len: 512, may_unmap: true },
        ]
    );
    let counts = guest.counts();
    assert_eq!((counts.flushes, counts.discards, counts.write_zeroes), (1, 1, 2));
}

#[test]
fn the_serial_number_fills_the_buffer_as_far_as_it_goes() {
    let mut guest = Guest::running(ALL);
    assert_eq!(guest.carry(0, T_GET_ID, 0, &[(data_at(0), 20)]), (0, 21));
    assert_eq!(guest.driver.bytes(data_at(0), 20), INFO.serial);
    assert_eq!(guest.carry(0, T_GET_ID, 0, &[(data_at(0), 30)]), (0, 20), "what lies between it and the status was not written");
    assert_eq!(guest.carry(0, T_GET_ID, 0, &[(data_at(0), 5)]), (0, 6));
    assert!(guest.disk.log().is_empty(), "the device knows it");
}

#[test]
fn the_configuration_tells_size_and_limits() {
    let mut guest = Guest::new(BlockInfo { bytes: 3 << 40, ..INFO });
    let mut word = |offset: u64| guest.driver.read(0x100 + offset);
    assert_eq!(u64::from(word(0)) | u64::from(word(4)) << 32, (3 << 40) / 512);
    assert_eq!(u64::from(word(8)) * u64::from(word(12)), REQUEST_BYTES_MAX as u64);
    assert_eq!((word(20), word(24)), (512, 3 | 8 << 16), "4 KiB physical blocks");
    assert_eq!(u64::from(word(36)) * 512, DISCARD_BYTES_MAX);
    assert_eq!(u64::from(word(48)) * 512, ZEROES_BYTES_MAX);
    assert_eq!((word(40), word(44), word(52), word(56), word(60)), (1, 1, 1, 1, 0));
    assert_eq!(guest.driver.offered() & (1 << 13 | 1 << 14 | 1 << 9 | 1 << 5), 1 << 13 | 1 << 14 | 1 << 9);
    assert_eq!(guest.driver.read(8), 2, "device type");
}

#[test]
fn a_read_only_disk_says_so_reads_and_refuses_to_change() {
    let mut guest = Guest::new(BlockInfo { read_only: true, ..INFO });
    assert_eq!(guest.driver.offered() & (1 << 13 | 1 << 14 | 1 << 5), 1 << 5);
    guest.driver.start(ALL | 1 << 5);
    guest.driver.put(data_at(0), &[0; 512]);
    assert_eq!(guest.carry(0, T_OUT, 0, &[(data_at(0), 512)]).0, 1);
    assert_eq!(guest.carry(0, T_DISCARD, 0, &[(data_at(0), 16)]).0, 2);
    assert_eq!(guest.carry(0, T_WRITE_ZEROES, 0, &[(data_at(0), 16)]).0, 2);
    assert_eq!(guest.carry(0, T_IN, 0, &[(data_at(0), 512)]).0, 0);
    assert_eq!(guest.carry(0, T_FLUSH, 0, &[]).0, 0);
    assert_eq!(guest.disk.log().len(), 2, "only the read and the flush reached it");
}

#[test]
fn requests_are_answered_in_the_order_in_which_the_disk_ends_them() {
    let mut guest = Guest::running(ALL);
    for head in 0..8 {
        guest.driver.put(data_at(head), &pattern(u64::from(head), 512));
        guest.offer(head, T_OUT, u64::from(head), &[(data_at(head), 512)]);
    }
    guest.driver.run_all();
    assert_eq!(guest.disk.pending().len(), 8);
    for index in [7, 0, 3] {
        guest.disk.answer(index);
        guest.driver.run_all();
    }
    assert_eq!(guest.driver.used(), [(7, 1), (0, 1), (4, 1)]);
    guest.disk.answer_all();
    guest.driver.run_all();
    assert_eq!(guest.driver.used(), [(1, 1), (2, 1), (3, 1), (5, 1), (6, 1)]);
    for head in 0..8u16 {
        assert_eq!(guest.disk.content(512 * u64::from(head), 512), pattern(u64::from(head), 512));
    }
}

#[test]
fn the_whole_queue_can_be_in_flight() {
    let mut guest = Guest::running(ALL);
    for head in 0..256 {
        guest.offer(head, T_IN, u64::from(head) * 8, &[(data_at(head), 4096)]);
    }
    let batch = guest.driver.run();
    assert!(batch.more, "a batch is bounded");
    assert_eq!(guest.disk.pending().len(), BATCH_REQUESTS);
    guest.driver.run_all();
    assert_eq!(guest.disk.pending().len(), 256);
    assert_eq!(lock(&guest.driver.device).in_flight(), 256);

    guest.disk.answer_all();
    assert!(guest.driver.run().more);
    assert_eq!(guest.driver.used().len(), BATCH_REQUESTS);
    guest.driver.run_all();
    assert_eq!(guest.driver.used().len(), 256 - BATCH_REQUESTS);
}

#[test]
fn data_in_flight_is_bounded_and_the_rest_follows_as_answers_come() {
    let mut guest = Guest::running(ALL);
    let fit = IN_FLIGHT_BYTES_MAX / REQUEST_BYTES_MAX;
    for head in 0..fit as u16 + 4 {
        guest.offer(head, T_OUT, 0, &[(0x10_0000, REQUEST_BYTES_MAX as u32)]);
    }
    let batch = guest.driver.run_all();
    assert_eq!(guest.disk.pending().len(), fit);
    assert!(!batch.sink_full && batch.wants_input, "an answer brings it back");
    guest.disk.answer(3);
    guest.driver.run_all();
    assert_eq!((guest.disk.pending().len(), guest.disk.log().len()), (fit, fit + 1));
    while !guest.disk.pending().is_empty() {
        guest.disk.answer_all();
        guest.driver.run_all();
    }
    assert_eq!(guest.driver.used().len(), fit + 4);
}

#[test]
fn a_full_backend_leaves_the_request_in_the_ring_until_it_is_tried_again() {
    let mut guest = Guest::running(ALL);
    guest.disk.set_capacity(1);
    for head in 0..3 {
        guest.offer(head, T_OUT, u64::from(head), &[(data_at(head), 512)]);
    }
    let batch = guest.driver.run_all();
    assert!(batch.sink_full && !batch.more);
    assert_eq!(lock(&guest.driver.device).save().in_flight, [0], "what was not taken is still the ring's");

    guest.disk.set_capacity(2);
    guest.driver.run_all();
    assert_eq!(guest.disk.pending().len(), 1, "nothing is tried before the word");
    lock(&guest.driver.device).retry();
    assert!(guest.driver.run_all().sink_full);
    assert_eq!(guest.disk.pending().len(), 2);

    // An answer is a word, too.
    guest.disk.answer(0);
    guest.driver.run_all();
    guest.disk.answer_all();
    guest.driver.run_all();
    assert_eq!(guest.driver.used(), [(0, 1), (1, 1), (2, 1)]);
    assert_eq!(guest.disk.log().len(), 3, "each once");
}

#[test]
fn errors_of_the_disk_become_the_specifications_status() {
    let mut guest = Guest::running(ALL);
    let short = Ok(Some(vec![0; 100].into_boxed_slice()));
    let answers = [
        (Err(BlockError::Io(libc::EIO)), 1),
        (Err(BlockError::OutOfRange), 1),
        (Err(BlockError::ReadOnly), 1),
        (Err(BlockError::Unsupported), 2),
        (Ok(None), 1),
        (short, 1),
    ];
    for (head, (result, status)) in answers.into_iter().enumerate() {
        let head = head as u16;
        guest.driver.put(data_at(head), &[7; 512]);
        guest.offer(head, T_IN, 0, &[(data_at(head), 512)]);
        guest.driver.run_all();
        guest.disk.answer_with(0, result);
        guest.driver.run_all();
        assert_eq!(guest.driver.used(), [(head, 0)], "none of the data is good");
        assert_eq!(guest.status_of(head), status);
        assert_eq!(guest.driver.bytes(data_at(head), 512), [7; 512]);
    }
    assert_eq!(guest.counts().disk_errors, 6);
}

#[test]
fn for_a_driver_that_does_not_flush_a_write_is_durable_before_it_is_answered() {
    let mut guest = Guest::running(F_VERSION_1);
    let range = [&8u64.to_le_bytes()[..], &1u32.to_le_bytes(), &[0; 4]].concat();
    for (command, bytes) in [(T_OUT, vec![1; 512]), (T_DISCARD, range.clone()), (T_WRITE_ZEROES, range)] {
        guest.driver.put(data_at(0), &bytes);
        guest.offer_plain(0, command, 0, &[(header_at(0), 16, false), (data_at(0), bytes.len() as u32, false), (status_at(0), 1, true)]);
        guest.driver.run_all();
        guest.disk.answer(0);
        guest.disk.set_capacity(0);
        assert!(guest.driver.run_all().sink_full);
        assert!(guest.driver.used().is_empty());
        assert_eq!(lock(&guest.driver.device).save().in_flight, [0]);
        guest.disk.set_capacity(1);
        lock(&guest.driver.device).retry();
        guest.driver.run_all();
        assert_eq!(guest.disk.pending(), [BlockOp::Flush]);
        guest.disk.answer(0);
        guest.driver.run_all();
        assert_eq!(guest.driver.used(), [(0, 1)]);
    }
    assert_eq!(guest.counts().write_bytes, 512);
}

#[test]
fn a_batch_that_is_asked_to_leave_begins_nothing_and_gives_no_answer() {
    let mut guest = Guest::running(ALL);
    guest.offer(0, T_FLUSH, 0, &[]);
    guest.driver.run_all();
    guest.disk.answer_all();
    guest.offer(1, T_FLUSH, 0, &[]);
    guest.driver.dirty_pages();

    let batch = lock(&guest.driver.device).run_batch(&AtomicBool::new(true));

    assert!(batch.more, "it must come back");
    assert!(guest.driver.dirty_pages().is_empty());
    assert_eq!(lock(&guest.driver.device).save().in_flight, [0], "an answer that the guest has not got is none");
    guest.driver.run_all();
    assert_eq!(guest.driver.used(), [(0, 1)]);
    assert_eq!(guest.disk.pending(), [BlockOp::Flush]);
}

#[test]
fn the_driver_is_interrupted_when_it_wants_to_be_and_kicks_are_wanted_when_the_ring_is_empty() {
    use vm_memory::{Bytes, GuestAddress};
    let mut guest = Guest::running(PLAIN);
    let flags = |guest: &Guest| guest.driver.memory.read_obj::<u16>(GuestAddress(RINGS.used)).unwrap();
    guest.offer(0, T_FLUSH, 0, &[]);
    guest.driver.run_all();
    assert!(!guest.driver.forget_events(), "nothing has been answered");
    assert_eq!(flags(&guest), 0, "kicks wanted");
    guest.disk.answer_all();
    guest.driver.run_all();
    assert!(guest.driver.forget_events());
    assert_eq!(guest.driver.used(), [(0, 1)]);

    guest.driver.memory.write_obj(1u16, GuestAddress(RINGS.available)).unwrap();
    assert_eq!(guest.carry(1, T_IN, 0, &[(data_at(0), 512)]).0, 0);
    assert!(!guest.driver.forget_events(), "the driver polls");
    // A refusal on the spot is an answer like any other.
    guest.driver.memory.write_obj(0u16, GuestAddress(RINGS.available)).unwrap();
    assert_eq!(guest.carry(1, 99, 0, &[]).0, 2);
    assert!(guest.driver.forget_events());
}

#[test]
fn every_byte_the_device_writes_is_in_the_dirty_bitmap() {
    let mut guest = Guest::running(ALL);
    guest.disk.put(0, &pattern(1, 8192));
    let into = HIGH + 0x5000 - 100;
    guest.offer(0, T_IN, 0, &[(into, 1024)]);
    guest.driver.run_all();
    guest.disk.answer_all();
    guest.driver.dirty_pages();
    guest.driver.run_all();
    assert_eq!(guest.driver.dirty_pages(), [RINGS.used, status_at(0) & !4095, HIGH + 0x4000, HIGH + 0x5000]);
    guest.driver.run_all();
    assert!(guest.driver.dirty_pages().is_empty(), "an idle look at the ring writes nothing");
    assert_eq!(guest.driver.used(), [(0, 1025)]);
}

#[test]
fn an_answer_to_nobody_is_ignored() {
    let mut guest = Guest::running(ALL);
    guest.disk.answer_unasked(77);
    guest.driver.run_all();
    assert_eq!(guest.carry(0, T_FLUSH, 0, &[]).0, 0);
    assert!(guest.driver.broken().is_none());
}
