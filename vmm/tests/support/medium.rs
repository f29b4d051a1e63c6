//! A disk in memory with a thread of its own that answers in random order, and can be told to hold everything back.

use std::{
    os::fd::{AsRawFd, RawFd},
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread::JoinHandle,
};

use types::block::{BlockDone, BlockInfo, BlockOp, BlockRequest};
use vmm::{BlockBackend, SinkFull};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Requests that it takes at once: fewer than the guest's, so that the device has to wait for room.
const CAPACITY: usize = 12;

#[derive(Default)]
struct Inner {
    content: Vec<u8>,
    pending: Vec<BlockRequest>,
    done: Vec<BlockDone>,
    carried_out: u64,
    held: bool,
    ending: bool,
    random: u64,
}

/// The disk.
pub struct Medium {
    info: BlockInfo,
    inner: Mutex<Inner>,
    changed: Condvar,
    event: EventFd,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Medium {
    /// A disk with this content.
    pub fn new(content: Vec<u8>, seed: u64) -> Arc<Medium> {
        let bytes = content.len() as u64;
        let info =
            BlockInfo { bytes, read_only: false, logical_block: 512, physical_block: 4096, serial: *b"medium\0\0\0\0\0\0\0\0\0\0\0\0\0\0" };
        let inner = Inner { content, random: seed, ..Inner::default() };
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        let medium = Arc::new(Medium { info, inner: Mutex::new(inner), changed: Condvar::new(), event, thread: Mutex::new(None) });
        let serving = Arc::downgrade(&medium);
        *medium.thread.lock().unwrap() = Some(std::thread::spawn(move || while serving.upgrade().is_some_and(|medium| medium.serve()) {}));
        medium
    }

    /// Nothing is answered while held.
    pub fn hold(&self, held: bool) {
        self.lock().held = held;
        self.changed.notify_all();
    }

    /// Waits until so many requests are held.
    pub fn wait_for_pending(&self, count: usize) {
        let inner = self.lock();
        let (_inner, result) =
            self.changed.wait_timeout_while(inner, std::time::Duration::from_secs(20), |inner| inner.pending.len() < count).unwrap();
        assert!(!result.timed_out(), "the guest has not {count} requests in flight");
    }

    /// What another host's copy would hold: of the requests in flight about half have reached it.
    pub fn copy_torn(&self) -> Vec<u8> {
        let inner = self.lock();
        let mut content = inner.content.clone();
        for request in inner.pending.iter().filter(|request| request.tag % 2 == 0) {
            perform(&mut content, &request.op);
        }
        content
    }

    /// Requests carried out so far.
    pub fn carried_out(&self) -> u64 {
        self.lock().carried_out
    }

    /// Ends the thread; what is pending is never answered.
    pub fn end(&self) {
        self.lock().ending = true;
        self.changed.notify_all();
        if let Some(thread) = self.thread.lock().unwrap().take() {
            thread.join().unwrap();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    fn serve(&self) -> bool {
        let mut inner = self.changed.wait_while(self.lock(), |inner| !inner.ending && (inner.held || inner.pending.is_empty())).unwrap();
        if inner.ending {
            return false;
        }
        inner.random = inner.random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        let index = (inner.random >> 33) as usize % inner.pending.len();
        let request = inner.pending.swap_remove(index);
        let data = perform(&mut inner.content, &request.op);
        inner.carried_out += 1;
        inner.done.push(BlockDone { tag: request.tag, result: Ok(data) });
        self.event.write(1).unwrap();
        true
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

impl BlockBackend for Medium {
    fn info(&self) -> BlockInfo {
        self.info
    }

    fn submit(&self, request: BlockRequest) -> Result<(), SinkFull> {
        let mut inner = self.lock();
        if inner.pending.len() >= CAPACITY {
            return Err(SinkFull);
        }
        inner.pending.push(request);
        self.changed.notify_all();
        Ok(())
    }

    fn take_done(&self, into: &mut Vec<BlockDone>) {
        let _ = self.event.read();
        into.append(&mut self.lock().done);
    }

    fn event(&self) -> RawFd {
        self.event.as_raw_fd()
    }
}
