//! The trackers of one machine as one, with what failed epochs gave back; and the choice between bitmap and ring.
//!
//! Guards S5 (vCPU writes and device writes together) and S6 (what a failed epoch gives back is in the next set).

use std::{os::fd::RawFd, sync::Arc};

use kvm_bindings::{
    KVM_CAP_DIRTY_LOG_RING, KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE,
    kvm_dirty_gfn, kvm_enable_cap,
};
use kvm_ioctls::{Kvm, VmFd};
use vm_memory::GuestMemoryMmap;

use crate::{
    Choice, DirtySet, DirtyTracker, Kind, Layout, TrackingError, WriteLog,
    bitmap::BitmapTracker,
    device::DeviceTracker,
    ring::{RING_ENTRIES, RingTracker},
};

/// Guest memory from which on `Choice::Auto` takes the ring: reading the bitmap of 4 GiB takes 13 us of every pause whatever is dirty;
/// below, it is cheaper per page than the ring (0.07 against 0.04 to 0.08 us, and no exits when full).
const AUTO_RING_PAGES: u64 = (4 << 30) / types::PAGE_SIZE as u64;

/// What this host's KVM can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Support {
    /// The bitmap with manual protection.
    pub bitmap: bool,
    /// The most entries a ring may have; 0 where there is no ring.
    pub ring_entries: u32,
}

impl Support {
    /// The tracker that `choice` means for a guest of `pages` pages.
    ///
    /// # Errors
    /// When the host cannot do what was chosen.
    pub fn choose(self, choice: Choice, pages: u64) -> Result<Kind, TrackingError> {
        let ring = self.ring_entries > 0;
        match choice {
            Choice::Bitmap if self.bitmap => Ok(Kind::Bitmap),
            Choice::Ring if ring => Ok(Kind::Ring),
            Choice::Auto if ring && (pages >= AUTO_RING_PAGES || !self.bitmap) => Ok(Kind::Ring),
            Choice::Auto if self.bitmap => Ok(Kind::Bitmap),
            Choice::Ring => Err(TrackingError::Unsupported("dirty ring (KVM_CAP_DIRTY_LOG_RING)")),
            _ => Err(TrackingError::Unsupported("manual dirty log protection (KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2)")),
        }
    }
}

fn support(check: impl Fn(u32) -> i32) -> Support {
    let bytes = check(KVM_CAP_DIRTY_LOG_RING_ACQ_REL).max(check(KVM_CAP_DIRTY_LOG_RING)).max(0) as u32;
    Support {
        bitmap: check(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2) & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE as i32 != 0,
        ring_entries: bytes / size_of::<kvm_dirty_gfn>() as u32,
    }
}

/// What the host's KVM can do, for `lockstep check`.
#[must_use]
pub fn probe(kvm: &Kvm) -> Support {
    support(|cap| kvm.check_extension_raw(cap.into()))
}

/// Dirty tracking prepared on a VM that has no vCPU yet.
#[derive(Debug)]
pub struct Prepared {
    kind: Kind,
    ring_entries: u32,
}

/// Chooses the tracker and switches the VM's capability on. Must come before the first vCPU is created: the kernel wants it so for rings.
///
/// # Errors
/// When the host cannot do what was chosen.
pub fn prepare(vm: &VmFd, choice: Choice, pages: u64) -> Result<Prepared, TrackingError> {
    let support = support(|cap| vm.check_extension_raw(cap.into()));
    let kind = support.choose(choice, pages)?;
    let ring_entries = support.ring_entries.min(RING_ENTRIES);
    let (cap, arg) = if kind == Kind::Ring {
        let acquire_release = vm.check_extension_raw(KVM_CAP_DIRTY_LOG_RING_ACQ_REL.into()) > 0;
        let cap = if acquire_release { KVM_CAP_DIRTY_LOG_RING_ACQ_REL } else { KVM_CAP_DIRTY_LOG_RING };
        (cap, u64::from(ring_entries) * size_of::<kvm_dirty_gfn>() as u64)
    } else {
        (KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, u64::from(KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE))
    };
    let enable = kvm_enable_cap { cap, args: [arg, 0, 0, 0], ..Default::default() };
    vm.enable_cap(&enable).map_err(|errno| TrackingError::Ioctl {
        what: "KVM_ENABLE_CAP (dirty logging)",
        source: std::io::Error::from_raw_os_error(errno.errno()),
    })?;
    tracing::debug!(?kind, ring_entries, "dirty tracking chosen");
    Ok(Prepared { kind, ring_entries })
}

impl Prepared {
    /// The tracker of vCPU writes that was chosen.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Makes the trackers, once the vCPUs (in `vcpus`) and memory slots are there. `memory` has one region per slot of `layout`, in order.
    ///
    /// # Errors
    /// When a ring cannot be mapped.
    pub fn finish(
        self,
        vm: Arc<VmFd>,
        layout: &Layout,
        vcpus: &[RawFd],
        memory: Arc<GuestMemoryMmap<WriteLog>>,
    ) -> Result<Merged, TrackingError> {
        let vcpu_writes: Box<dyn DirtyTracker> = if self.kind == Kind::Ring {
            Box::new(RingTracker::new(vm, layout, vcpus, self.ring_entries)?)
        } else {
            Box::new(BitmapTracker::new(vm, layout))
        };
        let parts = vec![vcpu_writes, Box::new(DeviceTracker::new(memory)) as Box<dyn DirtyTracker>];
        Ok(Merged { parts, given_back: DirtySet::new(layout), anything_given_back: false, kind: self.kind })
    }
}

/// Every tracker of a machine as one. Device writes are taken last.
pub struct Merged {
    parts: Vec<Box<dyn DirtyTracker>>,
    given_back: DirtySet,
    anything_given_back: bool,
    kind: Kind,
}

impl Merged {
    /// How vCPU writes are tracked.
    #[must_use]
    pub fn vcpu_kind(&self) -> Kind {
        self.kind
    }

    /// Takes back the set of an epoch that could not be sent: the next collect includes it (S6).
    pub fn give_back(&mut self, set: &DirtySet) {
        self.given_back.merge(set);
        self.anything_given_back = true;
    }
}

impl DirtyTracker for Merged {
    fn kind(&self) -> Kind {
        Kind::Merged
    }

    /// Starts with an empty log, also of what was given back before.
    fn enable(&mut self) -> Result<(), TrackingError> {
        self.given_back.clear();
        self.anything_given_back = false;
        self.parts.iter_mut().try_for_each(|part| part.enable())
    }

    fn disable(&mut self) -> Result<(), TrackingError> {
        self.parts.iter_mut().try_for_each(|part| part.disable())
    }

    fn collect(&mut self, into: &mut DirtySet) -> Result<(), TrackingError> {
        if self.anything_given_back {
            into.merge(&self.given_back);
            self.given_back.clear();
            self.anything_given_back = false;
        }
        self.parts.iter_mut().try_for_each(|part| part.collect(into))
    }

    fn estimate(&mut self) -> Result<u64, TrackingError> {
        let given_back = if self.anything_given_back { self.given_back.count() } else { 0 };
        self.parts.iter_mut().try_fold(given_back, |sum, part| Ok(sum + part.estimate()?))
    }
}
