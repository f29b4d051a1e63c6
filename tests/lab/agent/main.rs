//! The lab's agent: the first process of a lab host and of the stock guest, and what the harness talks to.
//!
//! `agent host` and `agent guest` are process 1: they start `agent serve-host` or `agent serve-guest`, and reap what is orphaned. Nothing here
//! is part of the system under test. Standard library only, linked statically: it runs in an initramfs, on any root file system.

mod blocks;
mod button;
mod clock;
mod guest;
mod kernel_log;
mod serve;
mod sqlite;
mod stamp;
mod sys;

use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicU64, Ordering};

/// Reads `key=value` from the kernel's command line.
pub fn boot_option(key: &str) -> Option<String> {
    let line = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    line.split_whitespace().filter_map(|word| word.split_once('=')).find(|(name, _)| *name == key).map(|(_, value)| value.to_owned())
}

/// Counters of processors that there are, separated by commas.
fn each_cpu(counters: &[AtomicU64; sys::MOST_CPUS]) -> String {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    counters.iter().take(cpus).map(|counter| counter.load(Ordering::Relaxed).to_string()).collect::<Vec<_>>().join(",")
}

/// Starts the server and reaps orphans for as long as it lives.
fn first_process(server: &str) -> ExitCode {
    let program = std::env::current_exe().unwrap_or_else(|_| "/proc/self/exe".into());
    let child = match Command::new(program).arg(server).spawn() {
        Ok(child) => child.id(),
        Err(error) => {
            println!("agent: cannot start {server}: {error}");
            return ExitCode::FAILURE;
        }
    };
    loop {
        match sys::reap() {
            Ok(pid) if pid == child => {
                println!("agent: the server has ended: turning off");
                let _ = sys::end(false);
                return ExitCode::FAILURE;
            }
            Ok(_) => {}
            Err(error) => println!("agent: waitpid: {error}"),
        }
    }
}

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("host") => first_process("serve-host"),
        Some("guest") => first_process("serve-guest"),
        Some("serve-host") => serve::run(),
        Some("serve-guest") => {
            guest::start_services();
            serve::run()
        }
        other => {
            println!("agent: no such role: {other:?}");
            ExitCode::FAILURE
        }
    }
}
