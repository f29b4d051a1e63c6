//! The host's end of a network port: a TAP interface.
//!
//! Lives here: opening a named TAP, reading frames into the guest's device and writing released frames. Not here: when a frame may be
//! written (the net-buffer decides, S1). Nothing here blocks, whatever the host's network does.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const TUN_DEVICE: &str = "/dev/net/tun";
/// linux/if_tun.h: which work of sending the host's stack may leave to the reader of the TAP.
const TUNSETOFFLOAD: libc::Ioctl = 0x4004_54d0;

/// Why a TAP could not be opened, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The name cannot be that of an interface.
    #[error("`{name}` cannot be the name of a TAP: 1 to 15 bytes, no slash, blank or colon; give another name with --net tap=NAME")]
    BadName {
        /// The name as given.
        name: String,
    },
    /// The kernel offers no TAPs.
    #[error(
        "cannot open TAP {name}: {TUN_DEVICE} does not exist; load the driver (modprobe tun) or make the node (mknod {TUN_DEVICE} c 10 200)"
    )]
    NoTunDevice {
        /// The interface asked for.
        name: String,
    },
    /// There is no such interface in this network namespace.
    #[error(
        "TAP {name} does not exist in this network namespace; make it (ip tuntap add dev {name} mode tap && ip link set {name} up) or correct --net tap=NAME"
    )]
    Missing {
        /// The interface asked for.
        name: String,
    },
    /// Another process has it.
    #[error("TAP {name} is busy: another process holds it; end that process (a TAP serves one machine) or use another TAP")]
    Busy {
        /// The interface asked for.
        name: String,
    },
    /// Not allowed.
    #[error(
        "no permission to open TAP {name} ({source}); run as root, or give the interface to this user (ip tuntap add dev {name} mode tap user $USER) and make {TUN_DEVICE} readable and writable for it"
    )]
    Permission {
        /// The interface asked for.
        name: String,
        /// The system's answer.
        source: io::Error,
    },
    /// The interface is there but is not a TAP.
    #[error("interface {name} is not a TAP (a TUN, a physical or another virtual interface); name one made with `ip tuntap add mode tap`")]
    NotATap {
        /// The interface asked for.
        name: String,
    },
    /// Anything else.
    #[error("cannot {action} TAP {name}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The interface asked for.
        name: String,
        /// The system's answer.
        source: io::Error,
    },
}

/// How to open a TAP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TapOptions {
    /// Make the interface, and set it up, if it does not exist. It then lives as long as the process. Needs CAP_NET_ADMIN.
    pub create: bool,
}

/// A source of frames for a guest, without blocking. [`Tap`] is the real one.
pub trait FrameSource: Send {
    /// The next frame into `buffer`: its length, or `None` when there is none now. A frame longer than `buffer` is cut by the kernel.
    ///
    /// # Errors
    /// The system's answer; the caller counts it and goes on.
    fn read_frame(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>>;
    /// The descriptor to wait on for more.
    fn as_raw_fd(&self) -> RawFd;
}

/// An open TAP, non-blocking, one Ethernet frame to a read or write, no packet information and no virtio header.
#[derive(Debug)]
pub struct Tap {
    name: String,
    file: File,
    port: Arc<Port>,
}

#[derive(Debug)]
struct Port {
    fd: OwnedFd,
    written: AtomicU64,
    dropped: AtomicU64,
}

impl Tap {
    /// Opens the interface `name` of the calling thread's network namespace.
    ///
    /// # Errors
    /// [`TapError`], each with its remedy. An interface that does not exist is not made silently unless `options.create` says so.
    pub fn open(name: &str, options: TapOptions) -> Result<Tap, TapError> {
        let named = || name.to_owned();
        if !is_interface_name(name) {
            return Err(TapError::BadName { name: named() });
        }
        let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(TUN_DEVICE).map_err(
            |source| match source.raw_os_error() {
                Some(libc::ENOENT | libc::ENXIO | libc::ENODEV) => TapError::NoTunDevice { name: named() },
                Some(libc::EACCES | libc::EPERM) => TapError::Permission { name: named(), source },
                _ => TapError::Io { action: "open the TUN driver for", name: named(), source },
            },
        )?;
        // TUNSETIFF makes an interface that does not exist, so look first.
        let exists = nix::net::if_::if_nametoindex(name).is_ok();
        if !exists && !options.create {
            return Err(TapError::Missing { name: named() });
        }
        let mut request = interface_request(name);
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as i16;
        // SAFETY: TUNSETIFF reads and writes one ifreq, which `request` is, and keeps no pointer to it; the descriptor is open.
        let answer = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
        if answer < 0 {
            let source = io::Error::last_os_error();
            return Err(match source.raw_os_error() {
                Some(libc::EBUSY) => TapError::Busy { name: named() },
                Some(libc::EPERM | libc::EACCES) => TapError::Permission { name: named(), source },
                Some(libc::EINVAL) if exists => TapError::NotATap { name: named() },
                _ => TapError::Io { action: "attach to", name: named(), source },
            });
        }
        // An interface that stays keeps what its last user has asked for: after QEMU, say, frames would come without their checksums, and guests drop them.
        // SAFETY: TUNSETOFFLOAD takes a number; the descriptor is open.
        if unsafe { libc::ioctl(file.as_raw_fd(), TUNSETOFFLOAD, 0) } < 0 {
            return Err(TapError::Io { action: "switch offloads off for", name: named(), source: io::Error::last_os_error() });
        }
        let tap =
            Tap::from_file(name, file).map_err(|source| TapError::Io { action: "duplicate the descriptor of", name: named(), source })?;
        if exists {
            if matches!(interface_flags(name), Ok(flags) if i32::from(flags) & libc::IFF_UP == 0) {
                tracing::warn!(tap = name, "the TAP is down: no frame passes until `ip link set up`");
            }
        } else {
            set_up(name).map_err(|source| TapError::Io { action: "set up", name: named(), source })?;
        }
        Ok(tap)
    }

    /// Takes over a non-blocking descriptor that carries one frame to a read or write: a TAP opened elsewhere, or a datagram socket.
    ///
    /// # Errors
    /// The descriptor could not be duplicated for the writer.
    pub fn from_fd(name: &str, fd: OwnedFd) -> io::Result<Tap> {
        Tap::from_file(name, File::from(fd))
    }

    fn from_file(name: &str, file: File) -> io::Result<Tap> {
        let fd = OwnedFd::from(file.try_clone()?);
        let port = Arc::new(Port { fd, written: AtomicU64::new(0), dropped: AtomicU64::new(0) });
        Ok(Tap { name: name.to_owned(), file, port })
    }

    /// The interface's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The other direction: released frames to the host's network. Clones share their counters.
    #[must_use]
    pub fn writer(&self) -> TapWriter {
        TapWriter { port: Arc::clone(&self.port) }
    }
}

impl FrameSource for Tap {
    fn read_frame(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match self.file.read(buffer) {
                Ok(length) => return Ok(Some(length)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn as_raw_fd(&self) -> RawFd {
        AsRawFd::as_raw_fd(&self.file)
    }
}

/// What became of a batch of frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchWritten {
    /// Frames the host took.
    pub written: u64,
    /// Frames it did not: queue full, interface down. A network may lose frames; the guest's protocols repeat them.
    pub dropped: u64,
}

/// Writes frames to a TAP. Never blocks: a frame the host does not take at once is dropped and counted.
#[derive(Clone, Debug)]
pub struct TapWriter {
    port: Arc<Port>,
}

impl TapWriter {
    /// Writes one frame; true if the host took it.
    pub fn write_frame(&self, frame: &[u8]) -> bool {
        let taken = loop {
            match nix::unistd::write(&self.port.fd, frame) {
                Ok(length) => break length == frame.len(),
                Err(nix::errno::Errno::EINTR) => {}
                Err(errno) => {
                    tracing::trace!(%errno, length = frame.len(), "frame dropped at the TAP");
                    break false;
                }
            }
        };
        let counter = if taken { &self.port.written } else { &self.port.dropped };
        counter.fetch_add(1, Ordering::Relaxed);
        taken
    }

    /// Writes frames in order. One that is dropped does not hold up those after it.
    pub fn write_batch<'a>(&self, frames: impl IntoIterator<Item = &'a [u8]>) -> BatchWritten {
        let mut batch = BatchWritten::default();
        for frame in frames {
            if self.write_frame(frame) {
                batch.written += 1;
            } else {
                batch.dropped += 1;
            }
        }
        batch
    }

    /// Frames the host took since the TAP was opened.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.port.written.load(Ordering::Relaxed)
    }

    /// Frames dropped since the TAP was opened.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.port.dropped.load(Ordering::Relaxed)
    }
}

fn is_interface_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() < libc::IFNAMSIZ
        && name != "."
        && name != ".."
        && name.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':' | b'%'))
}

/// An ifreq for `name`, which [`is_interface_name`] has accepted.
fn interface_request(name: &str) -> libc::ifreq {
    // SAFETY: ifreq is plain data (a byte array and a union of integers, addresses and pointers); all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

fn any_socket() -> io::Result<OwnedFd> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    Ok(socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?)
}

fn interface_flags(name: &str) -> io::Result<i16> {
    let socket = any_socket()?;
    let mut request = interface_request(name);
    // SAFETY: SIOCGIFFLAGS reads the name and writes the flags of one ifreq, which `request` is.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS as _, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call above succeeded, so the kernel filled this member of the union.
    Ok(unsafe { request.ifr_ifru.ifru_flags })
}

fn set_up(name: &str) -> io::Result<()> {
    let flags = interface_flags(name)?;
    let socket = any_socket()?;
    let mut request = interface_request(name);
    request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as i16;
    // SAFETY: SIOCSIFFLAGS reads the name and the flags of one ifreq, which `request` is.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Discards frames that piled up before the start.
///
/// # Errors
/// The system's answer to a read.
pub(crate) fn drain(source: &mut dyn FrameSource, limit: usize) -> io::Result<usize> {
    let mut scratch = [0u8; 64];
    for drained in 0..limit {
        if source.read_frame(&mut scratch)?.is_none() {
            return Ok(drained);
        }
    }
    Ok(limit)
}

#[cfg(test)]
#[path = "tap_tests.rs"]
mod tests;
