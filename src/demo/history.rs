//! What a client was told, against what is there in the end. Pure: a list of requests and a final state in, findings out (defends S4).
//!
//! Each client owns its keys and its counter and has one request under way, so the truth is simple: a key holds the last value whose SET was
//! acknowledged, or a later one that was sent and never answered; the counter has been raised once for every acknowledged INCR, and at most
//! once for every unanswered one. Anything else is loss, duplication or reordering.

use std::collections::HashMap;

/// A client's key, by its number.
pub type Key = u32;
/// A value, by the number that makes it unique in its client's history; numbers rise.
pub type Value = u64;

/// What a client asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Write a unique value.
    Set(Key, Value),
    /// Raise the client's counter by one.
    Incr,
    /// Read a key of its own.
    Get(Key),
}

/// What it was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The write was done.
    Done,
    /// The counter's new value.
    Count(i64),
    /// The key's value, or that it has none.
    Read(Option<Value>),
    /// An answer that does not fit the request: an error, another kind, a value never written.
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
    /// When the answer was there; for [`Answer::None`], when it was given up.
    pub answered_ns: u64,
}

/// What the survivor says in the end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Final {
    /// The value of each key that was ever written; a key without an entry could not be read.
    pub values: HashMap<Key, Option<Value>>,
    /// The counter; None when it could not be read. A counter never raised reads as 0.
    pub counter: Option<i64>,
}

/// What a history shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// SET and INCR acknowledged.
    pub acknowledged: u64,
    /// Acknowledged writes that are not there, at the end or at a read or count in between.
    pub lost: u64,
    /// INCRs done more often than they were sent.
    pub duplicated: u64,
    /// Reads in between that were answered with something older or other than what had been acknowledged, and answers that fit no request.
    pub wrong_answers: u64,
    /// Keys and counters that could not be read in the end, so that nothing is proved about them.
    pub unverified: u64,
}

impl Findings {
    /// Adds another client's findings.
    pub fn add(&mut self, other: Findings) {
        self.acknowledged += other.acknowledged;
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        self.wrong_answers += other.wrong_answers;
        self.unverified += other.unverified;
    }
}

/// What may be true of one key.
#[derive(Default)]
struct KeyTruth {
    /// Acknowledged values in order.
    acknowledged: Vec<Value>,
    /// Values sent after the last acknowledged one and never answered.
    maybe: Vec<Value>,
}

impl KeyTruth {
    /// Acknowledged writes that `found` shows to be lost; None when `found` is as it may be.
    fn lost(&self, found: Option<Value>) -> Option<u64> {
        let fits = match found {
            None => self.acknowledged.is_empty(),
            Some(value) => self.acknowledged.last() == Some(&value) || self.maybe.contains(&value),
        };
        if fits {
            return None;
        }
        let survivors = found.and_then(|value| self.acknowledged.iter().position(|v| *v == value)).map_or(0, |i| i + 1);
        Some((self.acknowledged.len() - survivors) as u64)
    }
}

/// Where the counter may be.
#[derive(Default)]
struct CounterTruth {
    /// The last value that was told.
    told: i64,
    /// INCRs sent since and never answered.
    maybe: i64,
}

impl CounterTruth {
    /// Judges that the counter stood at `found` after `raised` acknowledged INCRs since the last telling: (lost, duplicated).
    fn judge(&self, found: i64, raised: i64) -> (u64, u64) {
        let least = self.told + raised;
        let most = least + self.maybe;
        (u64::try_from(least - found).unwrap_or(0), u64::try_from(found - most).unwrap_or(0))
    }
}

/// Judges one client's history, in the order in which the client made its requests.
#[must_use]
pub fn check(history: &[Request], end: &Final) -> Findings {
    let mut findings = Findings::default();
    let mut keys: HashMap<Key, KeyTruth> = HashMap::new();
    let mut counter = CounterTruth::default();
    for request in history {
        match (request.ask, request.answer) {
            (Ask::Set(key, value), Answer::Done) => {
                findings.acknowledged += 1;
                let truth = keys.entry(key).or_default();
                truth.acknowledged.push(value);
                truth.maybe.clear();
            }
            (Ask::Set(key, value), Answer::None) => keys.entry(key).or_default().maybe.push(value),
            (Ask::Incr, Answer::Count(count)) => {
                findings.acknowledged += 1;
                let (lost, duplicated) = counter.judge(count, 1);
                findings.lost += lost;
                findings.duplicated += duplicated;
                counter = CounterTruth { told: count, maybe: 0 };
            }
            (Ask::Incr, Answer::None) => counter.maybe += 1,
            (Ask::Get(key), Answer::Read(found)) => {
                let wrong = keys.get(&key).map_or(found.is_some(), |truth| truth.lost(found).is_some());
                findings.wrong_answers += u64::from(wrong);
            }
            (Ask::Get(_), Answer::None) => {}
            _ => findings.wrong_answers += 1,
        }
    }
    for (key, truth) in &keys {
        match end.values.get(key) {
            // A value that fits nothing is a loss even where no acknowledged write can be named.
            Some(found) => findings.lost += truth.lost(*found).map_or(0, |lost| lost.max(1)),
            None => findings.unverified += 1,
        }
    }
    match end.counter {
        Some(count) => {
            let (lost, duplicated) = counter.judge(count, 0);
            findings.lost += lost;
            findings.duplicated += duplicated;
        }
        None => findings.unverified += 1,
    }
    findings
}

/// The longest time between two answers in a row of which the later came at or after `from_ns` and the earlier at or before `until_ns`.
#[must_use]
pub fn longest_gap_ns(history: &[Request], from_ns: u64, until_ns: u64) -> Option<u64> {
    longest_gap_between_ns(history.iter().filter(|r| r.answer != Answer::None).map(|r| r.answered_ns), from_ns, until_ns)
}

/// As [`longest_gap_ns`], for the times of all answers in order.
#[must_use]
pub fn longest_gap_between_ns(answered_ns: impl IntoIterator<Item = u64>, from_ns: u64, until_ns: u64) -> Option<u64> {
    let answered: Vec<u64> = answered_ns.into_iter().collect();
    answered.windows(2).filter(|pair| pair[1] >= from_ns && pair[0] <= until_ns).map(|pair| pair[1] - pair[0]).max()
}

#[cfg(test)]
#[path = "history_tests.rs"]
mod tests;
