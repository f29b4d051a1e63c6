//! How much memory the demo's guest needs for what its clients write.
//!
//! Here so that a guest whose store is full, which answers with an error, is refused beforehand and not taken for one that answers wrongly.

use guest::layout::{Layout, Range};

use super::client::KEYS;
use crate::config::units::ByteSize;
use crate::config::{ConfigError, GuestMemorySize};

/// What the guest's store counts for a client at most: its keys and its counter, each with a name of up to 8 bytes, a value of up to 190 and the store's own 160.
const CLIENT_BYTES: u64 = (KEYS + 1) * (8 + 190 + 160);
/// The guest's image ends below this (`guest/src/image/link.ld`).
const IMAGE_END: u64 = 8 << 20;
/// From here on the store has its largest size, and room for all the clients that there can be.
const ENOUGH: u64 = 256 << 20;

/// Whether a guest of so many bytes has a connection for each of `clients` and one for the demo, and keeps all that they write.
fn has_room(memory: u64, clients: u64) -> bool {
    // The guest's server gives half of its heap to the store.
    Layout::plan(&[Range { start: 0, end: memory }], IMAGE_END)
        .is_some_and(|plan| plan.connections > clients && plan.heap.len() / 2 >= clients * CLIENT_BYTES)
}

/// Refuses a guest too small for its clients.
///
/// # Errors
/// [`ConfigError::Value`] says what memory would do.
pub fn check(memory: GuestMemorySize, clients: usize) -> Result<(), ConfigError> {
    let (memory, clients) = (memory.bytes(), clients as u64);
    if memory >= ENOUGH || has_room(memory, clients) {
        return Ok(());
    }
    let least = (memory..ENOUGH).step_by(GuestMemorySize::GRANULE as usize).find(|bytes| has_room(*bytes, clients)).unwrap_or(ENOUGH);
    Err(ConfigError::Value {
        key: "--memory",
        given: ByteSize(memory).to_string(),
        why: format!("the guest cannot hold what --clients {clients} write; write at least {}, or fewer clients", ByteSize(least)),
    })
}

#[cfg(test)]
mod tests {
    use super::super::MOST_CLIENTS;
    use super::*;
    use crate::config::resolve;

    fn checked(memory: &str, clients: usize) -> Result<(), ConfigError> {
        check(resolve::memory(memory.parse().expect("a size"), u64::MAX).expect("within its bounds"), clients)
    }

    #[test]
    fn a_guest_that_its_clients_would_fill_is_refused_with_what_is_enough() {
        for (memory, clients) in [("16M", 4), ("24M", 20), ("64M", MOST_CLIENTS), ("128M", MOST_CLIENTS)] {
            let message = checked(memory, clients).expect_err("too small").to_string();
            let least = message.split("at least ").nth(1).and_then(|rest| rest.split(',').next()).expect("a size");
            assert_eq!(checked(least, clients), Ok(()), "{message}");
        }
    }

    #[test]
    fn the_default_is_enough_for_all_clients_and_little_for_few() {
        assert!(has_room(ENOUGH, MOST_CLIENTS as u64));
        assert_eq!(checked("64M", 4), Ok(()));
    }
}
