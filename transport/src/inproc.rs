//! A link inside one process, over memory and channels, with faults on demand: for tests of the shells and for simulation. The same
//! contract as [`crate::tcp`], checked by the same conformance tests. Not here: randomness or seeds; the caller decides which fault when.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use std::collections::VecDeque;

use crate::book::SlotBook;
use crate::error::{GoneCause, TransportError};
use crate::link::{
    ControlReceiver, ControlSender, DataReceiver, DataSender, Geometry, MAX_CONTROL_BYTES, Piece, PrimaryPending, RegionId, SlotId,
    StandbyPending,
};
use crate::region::Region;
use crate::staging::{CreditLine, Slot, Staging};

/// Control messages that wait at most: a receiver that is this far behind has stopped, and a TCP link would time out too.
const MAX_WAITING_MESSAGES: usize = 4096;

/// Bound on waiting for the other end's half of the data connection.
const OPEN_DATA_BOUND: Duration = Duration::from_secs(5);

/// Which way a control message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the primary to the standby.
    ToStandby,
    /// From the standby to the primary.
    ToPrimary,
}

/// Everything both ends share.
#[derive(Default)]
struct Wire {
    state: Mutex<State>,
    changed: Condvar,
    cut: AtomicBool,
    delay_nanos: AtomicU64,
}

#[derive(Default)]
struct State {
    to_standby: Lane<Vec<u8>>,
    to_primary: Lane<Vec<u8>>,
    /// Ended slots: number and length.
    ends: Lane<(SlotId, u32)>,
    /// Credits on their way to the sender.
    credits: Vec<SlotId>,
    staging: Option<Arc<Staging>>,
    /// Offset of a byte to flip in the next ended slot.
    corrupt: Option<u32>,
    lose_next_end: bool,
    gone: bool,
}

struct Lane<T> {
    queue: VecDeque<(Instant, T)>,
    drop_next: usize,
}

impl<T> Default for Lane<T> {
    fn default() -> Self {
        Lane { queue: VecDeque::new(), drop_next: 0 }
    }
}

impl Wire {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn due(&self) -> Instant {
        Instant::now() + Duration::from_nanos(self.delay_nanos.load(Ordering::Relaxed))
    }

    fn hang_up(&self) {
        self.lock().gone = true;
        self.changed.notify_all();
    }

    fn alive(&self, state: &State) -> Result<(), TransportError> {
        if self.cut.load(Ordering::Relaxed) {
            return Err(TransportError::PeerGone { cause: GoneCause::Reset });
        }
        if state.gone { Err(TransportError::PeerGone { cause: GoneCause::Closed }) } else { Ok(()) }
    }

    /// Waits until `take` yields something, the link ends or the time is over. What arrived before an orderly end is taken first.
    fn wait<T>(&self, timeout: Duration, mut take: impl FnMut(&mut State, Instant) -> Taken<T>) -> Result<Option<T>, TransportError> {
        let deadline = Instant::now() + timeout;
        let mut state = self.lock();
        loop {
            if self.cut.load(Ordering::Relaxed) {
                self.alive(&state)?;
            }
            let now = Instant::now();
            let wake = match take(&mut state, now) {
                Taken::Got(item) => return Ok(Some(item)),
                Taken::NotBefore(due) => due.min(deadline),
                Taken::Nothing => {
                    self.alive(&state)?;
                    deadline
                }
            };
            if now >= deadline {
                return Ok(None);
            }
            state = self.changed.wait_timeout(state, wake.saturating_duration_since(now)).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

enum Taken<T> {
    Got(T),
    NotBefore(Instant),
    Nothing,
}

impl<T> Lane<T> {
    fn take(&mut self, now: Instant) -> Taken<T> {
        match self.queue.front() {
            None => Taken::Nothing,
            Some((due, _)) if *due > now => Taken::NotBefore(*due),
            Some(_) => self.queue.pop_front().map_or(Taken::Nothing, |(_, item)| Taken::Got(item)),
        }
    }
}

/// Breaks the link on demand.
#[derive(Clone)]
pub struct Faults(Arc<Wire>);

impl Faults {
    /// Cuts the link: both ends see the peer gone at once, and whatever was under way is lost.
    pub fn cut(&self) {
        self.0.cut.store(true, Ordering::Relaxed);
        self.0.hang_up();
    }

    /// Loses the next `count` control messages in one direction.
    pub fn drop_control(&self, direction: Direction, count: usize) {
        let mut state = self.0.lock();
        match direction {
            Direction::ToStandby => state.to_standby.drop_next += count,
            Direction::ToPrimary => state.to_primary.drop_next += count,
        }
    }

    /// From now on everything sent arrives this much later.
    pub fn delay(&self, delay: Duration) {
        self.0.delay_nanos.store(u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Flips one bit of the byte at `offset` in the next slot that is ended (modulo its length).
    pub fn corrupt_next_slot(&self, offset: u32) {
        self.0.lock().corrupt = Some(offset);
    }

    /// Cuts the link in place of the next end marker: its slot was written and never completed.
    pub fn cut_before_next_end(&self) {
        self.0.lock().lose_next_end = true;
    }
}

/// Two ends of one link with control open, and the handle that breaks it.
#[must_use]
pub fn pair() -> (PrimaryPending, StandbyPending, Faults) {
    let wire = Arc::new(Wire::default());
    let control = |direction| {
        let tx: Arc<dyn ControlSender> = Arc::new(Control { wire: Arc::clone(&wire), direction });
        tx
    };
    let receive = |direction| Box::new(ControlEnd(Control { wire: Arc::clone(&wire), direction }));
    let (for_primary, for_standby) = (Arc::clone(&wire), Arc::clone(&wire));
    let primary = PrimaryPending {
        control_tx: control(Direction::ToStandby),
        control_rx: receive(Direction::ToPrimary),
        peer: "in-process standby".into(),
        open: Box::new(move |geometry| Ok(Box::new(Sender::open(for_primary, geometry)?) as _)),
    };
    let standby = StandbyPending {
        control_tx: control(Direction::ToPrimary),
        control_rx: receive(Direction::ToStandby),
        peer: "in-process primary".into(),
        open: Box::new(move |staging| Ok(Box::new(Receiver::open(for_standby, staging)?) as _)),
    };
    (primary, standby, Faults(wire))
}

struct Control {
    wire: Arc<Wire>,
    direction: Direction,
}

impl Control {
    fn lane<'a>(&self, state: &'a mut State) -> &'a mut Lane<Vec<u8>> {
        match self.direction {
            Direction::ToStandby => &mut state.to_standby,
            Direction::ToPrimary => &mut state.to_primary,
        }
    }
}

impl ControlSender for Control {
    fn send(&self, message: &[u8]) -> Result<(), TransportError> {
        if message.len() > MAX_CONTROL_BYTES {
            return Err(TransportError::Oversize { len: message.len() });
        }
        let due = self.wire.due();
        let mut state = self.wire.lock();
        self.wire.alive(&state)?;
        let lane = self.lane(&mut state);
        if lane.drop_next > 0 {
            lane.drop_next -= 1;
            return Ok(());
        }
        if lane.queue.len() == MAX_WAITING_MESSAGES {
            return Err(TransportError::TimedOut { what: "sending a control message the peer does not read", after_ms: 0 });
        }
        lane.queue.push_back((due, message.to_vec()));
        drop(state);
        self.wire.changed.notify_all();
        Ok(())
    }
}

/// The receiving end; dropping it ends the link, as it does over TCP.
struct ControlEnd(Control);

impl ControlReceiver for ControlEnd {
    fn receive(&mut self, timeout: Duration) -> Result<Option<Vec<u8>>, TransportError> {
        self.0.wire.wait(timeout, |state, now| self.0.lane(state).take(now))
    }
}

impl Drop for ControlEnd {
    fn drop(&mut self) {
        self.0.wire.hang_up();
    }
}

struct Sender {
    wire: Arc<Wire>,
    staging: Arc<Staging>,
    regions: Vec<Arc<Region>>,
    book: SlotBook,
    reported: u64,
}

impl Sender {
    fn open(wire: Arc<Wire>, geometry: Geometry) -> Result<Sender, TransportError> {
        let opened = wire.wait(OPEN_DATA_BOUND, |state, _| state.staging.clone().map_or(Taken::Nothing, Taken::Got))?;
        let staging = opened.ok_or(TransportError::TimedOut {
            what: "waiting for the standby to open its staging",
            after_ms: OPEN_DATA_BOUND.as_millis() as u64,
        })?;
        if staging.geometry() != geometry {
            wire.hang_up();
            let announced = staging.geometry();
            return Err(TransportError::protocol(format!("its Welcome spoke of {geometry:?}, its staging is {announced:?}")));
        }
        Ok(Sender { wire, staging, regions: Vec::new(), book: SlotBook::new(geometry), reported: 0 })
    }

    /// Runs `read` with the address of a piece's region, after checking the piece's range.
    fn with_piece(&self, piece: &Piece, read: impl FnOnce(*const u8)) -> Result<(), TransportError> {
        let region = self.regions.get(piece.region.0 as usize);
        let region = region.ok_or_else(|| TransportError::Misuse(format!("region {} is not registered", piece.region.0)))?;
        region.with_readable(std::iter::once(piece.offset..piece.offset.saturating_add(piece.len)), read)
    }
}

impl DataSender for Sender {
    fn geometry(&self) -> Geometry {
        self.staging.geometry()
    }

    fn register(&mut self, region: Arc<Region>) -> Result<RegionId, TransportError> {
        if self.regions.len() == crate::tcp::MAX_REGIONS {
            return Err(TransportError::Misuse(format!("more than {} regions registered", crate::tcp::MAX_REGIONS)));
        }
        self.regions.push(region);
        Ok(RegionId(self.regions.len() as u32 - 1))
    }

    fn acquire_among(&mut self, most: u32, timeout: Duration) -> Result<Option<SlotId>, TransportError> {
        let book = &mut self.book;
        let acquired = self.wire.wait(timeout, |state, _| match state.credits.drain(..).try_for_each(|slot| book.granted(slot)) {
            Err(error) => Taken::Got(Err(error)),
            Ok(()) => book.acquire(most).map_or(Taken::Nothing, |slot| Taken::Got(Ok(slot))),
        })?;
        acquired.transpose()
    }

    fn post_write(&mut self, slot: SlotId, offset: u32, pieces: &[Piece]) -> Result<(), TransportError> {
        // Held while copying: once the standby has hung up (which takes this lock), nothing writes to its staging any more.
        let state = self.wire.lock();
        self.wire.alive(&state)?;
        let total = pieces.iter().fold(0_usize, |sum, p| sum.saturating_add(p.len));
        // All of them first: what is refused must not have been posted in part.
        pieces.iter().try_for_each(|piece| self.with_piece(piece, |_| ()))?;
        self.book.post(slot, offset, total)?;
        let mut at = offset as usize;
        for piece in pieces {
            let to = self.staging.slot_base(slot);
            self.with_piece(piece, |base| {
                // SAFETY: the source range is inside its region and not claimed for writing while this closure runs; the target range was
                // checked to be inside a slot that is ours, so no guard reads it and no other sender writes it.
                unsafe { std::ptr::copy_nonoverlapping(base.add(piece.offset), to.add(at), piece.len) };
            })?;
            at += piece.len;
        }
        drop(state);
        Ok(())
    }

    fn post_end(&mut self, slot: SlotId, len: u32, ticket: u64) -> Result<(), TransportError> {
        let due = self.wire.due();
        let mut state = self.wire.lock();
        self.wire.alive(&state)?;
        if state.lose_next_end {
            drop(state);
            Faults(Arc::clone(&self.wire)).cut();
            return Err(TransportError::PeerGone { cause: GoneCause::Reset });
        }
        self.book.end(slot, len, ticket)?;
        if let Some(offset) = state.corrupt.take()
            && len > 0
        {
            // SAFETY: inside the slot's first `len` bytes; the peer does not know of its end before it is pushed below.
            unsafe { *self.staging.slot_base(slot).add((offset % len) as usize) ^= 1 };
        }
        state.ends.queue.push_back((due, (slot, len)));
        Ok(())
    }

    fn flush(&mut self) -> Result<(), TransportError> {
        let alive = self.wire.alive(&self.wire.lock());
        self.wire.changed.notify_all();
        alive
    }

    fn completed(&mut self, _timeout: Duration) -> Result<Option<u64>, TransportError> {
        self.wire.alive(&self.wire.lock())?;
        let last = self.book.last_ticket();
        let news = (last > self.reported).then_some(last);
        self.reported = last;
        Ok(news)
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.wire.hang_up();
    }
}

struct Receiver {
    wire: Arc<Wire>,
    staging: Arc<Staging>,
}

/// Credits of one in-process link.
struct Line(Arc<Wire>);

impl CreditLine for Line {
    fn grant(&self, slots: &[u32]) {
        self.0.lock().credits.extend(slots.iter().map(|s| SlotId(*s)));
        self.0.changed.notify_all();
    }
}

impl Receiver {
    fn open(wire: Arc<Wire>, staging: Arc<Staging>) -> Result<Receiver, TransportError> {
        staging.attach(Arc::new(Line(Arc::clone(&wire))))?;
        wire.lock().staging = Some(Arc::clone(&staging));
        wire.changed.notify_all();
        Ok(Receiver { wire, staging })
    }
}

impl DataReceiver for Receiver {
    fn receive(&mut self, timeout: Duration) -> Result<Option<Slot>, TransportError> {
        let ended = self.wire.wait(timeout, |state, now| state.ends.take(now))?;
        Ok(ended.map(|(slot, len)| self.staging.lend(slot, len)))
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.wire.hang_up();
        self.staging.detach();
    }
}
