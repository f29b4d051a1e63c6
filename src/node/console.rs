//! The guest's console on a Unix socket, for `lockstep console` (or any program that speaks bytes over a socket).
//!
//! Lives here: the socket, who reads, who types, and the bounds of everything that waits. Not here: when output may be shown (only released or committed bytes
//! come here: S1), the terminal ([`crate::cli`]). There is no protocol: bytes out are the console's, bytes in are typed at it. Lines of this server's own are in
//! brackets and begin with "lockstep:".
//!
//! Rules: everybody connected reads, and begins with the last [`HISTORY`] bytes; the one who connected last types. A client that closes its sending half only
//! reads. Nothing here ever waits for a reader (S7): the guest's side appends to a bounded buffer, and each reader has a bounded queue of its own, from which the
//! oldest bytes are dropped, with a note.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
use nix::sys::stat::{Mode, fchmod};
use vmm::Machine;

use super::NodeError;

/// Bytes of the past that a new reader is shown: some screens, and the whole boot log of a kernel.
pub(super) const HISTORY: usize = 64 << 10;
/// Bytes that may wait for the server's thread; a serial line of 115200 baud fills this in a minute and a half.
const WAITING: usize = 1 << 20;
/// Bytes that may wait for one reader: the history and as much again.
const READER_QUEUE: usize = 2 * HISTORY;
/// Most connections: a few people and a logger. Each costs a queue.
const READERS: usize = 8;
/// How soon input is offered again that the guest has not had room for.
const OFFER_AGAIN: u16 = 20;
/// How long the end of the process waits for the last bytes.
const LAST_BYTES: Duration = Duration::from_millis(500);

/// Whether somebody can type at the guest: there is a machine that runs here.
type Keyboard = Weak<Machine>;

#[derive(Default)]
struct State {
    waiting: VecDeque<u8>,
    /// Bytes dropped because the server's thread was not scheduled for very long.
    dropped: u64,
    keyboard: Option<Keyboard>,
    /// The node ends: send what there is, then close.
    ending: bool,
    ended: bool,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    wake: EventFd,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // The counter cannot overflow: it is read before it could.
        let _ = self.wake.write(1);
    }

    /// Appends console output; never waits for a reader.
    fn put(&self, bytes: &[u8]) {
        let mut state = self.state();
        let idle = state.waiting.is_empty();
        let over = (state.waiting.len() + bytes.len()).saturating_sub(WAITING).min(state.waiting.len());
        state.waiting.drain(..over);
        state.dropped += over as u64;
        state.waiting.extend(&bytes[bytes.len().saturating_sub(WAITING)..]);
        drop(state);
        if idle {
            self.wake();
        }
    }
}

/// The console's server. Dropping it, or [`ConsoleServer::end`], removes the socket.
pub(super) struct ConsoleServer {
    shared: Arc<Shared>,
    path: PathBuf,
}

/// Takes console output for the server.
#[derive(Clone)]
pub(super) struct ConsoleWriter(Arc<Shared>);

impl Write for ConsoleWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.put(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl ConsoleServer {
    /// Listens at `path`, for this user only.
    ///
    /// # Errors
    /// The path is taken by a living node or by something that is no socket, or cannot be made.
    pub(super) fn start(path: &Path) -> Result<ConsoleServer, NodeError> {
        let failed = |source| NodeError::Open { what: "console socket", path: path.display().to_string(), source };
        let listener = listen_at(path).map_err(failed)?;
        let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC).map_err(|errno| failed(errno.into()))?;
        let shared = Arc::new(Shared { state: Mutex::default(), changed: Condvar::new(), wake });
        let server = Server { shared: Arc::clone(&shared), listener, readers: Vec::new(), history: VecDeque::with_capacity(HISTORY) };
        let spawned = std::thread::Builder::new().name("console".to_owned()).spawn(move || server.serve());
        spawned.map_err(|source| NodeError::Host { what: "a thread for the console", source })?;
        Ok(ConsoleServer { shared, path: path.to_owned() })
    }

    /// The way in for console output.
    pub(super) fn writer(&self) -> ConsoleWriter {
        ConsoleWriter(Arc::clone(&self.shared))
    }

    /// From now on whoever has the keyboard types at `machine`.
    pub(super) fn type_at(&self, machine: &Arc<Machine>) {
        self.shared.state().keyboard = Some(Arc::downgrade(machine));
        self.shared.wake();
    }

    /// Sends what there is, within a bound, and closes.
    pub(super) fn end(&self) {
        let mut state = self.shared.state();
        if std::mem::replace(&mut state.ending, true) {
            return;
        }
        self.shared.wake();
        let waited = self.shared.changed.wait_timeout_while(state, LAST_BYTES, |state| !state.ended);
        drop(waited);
        let _ = fs::remove_file(&self.path);
    }
}

impl Drop for ConsoleServer {
    fn drop(&mut self) {
        self.end();
    }
}

/// A listening socket that only this user can connect to. A socket that a dead node left is replaced.
fn listen_at(path: &Path) -> io::Result<UnixListener> {
    // A connection to a file that is no socket is refused as well: bind will say that it is there.
    let is_socket = fs::symlink_metadata(path).is_ok_and(|facts| facts.file_type().is_socket());
    match UnixStream::connect(path) {
        Ok(_) => return Err(io::Error::new(io::ErrorKind::AddrInUse, "another node serves its console there")),
        Err(error) if is_socket && error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)?,
        Err(_) => {}
    }
    let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    // Before bind, which makes the file with this mode: there is no moment at which others could connect (unix_bind in net/unix/af_unix.c).
    fchmod(&fd, Mode::S_IRUSR | Mode::S_IWUSR)?;
    bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    listen(&fd, Backlog::new(READERS as i32)?)?;
    Ok(UnixListener::from(fd))
}

/// One connection.
struct Reader {
    stream: UnixStream,
    queue: VecDeque<u8>,
    /// Bytes dropped from the queue since the last note.
    lost: u64,
    /// It has not closed its sending half.
    types: bool,
    /// What it typed and the guest has had no room for.
    typed: Vec<u8>,
    /// It has been told that it does not have the keyboard.
    warned: bool,
    gone: bool,
}

impl Reader {
    fn put(&mut self, bytes: impl ExactSizeIterator<Item = u8>) {
        if self.queue.len() + bytes.len() > READER_QUEUE {
            // Down to a part, so that a slow reader loses long stretches seldom instead of single bytes often.
            let drop = (self.queue.len() + bytes.len() - READER_QUEUE / 2).min(self.queue.len());
            self.queue.drain(..drop);
            self.lost += drop as u64;
        }
        self.queue.extend(bytes);
    }

    fn note(&mut self, text: &str) {
        let line = format!("\r\n[lockstep: {text}]\r\n");
        self.put(line.into_bytes().into_iter());
    }

    fn flush(&mut self) {
        if self.lost > 0 {
            let line = format!("\r\n[lockstep: {} bytes are left out, this terminal reads too slowly]\r\n", self.lost);
            line.bytes().rev().for_each(|byte| self.queue.push_front(byte));
            self.lost = 0;
        }
        while !self.queue.is_empty() && !self.gone {
            match self.stream.write(self.queue.as_slices().0) {
                Ok(written) => drop(self.queue.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.gone = true,
            }
        }
    }

    /// Reads what was typed, one piece at a time.
    fn read(&mut self, keyboard: bool) {
        let mut bytes = [0; 512];
        match self.stream.read(&mut bytes) {
            Ok(0) => self.types = false,
            Ok(count) if keyboard => self.typed.extend_from_slice(&bytes[..count]),
            Ok(_) if !self.warned => {
                self.warned = true;
                self.note("the keyboard is at another terminal; connect anew to take it");
            }
            Ok(_) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => self.gone = true,
        }
    }
}

struct Server {
    shared: Arc<Shared>,
    listener: UnixListener,
    readers: Vec<Reader>,
    history: VecDeque<u8>,
}

impl Server {
    fn serve(mut self) {
        let mut close_at: Option<Instant> = None;
        loop {
            let (bytes, dropped, keyboard, ending) = {
                let mut state = self.shared.state();
                let bytes: Vec<u8> = state.waiting.drain(..).collect();
                (bytes, std::mem::take(&mut state.dropped), state.keyboard.as_ref().and_then(Weak::upgrade), state.ending)
            };
            if ending && close_at.is_none() {
                // Whoever has just connected gets the last words too.
                (0..READERS).for_each(|_| self.accept());
            }
            self.show(&bytes, dropped);
            self.type_at(keyboard.as_deref());
            // Not held while waiting: the machine must be able to end.
            drop(keyboard);
            self.readers.iter_mut().for_each(Reader::flush);
            self.readers.retain(|reader| !reader.gone);
            if ending {
                let at = *close_at.get_or_insert_with(|| Instant::now() + LAST_BYTES / 2);
                if self.readers.iter().all(|reader| reader.queue.is_empty()) || Instant::now() >= at {
                    break;
                }
            }
            if let Err(errno) = self.wait(ending) {
                tracing::error!(%errno, "the console can no longer be served");
                break;
            }
        }
        self.shared.state().ended = true;
        self.shared.changed.notify_all();
    }

    fn show(&mut self, bytes: &[u8], dropped: u64) {
        if dropped > 0 {
            self.readers.iter_mut().for_each(|reader| reader.lost += dropped);
        }
        let new = &bytes[bytes.len().saturating_sub(HISTORY)..];
        let over = (self.history.len() + new.len()).saturating_sub(HISTORY);
        self.history.drain(..over);
        self.history.extend(new);
        for reader in &mut self.readers {
            reader.put(bytes.iter().copied());
        }
    }

    /// The reader that types: the last to connect of those that can.
    fn typist(&self) -> Option<usize> {
        self.readers.iter().rposition(|reader| reader.types)
    }

    fn type_at(&mut self, machine: Option<&Machine>) {
        for reader in self.readers.iter_mut().filter(|reader| !reader.typed.is_empty()) {
            match machine {
                Some(machine) => {
                    let taken = machine.console_input(&reader.typed);
                    reader.typed.drain(..taken);
                }
                None => {
                    reader.typed.clear();
                    if !reader.warned {
                        reader.warned = true;
                        reader.note("the guest does not run on this node, which only shows what is committed");
                    }
                }
            }
        }
    }

    fn wait(&mut self, ending: bool) -> nix::Result<()> {
        let typist = self.typist();
        let mut fds = vec![PollFd::new(self.shared.wake.as_fd(), PollFlags::POLLIN), PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
        let mut again = false;
        for reader in &self.readers {
            let mut flags = PollFlags::empty();
            // What is typed waits in the socket while the guest has no room: its sender feels it, and nothing grows here.
            flags.set(PollFlags::POLLIN, reader.types && reader.typed.is_empty());
            flags.set(PollFlags::POLLOUT, !reader.queue.is_empty());
            again |= !reader.typed.is_empty();
            fds.push(PollFd::new(reader.stream.as_fd(), flags));
        }
        let timeout = if again || ending { PollTimeout::from(OFFER_AGAIN) } else { PollTimeout::NONE };
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(errno) => return Err(errno),
        }
        let found: Vec<PollFlags> = fds.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty())).collect();
        drop(fds);
        let _ = self.shared.wake.read();
        for (index, (reader, flags)) in self.readers.iter_mut().zip(&found[2..]).enumerate() {
            if flags.contains(PollFlags::POLLIN) {
                reader.read(typist == Some(index));
            } else if flags.intersects(PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL) {
                reader.gone = true;
            }
        }
        if found[1].contains(PollFlags::POLLIN) {
            self.accept();
        }
        Ok(())
    }

    fn accept(&mut self) {
        let stream = match self.listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(error) => {
                tracing::warn!(%error, "a terminal could not be let in");
                return;
            }
        };
        if stream.set_nonblocking(true).is_err() {
            return;
        }
        let mut reader =
            Reader { stream, queue: VecDeque::with_capacity(HISTORY), lost: 0, types: true, typed: Vec::new(), warned: false, gone: false };
        if self.readers.len() >= READERS {
            reader.note(&format!("{READERS} terminals are connected already"));
            reader.flush();
            return;
        }
        if let Some(before) = self.typist() {
            self.readers[before].warned = true;
            self.readers[before].note("another terminal has taken the keyboard; this one goes on reading");
        }
        reader.put(self.history.iter().copied());
        self.readers.push(reader);
    }
}

#[cfg(test)]
#[path = "console_tests.rs"]
mod tests;
