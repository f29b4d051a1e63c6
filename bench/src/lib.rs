//! Benchmarks: what is measured, what it is compared with in the same run, and whether the goal is met.
//!
//! Lives here: the report (rows and pictures) and the measurements, each in a module of its own. Not here: any mechanism that is measured; the
//! benchmarks drive the crates and the program that users drive. Machines are shared and noisy, so every figure stands beside a baseline of the same run.
//!
//! | figure | module | drives |
//! |---|---|---|
//! | pause against its floor | [`pause`], [`writer_guest`] | `primary::capture` on a `vmm::Machine` |
//! | request/response | [`answers`] | two nodes in a world of namespaces ([`rig`]) |
//! | redis-benchmark | [`throughput`] | the same |
//! | CPU of an idle guest | [`idle`] | the same |
//! | replication stream | [`stream`], [`plain_tcp`] | `checkpoint` and `transport` over loopback |
//! | disks against a plain file | [`disks`] | `disk_buffer::Disk` |
//! | crash | [`crash`], [`probe`] | two nodes, one killed |

pub mod answers;
pub mod chart;
pub mod crash;
pub mod disks;
pub mod error;
pub mod idle;
pub mod pause;
pub mod plain_tcp;
pub mod probe;
pub mod report;
pub mod rig;
pub mod stats;
pub mod stream;
pub mod throughput;
pub mod writer_guest;
