//! A SQLite database that can be asked over TCP: every connection is the distribution's own `sqlite3` on one database file, with the connection
//! as its input, output and error output. The agent is not in between: who connects sends SQL lines and gets what the program prints.
//!
//! What the tables are, and how durable a commit is, is the client's business (it sends the pragmas).

use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

/// Where connections are taken.
const PORT: u16 = 7001;
/// The database's directory (on the root disk): the journal is in it too, and is synced with it.
const DIRECTORY: &str = "/var/lib/ledger";
/// The database.
const DATABASE: &str = "/var/lib/ledger/ledger.db";

/// Serves for ever.
pub fn run() {
    if let Err(error) = std::fs::create_dir_all(DIRECTORY) {
        return println!("agent: sqlite: cannot make {DIRECTORY}: {error}");
    }
    let listener = match TcpListener::bind(("0.0.0.0", PORT)) {
        Ok(listener) => listener,
        Err(error) => return println!("agent: sqlite: cannot listen on port {PORT}: {error}"),
    };
    for stream in listener.incoming().flatten() {
        std::thread::spawn(move || {
            if let Err(error) = serve(stream) {
                println!("agent: sqlite: {error}");
            }
        });
    }
}

/// Lets a `sqlite3` of its own talk over `stream`, until it or the client ends.
fn serve(stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let end = |stream: &TcpStream| stream.try_clone().map(|s| Stdio::from(OwnedFd::from(s)));
    let mut child =
        Command::new("sqlite3").args(["-batch", DATABASE]).stdin(end(&stream)?).stdout(end(&stream)?).stderr(end(&stream)?).spawn()?;
    // The connection ends with the program, not with this thread's wait for it.
    drop(stream);
    child.wait().map(drop)
}
