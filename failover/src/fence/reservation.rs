//! Shutting older owners out of one device by a SCSI-3 (or NVMe) persistent reservation.
//!
//! Lives here: the order of the operations and the argument for it. Not here: the calls themselves ([`super::pr`]). Guards S3 and S4 on a shared disk.
//!
//! # The scheme
//!
//! One key for each VM, the same on all nodes, made from the VM's name. A device tells *nexuses* apart (which host, by which path), not keys; what counts is who is registered, and the common key is what lets a new owner
//! remove all others without having to know who they are. The reservation is *write exclusive, registrants only*: whoever is not registered cannot write, and one nexus is its holder. A new owner does
//!
//! | step | what | why |
//! |---|---|---|
//! | R | register, whatever was registered | only a registered nexus can preempt |
//! | C | the arbiter confirms the grant, asked after R | below |
//! | V0 | reserve; a conflict is no error | where nobody holds the reservation yet |
//! | P | preempt and abort, key for key | takes the reservation over, removes every other registration, ends what those had under way |
//! | R' | register once more | a preempt leaves only the path it came by: this brings back this host's other paths (dm-multipath) |
//! | V | reserve: must succeed | only the holder's own reserve does. So this node is the holder and nobody preempted it after P |
//!
//! The guest's disks become writable after V, and never before.
//!
//! # Why no older owner can write after `shut_out` returned Ok
//!
//! Let N be the process whose `shut_out` returned Ok in generation n, and O one of a generation o < n that ever was granted the guest. Facts used: (1) a node writes only after *its* `shut_out` returned Ok, and does not
//! register any more after that. (2) Grants follow one another at the arbiter; N's steps come after N's grant. (3) A nexus is used by one process at a time that writes or fences: the host-local lock, which is on the open
//! file that the writes go through, is taken before R and is free only when the last write of its former holder is over. (4) While the reservation stands, a nexus that is not registered cannot write.
//!
//! - *O's `shut_out` returned Ok before P of N.* P removes O's registration and aborts its commands; by (1) it never comes back. What O writes later is refused.
//! - *O's C comes after N's grant*: it tells O that its grant is over, and O's `shut_out` is not Ok. By (1) O never writes. It may have registered: harmless, since by (3) no other process of its host writes either.
//! - *O's C came before N's grant, but its `shut_out` was not yet Ok at P of N.* O's R came before its C, thus before P, which removed it. If O wakes before its own P, that P is refused, for O is not registered. If it wakes
//!   between P and V, R' may register it again, but V is refused: the holder is N. In both cases O begins anew with R and C, and C tells it.
//! - *O's P comes between N's R and N's P.* O's C was before N's grant. N loses its registration, its P or V is refused, and it begins anew: R, C (still N's grant), P. O is shut out then as in the first case.
//! - The reservation stands from N's V on: it ends only when its holder is preempted (by a newer owner, to whom the same applies), unregisters, or somebody clears it. So **nobody unregisters or clears while an older
//!   owner could sleep**: not after an error, and at a guest's good end only if there never was another owner ([`super::Fence::release`]). A disk at rest stays reserved otherwise; the next owner takes it over.
//!
//! The probe registers nothing for the same reason: registering gives a sleeping process of this very host its right to write back.
//!
//! # Why not as is usually proposed (own key for each owner, *all registrants*, preempt with key 0)
//!
//! Linux's own target (target_core_pr.c, up to 6.12 at least) removes the registrations then but does not abort the commands under way: a dead primary's last writes, still in the target's queue, could land after the new
//! owner's. With the holder's key it does (`core_tmr_lun_reset`). And the kernel and its documentation disagree about which of `IOC_PR_PREEMPT`'s two keys is whose; here it makes no difference.
//!
//! # What the device must do
//!
//! Remember registrations by initiator, not by connection (for Linux's target: explicit ACLs, or `cache_dynamic_acls=1`), and keep them over its own restart (the kernel asks for that; Linux's target needs a writable
//! /var/target/pr and refuses the registration otherwise). A path that comes back under another name (a new iSCSI session identifier) is not registered: its writes are refused, and the node stops its guest, which is safe.

use std::path::{Path, PathBuf};

use types::VmId;
use xxhash_rust::xxh3::xxh3_64;

use super::pr::{Answer, PrDevice, PrOps};
use super::{Fence, FenceError, Grant, Owner, Predecessor};

/// Each call takes away one unit attention: one for the first contact, one for a lost registration, one for a reset of the target, and some more. As many as Linux's own retries (sd.c since 6.9).
const ATTEMPTS: usize = 5;

/// The key that every owner of a VM registers. Never 0.
#[must_use]
pub fn key(vm: &VmId) -> u64 {
    xxh3_64(format!("lockstep/{}", vm.0).as_bytes()).max(1)
}

/// One shared block device that is fenced by persistent reservations.
#[derive(Clone, Debug)]
pub struct Reservation {
    path: PathBuf,
    vm: VmId,
}

impl Reservation {
    /// The device at `path`, used by `vm`.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>, vm: VmId) -> Reservation {
        Reservation { path: path.into(), vm }
    }

    /// The device.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn open(&self) -> Result<PrDevice, FenceError> {
        PrDevice::open(&self.path).map_err(|source| FenceError::Open { device: self.device(), source })
    }

    fn device(&self) -> String {
        self.path.display().to_string()
    }
}

impl Fence for Reservation {
    fn shut_out(&self, _old: &[Predecessor], _me: &Owner, grant: &dyn Grant) -> Result<(), FenceError> {
        take_over(&self.open()?, &self.device(), key(&self.vm), grant)
    }

    fn probe(&self) -> Result<(), FenceError> {
        probe(&self.open()?, &self.device(), key(&self.vm))
    }

    fn release(&self, _me: &Owner, alone: bool) {
        let key = key(&self.vm);
        if !alone {
            tracing::info!(
                device = %self.path.display(), key = format!("{key:#x}"),
                "stays reserved for this host, because an older owner may sleep with a write in its hands; the next owner takes it over. To use it for something else, clear its reservation (blkpr --command clear --key KEY)"
            );
            return;
        }
        let released = self.open().and_then(|device| repeat(&self.device(), "clear", || device.clear(key)));
        match released {
            Ok(_) => tracing::info!(device = %self.path.display(), "its reservation is given up"),
            Err(error) => tracing::warn!(%error, "the reservation stays; the next owner takes it over"),
        }
    }
}

/// Makes this nexus the only one that can write: the steps of this module's table.
pub(crate) fn take_over(device: &impl PrOps, name: &str, key: u64, grant: &dyn Grant) -> Result<(), FenceError> {
    let refused = |step| FenceError::Foreign { device: name.to_owned(), step };
    let must = |step, answer| if answer == Answer::Done { Ok(()) } else { Err(refused(step)) };
    must("register", repeat(name, "register", || device.register(key))?)?;
    grant.confirm()?;
    // A conflict: an older owner holds it, or a stranger. The last step tells.
    repeat(name, "reserve", || device.reserve(key))?;
    must("preempt", repeat(name, "preempt", || device.preempt_abort(key))?)?;
    must("register", repeat(name, "register", || device.register(key))?)?;
    must("reserve", repeat(name, "reserve", || device.reserve(key))?)
}

/// Whether the device knows persistent reservations; changes nothing.
pub(crate) fn probe(device: &impl PrOps, name: &str, key: u64) -> Result<(), FenceError> {
    let first = repeat(name, "probe", || device.touch());
    if first.is_ok() {
        return Ok(());
    }
    // A key that nobody registers.
    let second = repeat(name, "probe", || device.release_nothing(!key));
    match (first, second) {
        (_, Ok(_)) => Ok(()),
        (Err(FenceError::Io { source, .. }), _) => Err(FenceError::NotSupported { device: name.to_owned(), why: source.to_string() }),
        (Err(error), _) | (_, Err(error)) => Err(FenceError::NotSupported { device: name.to_owned(), why: error.to_string() }),
    }
}

/// Makes one step, again when the device had something else to say first. Every step may be made twice.
fn repeat(name: &str, step: &'static str, ask: impl Fn() -> std::io::Result<Answer>) -> Result<Answer, FenceError> {
    let mut status = 0;
    for _ in 0..ATTEMPTS {
        match ask().map_err(|source| FenceError::Io { device: name.to_owned(), step, source })? {
            Answer::Again(again) => status = again,
            answer => return Ok(answer),
        }
    }
    Err(FenceError::Device { device: name.to_owned(), step, status })
}

#[cfg(test)]
mod tests;
