//! Mirror mode: this host's own copy of a virtual disk, its engine and change log, and the part it plays.
//!
//! Lives here: opening it, the guest's requests on their way in and out, and what the parts share. In it: what a primary does besides ([`primary`]), what a standby does ([`standby`]), the work in the background
//! ([`keeper`]), what only time tells ([`watch`]), the change log's header ([`header`]), the copy to a standby ([`copy`]). Not here: what both modes have ([`crate::disk`], [`crate::front`]).
//!
//! Locks: `state` before the engine's; `log` alone or before neither. Hooks are called with none held.

pub(crate) mod copy;
mod header;
mod keeper;
mod primary;
pub mod standby;
mod watch;

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use types::Epoch;
use types::block::{BlockError, BlockInfo, BlockRequest, DiskIndex, DiskWrite, REQUESTS_MAX};

use crate::changes::file::{LogFile, beside};
use crate::changes::format::{Header, ImageFile};
use crate::disk::{Opening, Tuning, copy_of};
use crate::emptiness::Emptiness;
use crate::engine::{Answer, Engine, Parts, Way};
use crate::error::{DiskError, Full};
use crate::front::Front;
use crate::hooks::DiskEvent;
use crate::identity::{CopyState, DataId, Identity};
use crate::image::Image;
use crate::options::{DiskOptions, Mode};
use crate::record::{Limits, Record, Room};
use crate::regions::RegionSet;
use crate::request::{as_op, as_write, check};
use header::Log;
use standby::Following;

/// How long dropping a disk waits for its threads.
const STOP_BOUND: Duration = Duration::from_secs(2);

/// The part that the disk plays.
#[derive(Debug)]
pub(crate) enum Phase {
    /// Opened; neither.
    Idle,
    /// The guest runs on it, without a standby's copy.
    Alone,
    /// A copy to a standby is under way; these regions were written since they were last handed out.
    Copying(RegionSet),
    /// The last regions of the copy are under way, and everything written is recorded for epoch 1, which is not committed.
    Recording(Record),
    /// A standby holds committed epochs.
    Protected(Record),
    /// It follows a primary.
    Standby(Following),
    /// The node may not run the guest any more.
    Shut,
    /// A standby's copy that failed.
    Failed(Arc<io::Error>),
}

impl Phase {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Phase::Idle => "idle",
            Phase::Alone => "a primary's, without a standby",
            Phase::Copying(_) => "being copied to a standby",
            Phase::Recording(_) => "about to be protected",
            Phase::Protected(_) => "protected",
            Phase::Standby(_) => "a standby's",
            Phase::Shut => "shut",
            Phase::Failed(_) => "failed",
        }
    }
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) phase: Phase,
    /// The guest's requests in flight.
    guest: usize,
    /// A request was turned away.
    pub(crate) starved: bool,
    /// Requests of the guest answered so far.
    answered: u64,
    /// Requests that failed while protected.
    pub(crate) parked: Vec<(u64, i32)>,
    /// The role was given up because of a medium that hangs.
    pub(crate) hung: bool,
    /// Epoch and settling in which a region was last written, since the first epoch.
    pub(crate) last_written: HashMap<u32, (Epoch, u64)>,
    /// Newest epoch that the standby reported durable; perhaps not committed here yet.
    pub(crate) peer_durable: Epoch,
    /// What the keeper has done of it.
    pub(crate) peer_settled: Epoch,
    /// Settlings so far: the keeper's clock.
    pub(crate) ticks: u64,
    /// Activated, and the copy not yet durable.
    pub(crate) unsettled: bool,
    /// Links so far: what belongs to an earlier one counts no more.
    pub(crate) session: u64,
    /// The standby was struck out and no data generation could be begun for it: none is told of this copy, and none joins it, before that is made good.
    pub(crate) outdated: bool,
    /// The role is being changed, header first: the keeper begins nothing.
    pub(crate) turning: bool,
    pub(crate) overwrite: bool,
    /// The last copy that may serve: a standby's whose primary is gone.
    pub(crate) last: bool,
    pub(crate) stop: bool,
}

/// What the disk shares with its engine's replies and its keeper.
pub(crate) struct Inner {
    pub(crate) front: Arc<Front>,
    pub(crate) index: DiskIndex,
    pub(crate) image: Arc<Image>,
    emptiness: Emptiness,
    info: BlockInfo,
    content: Option<u64>,
    pub(crate) limits: Limits,
    pub(crate) settle: Duration,
    pub(crate) hot_ticks: u64,
    hang: Duration,
    full: Duration,
    pub(crate) engine: Engine,
    pub(crate) log: Log,
    pub(crate) state: Mutex<State>,
    /// Something in `state` has changed that somebody may wait for.
    pub(crate) changed: Condvar,
    /// The disk is dropped.
    ended: Condvar,
}

/// This host's copy of one disk.
pub(crate) struct Mirror {
    pub(crate) inner: Arc<Inner>,
    /// The keeper and the watch.
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Mirror {
    /// Opens the image and its change log.
    pub(crate) fn open(opening: Opening<'_>) -> Result<Mirror, DiskError> {
        let Opening { index, options, serial, tuning: Tuning { limits, settle, hot_ticks, hang, full, faults, .. } } = opening;
        let image = Arc::new(Image::open(&options.path, options.read_only, options.cache)?);
        let info = image.shown(serial);
        let (log, content) = if options.read_only { (None, Some(image.digest()?)) } else { (Some(open_log(options, &image)?), None) };
        let engine_log = log.as_ref().map(|(log, set)| (set.clone(), log.fd()));
        let engine = Engine::start(Parts { disk: index, image: Arc::clone(&image), log: engine_log, faults })?;
        let front = Front::new(index, info, image.path().to_owned())?;
        let state = State {
            phase: Phase::Idle,
            guest: 0,
            starved: false,
            answered: 0,
            parked: Vec::new(),
            hung: false,
            last_written: HashMap::new(),
            peer_durable: Epoch::NONE,
            peer_settled: Epoch::NONE,
            ticks: 0,
            unsettled: false,
            session: 0,
            outdated: false,
            turning: false,
            overwrite: options.overwrite,
            last: false,
            stop: false,
        };
        let inner = Arc::new(Inner {
            front,
            index,
            image,
            emptiness: Emptiness::default(),
            info,
            content,
            limits,
            settle,
            hot_ticks,
            hang,
            full,
            engine,
            log: Log::new(log.map(|(log, _)| log)),
            state: Mutex::new(state),
            changed: Condvar::new(),
            ended: Condvar::new(),
        });
        let spawn = |name: &str, body: fn(&Arc<Inner>)| {
            let inner = Arc::clone(&inner);
            let thread = std::thread::Builder::new().name(format!("{index}-{name}")).spawn(move || body(&inner));
            thread.map_err(|source| DiskError::Thread { disk: index, source })
        };
        // Made before there are threads: dropped, it ends those that there are.
        let mut mirror = Mirror { inner: Arc::clone(&inner), threads: Vec::new() };
        mirror.threads.push(spawn("keep", keeper::run)?);
        mirror.threads.push(spawn("watch", watch::run)?);
        Ok(mirror)
    }

    pub(crate) fn phase(&self) -> &'static str {
        self.inner.lock().phase.name()
    }

    /// [`crate::Disk::identity`].
    pub(crate) fn identity(&self) -> Result<Identity, DiskError> {
        let inner = &self.inner;
        if inner.lock().outdated {
            inner.update_header(|header| header.current = DataId::random())?;
            inner.lock().outdated = false;
        }
        let overwrite = inner.lock().overwrite;
        let header = inner.header()?;
        let unknown = header.is_none_or(|header| header.id == DataId::NONE);
        let header = header.unwrap_or(fresh(inner.info.bytes));
        Ok(Identity {
            id: header.id,
            bytes: inner.info.bytes,
            mode: Mode::Mirror,
            read_only: inner.info.read_only,
            serial: inner.info.serial,
            logical_block: inner.info.logical_block,
            current: header.current,
            base: header.base,
            joining: header.joining,
            state: header.state,
            // Of no account where it may be overwritten anyway, and at a primary, which has begun a line of data of its own.
            empty: unknown && !inner.info.read_only && !overwrite && inner.emptiness.ask(inner.index, &inner.image)?,
            overwrite,
            content: inner.content,
            changed: inner.engine.marked().map(|set| set.runs()).unwrap_or_default(),
            device: inner.image.medium().name.clone(),
            place: inner.image.medium().place,
        })
    }

    /// [`crate::Disk::submit`].
    pub(crate) fn submit(&self, request: BlockRequest) -> Result<(), Full> {
        let inner = &self.inner;
        let BlockRequest { tag, op } = request;
        if let Err(error) = check(&op, &inner.info) {
            inner.front.answer(tag, Err(error));
            return Ok(());
        }
        let mut pressure = false;
        let ended = {
            let mut state = inner.lock();
            if state.guest >= REQUESTS_MAX {
                state.starved = true;
                return Err(Full);
            }
            if let Some(write) = as_write(inner.index, &op) {
                pressure = state.take_write(write)?;
            } else if !state.is_primary() {
                return Err(Full);
            }
            state.guest += 1;
            let reply = {
                let inner = Arc::downgrade(inner);
                Box::new(move |answer| {
                    if let Some(inner) = inner.upgrade() {
                        inner.guest_done(tag, answer);
                    }
                })
            };
            // Under the state's lock, so that the engine's order is the record's.
            inner.engine.submit(as_op(op), Way { direct: true, mark: true }, reply).err()
        };
        if let Some(reply) = ended {
            // As the engine answered what it had when it ended; not under the lock, which the answer takes.
            reply(Err(libc::EIO));
        }
        if pressure {
            inner.front.tell_pressure();
        }
        Ok(())
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.inner.lock().stop = true;
        self.inner.changed.notify_all();
        self.inner.ended.notify_all();
        let until = std::time::Instant::now() + STOP_BOUND;
        for thread in self.threads.drain(..) {
            // A hook may hold the last reference to what holds the disk: the watch cannot wait for itself. And the keeper may wait for a medium that hangs: it is left to that.
            while thread.thread().id() != std::thread::current().id() && !thread.is_finished() && std::time::Instant::now() < until {
                std::thread::park_timeout(Duration::from_millis(1));
            }
            if thread.is_finished() {
                let _ = thread.join();
            }
        }
        self.inner.engine.stop();
    }
}

impl State {
    pub(crate) fn is_primary(&self) -> bool {
        matches!(self.phase, Phase::Alone | Phase::Copying(_) | Phase::Recording(_) | Phase::Protected(_))
    }

    /// Remembers a write of the guest as its phase wants it; whether the epoch should end.
    fn take_write(&mut self, write: DiskWrite) -> Result<bool, Full> {
        let touched = RegionSet::touched(write.offset, write.len());
        match &mut self.phase {
            Phase::Alone => Ok(false),
            Phase::Copying(dirty) => {
                touched.for_each(|region| {
                    dirty.insert(region);
                });
                Ok(false)
            }
            Phase::Recording(record) | Phase::Protected(record) => {
                let epoch = record.open_epoch();
                let room = record.push(write);
                if room == Room::None {
                    self.starved = true;
                    return Err(Full);
                }
                let ticks = self.ticks;
                touched.for_each(|region| {
                    self.last_written.insert(region, (epoch, ticks));
                });
                Ok(room == Room::Pressure)
            }
            Phase::Idle | Phase::Standby(_) | Phase::Shut | Phase::Failed(_) => Err(Full),
        }
    }
}

impl Inner {
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics between two changes that belong together.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn info_bytes(&self) -> u64 {
        self.info.bytes
    }

    pub(crate) fn wrong_phase(&self, operation: &'static str, state: &State) -> DiskError {
        match &state.phase {
            Phase::Failed(error) => DiskError::Failed { disk: self.index, what: "its medium", source: copy_of(error) },
            phase => DiskError::Phase { disk: self.index, operation, phase: phase.name() },
        }
    }

    /// The engine's answer to a request of the guest.
    fn guest_done(&self, tag: u64, answer: Answer) {
        let room = {
            let mut state = self.lock();
            state.guest -= 1;
            state.answered += 1;
            if let (Err(errno), Phase::Protected(_)) = (&answer, &state.phase) {
                state.parked.push((tag, *errno));
                let first = state.parked.len() == 1;
                drop(state);
                let error = io::Error::from_raw_os_error(*errno);
                tracing::error!(disk = %self.index, %error, "the disk failed while a standby can serve; this node gives up its role");
                if first {
                    self.front.tell(DiskEvent::GiveUp { disk: self.index, error: Arc::new(error) });
                }
                return;
            }
            let room = match &state.phase {
                Phase::Recording(record) | Phase::Protected(record) => record.roomy(),
                _ => true,
            };
            room && std::mem::take(&mut state.starved)
        };
        self.front.answer(tag, answer.map_err(BlockError::Io));
        if room {
            self.front.tell_room();
        }
    }
}

fn fresh(bytes: u64) -> Header {
    Header {
        id: DataId::NONE,
        bytes,
        current: DataId::NONE,
        base: DataId::NONE,
        joining: DataId::NONE,
        sequence: 1,
        state: CopyState::Consistent,
        image: ImageFile::default(),
    }
}

fn open_log(options: &DiskOptions, image: &Image) -> Result<(LogFile, RegionSet), DiskError> {
    let path = match &options.log {
        Some(path) => path.clone(),
        None if image.is_device() => return Err(DiskError::LogNeeded(image.path().to_owned())),
        // By the image's real name, so that two links to one image cannot have two logs.
        None => beside(image.path()),
    };
    let file = image.identity();
    match LogFile::open(&path, image.bytes())? {
        Some((log, _)) if !log.header().image.may_be(file) && !options.overwrite => {
            Err(DiskError::ImageReplaced { log: path.into(), image: image.path().into() })
        }
        Some(known) if known.0.header().image.may_be(file) => Ok(known),
        _ => {
            let set = RegionSet::new(image.bytes());
            Ok((LogFile::create(&path, Header { image: file, ..fresh(image.bytes()) }, &set)?, set))
        }
    }
}

#[cfg(test)]
mod tests;
