//! The machine as a stock kernel finds it: kernels, processors, memory, devices, power. Each scenario has guests of its own and proves several things with
//! each boot, since a boot is what costs.

pub mod cpus;
pub mod devices;
pub mod disks;
pub mod kernels;
pub mod memory;
pub mod power;

use crate::error::LabError;

/// Fails with what was expected unless `good`.
fn expect(good: bool, what: impl FnOnce() -> String) -> Result<(), LabError> {
    if good { Ok(()) } else { Err(LabError::Found(what())) }
}
