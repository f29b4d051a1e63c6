//! One pause: everything the guest feels of a checkpoint. pause -> machine state -> dirty set -> copy of the pages -> seal -> resume.
//!
//! Lives here: the buffers that a capture fills (allocated once, registered once) and the capture itself. Not here: when it happens
//! ([`crate::core`]) and what becomes of it (`sender.rs`). Guards S5 (devices' state before dirty log, dirty log before pages, all while nothing runs) and S6
//! (whatever fails, the dirty set is given back and the guest runs on: `Paused` resumes when dropped).

use std::sync::Arc;
use std::time::Instant;

use checkpoint::digest::page_digest;
use checkpoint::{GuestMap, MemoryDigest};
use dirty_tracking::DirtySet;
use disk_buffer::Disks;
use transport::{Region, RegionMut, RegionRef};
use types::block::DiskWrite;
use types::{Epoch, Generation, Gfn, PAGE_SIZE};
use vm_memory::{Bytes, GuestAddress};
use vmm::{GuestMemory, Machine, MachineState};

use crate::error::PrimaryError;
use crate::output::OutputPath;

/// Pages whose place in the arena is touched at the start, so that no capture of an ordinary epoch pays for first touches (5 us a page): a quarter more
/// than the default dirty budget.
const WARM_PAGES: usize = 5 * 1024;

/// Where one epoch's pages are copied to: an arena with room for all of guest memory (reserved, touched when used).
pub struct CaptureBuffer {
    /// Page `i` of `gfns` at `i * 4096`.
    pub(crate) arena: RegionMut,
    /// Heads, deltas and tails of the epoch's parts; the sender's.
    pub(crate) meta: Arc<Region>,
    /// The pages, ascending.
    pub(crate) gfns: Vec<Gfn>,
    /// Index among the primary's buffers: names its regions to each link's sender.
    pub(crate) index: usize,
}

/// A filled buffer, read-only while it is posted.
pub(crate) struct Frozen {
    pub(crate) arena: RegionRef,
    pub(crate) meta: Arc<Region>,
    pub(crate) gfns: Vec<Gfn>,
    pub(crate) index: usize,
}

impl CaptureBuffer {
    /// A buffer for a guest of `pages` pages.
    ///
    /// # Errors
    /// When the host has no address space for it.
    pub fn new(pages: u64, index: usize) -> Result<CaptureBuffer, PrimaryError> {
        let bytes = pages as usize * PAGE_SIZE;
        let mut arena = Region::new(bytes)?.claim_all()?;
        let warm = (WARM_PAGES * PAGE_SIZE).min(arena.len());
        for page in arena[..warm].chunks_mut(PAGE_SIZE) {
            page[0] = 0;
        }
        // Heads and deltas take less than the pages they stand for; the tail (machine state, held output) is bounded by the codec's limit.
        let meta = Region::new(bytes + 2 * checkpoint::codec::MAX_ENCODED_BYTES)?;
        Ok(CaptureBuffer { arena, meta, gfns: Vec::with_capacity(WARM_PAGES), index })
    }

    pub(crate) fn freeze(self) -> Frozen {
        Frozen { arena: self.arena.freeze(), meta: self.meta, gfns: self.gfns, index: self.index }
    }

    /// Adds one block to those that the buffer holds; what is missing of its data is zeros.
    pub(crate) fn push(&mut self, name: Gfn, data: &[u8]) {
        let at = self.gfns.len() * PAGE_SIZE;
        let place = &mut self.arena[at..at + PAGE_SIZE];
        let (filled, rest) = place.split_at_mut(data.len().min(PAGE_SIZE));
        filled.copy_from_slice(&data[..filled.len()]);
        rest.fill(0);
        self.gfns.push(name);
    }

    /// Copies the pages of `set`, which are guest memory, into the arena.
    pub(crate) fn copy(&mut self, memory: &GuestMemory, set: &DirtySet) -> Result<(), PrimaryError> {
        self.gfns.clear();
        self.gfns.extend(set.iter());
        if misses_a_page(&self.gfns) {
            let missed = self.gfns.remove(self.gfns.len() / 2);
            tracing::warn!(page = %missed, "a page is left out of the epoch: a fault that was asked for");
        }
        let capacity = self.arena.len() / PAGE_SIZE;
        if self.gfns.len() > capacity {
            return Err(PrimaryError::ArenaFull { pages: self.gfns.len() as u64, capacity: capacity as u64 });
        }
        let mut at = 0;
        for run in self.gfns.chunk_by(|a, b| b.0 == a.0 + 1) {
            copy_run(memory, run, &mut self.arena[at..at + run.len() * PAGE_SIZE])?;
            at += run.len() * PAGE_SIZE;
        }
        Ok(())
    }
}

/// Whether this capture is the one that a test has ordered to miss a page: one of more pages than those that the guest writes in every epoch, so that it is not sent by the next one anyway.
fn misses_a_page(pages: &[Gfn]) -> bool {
    /// Pages.
    const MANY: usize = 256;
    pages.len() >= MANY && types::fault::misbehave(types::fault::Point::MissPage)
}

/// Copies adjacent pages; page by page where they cross the end of a memory slot.
fn copy_run(memory: &GuestMemory, run: &[Gfn], to: &mut [u8]) -> Result<(), PrimaryError> {
    let Some(first) = run.first() else { return Ok(()) };
    if memory.read_slice(to, GuestAddress(first.address())).is_ok() {
        return Ok(());
    }
    for (gfn, page) in run.iter().zip(to.chunks_mut(PAGE_SIZE)) {
        memory
            .read_slice(page, GuestAddress(gfn.address()))
            .map_err(|error| PrimaryError::Page { gfn: *gfn, reason: error.to_string() })?;
    }
    Ok(())
}

impl Frozen {
    pub(crate) fn thaw(self) -> CaptureBuffer {
        CaptureBuffer { arena: self.arena.thaw(), meta: self.meta, gfns: self.gfns, index: self.index }
    }

    /// The pages' bytes.
    pub(crate) fn pages(&self) -> &[u8] {
        &self.arena[..self.gfns.len() * PAGE_SIZE]
    }
}

/// What a pause yields.
pub struct Captured {
    /// The machine's state.
    pub machine: MachineState,
    /// The pages are in here.
    pub buffer: CaptureBuffer,
    /// The epoch's output.
    pub sealed: Option<net_buffer::Sealed>,
    /// What the guest changed on its disks in the epoch, in order for each disk.
    pub writes: Vec<DiskWrite>,
    /// What of the change logs has to be durable before the epoch's end is sent.
    pub marking: disk_buffer::Marking,
    /// Digests of the epoch's window of guest memory, when asked for.
    pub memory: Option<MemoryDigest>,
    /// Stop to resumed, nanoseconds.
    pub pause_ns: u64,
    /// When the guest ran on, CLOCK_MONOTONIC.
    pub resumed_ns: u64,
    /// Its generation.
    pub generation: Generation,
    /// Its number.
    pub epoch: Epoch,
}

/// What a capture is for.
pub struct Order<'a> {
    /// The machine.
    pub machine: &'a Machine,
    /// Where output is sealed; none in benchmarks of the bare pause.
    pub output: Option<&'a OutputPath>,
    /// Whose writes are sealed.
    pub disks: Option<&'a Disks>,
    /// The epoch that ends.
    pub epoch: Epoch,
    /// Its generation.
    pub generation: Generation,
    /// With digests of these pages (`--verify-memory`).
    pub verify: Option<GuestMap>,
}

/// Pauses the machine, captures the end of an epoch, and lets it run on. `set` is filled with the dirty set, which stays the caller's: it is needed if
/// the epoch is never committed.
///
/// # Errors
/// Whatever failed; the guest runs on, the dirty set is back in the tracker, the output is not sealed, and `buffer` comes back.
pub fn capture(order: &Order<'_>, buffer: CaptureBuffer, set: &mut DirtySet) -> Result<Captured, (PrimaryError, CaptureBuffer)> {
    set.clear();
    let mut buffer = buffer;
    match paused(order, &mut buffer, set) {
        Ok(parts) => Ok(Captured {
            machine: parts.machine,
            buffer,
            sealed: parts.sealed,
            writes: parts.writes,
            marking: parts.marking,
            memory: parts.memory,
            pause_ns: parts.pause_ns,
            resumed_ns: types::clock::monotonic_ns(),
            generation: order.generation,
            epoch: order.epoch,
        }),
        Err(error) => {
            order.machine.give_back(set);
            set.clear();
            Err((error, buffer))
        }
    }
}

struct Parts {
    machine: MachineState,
    sealed: Option<net_buffer::Sealed>,
    writes: Vec<DiskWrite>,
    marking: disk_buffer::Marking,
    memory: Option<MemoryDigest>,
    pause_ns: u64,
}

fn paused(order: &Order<'_>, buffer: &mut CaptureBuffer, set: &mut DirtySet) -> Result<Parts, PrimaryError> {
    let start = Instant::now();
    let mut paused = order.machine.pause()?;
    let (machine, copied) = paused.capture_with_dirty(set, |set| buffer.copy(order.machine.memory(), set))?;
    copied?;
    types::fault::reach(types::fault::Point::MidPause);
    let memory = order.verify.as_ref().map(|window| digest(order.machine.memory(), window)).transpose()?;
    let (sealed, writes) = seal(order)?;
    let marking = order.disks.map(Disks::marking).unwrap_or_default();
    paused.resume();
    let pause_ns = start.elapsed().as_nanos() as u64;
    let writes = writes.iter().flat_map(|writes| writes.iter().cloned()).collect();
    Ok(Parts { machine, sealed, writes, marking, memory, pause_ns })
}

/// The epoch's output and disk writes as they are sealed.
type SealedBoth = (Option<net_buffer::Sealed>, Vec<Arc<Vec<DiskWrite>>>);

/// Seals what the guest wrote to its disks and what it sent, both or neither.
fn seal(order: &Order<'_>) -> Result<SealedBoth, PrimaryError> {
    let both = || {
        let writes = order.disks.map(|disks| disks.seal(order.epoch)).transpose()?.unwrap_or_default();
        Ok((order.output.map(|output| output.seal(order.epoch)).transpose()?, writes))
    };
    both().inspect_err(|_: &PrimaryError| {
        if let Some(disks) = order.disks {
            disks.unseal(order.epoch);
        }
    })
}

fn digest(memory: &GuestMemory, window: &GuestMap) -> Result<MemoryDigest, PrimaryError> {
    let mut page = [0; PAGE_SIZE];
    let mut failed = None;
    let digest = MemoryDigest::of_digests(window, |gfn| {
        if let Err(error) = memory.read_slice(&mut page, GuestAddress(gfn.address())) {
            failed.get_or_insert(PrimaryError::Page { gfn, reason: error.to_string() });
        }
        page_digest(&page)
    });
    failed.map_or(Ok(digest), Err)
}
