//! Dirtying memory at a chosen rate and pattern, and checking it: which page is next, when, and what the ledger says it holds.
//!
//! One [`Dirtier`] per vCPU writes to a slice of the region of its own, in small steps, so that whoever else shares the vCPU never waits
//! long. It holds no clock: time comes in as nanoseconds. What a page holds is `stamp`'s business. Guards S5's test: the ledger and the
//! page are written by different instructions to different pages, so a checkpoint that misses either is found.

use crate::stamp::{self, Corrupt, PAGE_WORDS, mix};

/// Most pages of one step: about 150 us when each costs a write-protect fault, the longest a request waits for the dirtier.
pub const STEP_PAGES: u64 = 64;
/// Work that a pause of the guest (a checkpoint, a failover) may leave to be caught up with; older arrears are dropped, not done in a burst.
const MOST_ARREARS_NS: u64 = 100_000_000;
/// Sleeps between steps are not shorter than this, so that a fast dirtier on a halting vCPU works in batches.
const TICK_NS: u64 = 1_000_000;
const SECOND_NS: u64 = 1_000_000_000;
/// Highest rate taken, pages per second: beyond what memory can do, and small enough for 64-bit sums.
pub const MOST_RATE: u64 = 100_000_000;

/// In which order pages are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// One after the other, round and round.
    Sequential,
    /// Each drawn at random from the slice.
    Random,
    /// Nine of ten from the first tenth of the slice, the others from all of it.
    Hot,
}

impl Pattern {
    /// The name in the `DIRTY` command.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Pattern::Sequential => "seq",
            Pattern::Random => "random",
            Pattern::Hot => "hot",
        }
    }
}

/// What `DIRTY` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Pages per second over all vCPUs; 0 stops.
    pub rate: u64,
    /// The order.
    pub pattern: Pattern,
    /// Pages of the region to write to, from its start.
    pub pages: u64,
}

impl Plan {
    /// Nothing to do.
    pub const IDLE: Plan = Plan { rate: 0, pattern: Pattern::Sequential, pages: 0 };

    /// The part of worker `index` of `workers`: its first page, its number of pages, its rate. Slices of all workers cover the region once.
    #[must_use]
    pub fn slice(&self, index: u64, workers: u64) -> (u64, u64, u64) {
        let workers = workers.max(1);
        let cut = |total: u64, at: u64| (u128::from(total) * u128::from(at) / u128::from(workers)) as u64;
        let (first, end) = (cut(self.pages, index), cut(self.pages, index + 1));
        (first, end - first, cut(self.rate, index + 1) - cut(self.rate, index))
    }
}

/// The region's memory and its ledger.
pub trait Region {
    /// The words of a page.
    fn page(&mut self, page: u64) -> &mut [u64; PAGE_WORDS];
    /// The iteration that the page was last stamped with; 0 is never.
    fn ledger(&mut self, page: u64) -> &mut u32;
}

/// Units of work that fall due at a rate.
#[derive(Clone, Copy, Debug)]
pub struct Pacer {
    rate: u64,
    last_ns: u64,
    /// Due and not done, in units times [`SECOND_NS`].
    credit: u64,
}

impl Pacer {
    /// Starts at `now_ns` with nothing due.
    #[must_use]
    pub fn new(rate: u64, now_ns: u64) -> Pacer {
        Pacer { rate: rate.min(MOST_RATE), last_ns: now_ns, credit: 0 }
    }

    /// Takes at most `most` of the units due at `now_ns`.
    pub fn take(&mut self, now_ns: u64, most: u64) -> u64 {
        let elapsed = now_ns.saturating_sub(self.last_ns).min(MOST_ARREARS_NS);
        self.last_ns = now_ns;
        let arrears = (self.rate * MOST_ARREARS_NS).max(SECOND_NS);
        self.credit = (self.credit + elapsed * self.rate).min(arrears);
        let units = (self.credit / SECOND_NS).min(most);
        self.credit -= units * SECOND_NS;
        units
    }

    /// Nanoseconds until a batch worth waking for is due; `None` at rate 0.
    #[must_use]
    pub fn wait_ns(&self) -> Option<u64> {
        if self.rate == 0 {
            return None;
        }
        let batch = (self.rate * TICK_NS / SECOND_NS).max(1) * SECOND_NS;
        Some(batch.saturating_sub(self.credit) / self.rate)
    }
}

/// One vCPU's share of the dirtying.
#[derive(Clone, Copy, Debug)]
pub struct Dirtier {
    first: u64,
    pages: u64,
    pattern: Pattern,
    pacer: Pacer,
    next: u64,
    random: u64,
    written: u64,
}

impl Dirtier {
    /// Takes on share `index` of `workers` at `now_ns`.
    #[must_use]
    pub fn new(plan: Plan, index: u64, workers: u64, now_ns: u64) -> Dirtier {
        let (first, pages, rate) = plan.slice(index, workers);
        let pacer = Pacer::new(if pages == 0 { 0 } else { rate }, now_ns);
        Dirtier { first, pages, pattern: plan.pattern, pacer, next: 0, random: index, written: 0 }
    }

    /// Pages stamped so far.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Stamps what is due, at most [`STEP_PAGES`]; returns how many.
    pub fn step(&mut self, now_ns: u64, region: &mut impl Region) -> u64 {
        let units = self.pacer.take(now_ns, STEP_PAGES);
        for _ in 0..units {
            let page = self.first + self.choose();
            let iteration = match region.ledger(page).wrapping_add(1) {
                0 => 1,
                next => next,
            };
            stamp::stamp(region.page(page), page, iteration);
            *region.ledger(page) = iteration;
        }
        self.written += units;
        units
    }

    /// Nanoseconds until the next step has something to do; `None` when it never will.
    #[must_use]
    pub fn wait_ns(&self) -> Option<u64> {
        self.pacer.wait_ns()
    }

    fn choose(&mut self) -> u64 {
        let draw = |random: &mut u64| {
            *random = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
            mix(*random)
        };
        match self.pattern {
            Pattern::Sequential => {
                let page = self.next;
                self.next = (page + 1) % self.pages;
                page
            }
            Pattern::Random => draw(&mut self.random) % self.pages,
            Pattern::Hot => {
                let hot = !draw(&mut self.random).is_multiple_of(10);
                draw(&mut self.random) % if hot { (self.pages / 10).max(1) } else { self.pages }
            }
        }
    }
}

/// Checks every page of the region's first `pages` that was ever stamped, and returns how many those are.
///
/// # Errors
/// The first page that does not hold what the ledger says.
pub fn check(region: &mut impl Region, pages: u64) -> Result<u64, Corrupt> {
    let mut checked = 0;
    for page in 0..pages {
        let iteration = *region.ledger(page);
        if iteration != 0 {
            stamp::verify(region.page(page), page, iteration)?;
            checked += 1;
        }
    }
    Ok(checked)
}

#[cfg(test)]
#[path = "tests/dirtier.rs"]
mod tests;
