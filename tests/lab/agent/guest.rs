//! What runs in the stock guest beside the agent's server: the probes, and the servers under load that the kernel's command line names.
//!
//! `lab.services=redis,sqlite` names the servers; `lab.stamp=MIB` the stamped memory (0: none); `lab.pace=N` makes the probes of each processor sleep N times
//! as long, for machines of many; `lab.blocks=DEVICE,...`
//! disks that are written and read at random ([`blocks`]). Ends in good order on `power-off`.

use std::process::{Command, Stdio};
use std::time::Duration;

use crate::{blocks, boot_option, button, clock, sqlite, stamp, sys};

/// Stamped memory over all processors, MiB, unless the command line says otherwise.
const STAMPED_MIB: usize = 8;
/// Processes are given so long to end in good order.
const GRACE: Duration = Duration::from_millis(1500);

/// Starts everything that the command line names.
pub fn start_services() {
    button::listen();
    let stamped = boot_option("lab.stamp").and_then(|text| text.parse().ok()).unwrap_or(STAMPED_MIB);
    let pace = boot_option("lab.pace").and_then(|text| text.parse().ok()).unwrap_or(1);
    let cpus = std::thread::available_parallelism().map_or(1, usize::from).min(sys::MOST_CPUS);
    for cpu in 0..cpus {
        std::thread::spawn(move || clock::run(cpu, pace));
        if stamped > 0 {
            std::thread::spawn(move || stamp::run(cpu, cpus as u32 * pace, (stamped / cpus).max(1)));
        }
    }
    for device in boot_option("lab.blocks").unwrap_or_default().split(',').filter(|d| !d.is_empty()) {
        blocks::start(device);
    }
    for service in boot_option("lab.services").unwrap_or_default().split(',').filter(|s| !s.is_empty()) {
        match service {
            "redis" => redis(),
            "sqlite" | "sqlite-wal" => drop(std::thread::spawn(sqlite::run)),
            other => println!("agent: no such service: {other}"),
        }
    }
}

/// Redis as a careful operator runs it: every write is flushed to the disk before it is acknowledged.
fn redis() {
    let options = ["--bind", "0.0.0.0", "--protected-mode", "no", "--dir", "/var/lib/redis", "--save", ""];
    let durable =
        ["--appendonly", "yes", "--appendfsync", "always", "--auto-aof-rewrite-percentage", "0", "--logfile", "/var/log/redis.log"];
    if let Err(error) = Command::new("redis-server").args(options).args(durable).stdin(Stdio::null()).stdout(Stdio::null()).spawn() {
        println!("agent: cannot start redis-server: {error}");
    }
}

/// What the probes have seen: `key=value` lines.
pub fn status() -> String {
    format!("{}{}{}", stamp::status(), clock::status(), blocks::status())
}

/// Ends every process, makes the root disk clean and read-only, and turns the machine off or starts it again.
///
/// # Errors
/// The kernel refuses.
pub fn end(start_again: bool) -> std::io::Result<()> {
    sys::signal_all(sys::TERM);
    std::thread::sleep(GRACE);
    sys::signal_all(sys::KILL);
    // Refused where the root is an initramfs: then there is nothing to make clean.
    let _ = Command::new("mount").args(["-o", "remount,ro", "/"]).status();
    sys::end(start_again)
}
