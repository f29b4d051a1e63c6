//! A node's fence: from the configuration's shared disks and fencing command to the thing that shuts older owners out.
//!
//! Lives here: the composition. Not here: how it is done (`failover::fence`). Guards S3 and S4 on shared disks: a node with a shared disk that cannot be fenced does not start, as a primary or as a standby.

use std::path::PathBuf;
use std::sync::Arc;

use failover::fence::runner::ArbiterMaker;
use failover::fence::{DiskFences, FenceCommand, FenceError, FenceRunner};

use crate::config::{DiskMode, NodeConfig};

/// The disks that several hosts can write to and this guest writes to.
pub(super) fn paths(config: &NodeConfig) -> impl Iterator<Item = PathBuf> + '_ {
    config.machine.disks.iter().filter(|disk| disk.mode == DiskMode::Shared && !disk.read_only).map(|disk| disk.path.clone())
}

/// The fence of the configuration's shared disks, if there are any.
pub(super) fn of(config: &NodeConfig, arbiters: &ArbiterMaker) -> Result<Option<FenceRunner>, FenceError> {
    if paths(config).next().is_none() {
        return Ok(None);
    }
    let command = config.fence_command.as_ref().map(FenceCommand::new);
    let fence = DiskFences::of(&config.vm, paths(config), command)?;
    Ok(Some(FenceRunner::new(Arc::new(fence), config.vm.clone(), Arc::clone(arbiters))))
}
