//! The model disk of a node: what is on its medium, what of it a loss of power may take, and the rules of `disk-buffer` around it.
//!
//! The plan, the identities, the region sets and the record of an epoch's writes are `disk-buffer`'s own; the steps between them are modelled here after its `Disk`, one
//! method each, with its names. Not here: when they are taken (the shells). A region's content is one number.

use std::collections::{BTreeMap, VecDeque};

use disk_buffer::record::{Limits, Record};
use disk_buffer::regions::{REGION_BYTES, RegionSet};
use disk_buffer::{CopyState, DataId, Identity, Mode, Plan};
use types::block::{DiskChange, DiskIndex, DiskWrite};
use types::{Commit, Epoch, Generation};

use super::guest::{CLIENTS, PAGES};
use super::rng::Rng;

/// Regions of the disk: one for each page, which holds what the page holds, and an archive in which each is written rarely, so that what is lost there stays lost.
pub const REGIONS: usize = PAGES + ARCHIVE;
const ARCHIVE: usize = 12;
const DISK_BYTES: u64 = REGIONS as u64 * REGION_BYTES;

/// The change log's header. Every change of it is durable at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    id: DataId,
    current: DataId,
    base: DataId,
    joining: DataId,
    state: CopyState,
}

/// What the disk is to the process that has it open.
#[derive(Debug)]
enum Phase {
    Idle,
    Alone,
    Copying(RegionSet),
    Recording(Record),
    Protected(Record),
    Standby { id: DataId, current: DataId, applied: Epoch, settled: Epoch },
    Shut,
}

/// The disk of one node. Survives the node's processes.
#[derive(Debug)]
pub(super) struct Disk {
    header: Header,
    marks: RegionSet,
    /// What a reader gets.
    cached: [u64; REGIONS],
    /// What a loss of power leaves for certain.
    durable: [u64; REGIONS],
    phase: Phase,
    /// Regions of the copy that are still to be sent.
    pass: VecDeque<u32>,
    last_written: BTreeMap<u32, Epoch>,
    /// Activated, and not durable since.
    unsettled: bool,
    /// Links so far: what belongs to an earlier one counts no more.
    pub session: u64,
    /// The operator lets it be overwritten.
    overwrite: bool,
    /// Sabotage: writes are not marked while a standby is there.
    unmarked: bool,
}

fn named(rng: &mut Rng) -> DataId {
    DataId(rng.number() | 1)
}

fn set_of(regions: impl IntoIterator<Item = u32>) -> RegionSet {
    let mut set = RegionSet::new(DISK_BYTES);
    for region in regions {
        set.insert(region);
    }
    set
}

/// A write of the model: a region and its content.
pub(super) fn content(write: &DiskWrite) -> (usize, u64) {
    let value = match &write.change {
        DiskChange::Data(data) => data.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes)),
        DiskChange::Zeroes { .. } | DiskChange::Discard { .. } => 0,
    };
    ((write.offset / REGION_BYTES) as usize, value)
}

impl Disk {
    /// A new, empty disk.
    pub(super) fn new(overwrite: bool, unmarked: bool) -> Disk {
        let none = DataId::NONE;
        Disk {
            header: Header { id: none, current: none, base: none, joining: none, state: CopyState::Consistent },
            marks: set_of([]),
            cached: [0; REGIONS],
            durable: [0; REGIONS],
            phase: Phase::Idle,
            pass: VecDeque::new(),
            last_written: BTreeMap::new(),
            unsettled: false,
            session: 0,
            overwrite,
            unmarked,
        }
    }

    /// What a guest reads from it.
    pub(super) fn read(&self) -> [u64; REGIONS] {
        self.cached
    }

    /// The process that had it open is gone; with a loss of power also what was not durable, in part.
    pub(super) fn crash(&mut self, power: bool, rng: &mut Rng) {
        if power {
            for (cached, durable) in self.cached.iter_mut().zip(&self.durable) {
                if rng.permille(500) {
                    *cached = *durable;
                }
            }
            self.durable = self.cached;
        }
        self.end();
        self.phase = Phase::Idle;
        self.unsettled = false;
    }

    fn end(&mut self) {
        self.session += 1;
        self.pass.clear();
        self.last_written.clear();
    }

    fn flush(&mut self) {
        self.durable = self.cached;
    }

    pub(super) fn identity(&self) -> Identity {
        let Header { id, current, base, joining, state } = self.header;
        Identity {
            id,
            bytes: DISK_BYTES,
            mode: Mode::Mirror,
            read_only: false,
            serial: [0; 20],
            logical_block: 512,
            current,
            base,
            joining,
            state,
            empty: id == DataId::NONE,
            overwrite: self.overwrite,
            content: None,
            changed: self.marks.runs(),
            device: None,
            place: None,
        }
    }

    /// Whether an identity is of this line of data still, with regard to the same other copy.
    pub(super) fn is_still(&self, identity: &Identity) -> bool {
        let Header { current, base, joining, .. } = self.header;
        (current, base, joining) == (identity.current, identity.base, identity.joining)
    }

    /// Whether a guest may start from it.
    pub(super) fn is_fit(&self) -> bool {
        self.header.state == CopyState::Consistent
    }

    pub(super) fn start_primary(&mut self, rng: &mut Rng) {
        if self.header.id == DataId::NONE {
            self.header.id = named(rng);
        }
        self.header.current = named(rng);
        self.phase = Phase::Alone;
    }

    /// Whether the guest's requests are taken: there is room for an epoch's.
    pub(super) fn takes_writes(&self) -> bool {
        match &self.phase {
            Phase::Alone | Phase::Copying(_) => true,
            Phase::Recording(record) | Phase::Protected(record) => record.roomy() || record.fits(8) && record.bytes() < 64 * 8,
            Phase::Idle | Phase::Standby { .. } | Phase::Shut => false,
        }
    }

    /// The guest writes an operation's pages, and its result into the archive, and flushes.
    pub(super) fn write_operation(&mut self, pages: &[u64; PAGES], client: usize) {
        let count = pages[CLIENTS];
        for (region, value) in [(client, pages[client]), (CLIENTS, count), (PAGES + count as usize % ARCHIVE, count)] {
            self.write(region, value);
        }
    }

    /// The guest makes a new file system.
    pub(super) fn format(&mut self) {
        (0..REGIONS).for_each(|region| self.write(region, 0));
    }

    /// What the regions of the pages hold.
    pub(super) fn pages(&self) -> [u64; PAGES] {
        std::array::from_fn(|page| self.cached[page])
    }

    fn write(&mut self, region: usize, value: u64) {
        let number = region as u32;
        let recorded = match &mut self.phase {
            Phase::Copying(dirty) => {
                dirty.insert(number);
                false
            }
            Phase::Recording(record) | Phase::Protected(record) => {
                let epoch = record.open_epoch();
                let data = value.to_le_bytes().as_slice().into();
                record.push(DiskWrite { disk: DiskIndex(0), offset: u64::from(number) * REGION_BYTES, change: DiskChange::Data(data) });
                self.last_written.insert(number, epoch);
                true
            }
            _ => false,
        };
        if !(recorded && self.unmarked) {
            self.marks.insert(number);
        }
        self.cached[region] = value;
        self.flush();
    }

    /// The primary's half of a joining.
    pub(super) fn begin_copy(&mut self, plan: &Plan, standby: &Identity) {
        let (mut first, base) = match plan {
            Plan::Regions(runs) => {
                let mut set = set_of([]);
                set.insert_runs(runs);
                (set, standby.current)
            }
            Plan::Full(_) => (set_of(0..REGIONS as u32), DataId::NONE),
            Plan::Nothing | Plan::Refuse(_) => (set_of([]), standby.current),
        };
        self.end();
        // Writes made since the identities were exchanged are in no plan.
        first.merge(&self.marks);
        self.marks.merge(&first);
        self.header.base = base;
        self.header.joining = self.header.current;
        self.pass = first.iter().collect();
        self.phase = Phase::Copying(set_of([]));
    }

    /// The next region of the pass, and what is in it now.
    pub(super) fn next(&mut self) -> Option<(usize, u64)> {
        let region = self.pass.pop_front()? as usize;
        Some((region, self.cached[region]))
    }

    /// Makes what was written meanwhile the next pass; whether there is anything in it.
    pub(super) fn next_pass(&mut self) -> bool {
        if let Phase::Copying(dirty) = &mut self.phase {
            self.pass.extend(std::mem::replace(dirty, set_of([])).iter());
        }
        !self.pass.is_empty()
    }

    /// From now on writes are recorded; what was written before is the last pass.
    pub(super) fn record(&mut self, generation: Generation) {
        self.next_pass();
        let limits = Limits { hard_writes: 96, soft_writes: 32, ..Limits::default() };
        self.phase = Phase::Recording(Record::new(limits, generation));
    }

    pub(super) fn seal(&mut self, epoch: Epoch) -> Option<Vec<DiskWrite>> {
        match &mut self.phase {
            Phase::Recording(record) | Phase::Protected(record) => record.seal(epoch).ok().map(|writes| writes.to_vec()),
            _ => None,
        }
    }

    pub(super) fn release(&mut self, commit: &Commit) {
        match std::mem::replace(&mut self.phase, Phase::Alone) {
            Phase::Recording(mut record) | Phase::Protected(mut record) => {
                record.release(commit);
                self.phase = Phase::Protected(record);
            }
            other => self.phase = other,
        }
    }

    /// What of the standby's report counts: nothing that was not committed.
    pub(super) fn peer_durable(&self, epoch: Epoch) -> Option<Epoch> {
        match &self.phase {
            Phase::Protected(record) => Some(epoch.min(record.released())).filter(|epoch| *epoch > Epoch::NONE),
            _ => None,
        }
    }

    /// Both hosts hold the writes of epochs up to this one durably: after the flush here.
    pub(super) fn clear(&mut self, epoch: Epoch) {
        self.flush();
        self.header.base = self.header.current;
        self.header.joining = DataId::NONE;
        let both: Vec<u32> = self.marks.iter().filter(|region| self.last_written.get(region).is_none_or(|last| *last <= epoch)).collect();
        for region in both {
            self.marks.remove(region);
        }
    }

    pub(super) fn unlink(&mut self) {
        if matches!(self.phase, Phase::Copying(_) | Phase::Recording(_) | Phase::Protected(_)) {
            self.end();
            self.phase = Phase::Alone;
        }
    }

    pub(super) fn struck_out(&mut self, rng: &mut Rng) {
        if !matches!(self.phase, Phase::Idle | Phase::Standby { .. } | Phase::Shut) {
            self.header.current = named(rng);
            self.end();
            self.phase = Phase::Alone;
        }
    }

    pub(super) fn shut(&mut self) {
        self.phase = Phase::Shut;
    }

    /// The standby's half of a joining.
    pub(super) fn join(&mut self, plan: &Plan, primary: &Identity) {
        self.end();
        self.header.state = CopyState::Copying;
        self.header.joining = DataId::NONE;
        if matches!(plan, Plan::Full(_)) {
            self.header.id = primary.id;
            self.header.current = DataId::NONE;
            self.header.base = DataId::NONE;
            self.cached = [0; REGIONS];
        }
        self.overwrite = false;
        self.phase = Phase::Standby { id: primary.id, current: primary.current, applied: Epoch::NONE, settled: Epoch::NONE };
    }

    pub(super) fn sync_block(&mut self, region: usize, value: u64) {
        if matches!(self.phase, Phase::Standby { .. }) {
            self.cached[region] = value;
        }
    }

    /// A committed epoch's writes.
    pub(super) fn apply(&mut self, epoch: Epoch, writes: &[DiskWrite]) {
        if let Phase::Standby { applied, .. } = &mut self.phase {
            *applied = epoch.max(*applied);
            for write in writes {
                let (region, value) = content(write);
                self.cached[region] = value;
            }
        }
    }

    /// The standby's copy is made durable; up to which epoch, when that is news. A copy that was activated counts as consistent from then on.
    pub(super) fn settle(&mut self) -> Option<Epoch> {
        self.flush();
        if std::mem::take(&mut self.unsettled) {
            self.header.state = CopyState::Consistent;
        }
        let Phase::Standby { id, current, applied, settled } = &mut self.phase else { return None };
        if *applied == *settled {
            return None;
        }
        if *settled == Epoch::NONE {
            self.header = Header { id: *id, current: *current, base: *current, joining: DataId::NONE, state: CopyState::Following };
            self.marks.clear();
        }
        *settled = *applied;
        Some(*applied)
    }

    /// A guest runs on it from now on; everything committed is applied.
    pub(super) fn activate(&mut self, rng: &mut Rng) {
        if let Phase::Standby { id, current, .. } = self.phase {
            self.header = Header { id, base: current, current: named(rng), joining: DataId::NONE, state: CopyState::Following };
        }
        self.end();
        self.phase = Phase::Alone;
        self.unsettled = true;
    }
}
