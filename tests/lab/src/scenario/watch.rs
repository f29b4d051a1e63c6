//! Every frame of the guest's as it comes out of a host into the client network, with the kernel's time: proves who releases output, and when (S3).
//!
//! Not here: what clients make of the frames.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt};
use xxhash_rust::xxh3::xxh3_64;

use super::node::GUEST_MAC;
use crate::error::LabError;
use crate::net::{Net, Network};

/// Asks for the time of the frame that was taken last (linux/sockios.h, SIOCGSTAMPNS_OLD; netdevice(7)).
const SIOCGSTAMPNS: libc::Ioctl = 0x8907;
/// What the kernel keeps for the watch while its thread waits for a core.
const BUFFER: usize = 8 << 20;
/// Largest frame: a 64 KiB segment of a card that segments.
const FRAME: usize = 66 << 10;
/// How often the thread looks whether it shall end.
const TICK_MS: u16 = 50;
/// Frames that are kept (24 bytes each); a scenario has some hundred thousand.
const MOST: usize = 20_000_000;

/// A frame of the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// CLOCK_REALTIME, nanoseconds.
    pub at_ns: u64,
    /// Which host it came out of.
    pub host: u8,
    /// Digest of the whole frame.
    pub digest: u64,
}

/// CLOCK_REALTIME in nanoseconds, the clock of [`Seen`].
#[must_use]
pub fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64)
}

#[derive(Debug, Default)]
struct Shared {
    seen: Mutex<Vec<Seen>>,
    end: AtomicBool,
}

/// A watch over all hosts' ports. Ends when dropped.
#[derive(Debug)]
pub struct Watch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// A socket that gets everything that passes the interface `name`; must be called in its namespace.
fn socket(name: &str) -> io::Result<OwnedFd> {
    let protocol = (libc::ETH_P_ALL as u16).to_be();
    let index = nix::net::if_::if_nametoindex(name)?;
    // SAFETY: socket takes no memory; its answer is checked before it is owned.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, i32::from(protocol)) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` is a descriptor that was just made and that nothing else owns.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: all of sockaddr_ll may be zero.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol;
    address.sll_ifindex = index as i32;
    // SAFETY: the address is valid for its length during the call.
    let bound = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), size_of::<libc::sockaddr_ll>() as u32) };
    if bound != 0 {
        return Err(io::Error::last_os_error());
    }
    setsockopt(&fd, sockopt::RcvBufForce, &BUFFER)?;
    Ok(fd)
}

/// Takes one frame from `fd`; [`None`]: it is not the guest's. An error when none is there.
fn take(fd: &OwnedFd, host: u8, buffer: &mut [u8]) -> io::Result<Option<Seen>> {
    let length = recv(fd.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT)?;
    let frame = &buffer[..length];
    // What goes to the host has the guest as its destination; what comes out of it, as its source.
    if length < 14 || frame[6..12] != GUEST_MAC {
        return Ok(None);
    }
    let mut at = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes the newest frame's time into a valid timespec.
    let told = unsafe { libc::ioctl(fd.as_raw_fd(), SIOCGSTAMPNS, &raw mut at) };
    let at_ns = if told == 0 { at.tv_sec as u64 * 1_000_000_000 + at.tv_nsec as u64 } else { now_ns() };
    Ok(Some(Seen { at_ns, host, digest: xxh3_64(frame) }))
}

impl Watch {
    /// Watches the client ports of hosts 1 to `hosts`.
    ///
    /// # Errors
    /// Packet sockets are not to be had.
    pub fn start(network: &Network, hosts: u8) -> Result<Watch, LabError> {
        let io = || LabError::io(|| "watch the hosts' ports".into());
        let open = || (1..=hosts).map(|host| Ok((host, socket(&Net::Clients.port(host))?))).collect::<io::Result<Vec<_>>>();
        let sockets = network.switch.run(open)?.map_err(io())?;
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("watch".into()).spawn(move || watch(&sockets, &theirs)).map_err(io())?;
        Ok(Watch { shared, thread: Some(thread) })
    }

    /// All frames so far, in the order of their times.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        let mut seen = self.shared.seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
        seen.sort_by_key(|s| s.at_ns);
        seen
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic in it has been told already.
            let _ = thread.join();
        }
    }
}

fn watch(sockets: &[(u8, OwnedFd)], shared: &Shared) {
    use std::os::fd::AsFd;
    let mut buffer = vec![0; FRAME];
    while !shared.end.load(Ordering::Relaxed) {
        let mut ready: Vec<PollFd<'_>> = sockets.iter().map(|(_, fd)| PollFd::new(fd.as_fd(), PollFlags::POLLIN)).collect();
        if poll(&mut ready, PollTimeout::from(TICK_MS)).is_err() {
            continue;
        }
        for (host, fd) in sockets {
            // A port that goes down tells an error once; then it goes on.
            while let Ok(taken) = take(fd, *host, &mut buffer) {
                let mut seen = shared.seen.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(frame) = taken
                    && seen.len() < MOST
                {
                    seen.push(frame);
                }
            }
        }
        if sockets.is_empty() {
            std::thread::sleep(Duration::from_millis(u64::from(TICK_MS)));
        }
    }
}

/// Who may run the guest from when on: the time of the fault that let the right pass, and the host.
pub type Reign = (u64, u8);

/// Frames released by a host whose successor had already spoken, and that the successor did not send as well. (A frame of a committed epoch may be
/// released by both: receivers take it for a duplicate.)
#[must_use]
pub fn double_releases(seen: &[Seen], reigns: &[Reign]) -> u64 {
    let mut current = 0;
    let mut wrong = 0;
    for (index, frame) in seen.iter().enumerate() {
        let Some((_, owner)) = reigns.get(current) else { return wrong };
        if frame.host == *owner {
            continue;
        }
        match reigns.get(current + 1) {
            Some((since, next)) if frame.host == *next && frame.at_ns >= *since => current += 1,
            _ => {
                let others: HashSet<u64> = seen.iter().filter(|s| s.host != frame.host).map(|s| s.digest).collect();
                let repeated = seen[..index].iter().any(|s| s.digest == frame.digest) || others.contains(&frame.digest);
                wrong += u64::from(!repeated);
            }
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(at_ns: u64, host: u8, digest: u64) -> Seen {
        Seen { at_ns, host, digest }
    }

    #[test]
    fn a_host_that_speaks_after_its_successor_is_counted_unless_it_repeats() {
        let reigns = [(0, 1), (10, 2)];
        let frames = [seen(1, 1, 100), seen(12, 2, 200), seen(13, 1, 101), seen(14, 1, 200), seen(15, 2, 201)];
        assert_eq!(double_releases(&frames, &reigns), 1);
    }

    #[test]
    fn a_host_that_speaks_before_its_predecessor_was_struck_is_counted() {
        assert_eq!(double_releases(&[seen(1, 1, 1), seen(5, 2, 2), seen(6, 1, 3)], &[(0, 1), (10, 2)]), 1);
    }

    #[test]
    fn the_last_words_of_the_one_before_the_first_of_the_next_are_in_order() {
        assert_eq!(double_releases(&[seen(1, 1, 1), seen(11, 1, 2), seen(12, 2, 3)], &[(0, 1), (10, 2)]), 0);
    }
}
