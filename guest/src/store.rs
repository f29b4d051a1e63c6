//! The key-value store: strings and lists in memory, within a budget of bytes.
//!
//! Every byte that a client can make the store hold is counted before it is taken, and what can be large is allocated fallibly: a full
//! store answers [`StoreError::Full`] and stays as it was. Values are changed in place where they fit, which also keeps the pages that
//! a write dirties few.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;

use crate::reply::decimal;
use crate::resp::parse_integer;

/// Bytes counted for an entry besides its key and value: the tree's share and the allocator's rounding.
const ENTRY_OVERHEAD: usize = 160;
/// Bytes counted for a list element besides its content.
const ELEMENT_OVERHEAD: usize = 80;

/// Why the store did not do as asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreError {
    /// The key holds the other kind of value.
    WrongType,
    /// The budget is used up, or the allocator has no room.
    Full,
    /// The value is not a number, or the sum leaves 64 bits.
    NotInteger,
    /// The sum leaves 64 bits.
    Overflow,
}

impl StoreError {
    /// The error reply's text, as Redis words it.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            StoreError::WrongType => "WRONGTYPE Operation against a key holding the wrong kind of value",
            StoreError::Full => "OOM command not allowed when used memory > 'maxmemory'.",
            StoreError::NotInteger => "ERR value is not an integer or out of range",
            StoreError::Overflow => "ERR increment or decrement would overflow",
        }
    }
}

#[derive(Debug)]
enum Value {
    Text(Vec<u8>),
    List(VecDeque<Vec<u8>>),
}

/// Which end of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The left one, index 0.
    Head,
    /// The right one.
    Tail,
}

/// Strings and lists by key.
#[derive(Debug)]
pub struct Store {
    entries: BTreeMap<Vec<u8>, Value>,
    used: usize,
    budget: usize,
}

impl Store {
    /// An empty store that may hold `budget` bytes, overheads included.
    #[must_use]
    pub fn new(budget: usize) -> Store {
        Store { entries: BTreeMap::new(), used: 0, budget }
    }

    /// Bytes held, overheads included.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used
    }

    /// Bytes that may be held.
    #[must_use]
    pub fn budget(&self) -> usize {
        self.budget
    }

    /// Number of keys.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no key.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Removes every key.
    pub fn clear(&mut self) {
        self.entries = BTreeMap::new();
        self.used = 0;
    }

    /// Whether the key exists.
    #[must_use]
    pub fn contains(&self, key: &[u8]) -> bool {
        self.entries.contains_key(key)
    }

    /// "string", "list" or "none".
    #[must_use]
    pub fn kind(&self, key: &[u8]) -> &'static str {
        match self.entries.get(key) {
            None => "none",
            Some(Value::Text(_)) => "string",
            Some(Value::List(_)) => "list",
        }
    }

    /// The string at a key.
    ///
    /// # Errors
    /// [`StoreError::WrongType`] when it is a list.
    pub fn get(&self, key: &[u8]) -> Result<Option<&[u8]>, StoreError> {
        match self.entries.get(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(Value::List(_)) => Err(StoreError::WrongType),
        }
    }

    /// Sets a key to a string, whatever it held.
    ///
    /// # Errors
    /// [`StoreError::Full`]; the key then holds what it held.
    pub fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        if let Some(Value::Text(text)) = self.entries.get_mut(key) {
            let (held, wanted) = (text.capacity(), value.len());
            // In place when it fits and does not waste more than half of a large buffer.
            if wanted <= held && (held <= 128 || wanted >= held / 2) {
                text.clear();
                text.extend_from_slice(value);
                return Ok(());
            }
            if self.used - held + wanted > self.budget {
                return Err(StoreError::Full);
            }
            *text = copy(value)?;
            self.used = self.used - held + text.capacity();
            return Ok(());
        }
        let freed = self.entries.get(key).map_or(0, |old| cost(key, old));
        let added = key.len() + value.len() + ENTRY_OVERHEAD;
        if self.used - freed + added > self.budget {
            return Err(StoreError::Full);
        }
        let (owned_key, value) = (copy(key)?, Value::Text(copy(value)?));
        self.used = self.used - freed + cost(key, &value);
        self.entries.insert(owned_key, value);
        Ok(())
    }

    /// Removes a key; says whether it was there.
    pub fn remove(&mut self, key: &[u8]) -> bool {
        match self.entries.remove(key) {
            Some(value) => {
                self.used -= cost(key, &value);
                true
            }
            None => false,
        }
    }

    /// Adds to the number at a key (0 when there is none) and returns the sum.
    ///
    /// # Errors
    /// [`StoreError::WrongType`], [`StoreError::NotInteger`], [`StoreError::Overflow`] or [`StoreError::Full`]; the value then is as it was.
    pub fn add(&mut self, key: &[u8], delta: i64) -> Result<i64, StoreError> {
        let old = match self.get(key)? {
            None => 0,
            Some(text) => parse_integer(text).ok_or(StoreError::NotInteger)?,
        };
        let sum = old.checked_add(delta).ok_or(StoreError::Overflow)?;
        let mut buffer = [0; 20];
        self.set(key, decimal(sum, &mut buffer))?;
        Ok(sum)
    }

    /// Puts an element at one end of a list, made when there is none; returns the list's length.
    ///
    /// # Errors
    /// [`StoreError::WrongType`] or [`StoreError::Full`]; the list then is as it was.
    pub fn push(&mut self, key: &[u8], end: End, element: &[u8]) -> Result<usize, StoreError> {
        let is_new = !self.entries.contains_key(key);
        let new_entry = if is_new { key.len() + ENTRY_OVERHEAD } else { 0 };
        if self.used + new_entry + element.len() + ELEMENT_OVERHEAD > self.budget {
            return Err(StoreError::Full);
        }
        let owned = copy(element)?;
        if is_new {
            self.entries.insert(copy(key)?, Value::List(VecDeque::new()));
            self.used += new_entry;
        }
        let result = match self.entries.get_mut(key) {
            Some(Value::List(list)) => match list.try_reserve(1) {
                Ok(()) => {
                    self.used += owned.capacity() + ELEMENT_OVERHEAD;
                    match end {
                        End::Head => list.push_front(owned),
                        End::Tail => list.push_back(owned),
                    }
                    Ok(list.len())
                }
                Err(_) => Err(StoreError::Full),
            },
            _ => Err(StoreError::WrongType),
        };
        if result.is_err() && is_new {
            self.remove(key);
        }
        result
    }

    /// Takes an element from one end of a list; an emptied list is gone.
    ///
    /// # Errors
    /// [`StoreError::WrongType`].
    pub fn pop(&mut self, key: &[u8], end: End) -> Result<Option<Vec<u8>>, StoreError> {
        let list = match self.entries.get_mut(key) {
            None => return Ok(None),
            Some(Value::Text(_)) => return Err(StoreError::WrongType),
            Some(Value::List(list)) => list,
        };
        let element = match end {
            End::Head => list.pop_front(),
            End::Tail => list.pop_back(),
        };
        self.used -= element.as_ref().map_or(0, |element| element.capacity() + ELEMENT_OVERHEAD);
        if list.is_empty() {
            self.remove(key);
        }
        Ok(element)
    }

    /// The list at a key, empty when there is none.
    ///
    /// # Errors
    /// [`StoreError::WrongType`].
    pub fn list(&self, key: &[u8]) -> Result<Option<&VecDeque<Vec<u8>>>, StoreError> {
        match self.entries.get(key) {
            None => Ok(None),
            Some(Value::Text(_)) => Err(StoreError::WrongType),
            Some(Value::List(list)) => Ok(Some(list)),
        }
    }
}

/// What an entry counts for.
fn cost(key: &[u8], value: &Value) -> usize {
    let content = match value {
        Value::Text(text) => text.capacity(),
        Value::List(list) => list.iter().map(|element| element.capacity() + ELEMENT_OVERHEAD).sum(),
    };
    key.len() + content + ENTRY_OVERHEAD
}

fn copy(bytes: &[u8]) -> Result<Vec<u8>, StoreError> {
    let mut copy = Vec::new();
    copy.try_reserve_exact(bytes.len()).map_err(|_| StoreError::Full)?;
    copy.extend_from_slice(bytes);
    Ok(copy)
}

#[cfg(test)]
#[path = "tests/store.rs"]
mod tests;
