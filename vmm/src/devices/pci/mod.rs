//! PCI: one bus of 32 devices, as much of it as virtio functions need.
//!
//! Lives here: configuration space ([`config`]), the ways a guest reaches it and where functions' memory answers ([`root`]), message-signalled interrupts ([`msix`]).
//! Not here: what a function does (virtio's is [`crate::devices::virtio::pci`]), nor KVM: doorbells and message routes are asked for through [`Doorbells`] and
//! [`MsiRouter`]. Guards S7: a guest may write anything anywhere here; the worst is that it no longer finds its own devices.
//!
//! What a guest may do with a BAR, and what comes of it: it may size it (write ones, read back), move it and turn memory decoding off and on. A BAR that lies within
//! [`crate::layout::PCI_BARS`] and whose function decodes memory answers there, and its doorbells follow it. A BAR put anywhere else does not answer at all: nothing can
//! be laid over memory, the interrupt controllers or virtio-mmio. Where two BARs overlap, the function with the lower number answers.

pub mod config;
pub mod msix;
pub mod root;
#[cfg(test)]
pub(crate) mod testing;

use std::io;

use vmm_sys_util::eventfd::EventFd;

pub use config::ConfigSpace;
pub use msix::{Msix, MsixState};
pub use root::{PciRoot, PciRootState};

/// A message that a function writes to interrupt a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiMessage {
    /// Address in the LAPICs' range, 32 bits.
    pub address: u32,
    /// What is written there.
    pub data: u32,
}

/// Turns the interrupts of functions into messages: whoever owns KVM's table of routes.
pub trait MsiRouter: Send + Sync {
    /// From now on a signal on each of these lines (GSIs) sends that message, or nothing. One call, one change of the table.
    ///
    /// # Errors
    /// When the kernel refuses; the lines then do as before.
    fn route(&self, changes: &[(u32, Option<MsiMessage>)]) -> io::Result<()>;
}

/// Has KVM signal an eventfd when the guest writes to an address, whatever it writes and how wide.
pub trait Doorbells: Send + Sync {
    /// Begins to.
    ///
    /// # Errors
    /// When the kernel refuses: the write then leaves KVM and reaches the function, which is slower and does the same.
    fn add(&self, address: u64, event: &EventFd) -> io::Result<()>;
    /// Ends it. `event` was added at `address`.
    fn remove(&self, address: u64, event: &EventFd);
}

/// A function on the bus.
///
/// Called on vCPU threads with the function's lock held. Offsets and widths are the guest's choice; the access never runs over the end of the space it is in.
pub trait PciFunction: Send {
    /// Reads configuration space: `offset` is below 4096.
    fn read_config(&mut self, offset: usize, data: &mut [u8]);
    /// Writes configuration space: `offset` is below 4096.
    fn write_config(&mut self, offset: usize, data: &[u8]);
    /// Where the function's memory answers now: first address and length; none while it does not.
    fn memory(&self) -> Option<(u64, u64)>;
    /// Reads the function's memory.
    fn read_memory(&mut self, offset: u64, data: &mut [u8]);
    /// Writes the function's memory.
    fn write_memory(&mut self, offset: u64, data: &[u8]);
}
