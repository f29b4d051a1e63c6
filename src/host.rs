//! Facts about this host that more than one verb asks for, read from `/proc`. No policy, nothing privileged.

use std::io;

/// One `kB` value of `/proc/meminfo`, in bytes.
fn meminfo(field: &str) -> io::Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| *name == field)
        .and_then(|(_, rest)| rest.trim().trim_end_matches("kB").trim().parse::<u64>().ok())
        .map(|kib| kib << 10)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("/proc/meminfo has no {field}")))
}

/// Bytes of memory this host has.
///
/// # Errors
/// `/proc/meminfo` cannot be read or has no such line.
pub fn memory_total() -> io::Result<u64> {
    meminfo("MemTotal")
}

/// Bytes of memory that could be had without swapping.
///
/// # Errors
/// `/proc/meminfo` cannot be read or has no such line.
pub fn memory_available() -> io::Result<u64> {
    meminfo("MemAvailable")
}

/// Bytes of reserved huge pages (of the default size) that nobody uses.
///
/// # Errors
/// `/proc/meminfo` cannot be read or has no such lines.
pub fn huge_pages_free() -> io::Result<u64> {
    // A count, not kilobytes.
    let count = meminfo("HugePages_Free")? >> 10;
    Ok(count * meminfo("Hugepagesize")?)
}

/// The host's name.
///
/// # Errors
/// `/proc` is not there.
pub fn name() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/hostname")?.trim().to_owned())
}

/// CLOCK_MONOTONIC in nanoseconds, the clock of [`types::event::NodeEvent`].
#[must_use]
pub fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid timespec to write to; CLOCK_MONOTONIC exists on every Linux, so the call cannot fail.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
