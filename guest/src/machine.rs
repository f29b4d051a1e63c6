//! What the commands need of the machine they run on, so that they can be tested without one.

use crate::dirtier::Plan;
use crate::disk::DiskControl;
use crate::stamp::Corrupt;

/// The guest's clock as it looked to the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Uptime {
    /// Monotonic nanoseconds since the guest's start.
    pub ns: u64,
    /// How often the clock was seen to go back, on vCPU 0.
    pub backward_steps: u64,
}

/// What the dirtier has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StampStatus {
    /// The plan in force.
    pub plan: Plan,
    /// Pages stamped since the guest's start, over all vCPUs.
    pub stamped: u64,
    /// Pages the region has.
    pub region_pages: u64,
    /// Guest physical address of the region's first page.
    pub region_start: u64,
}

/// Numbers for `INFO`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Connections open now.
    pub connections: u64,
    /// Frames received.
    pub frames_in: u64,
    /// Frames sent.
    pub frames_out: u64,
    /// Commands executed.
    pub commands: u64,
}

/// Why `CHECK` has no count to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckError {
    /// A page is not what it should be.
    Corrupt(Corrupt),
    /// A vCPU did not stop dirtying in time, so nothing was compared.
    Busy,
}

/// The machine under the commands.
pub trait Machine {
    /// The monotonic clock.
    fn uptime(&mut self) -> Uptime;
    /// Wall clock, microseconds since 1970; since the guest's start where the host gives none.
    fn unix_micros(&mut self) -> u64;
    /// Puts a plan in force; its pages are within [`StampStatus::region_pages`]. `false`: a vCPU did not stop in time, and the old plan stays.
    fn dirty(&mut self, plan: Plan) -> bool;
    /// Checks every stamped page.
    ///
    /// # Errors
    /// [`CheckError`].
    fn check(&mut self) -> Result<u64, CheckError>;
    /// Burns this share of each working vCPU, 0-100.
    fn burn(&mut self, percent: u8);
    /// What the dirtier has done.
    fn stamp_status(&mut self) -> StampStatus;
    /// Number of disks.
    fn disks(&mut self) -> usize;
    /// A disk by its place; `None` past the last.
    fn disk(&mut self, index: usize) -> Option<&mut dyn DiskControl>;
    /// vCPUs that run.
    fn vcpus(&mut self) -> u32;
    /// Numbers for `INFO`.
    fn counters(&mut self) -> Counters;
}
