//! What the end-to-end tests share: a lab (two hosts, the nodes on them, an arbiter), clients with their judge, and what goes wrong on purpose.
//!
//! Built on the demo's own world, processes, clients and histories (`lockstep::demo`). Lives here: nothing of the system under test, and no
//! assertion that is one test's alone. The program itself is built by the tests (`tests/program`), so `cargo test` alone is enough.
//!
//! These tests need root (or the right to make network namespaces), /dev/kvm and /dev/net/tun. Where something is missing they pass by and say
//! what; with `LOCKSTEP_REQUIRE_KVM=1` they fail instead.

pub mod clients;
pub mod disks;
pub mod lab;
pub mod node;
pub mod proxy;
pub mod watchdog;

pub use clients::{Judged, Load};
pub use disks::Image;
pub use lab::{Guest, Lab};
pub use node::{Node, Spec};
pub use watchdog::Watchdog;
