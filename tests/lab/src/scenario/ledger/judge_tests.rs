//! Ledgers damaged on purpose: each kind of damage must be found, and a sound one must be found sound.

use super::super::Entry;
use super::*;

const SEED: u64 = 7;

fn request(ask: Ask, answer: Answer, at: u64) -> Request {
    Request { ask, answer, sent_ns: at, answered_ns: at + 5 }
}

/// Two clients that took turns: client 0's transactions have odd ids, client 1's even ones.
fn record() -> Record {
    let history = |client: u64| {
        let done = |number: u64| {
            let id = 2 * (number - 1) + client + 1;
            request(Ask::Transfer(number), Answer::Done(id as i64), id * 10)
        };
        (1..=5).map(done).collect()
    };
    Record { seed: SEED, histories: BTreeMap::from([(0, history(0)), (1, history(1))]) }
}

fn entry(id: i64, client: u32, number: u64) -> Entry {
    Entry { id, client, number, transfer: Transfer::of(SEED, client, number) }
}

/// A ledger in which all that `entries` say has been done, and nothing else.
fn ledger(entries: Vec<Entry>) -> Dump {
    let mut accounts: BTreeMap<u32, i64> = (0..ACCOUNTS).map(|id| (id, OPENING)).collect();
    for Entry { transfer, .. } in &entries {
        *accounts.get_mut(&transfer.source).expect("an account") -= transfer.amount;
        *accounts.get_mut(&transfer.target).expect("an account") += transfer.amount;
    }
    Dump { sequence: entries.last().map(|e| e.id), entries, accounts, integrity: vec!["ok".into()] }
}

fn sound() -> Dump {
    ledger((1..=10).map(|id| entry(id, (id as u32 + 1) % 2, (id as u64).div_ceil(2))).collect())
}

#[test]
fn a_sound_ledger_is_sound() {
    let findings = judge(&record(), &sound());
    assert_eq!(findings, Findings { acknowledged: 10, ..Findings::default() });
}

#[test]
fn an_acknowledged_transaction_that_is_gone_without_a_trace_is_lost() {
    // The newest of all, with its balances and its id undone: as if the commit had never been.
    let mut dump = sound();
    dump.entries.pop();
    let findings = judge(&record(), &ledger(dump.entries));
    assert_eq!(findings, Findings { acknowledged: 10, lost: 1, examples: findings.examples.clone(), ..Findings::default() });
    assert!(findings.examples[0].contains("client 1's transaction 5, acknowledged with id 10, is lost"), "{:?}", findings.examples);
}

#[test]
fn a_row_that_was_deleted_is_lost_and_its_balances_are_torn() {
    let mut dump = sound();
    dump.entries.remove(4);
    let findings = judge(&record(), &dump);
    // Two accounts and the gap in the ids.
    assert_eq!((findings.lost, findings.torn, findings.wrong()), (1, 3, 4));
}

#[test]
fn a_transaction_done_twice_is_found_whole_or_by_half() {
    let mut dump = sound();
    dump.entries.push(Entry { id: 11, ..dump.entries[9].clone() });
    // Twice with everything that belongs to it: only the entry shows it.
    let whole = judge(&record(), &ledger(dump.entries.clone()));
    assert_eq!((whole.duplicated, whole.torn, whole.wrong()), (1, 0, 1));
    // The row alone.
    let half = judge(&record(), &dump);
    assert_eq!((half.duplicated, half.torn), (1, 3));
}

#[test]
fn a_sum_that_is_broken_is_torn_even_when_no_entry_is() {
    let mut dump = sound();
    *dump.accounts.get_mut(&3).expect("an account") += 1;
    assert_eq!(judge(&record(), &dump).torn, 1);
    // The sum is right and two accounts are wrong: half of a transfer is in another.
    *dump.accounts.get_mut(&4).expect("an account") -= 1;
    assert_eq!(judge(&record(), &dump).torn, 2);
}

#[test]
fn accounts_that_are_missing_or_too_many_are_torn() {
    let mut dump = sound();
    dump.accounts.remove(&3);
    dump.accounts.insert(ACCOUNTS, 0);
    assert_eq!(judge(&record(), &dump).torn, 2);
}

#[test]
fn an_entry_with_other_contents_or_another_id_is_altered() {
    let mut dump = sound();
    dump.entries[2].transfer.note.push('x');
    assert_eq!((judge(&record(), &dump).altered, judge(&record(), &dump).wrong()), (1, 1));

    let mut swapped = sound();
    let (a, b) = (swapped.entries[0].number, swapped.entries[2].number);
    (swapped.entries[0], swapped.entries[2]) = (entry(1, 0, b), entry(3, 0, a));
    assert_eq!(judge(&record(), &ledger(swapped.entries)).altered, 2);
}

#[test]
fn an_entry_that_nobody_sent_is_found() {
    let mut dump = sound();
    dump.entries.push(entry(11, 0, 6));
    dump.entries.push(entry(12, 9, 1));
    let findings = judge(&record(), &ledger(dump.entries));
    assert_eq!((findings.unknown, findings.wrong()), (2, 2));
}

#[test]
fn an_unanswered_transaction_may_be_there_wholly_or_not_at_all() {
    let mut record = record();
    record.histories.entry(1).or_default().push(request(Ask::Transfer(6), Answer::None, 200));
    assert_eq!(judge(&record, &sound()).wrong(), 0);

    let mut dump = sound();
    dump.entries.push(entry(11, 1, 6));
    assert_eq!(judge(&record, &ledger(dump.entries.clone())).wrong(), 0);
    // By half: the entry is there, the accounts are not touched.
    let half = Dump { entries: dump.entries, sequence: Some(11), ..sound() };
    assert_eq!(judge(&record, &half).torn, 2);
    // By the other half.
    let transfer = Transfer::of(SEED, 1, 6);
    let mut dump = sound();
    *dump.accounts.get_mut(&transfer.source).expect("an account") -= transfer.amount;
    *dump.accounts.get_mut(&transfer.target).expect("an account") += transfer.amount;
    assert_eq!(judge(&record, &dump).torn, 2);
}

#[test]
fn commits_that_changed_places_are_reordered() {
    // What was acknowledged says the same as what is there, so only the times show it.
    let mut record = record();
    for history in record.histories.values_mut() {
        for request in history {
            (request.sent_ns, request.answered_ns) = match request.answer {
                Answer::Done(1) => (900, 905),
                _ => (request.sent_ns, request.answered_ns),
            };
        }
    }
    assert_eq!((judge(&record, &sound()).reordered, judge(&record, &sound()).wrong()), (1, 1));
}

#[test]
fn transactions_under_way_at_once_may_come_in_either_order() {
    let at_once = |id| Request { ask: Ask::Transfer(1), answer: Answer::Done(id), sent_ns: 10, answered_ns: 20 };
    let record = Record { seed: SEED, histories: BTreeMap::from([(0, vec![at_once(2)]), (1, vec![at_once(1)])]) };
    assert_eq!(judge(&record, &ledger(vec![entry(1, 1, 1), entry(2, 0, 1)])).wrong(), 0);
}

#[test]
fn a_look_that_sees_another_sum_or_misses_the_clients_own_is_found() {
    let seen = |sum, accounts, newest| request(Ask::Look, Answer::Seen { sum, accounts, newest }, 1000);
    let total = i64::from(ACCOUNTS) * OPENING;
    for (look, wrong) in [
        (seen(total, ACCOUNTS, 5), 0),
        (seen(total, ACCOUNTS, 4), 1),
        (seen(total, ACCOUNTS, 6), 1),
        (seen(total - 1, ACCOUNTS, 5), 1),
        (seen(total, ACCOUNTS - 1, 5), 1),
        (request(Ask::Look, Answer::Done(1), 1000), 1),
        (request(Ask::Look, Answer::None, 1000), 0),
    ] {
        let mut record = record();
        record.histories.entry(0).or_default().push(look);
        let findings = judge(&record, &sound());
        assert_eq!((findings.wrong_answers, findings.wrong()), (wrong, wrong), "{look:?}");
    }
}

#[test]
fn what_the_database_finds_damaged_is_damaged_and_so_is_what_it_did_not_check() {
    for integrity in [vec![], vec!["row 3 missing from index".to_owned()]] {
        assert_eq!(judge(&record(), &Dump { integrity, ..sound() }).damaged, 1);
    }
}

#[test]
fn the_newest_id_goes_with_the_newest_entry() {
    assert_eq!(judge(&record(), &Dump { sequence: Some(9), ..sound() }).torn, 1);
    assert_eq!(judge(&record(), &Dump { sequence: Some(11), ..sound() }).torn, 1);
}
