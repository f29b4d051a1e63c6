//! The saved state of a virtio-pci function.
//!
//! Lives here: the payload and its version. Not here: the device's core, which is saved with the device, nor lines and routes, which are rebuilt. Guards S5.

use serde::{Deserialize, Serialize};

use crate::devices::pci::MsixState;

/// Version of [`PciState`]'s content. A function refuses any other.
pub const PCI_STATE_VERSION: u16 = 1;

/// Everything about a function that is not in the device behind it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciState {
    /// [`PCI_STATE_VERSION`] of the program that wrote it.
    pub version: u16,
    /// Configuration space: command, BAR, MSI-X control, the window onto the BAR.
    pub config: Vec<u8>,
    /// Messages, masks, pending bits.
    pub msix: MsixState,
    /// The vector of configuration changes.
    pub config_vector: u16,
    /// The vector of each queue.
    pub queue_vectors: Vec<u16>,
}
