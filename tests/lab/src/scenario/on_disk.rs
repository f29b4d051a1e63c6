//! What clients were told, judged by the disk of a guest that was switched off: read on the host that ran it, from a read-only mount of a clean file
//! system, so what is found is what the disk holds, not what the guest had in memory.
//!
//! The ledger is opened by the `sqlite3` of the very disk, in a copy in memory. That copy is then damaged on purpose, to see that the judge would
//! have found it. Redis is what its append-only file makes of nothing.

use std::collections::HashMap;

use lockstep::demo::resp::{self, Reply};
use lockstep::demo::{client, history};

use super::clients::Told;
use super::ledger::judge::{Findings, judge};
use super::ledger::{DIRECTORY, DUMP, Dump, FILE};
use super::node::NODE_BOUND;
use crate::agent::Agent;
use crate::error::LabError;

/// Where the disk is mounted in the host.
const MOUNT: &str = "/run/guest-disk";
/// Redis' append-only file in the guest, as long as it is not rewritten (`agent/guest.rs` has it so): begun when there was nothing.
const APPEND_ONLY: &str = "/var/lib/redis/appendonlydir/appendonly.aof.1.incr.aof";

/// A damage, as SQL, and what of the findings must show it.
type Damage = (&'static str, &'static str, fn(&Findings) -> u64);

/// Those of entries take the newest one: what was acknowledged last is what a failover could have lost.
const DAMAGES: [Damage; 3] = [
    ("an acknowledged row deleted", "DELETE FROM entries WHERE id=(SELECT max(id) FROM entries);", |f| f.lost),
    (
        "a row there twice",
        "INSERT INTO entries(client,number,source,target,amount,note) SELECT client,number,source,target,amount,note FROM entries \
         WHERE id=(SELECT max(id) FROM entries);",
        |f| f.duplicated,
    ),
    ("a balance that is not what it should be", "UPDATE accounts SET balance=balance-1 WHERE id=0;", |f| f.torn),
];

/// Judges what is on `device` of a host, whose file system must be clean and not mounted, by what clients were told; what is wrong, in words.
///
/// # Errors
/// It cannot be read, or a damage done on purpose is not found.
pub fn judged(host: &Agent<'_>, device: &str, told: &Told) -> Result<Vec<String>, LabError> {
    // noload: the file system is clean, so there is nothing in its journal; and a read-only mount writes nothing then.
    let mount = format!("mkdir -p {MOUNT} && mount -o ro,noload {device} {MOUNT} && mount -t tmpfs t {MOUNT}/tmp");
    host.must(&mount, NODE_BOUND)?;
    let wrong = ledger(host, told).and_then(|mut wrong| {
        wrong.extend(redis(host, told)?);
        Ok(wrong)
    });
    host.must(&format!("umount {MOUNT}/tmp && umount {MOUNT}"), NODE_BOUND)?;
    wrong
}

fn ledger(host: &Agent<'_>, told: &Told) -> Result<Vec<String>, LabError> {
    let Some(record) = &told.ledger else { return Ok(Vec::new()) };
    host.must(&format!("cp -a {MOUNT}{DIRECTORY} {MOUNT}/tmp/sound"), NODE_BOUND)?;
    let found = judge(record, &dump(host, "sound", "")?);
    for (what, sql, shown) in DAMAGES {
        let findings = judge(record, &dump(host, "damaged", sql)?);
        if shown(&findings) <= shown(&found) {
            return Err(LabError::Found(format!("the judge did not find {what} in the ledger, so it proves nothing: {findings:?}")));
        }
    }
    Ok(if found.wrong() == 0 { Vec::new() } else { vec![format!("the ledger: {found:?}")] })
}

/// The ledger in the copy called `name`, after `sql`. Any copy but the first is made anew from it.
fn dump(host: &Agent<'_>, name: &str, sql: &str) -> Result<Dump, LabError> {
    // A journal that was left behind is part of the database: sqlite3 rolls it back, in the copy.
    let script = format!(
        "cd {MOUNT}/tmp && if [ {name} != sound ]; then rm -rf {name} && cp -a sound {name}; fi && \
         chroot {MOUNT} sqlite3 -bail -batch /tmp/{name}/{FILE} \"$(cat)\""
    );
    let text = host.must_with(&script, format!("{sql} {DUMP}").as_bytes(), NODE_BOUND)?;
    let lines: Vec<&str> = text.lines().collect();
    let Some(("end", lines)) = lines.split_last().map(|(last, rest)| (*last, rest)) else {
        return Err(LabError::Found(format!("the ledger on the disk ends with {:?}", lines.last())));
    };
    Dump::parse(lines.iter().copied()).map_err(|why| LabError::Found(format!("the ledger on the disk: {why}")))
}

fn redis(host: &Agent<'_>, told: &Told) -> Result<Vec<String>, LabError> {
    if told.key_value.is_empty() {
        return Ok(Vec::new());
    }
    let file = host.exec(&format!("cat {MOUNT}{APPEND_ONLY}"), NODE_BOUND)?;
    if !file.ok() {
        return Err(LabError::Found(format!("Redis' append-only file on the disk: {}", String::from_utf8_lossy(&file.err))));
    }
    let store = replay(&file.out).map_err(|why| LabError::Found(format!("Redis' append-only file on the disk: {why}")))?;
    let mut findings = history::Findings::default();
    for (number, history) in told.key_value.iter().enumerate() {
        let end = client::read_from(number, told.seed, history, |key| store.get(key).cloned());
        findings.add(history::check(history, &end));
    }
    let wrong = findings.lost + findings.duplicated + findings.wrong_answers + findings.unverified;
    Ok(if wrong == 0 { Vec::new() } else { vec![format!("Redis: {findings:?}")] })
}

/// What an append-only file of commands makes of an empty store.
fn replay(mut file: &[u8]) -> Result<HashMap<Vec<u8>, Vec<u8>>, String> {
    let mut store: HashMap<Vec<u8>, Vec<u8>> = HashMap::new();
    while !file.is_empty() {
        let Ok(Reply::Array(words)) = resp::reply(&mut file) else {
            return Err(format!("no command {} bytes before its end", file.len()));
        };
        let words: Option<Vec<Vec<u8>>> = words.into_iter().map(|word| if let Reply::Bulk(bytes) = word { bytes } else { None }).collect();
        let words = words.ok_or("a command with a word that is none")?;
        let verb = words.first().map(|verb| String::from_utf8_lossy(verb).to_uppercase());
        match (verb.as_deref(), words.get(1..).unwrap_or_default()) {
            (Some("SELECT"), _) => {}
            (Some("SET"), [key, value]) => drop(store.insert(key.clone(), value.clone())),
            (Some("INCR"), [key]) => {
                let count = store.entry(key.clone()).or_insert_with(|| b"0".to_vec());
                let number =
                    std::str::from_utf8(count).ok().and_then(|text| text.parse::<i64>().ok()).ok_or("a counter that is no number")?;
                *count = (number + 1).to_string().into_bytes();
            }
            (verb, _) => return Err(format!("a command that no client sends: {verb:?}")),
        }
    }
    Ok(store)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(commands: &[&[&str]]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for words in commands {
            let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
            resp::command(&mut bytes, &words).expect("written");
        }
        bytes
    }

    #[test]
    fn an_append_only_file_is_done_again_in_order() {
        let file = file(&[&["SELECT", "0"], &["SET", "k", "1"], &["INCR", "n"], &["set", "k", "2"], &["INCR", "n"]]);
        let store = replay(&file).expect("a store");
        assert_eq!(store, HashMap::from([(b"k".to_vec(), b"2".to_vec()), (b"n".to_vec(), b"2".to_vec())]));
    }

    #[test]
    fn an_append_only_file_that_is_torn_or_strange_is_refused() {
        let whole = file(&[&["SET", "k", "1"], &["INCR", "n"]]);
        assert!(replay(&whole[..whole.len() - 3]).is_err());
        assert!(replay(&[whole.as_slice(), &[0; 8]].concat()).is_err());
        assert!(replay(&file(&[&["FLUSHALL"]])).is_err());
        assert!(replay(&file(&[&["SET", "n", "x"], &["INCR", "n"]])).is_err());
    }
}
