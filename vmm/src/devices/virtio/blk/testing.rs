//! A disk for tests: content in memory, answers when, in what order and with what result the test says, and a driver that makes requests.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex};

use types::block::{BlockDone, BlockError, BlockInfo, BlockOp, BlockRequest, DiskIndex};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::BlkDevice;
use crate::devices::lock;
use crate::devices::virtio::testing::*;
use crate::devices::virtio::{F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1};
use crate::{BlockBackend, GuestMemory, SinkFull};

pub(crate) use crate::devices::virtio::testing::{HIGH, RINGS, copy_of, memory};

pub(crate) const FLUSH: u64 = 1 << 9;
pub(crate) const PLAIN: u64 = F_VERSION_1 | FLUSH;
pub(crate) const ALL: u64 = PLAIN | F_EVENT_IDX | F_INDIRECT_DESC;

pub(crate) const T_IN: u32 = 0;
pub(crate) const T_OUT: u32 = 1;
pub(crate) const T_FLUSH: u32 = 4;
pub(crate) const T_GET_ID: u32 = 8;
pub(crate) const T_DISCARD: u32 = 11;
pub(crate) const T_WRITE_ZEROES: u32 = 13;

pub(crate) const DISK_BYTES: u64 = 4 << 20;

pub(crate) const INFO: BlockInfo =
    BlockInfo { bytes: DISK_BYTES, read_only: false, logical_block: 512, physical_block: 4096, serial: *b"lockstep-disk-000001" };

#[derive(Default)]
struct Inner {
    content: Vec<u8>,
    pending: Vec<BlockRequest>,
    /// Everything ever submitted, in order.
    log: Vec<BlockOp>,
    done: Vec<BlockDone>,
    capacity: usize,
}

/// The backend.
pub(crate) struct TestDisk {
    info: BlockInfo,
    inner: Mutex<Inner>,
    event: EventFd,
}

impl TestDisk {
    pub(crate) fn new(info: BlockInfo) -> Arc<TestDisk> {
        // A disk said to be larger is one that no test writes to.
        let content = vec![0; info.bytes.min(DISK_BYTES) as usize];
        let inner = Inner { content, capacity: usize::MAX, ..Inner::default() };
        Arc::new(TestDisk { info, inner: Mutex::new(inner), event: EventFd::new(EFD_NONBLOCK).unwrap() })
    }

    /// Another host's copy: the same content, nothing in flight.
    pub(crate) fn mirror(&self) -> Arc<TestDisk> {
        let copy = TestDisk::new(self.info);
        lock(&copy.inner).content = lock(&self.inner).content.clone();
        copy
    }

    pub(crate) fn set_capacity(&self, capacity: usize) {
        lock(&self.inner).capacity = capacity;
    }

    pub(crate) fn pending(&self) -> Vec<BlockOp> {
        lock(&self.inner).pending.iter().map(|request| request.op.clone()).collect()
    }

    pub(crate) fn log(&self) -> Vec<BlockOp> {
        lock(&self.inner).log.clone()
    }

    pub(crate) fn content(&self, offset: u64, length: usize) -> Vec<u8> {
        lock(&self.inner).content[offset as usize..][..length].to_vec()
    }

    pub(crate) fn put(&self, offset: u64, bytes: &[u8]) {
        lock(&self.inner).content[offset as usize..][..bytes.len()].copy_from_slice(bytes);
    }

    /// Carries out the pending request at `index` without answering it: a write that reached the medium although nobody was told.
    pub(crate) fn carry_out(&self, index: usize) {
        let mut inner = lock(&self.inner);
        let op = inner.pending[index].op.clone();
        perform(&mut inner.content, &op);
    }

    /// Carries out and answers the pending request at `index`.
    pub(crate) fn answer(&self, index: usize) {
        let mut inner = lock(&self.inner);
        let request = inner.pending.remove(index);
        let data = perform(&mut inner.content, &request.op);
        inner.done.push(BlockDone { tag: request.tag, result: Ok(data) });
        self.event.write(1).unwrap();
    }

    pub(crate) fn answer_with(&self, index: usize, result: Result<Option<Box<[u8]>>, BlockError>) {
        let mut inner = lock(&self.inner);
        let tag = inner.pending.remove(index).tag;
        inner.done.push(BlockDone { tag, result });
        self.event.write(1).unwrap();
    }

    pub(crate) fn answer_all(&self) {
        while !self.pending().is_empty() {
            self.answer(0);
        }
    }

    /// An answer that nobody asked for.
    pub(crate) fn answer_unasked(&self, tag: u64) {
        lock(&self.inner).done.push(BlockDone { tag, result: Ok(None) });
        self.event.write(1).unwrap();
    }
}

fn perform(content: &mut [u8], op: &BlockOp) -> Option<Box<[u8]>> {
    match op {
        BlockOp::Read { offset, len } => return Some(content[*offset as usize..][..*len as usize].into()),
        BlockOp::Write { offset, data } => content[*offset as usize..][..data.len()].copy_from_slice(data),
        BlockOp::WriteZeroes { offset, len, .. } => content[*offset as usize..][..*len as usize].fill(0),
        BlockOp::Discard { .. } | BlockOp::Flush => {}
    }
    None
}

impl BlockBackend for TestDisk {
    fn info(&self) -> BlockInfo {
        self.info
    }

    fn submit(&self, request: BlockRequest) -> Result<(), SinkFull> {
        let mut inner = lock(&self.inner);
        if inner.pending.len() >= inner.capacity {
            return Err(SinkFull);
        }
        assert!(inner.pending.iter().chain(&[]).all(|other| other.tag != request.tag), "a tag used twice");
        let range = match &request.op {
            BlockOp::Read { offset, len } => (*offset, u64::from(*len)),
            BlockOp::Write { offset, data } => (*offset, data.len() as u64),
            BlockOp::Discard { offset, len } | BlockOp::WriteZeroes { offset, len, .. } => (*offset, *len),
            BlockOp::Flush => (0, 512),
        };
        assert!(range.0 % 512 == 0 && range.1 % 512 == 0 && range.1 > 0 && range.0 + range.1 <= self.info.bytes, "{:?}", request.op);
        assert!(!self.info.read_only || matches!(request.op, BlockOp::Read { .. } | BlockOp::Flush), "{:?}", request.op);
        inner.log.push(request.op.clone());
        inner.pending.push(request);
        Ok(())
    }

    fn take_done(&self, into: &mut Vec<BlockDone>) {
        let _ = self.event.read();
        into.append(&mut lock(&self.inner).done);
    }

    fn event(&self) -> RawFd {
        self.event.as_raw_fd()
    }
}

/// A guest with one disk.
pub(crate) struct Guest {
    pub(crate) driver: Driver<BlkDevice>,
    pub(crate) disk: Arc<TestDisk>,
}

/// Where descriptor `n`'s request keeps its header, status and indirect table; its data is wherever the test wants it.
pub(crate) fn header_at(head: u16) -> u64 {
    0x2_0000 + 0x40 * u64::from(head)
}

pub(crate) fn status_at(head: u16) -> u64 {
    header_at(head) + 0x20
}

pub(crate) fn table_at(head: u16) -> u64 {
    0x4_0000 + 0x400 * u64::from(head)
}

/// Room for data that no two requests of the tests share: 4 KiB per head.
pub(crate) fn data_at(head: u16) -> u64 {
    0x10_0000 + 0x1000 * u64::from(head)
}

impl Guest {
    pub(crate) fn new(info: BlockInfo) -> Guest {
        Guest::over(memory(), TestDisk::new(info))
    }

    /// A disk at reset over memory that has a history.
    pub(crate) fn over(memory: GuestMemory, disk: Arc<TestDisk>) -> Guest {
        let device = BlkDevice::new(DiskIndex(2), memory.clone(), disk.clone()).unwrap();
        Guest { driver: Driver::new(memory, device), disk }
    }

    pub(crate) fn running(features: u64) -> Guest {
        let mut guest = Guest::new(INFO);
        guest.driver.start(features);
        guest
    }

    /// The machine that takes over: the same memory, the saved state, another disk.
    pub(crate) fn taken_over(&self, disk: Arc<TestDisk>) -> Guest {
        let state = lock(&self.driver.device).save();
        let other = Guest::over(copy_of(&self.driver.memory), disk);
        lock(&other.driver.device).restore(&state).unwrap();
        lock(&other.driver.device).activate();
        other
    }

    pub(crate) fn header(&self, head: u16, command: u32, sector: u64) {
        let bytes = [&command.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
        self.driver.put(header_at(head), &bytes);
        self.driver.put(status_at(head), &[0xee]);
    }

    /// Offers a request of one descriptor, `head`, with the rest in an indirect table.
    pub(crate) fn offer(&self, head: u16, command: u32, sector: u64, data: &[(u64, u32)]) {
        self.header(head, command, sector);
        let device_writes = matches!(command, T_IN | T_GET_ID);
        let mut buffers = vec![(header_at(head), 16, false)];
        buffers.extend(data.iter().map(|&(address, length)| (address, length, device_writes)));
        buffers.push((status_at(head), 1, true));
        self.driver.set_chain_at(table_at(head), 0, &buffers);
        self.driver.set_descriptor(head, table_at(head), 16 * buffers.len() as u32, INDIRECT, 0);
        self.driver.make_available(head);
    }

    /// Offers a request whose chain lies in the ring's own descriptors.
    pub(crate) fn offer_plain(&self, head: u16, command: u32, sector: u64, buffers: &[(u64, u32, bool)]) {
        self.header(head, command, sector);
        self.driver.set_chain(head, buffers);
        self.driver.make_available(head);
    }

    pub(crate) fn status_of(&self, head: u16) -> u8 {
        self.driver.bytes(status_at(head), 1)[0]
    }

    /// Carries one request through, answered at once, and returns its status and the length in the used ring.
    pub(crate) fn carry(&mut self, head: u16, command: u32, sector: u64, data: &[(u64, u32)]) -> (u8, u32) {
        self.offer(head, command, sector, data);
        self.driver.run_all();
        self.disk.answer_all();
        self.driver.run_all();
        let used = self.driver.used();
        assert_eq!(used.len(), 1, "one request, one answer: {used:?}");
        assert_eq!(used[0].0, head);
        (self.status_of(head), used[0].1)
    }

    pub(crate) fn counts(&self) -> super::BlkCounts {
        lock(&self.driver.device).metrics().counts()
    }
}

/// Bytes that tell where they are from.
pub(crate) fn pattern(seed: u64, length: usize) -> Vec<u8> {
    (0..length as u64).map(|at| (at.wrapping_mul(0x9e37_79b9).wrapping_add(seed * 0x1_0001) >> 7) as u8).collect()
}
