//! A node: composes the machine, the primary's and the standby's shells, and the events stream. No mechanism lives here.

use std::sync::atomic::AtomicBool;

use crate::config::NodeConfig;

/// How a node's life ended in good order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// The guest ended by itself.
    GuestStopped {
        /// How.
        reason: String,
    },
    /// The node was told to stop (a signal).
    Interrupted,
    /// The node lost the right to run and stopped its guest.
    Fenced {
        /// Why.
        reason: String,
    },
}

/// Why a node could not go on.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The binding to the machinery is not there yet.
    #[error("not bound to the machinery")]
    Unbound,
}

/// Runs a primary until its guest ends, it is fenced, or `shutdown` is set.
///
/// # Errors
/// Whatever keeps the machine from being made, booted or protected.
pub fn run_primary(_config: &NodeConfig, _shutdown: &AtomicBool) -> Result<Exit, NodeError> {
    Err(NodeError::Unbound)
}

/// Runs a standby, and the primary that it becomes on activation, until the guest ends, it is fenced, or `shutdown` is set.
///
/// # Errors
/// Whatever keeps the machine from being made or the standby from listening.
pub fn run_standby(_config: &NodeConfig, _shutdown: &AtomicBool) -> Result<Exit, NodeError> {
    Err(NodeError::Unbound)
}
