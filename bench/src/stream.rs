//! The replication stream against plain TCP over loopback: bytes of incompressible pages a second, from the captured pages to the commit, and on to guest memory.
//!
//! The stages are the real ones, on threads as the nodes have them: encode and post (the primary's sender), receive, verify, assemble and commit (the standby's
//! data thread), commits in (the primary's control thread), pages into guest memory (the standby's apply thread). Not here: plain TCP ([`crate::plain_tcp`]).

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use checkpoint::tail::EpochTail;
use checkpoint::{
    Assembler, CompleteEpoch, EncodedPart, Encoder, EncoderConfig, EpochInput, GuestMap, Message, Part, Piece, Record, message,
};
use crossbeam::channel::{Receiver, Sender, bounded, unbounded};
use rand::{RngCore, SeedableRng, rngs::StdRng};
use transport::{
    ControlReceiver, ControlSender, DataReceiver, DataSender, Geometry, PrimaryLink, Region, RegionId, RegionRef, Slot, Staging,
    StandbyLink, tcp,
};
use types::{Epoch, Generation, Gfn, PAGE_SIZE};
use vm_memory::{Bytes, GuestAddress};
use vmm::{GuestMemory, Machine};

use crate::error::BenchError;
use crate::plain_tcp;
use crate::report::{Goal, Report};
use crate::rig::Context;
use crate::stats::median;
use crate::writer_guest::{MEMORY_BYTES, machine};

/// Pages of an epoch: the default dirty budget.
const EPOCH_PAGES: usize = 4096;
/// Epochs on their way at most, and buffers: the node's defaults.
const IN_FLIGHT: u64 = 4;
const BUFFERS: usize = IN_FLIGHT as usize + 1;
/// Pages remembered as bases for deltas: the node's default of 64 MiB.
const DELTA_PAGES: usize = 16_384;
/// The standby's staging for a guest of this size: slots of 1 MiB for all of it, and 64 more.
const GEOMETRY: Geometry = Geometry { slots: (MEMORY_BYTES as usize / PAGE_SIZE).div_ceil(255) as u32 + 64, slot_bytes: 1 << 20 };
/// Machine state of one vCPU.
const MACHINE_BYTES: usize = 11 << 10;
const GENERATION: Generation = Generation(1);
/// What takes longer than this is stuck.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long completions are waited for at a time.
const REAP: Duration = Duration::from_millis(1);

/// Adds the figures.
///
/// # Errors
/// The link fails, or what arrives is not what was sent.
pub fn measure(context: &Context<'_>, report: &mut Report) -> Result<(), BenchError> {
    let machine = machine()?;
    let (mut primary, mut standby) = ends(&machine)?;
    let epochs = if context.quick { 12 } else { 24 };
    let (mut committed, mut applied, mut plain) = (Vec::new(), Vec::new(), Vec::new());
    // The first round touches all memory and is not counted.
    for round in 0..=context.rounds(7, 3) {
        context.go_on()?;
        let (bytes, to_commit) = run(&mut primary, &mut standby, epochs, false)?;
        let (_, to_memory) = run(&mut primary, &mut standby, epochs, true)?;
        let arenas: Vec<&[u8]> = primary.buffers.iter().map(|buffer| &buffer.arena[..]).collect();
        let bare = plain_tcp::send(&arenas, bytes)?;
        if round > 0 {
            let mib_s = |time: Duration| bytes as f64 / (1 << 20) as f64 / time.as_secs_f64();
            committed.push(mib_s(to_commit));
            applied.push(mib_s(to_memory));
            plain.push(mib_s(bare));
        }
    }
    let plain = Some(median("plain TCP", &plain)?);
    let name = "stream: encode, send, verify, commit (base: TCP)";
    report.add(name, median(name, &committed)?, "MiB/s", plain, Goal::RatioAtLeast(0.7));
    let name = "stream: the same and applied (base: TCP)";
    report.add(name, median(name, &applied)?, "MiB/s", plain, Goal::RatioAtLeast(0.7));
    Ok(())
}

/// One captured epoch's memory.
struct Buffer {
    arena: RegionRef,
    meta: Arc<Region>,
    arena_id: RegionId,
    meta_id: RegionId,
}

/// The primary's end.
struct PrimaryEnd {
    data: Box<dyn DataSender>,
    /// Nothing is sent, but the connection closes with it.
    _control_tx: Arc<dyn ControlSender>,
    control: Box<dyn ControlReceiver>,
    encoder: Encoder,
    part: EncodedPart,
    buffers: Vec<Buffer>,
    gfns: Vec<Gfn>,
    epoch: u64,
    ticket: u64,
    pieces: Vec<transport::Piece>,
}

/// The standby's end.
struct StandbyEnd {
    data: Box<dyn DataReceiver>,
    control: Arc<dyn ControlSender>,
    /// Nothing is received, but the connection closes with it.
    _control_rx: Box<dyn ControlReceiver>,
    assembler: Assembler<Slot>,
    map: GuestMap,
    memory: Arc<GuestMemory>,
}

fn ends(machine: &Machine) -> Result<(PrimaryEnd, StandbyEnd), BenchError> {
    let (primary, standby) = link()?;
    let mut data = primary.data;
    let mut random = StdRng::seed_from_u64(7);
    let buffers = (0..BUFFERS).map(|_| buffer(data.as_mut(), &mut random)).collect::<Result<_, _>>()?;
    let encoder = Encoder::new(EncoderConfig { slot_bytes: GEOMETRY.slot_bytes as usize, delta_pages: DELTA_PAGES })?;
    let part = encoder.part_buffer();
    let gfns = (0..EPOCH_PAGES as u64).map(Gfn).collect();
    let (epoch, ticket, pieces) = (0, 0, Vec::new());
    let (control, _control_tx) = (primary.control_rx, primary.control_tx);
    let primary = PrimaryEnd { data, _control_tx, control, encoder, part, buffers, gfns, epoch, ticket, pieces };
    let (assembler, map) = (Assembler::new(GENERATION), GuestMap::from_regions([(0, MEMORY_BYTES)]));
    let memory = Arc::clone(machine.memory());
    let StandbyLink { data, control_tx: control, control_rx: _control_rx } = standby;
    Ok((primary, StandbyEnd { data, control, _control_rx, assembler, map, memory }))
}

fn link() -> Result<(PrimaryLink, StandbyLink), BenchError> {
    let listener = tcp::Listener::bind("127.0.0.1:0")?;
    let pending = tcp::connect(listener.local_addr(), PATIENCE)?;
    let accepted = listener.accept(PATIENCE)?.ok_or_else(|| BenchError::Stream("nobody connected".to_owned()))?;
    std::thread::scope(|scope| {
        let standby = scope.spawn(move || accepted.open_data(Staging::new(GEOMETRY)?));
        let primary = pending.open_data(GEOMETRY)?;
        Ok((primary, standby.join().map_err(|_| BenchError::Thread)??))
    })
}

/// A buffer full of random bytes, which no encoding makes smaller.
fn buffer(data: &mut dyn DataSender, random: &mut StdRng) -> Result<Buffer, BenchError> {
    let mut arena = Region::new(EPOCH_PAGES * PAGE_SIZE)?.claim_all()?;
    random.fill_bytes(&mut arena);
    let arena = arena.freeze();
    let meta = Region::new(EPOCH_PAGES * PAGE_SIZE)?;
    let (arena_id, meta_id) = (data.register(Arc::clone(arena.region()))?, data.register(Arc::clone(&meta))?);
    Ok(Buffer { arena, meta, arena_id, meta_id })
}

/// Streams `epochs` epochs; the bytes that went over the wire, and the time until the last one was committed, or with `apply` was in guest memory.
fn run(primary: &mut PrimaryEnd, standby: &mut StandbyEnd, epochs: u64, apply: bool) -> Result<(u64, Duration), BenchError> {
    let last = Epoch(primary.epoch + epochs);
    let committed = AtomicU64::new(primary.epoch);
    let (said, heard) = bounded(1);
    let PrimaryEnd { control, .. } = primary;
    let (job, jobs) = unbounded();
    let job = apply.then_some(job);
    let StandbyEnd { data, control: control_tx, assembler, map, memory, .. } = standby;
    let begin = Instant::now();
    std::thread::scope(|scope| {
        let applying = scope.spawn(|| apply_all(&jobs, map, memory));
        let receiving = scope.spawn(|| receive(data.as_mut(), control_tx.as_ref(), assembler, map, last, job));
        let hearing = scope.spawn(|| hear(control.as_mut(), &committed, last, &said));
        let mut sending = Sending {
            data: primary.data.as_mut(),
            encoder: &mut primary.encoder,
            part: &mut primary.part,
            pieces: &mut primary.pieces,
            ticket: primary.ticket,
            posted: VecDeque::new(),
        };
        let sent = sending.epochs(&primary.buffers, &primary.gfns, primary.epoch, last, &committed, &heard);
        primary.ticket = sending.ticket;
        primary.epoch = last.0;
        hearing.join().map_err(|_| BenchError::Thread)??;
        receiving.join().map_err(|_| BenchError::Thread)??;
        applying.join().map_err(|_| BenchError::Thread)??;
        Ok((sent?, begin.elapsed()))
    })
}

/// The sender thread's work.
struct Sending<'a> {
    data: &'a mut dyn DataSender,
    encoder: &'a mut Encoder,
    part: &'a mut EncodedPart,
    pieces: &'a mut Vec<transport::Piece>,
    ticket: u64,
    /// Tickets and the claims that they free.
    posted: VecDeque<(u64, Vec<RegionRef>)>,
}

impl Sending<'_> {
    fn epochs(
        &mut self,
        buffers: &[Buffer],
        gfns: &[Gfn],
        done: u64,
        last: Epoch,
        committed: &AtomicU64,
        heard: &Receiver<()>,
    ) -> Result<u64, BenchError> {
        let mut bytes = 0;
        for epoch in done + 1..=last.0 {
            self.await_commit(committed, epoch.saturating_sub(IN_FLIGHT), heard)?;
            // The buffer's last epoch is committed, so its bytes have left; its completion may not have been looked at.
            while self.posted.len() >= buffers.len() {
                self.reap(REAP)?;
            }
            bytes += self.epoch(&buffers[epoch as usize % buffers.len()], gfns, Epoch(epoch))?;
            self.reap(Duration::ZERO)?;
        }
        self.await_commit(committed, last.0, heard)?;
        while !self.posted.is_empty() {
            self.reap(REAP)?;
        }
        Ok(bytes)
    }

    /// Waits for the commit, moving what is posted along.
    fn await_commit(&mut self, committed: &AtomicU64, wanted: u64, heard: &Receiver<()>) -> Result<(), BenchError> {
        let begin = Instant::now();
        while committed.load(Ordering::Acquire) < wanted {
            if self.posted.is_empty() {
                let _ = heard.recv_timeout(REAP);
            } else {
                self.reap(REAP)?;
            }
            if begin.elapsed() > PATIENCE {
                return Err(BenchError::Stream(format!("epoch {wanted} is not committed within {PATIENCE:?}")));
            }
        }
        Ok(())
    }

    fn reap(&mut self, timeout: Duration) -> Result<(), BenchError> {
        if let Some(ticket) = self.data.completed(timeout)? {
            while self.posted.front().is_some_and(|posted| posted.0 <= ticket) {
                self.posted.pop_front();
            }
        }
        Ok(())
    }

    fn epoch(&mut self, buffer: &Buffer, gfns: &[Gfn], epoch: Epoch) -> Result<u64, BenchError> {
        let mut tail = Vec::new();
        let state = EpochTail { machine: vec![0x5a; MACHINE_BYTES], ..EpochTail::default() };
        state.encode_into(&mut tail).map_err(|error| BenchError::Stream(error.to_string()))?;
        let mut parts = self.encoder.epoch(EpochInput { generation: GENERATION, epoch, gfns, arena: &buffer.arena, tail: &tail });
        let (mut bytes, mut at, mut metas) = (0, 0, Vec::new());
        while parts.next_part(self.part)? {
            let (head, scratch) = (self.part.head(), self.part.scratch());
            let mut claim = buffer.meta.claim(at..at + head.len() + scratch.len())?;
            claim[..head.len()].copy_from_slice(head);
            claim[head.len()..].copy_from_slice(scratch);
            metas.push(claim.freeze());
            let scratch_at = at + head.len();
            self.pieces.clear();
            self.pieces.push(transport::Piece { region: buffer.meta_id, offset: at, len: head.len() });
            self.pieces.extend(self.part.pieces().iter().map(|piece| match piece {
                Piece::Arena(range) => {
                    transport::Piece { region: buffer.arena_id, offset: buffer.arena.offset() + range.start, len: range.len() }
                }
                Piece::Scratch(range) => transport::Piece { region: buffer.meta_id, offset: scratch_at + range.start, len: range.len() },
            }));
            at = scratch_at + scratch.len();
            let wire = self.part.wire_bytes();
            let slot = self.data.acquire(PATIENCE)?.ok_or_else(|| BenchError::Stream("no staging slot becomes free".to_owned()))?;
            self.ticket += 1;
            self.data.post_write(slot, 0, self.pieces)?;
            self.data.post_end(slot, wire as u32, self.ticket)?;
            self.data.flush()?;
            bytes += wire as u64;
        }
        self.posted.push_back((self.ticket, metas));
        Ok(bytes)
    }
}

/// The control thread's work: commits in.
fn hear(control: &mut dyn ControlReceiver, committed: &AtomicU64, last: Epoch, said: &Sender<()>) -> Result<(), BenchError> {
    while committed.load(Ordering::Acquire) < last.0 {
        let bytes = control.receive(PATIENCE)?.ok_or_else(|| BenchError::Stream("no commit comes".to_owned()))?;
        match message::decode(&bytes) {
            Ok(Message::Commit { epoch, .. }) => committed.store(epoch.0, Ordering::Release),
            other => return Err(BenchError::Stream(format!("{other:?} came instead of a commit"))),
        }
        // Full: it has been told already.
        let _ = said.try_send(());
    }
    Ok(())
}

/// The data thread's work: verify, assemble, commit, hand on.
fn receive(
    data: &mut dyn DataReceiver,
    control: &dyn ControlSender,
    assembler: &mut Assembler<Slot>,
    map: &GuestMap,
    last: Epoch,
    apply: Option<Sender<CompleteEpoch<Slot>>>,
) -> Result<(), BenchError> {
    let wrong = |error: &dyn std::fmt::Display| BenchError::Stream(error.to_string());
    loop {
        let slot = data.receive(PATIENCE)?.ok_or_else(|| BenchError::Stream("no part comes".to_owned()))?;
        let admitted = {
            let part = Part::parse(&slot, map).map_err(|error| wrong(&error))?;
            assembler.admit(&part).map_err(|error| wrong(&error))?
        };
        let Some(complete) = assembler.keep(slot, admitted).map_err(|error| wrong(&error))? else { continue };
        let epoch = complete.epoch;
        let commit = message::encode(&Message::Commit { generation: GENERATION, epoch }).map_err(|error| wrong(&error))?;
        control.send(&commit)?;
        if let Some(apply) = &apply {
            apply.send(complete).map_err(|_| BenchError::Thread)?;
        }
        if epoch == last {
            return Ok(());
        }
    }
}

/// The apply thread's work: pages into guest memory, slots back.
fn apply_all(jobs: &Receiver<CompleteEpoch<Slot>>, map: &GuestMap, memory: &GuestMemory) -> Result<(), BenchError> {
    for complete in jobs {
        for slot in complete.parts {
            let part = Part::reparse(&slot, map).map_err(|error| BenchError::Stream(error.to_string()))?;
            for record in part.records() {
                let Record::Raw(gfn, page) = record else {
                    return Err(BenchError::Stream(format!("page {} did not come raw: the bytes were to be incompressible", record.gfn())));
                };
                memory.write_slice(page, GuestAddress(gfn.address())).map_err(|error| BenchError::Stream(error.to_string()))?;
            }
        }
    }
    Ok(())
}
