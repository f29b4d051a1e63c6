//! The few system calls that the standard library does not offer, each behind a safe face. The agent uses no crate: it is built by rustc alone.

use std::ffi::{c_int, c_long, c_ulong};
use std::io;

#[repr(C)]
struct Timespec {
    seconds: i64,
    nanoseconds: c_long,
}

unsafe extern "C" {
    fn kill(pid: c_int, signal: c_int) -> c_int;
    fn waitpid(pid: c_int, status: *mut c_int, options: c_int) -> c_int;
    fn reboot(command: c_int) -> c_int;
    fn sync();
    fn clock_settime(clock: c_int, time: *const Timespec) -> c_int;
    fn ioctl(fd: c_int, request: c_ulong, ...) -> c_int;
    fn fallocate(fd: c_int, mode: c_int, offset: i64, length: i64) -> c_int;
    fn sched_setaffinity(pid: c_int, bytes: usize, mask: *const c_ulong) -> c_int;
}

/// Processors that probes run on at most; more than any machine of Lockstep has.
pub const MOST_CPUS: usize = 16;

/// For `open`: around the page cache (asm-generic/fcntl.h, as on x86).
pub const O_DIRECT: i32 = 0o40000;
/// linux/fs.h: `_IO(0x12, 119)` and `_IO(0x12, 127)`.
const BLKDISCARD: c_ulong = 0x1277;
const BLKZEROOUT: c_ulong = 0x127f;
/// FALLOC_FL_KEEP_SIZE and FALLOC_FL_PUNCH_HOLE (linux/falloc.h).
const PUNCH_HOLE: c_int = 0x01 | 0x02;

/// SIGKILL.
pub const KILL: i32 = 9;
/// SIGTERM.
pub const TERM: i32 = 15;
const CLOCK_REALTIME: c_int = 0;
const RB_POWER_OFF: c_int = 0x4321_fedc;
const RB_AUTOBOOT: c_int = 0x0123_4567;

fn checked(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Sends `signal` to every process of the group `group`.
pub fn signal_group(group: u32, signal: i32) {
    // SAFETY: kill has no memory to get wrong; a group that is gone is an error that means the wish is fulfilled.
    unsafe { kill(-(group as c_int), signal) };
}

/// Sends `signal` to every process but this one and the first.
pub fn signal_all(signal: i32) {
    // SAFETY: as above.
    unsafe { kill(-1, signal) };
}

/// Waits for any child; its number. An error when there is none.
pub fn reap() -> io::Result<u32> {
    let mut status = 0;
    // SAFETY: `status` is a valid place for an int.
    checked(unsafe { waitpid(-1, &raw mut status, 0) }).map(|pid| pid as u32)
}

/// Writes back everything, then turns the machine off or starts it again.
pub fn end(start_again: bool) -> io::Result<()> {
    // SAFETY: neither call takes memory; both end this system, which is what was asked for.
    checked(unsafe {
        sync();
        reboot(if start_again { RB_AUTOBOOT } else { RB_POWER_OFF })
    })
    .map(drop)
}

/// Sets CLOCK_REALTIME to `ns` since 1970.
pub fn set_realtime(ns: u64) -> io::Result<()> {
    let time = Timespec { seconds: (ns / 1_000_000_000) as i64, nanoseconds: (ns % 1_000_000_000) as c_long };
    // SAFETY: `time` is a valid timespec for the length of the call.
    checked(unsafe { clock_settime(CLOCK_REALTIME, &raw const time) }).map(drop)
}

/// Keeps the calling thread on processor `cpu` (below [`MOST_CPUS`]).
pub fn pin(cpu: usize) -> io::Result<()> {
    let mask: c_ulong = 1 << cpu;
    // SAFETY: the mask is as long as is said, and read only during the call; 0 is the calling thread.
    checked(unsafe { sched_setaffinity(0, size_of::<c_ulong>(), &raw const mask) }).map(drop)
}

/// Says that `length` bytes of a block device from `offset` on are not needed any more.
pub fn discard(fd: c_int, offset: u64, length: u64) -> io::Result<()> {
    let range = [offset, length];
    // SAFETY: BLKDISCARD reads two u64; `range` lives for the length of the call.
    checked(unsafe { ioctl(fd, BLKDISCARD, range.as_ptr()) }).map(drop)
}

/// Makes `length` bytes of a block device from `offset` on zeros.
pub fn zero_out(fd: c_int, offset: u64, length: u64) -> io::Result<()> {
    let range = [offset, length];
    // SAFETY: BLKZEROOUT reads two u64; `range` lives for the length of the call.
    checked(unsafe { ioctl(fd, BLKZEROOUT, range.as_ptr()) }).map(drop)
}

/// The same by fallocate(2), which lets the device give the space back.
pub fn punch_hole(fd: c_int, offset: u64, length: u64) -> io::Result<()> {
    // SAFETY: takes no memory.
    checked(unsafe { fallocate(fd, PUNCH_HOLE, offset as i64, length as i64) }).map(drop)
}
