//! Commands about disks: `DISKS`, `DWRITE`, `DREAD`, `DFLUSH`, `DLOAD`, `DCHECK`, `DSTAT`.
//!
//! | command | answer |
//! |---|---|
//! | `DISKS` | how many disks there are |
//! | `DWRITE disk block stamp` | OK when the device has completed the write of a 4 KiB block whose every word carries the stamp (1 and up) |
//! | `DREAD disk block` | the stamp that the block carries, 0 if it was never written; `TORN` if its words carry different ones |
//! | `DFLUSH disk` | OK when everything written is durable |
//! | `DLOAD disk ops-per-second [seed]` | OK; from then on a stream of writes, reads and flushes, 512 bytes to 64 KiB, each read compared; 0 stops it |
//! | `DCHECK disk` | how many sectors this guest has written and reads again as it wrote them; `TORN` at the first other, now or earlier in the stream |
//! | `DSTAT disk` | numbers |

use alloc::format;

use crate::command::wrong_arity;
use crate::disk::{DiskControl, DiskError, MOST_OPS};
use crate::machine::Machine;
use crate::reply::Reply;
use crate::resp::{Args, parse_integer};

/// Runs a command about disks; `false` when the name is not one's.
pub(crate) fn execute(name: &[u8], args: Args<'_>, machine: &mut impl Machine, reply: &mut Reply) -> bool {
    let arity = match name {
        b"DISKS" => 1..=1,
        b"DFLUSH" | b"DCHECK" | b"DSTAT" => 2..=2,
        b"DREAD" => 3..=3,
        b"DLOAD" => 3..=4,
        b"DWRITE" => 4..=4,
        _ => return false,
    };
    if !arity.contains(&args.len()) {
        wrong_arity(reply);
        return true;
    }
    if name == b"DISKS" {
        reply.integer(machine.disks() as i64);
        return true;
    }
    let disks = machine.disks();
    let index = number(args, 1).and_then(|index| usize::try_from(index).ok());
    let Some(disk) = index.and_then(|index| machine.disk(index)) else {
        reply.error(&format!("ERR no such disk: this guest has {disks}, counted from 0"));
        return true;
    };
    run(name, args, disk, reply);
    true
}

fn run(name: &[u8], args: Args<'_>, disk: &mut dyn DiskControl, reply: &mut Reply) {
    let done = |result: Result<(), DiskError>, reply: &mut Reply| match result {
        Ok(()) => reply.ok(),
        Err(error) => failed(error, reply),
    };
    let count = |result: Result<u64, DiskError>, reply: &mut Reply| match result {
        Ok(number) => reply.integer(number as i64),
        Err(error) => failed(error, reply),
    };
    match name {
        b"DWRITE" => match (number(args, 2), number(args, 3)) {
            (Some(block), Some(stamp)) if stamp > 0 => done(disk.write_block(block, stamp), reply),
            _ => reply.error("ERR usage: DWRITE disk block stamp, with a stamp above 0"),
        },
        b"DREAD" => match number(args, 2) {
            Some(block) => count(disk.read_block(block), reply),
            None => reply.error("ERR usage: DREAD disk block"),
        },
        b"DFLUSH" => done(disk.flush(), reply),
        b"DCHECK" => count(disk.check(), reply),
        b"DLOAD" => match (number(args, 2), if args.len() == 4 { number(args, 3) } else { Some(1) }) {
            (Some(rate), Some(seed)) if rate <= MOST_OPS => {
                disk.load(rate, seed);
                reply.ok();
            }
            _ => reply.error("ERR usage: DLOAD disk ops-per-second [seed], with at most 1000000 operations"),
        },
        _ => {
            let status = disk.status();
            let torn = status.torn.map_or(-1, |torn| torn.sector as i64);
            reply.bulk(
                format!(
                    "sectors:{} rate:{} reads:{} writes:{} flushes:{} errors:{} in_flight:{} torn:{torn}",
                    status.sectors, status.rate, status.reads, status.writes, status.flushes, status.errors, status.in_flight
                )
                .as_bytes(),
            );
        }
    }
}

fn number(args: Args<'_>, index: usize) -> Option<u64> {
    parse_integer(args.get(index)).and_then(|number| u64::try_from(number).ok())
}

fn failed(error: DiskError, reply: &mut Reply) {
    match error {
        DiskError::Failed => reply.error("IOERR the disk answered with an error"),
        DiskError::Silent => reply.error("SILENT the disk did not answer in time; the request is still under way"),
        DiskError::Beyond => reply.error("ERR the disk ends before that block"),
        DiskError::LedgerFull => reply.error("ERR the ledger is full: it covers 64 MiB of what is written to one disk"),
        DiskError::Torn(torn) => {
            reply
                .error(&format!("TORN sector {} word {} expected stamp {:#x} found {:#x}", torn.sector, torn.word, torn.stamp, torn.found));
        }
    }
}
