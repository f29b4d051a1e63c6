//! Commands about the server and the machine: those stock clients send on their own (COMMAND, HELLO, CLIENT, CONFIG, INFO), and ours
//! (DIRTY, CHECK, STAMP, BURN, UPTIME, VCPUS; those about disks are in `disk_command`).

use alloc::format;

use crate::command::{After, upper_case, wrong_arity};
use crate::dirtier::{MOST_RATE, Pattern, Plan};
use crate::disk_command;
use crate::machine::{CheckError, Machine};
use crate::reply::Reply;
use crate::resp::{Args, parse_integer};
use crate::store::Store;

/// Pages that `DIRTY` writes to when it is not told: 64 MiB, or the whole region where that is smaller.
pub const DEFAULT_REGION_PAGES: u64 = 16384;

/// A vCPU that works on the region could not be brought to a stop.
const BUSY: &str = "BUSY a vCPU did not stop dirtying in time: nothing was done, try again";

/// Runs a command that is not about data, or says that it is unknown.
pub(crate) fn execute(name: &[u8], args: Args<'_>, store: &Store, machine: &mut impl Machine, reply: &mut Reply) -> After {
    match name {
        b"PING" => match args.len() {
            1 => reply.simple("PONG"),
            2 => reply.bulk(args.get(1)),
            _ => wrong_arity(reply),
        },
        b"ECHO" if args.len() == 2 => reply.bulk(args.get(1)),
        b"SELECT" if args.len() == 2 => match args.get(1) {
            b"0" => reply.ok(),
            _ => reply.error("ERR DB index is out of range"),
        },
        b"QUIT" => {
            reply.ok();
            return After::Close;
        }
        b"SHUTDOWN" => {
            reply.ok();
            return After::Shutdown;
        }
        b"COMMAND" => reply.array(0),
        b"CLIENT" => client(args, reply),
        b"HELLO" => hello(args, reply),
        b"CONFIG" => config(args, reply),
        b"INFO" => info(store, machine, reply),
        b"TIME" => {
            let now = machine.unix_micros();
            reply.array(2);
            reply.bulk(format!("{}", now / 1_000_000).as_bytes());
            reply.bulk(format!("{}", now % 1_000_000).as_bytes());
        }
        b"DIRTY" => dirty(args, machine, reply),
        b"CHECK" => check(machine, reply),
        b"STAMP" => stamp(machine, reply),
        b"BURN" => match (args.len(), parse_integer(args.get(1))) {
            (2, Some(percent @ 0..=100)) => {
                machine.burn(percent as u8);
                reply.ok();
            }
            _ => reply.error("ERR usage: BURN percent, 0 to 100"),
        },
        b"UPTIME" => {
            let uptime = machine.uptime();
            reply.array(2);
            reply.integer(uptime.ns as i64);
            reply.integer(uptime.backward_steps as i64);
        }
        b"VCPUS" => reply.integer(i64::from(machine.vcpus())),
        b"ECHO" | b"SELECT" => wrong_arity(reply),
        _ if disk_command::execute(name, args, machine, reply) => {}
        _ => unknown(args, reply),
    }
    After::Continue
}

/// Names the unknown command as Redis does, with what could end the reply's line replaced.
fn unknown(args: Args<'_>, reply: &mut Reply) {
    let mut name = [0; 64];
    let given = args.get(0);
    let shown = given.len().min(name.len());
    for (to, &from) in name.iter_mut().zip(&given[..shown]) {
        *to = if from.is_ascii_graphic() { from } else { b'?' };
    }
    let name = core::str::from_utf8(&name[..shown]).unwrap_or("?");
    reply.error(&format!("ERR unknown command '{name}'"));
}

fn client(args: Args<'_>, reply: &mut Reply) {
    let mut word = [0; 16];
    match upper_case(args.get(1), &mut word) {
        b"SETNAME" | b"SETINFO" | b"NO-EVICT" | b"NO-TOUCH" => reply.ok(),
        b"GETNAME" => reply.null(),
        b"ID" => reply.integer(1),
        b"LIST" | b"INFO" => reply.bulk(b""),
        _ => reply.error("ERR unknown CLIENT subcommand: this server knows SETNAME, SETINFO, GETNAME, ID, LIST and INFO"),
    }
}

fn hello(args: Args<'_>, reply: &mut Reply) {
    match (args.len(), args.get(1)) {
        (1, _) | (_, b"2") => {
            reply.array(14);
            for (name, value) in [("server", "lockstep-guest"), ("version", env!("CARGO_PKG_VERSION"))] {
                reply.bulk(name.as_bytes());
                reply.bulk(value.as_bytes());
            }
            reply.bulk(b"proto");
            reply.integer(2);
            reply.bulk(b"id");
            reply.integer(1);
            for (name, value) in [("mode", "standalone"), ("role", "master")] {
                reply.bulk(name.as_bytes());
                reply.bulk(value.as_bytes());
            }
            reply.bulk(b"modules");
            reply.array(0);
        }
        _ => reply.error("NOPROTO unsupported protocol version"),
    }
}

fn config(args: Args<'_>, reply: &mut Reply) {
    let mut word = [0; 16];
    match upper_case(args.get(1), &mut word) {
        b"GET" if args.len() == 3 => {
            let value: &[u8] = match args.get(2) {
                b"save" => b"",
                b"appendonly" => b"no",
                b"maxclients" => b"64",
                b"databases" => b"1",
                _ => {
                    reply.array(0);
                    return;
                }
            };
            reply.array(2);
            reply.bulk(args.get(2));
            reply.bulk(value);
        }
        b"GET" => reply.array(0),
        b"SET" | b"RESETSTAT" => reply.ok(),
        _ => reply.error("ERR unknown CONFIG subcommand: this server knows GET, SET and RESETSTAT"),
    }
}

fn info(store: &Store, machine: &mut impl Machine, reply: &mut Reply) {
    let (uptime, counters, stamp, vcpus) = (machine.uptime(), machine.counters(), machine.stamp_status(), machine.vcpus());
    reply.bulk(
        format!(
            "# Server\r\nredis_version:7.0.0\r\nserver_name:lockstep-guest\r\nredis_mode:standalone\r\ntcp_port:6379\r\nuptime_in_seconds:{}\r\n\
             vcpus:{vcpus}\r\n# Clients\r\nconnected_clients:{}\r\n# Memory\r\nused_memory:{}\r\nmaxmemory:{}\r\n# Stats\r\n\
             total_commands_processed:{}\r\nframes_in:{}\r\nframes_out:{}\r\npages_stamped:{}\r\nclock_backward_steps:{}\r\n# Replication\r\n\
             role:master\r\n# Keyspace\r\ndb0:keys={},expires=0,avg_ttl=0\r\n",
            uptime.ns / 1_000_000_000,
            counters.connections,
            store.used(),
            store.budget(),
            counters.commands,
            counters.frames_in,
            counters.frames_out,
            stamp.stamped,
            uptime.backward_steps,
            store.len(),
        )
        .as_bytes(),
    );
}

fn dirty(args: Args<'_>, machine: &mut impl Machine, reply: &mut Reply) {
    let available = machine.stamp_status().region_pages;
    let plan = match dirty_plan(args, available) {
        Ok(plan) => plan,
        Err(error) => return reply.error(error),
    };
    if plan.pages > available {
        return reply.error(&format!("ERR the DIRTY region has {available} pages: ask for at most that many"));
    }
    if machine.dirty(plan) {
        reply.ok();
    } else {
        reply.error(BUSY);
    }
}

fn dirty_plan(args: Args<'_>, available: u64) -> Result<Plan, &'static str> {
    if !(2..=4).contains(&args.len()) {
        return Err("ERR usage: DIRTY pages-per-second [seq|random|hot] [region-pages]");
    }
    let rate = match parse_integer(args.get(1)) {
        Some(rate) if (0..=MOST_RATE as i64).contains(&rate) => rate as u64,
        _ => return Err("ERR pages-per-second must be a number from 0 to 100000000"),
    };
    let mut word = [0; 16];
    let pattern = match upper_case(args.get(2), &mut word) {
        b"" | b"SEQ" => Pattern::Sequential,
        b"RANDOM" => Pattern::Random,
        b"HOT" => Pattern::Hot,
        _ => return Err("ERR the pattern must be seq, random or hot"),
    };
    let pages = match (args.len(), parse_integer(args.get(3))) {
        (4, Some(pages)) if pages > 0 => pages as u64,
        (4, _) => return Err("ERR region-pages must be a number above 0"),
        _ => DEFAULT_REGION_PAGES.min(available),
    };
    Ok(Plan { rate, pattern, pages })
}

fn check(machine: &mut impl Machine, reply: &mut Reply) {
    match machine.check() {
        Ok(pages) => reply.integer(pages as i64),
        Err(CheckError::Corrupt(corrupt)) => reply.error(&format!(
            "CORRUPT page {} word {} expected {:#x} found {:#x} iteration {}",
            corrupt.page, corrupt.word, corrupt.expected, corrupt.found, corrupt.iteration
        )),
        Err(CheckError::Busy) => reply.error(BUSY),
    }
}

fn stamp(machine: &mut impl Machine, reply: &mut Reply) {
    let status = machine.stamp_status();
    reply.bulk(
        format!(
            "stamped:{} rate:{} pattern:{} pages:{} region_pages:{} region_start:{:#x}",
            status.stamped,
            status.plan.rate,
            status.plan.pattern.name(),
            status.plan.pages,
            status.region_pages,
            status.region_start
        )
        .as_bytes(),
    );
}
