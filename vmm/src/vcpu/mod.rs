//! vCPUs: the thread that runs each, how it is stopped, and its state.
//!
//! Lives here: [`seat`] (what other threads see of a vCPU thread, and the barrier), [`thread`] (the loop around `KVM_RUN`), [`state`] (capture and
//! restore). Not here: the VM-wide state, the devices. Guards S5.

pub(crate) mod seat;
pub(crate) mod state;
pub(crate) mod thread;
pub(crate) mod tsc;

pub use state::{Ending, VcpuState};
