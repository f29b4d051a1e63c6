//! KVM's dirty ring: each vCPU lists the pages it dirties; taking costs as much as there is, however large the guest.
//!
//! A full ring makes its vCPU exit (`KVM_EXIT_DIRTY_RING_FULL`), which ends the epoch. Guards S5.

use std::{os::fd::RawFd, sync::Arc};

use kvm_ioctls::VmFd;
use types::Gfn;

use crate::{DirtySet, DirtyTracker, Kind, Layout, TrackingError, raw};

/// Entries of each vCPU's ring where the kernel allows as many: 65536 pages are 256 MiB in one epoch, for 1 MiB of ring.
pub(crate) const RING_ENTRIES: u32 = 65536;

pub(crate) struct RingTracker {
    vm: Arc<VmFd>,
    layout: Layout,
    rings: Vec<raw::RingMap>,
}

impl RingTracker {
    pub(crate) fn new(vm: Arc<VmFd>, layout: &Layout, vcpus: &[RawFd], entries: u32) -> Result<RingTracker, TrackingError> {
        let rings = vcpus.iter().map(|fd| raw::RingMap::new(*fd, entries)).collect::<Result<_, _>>();
        let rings = rings.map_err(|source| TrackingError::Ioctl { what: "mapping a vCPU's dirty ring", source })?;
        Ok(RingTracker { vm, layout: layout.clone(), rings })
    }

    fn set_logging(&self, on: bool) -> Result<(), TrackingError> {
        for slot in self.layout.slots() {
            raw::set_logging(&self.vm, slot, on)
                .map_err(|source| TrackingError::Ioctl { what: "KVM_SET_USER_MEMORY_REGION (dirty logging)", source })?;
        }
        Ok(())
    }

    fn take_all(&mut self, mut each: impl FnMut(usize, u32, u64) -> Result<(), TrackingError>) -> Result<(), TrackingError> {
        let mut taken = 0u64;
        for (vcpu, ring) in self.rings.iter_mut().enumerate() {
            // At most one turn of the ring: a vCPU that runs could otherwise keep this loop busy for ever.
            let waiting = ring.waiting();
            for _ in 0..waiting {
                let Some((slot, offset)) = ring.take() else { break };
                taken += 1;
                each(vcpu, slot, offset)?;
            }
        }
        if taken > 0 {
            raw::reset_dirty_rings(&self.vm).map_err(|source| TrackingError::Ioctl { what: "KVM_RESET_DIRTY_RINGS", source })?;
        }
        Ok(())
    }
}

impl DirtyTracker for RingTracker {
    fn kind(&self) -> Kind {
        Kind::Ring
    }

    fn enable(&mut self) -> Result<(), TrackingError> {
        self.take_all(|_, _, _| Ok(()))?;
        self.set_logging(true).inspect_err(|_| drop(self.set_logging(false)))
    }

    fn disable(&mut self) -> Result<(), TrackingError> {
        self.set_logging(false)?;
        // A ring left full would stop its vCPU again at once.
        self.take_all(|_, _, _| Ok(()))
    }

    fn collect(&mut self, into: &mut DirtySet) -> Result<(), TrackingError> {
        // Moved out for the length of the call, so that the rings can be borrowed for writing.
        let layout = std::mem::take(&mut self.layout);
        let taken = self.take_all(|vcpu, slot, offset| {
            // The upper half of a ring's slot number is the address space, which is 0 outside of SMM.
            let found = layout.slots().iter().find(|candidate| candidate.number == slot & 0xffff && offset < candidate.pages);
            let found = found.ok_or(TrackingError::WildEntry { vcpu, slot, offset })?;
            into.insert(Gfn(found.first.0 + offset));
            Ok(())
        });
        self.layout = layout;
        taken
    }

    fn estimate(&mut self) -> Result<u64, TrackingError> {
        Ok(self.rings.iter().map(|ring| u64::from(ring.waiting())).sum())
    }
}
