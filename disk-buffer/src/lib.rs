//! The disks of a protected guest: image files and block devices, each host's copy of them, and what is known about the difference between the copies.
//!
//! Lives here: opening an image ([`image`]), reading and writing it in order ([`engine`]), what may differ from the other copy ([`changes`]), what has to be copied when a standby joins
//! ([`plan()`]), recording writes for their epoch, copying while the guest runs, applying what is committed, and the [`Disk`] that ties these together for one virtual disk. Not here: the guest's
//! ring (`vmm`), the wire (`checkpoint`), who decides that something is committed (`primary`, `replica`), who may run (`failover`). Knows no KVM.
//!
//! Guards S1 (a write reaches nobody else's eyes before its epoch's commit), S2 (the standby's copy holds whole epochs when a guest starts from it), S4 (below) and S5 (a request owns its data; nothing
//! here touches guest memory).
//!
//! # What is promised
//!
//! *Mirror mode: a flush is answered when everything the guest had submitted before it is on the primary's medium* (fdatasync). While protected, whatever the guest says about it leaves only when the standby holds the
//! epoch, with all its writes.
//!
//! *Shared mode: a flush is answered when everything the guest had submitted before it is on the shared device* (its cache flushed); while protected, that is after the commit of its epoch. How: [`shared`].
//!
//! | what fails | what the guest finds, mirror mode | shared mode |
//! |---|---|---|
//! | one host, at any moment | everything of every committed epoch, hence every write that anybody was told of; requests in flight are executed once more | the same: what the dead host had not written, the standby has kept and writes |
//! | both hosts lose power | on the primary's disk every flushed write. The standby's copy may be up to [`disk::SETTLE_PERIOD`] behind and is refused as a start (`Following`): start the primary's host | every flushed write, from either host |
//! | the standby's host loses power after it took over | every write flushed since, and after at most one settling (it begins at the activation) every write before as well; a copy that had not settled is refused as a start | every flushed write |
//! | the primary's disk, while protected | nothing: the request stays in flight, the primary gives up its role, the standby executes it on its own disk | the primary's way to the device: the same, if the standby's way works; the device itself: errors, as from a real disk |
//! | the primary's disk, unprotected | an input/output error, as from a real disk. A flush that failed once fails for good: what was lost is not known (Linux drops the pages) | the same; where a write failed that the guest had its answer to, every later request fails |
//! | space for the image (ENOSPC, EDQUOT) | nothing but time: the write waits, and reads and other writes go on. A standby fails after [`disk::FULL_BOUND`], a protected primary gives up its role after twice that; a lone node, and a standby that is taking over, wait for ever | the guest waits: the other host has the same device |
//! | the standby's disk | nothing: the standby says so, is struck out, and the guest runs on unprotected | found at the takeover: the standby only reads until then |
//! | a disk or log that hangs without an error | as an error, after [`disk::HANG_BOUND`] without an answer: the primary gives up its role, or the standby's copy fails and it is struck out; a standby that is taking over fails as well, and no guest starts from its copy; unprotected, the guest waits | the same for the primary's way to the device |
//! | the change log's medium | as the disk itself: without the log a write must not be made | there is none |
//!
//! What a standby applies is in regions that the primary's log marked before the epoch was sent ([`marking`]): both hosts may stop. A returning host's uncommitted writes are in regions that its own log marked before they were made; the resync overwrites them before its copy counts as consistent. A copy half overwritten says so
//! durably before its first byte changes, and no guest starts from it.
//!
//! # The order of calls
//!
//! Primary: [`Disk::attach`] -> [`Disk::start_primary`] -> requests. A standby comes: identities are exchanged, [`plan()`], at the standby [`Disk::join`], then at the primary [`Disk::begin_copy`], passes over the
//! [`DiskCopy`], [`DiskCopy::record`], the last regions -> in each pause [`Disk::seal`] and [`Disks::marking`] -> [`Marking::wait`] before the epoch's end is sent -> [`Disk::release`] per commit, [`Disk::peer_durable`] per report. Link lost before the standby was recorded: [`Disk::unlink`]; struck out:
//! [`Disk::struck_out`]. Fenced: [`Disk::shut`].
//!
//! Standby: [`Disk::attach`] -> [`Disk::join`] -> [`Disk::sync_block`] -> [`Disk::stage`] and [`Disk::commit`] per epoch; [`DiskEvent::Durable`] goes to the primary -> [`Disk::activate`] after the grant, before the machine starts. From then it is a
//! primary without a standby. A link lost: [`Disk::discard_uncommitted`]; then the next [`Disk::join`].
//!
//! The same calls for a shared disk; besides, older owners are shut out before [`Disk::start_primary`] and [`Disk::activate`], with the host's own lock taken ([`Disk::claim`]), and [`DiskEvent::Issued`] goes the other way: to the
//! standby's [`Disk::issued`].

pub mod changes;
pub mod copy;
pub mod disk;
pub mod disks;
mod emptiness;
pub mod engine;
mod error;
mod front;
mod full;
mod hang;
mod hooks;
mod identity;
pub mod image;
pub mod marking;
mod medium;
pub mod mirror;
mod options;
pub mod plan;
pub mod record;
pub mod regions;
mod request;
pub mod shared;

pub use copy::{CopyPiece, DiskCopy};
pub use disk::Disk;
pub use disks::Disks;
pub use error::{DiskError, Full};
pub use hooks::{DiskEvent, Hooks};
pub use identity::{CopyState, DataId, Identity, SharedDevice};
pub use marking::Marking;
pub use options::{Cache, DiskOptions, Fenced, Mode};
pub use plan::{FullReason, Plan, Refusal, plan};
