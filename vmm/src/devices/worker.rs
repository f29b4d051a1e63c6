//! The one thread that moves frames for all devices.
//!
//! Lives here: waiting for kicks and TAPs, handing out bounded batches, being quiesced. Not here: what a batch does (the device). Guards
//! S5: while a [`Quiesced`] guard lives, no device touches rings, TAP, sink or interrupt; and dropping it resumes, whatever went wrong in
//! between (S6).
//!
//! Quiescing costs an atomic store and an uncontended lock when the worker sleeps, and waits for one frame at most when it works. No
//! busy polling: an idle guest costs nothing here.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::gate::Gate;
use super::lock;

/// Events taken from the kernel at once; more simply come with the next look.
const EVENTS_MAX: usize = 64;

/// What is left to do after a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The batch ended at its bound, not for want of work: run another.
    pub more: bool,
    /// Wake the device when its input is readable.
    pub wants_input: bool,
    /// The sink was full: call [`WorkerDevice::retry`] when it may have room.
    pub sink_full: bool,
}

/// A device that the worker serves, called with the device's lock held.
pub trait WorkerDevice: Send {
    /// Eventfds that the guest's kicks write. Asked once, when the worker starts.
    fn kicks(&self) -> Vec<Arc<EventFd>>;
    /// A descriptor whose readability means input. Asked once, when the worker starts.
    fn input(&self) -> Option<RawFd>;
    /// Does a bounded amount of work, without blocking, and comes back after the frame in hand when `leave` turns true.
    fn run_batch(&mut self, leave: &AtomicBool) -> Batch;
    /// The sink may have room again.
    fn retry(&mut self);
}

/// Why the worker could not be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} for the device worker: {source}; raise the limits of open files and of processes (ulimit -n, ulimit -u)")]
pub struct WorkerError {
    action: &'static str,
    source: io::Error,
}

fn failed(action: &'static str) -> impl FnOnce(io::Error) -> WorkerError {
    move |source| WorkerError { action, source }
}

#[derive(Debug)]
struct Shared {
    gate: Gate,
    control: EventFd,
    retry: AtomicBool,
    sink_full: AtomicBool,
}

impl Shared {
    fn wake(&self) {
        if let Err(error) = self.control.write(1) {
            tracing::trace!(%error, "the device worker is being woken already");
        }
    }
}

/// The running worker. Dropping it ends the thread.
#[derive(Debug)]
pub struct DeviceWorker {
    handle: WorkerHandle,
    thread: Option<JoinHandle<()>>,
}

/// Talks to the worker from any thread.
#[derive(Clone, Debug)]
pub struct WorkerHandle {
    shared: Arc<Shared>,
}

/// While this lives the worker is parked. Dropping it lets the worker run.
#[derive(Debug)]
#[must_use = "the devices run again as soon as this is dropped"]
pub struct Quiesced {
    shared: Arc<Shared>,
}

impl DeviceWorker {
    /// Starts the thread, parked: it does nothing before the returned guard is dropped, and reads no TAP.
    ///
    /// # Errors
    /// [`WorkerError`] if the system has no descriptor or thread to give.
    pub fn start(devices: Vec<Arc<Mutex<dyn WorkerDevice>>>) -> Result<(DeviceWorker, Quiesced), WorkerError> {
        let control = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(failed("create an eventfd"))?;
        let shared = Arc::new(Shared { gate: Gate::new(), control, retry: AtomicBool::new(false), sink_full: AtomicBool::new(false) });
        let epoll = Epoll::new().map_err(failed("create an epoll instance"))?;
        let mut watches = Watches { epoll, tokens: Vec::new() };
        watches.add(shared.control.as_raw_fd(), Token::Control).map_err(failed("watch an eventfd"))?;
        let mut served = Vec::with_capacity(devices.len());
        for (index, device) in devices.into_iter().enumerate() {
            let (kicks, input) = {
                let device = lock(&device);
                (device.kicks(), device.input())
            };
            for (queue, kick) in kicks.iter().enumerate() {
                watches.add(kick.as_raw_fd(), Token::Kick { device: index, queue }).map_err(failed("watch an eventfd"))?;
            }
            let input = input.map(|fd| Input { fd, token: watches.reserve(Token::Input { device: index }), watched: false });
            served.push(Served { device, kicks, input, ready: false });
        }
        let thread = {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new()
                .name("devices".to_owned())
                .spawn(move || Loop { shared: &shared, watches, served }.run())
                .map_err(failed("create a thread"))?
        };
        let quiesced = Quiesced { shared: Arc::clone(&shared) };
        Ok((DeviceWorker { handle: WorkerHandle { shared }, thread: Some(thread) }, quiesced))
    }

    /// A handle for other threads.
    #[must_use]
    pub fn handle(&self) -> WorkerHandle {
        self.handle.clone()
    }
}

impl Drop for DeviceWorker {
    fn drop(&mut self) {
        self.handle.shared.gate.stop();
        self.handle.shared.wake();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the device worker ended in a panic");
        }
    }
}

impl WorkerHandle {
    /// Parks the worker; returns when it is parked. Stop the vCPUs first. Only one thread may do this at a time: the guard that is
    /// dropped first lets the worker run.
    pub fn quiesce(&self) -> Quiesced {
        self.shared.gate.close();
        Quiesced { shared: Arc::clone(&self.shared) }
    }

    /// Offers held-up frames to the sinks again. To be called when a sink that answered [`crate::SinkFull`] has room.
    pub fn retry(&self) {
        self.shared.retry.store(true, Ordering::SeqCst);
        self.shared.wake();
    }
}

impl Drop for Quiesced {
    fn drop(&mut self) {
        // A new epoch may come with new room in the sink.
        if self.shared.sink_full.load(Ordering::SeqCst) {
            self.shared.retry.store(true, Ordering::SeqCst);
            self.shared.wake();
        }
        self.shared.gate.open();
    }
}

#[derive(Clone, Copy, Debug)]
enum Token {
    Control,
    Kick { device: usize, queue: usize },
    Input { device: usize },
}

struct Watches {
    epoll: Epoll,
    tokens: Vec<Token>,
}

impl Watches {
    fn reserve(&mut self, token: Token) -> u64 {
        self.tokens.push(token);
        self.tokens.len() as u64 - 1
    }

    fn add(&mut self, fd: RawFd, token: Token) -> io::Result<()> {
        let token = self.reserve(token);
        self.epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, token))
    }
}

struct Input {
    fd: RawFd,
    token: u64,
    watched: bool,
}

impl Input {
    /// Removed, not masked, when not wanted: a TAP whose interface is gone reports an error even to an empty mask.
    fn watch(&mut self, epoll: &Epoll, wanted: bool) {
        if self.watched == wanted {
            return;
        }
        let operation = if wanted { ControlOperation::Add } else { ControlOperation::Delete };
        match epoll.ctl(operation, self.fd, EpollEvent::new(EventSet::IN, self.token)) {
            Ok(()) => self.watched = wanted,
            Err(error) => tracing::error!(%error, "cannot change what the device worker waits for; frames to the guest may be late"),
        }
    }
}

struct Served {
    device: Arc<Mutex<dyn WorkerDevice>>,
    kicks: Vec<Arc<EventFd>>,
    input: Option<Input>,
    ready: bool,
}

struct Loop<'a> {
    shared: &'a Shared,
    watches: Watches,
    served: Vec<Served>,
}

impl Loop<'_> {
    fn run(mut self) {
        types::thread::urgent(types::thread::Urgency::Capture);
        let mut events = [EpollEvent::default(); EVENTS_MAX];
        loop {
            let busy = self.served.iter().any(|served| served.ready);
            match self.watches.epoll.wait(if busy { 0 } else { -1 }, &mut events) {
                Ok(count) => events[..count].iter().for_each(|event| self.note(event.data())),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    return tracing::error!(%error, "the device worker cannot wait for events and ends; the guest's network is dead");
                }
            }
            if self.shared.retry.swap(false, Ordering::SeqCst) {
                self.shared.sink_full.store(false, Ordering::SeqCst);
                for served in &mut self.served {
                    lock(&served.device).retry();
                    served.ready = true;
                }
            }
            if !self.serve() {
                return;
            }
        }
    }

    /// Takes note of one event.
    fn note(&mut self, token: u64) {
        let token = usize::try_from(token).ok().and_then(|token| self.watches.tokens.get(token)).copied();
        match token {
            Some(Token::Control) => consume(&self.shared.control),
            Some(Token::Kick { device, queue }) => {
                if let Some(served) = self.served.get_mut(device) {
                    // Consumed before the ring is looked at, so that a kick after the look is not lost.
                    served.kicks.get(queue).inspect(|kick| consume(kick));
                    served.ready = true;
                }
            }
            Some(Token::Input { device }) => {
                if let Some(served) = self.served.get_mut(device) {
                    served.ready = true;
                }
            }
            None => tracing::error!("an event for nobody"),
        }
    }

    /// One batch for every device that has work. False when the worker is to end.
    fn serve(&mut self) -> bool {
        for served in &mut self.served {
            if !served.ready {
                continue;
            }
            let Some(inside) = self.shared.gate.enter() else {
                return false;
            };
            let batch = lock(&served.device).run_batch(self.shared.gate.closing());
            if batch.sink_full {
                // Inside the gate, so that whoever quiesces next sees it.
                self.shared.sink_full.store(true, Ordering::SeqCst);
            }
            drop(inside);
            served.ready = batch.more;
            if let Some(input) = &mut served.input {
                input.watch(&self.watches.epoll, batch.wants_input);
            }
        }
        !self.shared.gate.stopping()
    }
}

fn consume(event: &EventFd) {
    if let Err(error) = event.read() {
        tracing::trace!(%error, "event consumed already");
    }
}

#[cfg(test)]
#[path = "worker_tests.rs"]
mod tests;
