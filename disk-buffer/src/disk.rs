//! DRAFT of signatures (bodies are being written):
//!
//! ```ignore
//! pub struct Disks;                                   // all disks of a machine, in order
//! impl Disks {
//!     pub fn open(options: &[DiskOptions]) -> Result<Disks, DiskError>;   // locks, sizes, one path twice, ...
//!     pub fn iter(&self) -> impl Iterator<Item=&Arc<Disk>>;  pub fn get(&self, DiskIndex) -> Option<&Arc<Disk>>; pub fn is_empty()
//!     // the same calls as Disk's, over all disks:
//!     pub fn identities(&self) -> Vec<Identity>;
//!     pub fn plan(&self, theirs: &[Identity]) -> Result<Vec<Plan>, DiskError>;   // at the primary; Err: refused, with reason (number of disks, or a disk's Refusal)
//!     pub fn seal(&self, epoch) -> Vec<Arc<Vec<DiskWrite>>> ; release(&Commit); unseal(epoch); unlink(); struck_out(); shut();
//!     pub fn join(&self, plans: &[Plan], primary: &[Identity]); stage(epoch, Vec<DiskWrite>); commit(epoch); discard_uncommitted(); activate(bound)
//! }
//! impl Disk {
//!     pub fn index(&self) -> DiskIndex;
//!     pub fn info(&self) -> BlockInfo;
//!     pub fn identity(&self) -> Identity;             // serde; part of Hello / Welcome
//!     pub fn attach(&self, hooks: Hooks);             // Hooks { room: Fn(), pressure: Fn(), event: Fn(DiskEvent) }, called with no lock of ours held, on the disk's threads
//!     // -- the guest's requests (vmm::BlockBackend is these four + info)
//!     pub fn submit(&self, request: BlockRequest) -> Result<(), Full>;
//!     pub fn take_done(&self, into: &mut Vec<BlockDone>);
//!     pub fn event(&self) -> RawFd;
//!     // -- primary
//!     pub fn start_primary(&self) -> Result<(), DiskError>;            // cold start; refuses a copy that no guest may start from
//!     pub fn begin_copy(self: &Arc<Self>, plan: &Plan, standby: &Identity) -> Result<Copy, DiskError>;   // AFTER the standby has answered its join
//!     pub fn seal(&self, epoch: Epoch) -> Result<Arc<Vec<DiskWrite>>, DiskError>;   // in the pause; epoch 1 carries everything since Copy::record
//!     pub fn unseal(&self, epoch: Epoch);                              // capture failed: back into the open epoch
//!     pub fn release(&self, commit: &Commit) -> Result<(), DiskError>;
//!     pub fn peer_durable(&self, epoch: Epoch);                        // the standby's DiskEvent::Durable { epoch } by way of a control message (per disk)
//!     pub fn unlink(&self);                                            // link lost while copying (standby not recorded)
//!     pub fn struck_out(&self) -> Result<(), DiskError>;               // standby recorded and now struck out: new data generation; parked requests get their IOERR
//!     pub fn shut(&self);                                              // fenced: nothing more is submitted
//!     // -- standby
//!     pub fn join(&self, plan: &Plan, primary: &Identity) -> Result<(), DiskError>;  // durably Copying before the first byte changes; BEFORE the standby answers
//!     pub fn sync_block(&self, offset: u64, data: Option<&[u8]>) -> Result<(), DiskError>;  // a SYNC block of 4096 bytes (None: zeros), clipped to the disk; may block for room
//!     pub fn stage(&self, epoch: Epoch, writes: Vec<DiskWrite>) -> Result<(), DiskError>;
//!     pub fn commit(&self, epoch: Epoch) -> Result<(), DiskError>;     // applies, in order, in the background; blocks while the backlog is over its bound
//!     pub fn discard_uncommitted(&self);
//!     pub fn activate(&self, bound: Duration) -> Result<(), DiskError>;  // finishes applying, new generation durable; then it is an unprotected primary
//! }
//! pub enum DiskEvent { Durable { disk, epoch } (standby: tell the primary), GiveUp { disk, error } (protected primary: end the link, the standby takes over), Failed { disk, error } (standby: it must be struck out) }
//! impl Copy {   // pulled by the epoch thread between parts of memory
//!     pub fn next(&mut self) -> Result<Option<CopyPiece>, DiskError>;  // CopyPiece { offset, len, data: Option<Box<[u8]>> } (None: zeros); up to 1 MiB, whole 4 KiB blocks but at the disk's end; None: pass is over
//!     pub fn next_pass(&mut self) -> u64;    // what was written meanwhile becomes the next pass; returns its bytes
//!     pub fn record(&mut self);              // every write from now on is recorded for epoch 1, and the last pass begins (then next() until None, then the first epoch may end)
//! }
//! ```
