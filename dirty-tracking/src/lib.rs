//! Which pages changed: KVM's dirty ring, KVM's dirty bitmap and the VMM's own device writes, behind one trait.
//!
//! Lives here: the set of dirty frames, the trackers that fill it, and the choice between them. Not here: when to collect (the
//! primary's epoch loop) and what to do with the pages. Guards S5 (complete capture) and S6 (a failed epoch gives its set back).

mod bitmap;
mod device;
mod hot;
mod merged;
mod raw;
mod ring;
mod set;
mod tracker;
mod write_log;

pub use merged::{Merged, Prepared, Support, prepare, probe};
pub use set::{DirtySet, Layout, Slot};
pub use tracker::{Choice, DirtyTracker, Kind, TrackingError};
pub use write_log::WriteLog;
