//! The clients against a real `sqlite3` behind a socket, as the agent in the guest does it, on this machine.

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};

use super::super::judge::{Findings, Record, judge};
use super::super::{ACCOUNTS, Journal, OPENING, schema};
use super::*;

/// Serves `connections` connections, each by a `sqlite3` of its own on the database at `path`.
fn server(path: &Path, connections: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let (address, path) = (listener.local_addr().expect("an address"), path.to_owned());
    std::thread::spawn(move || {
        for stream in listener.incoming().take(connections) {
            let stream = stream.expect("a connection");
            let end = || Stdio::from(OwnedFd::from(stream.try_clone().expect("a copy")));
            let mut sqlite = Command::new("sqlite3");
            let mut child = sqlite.arg("-batch").arg(&path).stdin(end()).stdout(end()).stderr(end()).spawn().expect("sqlite3");
            std::thread::spawn(move || child.wait());
        }
    });
    address
}

/// Whether there is a `sqlite3`; where tests may not pass by, there must be.
fn there_is_sqlite() -> bool {
    let there = Command::new("sqlite3").arg("-version").stdout(Stdio::null()).status().is_ok_and(|status| status.success());
    assert!(there || std::env::var_os("LOCKSTEP_REQUIRE_KVM").is_none(), "there is no sqlite3 (package sqlite3)");
    there
}

/// Two clients do transactions on a database in `directory`; what they were told, and a connection of theirs.
fn transactions(directory: &Path, journal: Journal) -> (Record, Connection) {
    let address = server(&directory.join("ledger.db"), 3);
    let mut first = Connection::open(address, journal).expect("a connection");
    assert_eq!(first.ask(&schema()).expect("an answer"), "ready");
    let shared = Shared::default();
    let outcomes: Vec<Outcome> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..2)
            .map(|number| {
                scope.spawn({
                    let shared = &shared;
                    move || run(number, 11, (address, journal), shared)
                })
            })
            .collect();
        while shared.acknowledged.load(Ordering::Relaxed) < 60 && clients.iter().all(|c| !c.is_finished()) {
            std::thread::yield_now();
        }
        shared.stop.store(true, Ordering::Relaxed);
        clients.into_iter().map(|client| client.join().expect("a client")).collect()
    });
    for outcome in &outcomes {
        assert_eq!((outcome.broken, &outcome.first_break), (0, &None));
    }
    // Of both together: one of them may have waited for the other's lock nearly all the time.
    assert!(outcomes.iter().flat_map(|outcome| &outcome.history).any(|r| matches!(r.answer, Answer::Seen { .. })));
    let histories = (0..).zip(outcomes.into_iter().map(|outcome| outcome.history)).collect();
    (Record { seed: 11, histories }, first)
}

#[test]
fn a_real_database_is_found_faithful_and_each_damage_to_it_is_found() {
    if !there_is_sqlite() {
        return;
    }
    for journal in [Journal::Rollback, Journal::Ahead] {
        let directory = tempfile::tempdir().expect("a directory");
        let (record, mut connection) = transactions(directory.path(), journal);
        let sound = judge(&record, &connection.dump(ANSWER_TIMEOUT).expect("a dump"));
        assert!(sound.acknowledged >= 60);
        assert_eq!(sound, Findings { acknowledged: sound.acknowledged, ..Findings::default() });

        let mut damaged = |sql: &str| {
            let said = connection.ask(&format!("BEGIN; {sql} SELECT 'damaged';\n")).expect("an answer");
            assert_eq!(said, "damaged");
            let findings = judge(&record, &connection.dump(ANSWER_TIMEOUT).expect("a dump"));
            assert_eq!(connection.ask("ROLLBACK; SELECT 'undone';\n").expect("an answer"), "undone");
            findings
        };
        assert_eq!(damaged("DELETE FROM entries WHERE id=17;").lost, 1);
        let copied = "INSERT INTO entries(client,number,source,target,amount,note) SELECT client,number,source,target,amount,note FROM entries WHERE id=17;";
        assert_eq!(damaged(copied).duplicated, 1);
        assert_eq!(damaged("UPDATE accounts SET balance=balance+1 WHERE id=5;").torn, 1);
        assert_eq!(damaged("UPDATE entries SET note='' WHERE id=17;").altered, 1);
        assert_eq!(damaged("").wrong(), 0);
    }
}

#[test]
fn a_transaction_that_fails_ends_the_connection_and_leaves_nothing() {
    if !there_is_sqlite() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let address = server(&directory.path().join("ledger.db"), 2);
    let mut first = Connection::open(address, Journal::Rollback).expect("a connection");
    assert_eq!(first.ask(&schema()).expect("an answer"), "ready");
    let mut second = Connection::open(address, Journal::Rollback).expect("a connection");

    let said =
        second.ask("BEGIN IMMEDIATE; UPDATE accounts SET balance=0 WHERE id=1; INSERT INTO nowhere VALUES(1); COMMIT; SELECT 'done',1;\n");

    assert!(said.is_ok_and(|line| understood(Ask::Transfer(1), &line) == Answer::Nonsense));
    let dump = first.dump(ANSWER_TIMEOUT).expect("a dump");
    assert_eq!((dump.accounts.len(), dump.accounts.values().sum::<i64>()), (ACCOUNTS as usize, i64::from(ACCOUNTS) * OPENING));
    assert!(dump.accounts.values().all(|balance| *balance == OPENING) && dump.entries.is_empty());
}

#[test]
fn a_connection_that_breaks_is_counted_and_what_was_under_way_is_unanswered() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let address = listener.local_addr().expect("an address");
    let shared = Shared::default();
    let outcome = std::thread::scope(|scope| {
        let client = scope.spawn(|| run(0, 1, (address, Journal::Rollback), &shared));
        let (stream, _) = listener.accept().expect("a client");
        let mut input = BufReader::new(stream);
        let mut line = String::new();
        for _ in Journal::Rollback.preamble().lines() {
            input.read_line(&mut line).expect("a line");
        }
        input.get_mut().write_all(b"delete\n3\n").expect("answered");
        input.read_line(&mut line).expect("a transaction");
        drop(input);
        // It comes again; by then the break is noted.
        let again = listener.accept().expect("the client again");
        shared.abort();
        drop((again, listener));
        client.join().expect("the client")
    });
    assert_eq!(outcome.broken, 1);
    assert_eq!(outcome.history.iter().map(|r| (r.ask, r.answer)).collect::<Vec<_>>(), [(Ask::Transfer(1), Answer::None)]);
}

#[test]
fn an_answer_that_fits_nothing_is_nonsense() {
    for (ask, line) in [
        (Ask::Transfer(1), "done|"),
        (Ask::Transfer(1), "done|1|2"),
        (Ask::Transfer(1), "seen|64000|64|1"),
        (Ask::Transfer(1), "Error: database is locked"),
        (Ask::Look, "done|1"),
        (Ask::Look, "seen|x|64|1"),
        (Ask::Look, ""),
    ] {
        assert_eq!(understood(ask, line), Answer::Nonsense, "{line:?}");
    }
    assert_eq!(understood(Ask::Look, "seen|64000|64|"), Answer::Seen { sum: 64000, accounts: 64, newest: 0 });
    assert_eq!(understood(Ask::Transfer(3), "done|12"), Answer::Done(12));
}
