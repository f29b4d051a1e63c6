//! A ledger in a SQLite database, by the distribution's own `sqlite3`: every entry is a transaction, answered when it is committed.
//!
//! ```text
//! PUT KEY VALUE \n   -> OK \n        (the entry and a count of all entries, in one transaction)
//! GET KEY \n         -> VALUE \n     (empty: none)
//! COUNT \n           -> NUMBER \n
//! ```
//! Keys and values are of letters, digits, '-' and ':'; anything else ends the connection.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// Where the ledger listens.
const PORT: u16 = 7001;
/// The database; its directory is on the root disk.
const DATABASE: &str = "/var/lib/ledger.db";
/// Full synchronous mode and a rollback journal: the most flushes per transaction that SQLite knows. An error ends sqlite3, so that nothing
/// after a failed statement can answer for it.
const PREAMBLE: &str = ".bail on\n.timeout 20000\nPRAGMA journal_mode=DELETE;\nPRAGMA synchronous=FULL;\n\
     CREATE TABLE IF NOT EXISTS entries(key TEXT PRIMARY KEY, value TEXT);\n\
     CREATE TABLE IF NOT EXISTS total(one INTEGER PRIMARY KEY CHECK(one=1), count INTEGER);\n\
     INSERT OR IGNORE INTO total VALUES(1,0);\nSELECT 'ready';\n";

/// Serves for ever.
pub fn run() {
    let listener = match TcpListener::bind(("0.0.0.0", PORT)) {
        Ok(listener) => listener,
        Err(error) => return println!("agent: the ledger cannot listen: {error}"),
    };
    for stream in listener.incoming().flatten() {
        std::thread::spawn(move || {
            if let Err(error) = converse(stream) {
                println!("agent: ledger: {error}");
            }
        });
    }
}

struct Database {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Database {
    fn open() -> io::Result<Database> {
        let mut child = Command::new("sqlite3").args(["-batch", DATABASE]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let missing = || io::Error::other("sqlite3 has no pipes");
        let input = child.stdin.take().ok_or_else(missing)?;
        let output = BufReader::new(child.stdout.take().ok_or_else(missing)?);
        let mut database = Database { child, input, output };
        database.input.write_all(PREAMBLE.as_bytes())?;
        while database.line()? != "ready" {}
        Ok(database)
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            return Err(io::Error::other("sqlite3 has ended"));
        }
        Ok(line.trim_end().to_owned())
    }

    /// Runs `sql`; the last line of its output.
    fn ask(&mut self, sql: &str) -> io::Result<Option<String>> {
        self.input.write_all(format!("{sql}\nSELECT 'end';\n").as_bytes())?;
        let mut last = None;
        loop {
            match self.line()? {
                line if line == "end" => return Ok(last),
                line => last = Some(line),
            }
        }
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn plain(word: Option<&str>) -> io::Result<&str> {
    word.filter(|w| w.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b':'))
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not a key or value"))
}

fn converse(stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut database = Database::open()?;
    let mut out = stream.try_clone()?;
    for line in BufReader::new(stream).lines() {
        let line = line?;
        let mut words = line.split(' ');
        let answer = match words.next() {
            Some("PUT") => {
                let (key, value) = (plain(words.next())?, plain(words.next())?);
                let sql = format!(
                    "BEGIN IMMEDIATE; INSERT OR REPLACE INTO entries VALUES('{key}','{value}'); UPDATE total SET count=count+1; COMMIT; SELECT 'OK';"
                );
                database.ask(&sql)?.unwrap_or_default()
            }
            Some("GET") => {
                let key = plain(words.next())?;
                database.ask(&format!("SELECT value FROM entries WHERE key='{key}';"))?.unwrap_or_default()
            }
            Some("COUNT") => database.ask("SELECT count FROM total;")?.unwrap_or_default(),
            _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "no such request")),
        };
        out.write_all(format!("{answer}\n").as_bytes())?;
    }
    Ok(())
}
