//! The sender thread of one link: encodes what was captured and posts it into the standby's slots.
//!
//! Lives here: the way of a filled [`CaptureBuffer`] onto the link and back to the pool. Not here: the encoding (`checkpoint`), the bytes' way
//! (`transport`). Guards S2's sending half (an epoch's last part is posted only after all others) and S6 (what cannot be sent is reported, never dropped).

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use checkpoint::{EncodedPart, Encoder, EncoderConfig, EpochInput, TailRef, codec, encode};
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender};
use disk_buffer::{DiskError, Marking};
use transport::pump::LINK_POLL;
use transport::{DataSender, Piece, RegionId, RegionRef};
use types::Generation;

use crate::capture::{CaptureBuffer, Captured, Frozen};
use crate::core::Event;
use crate::error::PrimaryError;
use crate::shared::{News, Shared};

/// How long completions are waited for while no new job is there.
const REAP: Duration = Duration::from_millis(1);

/// Slots that the first copy uses at most at a time: it would touch all of the standby's staging otherwise.
const SYNC_SLOTS: u32 = 8;

/// Work for the sender.
pub(crate) enum Job {
    /// A stretch of the first copy.
    Sync { buffer: CaptureBuffer, index: u32, generation: Generation },
    /// An epoch.
    Epoch(Box<Captured>),
}

impl Job {
    pub(crate) fn into_buffer(self) -> CaptureBuffer {
        match self {
            Job::Sync { buffer, .. } => buffer,
            Job::Epoch(captured) => captured.buffer,
        }
    }
}

/// The other threads' hold on a link's sender.
pub(crate) struct LinkHandle {
    pub(crate) jobs: Sender<Job>,
    pub(crate) gone: Arc<AtomicBool>,
    /// The generation whose epochs go this way.
    pub(crate) generation: Generation,
}

/// What the thread is made from.
pub(crate) struct SenderThread {
    pub(crate) shared: Arc<Shared>,
    pub(crate) link: u64,
    pub(crate) jobs: Receiver<Job>,
    pub(crate) give: Sender<CaptureBuffer>,
    pub(crate) gone: Arc<AtomicBool>,
    pub(crate) data: Box<dyn DataSender>,
    pub(crate) delta_pages: usize,
}

struct Posted {
    ticket: u64,
    frozen: Frozen,
    metas: Vec<RegionRef>,
}

/// The link's end and what it knows: posts encoded parts.
struct Poster {
    data: Box<dyn DataSender>,
    gone: Arc<AtomicBool>,
    pieces: Vec<Piece>,
    /// By a buffer's index: its arena and its meta region as this link knows them.
    regions: Vec<Option<(RegionId, RegionId)>>,
    ticket: u64,
}

struct Sending {
    shared: Arc<Shared>,
    give: Sender<CaptureBuffer>,
    poster: Poster,
    encoder: Encoder,
    part: EncodedPart,
    posted: VecDeque<Posted>,
    machine: Vec<u8>,
    tail: Vec<u8>,
}

/// Runs until the queue is closed or the link fails; gives every buffer back.
pub(crate) fn run(thread: SenderThread) {
    let SenderThread { shared, link, jobs, give, gone, data, delta_pages } = thread;
    let config = EncoderConfig { slot_bytes: data.geometry().slot_bytes as usize, delta_pages };
    let encoder = match Encoder::new(config) {
        Ok(encoder) => encoder,
        Err(error) => {
            shared.tell(News::LinkLost { link, cause: error.to_string() });
            drain(&jobs, &give);
            return;
        }
    };
    let part = encoder.part_buffer();
    let poster = Poster { data, gone, pieces: Vec::new(), regions: Vec::new(), ticket: 0 };
    let (posted, machine, tail) = (VecDeque::new(), Vec::new(), Vec::new());
    let mut sending = Sending { shared: Arc::clone(&shared), give: give.clone(), poster, encoder, part, posted, machine, tail };
    if let Err(error) = sending.work(&jobs) {
        shared.tell(News::LinkLost { link, cause: error.to_string() });
    }
    let Sending { poster, posted, .. } = sending;
    // The link reads no posted buffer any more once it is closed.
    drop(poster);
    for posted in posted {
        drop(posted.metas);
        let _ = give.send(posted.frozen.thaw());
    }
    drain(&jobs, &give);
}

/// Gives back the buffers of jobs that will not be done, until nobody can send any more.
fn drain(jobs: &Receiver<Job>, give: &Sender<CaptureBuffer>) {
    for job in jobs {
        let _ = give.send(job.into_buffer());
    }
}

impl Sending {
    fn work(&mut self, jobs: &Receiver<Job>) -> Result<(), PrimaryError> {
        loop {
            let job = if self.posted.is_empty() {
                match jobs.recv_timeout(LINK_POLL) {
                    Ok(job) => Some(job),
                    Err(RecvTimeoutError::Timeout) => None,
                    Err(RecvTimeoutError::Disconnected) => return Ok(()),
                }
            } else {
                jobs.try_recv().ok()
            };
            let idle = job.is_none();
            match job {
                Some(Job::Sync { buffer, index, generation }) => self.sync(buffer, index, generation)?,
                Some(Job::Epoch(captured)) => self.epoch(*captured)?,
                None if self.poster.gone.load(Ordering::Acquire) => return Ok(()),
                None => {}
            }
            if !self.posted.is_empty() {
                self.reap(if idle { REAP } else { Duration::ZERO })?;
            }
        }
    }

    fn sync(&mut self, buffer: CaptureBuffer, index: u32, generation: Generation) -> Result<(), PrimaryError> {
        let frozen = buffer.freeze();
        let mut metas = Vec::new();
        let result = self
            .encoder
            .sync_part(generation, index, &frozen.gfns, frozen.pages(), &mut self.part)
            .map_err(PrimaryError::from)
            .and_then(|()| self.poster.post(&self.part, &frozen, &mut metas, SYNC_SLOTS));
        self.posted.push_back(Posted { ticket: self.poster.ticket, frozen, metas });
        result
    }

    fn epoch(&mut self, captured: Captured) -> Result<(), PrimaryError> {
        let begin = Instant::now();
        let Captured { machine, buffer, sealed, writes, mut marking, memory, generation, epoch, .. } = captured;
        let frozen = buffer.freeze();
        let mut metas = Vec::new();
        self.machine.clear();
        self.tail.clear();
        let output = sealed.as_ref().map_or(&[][..], net_buffer::Sealed::output);
        let encoded = codec::encode_into(&machine, &mut self.machine)
            .and_then(|_| {
                let tail = TailRef { machine: &self.machine, output, memory: memory.as_ref(), disks: &writes };
                tail.encode_into(&mut self.tail)
            })
            .map_err(PrimaryError::from);
        drop((sealed, writes));
        // Said before the last part can be posted, so that no commit can overtake it.
        self.shared.raise(Event::Sent { generation, epoch });
        let result = encoded.and_then(|_| {
            let input = EpochInput { generation, epoch, gfns: &frozen.gfns, arena: frozen.pages(), tail: &self.tail };
            let mut parts = self.encoder.epoch(input);
            let mut bytes = 0;
            while parts.next_part(&mut self.part)? {
                bytes += self.part.wire_bytes() as u64;
                if parts.is_done() {
                    marked(&mut marking, &self.shared, &self.poster.gone)?;
                }
                self.poster.post(&self.part, &frozen, &mut metas, u32::MAX)?;
                types::fault::reach(types::fault::Point::MidSend);
            }
            Ok(bytes)
        });
        self.posted.push_back(Posted { ticket: self.poster.ticket, frozen, metas });
        match result {
            Ok(bytes) => {
                self.shared.stats.sent(bytes, begin.elapsed().as_nanos() as u64);
                Ok(())
            }
            Err(error) => {
                self.shared.raise(Event::SendFailed { generation, epoch });
                Err(error)
            }
        }
    }

    /// Gives back the buffers whose bytes have left.
    fn reap(&mut self, timeout: Duration) -> Result<(), PrimaryError> {
        let Some(ticket) = self.poster.data.completed(timeout)? else { return Ok(()) };
        self.shared.progressed();
        while self.posted.front().is_some_and(|posted| posted.ticket <= ticket) {
            if let Some(posted) = self.posted.pop_front() {
                drop(posted.metas);
                let _ = self.give.send(posted.frozen.thaw());
            }
        }
        Ok(())
    }
}

/// Waits until this host's change logs say where the epoch's writes may make the copies differ. Bounded by the link: one on which nothing is committed for too
/// long is given up, and then nothing is sent.
fn marked(marking: &mut Marking, shared: &Shared, gone: &AtomicBool) -> Result<(), PrimaryError> {
    let marked = wait_marked(gone, |bound| marking.wait(bound));
    if let Err(PrimaryError::Disk(error)) = &marked {
        // Before the link's loss, which would have this node go on alone with a disk that takes no write.
        shared.tell(News::DiskFailed { reason: error.to_string() });
    }
    marked
}

fn wait_marked(gone: &AtomicBool, mut wait: impl FnMut(Duration) -> Result<bool, DiskError>) -> Result<(), PrimaryError> {
    while !wait(LINK_POLL)? {
        if gone.load(Ordering::Acquire) {
            return Err(transport::TransportError::PeerGone { cause: transport::GoneCause::ClosedHere }.into());
        }
    }
    Ok(())
}

impl Poster {
    /// Posts the encoded part, with its own bytes copied into registered memory and the raw pages gathered from the arena.
    fn post(&mut self, part: &EncodedPart, frozen: &Frozen, metas: &mut Vec<RegionRef>, slots: u32) -> Result<(), PrimaryError> {
        let (arena, meta) = self.regions_of(frozen)?;
        let (head, scratch) = (part.head(), part.scratch());
        let at = metas.last().map_or(0, |last| last.offset() + last.len());
        let mut claim = frozen.meta.claim(at..at + head.len() + scratch.len())?;
        claim[..head.len()].copy_from_slice(head);
        claim[head.len()..].copy_from_slice(scratch);
        metas.push(claim.freeze());
        let scratch_at = at + head.len();
        self.pieces.clear();
        self.pieces.push(Piece { region: meta, offset: at, len: head.len() });
        self.pieces.extend(part.pieces().iter().map(|piece| match piece {
            encode::Piece::Arena(range) => Piece { region: arena, offset: frozen.arena.offset() + range.start, len: range.len() },
            encode::Piece::Scratch(range) => Piece { region: meta, offset: scratch_at + range.start, len: range.len() },
        }));
        let slot = loop {
            if let Some(slot) = self.data.acquire_among(slots, LINK_POLL)? {
                break slot;
            }
            if self.gone.load(Ordering::Acquire) {
                return Err(transport::TransportError::PeerGone { cause: transport::GoneCause::ClosedHere }.into());
            }
        };
        self.ticket += 1;
        self.data.post_write(slot, 0, &self.pieces)?;
        self.data.post_end(slot, part.wire_bytes() as u32, self.ticket)?;
        self.data.flush()?;
        Ok(())
    }

    fn regions_of(&mut self, frozen: &Frozen) -> Result<(RegionId, RegionId), PrimaryError> {
        if self.regions.len() <= frozen.index {
            self.regions.resize(frozen.index + 1, None);
        }
        if let Some(known) = self.regions[frozen.index] {
            return Ok(known);
        }
        let arena = self.data.register(Arc::clone(frozen.arena.region()))?;
        let meta = self.data.register(Arc::clone(&frozen.meta))?;
        self.regions[frozen.index] = Some((arena, meta));
        Ok((arena, meta))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epochs_end_waits_for_the_change_log_and_no_longer_than_its_link() {
        let gone = AtomicBool::new(false);
        let mut asked = 0;
        let wait = |_| {
            asked += 1;
            Ok(asked == 3)
        };
        wait_marked(&gone, wait).unwrap();
        assert_eq!(asked, 3);
        let hangs = |_| {
            gone.store(true, Ordering::Release);
            Ok(false)
        };
        assert!(matches!(wait_marked(&gone, hangs), Err(PrimaryError::Transport(_))));
        let limits = |_| Err(DiskError::Limits("as an example"));
        assert!(matches!(wait_marked(&AtomicBool::new(false), limits), Err(PrimaryError::Disk(_))));
    }
}
