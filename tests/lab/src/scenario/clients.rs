//! Clients under load while hosts die: the demo's clients and its judge, in the lab's client network. They speak RESP, so that the built-in guest's
//! server and Redis are the same to them.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use lockstep::demo::client::{self, Connection, Outcome, SERVER_PORT, Shared};
use lockstep::demo::history::{self, Findings};
use lockstep::demo::resp::Reply;
use lockstep::demo::world::GUEST_ADDRESS;

use super::report::Row;
use crate::error::LabError;
use crate::net::Network;

/// Clients at a time.
const CLIENTS: usize = 2;
/// Writes that are awaited to see that the guest serves.
const SOME: u64 = 10;
const TICK: Duration = Duration::from_millis(5);

/// Where the guest's server is.
#[must_use]
pub fn server() -> SocketAddr {
    SocketAddr::new(GUEST_ADDRESS, SERVER_PORT)
}

/// Clients at work.
#[derive(Debug)]
pub struct Load<'a> {
    shared: &'a Shared,
}

impl Load<'_> {
    /// Writes acknowledged so far.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::Relaxed)
    }

    /// Waits until the guest has answered some more.
    ///
    /// # Errors
    /// It does not within `bound`, or a connection broke.
    pub fn until_more(&self, bound: Duration) -> Result<(), LabError> {
        let goal = self.acknowledged() + SOME;
        let deadline = Instant::now() + bound;
        while self.acknowledged() < goal {
            if self.shared.broken.load(Ordering::Relaxed) > 0 {
                return Err(LabError::Found("a client's connection broke".into()));
            }
            if Instant::now() >= deadline {
                return Err(LabError::Late { what: "more acknowledged writes".into(), bound, detail: String::new() });
            }
            std::thread::sleep(TICK);
        }
        Ok(())
    }
}

/// A connection to the guest's server, once it answers.
///
/// # Errors
/// It does not within `bound`.
pub fn connect(network: &Network, bound: Duration) -> Result<Connection, LabError> {
    let deadline = Instant::now() + bound;
    loop {
        let opened = network.clients.run(|| {
            let mut connection = Connection::open(server())?;
            // Redis answers while it still reads its journal, but not with what is asked for.
            match connection.ask(&[b"GET", b"nothing"])? {
                Reply::Bulk(None) => Ok(connection),
                other => Err(std::io::Error::other(format!("{other:?}"))),
            }
        })?;
        match opened {
            Ok(connection) => return Ok(connection),
            Err(error) if Instant::now() >= deadline => {
                return Err(LabError::Late { what: "the guest's server".into(), bound, detail: format!(": {error}") });
            }
            Err(_) => std::thread::sleep(TICK),
        }
    }
}

/// Runs clients while `course` takes its way; then everything is read back over the same connections and judged into `row`.
///
/// # Errors
/// What `course` fails with. What the judge finds is in the row only.
pub fn under_load(
    network: &Network,
    seed: u64,
    row: &mut Row,
    faults_ns: &mut Vec<u64>,
    course: impl FnOnce(&Load<'_>, &mut Row, &mut Vec<u64>) -> Result<(), LabError>,
) -> Result<(), LabError> {
    let shared = Shared::default();
    let (came, outcomes) = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let shared = &shared;
                scope.spawn(move || -> Result<Outcome, LabError> {
                    network.clients.enter()?;
                    Ok(client::run(number, seed, server(), shared))
                })
            })
            .collect();
        let came = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| course(&Load { shared: &shared }, row, faults_ns)));
        match &came {
            Ok(Ok(())) => shared.stop.store(true, Ordering::Relaxed),
            // The guest may be gone: nothing is awaited from it.
            _ => shared.abort(),
        }
        let outcomes: Vec<_> = clients.into_iter().map(|client| client.join()).collect();
        (came, outcomes)
    });
    let came = came.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    let failed = came.is_err();
    let mut findings = Findings::default();
    for outcome in outcomes {
        let outcome = outcome.map_err(|_| LabError::Found("a client panicked".into()))??;
        if failed {
            continue;
        }
        row.connections_broken += outcome.broken;
        findings.add(history::check(&outcome.history, &outcome.end));
        for (index, fault) in faults_ns.iter().enumerate() {
            let gap = history::longest_gap_ns(&outcome.history, *fault, *fault).unwrap_or(0) as f64 / 1e6;
            match row.blackouts_ms.get_mut(index) {
                Some(longest) => *longest = longest.max(gap),
                None => row.blackouts_ms.push(gap),
            }
        }
    }
    came?;
    row.writes_acknowledged += findings.acknowledged;
    row.writes_lost += findings.lost + findings.duplicated + findings.wrong_answers;
    if findings.unverified > 0 {
        return Err(LabError::Found(format!("{} keys could not be read back, so nothing is proved about them", findings.unverified)));
    }
    if findings.acknowledged == 0 {
        return Err(LabError::Found("no write was acknowledged, so nothing is proved".into()));
    }
    Ok(())
}
