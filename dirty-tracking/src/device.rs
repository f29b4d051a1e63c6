//! The VMM's own writes to guest memory: devices, loaders, io_uring completions. KVM's logs do not see them; vm-memory's bitmap does.
//!
//! Guards S5.

use std::sync::Arc;

use vm_memory::{GuestMemoryBackend as _, GuestMemoryMmap, MmapRegion, bitmap::AtomicBitmap};

use crate::{DirtySet, DirtyTracker, Kind, TrackingError};

pub(crate) struct DeviceTracker {
    memory: Arc<GuestMemoryMmap<AtomicBitmap>>,
}

impl DeviceTracker {
    pub(crate) fn new(memory: Arc<GuestMemoryMmap<AtomicBitmap>>) -> DeviceTracker {
        DeviceTracker { memory }
    }
}

impl DirtyTracker for DeviceTracker {
    fn kind(&self) -> Kind {
        Kind::Device
    }

    fn enable(&mut self) -> Result<(), TrackingError> {
        for region in self.memory.iter() {
            MmapRegion::bitmap(region).reset();
        }
        Ok(())
    }

    fn disable(&mut self) -> Result<(), TrackingError> {
        Ok(())
    }

    fn collect(&mut self, into: &mut DirtySet) -> Result<(), TrackingError> {
        for (index, region) in self.memory.iter().enumerate() {
            into.insert_words(index, &MmapRegion::bitmap(region).get_and_reset());
        }
        Ok(())
    }

    /// Always 0: devices write little between two epochs next to the vCPUs, and counting would read the whole bitmap.
    fn estimate(&mut self) -> Result<u64, TrackingError> {
        Ok(0)
    }
}
