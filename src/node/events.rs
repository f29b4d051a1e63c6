//! The events stream: one JSON object a line. A reader that goes away costs the node nothing.

use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use types::clock::monotonic_ns;
use types::event::{NodeEvent, NodeEventKind, Report};

use super::{NodeError, Stream};
use crate::config::Sink;

/// The report that writes to `sink`, or to nowhere.
pub(super) fn open(sink: Option<&Sink>) -> Result<Report, NodeError> {
    let stream: Stream = match sink {
        None => return Ok(Arc::new(|_| {})),
        Some(Sink::Stdout) => Box::new(std::io::stdout()),
        Some(Sink::File(path)) => {
            let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
            Box::new(file.map_err(|source| NodeError::Open { what: "events file", path: path.display().to_string(), source })?)
        }
    };
    let stream = Mutex::new(stream);
    Ok(Arc::new(move |what: NodeEventKind| {
        let event = NodeEvent { at_ns: monotonic_ns(), what };
        let Ok(mut line) = serde_json::to_vec(&event) else { return };
        line.push(b'\n');
        let mut stream = stream.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = stream.write_all(&line).and_then(|()| stream.flush()) {
            tracing::debug!(%error, "an event could not be written");
        }
    }))
}
