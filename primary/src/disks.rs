//! The machine's disks as the primary sees them: between the disk device of `vmm` and the disk-buffer, and between the disk-buffer and the epochs.
//!
//! Lives here: the glue, as `output.rs` is for frames. Not here: what a disk does with a write (`disk-buffer`), when an epoch ends and what a commit releases
//! ([`crate::core`]), whether a failed disk makes this node give up its role (`failover::core`). Guards S1 and S4 for what the guest writes: the writes of an epoch
//! are sealed in its pause, before the guest runs on, and travel in its tail.

use std::os::fd::RawFd;
use std::sync::Arc;

use disk_buffer::{Disk, DiskEvent, Disks, Hooks};
use types::block::{BlockDone, BlockInfo, BlockRequest};
use types::event::NodeEventKind;
use vmm::{BlockBackend, SinkFull};

use crate::core::Event;
use crate::shared::{News, Shared};

/// One disk as the machine's device uses it.
struct Backend(Arc<Disk>);

impl BlockBackend for Backend {
    fn info(&self) -> BlockInfo {
        self.0.info()
    }

    fn submit(&self, request: BlockRequest) -> Result<(), SinkFull> {
        self.0.submit(request).map_err(|_| SinkFull)
    }

    fn take_done(&self, into: &mut Vec<BlockDone>) {
        self.0.take_done(into);
    }

    fn event(&self) -> RawFd {
        self.0.event()
    }
}

/// The machine's way to its disks, for `vmm::Sinks`, in their order.
#[must_use]
pub fn backends(disks: &Disks) -> Vec<Arc<dyn BlockBackend>> {
    disks.iter().map(|disk| Arc::new(Backend(Arc::clone(disk))) as Arc<dyn BlockBackend>).collect()
}

/// Has the disks tell this primary's threads what concerns them.
pub(crate) fn attach(shared: &Arc<Shared>) {
    for disk in shared.disks.iter() {
        let (pipeline, room, role) = (Arc::downgrade(shared), Arc::downgrade(shared), Arc::downgrade(shared));
        let flushes = Arc::downgrade(shared);
        disk.attach(Hooks {
            room: Box::new(move || {
                if let Some(shared) = room.upgrade() {
                    shared.machine.retry_output();
                }
            }),
            pressure: Box::new(move || {
                if let Some(shared) = pipeline.upgrade() {
                    shared.raise(Event::Output { first: false, pressure: true });
                }
            }),
            waiting: Box::new(move || {
                if let Some(shared) = flushes.upgrade() {
                    // As for a frame: the guest stands still until that commit.
                    shared.raise(Event::Output { first: true, pressure: false });
                }
            }),
            event: Box::new(move |event| {
                let Some(shared) = role.upgrade() else { return };
                match event {
                    DiskEvent::GiveUp { disk, error } => shared.tell(News::DiskFailed { reason: format!("{disk}: {error}") }),
                    DiskEvent::ShutOut { disk, error } => shared.tell(News::ShutOut { reason: format!("{disk}: {error}") }),
                    DiskEvent::Full { text, .. } => (shared.report)(NodeEventKind::Warning { text }),
                    DiskEvent::Issued { disk, generation, epoch } => shared.tell(News::Issued { disk, generation, epoch }),
                    // A standby's.
                    DiskEvent::Durable { .. } | DiskEvent::Failed { .. } => {}
                }
            }),
        });
    }
    // Room that came before these hooks were there was told to nobody who could use it.
    shared.machine.retry_output();
}
