//! The virtio-pci transport, modern (virtio 1.2, section 4.1): one function for each device, one memory BAR, MSI-X.
//!
//! Lives here: identification and capabilities, the registers behind the BAR ([`common`] is the one that sets a device up), saved state ([`state`]). Not here: what registers
//! do (the core), configuration space as such and message interrupts ([`crate::devices::pci`]), ioctls. On the fast path this code does not run at all: kicks ring
//! doorbells, an eventfd for each queue at an address of its own, and interrupts are one eventfd for each vector. Guards S7.
//!
//! There is no INTx pin: a driver that does not enable MSI-X finds the ISR status, which it can poll. Linux, the BSDs and Windows all enable it.

pub mod common;
mod function;
pub mod state;

#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use function::{BAR_SIZE, VirtioPci};
pub use state::PciState;
