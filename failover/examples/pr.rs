//! Exercises the persistent reservation code on a real device, for the lab's storage host: `pr DEVICE VM probe|shut-out|clear` and `pr DEVICE VM write OFFSET BYTE`.
//!
//! `shut-out` asks no arbiter: whoever calls it is the newest owner. `write` writes one 4 KiB block of BYTE at OFFSET with O_DIRECT and says whether it was refused for a reservation.

use std::error::Error;
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::process::ExitCode;

use failover::fence::{Fence, FenceError, Grant, Owner, Reservation};
use types::{Generation, NodeId, VmId};

/// What the kernel wants of O_DIRECT, for any block size.
const BLOCK: usize = 4096;

#[repr(align(4096))]
struct Block([u8; BLOCK]);

struct Always;

impl Grant for Always {
    fn confirm(&self) -> Result<(), FenceError> {
        Ok(())
    }

    fn wanted(&self) -> bool {
        true
    }
}

fn run(arguments: &[String]) -> Result<String, Box<dyn Error>> {
    let [device, vm, verb, rest @ ..] = arguments else { return Err("pr DEVICE VM probe|shut-out|clear|write OFFSET BYTE".into()) };
    let vm = VmId(vm.clone());
    let fence = Reservation::new(device, vm.clone());
    let me = Owner { vm, node: NodeId("example".to_owned()), host: None, instance: 1, generation: Generation(1) };
    match (verb.as_str(), rest) {
        ("probe", []) => fence.probe()?,
        ("shut-out", []) => fence.shut_out(&[], &me, &Always)?,
        ("clear", []) => fence.release(&me, true),
        ("write", [offset, byte]) => {
            let file = std::fs::OpenOptions::new().write(true).custom_flags(nix::libc::O_DIRECT).open(device)?;
            let block = Box::new(Block([byte.parse()?; BLOCK]));
            match file.write_all_at(&block.0, offset.parse()?) {
                Err(error) if types::block::is_reservation_conflict(&error) => return Ok(format!("refused: {error}")),
                other => other?,
            }
        }
        (other, _) => return Err(format!("no verb {other}, or not its arguments").into()),
    }
    Ok("done".to_owned())
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(text) => {
            let _ = writeln!(std::io::stdout(), "{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
