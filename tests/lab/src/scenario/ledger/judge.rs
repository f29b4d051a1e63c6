//! What the ledger's clients were told, against what is in the database. Pure: histories and a dump in, findings out (defends S4).
//!
//! Every acknowledged transaction is there once, with what it was sent with and under the id that was told; one that was never answered is there once
//! or not at all; nothing else is there. Balances are what the entries make of the opening balances, so none is there by half. A transaction
//! that was sent after another's acknowledgement has the higher id: commits have not changed places.

use std::collections::BTreeMap;

use super::{ACCOUNTS, Dump, OPENING, Transfer};

/// Examples that are kept of what was found.
const MOST_EXAMPLES: usize = 5;

/// What a client asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// The client's transaction of this number; numbers rise from 1.
    Transfer(u64),
    /// A look.
    Look,
}

/// What it was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The transaction is committed under this id.
    Done(i64),
    /// What a look saw.
    Seen {
        /// Over all accounts.
        sum: i64,
        /// How many.
        accounts: u32,
        /// The client's newest number, 0: none.
        newest: u64,
    },
    /// An answer that fits no request.
    Nonsense,
    /// Nothing: the connection broke first.
    None,
}

/// One request with its times (CLOCK_MONOTONIC nanoseconds).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// What was asked.
    pub ask: Ask,
    /// What was answered.
    pub answer: Answer,
    /// When it was sent.
    pub sent_ns: u64,
    /// When the answer was there, or was given up.
    pub answered_ns: u64,
}

/// What a run of clients left behind.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// Of the run.
    pub seed: u64,
    /// Each client's requests in order.
    pub histories: BTreeMap<u32, Vec<Request>>,
}

/// What a record and a dump show.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Transactions acknowledged.
    pub acknowledged: u64,
    /// Of these, those that are not there.
    pub lost: u64,
    /// Entries that are there more than once, each time more.
    pub duplicated: u64,
    /// Entries with other contents, or another id, than they were sent or acknowledged with.
    pub altered: u64,
    /// Entries that nobody sent.
    pub unknown: u64,
    /// Accounts that are not what the entries make of them, that are missing or too many; ids that are missing below the newest.
    pub torn: u64,
    /// Transactions that have changed places with one acknowledged before they were sent.
    pub reordered: u64,
    /// Looks in between that saw another sum, or not the client's own transactions; answers that fit no request.
    pub wrong_answers: u64,
    /// Findings of the database's own check.
    pub damaged: u64,
    /// Some of these in words.
    pub examples: Vec<String>,
}

impl Findings {
    /// Everything that should not be.
    #[must_use]
    pub fn wrong(&self) -> u64 {
        let Findings { acknowledged: _, examples: _, lost, duplicated, altered, unknown, torn, reordered, wrong_answers, damaged } = self;
        lost + duplicated + altered + unknown + torn + reordered + wrong_answers + damaged
    }

    fn example(&mut self, text: impl FnOnce() -> String) {
        if self.examples.len() < MOST_EXAMPLES {
            self.examples.push(text());
        }
    }
}

/// What is true of one transaction.
struct Truth {
    /// The acknowledged id.
    told: Option<i64>,
    sent_ns: u64,
    answered_ns: u64,
    /// Ids under which it is there.
    found: Vec<i64>,
}

/// Judges a record by a dump that was taken when no client was at work any more.
#[must_use]
pub fn judge(record: &Record, dump: &Dump) -> Findings {
    let mut findings = Findings::default();
    let mut truths = sent(record, &mut findings);
    let mut balances: BTreeMap<u32, i64> = (0..ACCOUNTS).map(|id| (id, OPENING)).collect();
    for entry in &dump.entries {
        let transfer = &entry.transfer;
        *balances.entry(transfer.source).or_default() -= transfer.amount;
        *balances.entry(transfer.target).or_default() += transfer.amount;
        let Some(truth) = truths.get_mut(&(entry.client, entry.number)) else {
            findings.unknown += 1;
            findings.example(|| format!("an entry that nobody sent: {entry:?}"));
            continue;
        };
        truth.found.push(entry.id);
        if *transfer != Transfer::of(record.seed, entry.client, entry.number) {
            findings.altered += 1;
            findings.example(|| format!("an entry that is not what was sent: {entry:?}"));
        }
    }
    for ((client, number), truth) in &truths {
        match (truth.told, truth.found.as_slice()) {
            (Some(told), []) => {
                findings.lost += 1;
                findings.example(|| format!("client {client}'s transaction {number}, acknowledged with id {told}, is lost"));
            }
            (Some(told), found) if !found.contains(&told) => {
                findings.altered += 1;
                findings.example(|| format!("client {client}'s transaction {number}, acknowledged with id {told}, has {found:?}"));
            }
            _ => {}
        }
        if truth.found.len() > 1 {
            findings.duplicated += truth.found.len() as u64 - 1;
            findings.example(|| format!("client {client}'s transaction {number} is there under the ids {:?}", truth.found));
        }
    }
    torn(dump, &balances, &mut findings);
    reordered(truths.values(), &mut findings);
    findings.damaged = match dump.integrity.as_slice() {
        [one] if one == "ok" => 0,
        // Not even asked, or not answered: nothing is proved.
        [] => 1,
        several => several.len() as u64,
    };
    if findings.damaged > 0 {
        findings.example(|| format!("the database's own check: {:?}", dump.integrity));
    }
    findings
}

/// Every transaction that was sent; what was answered is counted and judged.
fn sent(record: &Record, findings: &mut Findings) -> BTreeMap<(u32, u64), Truth> {
    let mut truths = BTreeMap::new();
    for (client, history) in &record.histories {
        let (mut acknowledged, mut newest) = (0, 0);
        for request in history {
            let fits = match (request.ask, request.answer) {
                (Ask::Transfer(number), Answer::Done(_) | Answer::None) => {
                    let told = if let Answer::Done(id) = request.answer { Some(id) } else { None };
                    if told.is_some() {
                        findings.acknowledged += 1;
                        acknowledged = number;
                    }
                    newest = number;
                    let truth = Truth { told, sent_ns: request.sent_ns, answered_ns: request.answered_ns, found: Vec::new() };
                    truths.insert((*client, number), truth);
                    true
                }
                (Ask::Look, Answer::Seen { sum, accounts, newest: seen }) => {
                    sum == i64::from(ACCOUNTS) * OPENING && accounts == ACCOUNTS && (acknowledged..=newest).contains(&seen)
                }
                (Ask::Look, Answer::None) => true,
                _ => false,
            };
            if !fits {
                findings.wrong_answers += 1;
                findings.example(|| format!("client {client} was told {:?} when it asked {:?}", request.answer, request.ask));
            }
        }
    }
    truths
}

fn torn(dump: &Dump, balances: &BTreeMap<u32, i64>, findings: &mut Findings) {
    let accounts: std::collections::BTreeSet<u32> = balances.keys().chain(dump.accounts.keys()).copied().collect();
    for id in accounts {
        let (is, should) = (dump.accounts.get(&id), balances.get(&id).filter(|_| id < ACCOUNTS));
        if is != should {
            findings.torn += 1;
            findings.example(|| format!("account {id} has {is:?}, its entries make {should:?}"));
        }
    }
    let newest = dump.sequence.unwrap_or(0);
    let mut expected = 1..=newest;
    let dense = dump.entries.iter().all(|entry| expected.next() == Some(entry.id)) && expected.next().is_none();
    if !dense {
        findings.torn += 1;
        findings.example(|| format!("the newest id is {newest}, but the entries' ids are not 1 to it ({} entries)", dump.entries.len()));
    }
}

/// Who was sent after somebody's acknowledgement is there after it.
fn reordered<'a>(truths: impl Iterator<Item = &'a Truth>, findings: &mut Findings) {
    let mut by_sending: Vec<(&Truth, i64)> = truths.filter_map(|truth| truth.found.first().map(|id| (truth, *id))).collect();
    by_sending.sort_by_key(|(truth, _)| truth.sent_ns);
    let mut by_answer: Vec<(u64, i64)> =
        by_sending.iter().filter(|(truth, _)| truth.told.is_some()).map(|(truth, id)| (truth.answered_ns, *id)).collect();
    by_answer.sort_unstable();
    let (mut next, mut highest) = (0, 0);
    for (truth, id) in by_sending {
        while let Some((_, earlier)) = by_answer.get(next).filter(|(answered, _)| *answered < truth.sent_ns) {
            highest = highest.max(*earlier);
            next += 1;
        }
        if id < highest {
            findings.reordered += 1;
            findings.example(|| format!("the transaction with id {id} was sent after that with id {highest} had been acknowledged"));
        }
    }
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
