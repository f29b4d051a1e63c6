//! Registered memory that writes are posted from, and who may touch which part of it.
//!
//! A [`Region`] is mapped once and registered once. A range of it is *claimed* for writing ([`RegionMut`], exclusive), filled, *frozen*
//! ([`RegionRef`], read-only), posted, and after its completion thawed or dropped. Claims never overlap, and nothing may be posted from a
//! range that is claimed for writing: capture and send cannot meet in the same bytes. Not here: when a range may be reused (the sender's
//! completions say so).

use std::ops::{Deref, DerefMut, Range};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::TransportError;
use crate::map::Map;

/// Anonymous memory, page aligned, huge pages asked for, of fixed length; reserved once and touched when used.
pub struct Region {
    map: Map,
    claims: Mutex<Vec<Claim>>,
}

struct Claim {
    range: Range<usize>,
    writable: bool,
}

impl std::fmt::Debug for Region {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Region").field("len", &self.map.len()).finish_non_exhaustive()
    }
}

impl Region {
    /// Maps a region of `len` bytes, rounded up to whole pages, zero at first.
    ///
    /// # Errors
    /// [`TransportError::Misuse`] for a length of zero, [`TransportError::Io`] when the host has no address space or memory for it.
    pub fn new(len: usize) -> Result<Arc<Region>, TransportError> {
        Ok(Arc::new(Region { map: Map::new(len)?, claims: Mutex::new(Vec::new()) }))
    }

    /// Length in bytes.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a region is never empty")]
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Address of the first byte, for registration with a device. Reading through it is the caller's responsibility.
    #[must_use]
    pub fn as_ptr(&self) -> *const u8 {
        self.map.base()
    }

    /// Claims `range` for writing, exclusively, until the guard is dropped or frozen.
    ///
    /// # Errors
    /// [`TransportError::Misuse`] when the range is outside the region, empty, or overlaps another claim.
    pub fn claim(self: &Arc<Self>, range: Range<usize>) -> Result<RegionMut, TransportError> {
        if range.start >= range.end || range.end > self.len() {
            return Err(TransportError::Misuse(format!("range {range:?} is not inside a region of {} bytes", self.len())));
        }
        let mut claims = self.lock();
        if let Some(other) = claims.iter().find(|c| overlaps(&c.range, &range)) {
            return Err(TransportError::Misuse(format!("range {range:?} overlaps {:?}, which is claimed already", other.range)));
        }
        claims.push(Claim { range: range.clone(), writable: true });
        drop(claims);
        Ok(RegionMut(Held { region: Arc::clone(self), range }))
    }

    /// Claims the whole region.
    ///
    /// # Errors
    /// As [`Region::claim`].
    pub fn claim_all(self: &Arc<Self>) -> Result<RegionMut, TransportError> {
        self.claim(0..self.len())
    }

    /// Runs `read` while no range can be claimed or thawed, after checking that none of `ranges` is being written.
    pub(crate) fn with_readable<T>(
        &self,
        mut ranges: impl Iterator<Item = Range<usize>>,
        read: impl FnOnce(*const u8) -> T,
    ) -> Result<T, TransportError> {
        let claims = self.lock();
        let bad = ranges.find(|r| r.end > self.len() || r.start > r.end || claims.iter().any(|c| c.writable && overlaps(&c.range, r)));
        if let Some(bad) = bad {
            return Err(TransportError::Misuse(format!(
                "piece {bad:?} is outside its region of {} bytes or in a range still claimed for writing; freeze it first",
                self.len()
            )));
        }
        let result = read(self.map.base());
        drop(claims);
        Ok(result)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Claim>> {
        // Every change to the list is one push, one removal or one flag: it is whole even if a holder panicked.
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn overlaps(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}

/// A claim's place in the list; removes itself.
struct Held {
    region: Arc<Region>,
    range: Range<usize>,
}

impl Held {
    fn set_writable(&self, writable: bool) {
        if let Some(claim) = self.region.lock().iter_mut().find(|c| c.range == self.range) {
            claim.writable = writable;
        }
    }

    fn start(&self) -> *mut u8 {
        // SAFETY: `claim` checked that the range lies inside the mapping, which `region` keeps alive.
        unsafe { self.region.map.base().add(self.range.start) }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut claims = self.region.lock();
        if let Some(at) = claims.iter().position(|c| c.range == self.range) {
            claims.swap_remove(at);
        }
    }
}

/// Exclusive, writable claim on a range of a region.
pub struct RegionMut(Held);

impl RegionMut {
    /// Offset of the first byte within the region, for [`crate::Piece`].
    #[must_use]
    pub fn offset(&self) -> usize {
        self.0.range.start
    }

    /// The region.
    #[must_use]
    pub fn region(&self) -> &Arc<Region> {
        &self.0.region
    }

    /// Makes the range read-only, so that it may be posted.
    #[must_use]
    pub fn freeze(self) -> RegionRef {
        self.0.set_writable(false);
        RegionRef(self.0)
    }
}

impl Deref for RegionMut {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the range is inside the mapping, initialised (anonymous memory is zero), and no other claim overlaps it; nothing posted
        // reads it while it is writable, and `&self` rules out writes through this guard.
        unsafe { std::slice::from_raw_parts(self.0.start(), self.0.range.len()) }
    }
}

impl DerefMut for RegionMut {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` makes this the only reference made from the only claim on these bytes.
        unsafe { std::slice::from_raw_parts_mut(self.0.start(), self.0.range.len()) }
    }
}

/// Read-only claim on a range of a region: it can be posted, read and shared, and nobody can write it.
pub struct RegionRef(Held);

impl RegionRef {
    /// Offset of the first byte within the region, for [`crate::Piece`].
    #[must_use]
    pub fn offset(&self) -> usize {
        self.0.range.start
    }

    /// The region.
    #[must_use]
    pub fn region(&self) -> &Arc<Region> {
        &self.0.region
    }

    /// Makes the range writable again. Only after the last ticket posted from it is completed: earlier, the peer may get torn bytes (its
    /// digest check refuses them; memory safety is not at stake).
    #[must_use]
    pub fn thaw(self) -> RegionMut {
        self.0.set_writable(true);
        RegionMut(self.0)
    }
}

impl Deref for RegionRef {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the range is inside the mapping and initialised; its claim is read-only and excludes every other claim, so nothing writes it.
        unsafe { std::slice::from_raw_parts(self.0.start(), self.0.range.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::iter::once;

    #[test]
    fn claims_never_overlap_and_return_on_drop() {
        let region = Region::new(8192).unwrap();
        let mut first = region.claim(0..4096).unwrap();
        first[0] = 7;
        assert!(region.claim(4095..5000).is_err());
        let second = region.claim(4096..8192).unwrap();
        drop(first);
        let again = region.claim(0..4096).unwrap();
        assert_eq!((again[0], second.offset()), (7, 4096));
    }

    #[test]
    fn nothing_is_readable_for_posting_while_it_is_claimed_for_writing() {
        let region = Region::new(4096).unwrap();
        let guard = region.claim(0..100).unwrap();
        assert!(region.with_readable(once(50..60), |_| ()).is_err());
        assert!(region.with_readable(once(100..200), |_| ()).is_ok());
        let frozen = guard.freeze();
        assert!(region.with_readable(once(50..60), |_| ()).is_ok());
        let _thawed = frozen.thaw();
        assert!(region.with_readable(once(50..60), |_| ()).is_err());
        assert!(region.with_readable(once(4000..5000), |_| ()).is_err());
    }
}
