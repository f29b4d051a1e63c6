//! The sender's account of its peer's slots: which are free, which are in its hands with how many bytes, which are the peer's. Pure; the same for every
//! kind of link. Not here: how bytes and credits travel. Guards S7 on the sender's side: a credit for a slot that is not out is an error.

use crate::error::TransportError;
use crate::link::{Geometry, SlotId};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    /// The peer has never granted it.
    Unknown,
    Peer,
    Free,
    /// Acquired, with so many bytes posted.
    Ours {
        posted: u32,
    },
}

/// Who owns each slot, as the sender knows it.
pub(crate) struct SlotBook {
    geometry: Geometry,
    owners: Vec<Owner>,
    /// Free slots, the most recently freed on top.
    free: Vec<SlotId>,
    /// Slots that were granted at least once.
    known: usize,
    last_ticket: u64,
}

impl SlotBook {
    pub(crate) fn new(geometry: Geometry) -> SlotBook {
        let slots = geometry.slots as usize;
        SlotBook { geometry, owners: vec![Owner::Unknown; slots], free: Vec::with_capacity(slots), known: 0, last_ticket: 0 }
    }

    pub(crate) fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Highest ticket so far; 0: none.
    pub(crate) fn last_ticket(&self) -> u64 {
        self.last_ticket
    }

    /// A credit came.
    pub(crate) fn granted(&mut self, slot: SlotId) -> Result<(), TransportError> {
        match self.owners.get_mut(slot.0 as usize) {
            Some(owner @ (Owner::Peer | Owner::Unknown)) => {
                self.known += usize::from(*owner == Owner::Unknown);
                *owner = Owner::Free;
            }
            Some(_) => return Err(TransportError::protocol(format!("credit for slot {slot}, which is free or in use here already"))),
            None => return Err(TransportError::protocol(format!("credit for slot {slot}, there are {}", self.geometry.slots))),
        }
        self.free.push(slot);
        Ok(())
    }

    /// Takes the slot that was freed last, unless `most` of them are in use already.
    pub(crate) fn acquire(&mut self, most: u32) -> Option<SlotId> {
        if self.known - self.free.len() >= most as usize {
            return None;
        }
        let slot = self.free.pop()?;
        self.owners[slot.0 as usize] = Owner::Ours { posted: 0 };
        Some(slot)
    }

    /// Accounts for a write of `total` bytes at `offset`; an error changes nothing.
    pub(crate) fn post(&mut self, slot: SlotId, offset: u32, total: usize) -> Result<(), TransportError> {
        let slot_bytes = self.geometry.slot_bytes as usize;
        let Some(Owner::Ours { posted }) = self.owners.get_mut(slot.0 as usize) else {
            return Err(TransportError::SlotNotOwned(slot));
        };
        if (offset as usize).saturating_add(total) > slot_bytes || (*posted as usize).saturating_add(total) > slot_bytes {
            return Err(TransportError::Misuse(format!(
                "write of {total} bytes at {offset} does not fit slot {slot} of {slot_bytes} bytes"
            )));
        }
        *posted += total as u32;
        Ok(())
    }

    /// The slot goes to the peer; an error changes nothing.
    pub(crate) fn end(&mut self, slot: SlotId, len: u32, ticket: u64) -> Result<(), TransportError> {
        let Some(owner @ &mut Owner::Ours { posted }) = self.owners.get_mut(slot.0 as usize) else {
            return Err(TransportError::SlotNotOwned(slot));
        };
        if posted != len {
            return Err(TransportError::Misuse(format!("slot {slot} ended at {len} bytes, {posted} were posted")));
        }
        if ticket <= self.last_ticket {
            return Err(TransportError::Misuse(format!("ticket {ticket} after ticket {}", self.last_ticket)));
        }
        self.last_ticket = ticket;
        *owner = Owner::Peer;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u32 = u32::MAX;

    fn book(granted: u32) -> SlotBook {
        let mut book = SlotBook::new(Geometry { slots: 4, slot_bytes: 4096 });
        (0..granted).for_each(|slot| book.granted(SlotId(slot)).unwrap());
        book
    }

    #[test]
    fn a_credit_is_believed_once_and_only_for_a_slot_that_is_out() {
        let mut book = book(2);
        assert!(book.granted(SlotId(1)).is_err(), "free already");
        assert!(book.granted(SlotId(4)).is_err(), "there is none");
        let slot = book.acquire(ALL).unwrap();
        assert!(book.granted(slot).is_err(), "in use here");

        book.end(slot, 0, 1).unwrap();

        assert!(book.granted(slot).is_ok());
        assert!(book.granted(slot).is_err());
    }

    #[test]
    fn the_slot_freed_last_is_used_first_and_no_more_than_asked_for() {
        let mut book = book(3);
        assert_eq!(book.acquire(2), Some(SlotId(2)));
        assert_eq!(book.acquire(2), Some(SlotId(1)));
        assert_eq!(book.acquire(2), None, "two are in use");
        assert_eq!(book.acquire(ALL), Some(SlotId(0)));
        assert_eq!(book.acquire(ALL), None, "the fourth was never granted");

        book.end(SlotId(1), 0, 7).unwrap();
        assert_eq!(book.acquire(ALL), None, "the peer has it");
        book.granted(SlotId(1)).unwrap();
        assert_eq!(book.acquire(ALL), Some(SlotId(1)));
    }

    #[test]
    fn writes_fit_their_slot_and_ends_fit_the_writes() {
        let mut book = book(1);
        assert!(matches!(book.post(SlotId(0), 0, 1), Err(TransportError::SlotNotOwned(_))));
        let slot = book.acquire(ALL).unwrap();

        assert!(book.post(slot, 4000, 97).is_err());
        assert!(book.post(slot, u32::MAX, usize::MAX).is_err());
        book.post(slot, 0, 4000).unwrap();
        assert!(book.post(slot, 0, 97).is_err(), "more bytes than a slot has");
        assert!(book.end(slot, 3999, 5).is_err());
        assert!(book.end(slot, 4000, 0).is_err(), "tickets begin at 1");
        book.end(slot, 4000, 5).unwrap();

        assert_eq!(book.last_ticket(), 5);
        assert!(matches!(book.post(slot, 0, 1), Err(TransportError::SlotNotOwned(_))));
        book.granted(slot).unwrap();
        let slot = book.acquire(ALL).unwrap();
        assert!(book.end(slot, 0, 5).is_err(), "tickets rise");
    }
}
