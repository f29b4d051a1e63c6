//! The standby's slots: memory that the primary's posted writes land in, and who owns each slot.
//!
//! Each slot is either the *sender's* (it may be written by the link) or *lent* to a reader as a [`Slot`] guard; dropping the guard gives
//! it back and the credit travels to the sender of the link that is attached then. So staging outlives a link: slots still being applied
//! when a link dies are simply not granted to the next one until they are dropped. Not here: the wire. Guards S2: a slot that is being read
//! cannot be written.

use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::TransportError;
use crate::link::{Geometry, SlotId};
use crate::map::Map;

/// Takes returned credits to the sender.
pub(crate) trait CreditLine: Send + Sync {
    /// Tells the sender that `slots` are its own. Failures are the link's affair: its owner will see the dead connection.
    fn grant(&self, slots: &[u32]);
}

/// Staging slots of one standby: memory reserved for the worst case, touched only where used.
pub struct Staging {
    map: Map,
    geometry: Geometry,
    inner: Mutex<Inner>,
}

struct Inner {
    /// Per slot: lent to a reader.
    lent: Vec<bool>,
    line: Option<Arc<dyn CreditLine>>,
}

impl std::fmt::Debug for Staging {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Staging").field("geometry", &self.geometry).finish_non_exhaustive()
    }
}

impl Staging {
    /// Reserves memory for all slots.
    ///
    /// # Errors
    /// [`TransportError::Misuse`] for a geometry out of bounds, [`TransportError::Io`] when the host refuses the reservation.
    pub fn new(geometry: Geometry) -> Result<Arc<Staging>, TransportError> {
        let geometry = geometry.validate()?;
        let inner = Mutex::new(Inner { lent: vec![false; geometry.slots as usize], line: None });
        Ok(Arc::new(Staging { map: Map::new(geometry.total_bytes())?, geometry, inner }))
    }

    /// Shape of the staging.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Number of slots that readers hold now.
    #[must_use]
    pub fn lent(&self) -> usize {
        self.lock().lent.iter().filter(|l| **l).count()
    }

    /// Connects a link: every slot that is not lent becomes its sender's, lowest number on top of the sender's stack.
    pub(crate) fn attach(&self, line: Arc<dyn CreditLine>) -> Result<(), TransportError> {
        let mut inner = self.lock();
        if inner.line.is_some() {
            return Err(TransportError::Misuse("this staging already serves a link; close that link first".into()));
        }
        let free: Vec<u32> = (0..self.geometry.slots).rev().filter(|s| !inner.lent[*s as usize]).collect();
        line.grant(&free);
        inner.line = Some(line);
        Ok(())
    }

    /// Ends what [`Staging::attach`] began.
    pub(crate) fn detach(&self) {
        self.lock().line = None;
    }

    /// True when the link may write to `slot`: it is in range and not lent.
    pub(crate) fn writable(&self, slot: SlotId) -> bool {
        self.lock().lent.get(slot.0 as usize).is_some_and(|lent| !*lent)
    }

    /// Address of a slot's first byte. Writing there is sound only while the slot is the attached link's.
    pub(crate) fn slot_base(&self, slot: SlotId) -> *mut u8 {
        assert!(slot.0 < self.geometry.slots, "slot {slot} out of range");
        // SAFETY: the slot lies inside the mapping, whose length is slots * slot_bytes.
        unsafe { self.map.base().add(slot.0 as usize * self.geometry.slot_bytes as usize) }
    }

    /// Hands a completed slot to a reader. The link must not write to it from here on.
    pub(crate) fn lend(self: &Arc<Self>, slot: SlotId, len: u32) -> Slot {
        assert!(len <= self.geometry.slot_bytes, "slot length {len} over {}", self.geometry.slot_bytes);
        let was = std::mem::replace(&mut self.lock().lent[slot.0 as usize], true);
        assert!(!was, "slot {slot} lent twice");
        Slot { staging: Arc::clone(self), id: slot, len: len as usize }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change is a single flag or pointer: whole even if a holder panicked.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The filled bytes of one slot, owned: reads as `&[u8]`, can go to another thread, and gives the credit back when dropped.
pub struct Slot {
    staging: Arc<Staging>,
    id: SlotId,
    len: usize,
}

impl Slot {
    /// Which slot it is.
    #[must_use]
    pub fn id(&self) -> SlotId {
        self.id
    }
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slot").field("id", &self.id).field("len", &self.len).finish()
    }
}

impl Deref for Slot {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: inside the slot (checked in `lend`), initialised (anonymous memory), and not written while lent: links check
        // `Staging::writable` before they direct bytes at a slot, and `lend` happens after the last write to it has completed.
        unsafe { std::slice::from_raw_parts(self.staging.slot_base(self.id), self.len) }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut inner = self.staging.lock();
        inner.lent[self.id.0 as usize] = false;
        let line = inner.line.clone();
        // The grant is a system call: not under the lock. Should another link attach in between, it counts this slot as free by itself,
        // and the grant goes to the dead link.
        drop(inner);
        if let Some(line) = line {
            line.grant(&[self.id.0]);
        }
    }
}
