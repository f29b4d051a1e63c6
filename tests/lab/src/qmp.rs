//! QEMU's control socket (QMP: one JSON object a line each way), as far as the lab needs it.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::error::LabError;

/// QEMU answers within milliseconds, unless it is stopped.
const BOUND: Duration = Duration::from_secs(5);
/// Events that may come before an answer; more means that no answer will.
const MOST_EVENTS: usize = 1000;

/// Runs one command in the QEMU of `host` whose socket is `socket`; what it returns.
///
/// # Errors
/// No such socket, no answer in time, or QEMU refuses.
pub fn command(host: &str, socket: &Path, name: &str, arguments: &Value) -> Result<Value, LabError> {
    let io = || LabError::io(|| format!("ask QEMU of {host} for {name} at {}", socket.display()));
    let stream = UnixStream::connect(socket).map_err(io())?;
    stream.set_read_timeout(Some(BOUND)).map_err(io())?;
    stream.set_write_timeout(Some(BOUND)).map_err(io())?;
    let mut input = BufReader::new(stream.try_clone().map_err(io())?);
    let mut out = stream;
    let mut ask = |request: Option<Value>| -> Result<Value, LabError> {
        if let Some(request) = request {
            out.write_all(format!("{request}\n").as_bytes()).map_err(io())?;
        }
        for _ in 0..MOST_EVENTS {
            let mut line = String::new();
            if input.read_line(&mut line).map_err(io())? == 0 {
                break;
            }
            let answer: Value = serde_json::from_str(&line).unwrap_or_default();
            if let Some(error) = answer.get("error") {
                return Err(LabError::Qemu { host: host.to_owned(), what: name.to_owned(), said: error.to_string() });
            }
            if let Some(value) = answer.get("return").or_else(|| answer.get("QMP")) {
                return Ok(value.clone());
            }
        }
        Err(LabError::Qemu { host: host.to_owned(), what: name.to_owned(), said: "no answer".into() })
    };
    ask(None)?;
    ask(Some(json!({"execute": "qmp_capabilities"})))?;
    ask(Some(json!({"execute": name, "arguments": arguments})))
}
