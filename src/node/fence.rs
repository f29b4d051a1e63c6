//! A node's fence: from the configuration's shared disks and fencing command to the thing that shuts older owners out.
//!
//! Lives here: the composition. Not here: how it is done (`failover::fence`). Guards S3 and S4 on shared disks: a node with a shared disk that cannot be fenced does not start, as a primary or as a standby.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use disk_buffer::Disks;
use failover::fence::runner::ArbiterMaker;
use failover::fence::{DiskFences, Fence, FenceCommand, FenceError, FenceRunner, Grant, Owner, Predecessor};
use types::{Generation, HostId};

use crate::config::{DiskMode, NodeConfig};

/// The disks that several hosts can write to and this guest writes to.
pub(super) fn paths(config: &NodeConfig) -> impl Iterator<Item = PathBuf> + '_ {
    config.machine.disks.iter().filter(|disk| disk.mode == DiskMode::Shared && !disk.read_only).map(|disk| disk.path.clone())
}

/// What to tell an operator who gave a fencing command that nothing runs.
pub(super) fn unused(config: &NodeConfig) -> Option<&'static str> {
    let unused = config.fence_command.is_some() && paths(config).next().is_none();
    unused.then_some("--fence-command is given, and never run: no disk of this guest has mode=shared and is written to; leave it out, or check the disks")
}

/// How long an attempt waits for a process that has a device or a file and is ending.
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
    let fence = Arc::new(Locked { fence: fence?, disks: Arc::clone(disks), done: Mutex::default(), bound: LOCK_BOUND });
    Some(FenceRunner::new(fence, config.vm.clone(), Arc::clone(arbiters)))
}

/// A fence with the disks' locks around it, in this order:
///
/// 1. *Devices*: this host's own lock. A device's reservation cannot tell two processes of a host apart.
/// 2. *The fence.* Once for each grant: a command that has said that the other host is dead is not run again because a lock is not free yet.
/// 3. *Files*: the file system's lock. It may be that of the very process that the command is to end, and storage keeps a dead host's lock for a while, so a try that fails is one of several: the runner tries again and tells why.
///
/// After that every disk can be written to, and activation has nothing to wait for.
struct Locked<F> {
    fence: F,
    disks: Arc<Disks>,
    /// The grant, by process and generation, for which the fence has succeeded.
    done: Mutex<Option<(u64, Generation)>>,
    /// [`LOCK_BOUND`].
    bound: Duration,
}

impl<F: Fence> Fence for Locked<F> {
    fn shut_out(&self, old: &[Predecessor], me: &Owner, grant: &dyn Grant) -> Result<(), FenceError> {
        self.disks.claim_devices(self.bound).map_err(|error| FenceError::NotReady(error.to_string()))?;
        let this = Some((me.instance, me.generation));
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        let first = *done != this;
        if first {
            self.fence.shut_out(old, me, grant)?;
            *done = this;
        }
        drop(done);
        if first && self.disks.claim(Duration::ZERO).is_ok() {
            return Ok(());
        }
        self.disks.claim(self.bound).map_err(|error| FenceError::StillLocked(error.to_string()))?;
        // That took a while, in which the grant may have gone to another, whose host this fence could not know of.
        grant.confirm()
    }

    fn probe(&self) -> Result<(), FenceError> {
        self.fence.probe()
    }

    fn release(&self, me: &Owner, alone: bool) {
        self.fence.release(me, alone);
    }
}

#[cfg(test)]
mod tests;
