//! A whole cluster in one thread and in no time: three nodes, an arbiter, a network and clients, all decided by one seed.
//!
//! Lives here: the world around the pure cores of `failover`, `primary` and `replica`, the real `net-buffer` and the rules of `disk-buffer`; what goes wrong in it
//! ([`faults`]); and what must never be seen ([`oracle`]). Not here: KVM, sockets, threads, real time. Defends S1, S2, S3, S4 and S6 (of S6,
//! that a dirty set is not lost), for memory and disks.
//!
//! A run: node 0 boots the VM, the others are standbys; clients send operations and retransmit until answered; faults strike until
//! [`HEAL_NS`]; from there on everything works again, and until [`END_NS`] somebody must be serving if anybody can.

mod disk;
pub mod faults;
pub mod guest;
mod messages;
mod network;
mod operator;
pub mod oracle;
mod primary_shell;
mod process;
mod rng;
mod shared;
mod standby_shell;
mod world;

pub use faults::{Plan, Sabotage};
pub use oracle::{Stats, Violation};
pub use world::World;

/// A millisecond in nanoseconds.
pub const MS: u64 = 1_000_000;
/// Nodes in the cluster.
pub const NODES: usize = 3;
/// No fault strikes, and none goes on, from here.
pub const HEAL_NS: u64 = 80 * MS;
/// The run ends. The time since [`HEAL_NS`] is enough to detect, to ask and to take over several times.
pub const END_NS: u64 = 180 * MS;

/// Runs one seed.
///
/// # Errors
/// The first thing seen that must not be.
pub fn run(seed: u64, sabotage: Option<Sabotage>) -> Result<Stats, Violation> {
    World::new(seed, sabotage).run()
}
