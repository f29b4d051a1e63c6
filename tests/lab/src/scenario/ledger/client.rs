//! The ledger's clients: each a thread with one long-lived TCP connection to a `sqlite3` in the guest, one request under way, and a log of what it
//! was told. Not here: what it means ([`super::judge`]).

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::Ordering;
use std::time::Duration;

use lockstep::demo::client::Shared;
use lockstep::host::monotonic_ns;

use super::judge::{Answer, Ask, Request};
use super::{DUMP, Dump, Journal, Transfer, look};

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Silence after which a client holds its connection to be broken: as for the others. A transaction is five flushes beside that, of which each may wait for
/// Redis', and it may have to wait for another's; under emulation on a busy machine that alone can take seconds.
pub(super) const ANSWER_TIMEOUT: Duration = super::super::clients::PATIENCE;
/// Between two attempts to connect.
const RECONNECT_PAUSE: Duration = Duration::from_millis(50);
/// Longest line that is taken: an entry with its note is below 1 KiB, findings of the integrity check are sentences.
const LONGEST_LINE: u64 = 64 << 10;
/// Most lines of a dump.
const MOST_LINES: usize = 1 << 20;
/// Every so many transactions a client looks at the whole.
const LOOK_EVERY: u64 = 6;
/// Requests a client records at most (56 bytes each); then it stops asking. A guest under emulation does a hundred a second.
const MOST_REQUESTS: usize = 1 << 20;

/// A connection to a `sqlite3` of its own, with the pragmas set.
#[derive(Debug)]
pub struct Connection {
    input: BufReader<TcpStream>,
}

impl Connection {
    /// Connects; must be called in the client network.
    ///
    /// # Errors
    /// No answer, refused, or the database does not take the pragmas.
    pub fn open(server: SocketAddr, journal: Journal) -> io::Result<Connection> {
        let stream = TcpStream::connect_timeout(&server, CONNECT_TIMEOUT)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
        let mut connection = Connection { input: BufReader::new(stream) };
        connection.send(journal.preamble())?;
        for expected in journal.answers() {
            let said = connection.line()?;
            if said != expected {
                return Err(io::Error::other(format!("the database says {said:?} instead of {expected:?}")));
            }
        }
        Ok(connection)
    }

    fn send(&mut self, text: &str) -> io::Result<()> {
        self.input.get_mut().write_all(text.as_bytes())
    }

    fn line(&mut self) -> io::Result<String> {
        let mut bytes = Vec::new();
        self.input.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut bytes)?;
        match bytes.pop() {
            Some(b'\n') => String::from_utf8(bytes).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e)),
            Some(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "a line without an end")),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Sends one line and awaits the one that answers it.
    ///
    /// # Errors
    /// The connection broke, or no answer came in time.
    pub fn ask(&mut self, line: &str) -> io::Result<String> {
        self.send(line)?;
        self.line()
    }

    /// All that is in the database; no line of it may take longer than `bound`.
    ///
    /// # Errors
    /// As [`Self::ask`], or what comes is no dump.
    pub fn dump(&mut self, bound: Duration) -> io::Result<Dump> {
        self.input.get_ref().set_read_timeout(Some(bound))?;
        self.send(DUMP)?;
        let mut lines = Vec::new();
        loop {
            match self.line()? {
                line if line == "end" => break,
                line => lines.push(line),
            }
            if lines.len() > MOST_LINES {
                return Err(io::Error::other("the ledger is longer than it can be"));
            }
        }
        Dump::parse(lines.iter().map(String::as_str)).map_err(io::Error::other)
    }
}

/// Everything a client knows in the end.
#[derive(Debug)]
pub struct Outcome {
    /// Its requests in order.
    pub history: Vec<Request>,
    /// Its connection, still open.
    pub connection: Option<Connection>,
    /// How often its connection broke after it had once been made, and why first.
    pub broken: u64,
    /// Why the first broken connection broke.
    pub first_break: Option<String>,
}

/// Runs client `number` until `shared.stop`. Must run in the client network.
#[must_use]
pub fn run(number: u32, seed: u64, (server, journal): (SocketAddr, Journal), shared: &Shared) -> Outcome {
    let mut outcome = Outcome { history: Vec::new(), connection: None, broken: 0, first_break: None };
    let (mut transactions, mut turn) = (0, 0);
    while !shared.stop.load(Ordering::Relaxed) && outcome.history.len() < MOST_REQUESTS {
        let Some(connection) = outcome.connection.as_mut() else {
            outcome.connection = connect(number, (server, journal), shared);
            continue;
        };
        turn += 1;
        let ask = if turn % LOOK_EVERY == 0 {
            Ask::Look
        } else {
            transactions += 1;
            Ask::Transfer(transactions)
        };
        let sent_ns = monotonic_ns();
        let said = match ask {
            Ask::Transfer(number_of) => connection.ask(&Transfer::of(seed, number, number_of).sql(number, number_of)),
            Ask::Look => connection.ask(&look(number)),
        };
        let answered_ns = monotonic_ns();
        let answer = said.as_ref().map_or(Answer::None, |line| understood(ask, line));
        outcome.history.push(Request { ask, answer, sent_ns, answered_ns });
        match (answer, said) {
            (Answer::Done(_), _) => drop(shared.acknowledged.fetch_add(1, Ordering::Relaxed)),
            (Answer::Nonsense, Ok(line)) => outcome.note_break(number, &format!("{ask:?} was answered {line:?}"), shared),
            (_, Err(error)) => outcome.note_break(number, &error.to_string(), shared),
            _ => {}
        }
    }
    shared.forget(number as usize);
    outcome
}

impl Outcome {
    /// After an answer that fits nothing, what comes next would answer for something else: the connection is as good as broken.
    fn note_break(&mut self, client: u32, why: &str, shared: &Shared) {
        self.connection = None;
        shared.forget(client as usize);
        if shared.is_aborted() {
            return;
        }
        self.broken += 1;
        let waited = self.history.last().map_or(0, |request| request.answered_ns - request.sent_ns) / 1_000_000;
        let why = format!("ledger client {client}: {why}, {waited} ms after it asked");
        shared.broke(why.clone());
        self.first_break.get_or_insert(why);
    }
}

fn connect(number: u32, (server, journal): (SocketAddr, Journal), shared: &Shared) -> Option<Connection> {
    let opened =
        Connection::open(server, journal).and_then(|open| Ok(shared.register(number as usize, open.input.get_ref())?.then_some(open)));
    match opened {
        Ok(open) => open,
        Err(_) => {
            std::thread::sleep(RECONNECT_PAUSE);
            None
        }
    }
}

/// What a line says that answers `ask`.
fn understood(ask: Ask, line: &str) -> Answer {
    let words: Vec<&str> = line.split('|').collect();
    let answer = match (ask, words.as_slice()) {
        (Ask::Transfer(_), ["done", id]) => id.parse().ok().map(Answer::Done),
        (Ask::Look, ["seen", sum, accounts, newest]) => {
            let newest = if newest.is_empty() { Some(0) } else { newest.parse().ok() };
            match (sum.parse(), accounts.parse(), newest) {
                (Ok(sum), Ok(accounts), Some(newest)) => Some(Answer::Seen { sum, accounts, newest }),
                _ => None,
            }
        }
        _ => None,
    };
    answer.unwrap_or(Answer::Nonsense)
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
