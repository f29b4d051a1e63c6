//! What the harness asks for, over TCP: one request a connection.
//!
//! ```text
//! request   exec TIMEOUT_MS SCRIPT_BYTES INPUT_BYTES \n SCRIPT INPUT     run SCRIPT by sh
//!           time \n                                                      CLOCK_REALTIME, ns
//!           set-time NS \n
//!           status \n                                                    what the guest's probes have seen
//!           kernel-errors \n                                             what its kernel has said of level error and worse
//!           power-off \n | reboot \n
//! answer    frames: kind (1 byte: 1 output, 2 error output, 0 end), length (4 bytes, big endian), bytes; the end's bytes are the exit status
//! ```
//!
//! A command whose asker goes away, or whose time is over, is killed with its whole process group.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::sys;

/// Where the agent listens.
const PORT: u16 = 7000;
/// A request's first line is shorter than this.
const MOST_LINE: u64 = 256;
/// Longest script and longest input; nothing in the lab comes near it.
const MOST_BYTES: usize = 64 << 20;
/// After a command has ended, output that its background children may still write is awaited only so long.
const DRAIN: Duration = Duration::from_millis(60);
/// How often a running command is looked at.
const TICK: Duration = Duration::from_millis(5);
const CHUNK: usize = 64 << 10;

const END: u8 = 0;
const OUTPUT: u8 = 1;
const ERROR_OUTPUT: u8 = 2;

/// Serves until the process is killed.
pub fn run() -> ExitCode {
    let listener = match TcpListener::bind(("0.0.0.0", PORT)) {
        Ok(listener) => listener,
        Err(error) => {
            println!("agent: cannot listen on port {PORT}: {error}");
            return ExitCode::FAILURE;
        }
    };
    println!("agent: listening");
    for stream in listener.incoming().flatten() {
        std::thread::spawn(move || {
            if let Err(error) = answer(&stream) {
                let _ = frame(&stream, ERROR_OUTPUT, format!("agent: {error}\n").as_bytes());
                let _ = frame(&stream, END, b"125");
            }
        });
    }
    ExitCode::FAILURE
}

fn frame(mut stream: &TcpStream, kind: u8, bytes: &[u8]) -> io::Result<()> {
    let mut whole = Vec::with_capacity(5 + bytes.len());
    whole.push(kind);
    whole.extend((bytes.len() as u32).to_be_bytes());
    whole.extend(bytes);
    stream.write_all(&whole)
}

fn said(stream: &TcpStream, text: &str) -> io::Result<()> {
    frame(stream, OUTPUT, text.as_bytes())?;
    frame(stream, END, b"0")
}

fn number(word: Option<&str>) -> io::Result<u64> {
    word.and_then(|w| w.parse().ok()).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a number is missing in the request"))
}

fn answer(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut input = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    input.by_ref().take(MOST_LINE).read_line(&mut line)?;
    let mut words = line.split_whitespace();
    match words.next() {
        Some("exec") => {
            let limit = Duration::from_millis(number(words.next())?);
            let (script, fed) = (number(words.next())? as usize, number(words.next())? as usize);
            if script > MOST_BYTES || fed > MOST_BYTES {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "script or input too long"));
            }
            let mut bytes = vec![0; script + fed];
            input.read_exact(&mut bytes)?;
            let fed = bytes.split_off(script);
            let script = String::from_utf8(bytes).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
            execute(stream, input, &script, fed, limit)
        }
        Some("time") => said(stream, &realtime_ns().to_string()),
        Some("set-time") => {
            sys::set_realtime(number(words.next())?)?;
            said(stream, "")
        }
        Some("status") => said(stream, &crate::guest::status()),
        Some("kernel-errors") => said(stream, &crate::kernel_log::errors()?),
        Some(word @ ("power-off" | "reboot")) => {
            let _ = said(stream, "");
            crate::guest::end(word == "reboot")
        }
        other => Err(io::Error::new(io::ErrorKind::InvalidData, format!("no such request: {other:?}"))),
    }
}

/// CLOCK_REALTIME.
pub fn realtime_ns() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos())
}

/// What the threads around a command tell.
enum News {
    Bytes(u8, Vec<u8>),
    /// A stream has ended.
    Closed,
    /// The asker has gone.
    Gone,
}

fn pump(mut from: impl Read + Send + 'static, kind: u8, to: Sender<News>) {
    std::thread::spawn(move || {
        let mut bytes = vec![0; CHUNK];
        while let Ok(count @ 1..) = from.read(&mut bytes) {
            if to.send(News::Bytes(kind, bytes[..count].to_vec())).is_err() {
                return;
            }
        }
        let _ = to.send(News::Closed);
    });
}

fn status_text(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    // As a shell has it: 128 and the signal's number.
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)).to_string()
}

fn execute(stream: &TcpStream, mut asker: BufReader<TcpStream>, script: &str, fed: Vec<u8>, limit: Duration) -> io::Result<()> {
    use std::os::unix::process::CommandExt;
    let shell = if std::path::Path::new("/bin/bash").exists() { "/bin/bash" } else { "/bin/sh" };
    let mut child = Command::new(shell)
        .args(["-c", script])
        .process_group(0)
        .stdin(if fed.is_empty() { Stdio::null() } else { Stdio::piped() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let group = child.id();
    if let Some(mut stdin) = child.stdin.take() {
        // A command that does not read its input is no error.
        std::thread::spawn(move || drop(stdin.write_all(&fed)));
    }
    let (tell, news) = channel();
    let mut open = 0;
    if let Some(output) = child.stdout.take() {
        open += 1;
        pump(output, OUTPUT, tell.clone());
    }
    if let Some(output) = child.stderr.take() {
        open += 1;
        pump(output, ERROR_OUTPUT, tell.clone());
    }
    std::thread::spawn(move || {
        // Nothing more is ever said by the asker: whatever this read comes back with, it is gone.
        let _ = asker.read(&mut [0]);
        let _ = tell.send(News::Gone);
    });
    let started = Instant::now();
    let mut ended: Option<(Instant, ExitStatus)> = None;
    loop {
        match news.recv_timeout(TICK) {
            Ok(News::Bytes(kind, bytes)) => frame(stream, kind, &bytes).inspect_err(|_| sys::signal_group(group, sys::KILL))?,
            Ok(News::Closed) => open -= 1,
            Ok(News::Gone) => sys::signal_group(group, sys::KILL),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
        }
        if ended.is_none() {
            ended = child.try_wait()?.map(|status| (Instant::now(), status));
        }
        if let Some((at, status)) = ended
            && (open == 0 || at.elapsed() > DRAIN)
        {
            return frame(stream, END, status_text(status).as_bytes());
        }
        if started.elapsed() > limit && ended.is_none() {
            sys::signal_group(group, sys::KILL);
            child.wait()?;
            return frame(stream, END, b"timeout");
        }
    }
}
