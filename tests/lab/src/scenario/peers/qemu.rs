//! A QEMU in a lab host, and its control connection (QMP over TCP on the management network): commands, and the events that come meanwhile with QEMU's
//! own times. Not here: what is measured with it.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::error::LabError;
use crate::host::{Host, quoted};
use crate::lab::Lab;
use crate::net::{Net, address};
use crate::scenario::guest::{GUEST_MAC, GuestSpec};

/// Where QEMU's control socket listens in its host.
const CONTROL_PORT: u16 = 4600;
/// Where an incoming migration listens in its host.
const MIGRATION_PORT: u16 = 4700;
/// Longest wait for an answer. QEMU answers within milliseconds, but not while it switches a guest over or takes a checkpoint.
const ANSWER_BOUND: Duration = Duration::from_secs(20);
/// Longest wait for the control socket after the start: under emulation QEMU's libraries alone take seconds to load.
const START_BOUND: Duration = Duration::from_secs(40);
/// Longest migration; on an idle machine it takes 2 to 3 s.
const MIGRATION_BOUND: Duration = Duration::from_secs(60);
/// Between two looks at something that takes seconds.
const TICK: Duration = Duration::from_millis(50);
/// Events that may come before an answer; more means that no answer will.
const MOST_EVENTS: usize = 10_000;
/// QEMU's machine. Its other one for PCI, q35, cannot load a state for the second time (memory_region_add_subregion_common: Assertion `!subregion->container'
/// failed), which COLO's second side does at every checkpoint.
const MACHINE: &str = "pc";

/// What a QEMU is started as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// It has a card in the client network. A COLO pair has none: both sides run the guest, and two of one address must not speak.
    pub card: bool,
    /// It waits for a guest from another host and boots none itself.
    pub incoming: bool,
}

/// An event of QEMU's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its name, as QEMU has it.
    pub name: String,
    /// QEMU's time, microseconds of its host's clock.
    pub at_us: u64,
}

/// A QEMU that was started.
#[derive(Debug)]
pub struct Qemu {
    /// Number of its host.
    pub host: u8,
    pid: u32,
    place: String,
    input: BufReader<TcpStream>,
    /// All that it has told so far.
    pub events: Vec<Event>,
}

/// The command line of a QEMU with the machine that `guest` has under Lockstep: memory, one processor, kernel, initramfs, one card.
fn command_line(guest: &GuestSpec, host: u8, console: &str, start: Start) -> String {
    let option = |wanted: &str| {
        let found = guest.node_options(false, "").into_iter().find(|(key, _)| *key == wanted);
        quoted(&found.map_or_else(String::new, |(_, value)| value))
    };
    let mac = GUEST_MAC.map(|b| format!("{b:02x}")).join(":");
    let control = address(Net::Management, host).map_or_else(String::new, |ip| format!("{ip}:{CONTROL_PORT}"));
    let card = match start.card {
        true => format!(" -netdev tap,id=net,ifname=tap0,script=no,downscript=no -device virtio-net-pci,netdev=net,mac={mac},romfile="),
        false => String::new(),
    };
    let incoming = if start.incoming { " -incoming defer" } else { "" };
    format!(
        "qemu-system-x86_64 -name peer -machine {MACHINE} -accel kvm -cpu host -smp {cpus} -m {memory}M -nodefaults -no-user-config -display none \
         -no-reboot -kernel {kernel} -initrd {initramfs} -append {words} -serial file:{console} -qmp tcp:{control},server=on,wait=off{card}{incoming}",
        cpus = guest.cpus,
        memory = guest.memory_mib,
        kernel = option("kernel"),
        initramfs = option("initramfs"),
        words = option("cmdline"),
    )
}

impl Qemu {
    /// Starts one on host `number`; its guest's console goes to `/shared/NAME.console.log`, its own words to `/shared/NAME.log`.
    ///
    /// # Errors
    /// The host does not answer, or QEMU ends at once.
    pub fn start(lab: &mut Lab, number: u8, name: &str, guest: &GuestSpec, start: Start) -> Result<Qemu, LabError> {
        let line = command_line(guest, number, &format!("/shared/{name}.console.log"), start);
        let log = format!("/shared/{name}.log");
        let host = lab.host(number)?;
        let pid = host.spawn(&line, &log)?;
        let place = format!("the guest's QEMU on {}", host.name());
        let input = connect(lab, number, pid, &place, &log)?;
        let mut qemu = Qemu { host: number, pid, place, input, events: Vec::new() };
        // The first line is a greeting, without which nothing is taken.
        qemu.line()?;
        qemu.ask("qmp_capabilities", &json!({}))?;
        Ok(qemu)
    }

    fn failed(&self, what: &str, source: io::Error) -> LabError {
        LabError::Io { what: format!("ask {} for {what}", self.place), source }
    }

    fn line(&mut self) -> Result<Value, LabError> {
        let mut line = String::new();
        match self.input.read_line(&mut line) {
            Ok(0) => Err(LabError::Dead { host: self.place.clone(), why: "it closed its control connection".into() }),
            Ok(_) => Ok(serde_json::from_str(&line).unwrap_or_default()),
            Err(error) => Err(self.failed("anything", error)),
        }
    }

    /// Runs one command; what it returns.
    ///
    /// # Errors
    /// No answer in time, or QEMU refuses.
    pub fn ask(&mut self, name: &str, arguments: &Value) -> Result<Value, LabError> {
        let request = format!("{}\n", json!({"execute": name, "arguments": arguments}));
        self.input.get_mut().write_all(request.as_bytes()).map_err(|error| self.failed(name, error))?;
        let refused = |said: String| LabError::Qemu { host: self.place.clone(), what: name.to_owned(), said };
        let none = refused("no answer".into());
        for _ in 0..MOST_EVENTS {
            let answer = self.line()?;
            if let Some(error) = answer.get("error") {
                return Err(LabError::Qemu { host: self.place.clone(), what: name.to_owned(), said: error.to_string() });
            }
            if let Some(value) = answer.get("return") {
                return Ok(value.clone());
            }
            if let Some(event) = event(&answer) {
                self.events.push(event);
            }
        }
        Err(none)
    }

    /// Lets `time` pass, taking events as they come.
    ///
    /// # Errors
    /// It does not answer any more.
    pub fn watch(&mut self, time: Duration) -> Result<(), LabError> {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.ask("query-status", &json!({}))?;
            std::thread::sleep(TICK.min(until.saturating_duration_since(Instant::now())));
        }
        Ok(())
    }

    /// Sends its guest to `to`, over the replication network, until the migration is in `state`; what QEMU says about it then.
    ///
    /// # Errors
    /// It fails, or takes too long.
    pub fn migrate(&mut self, to: &mut Qemu, state: &str) -> Result<Value, LabError> {
        let target = address(Net::Replication, to.host).map_or_else(String::new, |ip| format!("tcp:{ip}:{MIGRATION_PORT}"));
        to.ask("migrate-incoming", &json!({"uri": target}))?;
        self.ask("migrate", &json!({"uri": target}))?;
        let deadline = Instant::now() + MIGRATION_BOUND;
        loop {
            let told = self.ask("query-migrate", &json!({}))?;
            let status = told.get("status").and_then(Value::as_str).unwrap_or_default();
            if status == state {
                return Ok(told);
            }
            if ["failed", "cancelled", "completed"].contains(&status) {
                return Err(LabError::Qemu { host: self.place.clone(), what: "migrate".into(), said: told.to_string() });
            }
            if Instant::now() >= deadline {
                return Err(LabError::Late {
                    what: format!("a migration ({status})"),
                    bound: MIGRATION_BOUND,
                    detail: format!(": {told}"),
                });
            }
            std::thread::sleep(TICK);
        }
    }

    /// Ends it; it is gone when this returns.
    ///
    /// # Errors
    /// The host does not answer.
    pub fn kill(self, lab: &mut Lab) -> Result<(), LabError> {
        let pid = self.pid;
        lab.host(self.host)?
            .must(&format!(
                "kill -9 {pid} 2>/dev/null; n=0; while kill -0 {pid} 2>/dev/null && [ $n -lt 200 ]; do sleep 0.05; n=$((n+1)); done"
            ))
            .map(drop)
    }
}

fn connect(lab: &mut Lab, number: u8, pid: u32, place: &str, log: &str) -> Result<BufReader<TcpStream>, LabError> {
    let network = std::sync::Arc::clone(lab.network());
    let host: &Host = lab.host(number)?;
    let io = |source| LabError::Io { what: format!("connect to {place}"), source };
    // Every host has one.
    let Some(ip) = address(Net::Management, number) else { return Err(io(io::ErrorKind::AddrNotAvailable.into())) };
    let deadline = Instant::now() + START_BOUND;
    let stream = loop {
        match network.switch.run(|| TcpStream::connect_timeout(&SocketAddr::new(ip, CONTROL_PORT), ANSWER_BOUND))? {
            Ok(stream) => break stream,
            Err(error) => {
                let alive = host.exec(&format!("kill -0 {pid}"), ANSWER_BOUND)?.ok();
                if !alive || Instant::now() >= deadline {
                    let said = host.must(&format!("tail -c 600 {log}"))?;
                    return Err(LabError::Dead { host: place.to_owned(), why: format!("{error}; it said: {said}") });
                }
                std::thread::sleep(TICK);
            }
        }
    };
    stream.set_read_timeout(Some(ANSWER_BOUND)).and_then(|()| stream.set_write_timeout(Some(ANSWER_BOUND))).map_err(io)?;
    Ok(BufReader::new(stream))
}

fn event(line: &Value) -> Option<Event> {
    let part = |key: &str| line.get("timestamp")?.get(key)?.as_u64();
    let name = line.get("event")?.as_str()?.to_owned();
    Some(Event { name, at_us: part("seconds")? * 1_000_000 + part("microseconds")? })
}

/// How long the guest stood still each time that it was stopped and went on again, microseconds.
#[must_use]
pub fn pauses_us(events: &[Event]) -> Vec<u64> {
    let mut stopped = None;
    let mut pauses = Vec::new();
    for event in events {
        match event.name.as_str() {
            "STOP" => stopped = Some(event.at_us),
            "RESUME" => pauses.extend(stopped.take().map(|at| event.at_us.saturating_sub(at))),
            _ => {}
        }
    }
    pauses
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_from_a_stop_to_the_next_resume() {
        let line = |name: &str, micro: u64| json!({"event": name, "timestamp": {"seconds": 2, "microseconds": micro}});
        let told = [line("RESUME", 1), line("STOP", 10), line("MIGRATION", 12), line("RESUME", 35), line("STOP", 60)];
        let events: Vec<Event> = told.iter().filter_map(event).collect();
        assert_eq!(events.len(), told.len());
        assert_eq!(events[1], Event { name: "STOP".into(), at_us: 2_000_010 });
        assert_eq!(pauses_us(&events), [25]);
    }

    #[test]
    fn qemu_is_given_the_guest_that_lockstep_is_given() {
        let guest = GuestSpec::stock();
        let line = command_line(&guest, 2, "/shared/x", Start { card: true, incoming: true });
        assert!(line.contains("-m 256M") && line.contains("/initramfs'") && line.ends_with("-incoming defer"), "{line}");
        let alone = command_line(&guest, 1, "/shared/x", Start { card: false, incoming: false });
        assert!(!alone.contains("tap0") && !alone.contains("incoming"), "{alone}");
    }
}
