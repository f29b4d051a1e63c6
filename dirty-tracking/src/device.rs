//! The VMM's own writes to guest memory: devices, loaders, io_uring completions. KVM's logs do not see them; the memory's own log does.
//!
//! Guards S5.

use std::sync::Arc;

use vm_memory::{GuestMemoryBackend as _, GuestMemoryMmap, MmapRegion};

use crate::{DirtySet, DirtyTracker, Kind, TrackingError, WriteLog};

pub(crate) struct DeviceTracker {
    memory: Arc<GuestMemoryMmap<WriteLog>>,
}

impl DeviceTracker {
    pub(crate) fn new(memory: Arc<GuestMemoryMmap<WriteLog>>) -> DeviceTracker {
        DeviceTracker { memory }
    }
}

impl DirtyTracker for DeviceTracker {
    fn kind(&self) -> Kind {
        Kind::Device
    }

    fn enable(&mut self) -> Result<(), TrackingError> {
        for region in self.memory.iter() {
            MmapRegion::bitmap(region).take(|_, _| ());
        }
        Ok(())
    }

    fn disable(&mut self) -> Result<(), TrackingError> {
        Ok(())
    }

    fn collect(&mut self, into: &mut DirtySet) -> Result<(), TrackingError> {
        for (slot, region) in self.memory.iter().enumerate() {
            MmapRegion::bitmap(region).take(|index, word| into.insert_word(slot, index, word));
        }
        Ok(())
    }

    fn estimate(&mut self) -> Result<u64, TrackingError> {
        Ok(self.memory.iter().map(|region| MmapRegion::bitmap(region).count()).sum())
    }
}
