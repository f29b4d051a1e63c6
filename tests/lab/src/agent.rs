//! Talking to the agent in a host or in the stock guest (`agent/serve.rs` has the protocol). Every request has a time limit.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lockstep::demo::namespace::Namespace;

use crate::command::tail;
use crate::error::LabError;

/// Where agents listen.
const PORT: u16 = 7000;
/// The agent ends a command by itself when its time is over; its answer is awaited so much longer.
const GRACE: Duration = Duration::from_secs(5);
/// A reply is looked for so often; between, the deadline is.
const TICK: Duration = Duration::from_millis(100);
/// Longest frame that is taken; the agent sends 64 KiB at most.
const MOST_FRAME: usize = 16 << 20;
/// Bytes of a failed command's words that are shown.
const SHOWN: usize = 800;
/// Most attempts at reading a clock; the one with the shortest round trip counts.
const CLOCK_ATTEMPTS: u32 = 5;
/// A round trip that is short enough to make no further attempt.
const SHORT_TRIP_NS: u64 = 40_000_000;

/// What a command said and how it ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// Exit status as a shell has it, or "timeout".
    pub status: String,
    /// Standard output.
    pub out: Vec<u8>,
    /// Standard error.
    pub err: Vec<u8>,
}

impl Output {
    /// Whether it ended well.
    #[must_use]
    pub fn ok(&self) -> bool {
        self.status == "0"
    }

    /// Standard output as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }
}

/// One agent's address. Holds no connection.
#[derive(Debug)]
pub struct Agent<'a> {
    /// Where it can be reached from.
    pub namespace: &'a Namespace,
    /// Its address.
    pub address: IpAddr,
    /// Name of its machine, for errors.
    pub place: &'a str,
}

impl Agent<'_> {
    fn failed(&self, what: &str, source: io::Error, bound: Duration) -> LabError {
        if matches!(source.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock) {
            return LabError::Late { what: format!("{}: {what}", self.place), bound, detail: String::new() };
        }
        LabError::Io { what: format!("ask the agent of {} for {what}", self.place), source }
    }

    /// Sends one request and passes its answer's frames on as they come; the exit status.
    fn request(&self, what: &str, bytes: &[&[u8]], bound: Duration, mut each: impl FnMut(u8, &[u8])) -> Result<String, LabError> {
        let deadline = Instant::now() + bound + GRACE;
        let mut converse = || -> io::Result<String> {
            let mut stream = self
                .namespace
                .run(|| TcpStream::connect_timeout(&SocketAddr::new(self.address, PORT), bound))
                .map_err(io::Error::other)??;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(TICK))?;
            stream.set_write_timeout(Some(bound))?;
            for part in bytes {
                stream.write_all(part)?;
            }
            loop {
                let mut head = [0; 5];
                fill(&mut stream, &mut head, deadline)?;
                let [kind, length @ ..] = head;
                let length = u32::from_be_bytes(length) as usize;
                if length > MOST_FRAME {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame too long"));
                }
                let mut payload = vec![0; length];
                fill(&mut stream, &mut payload, deadline)?;
                if kind == 0 {
                    return Ok(String::from_utf8_lossy(&payload).into_owned());
                }
                each(kind, &payload);
            }
        };
        converse().map_err(|source| self.failed(what, source, bound))
    }

    /// Runs `script` for at most `bound`, passing output on as it comes; the exit status.
    ///
    /// # Errors
    /// The agent cannot be reached or goes away.
    pub fn stream(&self, script: &str, input: &[u8], bound: Duration, each: impl FnMut(u8, &[u8])) -> Result<String, LabError> {
        let head = format!("exec {} {} {}\n", bound.as_millis(), script.len(), input.len());
        self.request(tail(script, 80), &[head.as_bytes(), script.as_bytes(), input], bound, each)
    }

    /// Runs `script` for at most `bound`.
    ///
    /// # Errors
    /// The agent cannot be reached or goes away. How the script ends is no error here.
    pub fn exec(&self, script: &str, bound: Duration) -> Result<Output, LabError> {
        self.exec_with(script, &[], bound)
    }

    fn exec_with(&self, script: &str, input: &[u8], bound: Duration) -> Result<Output, LabError> {
        let mut output = Output::default();
        output.status =
            self.stream(script, input, bound, |kind, bytes| if kind == 1 { &mut output.out } else { &mut output.err }.extend(bytes))?;
        Ok(output)
    }

    /// As [`Self::exec`]; its standard output.
    ///
    /// # Errors
    /// As there, or the script does not end well.
    pub fn must(&self, script: &str, bound: Duration) -> Result<String, LabError> {
        self.must_with(script, &[], bound)
    }

    /// As [`Self::must`], with `input` as its standard input.
    ///
    /// # Errors
    /// As there.
    pub fn must_with(&self, script: &str, input: &[u8], bound: Duration) -> Result<String, LabError> {
        let output = self.exec_with(script, input, bound)?;
        if output.ok() {
            return Ok(output.text());
        }
        let said = if output.err.is_empty() { &output.out } else { &output.err };
        let said = tail(&String::from_utf8_lossy(said), SHOWN).to_owned();
        Err(LabError::Remote { place: self.place.to_owned(), script: tail(script, 200).to_owned(), status: output.status, said })
    }

    fn simple(&self, request: &str, bound: Duration) -> Result<String, LabError> {
        let mut text = Vec::new();
        let status = self.request(request, &[request.as_bytes(), b"\n"], bound, |_, bytes| text.extend(bytes))?;
        let text = String::from_utf8_lossy(&text).into_owned();
        if status == "0" {
            return Ok(text);
        }
        Err(LabError::Remote { place: self.place.to_owned(), script: request.to_owned(), status, said: text })
    }

    /// How far the machine's CLOCK_REALTIME is ahead of this one's, and the round trip within which that is uncertain; nanoseconds.
    ///
    /// # Errors
    /// No answer in time.
    pub fn clock_offset_ns(&self, bound: Duration) -> Result<(i64, u64), LabError> {
        let mut best: Option<(i64, u64)> = None;
        for _ in 0..CLOCK_ATTEMPTS {
            let before = realtime_ns();
            let there: i128 = self.simple("time", bound)?.trim().parse().unwrap_or_default();
            let after = realtime_ns();
            let trip = (after - before) as u64;
            let offset = (there - (before + after) / 2) as i64;
            if best.is_none_or(|(_, shortest)| trip < shortest) {
                best = Some((offset, trip));
            }
            if trip < SHORT_TRIP_NS {
                break;
            }
        }
        best.ok_or_else(|| LabError::Found("no clock reading".into()))
    }

    /// Sets the machine's clock to this one's, as well as that can be done over the network.
    ///
    /// # Errors
    /// No answer in time, or the clock cannot be set.
    pub fn set_clock(&self, bound: Duration) -> Result<(), LabError> {
        // The request's way there is about half of a round trip; connecting is a round trip too.
        let (_, trip) = self.clock_offset_ns(bound)?;
        self.simple(&format!("set-time {}", realtime_ns() + i128::from(trip) / 2), bound)?;
        // What is left is measured and taken out once more.
        let (offset, _) = self.clock_offset_ns(bound)?;
        self.simple(&format!("set-time {}", realtime_ns() + i128::from(trip) / 2 - i128::from(offset)), bound).map(drop)
    }

    /// What the guest's probes have seen: `key=value` lines.
    ///
    /// # Errors
    /// No answer in time.
    pub fn status(&self, bound: Duration) -> Result<String, LabError> {
        self.simple("status", bound)
    }

    /// What the kernel has said of level error and worse, a line each.
    ///
    /// # Errors
    /// No answer in time.
    pub fn kernel_errors(&self, bound: Duration) -> Result<String, LabError> {
        self.simple("kernel-errors", bound)
    }

    /// Ends the machine from inside, in good order.
    ///
    /// # Errors
    /// The request is not answered.
    pub fn power_off(&self, bound: Duration) -> Result<(), LabError> {
        self.simple("power-off", bound).map(drop)
    }

    /// Starts the machine again from inside, in good order.
    ///
    /// # Errors
    /// The request is not answered.
    pub fn reboot(&self, bound: Duration) -> Result<(), LabError> {
        self.simple("reboot", bound).map(drop)
    }
}

fn realtime_ns() -> i128 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as i128)
}

/// As `read_exact`, until `deadline`; the socket's own time-out is short.
fn fill(stream: &mut TcpStream, bytes: &mut [u8], deadline: Instant) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        match stream.read(&mut bytes[done..]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => done += count,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted) => {
                if Instant::now() >= deadline {
                    return Err(io::ErrorKind::TimedOut.into());
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
