//! What a request means: Redis's commands as far as its stock client and benchmark use them, on a [`Store`].
//!
//! Lives here: dispatch and the data commands. The commands of our own and those about the server are in `server_command`. Foreign input
//! (S7): a wrong command gets an error reply and the connection goes on; nothing panics.

use crate::machine::Machine;
use crate::reply::Reply;
use crate::resp::{Args, parse_integer};
use crate::server_command;
use crate::store::{End, Store, StoreError};

/// What becomes of the connection after a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// It goes on.
    Continue,
    /// It is closed when the replies are out.
    Close,
    /// The guest stops.
    Shutdown,
}

/// Executes one request and writes exactly one reply.
pub fn execute(args: Args<'_>, store: &mut Store, machine: &mut impl Machine, reply: &mut Reply) -> After {
    let mut name = [0; 16];
    let name = upper_case(args.get(0), &mut name);
    reply.begin();
    let after = match data_command(name, args, store, reply) {
        Some(Ok(())) => After::Continue,
        Some(Err(error)) => {
            reply.error(error.text());
            After::Continue
        }
        None => server_command::execute(name, args, store, machine, reply),
    };
    reply.finish();
    after
}

/// Upper-cases a word into `buffer`; a word that does not fit is no command's name and comes back empty.
pub(crate) fn upper_case<'a>(word: &[u8], buffer: &'a mut [u8; 16]) -> &'a [u8] {
    match buffer.get_mut(..word.len()) {
        Some(upper) => {
            upper.copy_from_slice(word);
            upper.make_ascii_uppercase();
            upper
        }
        None => &[],
    }
}

/// Answers a wrong number of arguments.
pub(crate) fn wrong_arity(reply: &mut Reply) {
    reply.error("ERR wrong number of arguments for this command");
}

/// Runs a data command; `None` when the name is not one's.
fn data_command(name: &[u8], args: Args<'_>, store: &mut Store, reply: &mut Reply) -> Option<Result<(), StoreError>> {
    let enough = match name {
        b"GET" | b"INCR" | b"DECR" | b"LLEN" | b"TYPE" => args.len() == 2,
        b"LPOP" | b"RPOP" => args.len() == 2,
        b"INCRBY" | b"DECRBY" => args.len() == 3,
        b"LRANGE" => args.len() == 4,
        b"SET" | b"LPUSH" | b"RPUSH" => args.len() >= 3,
        b"MSET" => args.len() >= 3 && args.len() % 2 == 1,
        b"MGET" | b"DEL" | b"UNLINK" | b"EXISTS" => args.len() >= 2,
        b"DBSIZE" | b"FLUSHALL" | b"FLUSHDB" => true,
        _ => return None,
    };
    if !enough {
        wrong_arity(reply);
        return Some(Ok(()));
    }
    let key = args.get(1);
    Some(match name {
        b"GET" => get(key, store, reply),
        b"SET" => set(args, store, reply),
        b"MGET" => {
            reply.array(args.len() - 1);
            for index in 1..args.len() {
                match store.get(args.get(index)) {
                    Ok(Some(value)) => reply.bulk(value),
                    Ok(None) | Err(_) => reply.null(),
                }
            }
            Ok(())
        }
        b"MSET" => mset(args, store, reply),
        b"DEL" | b"UNLINK" => count(args, reply, |key| store.remove(key)),
        b"EXISTS" => count(args, reply, |key| store.contains(key)),
        b"INCR" => store.add(key, 1).map(|sum| reply.integer(sum)),
        b"DECR" => store.add(key, -1).map(|sum| reply.integer(sum)),
        b"INCRBY" => match parse_integer(args.get(2)) {
            Some(delta) => store.add(key, delta).map(|sum| reply.integer(sum)),
            None => Err(StoreError::NotInteger),
        },
        b"DECRBY" => match parse_integer(args.get(2)).and_then(i64::checked_neg) {
            Some(delta) => store.add(key, delta).map(|sum| reply.integer(sum)),
            None => Err(StoreError::NotInteger),
        },
        b"LPUSH" => push(args, End::Head, store, reply),
        b"RPUSH" => push(args, End::Tail, store, reply),
        b"LPOP" => pop(key, End::Head, store, reply),
        b"RPOP" => pop(key, End::Tail, store, reply),
        b"LLEN" => store.list(key).map(|list| reply.integer(list.map_or(0, |list| list.len()) as i64)),
        b"LRANGE" => lrange(args, store, reply),
        b"TYPE" => {
            reply.simple(store.kind(key));
            Ok(())
        }
        b"DBSIZE" => {
            reply.integer(store.len() as i64);
            Ok(())
        }
        _ => {
            store.clear();
            reply.ok();
            Ok(())
        }
    })
}

fn get(key: &[u8], store: &Store, reply: &mut Reply) -> Result<(), StoreError> {
    match store.get(key)? {
        Some(value) => reply.bulk(value),
        None => reply.null(),
    }
    Ok(())
}

/// SET with NX and XX. Expiry is refused rather than ignored: a key that should go and stays would be a lie.
fn set(args: Args<'_>, store: &mut Store, reply: &mut Reply) -> Result<(), StoreError> {
    let (mut only_new, mut only_old) = (false, false);
    for index in 3..args.len() {
        let mut option = [0; 16];
        match upper_case(args.get(index), &mut option) {
            b"NX" => only_new = true,
            b"XX" => only_old = true,
            b"EX" | b"PX" | b"EXAT" | b"PXAT" | b"KEEPTTL" => {
                reply.error("ERR this server keeps no expiry times: use SET without EX, PX, EXAT, PXAT and KEEPTTL");
                return Ok(());
            }
            _ => {
                reply.error("ERR syntax error");
                return Ok(());
            }
        }
    }
    if only_new && only_old {
        reply.error("ERR syntax error");
        return Ok(());
    }
    let exists = (only_new || only_old) && store.contains(args.get(1));
    if (only_new && exists) || (only_old && !exists) {
        reply.null();
        return Ok(());
    }
    store.set(args.get(1), args.get(2))?;
    reply.ok();
    Ok(())
}

/// MSET sets all or says how many it could not: it stops at the first pair that does not fit.
fn mset(args: Args<'_>, store: &mut Store, reply: &mut Reply) -> Result<(), StoreError> {
    for index in (1..args.len()).step_by(2) {
        store.set(args.get(index), args.get(index + 1))?;
    }
    reply.ok();
    Ok(())
}

fn count(args: Args<'_>, reply: &mut Reply, mut hit: impl FnMut(&[u8]) -> bool) -> Result<(), StoreError> {
    let hits = (1..args.len()).filter(|&index| hit(args.get(index))).count();
    reply.integer(hits as i64);
    Ok(())
}

fn push(args: Args<'_>, end: End, store: &mut Store, reply: &mut Reply) -> Result<(), StoreError> {
    let mut length = 0;
    for index in 2..args.len() {
        length = store.push(args.get(1), end, args.get(index))?;
    }
    reply.integer(length as i64);
    Ok(())
}

fn pop(key: &[u8], end: End, store: &mut Store, reply: &mut Reply) -> Result<(), StoreError> {
    match store.pop(key, end)? {
        Some(element) => reply.bulk(&element),
        None => reply.null(),
    }
    Ok(())
}

fn lrange(args: Args<'_>, store: &Store, reply: &mut Reply) -> Result<(), StoreError> {
    let (Some(start), Some(stop)) = (parse_integer(args.get(2)), parse_integer(args.get(3))) else {
        return Err(StoreError::NotInteger);
    };
    let Some(list) = store.list(args.get(1))? else {
        reply.array(0);
        return Ok(());
    };
    let length = list.len() as i64;
    let from_end = |index: i64| if index < 0 { index.saturating_add(length) } else { index };
    let (start, stop) = (from_end(start).max(0), from_end(stop).min(length - 1));
    if start > stop {
        reply.array(0);
        return Ok(());
    }
    reply.array((stop - start + 1) as usize);
    for element in list.range(start as usize..=stop as usize) {
        reply.bulk(element);
    }
    Ok(())
}

#[cfg(test)]
#[path = "tests/command.rs"]
mod tests;
