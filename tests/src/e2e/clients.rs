//! Clients under load while things go wrong, and the judgement over what they were told (S4).
//!
//! Two kinds: the demo's clients (one request under way, every answer remembered), and one that pipelines increments of a counter, whose
//! answers must be 1, 2, 3, ... without a gap. Not here: how a history is judged (`lockstep::demo::history`).

use std::io::{self, BufReader, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lockstep::demo::client::{self, ANSWER_TIMEOUT, Outcome, Shared};
use lockstep::demo::history::{self, Findings};
use lockstep::demo::resp::{self, Reply};
use lockstep::demo::world::Place;

use super::lab::{Lab, server};
use super::node::BOUND;

/// Increments sent at once by the pipelining client.
const PIPELINE: u64 = 16;
/// How often a wait for acknowledgements looks.
const TICK: Duration = Duration::from_millis(2);

/// Clients at work.
#[derive(Debug)]
pub struct Load<'a> {
    shared: &'a Shared,
    /// Increments answered to the pipelining client.
    counted: &'a AtomicU64,
}

/// What the clients found in the end. Already judged: nothing lost, nothing broken.
#[derive(Clone, Copy, Debug)]
pub struct Judged {
    /// Writes acknowledged.
    pub acknowledged: u64,
    /// Increments answered to the pipelining client.
    pub counted: u64,
}

impl Load<'_> {
    /// Writes acknowledged so far, of all clients.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::Relaxed) + self.counted.load(Ordering::Relaxed)
    }

    /// Waits for `more` acknowledged writes.
    ///
    /// # Panics
    /// They do not come.
    pub fn until_more(&self, more: u64) {
        let goal = self.acknowledged() + more;
        let deadline = Instant::now() + BOUND;
        while self.acknowledged() < goal {
            assert!(Instant::now() < deadline, "{} writes acknowledged, awaited {goal}", self.acknowledged());
            assert_eq!(self.shared.broken.load(Ordering::Relaxed), 0, "a client's connection broke");
            std::thread::sleep(TICK);
        }
    }
}

/// Ends the clients when a test fails in the middle, so that their threads can be joined.
struct AbortOnPanic<'a>(&'a Shared);

impl Drop for AbortOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.abort();
        }
    }
}

/// Which clients to run.
#[derive(Clone, Copy, Debug)]
pub struct Clients {
    /// Of the demo's kind.
    pub careful: usize,
    /// One that pipelines.
    pub pipelined: bool,
    /// Of their random choices.
    pub seed: u64,
}

impl Default for Clients {
    fn default() -> Clients {
        Clients { careful: 2, pipelined: false, seed: 1 }
    }
}

/// Runs clients while `course` takes its way; then everything is read back over the same connections and judged.
///
/// # Panics
/// Something that was acknowledged is not there, something was done twice, an answer was wrong, a connection broke, or nothing was proved.
pub fn under_load<T>(lab: &Lab, clients: Clients, course: impl FnOnce(&Load<'_>) -> T) -> (T, Judged) {
    let shared = Shared::default();
    let counted = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let abort = AbortOnPanic(&shared);
        let careful: Vec<_> = (0..clients.careful)
            .map(|number| {
                let shared = &shared;
                scope.spawn(move || {
                    lab.world.enter(Place::Clients).expect("the client network");
                    client::run(number, clients.seed, server(), shared)
                })
            })
            .collect();
        let pipelined = clients.pipelined.then(|| {
            let (shared, counted) = (&shared, &counted);
            scope.spawn(move || {
                lab.world.enter(Place::Clients).expect("the client network");
                count(shared, counted)
            })
        });
        let came = course(&Load { shared: &shared, counted: &counted });
        shared.stop.store(true, Ordering::Relaxed);
        let outcomes: Vec<Outcome> = careful.into_iter().map(|c| c.join().expect("a client")).collect();
        if let Some(counting) = pipelined {
            counting.join().expect("the pipelining client").expect("the pipelining client's connection and its counts");
        }
        let acknowledged = judge(&outcomes);
        drop(abort);
        (came, Judged { acknowledged, counted: counted.load(Ordering::Relaxed) })
    })
}

fn judge(outcomes: &[Outcome]) -> u64 {
    let mut findings = Findings::default();
    for outcome in outcomes {
        assert_eq!(outcome.broken, 0, "a connection broke: {:?}", outcome.first_break);
        findings.add(history::check(&outcome.history, &outcome.end));
    }
    assert_eq!(findings, Findings { acknowledged: findings.acknowledged, ..Findings::default() });
    assert!(outcomes.is_empty() || findings.acknowledged > 0, "nothing was acknowledged, so nothing is proved");
    findings.acknowledged
}

/// Raises one counter, many requests under way at once. Over one unbroken connection every answer must be the one before plus one.
fn count(shared: &Shared, counted: &AtomicU64) -> io::Result<()> {
    let wrong = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    let mut stream = TcpStream::connect_timeout(&server(), ANSWER_TIMEOUT)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    let mut input = BufReader::new(stream.try_clone()?);
    let mut batch = Vec::new();
    for _ in 0..PIPELINE {
        resp::command(&mut batch, &[b"INCR", b"pipelined"])?;
    }
    while !shared.stop.load(Ordering::Relaxed) {
        stream.write_all(&batch)?;
        for _ in 0..PIPELINE {
            let expected = counted.load(Ordering::Relaxed) + 1;
            match resp::reply(&mut input)? {
                Reply::Int(count) if count as u64 == expected => counted.store(expected, Ordering::Relaxed),
                other => return Err(wrong(format!("{other:?} came where {expected} was next"))),
            }
        }
    }
    let mut last = Vec::new();
    resp::command(&mut last, &[b"GET", b"pipelined"])?;
    stream.write_all(&last)?;
    let expected = counted.load(Ordering::Relaxed).to_string().into_bytes();
    match resp::reply(&mut input)? {
        Reply::Bulk(Some(found)) if found == expected => Ok(()),
        Reply::Bulk(None) if expected == b"0" => Ok(()),
        other => Err(wrong(format!("the counter reads {other:?} in the end"))),
    }
}
