//! What the standby holds, as far as the primary remembers it: a bounded, direct-mapped table of pages as they were last sent.
//!
//! Lives here: the table and the policy of what is worth remembering. Not here: the delta format (`delta`). Guards S5: a remembered page is always
//! exactly what was sent last for that gfn, whichever way it was sent; otherwise the slot forgets its content.
//!
//! The policy keeps an incompressible stream cheap. A page is only named when it is first sent, copied when it is sent again (one send tells
//! nothing about the next), and compared from the third time on. Each failed comparison quadruples the number of sends for which the slot
//! neither copies nor compares. A slot withstands as many sends of other pages as it was of use lately, so that two pages that take turns do not keep
//! driving each other out.

use types::Gfn;

use crate::Page;
use crate::delta::{DeltaOutcome, encode_delta};

/// Memory for remembered pages unless configured otherwise: 64 MiB, pages. Beyond the dirty set of an epoch at the paces aimed at.
pub const DEFAULT_DELTA_PAGES: usize = 16384;
/// Most pages that may be remembered: 64 GiB of them. A configuration beyond that is a mistake.
pub const MAX_DELTA_PAGES: usize = 1 << 24;
/// Failures are counted up to here: a slot rests for at most 4^4 - 1 sends, so an incompressible page pays one copy and one comparison in 257.
const MAX_FAILURES: u8 = 4;
/// How many sends of other pages the most useful slot withstands.
const MAX_WORTH: u8 = 4;

/// How a page that is not zero is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// The standby holds exactly this already.
    Unchanged,
    /// As a delta of that many bytes, which were written to the buffer.
    Delta(usize),
    /// Whole.
    Raw,
}

#[derive(Clone, Copy, Default)]
struct Slot {
    /// gfn + 1; 0: nobody's.
    tag: u64,
    /// Whether the content is what the standby holds.
    valid: bool,
    /// Sends left for which the slot rests.
    rest: u8,
    /// Failed comparisons since the last success.
    failures: u8,
    /// Sends of other pages that the slot withstands.
    worth: u8,
}

/// See the module's description. Allocated once; the system provides the memory as it is first used.
pub struct DeltaCache {
    slots: Vec<Slot>,
    pages: Vec<Page>,
    mask: usize,
}

impl DeltaCache {
    /// Remembers up to `pages` pages, rounded down to a power of two and to [`MAX_DELTA_PAGES`]; 0 turns deltas off.
    #[must_use]
    pub fn new(pages: usize) -> DeltaCache {
        let pages = if pages == 0 { 0 } else { 1 << pages.min(MAX_DELTA_PAGES).ilog2() };
        DeltaCache { slots: vec![Slot::default(); pages], pages: vec![[0; types::PAGE_SIZE]; pages], mask: pages.saturating_sub(1) }
    }

    /// Forgets everything: a new standby joins, or what the standby holds is unknown.
    pub fn reset(&mut self) {
        self.slots.fill(Slot::default());
    }

    /// Whether the next send of this page would be compared with what the standby holds.
    #[must_use]
    pub fn remembers(&self, gfn: Gfn) -> bool {
        self.slots.get(gfn.0 as usize & self.mask).is_some_and(|slot| slot.valid && slot.tag == gfn.0 + 1)
    }

    /// The page is about to be sent as zero.
    pub fn sent_zero(&mut self, gfn: Gfn) {
        if let Some(slot) = self.slots.get_mut(gfn.0 as usize & self.mask)
            && slot.tag == gfn.0 + 1
        {
            slot.valid = false;
        }
    }

    /// The page, which is not zero, is about to be sent: says how, writing a delta to `out` if that is the way, and remembers what the
    /// standby will hold.
    pub fn send(&mut self, gfn: Gfn, page: &Page, out: &mut [u8]) -> Sent {
        let at = gfn.0 as usize & self.mask;
        let (Some(slot), Some(base)) = (self.slots.get_mut(at), self.pages.get_mut(at)) else {
            return Sent::Raw;
        };
        if slot.tag != gfn.0 + 1 {
            if slot.worth > 0 {
                slot.worth -= 1;
            } else {
                *slot = Slot { tag: gfn.0 + 1, worth: 1, ..Slot::default() };
            }
            return Sent::Raw;
        }
        if !slot.valid {
            if slot.rest > 0 {
                slot.rest -= 1;
            } else {
                base.copy_from_slice(page);
                slot.valid = true;
                slot.worth = (slot.worth + 1).min(MAX_WORTH);
            }
            return Sent::Raw;
        }
        let outcome = encode_delta(base, page, out);
        match outcome {
            DeltaOutcome::Unchanged | DeltaOutcome::Written(_) => {
                slot.failures = 0;
                slot.worth = (slot.worth + 1).min(MAX_WORTH);
            }
            DeltaOutcome::TooLarge => {
                slot.valid = false;
                slot.failures = (slot.failures + 1).min(MAX_FAILURES);
                slot.rest = u8::MAX >> (2 * (MAX_FAILURES - slot.failures));
                slot.worth = 0;
            }
        }
        match outcome {
            DeltaOutcome::Unchanged => Sent::Unchanged,
            DeltaOutcome::Written(bytes) => Sent::Delta(bytes),
            DeltaOutcome::TooLarge => Sent::Raw,
        }
    }
}
