//! The way out for everything the guest says: devices put output in, commits (or an open gate) let it out.
//!
//! Lives here: the glue between the machine's sinks, the output buffer and the ports. Not here: the buffer's rules (`net-buffer`) and the decision to
//! release ([`crate::core`]). Guards S1: there is no other path from a running guest to a TAP device or the console
//! (at activation the standby sends again what was committed: `replica`).

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use net_buffer::{BufferError, Gate, Held, HeldNow, Limits, NetBuffer, Sealed, StruckOut};
use types::{Commit, Epoch, Generation, Output, OutputPort};
use vmm::devices::tap::TapWriter;
use vmm::{ConsoleSink, FrameSink, SinkFull};

use crate::core::Event;
use crate::mirror::Mirror;

/// Where the guest's console goes.
pub type ConsoleOut = Box<dyn Write + Send>;

/// Told of output that is held, so that the pipeline can end the epoch.
type Notify = Box<dyn Fn(Event) + Send + Sync>;
/// Told that there is room again for frames that were turned back.
type Room = Box<dyn Fn() + Send + Sync>;

/// The output path of one machine. Made before the machine (it is its sink) and tied to its ports afterwards.
pub struct OutputPath {
    buffer: NetBuffer,
    ports: OnceLock<Vec<TapWriter>>,
    console: Mutex<ConsoleOut>,
    notify: OnceLock<Notify>,
    room: Arc<OnceLock<Room>>,
    /// The epoch under which output is held and input received now. Changed only while the machine is paused, so that no frame is between two epochs.
    open: AtomicU64,
    /// Where received frames are copied to while output is gated.
    mirror: Mutex<Option<Mirror>>,
}

impl OutputPath {
    /// An open path; `console` takes the console's bytes.
    ///
    /// # Errors
    /// [`BufferError::Limits`].
    pub fn new(limits: Limits, console: ConsoleOut) -> Result<Arc<OutputPath>, BufferError> {
        let room = Arc::new(OnceLock::<Room>::new());
        let on_room = {
            let room = Arc::clone(&room);
            move || {
                if let Some(room) = room.get() {
                    room();
                }
            }
        };
        Ok(Arc::new(OutputPath {
            buffer: NetBuffer::new(limits, on_room)?,
            ports: OnceLock::new(),
            console: Mutex::new(console),
            notify: OnceLock::new(),
            room,
            open: AtomicU64::new(Epoch::NONE.0),
            mirror: Mutex::new(None),
        }))
    }

    /// Ties the path to the machine's ports. Before the machine starts; a second call changes nothing.
    pub fn connect(&self, ports: Vec<TapWriter>) {
        let _ = self.ports.set(ports);
    }

    /// Says whom to tell of held output and of room. A second call changes nothing.
    pub(crate) fn attach(&self, notify: Notify, room: Room) {
        let _ = self.notify.set(notify);
        let _ = self.room.set(room);
    }

    /// Gives everything held to `epoch`. Only while the machine is paused.
    pub(crate) fn seal(&self, epoch: Epoch) -> Result<Sealed, BufferError> {
        let sealed = self.buffer.seal(epoch)?;
        self.open.store(epoch.next().0, Ordering::Release);
        Ok(sealed)
    }

    /// Closes the gate; returns when everything let out before has been written.
    pub(crate) fn gate(&self, generation: Generation) -> Result<(), BufferError> {
        self.open.store(Epoch::NONE.next().0, Ordering::Release);
        self.buffer.gate(generation)
    }

    /// Lets out what a commit covers.
    pub(crate) fn release(&self, commit: Commit) {
        match self.buffer.release(commit) {
            Ok(batch) => {
                batch.write_each(|output| self.write(output));
            }
            // The gate was opened or shut between the decision and here: what was held is out, or never will be.
            Err(BufferError::WrongGate { gate: Gate::Open | Gate::Shut, .. }) => {}
            Err(error) => tracing::error!(%error, "output stays held"),
        }
    }

    /// Opens the gate for good: the record names no standby.
    pub(crate) fn open(&self, proof: StruckOut) -> Result<(), BufferError> {
        self.buffer.open_after_strike_out(proof)?.write_each(|output| self.write(output));
        Ok(())
    }

    /// Nothing leaves any more.
    pub(crate) fn shut(&self) {
        match self.buffer.shut() {
            Ok(discarded) => tracing::info!(discarded, "output shut"),
            Err(error) => tracing::error!(%error, "output shut"),
        }
    }

    /// Copies what the guest receives to `mirror` from now on; `None`: to nowhere.
    pub(crate) fn mirror_to(&self, mirror: Option<Mirror>) {
        *self.mirror.lock().unwrap_or_else(PoisonError::into_inner) = mirror;
    }

    /// What waits now.
    pub(crate) fn held(&self) -> HeldNow {
        self.buffer.held()
    }

    fn write(&self, output: &Output) {
        match output.port {
            OutputPort::Net(port) => self.write_frame(port, &output.bytes),
            OutputPort::Console => self.write_console(&output.bytes),
        }
    }

    fn write_frame(&self, port: u8, frame: &[u8]) {
        if let Some(tap) = self.ports.get().and_then(|ports| ports.get(usize::from(port))) {
            // A full TAP queue drops the frame and counts it, as a switch would: the network may lose frames, the guest's peers retransmit.
            tap.write_frame(frame);
        }
    }

    fn write_console(&self, bytes: &[u8]) {
        let mut console = self.console.lock().unwrap_or_else(PoisonError::into_inner);
        // A console nobody can read must not stop the guest.
        let _ = console.write_all(bytes).and_then(|()| console.flush());
    }

    fn tell(&self, first: bool, pressure: bool) {
        if (first || pressure)
            && let Some(notify) = self.notify.get()
        {
            notify(Event::Output { first, pressure });
        }
    }
}

impl FrameSink for OutputPath {
    fn send(&self, port: u8, frame: &[u8]) -> Result<(), SinkFull> {
        match self.buffer.hold(OutputPort::Net(port), frame) {
            Held::PassThrough(pass) => {
                self.write_frame(port, frame);
                drop(pass);
            }
            Held::Held { first, pressure } => self.tell(first, pressure),
            Held::Full => {
                if let Some(notify) = self.notify.get() {
                    notify(Event::OutputFull);
                }
                return Err(SinkFull);
            }
            Held::Shut => {}
        }
        Ok(())
    }

    fn received(&self, port: u8, frame: &[u8]) {
        let mirror = self.mirror.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mirror) = mirror.as_ref() {
            mirror.copy(Epoch(self.open.load(Ordering::Acquire)), port, frame);
        }
    }
}

impl ConsoleSink for OutputPath {
    fn write(&self, bytes: &[u8]) {
        match self.buffer.hold(OutputPort::Console, bytes) {
            Held::PassThrough(pass) => {
                self.write_console(bytes);
                drop(pass);
            }
            // Console bytes alone end no epoch at once: the longest interval is soon enough for a reader of a log.
            Held::Held { first, pressure } => self.tell(first, pressure),
            Held::Full => tracing::warn!(bytes = bytes.len(), "console output dropped: the output buffer is full"),
            Held::Shut => {}
        }
    }
}
