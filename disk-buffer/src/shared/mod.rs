//! Shared mode: one device that both hosts can open, and that only the node that runs the guest writes to.
//!
//! Lives here: what is held and what may go ([`hold`], pure), what reads see of it ([`overlay`], pure), what a standby keeps ([`kept`], pure); around them the device and the guest's requests ([`disk`]), and what the node does with it in either role ([`primary`], [`standby`]). Not here: shutting an old owner out at the storage
//! (`failover::fence`), without which none of this is safe: a node that slept between a commit and its writes would write over newer data.
//!
//! # The way of a write
//!
//! ```text
//! guest writes --> held, answered at once --> sealed with its epoch --> sent, committed --> handed out --> on the device --> the standby is told, and lets go of it
//!                  |                                                    ^
//!                  +-- its reads see it (overlay) ----------------------|---------------------->
//!                                      strike-out, unlink: all held writes, in order
//! ```
//!
//! - *Unprotected* a write goes straight to the device, unless older ones are still on their way there (after a strike-out or a takeover): then behind them. It is answered when the device has it.
//! - *From the switch to holding on* (`DiskCopy::record`) it is answered at once: the disk has a volatile write cache, as every disk that takes flushes. What went straight through before is waited for before
//!   epoch 1 is sealed, so a takeover finds it on the device.
//! - *After its epoch's commit* it is handed out, in the guest's order where writes overlap. When all of an epoch is on the device the standby is told (`Message::Issued`): when a
//!   block device has answered, whose memory is its own; of a file when it was made durable as well (once for all epochs that it has by then), because what this host has not told its file system dies with it.
//! - *A flush* is answered when every write before it is on the device and the device's cache is flushed. If one of those is in the open epoch, the epoch ends as for waiting output. A flush in flight when an
//!   epoch is captured is part of the device's state; whoever takes over executes it again, behind what it took over.
//! - *A discard* takes effect when it is carried out; until then its range keeps what it has.
//! - *A standby* opens the device for reading and has no descriptor that could write. It keeps every committed epoch's writes until it is told that they are on the device.
//! - *A takeover* makes what was kept the overlay, of each place only the newest version (`newest.rs` says why), and hands it out in order while the guest runs. Some of it is on the device already: writing it again,
//!   before anything newer, changes nothing, because the old owner is shut out. What was not committed is dropped.
//!
//! **Bounds.** What is held (committed or not) keeps within [`crate::record::Limits`], over all disks 64 MiB: then the guest's next write waits in its ring. A standby keeps no more than that either: it commits the next
//! epoch when there is room, and the primary's word makes room.
//!
//! **Never through a page cache.** A host's cache could hold old data, or write late what the host has no right to any more. All requests are direct; one that is not aligned is carried out by reading, changing and writing
//! whole blocks, by the node that may write, one request in a block at a time.
//!
//! # What is promised
//!
//! The same as in mirror mode, for one copy of the data; the table is in [`crate`].
//!
//! | when | what becomes of held writes |
//! |---|---|
//! | the link is lost before the standby is recorded | handed out, then straight through |
//! | struck out (the record names no standby) | the same, and only then: an unanswered request to the arbiter keeps them held |
//! | the standby takes over | it hands out what is committed; this node's are dropped ([`hold::Hold::drop_all`]) |
//! | the device fails at a protected primary | they stay held, the node gives up its role, and the standby, which keeps them and may have a working path, takes over |
//! | the device fails at a node that is alone, under a write that was answered | lost, as from a disk's cache: the guest's flushes and everything after fail, and no standby is brought in |
//! | the guest ends in good order, and the record names no standby | nothing more is taken, and they are carried out ([`crate::Disk::finish`]): before the reservation is given up, so that none of them meets another node's |
//! | the device says that this node is shut out | dropped: the guest is stopped at once |

pub(crate) mod disk;
pub mod hold;
pub mod kept;
mod newest;
pub mod overlay;
pub(crate) mod primary;
mod standby;
