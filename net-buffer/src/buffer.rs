//! The buffer and its gate. Not here: writing released output ([`crate::batch`]).
//!
//! Output moves through three lists: `open` (the running epoch's), `sealed` (one list per epoch awaiting its commit) and `outgoing`
//! (released, waiting to be written). With the gate open, output passes straight through, unless something is still outgoing: then it
//! queues behind that, so nothing overtakes.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use types::{Commit, Epoch, Generation, Output, OutputPort};

use crate::batch::Batch;
use crate::limits::{HeldNow, Limits};
use crate::pool::Pool;
use crate::{BufferError, StruckOut};

/// How long closing the gate waits for frames that were let pass just before: one write to a TAP device takes microseconds.
const PASS_BOUND: Duration = Duration::from_secs(1);

/// Console bytes are joined into one piece of output up to this size: guests write the serial port byte by byte.
const CONSOLE_PIECE_BYTES: usize = 1024;

/// State of the output gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// Unprotected: output goes straight out.
    Open,
    /// Output is held and leaves only by commits of this generation.
    Gated(Generation),
    /// Fenced: nothing leaves, ever.
    Shut,
}

/// What became of a piece of output.
#[derive(Debug)]
pub enum Held<'a> {
    /// The gate is open: the caller writes the bytes itself, now, and drops the guard after that.
    PassThrough(Pass<'a>),
    /// A copy is held. The device may complete it to the guest.
    Held {
        /// It is the first pending output of the open epoch: the epoch thread must be told.
        first: bool,
        /// A soft limit is reached: end the epoch early.
        pressure: bool,
    },
    /// A hard limit is reached. Nothing was taken: keep the frame in the queue and try again when told that there is room.
    Full,
    /// The gate is shut for good: discard the frame.
    Shut,
}

/// Leave to write one piece of output directly; closing the gate waits until it is dropped.
#[derive(Debug)]
pub struct Pass<'a>(&'a NetBuffer);

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.0.writing_done(&mut self.0.lock());
    }
}

/// The output of one epoch, sealed: nothing can be added to it. Read it into the checkpoint's tail, then drop it.
#[derive(Debug)]
pub struct Sealed {
    epoch: Epoch,
    output: Arc<Vec<Output>>,
}

impl Sealed {
    /// The epoch that the output belongs to.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The epoch's output in order.
    #[must_use]
    pub fn output(&self) -> &[Output] {
        &self.output
    }
}

/// Called, without any lock held, when there is room again after a [`Held::Full`].
type OnRoom = Box<dyn Fn() + Send + Sync>;

/// Output that waits for its epoch's commit. Shared between the device worker, the epoch thread and the control thread; every critical
/// section is short and does no I/O.
pub struct NetBuffer {
    limits: Limits,
    inner: Mutex<Inner>,
    quiet: Condvar,
    on_room: OnRoom,
}

impl std::fmt::Debug for NetBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NetBuffer").field("gate", &self.gate_state()).field("held", &self.held()).finish_non_exhaustive()
    }
}

pub(crate) struct Inner {
    gate: Gate,
    open: Vec<Output>,
    sealed: VecDeque<(Epoch, Arc<Vec<Output>>)>,
    /// Newest epoch sealed in this generation and not given up; the newest released one when none waits.
    last_sealed: Epoch,
    /// Newest epoch released in this generation: older ones can be neither given up nor sealed again.
    last_released: Epoch,
    pub(crate) outgoing: VecDeque<Output>,
    /// A [`Batch`] has the turn to write.
    pub(crate) turn_taken: bool,
    /// Pieces handed out and perhaps not written yet.
    pub(crate) writing: usize,
    held: HeldNow,
    starved: bool,
    pub(crate) pool: Pool,
}

impl NetBuffer {
    /// An open gate with nothing behind it. `on_room` is called when there is room again after a [`Held::Full`].
    ///
    /// # Errors
    /// [`BufferError::Limits`] when the limits contradict each other.
    pub fn new(limits: Limits, on_room: impl Fn() + Send + Sync + 'static) -> Result<NetBuffer, BufferError> {
        let inner = Inner {
            gate: Gate::Open,
            open: Vec::new(),
            sealed: VecDeque::new(),
            last_sealed: Epoch::NONE,
            last_released: Epoch::NONE,
            outgoing: VecDeque::new(),
            turn_taken: false,
            writing: 0,
            held: HeldNow::default(),
            starved: false,
            pool: Pool::default(),
        };
        let limits = limits.validate()?;
        Ok(NetBuffer { limits, inner: Mutex::new(inner), quiet: Condvar::new(), on_room: Box::new(on_room) })
    }

    /// Takes one frame, or a run of console bytes, that the guest has sent.
    pub fn hold(&self, port: OutputPort, bytes: &[u8]) -> Held<'_> {
        let mut inner = self.lock();
        match inner.gate {
            Gate::Shut => return Held::Shut,
            Gate::Open if inner.outgoing.is_empty() && !inner.turn_taken => {
                inner.writing += 1;
                return Held::PassThrough(Pass(self));
            }
            Gate::Open | Gate::Gated(_) => {}
        }
        if !inner.held.fits(bytes.len(), &self.limits) {
            inner.starved = true;
            return Held::Full;
        }
        let gated = inner.gate != Gate::Open;
        let first = gated && inner.open.is_empty();
        inner.push(gated, port, bytes);
        Held::Held { first, pressure: gated && inner.held.over_soft(&self.limits) }
    }

    /// Gives all output held so far, and not sealed yet, to `epoch`.
    ///
    /// # Errors
    /// [`BufferError::NotAscending`], [`BufferError::WrongGate`] unless gated.
    pub fn seal(&self, epoch: Epoch) -> Result<Sealed, BufferError> {
        let mut inner = self.lock();
        let Gate::Gated(_) = inner.gate else {
            return Err(BufferError::WrongGate { gate: inner.gate, operation: "sealing an epoch" });
        };
        if epoch <= inner.last_sealed {
            return Err(BufferError::NotAscending { epoch, last: inner.last_sealed });
        }
        let next_capacity = inner.open.len();
        let output = Arc::new(std::mem::replace(&mut inner.open, Vec::with_capacity(next_capacity)));
        inner.sealed.push_back((epoch, Arc::clone(&output)));
        inner.last_sealed = epoch;
        Ok(Sealed { epoch, output })
    }

    /// Releases the output of every sealed epoch up to the commit's, in order, once. Write what the batch yields.
    ///
    /// # Errors
    /// [`BufferError::WrongGeneration`], [`BufferError::NotSealed`], [`BufferError::WrongGate`] unless gated; nothing is released then.
    pub fn release(&self, commit: Commit) -> Result<Batch<'_>, BufferError> {
        let mut inner = self.lock();
        let Gate::Gated(gate) = inner.gate else {
            return Err(BufferError::WrongGate { gate: inner.gate, operation: "releasing a commit" });
        };
        if commit.generation() != gate {
            return Err(BufferError::WrongGeneration { proof: commit.generation(), gate });
        }
        if commit.epoch() > inner.last_sealed {
            return Err(BufferError::NotSealed { epoch: commit.epoch(), last: inner.last_sealed });
        }
        while inner.sealed.front().is_some_and(|(epoch, _)| *epoch <= commit.epoch()) {
            if let Some((_, output)) = inner.sealed.pop_front() {
                inner.outgoing.extend(own(output));
            }
        }
        inner.last_released = inner.last_released.max(commit.epoch());
        Ok(Batch::take_turn(self, &mut inner))
    }

    /// Gives up `epoch` and every later sealed one: their output returns to the front of the open epoch, in order, and `epoch` may be
    /// sealed again. Returns how many pieces are pending in the open epoch now.
    pub fn unseal(&self, epoch: Epoch) -> usize {
        let mut inner = self.lock();
        let keep = inner.sealed.iter().take_while(|(e, _)| *e < epoch).count();
        let back = inner.sealed.split_off(keep);
        let mut merged: Vec<Output> = back.into_iter().flat_map(|(_, output)| own(output)).collect();
        merged.append(&mut inner.open);
        inner.open = merged;
        inner.last_sealed = inner.sealed.back().map_or(inner.last_released, |(newest, _)| *newest);
        inner.open.len()
    }

    /// Closes an open gate: from here on output is held under the epochs of `generation`, numbered from 1. Returns when everything let
    /// pass before has been written; only then may a standby be recorded (gate, then record). Harmless when already gated in `generation`.
    ///
    /// # Errors
    /// [`BufferError::WrongGate`] when shut or gated in another generation, [`BufferError::StillWriting`] (call again).
    pub fn gate(&self, generation: Generation) -> Result<(), BufferError> {
        let mut inner = self.lock();
        match inner.gate {
            Gate::Open => {
                inner.gate = Gate::Gated(generation);
                inner.last_sealed = Epoch::NONE;
                inner.last_released = Epoch::NONE;
            }
            Gate::Gated(now) if now == generation => {}
            gate @ (Gate::Gated(_) | Gate::Shut) => return Err(BufferError::WrongGate { gate, operation: "gating output" }),
        }
        self.wait_until_written(inner)
    }

    /// Opens the gate for good, because no other node can ever activate (strike out, then ungate): everything held goes out in order, and
    /// what the guest sends while the batch is being written queues behind it.
    ///
    /// # Errors
    /// [`BufferError::WrongGeneration`] when the proof is older than the gate, [`BufferError::WrongGate`] when shut; nothing is released.
    pub fn open_after_strike_out(&self, proof: StruckOut) -> Result<Batch<'_>, BufferError> {
        let mut inner = self.lock();
        match inner.gate {
            Gate::Shut => return Err(BufferError::WrongGate { gate: Gate::Shut, operation: "opening it" }),
            Gate::Gated(gate) if proof.generation() < gate => {
                return Err(BufferError::WrongGeneration { proof: proof.generation(), gate });
            }
            Gate::Gated(_) | Gate::Open => {}
        }
        while let Some((_, output)) = inner.sealed.pop_front() {
            inner.outgoing.extend(own(output));
        }
        let open = std::mem::take(&mut inner.open);
        inner.outgoing.extend(open);
        inner.gate = Gate::Open;
        Ok(Batch::take_turn(self, &mut inner))
    }

    /// Shuts the gate for good and discards what is held. Returns how many pieces were discarded, after everything handed out before has
    /// been written.
    ///
    /// # Errors
    /// [`BufferError::StillWriting`]: the gate is shut, but a frame handed out before is still being written.
    pub fn shut(&self) -> Result<usize, BufferError> {
        let mut inner = self.lock();
        let discarded = inner.held.frames;
        inner.gate = Gate::Shut;
        inner.open = Vec::new();
        inner.sealed.clear();
        inner.outgoing.clear();
        inner.held = HeldNow::default();
        self.wait_until_written(inner)?;
        Ok(discarded)
    }

    /// The turn to write what is still outgoing, after a batch was dropped before its end.
    pub fn resume_batch(&self) -> Batch<'_> {
        Batch::take_turn(self, &mut self.lock())
    }

    /// State of the gate.
    #[must_use]
    pub fn gate_state(&self) -> Gate {
        self.lock().gate
    }

    /// What waits now: held, sealed, and released but not yet written.
    #[must_use]
    pub fn held(&self) -> HeldNow {
        self.lock().held
    }

    /// Number of pieces pending in the open epoch.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.lock().open.len()
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        // No operation leaves the lists half changed at a point where it could panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn writing_done(&self, inner: &mut Inner) {
        inner.writing -= 1;
        if inner.writing == 0 {
            self.quiet.notify_all();
        }
    }

    /// Called without the lock, after output has left: tells a starved device that there is room.
    pub(crate) fn tell_room(&self) {
        let mut inner = self.lock();
        if inner.starved && !inner.held.over_soft(&self.limits) {
            inner.starved = false;
            drop(inner);
            (self.on_room)();
        }
    }

    fn wait_until_written(&self, mut inner: MutexGuard<'_, Inner>) -> Result<(), BufferError> {
        let until = Instant::now() + PASS_BOUND;
        while inner.writing > 0 || !inner.outgoing.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(BufferError::StillWriting { after_ms: PASS_BOUND.as_millis() as u64 });
            }
            inner = self.quiet.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }
}

impl Inner {
    fn push(&mut self, gated: bool, port: OutputPort, bytes: &[u8]) {
        let last = if gated { self.open.last_mut() } else { None };
        if let Some(last) = last
            && port == OutputPort::Console
            && last.port == port
            && last.bytes.len() + bytes.len() <= CONSOLE_PIECE_BYTES
        {
            last.bytes.extend_from_slice(bytes);
            self.held.bytes += bytes.len();
            return;
        }
        let output = Output { port, bytes: self.pool.copy_of(bytes) };
        self.held.add(bytes.len());
        if gated {
            self.open.push(output);
        } else {
            self.outgoing.push_back(output);
        }
    }

    /// The next released piece; the caller is about to write it.
    pub(crate) fn pop_outgoing(&mut self) -> Option<Output> {
        let output = self.outgoing.pop_front()?;
        self.held.remove(output.bytes.len());
        self.writing += 1;
        Some(output)
    }
}

/// The list itself, without a copy when the checkpoint's tail has been written and its [`Sealed`] dropped (the usual case).
fn own(output: Arc<Vec<Output>>) -> Vec<Output> {
    Arc::try_unwrap(output).unwrap_or_else(|shared| shared.to_vec())
}
