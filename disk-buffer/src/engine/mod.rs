//! Carries out requests on one image: an io_uring thread behind a queue that keeps the order that matters.
//!
//! Lives here: the face that the disk uses. In it: what may go when ([`queue`], pure), one request from its first system call to its last ([`step`]), those that a full medium holds up ([`full`]), the change log's updates ([`update`]) and the thread
//! ([`worker`]). Not here: bounds on how much is submitted (the callers': guest, epochs, copy), roles.
//!
//! Order: requests that overlap are carried out as submitted; a flush is answered when everything that was submitted before it has been carried out and is durable; a write whose regions are not
//! durably marked in the change log waits for that.

pub(crate) mod buffer;
pub mod faults;
mod full;
pub mod queue;
mod step;
mod update;
mod worker;

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};
use types::block::DiskIndex;

use crate::changes::Marks;
use crate::error::DiskError;
use crate::image::{DIRECT_ALIGN_MAX, Image};
use crate::regions::RegionSet;
use faults::Faults;
use queue::{Access, Id, Queue};

/// How long dropping an engine waits for what is in flight: a disk that hangs must not keep the process.
const STOP_BOUND: Duration = Duration::from_secs(2);

/// What is asked of the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Bytes.
    Read {
        /// First byte.
        offset: u64,
        /// How many.
        len: u32,
    },
    /// Bytes.
    Write {
        /// First byte.
        offset: u64,
        /// Which.
        data: Arc<[u8]>,
    },
    /// Zeros; the space may be given back if `unmap`.
    Zero {
        /// First byte.
        offset: u64,
        /// How many.
        len: u64,
        /// Give the space back.
        unmap: bool,
    },
    /// Zeros and the space back, if the medium can; else nothing.
    Discard {
        /// First byte.
        offset: u64,
        /// How many.
        len: u64,
    },
    /// Everything before is carried out and durable.
    Flush,
    /// Everything before is carried out.
    Barrier,
}

impl Op {
    fn access(&self) -> Access {
        match self {
            Op::Read { offset, len } => Access::Read(*offset..offset + u64::from(*len)),
            Op::Write { offset, data } => Access::Write(*offset..offset + data.len() as u64),
            Op::Zero { offset, len, .. } | Op::Discard { offset, len } => Access::Write(*offset..offset + len),
            Op::Flush | Op::Barrier => Access::Barrier,
        }
    }

    fn written(&self) -> Option<Range<u64>> {
        match self.access() {
            Access::Write(range) => Some(range),
            Access::Read(_) | Access::Barrier => None,
        }
    }
}

/// The answer: for a read its bytes; else the system's error number.
pub type Answer = Result<Option<Box<[u8]>>, i32>;

/// Called once with the answer, on the engine's thread, without a lock of the engine's.
pub type Reply = Box<dyn FnOnce(Answer) + Send>;

/// How a request goes about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// Around the page cache where its alignment allows.
    pub direct: bool,
    /// Its regions must be durably marked before it is made.
    pub mark: bool,
}

struct Job {
    op: Op,
    direct: bool,
    reply: Reply,
}

/// What is shared with the thread.
struct Core {
    queue: Queue,
    waiting: HashMap<Id, Job>,
    marks: Option<Marks>,
    /// Jobs that will not be carried out because the change log failed.
    refused: Vec<(Job, i32)>,
    log_failed: Option<i32>,
    /// An update of the change log is under way.
    updating: bool,
    /// Calls for the change log's updates that were answered so far.
    log_answers: u64,
    /// Since when requests have been held for want of space.
    full_since: Option<Instant>,
    /// Those that are held now are to be answered with their error.
    give_up_full: bool,
    /// The thread will look again before it sleeps.
    awake: bool,
    stop: bool,
    /// The thread is gone.
    broken: bool,
}

struct Shared {
    core: Mutex<Core>,
    wake: EventFd,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Core> {
        // Nothing panics between two changes that belong together.
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self, core: &mut Core) {
        if !std::mem::replace(&mut core.awake, true) {
            // Fails only when the counter is full, and then the thread is awake.
            let _ = self.wake.write(1);
        }
    }
}

/// What an engine waits for: each of the two stays the same exactly while nothing comes back for it. Whether the engine's thread hangs in the system's call or the system does not answer is the same to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Awaited {
    /// The request in flight for longest, with the answers that did not finish it: one that is held for want of space is asked again and again, and answered.
    pub request: Option<(Id, u32)>,
    /// The change log's update, by the answers that updates had so far.
    pub update: Option<u64>,
}

/// The engine of one image.
pub struct Engine {
    shared: Arc<Shared>,
    ended: Mutex<Receiver<()>>,
    thread: std::thread::ThreadId,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("in_flight", &self.in_flight()).finish_non_exhaustive()
    }
}

/// What an engine is made of.
pub struct Parts {
    /// Named in messages.
    pub disk: DiskIndex,
    /// What it works on.
    pub image: Arc<Image>,
    /// The marked regions and the log's descriptor (the log outlives the engine), if there is a change log.
    pub log: Option<(RegionSet, std::os::fd::RawFd)>,
    /// Faults to be made, in tests.
    pub faults: Option<Arc<dyn Faults>>,
}

impl Engine {
    /// Starts the thread that submits to io_uring and reaps it.
    ///
    /// # Errors
    /// When there is no io_uring, or no thread.
    pub fn start(parts: Parts) -> Result<Engine, DiskError> {
        let disk = parts.disk;
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).map_err(|error| DiskError::IoUring(error.into()))?;
        let (marks, log) = match parts.log {
            Some((set, fd)) => (Some(Marks::new(set)), Some(fd)),
            None => (None, None),
        };
        let core = Core {
            queue: Queue::new(DIRECT_ALIGN_MAX),
            waiting: HashMap::new(),
            marks,
            refused: Vec::new(),
            log_failed: None,
            updating: false,
            log_answers: 0,
            full_since: None,
            give_up_full: false,
            awake: true,
            stop: false,
            broken: false,
        };
        let shared = Arc::new(Shared { core: Mutex::new(core), wake });
        let (end, ended) = sync_channel(1);
        let worker = worker::Worker::new(Arc::clone(&shared), parts.image, log, parts.faults).map_err(DiskError::IoUring)?;
        let body = move || {
            worker.run();
            let _: Result<(), _> = SyncSender::send(&end, ());
        };
        let thread =
            std::thread::Builder::new().name(format!("{disk}-io")).spawn(body).map_err(|source| DiskError::Thread { disk, source })?;
        Ok(Engine { shared, ended: Mutex::new(ended), thread: thread.thread().id() })
    }

    /// Submits a request; `reply` gets the answer, later, on the engine's thread. Never blocks. The callers bound how much they submit.
    ///
    /// # Errors
    /// The reply itself, when the engine has ended: nothing will be answered any more.
    pub fn submit(&self, op: Op, way: Way, reply: Reply) -> Result<(), Reply> {
        let mut core = self.shared.lock();
        if core.broken {
            return Err(reply);
        }
        let job = Job { op, direct: way.direct, reply };
        let refused = core.log_failed.filter(|_| way.mark);
        if let (Some(errno), Some(_)) = (refused, job.op.written()) {
            core.refused.push((job, errno));
        } else {
            let range = job.op.written().filter(|_| way.mark);
            let marked_by = match (range, core.marks.as_mut()) {
                (Some(range), Some(marks)) => marks.mark(range.start, range.end - range.start),
                _ => None,
            };
            let id = core.queue.submit(job.op.access(), marked_by);
            core.waiting.insert(id, job);
        }
        self.shared.wake(&mut core);
        Ok(())
    }

    /// Submits a request and waits for its answer.
    ///
    /// # Errors
    /// The system's answer; ETIMEDOUT when it did not come within `bound` (the request stays in flight).
    pub fn call(&self, op: Op, way: Way, bound: Duration) -> io::Result<Option<Box<[u8]>>> {
        let (answer, wait) = sync_channel(1);
        // An engine that has ended gives the reply back: dropped, it hangs up.
        drop(self.submit(op, way, Box::new(move |result| drop(answer.send(result)))));
        match wait.recv_timeout(bound) {
            Ok(result) => result.map_err(io::Error::from_raw_os_error),
            Err(RecvTimeoutError::Timeout) => Err(io::Error::from_raw_os_error(libc::ETIMEDOUT)),
            Err(RecvTimeoutError::Disconnected) => Err(io::Error::from_raw_os_error(libc::EIO)),
        }
    }

    /// Marks regions in the change log and returns when that is durable.
    ///
    /// # Errors
    /// As [`Engine::call`].
    pub fn mark(&self, set: &RegionSet, bound: Duration) -> io::Result<()> {
        let (answer, wait) = sync_channel(1);
        {
            let mut core = self.shared.lock();
            if core.broken {
                return Err(io::Error::from_raw_os_error(libc::EIO));
            }
            if let Some(errno) = core.log_failed {
                return Err(io::Error::from_raw_os_error(errno));
            }
            let Some(update) = core.marks.as_mut().and_then(|marks| marks.mark_all(set)) else { return Ok(()) };
            // An empty range overlaps nothing: it waits for the log alone.
            let id = core.queue.submit(Access::Read(0..0), Some(update));
            core.waiting.insert(id, Job { op: Op::Barrier, direct: false, reply: Box::new(move |result| drop(answer.send(result))) });
            self.shared.wake(&mut core);
        }
        match wait.recv_timeout(bound) {
            Ok(result) => result.map(drop).map_err(io::Error::from_raw_os_error),
            Err(RecvTimeoutError::Timeout) => Err(io::Error::from_raw_os_error(libc::ETIMEDOUT)),
            Err(RecvTimeoutError::Disconnected) => Err(io::Error::from_raw_os_error(libc::EIO)),
        }
    }

    /// Gets its answer when every region marked so far is durably so; `None` when that is the case already. Does no I/O, never blocks. An engine that has ended hangs up.
    #[must_use]
    pub fn marking(&self) -> Option<Receiver<Answer>> {
        let (answer, wait) = sync_channel(1);
        let mut core = self.shared.lock();
        let update = core.marks.as_ref()?.pending();
        if core.broken {
            return Some(wait);
        }
        if let Some(errno) = core.log_failed {
            // Whatever was written since was refused here, with its region marked or not.
            let _: Result<(), _> = answer.send(Err(errno));
            return Some(wait);
        }
        // As in `mark`.
        let id = core.queue.submit(Access::Read(0..0), Some(update?));
        core.waiting.insert(id, Job { op: Op::Barrier, direct: false, reply: Box::new(move |result| drop(answer.send(result))) });
        self.shared.wake(&mut core);
        Some(wait)
    }

    /// Clears those marked regions for which `same` says that both copies hold the same, durably, and no write is under way; in the file some time later. Returns how many are left.
    pub fn clear_marks(&self, mut same: impl FnMut(u32) -> bool) -> u32 {
        let mut core = self.shared.lock();
        let Some(marks) = core.marks.as_mut() else { return 0 };
        let clear: Vec<u32> = marks.set().iter().filter(|region| same(*region)).collect();
        clear.iter().for_each(|region| marks.clear(*region));
        let left = marks.set().count();
        if !clear.is_empty() {
            self.shared.wake(&mut core);
        }
        left
    }

    /// The marked regions.
    #[must_use]
    pub fn marked(&self) -> Option<RegionSet> {
        self.shared.lock().marks.as_ref().map(|marks| marks.set().clone())
    }

    /// Since when requests have been held because the medium is full; `None`: none is.
    #[must_use]
    pub fn full_since(&self) -> Option<Instant> {
        self.shared.lock().full_since
    }

    /// Has the requests that are held because the medium is full answered with that error.
    pub fn give_up_full(&self) {
        let mut core = self.shared.lock();
        core.give_up_full = true;
        self.shared.wake(&mut core);
    }

    /// What is waited for now.
    #[must_use]
    pub fn awaited(&self) -> Awaited {
        let core = self.shared.lock();
        Awaited { request: core.queue.oldest(), update: core.updating.then_some(core.log_answers) }
    }

    /// Requests in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.shared.lock().queue.len()
    }
}

impl Engine {
    /// Has the thread end when everything in flight is done, and waits for that, within a bound. Harmless a second time.
    pub fn stop(&self) {
        {
            let mut core = self.shared.lock();
            core.stop = true;
            self.shared.wake(&mut core);
        }
        // A reply may hold the last reference to what holds the engine: the thread cannot wait for itself.
        if std::thread::current().id() != self.thread {
            let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner).recv_timeout(STOP_BOUND);
            if ended == Err(RecvTimeoutError::Timeout) {
                tracing::warn!("requests to the disk are still in flight; they are left to the kernel");
            }
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop();
    }
}
