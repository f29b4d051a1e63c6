//! A ledger in a SQLite database of the stock guest: what is in it, and how it is spoken to. Pure text; beside it: the client ([`client`]), the
//! judge ([`judge`]).
//!
//! A transaction moves an amount from one account to another and appends an entry that says so, under an id of the database's and a number of the
//! client's: four pages and more change, and all of it must be there or none. Nothing in the schema keeps an entry from being there twice: finding
//! that is the judge's work. What a transaction holds follows from the seed, the client and its number, so a log of numbers says everything.

pub mod client;
pub mod judge;

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Where the guest's SQLite is (`agent/sqlite.rs`).
pub const PORT: u16 = 7001;
/// Where its database is in the guest (`agent/sqlite.rs`): this directory, which has no other files but journals.
pub const DIRECTORY: &str = "/var/lib/ledger";
/// The database's name.
pub const FILE: &str = "ledger.db";
/// Accounts. Few enough that clients meet in them.
pub const ACCOUNTS: u32 = 64;
/// What each begins with.
pub const OPENING: i64 = 1000;
/// Longest transfer.
const MOST: i64 = 100;
/// Longest note, in units of [`UNIT`]: entries of different lengths, some of them on pages of their own before long.
const LONGEST_NOTE: usize = 40;
const UNIT: &str = "0123456789";
/// How the database keeps a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Journal {
    /// What was there before is kept in a second file until the commit: the most flushes for each transaction.
    Rollback,
    /// What is new is appended to a second file, which all connections map.
    Ahead,
}

impl Journal {
    /// What a client says first. Each mode with what loses nothing that was acknowledged even when the power fails right after: with a rollback
    /// journal that is EXTRA (FULL does not sync the directory from which the journal was removed, so it might come back and undo the commit). An
    /// error ends the program, so that nothing after a failed statement can answer for it. Another's lock is awaited for 25 s, less than a
    /// client's patience.
    #[must_use]
    pub fn preamble(self) -> &'static str {
        match self {
            Journal::Rollback => ".bail on\n.timeout 25000\nPRAGMA journal_mode=DELETE;\nPRAGMA synchronous=EXTRA;\nPRAGMA synchronous;\n",
            Journal::Ahead => ".bail on\n.timeout 25000\nPRAGMA journal_mode=WAL;\nPRAGMA synchronous=FULL;\nPRAGMA synchronous;\n",
        }
    }

    /// What that is answered with: the mode, and the number of the synchronous setting.
    #[must_use]
    pub fn answers(self) -> [&'static str; 2] {
        match self {
            Journal::Rollback => ["delete", "3"],
            Journal::Ahead => ["wal", "2"],
        }
    }
}

/// Makes the tables, once; one line, answered with `ready`.
#[must_use]
pub fn schema() -> String {
    format!(
        "BEGIN IMMEDIATE; \
         CREATE TABLE accounts(id INTEGER PRIMARY KEY, balance INTEGER NOT NULL); \
         CREATE TABLE entries(id INTEGER PRIMARY KEY AUTOINCREMENT, client INTEGER, number INTEGER, source INTEGER, target INTEGER, \
         amount INTEGER, note TEXT); \
         CREATE INDEX entries_by_number ON entries(client, number); \
         WITH RECURSIVE n(id) AS (SELECT 0 UNION ALL SELECT id+1 FROM n WHERE id<{}) INSERT INTO accounts SELECT id, {OPENING} FROM n; \
         COMMIT; SELECT 'ready';\n",
        ACCOUNTS - 1
    )
}

/// All that is in the database, and what it says of itself; lines that [`Dump::parse`] reads, the last one `end`.
pub const DUMP: &str = "SELECT 'entry',id,client,number,source,target,amount,note FROM entries ORDER BY id; \
     SELECT 'account',id,balance FROM accounts ORDER BY id; \
     SELECT 'sequence',seq FROM sqlite_sequence WHERE name='entries'; \
     SELECT 'integrity',integrity_check FROM pragma_integrity_check; \
     SELECT 'end';\n";

/// One transaction of a client's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// From which account.
    pub source: u32,
    /// To which; another one.
    pub target: u32,
    /// How much, at least 1.
    pub amount: i64,
    /// Bytes to be found again.
    pub note: String,
}

impl Transfer {
    /// What client `client` does in its transaction `number` in a run with `seed`.
    #[must_use]
    pub fn of(seed: u64, client: u32, number: u64) -> Transfer {
        let mut random = StdRng::seed_from_u64(seed ^ (u64::from(client) << 48) ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let source = random.random_range(0..ACCOUNTS);
        let target = (source + random.random_range(1..ACCOUNTS)) % ACCOUNTS;
        let note = format!("{seed:x}-{client}-{number}-{}", UNIT.repeat(random.random_range(0..=LONGEST_NOTE)));
        Transfer { source, target, amount: random.random_range(1..=MOST), note }
    }

    /// One line, answered with `done|ID` once it is committed.
    #[must_use]
    pub fn sql(&self, client: u32, number: u64) -> String {
        let Transfer { source, target, amount, note } = self;
        format!(
            "BEGIN IMMEDIATE; UPDATE accounts SET balance=balance-{amount} WHERE id={source}; \
             UPDATE accounts SET balance=balance+{amount} WHERE id={target}; \
             INSERT INTO entries(client,number,source,target,amount,note) VALUES({client},{number},{source},{target},{amount},'{note}'); \
             COMMIT; SELECT 'done',last_insert_rowid();\n"
        )
    }
}

/// A look at the ledger between transactions: the sum over all accounts, how many there are, the newest number of the client's. One line, answered
/// with `seen|SUM|ACCOUNTS|NEWEST` (NEWEST may be empty). One statement, so that it sees one state.
#[must_use]
pub fn look(client: u32) -> String {
    format!(
        "SELECT 'seen',(SELECT sum(balance) FROM accounts),(SELECT count(*) FROM accounts),(SELECT max(number) FROM entries WHERE client={client});\n"
    )
}

/// An entry of the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The database's id.
    pub id: i64,
    /// Whose.
    pub client: u32,
    /// The client's number.
    pub number: u64,
    /// What it says.
    pub transfer: Transfer,
}

/// All that is in a ledger.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dump {
    /// By id.
    pub entries: Vec<Entry>,
    /// Balances.
    pub accounts: BTreeMap<u32, i64>,
    /// The newest id, as the database keeps it beside the entries; None before the first.
    pub sequence: Option<i64>,
    /// What the database's own check says: `ok`.
    pub integrity: Vec<String>,
}

impl Dump {
    /// Reads what [`DUMP`] is answered with, without its `end`.
    ///
    /// # Errors
    /// A line that is none of its lines.
    pub fn parse<'a>(lines: impl IntoIterator<Item = &'a str>) -> Result<Dump, String> {
        let mut dump = Dump::default();
        for line in lines {
            dump.take(line).ok_or_else(|| format!("a line that is no part of a ledger: {line:?}"))?;
        }
        Ok(dump)
    }

    fn take(&mut self, line: &str) -> Option<()> {
        let (kind, rest) = line.split_once('|')?;
        let words: Vec<&str> = rest.split('|').collect();
        match (kind, words.as_slice()) {
            ("entry", [id, client, number, source, target, amount, note]) => self.entries.push(Entry {
                id: id.parse().ok()?,
                client: client.parse().ok()?,
                number: number.parse().ok()?,
                transfer: Transfer {
                    source: source.parse().ok()?,
                    target: target.parse().ok()?,
                    amount: amount.parse().ok()?,
                    note: (*note).to_owned(),
                },
            }),
            ("account", [id, balance]) => drop(self.accounts.insert(id.parse().ok()?, balance.parse().ok()?)),
            ("sequence", [newest]) => self.sequence = Some(newest.parse().ok()?),
            ("integrity", _) => self.integrity.push(rest.to_owned()),
            _ => return None,
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transfer_follows_from_its_number_and_moves_something() {
        for number in 0..500 {
            let transfer = Transfer::of(7, 1, number);
            assert_eq!(transfer, Transfer::of(7, 1, number));
            assert!(transfer.source != transfer.target && transfer.source < ACCOUNTS && transfer.target < ACCOUNTS);
            assert!((1..=MOST).contains(&transfer.amount));
        }
        assert_ne!(Transfer::of(7, 1, 3), Transfer::of(7, 2, 3));
        assert_ne!(Transfer::of(7, 1, 3).note, Transfer::of(8, 1, 3).note);
    }

    #[test]
    fn a_dump_is_read() {
        let lines = ["entry|1|0|5|2|3|40|a-b", "account|2|960", "account|3|1040", "sequence|1", "integrity|ok"];
        let dump = Dump::parse(lines).expect("a dump");
        let transfer = Transfer { source: 2, target: 3, amount: 40, note: "a-b".into() };
        assert_eq!(dump.entries, [Entry { id: 1, client: 0, number: 5, transfer }]);
        assert_eq!(dump.accounts, BTreeMap::from([(2, 960), (3, 1040)]));
        assert_eq!((dump.sequence, dump.integrity), (Some(1), vec!["ok".to_owned()]));
    }

    #[test]
    fn what_is_no_dump_is_refused() {
        for line in ["", "entry|1", "entry|x|0|5|2|3|40|n", "account|1|2|3", "Error: near line 1", "sequence|", "other|1"] {
            assert!(Dump::parse([line]).is_err(), "{line:?}");
        }
    }
}
