//! `lockstep console`: a terminal at the guest's serial console, through the node's socket.
//!
//! Lives here: the terminal's raw mode, which ends with this process however it ends, the key that leaves, and the two streams of bytes. Not here: who may type and
//! what is shown first (`node::console`).

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

use super::{Failure, code};
use crate::signals;

/// Options of `lockstep console`.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct ConsoleOptions {
    /// The node's console socket, as given to its --console
    #[arg(value_name = "PATH")]
    socket: PathBuf,
    /// Key that leaves: ^A to ^_
    #[arg(long, value_name = "^KEY", default_value = "^]", value_parser = control_key)]
    escape: u8,
    /// Only read: leave the keyboard where it is
    #[arg(long)]
    read_only: bool,
}

/// `^A` as the byte that the terminal sends for it.
fn control_key(text: &str) -> Result<u8, String> {
    match text.strip_prefix('^').map(str::as_bytes) {
        Some([key]) if (b'@'..=b'_').contains(&key.to_ascii_uppercase()) => Ok(key.to_ascii_uppercase() - b'@'),
        _ => Err("write a key that is typed with Ctrl, such as ^] or ^A".to_owned()),
    }
}

/// How a control key is told to people.
fn key_name(key: u8) -> String {
    format!("Ctrl-{}", char::from(key + b'@'))
}

/// Why the console could not be reached.
#[derive(Debug, thiserror::Error)]
enum ConsoleError {
    #[error("no console at {path}: {source}; {remedy}")]
    Connect { path: PathBuf, source: io::Error, remedy: &'static str },
    #[error("{what}: {source}")]
    Terminal { what: &'static str, source: io::Error },
}

/// A terminal in raw mode until this is dropped.
struct Raw {
    before: Termios,
}

impl Raw {
    fn enter() -> nix::Result<Raw> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(io::stdin(), SetArg::TCSANOW, &raw)?;
        Ok(Raw { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // Nothing can be done when the terminal is gone.
        let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &self.before);
    }
}

/// How the visit ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    /// By the key, or a signal.
    ByUser,
    /// The node ended, or closed the connection.
    Closed,
}

pub(super) fn run(options: &ConsoleOptions) -> Result<u8, Failure> {
    let fail = |error: ConsoleError| Failure::new(code::FAILED, error);
    let terminal = |what| move |source: io::Error| Failure::new(code::FAILED, ConsoleError::Terminal { what, source });
    let socket = connect(&options.socket).map_err(fail)?;
    let shutdown = signals::shutdown_flag().map_err(terminal("cannot catch signals"))?;
    let stdin = io::stdin();
    let interactive = stdin.is_terminal() && !options.read_only;
    if options.read_only {
        socket.shutdown(Shutdown::Write).map_err(terminal("cannot close the sending half of the connection"))?;
    }
    if interactive {
        eprintln!("connected to {}; leave with {}", options.socket.display(), key_name(options.escape));
    }
    let raw =
        if interactive { Some(Raw::enter().map_err(|errno| terminal("cannot set the terminal to raw mode")(errno.into()))?) } else { None };
    // Not through the standard library's buffer: what it holds cannot be polled for.
    let keyboard = stdin.as_fd().try_clone_to_owned().map_err(terminal("cannot read the terminal"))?;
    let typed = (!options.read_only).then(|| File::from(keyboard));
    let left = carry(socket, typed, io::stdout().lock(), interactive.then_some(options.escape), shutdown);
    drop(raw);
    let left = left.map_err(terminal("the connection to the console broke"))?;
    if interactive {
        let why = if left == Left::Closed { "the node has closed the console" } else { "left the console" };
        eprintln!("\n{why}");
    }
    Ok(code::OK)
}

fn connect(given: &Path) -> Result<UnixStream, ConsoleError> {
    // As the node was told: socket:PATH means PATH here too.
    let path = given.to_str().and_then(|text| text.strip_prefix("socket:")).map_or(given, Path::new);
    UnixStream::connect(path).map_err(|source| {
        let remedy = match source.kind() {
            io::ErrorKind::NotFound => "start the node with --console socket:PATH and give the same path here",
            io::ErrorKind::ConnectionRefused => "the node that made this socket is gone, or it is a file of another kind",
            io::ErrorKind::PermissionDenied => "it is open only to the user that the node runs as, and to root",
            _ => "check the path",
        };
        ConsoleError::Connect { path: path.to_owned(), source, remedy }
    })
}

/// Carries bytes both ways until the escape key, a signal, or the other end closes. Without a terminal the end of the input closes only the sending half.
fn carry(
    mut socket: UnixStream,
    mut typed: Option<impl Read + AsFd>,
    mut screen: impl Write,
    escape: Option<u8>,
    shutdown: &AtomicBool,
) -> io::Result<Left> {
    let mut bytes = [0; 4096];
    while !shutdown.load(Ordering::Relaxed) {
        let (from_guest, from_user) = {
            let mut fds = vec![PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
            if let Some(typed) = &typed {
                fds.push(PollFd::new(typed.as_fd(), PollFlags::POLLIN));
            }
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) => {}
                Err(nix::Error::EINTR) => continue,
                Err(errno) => return Err(errno.into()),
            }
            let ready = |fd: Option<&PollFd<'_>>| fd.and_then(PollFd::any).unwrap_or(false);
            (ready(fds.first()), ready(fds.get(1)))
        };
        if from_guest {
            match socket.read(&mut bytes) {
                Ok(0) => return Ok(Left::Closed),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(Left::Closed),
                Ok(count) => {
                    screen.write_all(&bytes[..count])?;
                    screen.flush()?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if from_user && let Some(keyboard) = &mut typed {
            let count = match keyboard.read(&mut bytes) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let leave = escape.and_then(|key| bytes[..count].iter().position(|byte| *byte == key));
            match socket.write_all(&bytes[..leave.unwrap_or(count)]) {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(Left::Closed),
                other => other?,
            }
            if leave.is_some() {
                return Ok(Left::ByUser);
            }
            if count == 0 {
                socket.shutdown(Shutdown::Write)?;
                typed = None;
            }
        }
    }
    Ok(Left::ByUser)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn carried(typed: &UnixStream, escape: Option<u8>, socket: UnixStream) -> (Left, Vec<u8>) {
        let mut screen = Vec::new();
        let left = carry(socket, Some(typed.try_clone().unwrap()), &mut screen, escape, &AtomicBool::new(false)).unwrap();
        (left, screen)
    }

    #[test]
    fn what_is_typed_before_the_escape_key_arrives_and_nothing_after_it() {
        let (mut guest, socket) = UnixStream::pair().unwrap();
        let (mut user, typed) = UnixStream::pair().unwrap();
        user.write_all(b"ls\r\x1dnever").unwrap();
        assert_eq!(carried(&typed, Some(0x1d), socket).0, Left::ByUser);
        let mut arrived = Vec::new();
        guest.read_to_end(&mut arrived).unwrap();
        assert_eq!(arrived, b"ls\r");
    }

    #[test]
    fn without_a_terminal_every_byte_is_typed_and_the_output_is_read_to_its_end() {
        let (mut guest, socket) = UnixStream::pair().unwrap();
        let (mut user, typed) = UnixStream::pair().unwrap();
        user.write_all(b"\x1d").unwrap();
        drop(user);
        let node = std::thread::spawn(move || {
            let mut arrived = Vec::new();
            guest.read_to_end(&mut arrived).unwrap();
            guest.write_all(b"answer").unwrap();
            arrived
        });
        let (left, screen) = carried(&typed, None, socket);
        assert_eq!((left, screen.as_slice()), (Left::Closed, b"answer".as_slice()));
        assert_eq!(node.join().unwrap(), b"\x1d");
    }

    #[test]
    fn a_node_that_ends_ends_the_visit() {
        let (guest, socket) = UnixStream::pair().unwrap();
        let (_user, typed) = UnixStream::pair().unwrap();
        drop(guest);
        assert_eq!(carried(&typed, Some(0x1d), socket).0, Left::Closed);
    }

    #[test]
    fn keys_are_read_as_they_are_typed() {
        assert_eq!(control_key("^]"), Ok(0x1d));
        assert_eq!(control_key("^a"), Ok(1));
        assert_eq!(key_name(0x1d), "Ctrl-]");
        for bad in ["", "^", "a", "^ab", "^1"] {
            assert!(control_key(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_socket_that_is_not_there_or_dead_is_told_with_a_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console");
        assert!(connect(&path).unwrap_err().to_string().contains("--console socket:PATH"));
        drop(UnixListener::bind(&path).unwrap());
        assert!(connect(&path).unwrap_err().to_string().contains("is gone"));
        let _listener = UnixListener::bind(folder.path().join("live")).unwrap();
        connect(Path::new(&format!("socket:{}", folder.path().join("live").display()))).unwrap();
    }
}
