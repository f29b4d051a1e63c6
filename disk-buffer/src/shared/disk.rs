//! A shared disk of this host: its device, its engine, and the part it plays.
//!
//! Lives here: opening it, the guest's requests, and what the parts share. In the files beside it: what a primary does besides ([`super::primary`]), what a standby does ([`super::standby`]). Not here: what is held and when it
//! may go ([`super::hold`]).
//!
//! Locks: `state` before the engine's. Hooks are called with none held.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use types::block::{BlockDone, BlockError, BlockOp, BlockRequest, DiskIndex, REQUESTS_MAX, is_reservation_conflict};
use types::{Epoch, Generation};

use crate::disk::{Opening, Tuning};
use crate::engine::{Answer, Engine, Op, Parts, Way};
use crate::error::{DiskError, Full};
use crate::front::Front;
use crate::full::Fullness;
use crate::hang::{Patience, period};
use crate::hooks::DiskEvent;
use crate::identity::{CopyState, DataId, Identity};
use crate::image::Image;
use crate::options::{Cache, Mode};
use crate::record::{Limits, Room};
use crate::request::{as_op, as_write, change_as_op, check};

use super::hold::{Flushing, Hold, Outcome, Seq, Taken};
use super::kept::Kept;

/// Around the page cache, without a change log.
pub(super) const WAY: Way = Way { direct: true, mark: false };

/// How long dropping a disk waits for what the guest has its answer to, when no other node can carry it out.
const DRAIN_BOUND: Duration = Duration::from_secs(5);

/// The part that the disk plays.
#[derive(Debug)]
pub(super) enum Phase {
    /// Opened; neither.
    Idle,
    /// The guest runs on it, without a standby.
    Alone,
    /// A standby is being brought in; writes go straight through.
    Copying,
    /// Writes are held for epoch 1, which is not committed.
    Recording,
    /// A standby keeps what is committed.
    Protected,
    /// It follows a primary, in this generation.
    Standby(Kept, Generation),
    /// The guest has ended in good order: nothing more is taken, and what it had its answer to is carried out.
    Ending,
    /// The node may not run the guest any more.
    Shut,
}

impl Phase {
    fn name(&self) -> &'static str {
        match self {
            Phase::Idle => "idle",
            Phase::Alone => "a primary's, without a standby",
            Phase::Copying => "about to be shared with a standby",
            Phase::Recording => "about to be protected",
            Phase::Protected => "protected",
            Phase::Standby(..) => "a standby's",
            Phase::Ending => "about to end",
            Phase::Shut => "shut",
        }
    }
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) phase: Phase,
    pub(super) hold: Hold,
    /// The guest's requests in flight.
    guest: usize,
    /// A request was turned away.
    pub(super) starved: bool,
    /// Requests that failed while protected.
    pub(super) parked: Vec<(u64, i32)>,
    /// The role was given up.
    pub(super) given_up: bool,
    /// Links so far: what belongs to an earlier one counts no more.
    pub(super) session: u64,
    /// Requests that the device has not answered.
    pub(super) asked: usize,
    /// Requests that it has answered so far.
    answered: u64,
    /// A file's: the newest epoch that the file has and that is not durable in it.
    pub(super) unsynced: Option<(Generation, Epoch)>,
    /// A file is being made durable for the standby's sake.
    syncing: bool,
    stop: bool,
}

impl State {
    pub(super) fn is_primary(&self) -> bool {
        matches!(self.phase, Phase::Alone | Phase::Copying | Phase::Recording | Phase::Protected)
    }
}

/// What the disk shares with its engine's replies and its watch.
pub(super) struct Inner {
    pub(super) front: Arc<Front>,
    pub(super) index: DiskIndex,
    pub(super) image: Arc<Image>,
    pub(super) limits: Limits,
    hang: Duration,
    pub(super) engine: Engine,
    pub(super) state: Mutex<State>,
    /// Everything that may go has gone, or never will.
    pub(super) changed: Condvar,
    /// The disk is dropped.
    ended: Condvar,
}

/// What is told when no lock is held.
#[derive(Default)]
pub(super) struct Told {
    answers: Vec<BlockDone>,
    events: Vec<DiskEvent>,
    pub(super) room: bool,
}

/// One shared disk.
pub(crate) struct SharedDisk {
    pub(super) inner: Arc<Inner>,
    watch: Option<std::thread::JoinHandle<()>>,
}

impl SharedDisk {
    /// Opens the device, for reading.
    pub(crate) fn open(opening: Opening<'_>) -> Result<SharedDisk, DiskError> {
        let Opening { index, options, serial, tuning: Tuning { limits, hang, unit, faults, .. } } = opening;
        if options.cache == Cache::Buffered {
            return Err(DiskError::SharedBuffered(options.path.clone()));
        }
        if options.fenced.is_none() && !options.read_only {
            return Err(DiskError::SharedUnfenced(options.path.clone()));
        }
        let image = Arc::new(Image::open_shared(&options.path, options.read_only, unit)?);
        let info = image.shown(serial);
        let engine = Engine::start(Parts { disk: index, image: Arc::clone(&image), log: None, faults })?;
        let front = Front::new(index, info, image.path().to_owned())?;
        let state = State {
            phase: Phase::Idle,
            hold: Hold::new(limits),
            guest: 0,
            starved: false,
            parked: Vec::new(),
            given_up: false,
            session: 0,
            asked: 0,
            answered: 0,
            unsynced: None,
            syncing: false,
            stop: false,
        };
        let inner = Arc::new(Inner {
            front,
            index,
            image,
            limits,
            hang,
            engine,
            state: Mutex::new(state),
            changed: Condvar::new(),
            ended: Condvar::new(),
        });
        let watch = {
            let inner = Arc::clone(&inner);
            std::thread::Builder::new()
                .name(format!("{index}-watch"))
                .spawn(move || watch(&inner))
                .map_err(|source| DiskError::Thread { disk: index, source })?
        };
        Ok(SharedDisk { inner, watch: Some(watch) })
    }

    pub(crate) fn front(&self) -> &Arc<Front> {
        &self.inner.front
    }

    pub(crate) fn phase(&self) -> &'static str {
        self.inner.lock().phase.name()
    }

    pub(crate) fn is_device(&self) -> bool {
        self.inner.image.is_device()
    }

    /// [`crate::Disk::identity`].
    pub(crate) fn identity(&self) -> Result<Identity, DiskError> {
        let Inner { front, image, .. } = &*self.inner;
        self.inner.is_whole(&self.inner.lock())?;
        Ok(Identity {
            id: DataId::NONE,
            bytes: front.info.bytes,
            mode: Mode::Shared,
            read_only: front.info.read_only,
            serial: front.info.serial,
            logical_block: front.info.logical_block,
            current: DataId::NONE,
            base: DataId::NONE,
            joining: DataId::NONE,
            state: CopyState::Consistent,
            empty: false,
            overwrite: false,
            content: None,
            changed: Vec::new(),
            device: image.shared_name().cloned(),
            place: None,
        })
    }

    /// [`crate::Disk::submit`].
    pub(crate) fn submit(&self, request: BlockRequest) -> Result<(), Full> {
        let inner = &self.inner;
        let BlockRequest { tag, op } = request;
        if let Err(error) = check(&op, &inner.front.info) {
            inner.front.answer(tag, Err(error));
            return Ok(());
        }
        let mut state = inner.lock();
        if state.guest >= REQUESTS_MAX {
            state.starved = true;
            return Err(Full);
        }
        if !state.is_primary() {
            return Err(Full);
        }
        // A protected guest's requests wait for the standby, which takes over.
        if let Some(errno) = state.hold.failed().filter(|_| !matches!(state.phase, Phase::Protected)) {
            drop(state);
            inner.front.answer(tag, Err(BlockError::Io(errno)));
            return Ok(());
        }
        if let Some(write) = as_write(inner.index, &op) {
            let taken = state.hold.write(write, tag);
            match taken {
                Taken::Full => {
                    state.starved = true;
                    return Err(Full);
                }
                Taken::Held(room) => {
                    drop(state);
                    inner.front.answer(tag, Ok(None));
                    if room == Room::Pressure {
                        inner.front.tell_pressure();
                    }
                    return Ok(());
                }
                Taken::Queued => {
                    state.guest += 1;
                    inner.hand_out(&mut state);
                }
                Taken::Direct => inner.ask_for_guest(&mut state, tag, as_op(op), None),
            }
        } else if let BlockOp::Read { offset, len } = op {
            let view = state.hold.read(offset, u64::from(len));
            if view.is_whole() {
                drop(state);
                let mut bytes = vec![0; len as usize].into_boxed_slice();
                view.apply(&mut bytes);
                inner.front.answer(tag, Ok(Some(bytes)));
                return Ok(());
            }
            inner.ask_for_guest(&mut state, tag, as_op(op), Some(view));
        } else {
            match state.hold.flush(tag) {
                Flushing::Now => inner.ask_for_guest(&mut state, tag, Op::Flush, None),
                Flushing::Waits { ends_epoch } => {
                    state.guest += 1;
                    drop(state);
                    if ends_epoch {
                        inner.front.tell_waiting();
                    }
                }
            }
        }
        Ok(())
    }
}

impl Drop for SharedDisk {
    fn drop(&mut self) {
        let mut state = self.inner.lock();
        let until = Instant::now() + DRAIN_BOUND;
        // What is held for a standby is the standby's; what is nobody else's is not left behind.
        while matches!(state.phase, Phase::Alone) && !state.hold.is_settled() && state.hold.failed().is_none() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                tracing::warn!(disk = %self.inner.index, bytes = state.hold.bytes(), "writes that the guest had not flushed are lost: the device is too slow");
                break;
            }
            state = self.inner.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.stop = true;
        drop(state);
        self.inner.ended.notify_all();
        if let Some(watch) = self.watch.take() {
            // A hook may hold the last reference to what holds the disk: the thread cannot wait for itself.
            if watch.thread().id() != std::thread::current().id() {
                let _ = watch.join();
            }
        }
        self.inner.engine.stop();
    }
}

impl Inner {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics between two changes that belong together.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A write that the guest had its answer to was lost here: no standby can make that good, and none is brought in.
    pub(super) fn is_whole(&self, state: &State) -> Result<(), DiskError> {
        let failed = state.hold.failed().filter(|_| state.is_primary());
        failed.map_or(Ok(()), |errno| {
            Err(DiskError::Failed {
                disk: self.index,
                what: "a write that the guest had its answer to",
                source: io::Error::from_raw_os_error(errno),
            })
        })
    }

    pub(super) fn wrong_phase(&self, operation: &'static str, state: &State) -> DiskError {
        DiskError::Phase { disk: self.index, operation, phase: state.phase.name() }
    }

    /// Gives the device a request, under the state's lock: its order is the guest's.
    fn ask(self: &Arc<Self>, state: &mut State, op: Op, reply: impl FnOnce(&Arc<Inner>, Answer) + Send + 'static) {
        state.asked += 1;
        let inner = Arc::downgrade(self);
        let reply = Box::new(move |answer| {
            if let Some(inner) = inner.upgrade() {
                reply(&inner, answer);
            }
        });
        if let Err(reply) = self.engine.submit(op, WAY, reply) {
            // As the engine answered what it had when it ended; not under the lock, which the answer takes.
            let spawned = std::thread::Builder::new().name(format!("{}-end", self.index)).spawn(move || reply(Err(libc::EIO)));
            if let Err(error) = spawned {
                tracing::error!(disk = %self.index, %error, "a request to a disk whose engine has ended is never answered");
            }
        }
    }

    /// A request whose answer the guest waits for; what `view` has goes over what is read.
    fn ask_for_guest(self: &Arc<Self>, state: &mut State, tag: u64, op: Op, view: Option<super::overlay::View>) {
        state.guest += 1;
        self.ask(state, op, move |inner, answer| {
            let answer = answer.map(|bytes| {
                bytes.map(|mut bytes| {
                    view.iter().for_each(|view| view.apply(&mut bytes));
                    bytes
                })
            });
            inner.guest_done(tag, answer);
        });
    }

    /// Hands out what may go.
    pub(super) fn hand_out(self: &Arc<Self>, state: &mut State) {
        while let Some((seq, write)) = state.hold.next_issue() {
            self.ask(state, change_as_op(write), move |inner, answer| inner.issued(seq, answer));
        }
    }

    /// The device's answer to a write that was held.
    fn issued(self: &Arc<Self>, seq: Seq, answer: Answer) {
        let mut told = Told::default();
        {
            let mut state = self.lock();
            self.answered(&mut state);
            if let Err(errno) = answer
                && self.shut_out(&mut state, errno, &mut told)
            {
                drop(state);
                return self.tell(told);
            }
            let outcome = state.hold.issued(seq, answer.map(drop));
            self.follow(&mut state, outcome, &mut told);
            self.hand_out(&mut state);
            if state.hold.is_settled() || state.hold.failed().is_some() {
                self.changed.notify_all();
            }
        }
        self.tell(told);
    }

    /// The device's answer to a request of the guest.
    fn guest_done(self: &Arc<Self>, tag: u64, answer: Answer) {
        let mut told = Told::default();
        {
            let mut state = self.lock();
            self.answered(&mut state);
            match answer {
                Err(errno) if self.shut_out(&mut state, errno, &mut told) => {}
                Err(errno) if matches!(state.phase, Phase::Protected) => {
                    state.guest -= 1;
                    state.parked.push((tag, errno));
                    self.give_up(&mut state, errno, &mut told);
                }
                answer => {
                    state.guest -= 1;
                    told.answers.push(BlockDone { tag, result: answer.map_err(BlockError::Io) });
                    told.room = state.hold.roomy() && std::mem::take(&mut state.starved);
                }
            }
        }
        self.tell(told);
    }

    fn answered(&self, state: &mut State) {
        state.asked -= 1;
        state.answered += 1;
        if state.asked == 0 {
            self.changed.notify_all();
        }
    }

    /// Whether the device said that this node may write no more. Then it never will: what is held is dropped, and no request is answered any more.
    fn shut_out(&self, state: &mut State, errno: i32, told: &mut Told) -> bool {
        let error = io::Error::from_raw_os_error(errno);
        if !is_reservation_conflict(&error) {
            return false;
        }
        if state.is_primary() || matches!(state.phase, Phase::Ending) {
            state.phase = Phase::Shut;
            state.hold.drop_all();
            self.changed.notify_all();
            // Nor is anything tried again.
            self.engine.give_up_full();
            tracing::error!(disk = %self.index, "the device refuses this node's writes: a newer owner has shut it out");
            told.events.push(DiskEvent::ShutOut { disk: self.index, error: Arc::new(error) });
        }
        true
    }

    /// A protected primary's disk has failed: the node ends its role, once.
    fn give_up(&self, state: &mut State, errno: i32, told: &mut Told) {
        if !std::mem::replace(&mut state.given_up, true) {
            let error = io::Error::from_raw_os_error(errno);
            tracing::error!(disk = %self.index, %error, "the disk failed while a standby can serve; this node gives up its role");
            told.events.push(DiskEvent::GiveUp { disk: self.index, error: Arc::new(error) });
        }
    }

    /// Does what follows from an answer of the device.
    pub(super) fn follow(self: &Arc<Self>, state: &mut State, outcome: Outcome, told: &mut Told) {
        let Outcome { answers, flush, flush_failed, on_device, lost } = outcome;
        state.guest -= answers.len() + flush.len() + flush_failed.len();
        told.answers
            .extend(answers.into_iter().map(|(tag, answer)| BlockDone { tag, result: answer.map(|()| None).map_err(BlockError::Io) }));
        flush_failed.into_iter().for_each(|(tag, errno)| told.failed(tag, errno));
        for tag in flush {
            self.ask_for_guest(state, tag, Op::Flush, None);
        }
        if let (Some((generation, epoch)), Phase::Protected) = (on_device, &state.phase) {
            if self.image.is_device() {
                told.events.push(DiskEvent::Issued { disk: self.index, generation, epoch });
            } else {
                state.unsynced = Some((generation, epoch));
                self.sync(state);
            }
        }
        if let Some(errno) = lost {
            if matches!(state.phase, Phase::Protected) {
                self.give_up(state, errno, told);
            } else {
                let error = io::Error::from_raw_os_error(errno);
                tracing::error!(disk = %self.index, %error, "a write that the guest had its answer to is lost; from here on the guest gets errors of this disk");
            }
        }
        told.room |= state.hold.roomy() && std::mem::take(&mut state.starved);
    }

    /// Has a file made durable up to what it has, one time after the other: the standby keeps an epoch's writes until then. What a device has taken outlives this host, and so does its cache; of a file on a file system that hosts share, this
    /// host may have in its memory where the blocks are (what a direct write to a hole has allocated), and would take it along.
    fn sync(self: &Arc<Self>, state: &mut State) {
        if state.syncing {
            return;
        }
        let Some((generation, epoch)) = state.unsynced.take() else { return };
        state.syncing = true;
        self.ask(state, Op::Flush, move |inner, answer| inner.synced(generation, epoch, answer));
    }

    fn synced(self: &Arc<Self>, generation: Generation, epoch: Epoch, answer: Answer) {
        let mut told = Told::default();
        {
            let mut state = self.lock();
            self.answered(&mut state);
            state.syncing = false;
            match answer {
                Ok(_) if matches!(state.phase, Phase::Protected) => {
                    told.events.push(DiskEvent::Issued { disk: self.index, generation, epoch });
                }
                Ok(_) => {}
                Err(errno) if self.shut_out(&mut state, errno, &mut told) => {}
                Err(errno) => {
                    // The system says it once: the guest's next flush might hear nothing of it.
                    let outcome = state.hold.lose(errno);
                    self.follow(&mut state, outcome, &mut told);
                }
            }
            self.sync(&mut state);
        }
        self.tell(told);
    }

    /// Says what was found out under the lock.
    pub(super) fn tell(&self, told: Told) {
        let Told { answers, events, room } = told;
        for BlockDone { tag, result } in answers {
            self.front.answer(tag, result);
        }
        events.into_iter().for_each(|event| self.front.tell(event));
        if room {
            self.front.tell_room();
        }
    }
}

impl Told {
    /// An answer to a request that had failed.
    pub(super) fn failed(&mut self, tag: u64, errno: i32) {
        self.answers.push(BlockDone { tag, result: Err(BlockError::Io(errno)) });
    }
}

/// Looks at what only time tells. A protected primary whose device hangs gives up its role: as for an error, the standby can serve. A device that is full is so for both hosts: the guest waits for space.
fn watch(disk: &Arc<Inner>) {
    let period = period(disk.hang);
    let mut fullness = Fullness::default();
    let mut patience = Patience::new(disk.hang);
    let mut state = disk.lock();
    while !state.stop {
        let full = disk.engine.full_since().is_some();
        let mut told = Told::default();
        told.events.extend(fullness.look(full, disk.index, disk.image.path(), "give the device more, or make room where it is kept"));
        let hangs = patience.hangs(Instant::now(), (state.asked > 0 && !full).then_some(state.answered));
        if matches!(state.phase, Phase::Protected) && hangs {
            disk.give_up(&mut state, libc::ETIMEDOUT, &mut told);
        }
        if !told.events.is_empty() {
            drop(state);
            disk.tell(told);
            state = disk.lock();
        }
        if state.stop {
            return;
        }
        state = disk.ended.wait_timeout(state, period).unwrap_or_else(PoisonError::into_inner).0;
    }
}
