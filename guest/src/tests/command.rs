//! Commands and their exact replies, on a machine made for the test.

use super::*;
use crate::dirtier::{Pattern, Plan};
use crate::disk::tests::{FakeDrive, Fault};
use crate::disk::{Disk, DiskControl};
use crate::machine::{CheckError, Counters, StampStatus, Uptime};
use crate::resp::{Parsed, Parser};
use crate::stamp::Corrupt;
use proptest::prelude::*;
use std::format;
use std::string::String;
use std::vec::Vec;

struct Bench {
    store: Store,
    machine: FakeMachine,
    after: After,
}

struct FakeMachine {
    disk: Disk<FakeDrive>,
    plan: Plan,
    burn: u8,
    check: Result<u64, CheckError>,
    stops: bool,
}

impl Machine for FakeMachine {
    fn uptime(&mut self) -> Uptime {
        Uptime { ns: 5_000_000_000, backward_steps: 2 }
    }
    fn unix_micros(&mut self) -> u64 {
        1_700_000_000_000_042
    }
    fn dirty(&mut self, plan: Plan) -> bool {
        self.plan = plan;
        self.stops
    }
    fn check(&mut self) -> Result<u64, CheckError> {
        self.check
    }
    fn burn(&mut self, percent: u8) {
        self.burn = percent;
    }
    fn stamp_status(&mut self) -> StampStatus {
        StampStatus { plan: self.plan, stamped: 17, region_pages: 30_000, region_start: 0x834_e000 }
    }
    fn disks(&mut self) -> usize {
        1
    }
    fn disk(&mut self, index: usize) -> Option<&mut dyn DiskControl> {
        (index == 0).then_some(&mut self.disk)
    }
    fn vcpus(&mut self) -> u32 {
        3
    }
    fn counters(&mut self) -> Counters {
        Counters::default()
    }
}

impl Bench {
    fn new() -> Bench {
        let machine = FakeMachine { disk: Disk::new(FakeDrive::new()), plan: Plan::IDLE, burn: 0, check: Ok(12), stops: true };
        Bench { store: Store::new(1 << 20), machine, after: After::Continue }
    }

    fn run_bytes(&mut self, request: &[u8]) -> Vec<u8> {
        let mut parser = Parser::new();
        assert!(matches!(parser.parse(request), Ok(Parsed::Complete(length)) if length == request.len()));
        let mut reply = Reply::new();
        self.after = execute(parser.args(request), &mut self.store, &mut self.machine, &mut reply);
        reply.bytes().to_vec()
    }

    fn run(&mut self, line: &str) -> String {
        String::from_utf8(self.run_bytes(format!("{line}\r\n").as_bytes())).expect("text")
    }
}

#[test]
fn strings_numbers_and_keys_answer_as_redis_does() {
    let mut bench = Bench::new();
    for (line, reply) in [
        ("PING", "+PONG\r\n"),
        ("ping hello", "$5\r\nhello\r\n"),
        ("ECHO x", "$1\r\nx\r\n"),
        ("SET a 1", "+OK\r\n"),
        ("GET a", "$1\r\n1\r\n"),
        ("GET none", "$-1\r\n"),
        ("SET a 2 NX", "$-1\r\n"),
        ("SET b 2 XX", "$-1\r\n"),
        ("SET a 5 XX", "+OK\r\n"),
        ("SET a 5 NX XX", "-ERR syntax error\r\n"),
        ("INCR a", ":6\r\n"),
        ("INCRBY a 10", ":16\r\n"),
        ("DECRBY a 20", ":-4\r\n"),
        ("DECR n", ":-1\r\n"),
        ("SET t text", "+OK\r\n"),
        ("INCR t", "-ERR value is not an integer or out of range\r\n"),
        ("SET big 9223372036854775807", "+OK\r\n"),
        ("INCR big", "-ERR increment or decrement would overflow\r\n"),
        ("DECRBY big -9223372036854775808", "-ERR value is not an integer or out of range\r\n"),
        ("MSET x 1 y 2", "+OK\r\n"),
        ("MSET x 1 y", "-ERR wrong number of arguments for this command\r\n"),
        ("MGET x none y", "*3\r\n$1\r\n1\r\n$-1\r\n$1\r\n2\r\n"),
        ("EXISTS x y none x", ":3\r\n"),
        ("DEL x none", ":1\r\n"),
        ("TYPE y", "+string\r\n"),
        ("FLUSHALL", "+OK\r\n"),
        ("DBSIZE", ":0\r\n"),
    ] {
        assert_eq!(bench.run(line), reply, "{line}");
    }
    assert!(bench.run("SET a 1 EX 5").starts_with("-ERR this server keeps no expiry"));
}

#[test]
fn lists_answer_as_redis_does() {
    let mut bench = Bench::new();
    for (line, reply) in [
        ("RPUSH l b c", ":2\r\n"),
        ("LPUSH l a", ":3\r\n"),
        ("LLEN l", ":3\r\n"),
        ("LRANGE l 0 -1", "*3\r\n$1\r\na\r\n$1\r\nb\r\n$1\r\nc\r\n"),
        ("LRANGE l -2 100", "*2\r\n$1\r\nb\r\n$1\r\nc\r\n"),
        ("LRANGE l 5 9", "*0\r\n"),
        ("LRANGE l -9223372036854775808 0", "*1\r\n$1\r\na\r\n"),
        ("GET l", "-WRONGTYPE Operation against a key holding the wrong kind of value\r\n"),
        ("LPOP l", "$1\r\na\r\n"),
        ("RPOP l", "$1\r\nc\r\n"),
        ("LPOP l", "$1\r\nb\r\n"),
        ("LPOP l", "$-1\r\n"),
        ("EXISTS l", ":0\r\n"),
        ("LLEN l", ":0\r\n"),
    ] {
        assert_eq!(bench.run(line), reply, "{line}");
    }
}

#[test]
fn stock_clients_get_the_answers_they_ask_for_on_connecting() {
    let mut bench = Bench::new();
    assert_eq!(bench.run("COMMAND DOCS"), "*0\r\n");
    assert_eq!(bench.run("HELLO 3"), "-NOPROTO unsupported protocol version\r\n");
    assert!(bench.run("HELLO 2").starts_with("*14\r\n$6\r\nserver\r\n"));
    assert_eq!(bench.run("CLIENT SETINFO lib-name x"), "+OK\r\n");
    assert_eq!(bench.run("CONFIG GET save"), "*2\r\n$4\r\nsave\r\n$0\r\n\r\n");
    assert_eq!(bench.run("CONFIG GET whatever"), "*0\r\n");
    assert_eq!(bench.run("SELECT 0"), "+OK\r\n");
    assert_eq!(bench.run("SELECT 1"), "-ERR DB index is out of range\r\n");
    assert_eq!(bench.run("TIME"), "*2\r\n$10\r\n1700000000\r\n$2\r\n42\r\n");
    assert!(bench.run("INFO").contains("clock_backward_steps:2\r\n"));
    assert_eq!(bench.run("NO\u{1}SUCH"), "-ERR unknown command 'NO?SUCH'\r\n");
}

#[test]
fn our_own_commands_reach_the_machine_and_tell_what_it_says() {
    let mut bench = Bench::new();
    assert_eq!(bench.run("DIRTY 500 random 4096"), "+OK\r\n");
    assert_eq!(bench.machine.plan, Plan { rate: 500, pattern: Pattern::Random, pages: 4096 });
    let status = "stamped:17 rate:500 pattern:random pages:4096 region_pages:30000 region_start:0x834e000";
    assert_eq!(bench.run("STAMP"), format!("${}\r\n{status}\r\n", status.len()));
    assert_eq!(bench.run("DIRTY 0"), "+OK\r\n");
    assert_eq!(bench.machine.plan.rate, 0);
    assert_eq!(bench.run("DIRTY 5 seq 30001"), "-ERR the DIRTY region has 30000 pages: ask for at most that many\r\n");
    for line in ["DIRTY", "DIRTY x", "DIRTY -1", "DIRTY 5 zigzag", "DIRTY 5 seq 0", "DIRTY 5 seq 1 2", "BURN 101", "BURN"] {
        assert!(bench.run(line).starts_with("-ERR "), "{line}");
    }
    assert_eq!(bench.run("BURN 40"), "+OK\r\n");
    assert_eq!(bench.machine.burn, 40);
    assert_eq!(bench.run("UPTIME"), "*2\r\n:5000000000\r\n:2\r\n");
    assert_eq!(bench.run("VCPUS"), ":3\r\n");
    assert_eq!(bench.run("CHECK"), ":12\r\n");
    bench.machine.check = Err(CheckError::Corrupt(Corrupt { page: 7, word: 1, expected: 5, found: 4, iteration: 5 }));
    assert_eq!(bench.run("CHECK"), "-CORRUPT page 7 word 1 expected 0x5 found 0x4 iteration 5\r\n");
    bench.machine.check = Err(CheckError::Busy);
    assert!(bench.run("CHECK").starts_with("-BUSY "));
    bench.machine.stops = false;
    assert!(bench.run("DIRTY 1").starts_with("-BUSY "));
}

#[test]
fn disks_are_written_read_and_checked_on_command() {
    let mut bench = Bench::new();
    for (line, reply) in [
        ("DISKS", ":1\r\n"),
        ("DREAD 0 5", ":0\r\n"),
        ("DWRITE 0 5 77", "+OK\r\n"),
        ("DREAD 0 5", ":77\r\n"),
        ("DFLUSH 0", "+OK\r\n"),
        ("DCHECK 0", ":8\r\n"),
        ("DWRITE 0 512 1", "-ERR the disk ends before that block\r\n"),
        ("DLOAD 0 0", "+OK\r\n"),
        ("DLOAD 0 1000 42", "+OK\r\n"),
        ("DREAD 1 0", "-ERR no such disk: this guest has 1, counted from 0\r\n"),
        ("DFLUSH x", "-ERR no such disk: this guest has 1, counted from 0\r\n"),
    ] {
        assert_eq!(bench.run(line), reply, "{line}");
    }
    let status = "sectors:4096 rate:1000 reads:3 writes:1 flushes:1 errors:0 in_flight:0 torn:-1";
    assert_eq!(bench.run("DSTAT 0"), format!("${}\r\n{status}\r\n", status.len()));
    for line in
        ["DWRITE 0 5", "DWRITE 0 5 0", "DWRITE 0 -1 5", "DREAD 0", "DREAD 0 x", "DLOAD 0 1000001", "DLOAD 0 1 x", "DLOAD 0", "DISKS 1"]
    {
        assert!(bench.run(line).starts_with("-ERR "), "{line}");
    }
    bench.machine.disk.drive().fault = Fault::Tear;
    assert_eq!(bench.run("DWRITE 0 5 78"), "+OK\r\n");
    assert!(bench.run("DREAD 0 5").starts_with("-TORN sector 44 word "));
    bench.machine.disk.drive().fault = Fault::Fail;
    assert!(bench.run("DFLUSH 0").starts_with("-IOERR "));
    bench.machine.disk.drive().fault = Fault::Silence;
    assert!(bench.run("DFLUSH 0").starts_with("-SILENT "));
}

#[test]
fn quit_and_shutdown_answer_before_they_act() {
    let mut bench = Bench::new();
    assert_eq!((bench.run("QUIT").as_str(), bench.after), ("+OK\r\n", After::Close));
    assert_eq!((bench.run("SHUTDOWN").as_str(), bench.after), ("+OK\r\n", After::Shutdown));
}

#[test]
fn a_full_store_answers_oom() {
    let mut bench = Bench::new();
    bench.store = Store::new(1000);
    let value = "v".repeat(2000);
    assert!(bench.run(&format!("SET k {value}")).starts_with("-OOM "));
    assert_eq!(bench.run("PING"), "+PONG\r\n");
}

proptest! {
    #[test]
    fn any_request_gets_exactly_one_well_formed_reply(words in prop::collection::vec(prop_oneof!["[A-Z]{3,8}", "GET|SET|LPUSH|LRANGE|DIRTY|DWRITE|DREAD|DLOAD|DSTAT|BURN|MSET|CONFIG|INCRBY", "[ -~]{1,12}", "-?[0-9]{1,20}"], 1..6)) {
        let mut bench = Bench::new();
        let mut request = format!("*{}\r\n", words.len());
        for word in &words {
            request += &format!("${}\r\n{}\r\n", word.len(), word);
        }
        let reply = bench.run_bytes(request.as_bytes());
        prop_assert_eq!(reply_length(&reply), Some(reply.len()));
    }
}

/// Length of the RESP2 reply at the start of `bytes`.
fn reply_length(bytes: &[u8]) -> Option<usize> {
    let line = bytes.iter().position(|&byte| byte == b'\n')? + 1;
    let number = || core::str::from_utf8(&bytes[1..line - 2]).ok()?.parse::<i64>().ok();
    match bytes.first()? {
        b'+' | b'-' => Some(line),
        b':' => number().map(|_| line),
        b'$' => Some(line + usize::try_from(number()?).map_or(0, |length| length + 2)),
        b'*' => (0..number()?).try_fold(line, |at, _| Some(at + reply_length(bytes.get(at..)?)?)),
        _ => None,
    }
}
