//! One virtual disk of this host, whatever its mode: the face that `primary`, `replica` and the machine's device use.
//!
//! Lives here: opening it, and which of the two does what is asked ([`crate::mirror`], [`crate::shared`]). Not here: any of the doing.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;

use types::block::{BlockDone, BlockInfo, BlockRequest, DiskIndex, DiskWrite};
use types::{Commit, Epoch, Generation};

use crate::copy::{DiskCopy, Kind};
use crate::engine::Answer;
use crate::engine::faults::Faults;
use crate::error::{DiskError, Full};
use crate::front::Front;
use crate::hooks::Hooks;
use crate::identity::Identity;
use crate::mirror::Mirror;
use crate::options::{DiskOptions, Mode};
use crate::plan::Plan;
use crate::record::Limits;
use crate::shared::disk::SharedDisk;

/// A standby makes its copy durable, and a primary clears regions, this often: a second's writes are quickly copied again, and more often would cost flushes for nothing.
pub const SETTLE_PERIOD: Duration = Duration::from_secs(1);

/// A medium that hangs has failed when it has done so for this long, by a clock that does not count this process's own sleep: a protected primary that got no answer to anything the guest asked for gives up its role, since the standby can
/// serve; a standby that waited for one request has a copy that failed, also when it is taking over. Linux gives a real disk 30 s for one command (SD_TIMEOUT) before it begins to recover it, and a guest complains after 120 s (hung_task).
pub const HANG_BOUND: Duration = Duration::from_secs(30);

/// A standby whose medium is full waits so long for space before its copy counts as failed, while its primary lives; a protected primary twice as long, before it gives up its role. Twice: where both media are full,
/// the standby's failure must be known, and the standby struck out, before the guest is handed to it. A node on its own waits without a bound.
pub const FULL_BOUND: Duration = Duration::from_secs(2);

/// How long a call that has to make something durable waits for the medium: far above what a loaded disk takes.
pub(crate) const MEDIUM_BOUND: Duration = Duration::from_secs(30);

/// A region that was written so many settlings ago or less stays marked: a guest that writes it again and again shall not wait for the log again and again.
const HOT_TICKS: u64 = 10;

/// What tests and benchmarks set otherwise.
#[derive(Clone)]
pub struct Tuning {
    /// Bounds on what is recorded.
    pub limits: Limits,
    /// Instead of [`SETTLE_PERIOD`].
    pub settle: Duration,
    /// How many settlings a region stays marked after its last write; usually 10.
    pub hot_ticks: u64,
    /// Instead of [`HANG_BOUND`].
    pub hang: Duration,
    /// Instead of [`FULL_BOUND`].
    pub full: Duration,
    /// A shared disk's unit of direct requests, where it is to be larger than the medium's.
    pub unit: u64,
    /// Faults that the engine meets.
    pub faults: Option<Arc<dyn Faults>>,
}

impl Default for Tuning {
    fn default() -> Tuning {
        Tuning {
            limits: Limits::default(),
            settle: SETTLE_PERIOD,
            hot_ticks: HOT_TICKS,
            hang: HANG_BOUND,
            full: FULL_BOUND,
            unit: types::block::SECTOR,
            faults: None,
        }
    }
}

/// What a disk is opened with, checked as far as that does not take the image.
pub(crate) struct Opening<'a> {
    pub(crate) index: DiskIndex,
    pub(crate) options: &'a DiskOptions,
    pub(crate) serial: [u8; 20],
    pub(crate) tuning: Tuning,
}

/// One virtual disk of the guest, at this host: a copy that is mirrored, or a device that both hosts open.
pub struct Disk {
    front: Arc<Front>,
    pub(crate) mode: Modal,
}

/// Who does what is asked.
pub(crate) enum Modal {
    Mirror(Mirror),
    Shared(SharedDisk),
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Disk").field("index", &self.front.index).field("phase", &self.phase()).finish_non_exhaustive()
    }
}

impl Disk {
    /// Opens one disk. [`crate::Disks::open`] opens all of a machine's.
    ///
    /// # Errors
    /// What is wrong with the image or its log, and what to do about it.
    pub fn open(index: DiskIndex, options: &DiskOptions) -> Result<Disk, DiskError> {
        Disk::open_with(index, options, Tuning::default())
    }

    /// As [`Disk::open`], with other bounds than the usual ones, and faults.
    ///
    /// # Errors
    /// As [`Disk::open`].
    pub fn open_with(index: DiskIndex, options: &DiskOptions, tuning: Tuning) -> Result<Disk, DiskError> {
        let tuning = Tuning { limits: tuning.limits.validate()?, ..tuning };
        let opening = Opening { index, options, serial: serial(index, options.serial.as_deref())?, tuning };
        Ok(match options.mode {
            Mode::Mirror => {
                let mirror = Mirror::open(opening)?;
                Disk { front: Arc::clone(&mirror.inner.front), mode: Modal::Mirror(mirror) }
            }
            Mode::Shared => {
                let shared = SharedDisk::open(opening)?;
                Disk { front: Arc::clone(shared.front()), mode: Modal::Shared(shared) }
            }
        })
    }

    fn phase(&self) -> &'static str {
        match &self.mode {
            Modal::Mirror(mirror) => mirror.phase(),
            Modal::Shared(shared) => shared.phase(),
        }
    }

    /// Its place in the machine.
    #[must_use]
    pub fn index(&self) -> DiskIndex {
        self.front.index
    }

    /// What the guest sees of it.
    #[must_use]
    pub fn info(&self) -> BlockInfo {
        self.front.info
    }

    /// Where its image is.
    #[must_use]
    pub fn path(&self) -> &std::path::Path {
        &self.front.path
    }

    /// Says where news of the disk go from now on: before it is used, and again when another part of the node takes it over.
    pub fn attach(&self, hooks: Hooks) {
        self.front.attach(hooks);
    }

    /// Appends the answers that have come in since the last call, each request's once, and clears the event.
    pub fn take_done(&self, into: &mut Vec<BlockDone>) {
        self.front.take_done(into);
    }

    /// Readable while answers wait.
    #[must_use]
    pub fn event(&self) -> RawFd {
        self.front.event()
    }

    /// What this copy is, to be told to the other host.
    ///
    /// # Errors
    /// When it has to be looked at whether the image is empty, and that is not known yet ([`DiskError::Looking`]) or it cannot be read; when a data generation that is due since a strike-out still cannot be written down; of a shared disk that has lost a write of its guest ([`DiskError::Failed`]).
    pub fn identity(&self) -> Result<Identity, DiskError> {
        match &self.mode {
            Modal::Mirror(mirror) => mirror.identity(),
            Modal::Shared(shared) => shared.identity(),
        }
    }

    /// Takes one request of the guest. Never blocks.
    ///
    /// # Errors
    /// [`Full`]: nothing was taken; [`Hooks::room`] is called when there is room. A disk that is no primary's takes nothing either.
    pub fn submit(&self, request: BlockRequest) -> Result<(), Full> {
        match &self.mode {
            Modal::Mirror(mirror) => mirror.submit(request),
            Modal::Shared(shared) => shared.submit(request),
        }
    }
}

/// What a primary does.
impl Disk {
    /// Makes this process the only one of its host that can write to the disk: before older owners are shut out at the storage, which cannot tell two processes of a host apart. A mirror's copy is locked since it was opened. Waits
    /// for so long at most for a process that is ending. Harmless a second time.
    ///
    /// # Errors
    /// [`DiskError::InUse`], and when it cannot be written to.
    pub fn claim(&self, bound: Duration) -> Result<(), DiskError> {
        match &self.mode {
            Modal::Mirror(_) => Ok(()),
            Modal::Shared(shared) => shared.claim(bound),
        }
    }

    /// Whether [`Disk::start_primary`] would find a copy that a guest may start from. Changes nothing: to be asked before the arbiter is, which takes the guest from whoever runs it.
    ///
    /// # Errors
    /// [`DiskError::Unfit`], [`DiskError::Phase`].
    pub fn check_start(&self) -> Result<(), DiskError> {
        match &self.mode {
            Modal::Mirror(mirror) => mirror.check_start(),
            Modal::Shared(shared) => shared.check_start(),
        }
    }

    /// Cold start: the guest is about to run on this copy, without a standby. Begins a data generation, durably.
    ///
    /// # Errors
    /// [`DiskError::Unfit`] for a copy that no guest may start from, [`DiskError::Phase`], and when the log cannot be written.
    pub fn start_primary(&self) -> Result<(), DiskError> {
        match &self.mode {
            Modal::Mirror(mirror) => mirror.start_primary(),
            Modal::Shared(shared) => shared.start_primary(),
        }
    }

    /// Begins the copy to a standby that has joined with this plan. Writes are watched from now on. Any time until the first call of [`DiskCopy::next_piece`] the standby may refuse; then [`Disk::unlink`].
    ///
    /// # Errors
    /// [`DiskError::Refused`] for a plan that is a refusal, [`DiskError::Phase`] unless the disk runs alone, and when the log cannot be written.
    pub fn begin_copy(&self, plan: &Plan, standby: &Identity) -> Result<DiskCopy, DiskError> {
        match &self.mode {
            Modal::Mirror(mirror) => Ok(DiskCopy(Kind::Mirror(mirror.begin_copy(plan, standby)?))),
            Modal::Shared(shared) => Ok(DiskCopy(Kind::Shared(shared.begin_copy(plan)?))),
        }
    }

    /// Gives what was written since the last sealing to `epoch`. In the pause; does no I/O. Empty for a disk that nothing is recorded of.
    ///
    /// # Errors
    /// [`DiskError::EpochOrder`]; [`DiskError::Phase`] while the disk is being copied or is no primary's.
    pub fn seal(&self, epoch: Epoch) -> Result<Arc<Vec<DiskWrite>>, DiskError> {
        match &self.mode {
            Modal::Mirror(mirror) => mirror.seal(epoch),
            Modal::Shared(shared) => shared.seal(epoch),
        }
    }

    /// Gives up `epoch` and every later sealed one: their writes are the open epoch's again, in order.
    pub fn unseal(&self, epoch: Epoch) {
        match &self.mode {
            Modal::Mirror(mirror) => mirror.unseal(epoch),
            Modal::Shared(shared) => shared.unseal(epoch),
        }
    }

    /// Gets its answer when every region marked so far is durably so in the change log; `None` when that is so already, or there is no log.
    pub(crate) fn marking(&self) -> Option<std::sync::mpsc::Receiver<Answer>> {
        match &self.mode {
            Modal::Mirror(mirror) => mirror.inner.engine.marking(),
            Modal::Shared(_) => None,
        }
    }

    /// The standby holds every epoch up to the commit's.
    pub fn release(&self, commit: &Commit) {
        match &self.mode {
            Modal::Mirror(mirror) => mirror.release(commit),
            Modal::Shared(shared) => shared.release(commit),
        }
    }

    /// The standby has every write of every epoch up to this one durably in its copy. In the background the same is done here, and then regions are cleared in the log.
    pub fn peer_durable(&self, epoch: Epoch) {
        match &self.mode {
            Modal::Mirror(mirror) => mirror.peer_durable(epoch),
            Modal::Shared(_) => {}
        }
    }

    /// The link was lost before the standby was recorded at the arbiter: the disk runs alone again. Harmless when it does.
    pub fn unlink(&self) {
        match &self.mode {
            Modal::Mirror(mirror) => mirror.unlink(),
            Modal::Shared(shared) => shared.alone(),
        }
    }

    /// The standby is struck out of the record, and no other node can ever activate: begins a data generation, durably, answers what had failed, and runs alone.
    ///
    /// # Errors
    /// When the log cannot be written. The disk runs alone nevertheless, and its next write may fail for the same reason; no standby joins before [`Disk::identity`] has made it good.
    pub fn struck_out(&self) -> Result<(), DiskError> {
        match &self.mode {
            Modal::Mirror(mirror) => mirror.struck_out(),
            Modal::Shared(shared) => {
                shared.alone();
                Ok(())
            }
        }
    }

    /// The guest has ended in good order, and no other node can take it over: a shared disk takes nothing more, and when this returns, everything that the guest had its answer to, and whatever else it had asked for, is carried out. Before a
    /// reservation is given up, for one.
    ///
    /// # Errors
    /// [`DiskError::Phase`] where a standby may hold the guest, or another node has shut this one out; [`DiskError::Slow`] when it takes longer than `bound`; [`DiskError::Failed`]. Then writes may still be on their way.
    pub fn finish(&self, bound: Duration) -> Result<(), DiskError> {
        match &self.mode {
            Modal::Mirror(mirror) => mirror.finish(bound),
            Modal::Shared(shared) => shared.finish(bound),
        }
    }

    /// The node may not run the guest any more: no request is taken from now on. What is in flight is carried out.
    pub fn shut(&self) {
        match &self.mode {
            Modal::Mirror(mirror) => mirror.shut(),
            Modal::Shared(shared) => shared.shut(),
        }
    }
}

/// What a standby does.
impl Disk {
    /// This disk joins a primary with this plan, durably, before the primary is answered. `generation` is that in which the primary runs the guest.
    ///
    /// # Errors
    /// [`DiskError::Refused`] for a plan that is a refusal, [`DiskError::Phase`] at a primary, and when the medium fails.
    pub fn join(&self, plan: &Plan, primary: &Identity, generation: Generation) -> Result<(), DiskError> {
        match &self.mode {
            Modal::Mirror(mirror) => mirror.join(plan, primary, generation),
            Modal::Shared(shared) => shared.join(plan, generation),
        }
    }

    /// Waits until a full copy's disk reads as zeros; `false` when that takes longer than `bound`. True at once for any other copy. Before the first [`Disk::sync_block`], which else waits for it.
    ///
    /// # Errors
    /// [`DiskError::Failed`].
    pub fn wait_wiped(&self, bound: Duration) -> Result<bool, DiskError> {
        match &self.mode {
            Modal::Mirror(mirror) => mirror.wait_wiped(bound),
            Modal::Shared(_) => Ok(true),
        }
    }

    /// Takes a block of the copy: up to 4096 bytes at `offset`, `None` for zeros. What lies beyond the end of the disk is dropped. Waits for room; an error of the medium is found later.
    ///
    /// # Errors
    /// [`DiskError::OutOfRange`] for a block that is not on the disk, [`DiskError::Phase`], [`DiskError::Failed`].
    pub fn sync_block(&self, offset: u64, data: Option<&[u8]>) -> Result<(), DiskError> {
        match &self.mode {
            Modal::Mirror(mirror) => mirror.sync_block(offset, data),
            Modal::Shared(shared) => shared.sync_block(),
        }
    }

    /// Keeps the writes of a complete epoch until it is committed. Those of other disks are not taken.
    ///
    /// # Errors
    /// [`DiskError::EpochOrder`], [`DiskError::OutOfRange`], [`DiskError::Phase`], [`DiskError::Failed`]; nothing is kept then.
    pub fn stage(&self, epoch: Epoch, writes: Vec<DiskWrite>) -> Result<(), DiskError> {
        match &self.mode {
            Modal::Mirror(mirror) => mirror.stage(epoch, writes),
            Modal::Shared(shared) => shared.stage(epoch, writes),
        }
    }

    /// Every epoch up to this one is committed. Waits while too much is under way, not for the writes.
    ///
    /// # Errors
    /// [`DiskError::EpochOrder`] for one that is not kept, [`DiskError::Phase`], [`DiskError::Failed`].
    pub fn commit(&self, epoch: Epoch) -> Result<(), DiskError> {
        match &self.mode {
            Modal::Mirror(mirror) => mirror.commit(epoch),
            Modal::Shared(shared) => shared.commit(epoch),
        }
    }

    /// The primary says that every write of every epoch of this generation, up to this one, is on the device of a shared disk.
    pub fn issued(&self, generation: Generation, epoch: Epoch) {
        if let Modal::Shared(shared) = &self.mode {
            shared.issued(generation, epoch);
        }
    }

    /// Oldest committed epoch of which a standby keeps writes to a shared disk: later ones are kept as well.
    #[must_use]
    pub fn oldest_kept(&self) -> Option<Epoch> {
        match &self.mode {
            Modal::Mirror(_) => None,
            Modal::Shared(shared) => shared.oldest_kept(),
        }
    }

    /// Whether it is one device that both hosts can open.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        matches!(self.mode, Modal::Shared(_))
    }

    /// Shared, and a block device.
    pub(crate) fn is_shared_device(&self) -> bool {
        matches!(&self.mode, Modal::Shared(shared) if shared.is_device())
    }

    /// Waits until everything committed and copied so far is in this host's image (perhaps only in the host's cache), and names the newest such epoch.
    ///
    /// # Errors
    /// [`DiskError::Phase`] at a primary, [`DiskError::Slow`] when it takes longer than `bound`, [`DiskError::Failed`].
    pub fn wait_applied(&self, bound: Duration) -> Result<Epoch, DiskError> {
        match &self.mode {
            Modal::Mirror(mirror) => mirror.wait_applied(bound),
            Modal::Shared(shared) => shared.committed(),
        }
    }

    /// The link is lost, or no more is to be committed: what is kept and not committed is thrown away.
    pub fn discard_uncommitted(&self) {
        match &self.mode {
            Modal::Mirror(mirror) => mirror.discard_uncommitted(),
            Modal::Shared(shared) => shared.discard_uncommitted(),
        }
    }

    /// The primary is gone and this node is about to ask for the guest: from now on a medium that is full is waited for, and no reason to give this copy up. Until the next [`Disk::join`].
    pub fn taking_over(&self) {
        match &self.mode {
            Modal::Mirror(mirror) => mirror.taking_over(),
            // Its device is the one that the primary had.
            Modal::Shared(_) => {}
        }
    }

    /// After the grant, before the guest runs: what is committed is the guest's disk now, what is not is thrown away. From here on the disk is a primary's that runs alone.
    ///
    /// # Errors
    /// [`DiskError::Unfit`] when no epoch was committed, [`DiskError::Slow`] when it takes longer than `bound`, [`DiskError::Failed`]. The guest must not run then.
    pub fn activate(&self, bound: Duration) -> Result<(), DiskError> {
        match &self.mode {
            Modal::Mirror(mirror) => mirror.activate(bound),
            Modal::Shared(shared) => shared.activate(bound),
        }
    }
}

pub(crate) fn copy_of(error: &io::Error) -> io::Error {
    error.raw_os_error().map_or_else(|| io::Error::new(error.kind(), error.to_string()), io::Error::from_raw_os_error)
}

fn serial(index: DiskIndex, given: Option<&str>) -> Result<[u8; 20], DiskError> {
    let text = given.map_or_else(|| format!("lockstep-{}", index.0), str::to_owned);
    let mut serial = [0; 20];
    if text.is_empty() || text.len() > serial.len() || !text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ') {
        return Err(DiskError::Serial(text));
    }
    serial[..text.len()].copy_from_slice(text.as_bytes());
    Ok(serial)
}
