//! A node's fence: from the configuration's shared disks and fencing command to the thing that shuts older owners out.
//!
//! Lives here: the composition. Not here: how it is done (`failover::fence`). Guards S3 and S4 on shared disks: a node with a shared disk that cannot be fenced does not start, as a primary or as a standby.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use disk_buffer::Disks;
use failover::fence::runner::ArbiterMaker;
use failover::fence::{DiskFences, Fence, FenceCommand, FenceError, FenceRunner, Grant, Owner, Predecessor};
use types::HostId;

use crate::config::{DiskMode, NodeConfig};

/// The disks that several hosts can write to and this guest writes to.
pub(super) fn paths(config: &NodeConfig) -> impl Iterator<Item = PathBuf> + '_ {
    config.machine.disks.iter().filter(|disk| disk.mode == DiskMode::Shared && !disk.read_only).map(|disk| disk.path.clone())
}

/// How long an attempt waits for a process of this host that has a device and is ending.
const LOCK_BOUND: Duration = Duration::from_secs(2);

/// The fence of the configuration's shared disks, if there are any; it has been found to work. `host`: this host's identity.
pub(super) fn of(config: &NodeConfig, host: Option<HostId>) -> Result<Option<DiskFences>, FenceError> {
    let Some(disk) = paths(config).next() else { return Ok(None) };
    let command = config.fence_command.as_ref().map(FenceCommand::new);
    let fence = DiskFences::of(&config.vm, paths(config), command)?;
    if fence.need_command() && host.is_none() {
        return Err(FenceError::NoHost { disk: disk.display().to_string() });
    }
    Ok(Some(fence))
}

/// What runs it, for these disks.
pub(super) fn runner(fence: Option<DiskFences>, config: &NodeConfig, disks: &Arc<Disks>, arbiters: &ArbiterMaker) -> Option<FenceRunner> {
    let fence = Arc::new(Locked { fence: fence?, disks: Arc::clone(disks) });
    Some(FenceRunner::new(fence, config.vm.clone(), Arc::clone(arbiters)))
}

/// A fence with the host's own locks before it: a device's reservation cannot tell two processes of a host apart.
struct Locked {
    fence: DiskFences,
    disks: Arc<Disks>,
}

impl Fence for Locked {
    fn shut_out(&self, old: &[Predecessor], me: &Owner, grant: &dyn Grant) -> Result<(), FenceError> {
        // Only devices: a file has no reservation, and the process that has it locked may be the one that the command is to end. Its lock is taken when it becomes writable.
        self.disks.claim_devices(LOCK_BOUND).map_err(|error| FenceError::NotReady(error.to_string()))?;
        self.fence.shut_out(old, me, grant)
    }

    fn probe(&self) -> Result<(), FenceError> {
        self.fence.probe()
    }

    fn release(&self, me: &Owner, alone: bool) {
        self.fence.release(me, alone);
    }
}
