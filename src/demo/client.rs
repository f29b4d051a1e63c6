//! The demo's clients: each a thread with one long-lived TCP connection, one request under way, and a history of what it was told.

use std::collections::HashMap;
use std::io::{self, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::history::{Answer, Ask, Final, Key, Request, Value};
use super::resp::{self, Reply};
use crate::host::monotonic_ns;

/// The port of the guest's server.
pub const SERVER_PORT: u16 = 6379;
/// Silence after which a client holds its connection to be broken, unless its [`Server`] is given more. Well above any blackout that should be possible.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two attempts to connect, so that a dead guest is not flooded.
const RECONNECT_PAUSE: Duration = Duration::from_millis(50);
/// Keys each client writes in turn: enough that most writes stay visible to the end, few enough for the guest's store.
pub(super) const KEYS: u64 = 2048;
/// Requests a client records at most (48 bytes each); then it stops asking. At 20,000 a second that is 200 s.
const MOST_REQUESTS: usize = 4_000_000;
/// Requests sent at once when the end is read back.
const READ_BACK_BATCH: usize = 64;

/// A guest's server, as its clients know it.
#[derive(Clone, Copy, Debug)]
pub struct Server {
    /// Where it is.
    pub address: SocketAddr,
    /// How long a client waits for an answer before it holds its connection to be broken. A request that a failover swallowed is sent again by the client's TCP,
    /// which doubles its pauses (RFC 6298, 5.5): the wait may be twice the blackout and an answer's usual time.
    pub patience: Duration,
}

impl From<SocketAddr> for Server {
    /// With the patience of [`ANSWER_TIMEOUT`].
    fn from(address: SocketAddr) -> Server {
        Server { address, patience: ANSWER_TIMEOUT }
    }
}

/// A connection to the guest's server, which speaks RESP (Redis' protocol).
#[derive(Debug)]
pub struct Connection {
    input: BufReader<TcpStream>,
    out: Vec<u8>,
}

impl Connection {
    /// Connects; must be called in the client network.
    ///
    /// # Errors
    /// No answer, or refused.
    pub fn open(server: SocketAddr) -> io::Result<Connection> {
        let stream = TcpStream::connect_timeout(&server, CONNECT_TIMEOUT)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
        Ok(Connection { input: BufReader::new(stream), out: Vec::new() })
    }

    /// Sends one command and awaits its reply.
    ///
    /// # Errors
    /// The connection broke, or no answer came within [`ANSWER_TIMEOUT`].
    pub fn ask(&mut self, arguments: &[&[u8]]) -> io::Result<Reply> {
        self.push(arguments)?;
        self.flush()?;
        self.reply()
    }

    /// Lets an answer take `timeout` instead of [`ANSWER_TIMEOUT`]: for commands that work long.
    ///
    /// # Errors
    /// The socket refuses the option.
    pub fn set_answer_timeout(&mut self, timeout: Duration) -> io::Result<()> {
        self.input.get_ref().set_read_timeout(Some(timeout))
    }

    fn set_patience(&self, patience: Duration) -> io::Result<()> {
        self.input.get_ref().set_read_timeout(Some(patience))?;
        self.input.get_ref().set_write_timeout(Some(patience))
    }

    fn push(&mut self, arguments: &[&[u8]]) -> io::Result<()> {
        resp::command(&mut self.out, arguments)
    }

    fn flush(&mut self) -> io::Result<()> {
        let sent = self.input.get_mut().write_all(&self.out);
        self.out.clear();
        sent
    }

    fn reply(&mut self) -> io::Result<Reply> {
        resp::reply(&mut self.input)
    }
}

/// What the clients share with whoever watches them.
#[derive(Debug, Default)]
pub struct Shared {
    /// Set to make the clients finish.
    pub stop: AtomicBool,
    /// Writes acknowledged so far.
    pub acknowledged: AtomicU64,
    /// Connections broken so far.
    pub broken: AtomicU64,
    /// Why the first of them broke.
    first_break: Mutex<Option<String>>,
    /// Set to make the clients give up at once.
    aborted: AtomicBool,
    /// The clients' sockets, by client, to wake those that wait for an answer.
    sockets: Mutex<HashMap<usize, TcpStream>>,
}

impl Shared {
    /// Makes the clients give up at once, even those that wait for an answer; nothing is read back.
    pub fn abort(&self) {
        self.aborted.store(true, Ordering::Relaxed);
        self.stop.store(true, Ordering::Relaxed);
        for socket in self.sockets().values() {
            // A socket that is not connected any more wakes its client by itself.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// Makes `socket` of client `number` one that [`Self::abort`] wakes; false: it has been called already, and the client is to give up.
    ///
    /// # Errors
    /// The socket cannot be duplicated.
    pub fn register(&self, number: usize, socket: &TcpStream) -> io::Result<bool> {
        self.sockets().insert(number, socket.try_clone()?);
        // An abort that came before the socket was registered did not reach it.
        Ok(!self.is_aborted())
    }

    /// Client `number` has no socket any more.
    pub fn forget(&self, number: usize) {
        self.sockets().remove(&number);
    }

    /// A connection has broken, and why.
    pub fn broke(&self, why: String) {
        self.broken.fetch_add(1, Ordering::Relaxed);
        self.first_break.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
    }

    /// Why the first connection broke, if one has.
    #[must_use]
    pub fn first_break(&self) -> Option<String> {
        self.first_break.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether the clients are to give up at once.
    #[must_use]
    pub fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::Relaxed)
    }

    fn sockets(&self) -> MutexGuard<'_, HashMap<usize, TcpStream>> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Everything a client knows in the end.
#[derive(Debug)]
pub struct Outcome {
    /// Its requests in order.
    pub history: Vec<Request>,
    /// What it read back in the end.
    pub end: Final,
    /// How often its connection broke after it had once been made.
    pub broken: u64,
    /// Why the first broken connection broke.
    pub first_break: Option<String>,
}

/// One client's names and numbers.
struct Client<'a> {
    names: Names,
    server: Server,
    shared: &'a Shared,
    history: Vec<Request>,
    broken: u64,
    first_break: Option<String>,
}

/// Runs client `number` until `shared.stop`, then reads everything back over the same connection. Must run in the client network.
#[must_use]
pub fn run(number: usize, seed: u64, server: impl Into<Server>, shared: &Shared) -> Outcome {
    let server = server.into();
    let mut client = Client { names: Names { number, seed }, server, shared, history: Vec::new(), broken: 0, first_break: None };
    let mut connection = client.converse();
    let end = client.read_back(&mut connection);
    shared.forget(number);
    Outcome { history: client.history, end, broken: client.broken, first_break: client.first_break }
}

impl Client<'_> {
    fn stopped(&self) -> bool {
        self.shared.stop.load(Ordering::Relaxed) || self.history.len() >= MOST_REQUESTS
    }

    /// Asks until told to stop; the connection that is open then, if any.
    fn converse(&mut self) -> Option<Connection> {
        let mut random = StdRng::seed_from_u64(self.names.seed ^ (self.names.number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut connection = None;
        let mut writes: Value = 0;
        while !self.stopped() {
            let Some(open) = connection.as_mut() else {
                connection = self.connect();
                continue;
            };
            let ask = match random.random_range(0..8) {
                0..4 => {
                    writes += 1;
                    Ask::Set((writes % KEYS) as Key, writes)
                }
                4..6 => Ask::Incr,
                _ => Ask::Get(random.random_range(0..KEYS.min(writes + 1)) as Key),
            };
            if let Err(error) = self.request(open, ask) {
                self.note_break(&error);
                self.shared.forget(self.names.number);
                connection = None;
            }
        }
        connection
    }

    fn connect(&self) -> Option<Connection> {
        let opened = Connection::open(self.server.address).and_then(|open| {
            open.set_patience(self.server.patience)?;
            Ok(self.shared.register(self.names.number, open.input.get_ref())?.then_some(open))
        });
        match opened {
            Ok(open) => open,
            Err(error) => {
                tracing::debug!(client = self.names.number, %error, "cannot connect");
                std::thread::sleep(RECONNECT_PAUSE);
                None
            }
        }
    }

    fn note_break(&mut self, error: &io::Error) {
        if self.shared.is_aborted() {
            return;
        }
        self.broken += 1;
        // What was asked last is what was not answered, unless it was the reading back.
        let waited = self.history.last().map_or(0, |request| monotonic_ns().saturating_sub(request.sent_ns)) / 1_000_000;
        let why = format!("client {}: {error}, {waited} ms after its last request", self.names.number);
        tracing::warn!(client = self.names.number, %error, waited, "connection broken");
        self.shared.broke(why.clone());
        self.first_break.get_or_insert(why);
    }

    fn request(&mut self, connection: &mut Connection, ask: Ask) -> io::Result<()> {
        let sent_ns = monotonic_ns();
        let reply = match ask {
            Ask::Set(key, value) => connection.ask(&[b"SET", self.names.key(key).as_bytes(), self.names.value(value).as_bytes()]),
            Ask::Incr => connection.ask(&[b"INCR", self.names.counter().as_bytes()]),
            Ask::Get(key) => connection.ask(&[b"GET", self.names.key(key).as_bytes()]),
        };
        let answered_ns = monotonic_ns();
        let (answer, result) = match reply {
            Ok(reply) => (self.answer(ask, reply), Ok(())),
            Err(error) => (Answer::None, Err(error)),
        };
        if matches!(answer, Answer::Done | Answer::Count(_)) {
            self.shared.acknowledged.fetch_add(1, Ordering::Relaxed);
        }
        self.history.push(Request { ask, answer, sent_ns, answered_ns });
        result
    }

    fn answer(&self, ask: Ask, reply: Reply) -> Answer {
        match (ask, reply) {
            (Ask::Set(..), Reply::Status(text)) if text == "OK" => Answer::Done,
            (Ask::Incr, Reply::Int(count)) => Answer::Count(count),
            (Ask::Get(_), Reply::Bulk(None)) => Answer::Read(None),
            (Ask::Get(_), Reply::Bulk(Some(bytes))) => self.names.number_of(&bytes).map_or(Answer::Nonsense, |n| Answer::Read(Some(n))),
            (_, reply) => {
                tracing::warn!(client = self.names.number, ?ask, ?reply, "an answer that fits no request");
                Answer::Nonsense
            }
        }
    }

    /// Reads every key that was written and the counter; what cannot be read has no entry.
    fn read_back(&mut self, connection: &mut Option<Connection>) -> Final {
        let keys = written(&self.history);
        let mut end = Final::default();
        if self.shared.is_aborted() {
            return end;
        }
        if connection.is_none() {
            *connection = self.connect();
        }
        let Some(open) = connection.as_mut() else { return end };
        if let Err(error) = self.read_back_over(open, &keys, &mut end) {
            self.note_break(&error);
        }
        end
    }

    fn read_back_over(&self, connection: &mut Connection, keys: &[Key], end: &mut Final) -> io::Result<()> {
        for batch in keys.chunks(READ_BACK_BATCH) {
            for key in batch {
                connection.push(&[b"GET", self.names.key(*key).as_bytes()])?;
            }
            connection.flush()?;
            for key in batch {
                let value = match connection.reply()? {
                    Reply::Bulk(bytes) => self.names.found(bytes),
                    // Whatever this is, it is not the value: let it be counted as lost.
                    _ => Some(Value::MAX),
                };
                end.values.insert(*key, value);
            }
        }
        end.counter = match connection.ask(&[b"GET", self.names.counter().as_bytes()])? {
            Reply::Bulk(None) => Some(0),
            Reply::Bulk(Some(bytes)) => std::str::from_utf8(&bytes).ok().and_then(|t| t.parse().ok()),
            _ => None,
        };
        Ok(())
    }
}

/// Every key that a history's client has sent a value for.
fn written(history: &[Request]) -> Vec<Key> {
    let mut keys: Vec<Key> = history.iter().filter_map(|r| if let Ask::Set(key, _) = r.ask { Some(key) } else { None }).collect();
    keys.sort_unstable();
    keys.dedup();
    keys
}

/// What client `number` of a run with `seed` and this history would read back from a server that holds what `get` finds by its key.
#[must_use]
pub fn read_from(number: usize, seed: u64, history: &[Request], get: impl Fn(&[u8]) -> Option<Vec<u8>>) -> Final {
    let names = Names { number, seed };
    let values = written(history).into_iter().map(|key| (key, names.found(get(names.key(key).as_bytes())))).collect();
    let counter = get(names.counter().as_bytes()).map_or(Some(0), |bytes| std::str::from_utf8(&bytes).ok().and_then(|t| t.parse().ok()));
    Final { values, counter }
}

/// How a client's keys and values are written.
#[derive(Clone, Copy)]
struct Names {
    number: usize,
    seed: u64,
}

impl Names {
    /// The number of a value that was read; bytes that this client never wrote are a value that it never wrote.
    fn found(self, bytes: Option<Vec<u8>>) -> Option<Value> {
        bytes.map(|bytes| self.number_of(&bytes).unwrap_or(Value::MAX))
    }

    fn key(self, key: Key) -> String {
        format!("c{}:{key}", self.number)
    }

    fn counter(self) -> String {
        format!("c{}:count", self.number)
    }

    /// The text of a value: unique in the run, of a length that varies and a body that can be recomputed.
    fn value(self, value: Value) -> String {
        let body = "abcdefghijklmnopqrstuvwxyz0123456789".repeat(1 + (value % 4) as usize);
        format!("{:x}-{}-{value}-{body}", self.seed, self.number)
    }

    /// The number of a value that this client wrote; None for any other bytes.
    fn number_of(self, bytes: &[u8]) -> Option<Value> {
        let text = std::str::from_utf8(bytes).ok()?;
        let value = text.split('-').nth(2)?.parse().ok()?;
        (self.value(value) == text).then_some(value)
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::super::history::{Findings, check};
    use super::*;

    /// A key-value server on loopback for `connections` connections, which forgets the write of every `forget`th SET (0: none).
    fn server(connections: usize, forget: u64) -> (SocketAddr, std::thread::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let address = listener.local_addr().expect("an address");
        let serve = move || {
            let mut store: HashMap<Vec<u8>, Vec<u8>> = HashMap::new();
            let mut sets = 0;
            for stream in listener.incoming().take(connections) {
                let mut stream = BufReader::new(stream.expect("a connection"));
                while let Ok(Reply::Array(words)) = resp::reply(&mut stream) {
                    let words: Vec<Vec<u8>> = words.into_iter().map(|w| if let Reply::Bulk(Some(b)) = w { b } else { vec![] }).collect();
                    let answer = match words[0].as_slice() {
                        b"SET" => {
                            sets += 1;
                            if forget == 0 || sets % forget != 0 {
                                store.insert(words[1].clone(), words[2].clone());
                            }
                            "+OK\r\n".to_owned()
                        }
                        b"INCR" => {
                            let count = store.entry(words[1].clone()).or_insert(b"0".to_vec());
                            let next = String::from_utf8_lossy(count).parse::<i64>().expect("a number") + 1;
                            *count = next.to_string().into_bytes();
                            format!(":{next}\r\n")
                        }
                        _ => match store.get(&words[1]) {
                            Some(v) => format!("${}\r\n{}\r\n", v.len(), String::from_utf8_lossy(v)),
                            None => "$-1\r\n".to_owned(),
                        },
                    };
                    stream.get_mut().write_all(answer.as_bytes()).expect("answered");
                }
            }
        };
        (address, std::thread::spawn(serve))
    }

    fn converse_with(forget: u64) -> Findings {
        let (address, thread) = server(1, forget);
        let shared = Shared::default();
        let outcome = std::thread::scope(|scope| {
            let client = scope.spawn(|| run(3, 7, address, &shared));
            while shared.acknowledged.load(Ordering::Relaxed) < 500 {
                std::thread::yield_now();
            }
            shared.stop.store(true, Ordering::Relaxed);
            client.join().expect("the client")
        });
        thread.join().expect("the server");
        assert_eq!(outcome.broken, 0);
        check(&outcome.history, &outcome.end)
    }

    #[test]
    fn a_faithful_server_is_found_faithful() {
        let findings = converse_with(0);
        assert!(findings.acknowledged >= 500);
        assert_eq!(findings, Findings { acknowledged: findings.acknowledged, ..Findings::default() });
    }

    #[test]
    fn a_server_that_forgets_writes_is_found_out() {
        assert!(converse_with(10).lost > 10);
    }

    #[test]
    fn a_connection_that_breaks_is_counted_and_made_again() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let address = listener.local_addr().expect("an address");
        let shared = Shared::default();
        let outcome = std::thread::scope(|scope| {
            let client = scope.spawn(|| run(0, 7, address, &shared));
            for _ in 0..2 {
                drop(listener.accept().expect("a connection"));
            }
            shared.stop.store(true, Ordering::Relaxed);
            drop(listener);
            client.join().expect("the client")
        });
        assert!(outcome.broken >= 1 && outcome.first_break.is_some(), "{outcome:?}");
    }
}
