//! The engine's thread: takes what may go from the queue, asks the ring, gives answers out.
//!
//! Not here: order ([`super::queue`]), what a request needs ([`super::step`]). A ring that fails ends the thread: everything in flight is answered with EIO.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Instant;

use io_uring::{IoUring, opcode, squeue, types};

use crate::engine::faults::{Asked, Faults, Strike};
use crate::engine::full::Full;
use crate::engine::queue::Id;
use crate::engine::step::{Step, Took};
use crate::engine::update::{Update, Went};
use crate::engine::{Answer, Reply, Shared};
use crate::image::Image;

/// Requests that the kernel works on at a time: what a fast disk needs to be busy. More wait in the queue.
const STEPS: usize = 128;
/// Entries of the ring: the steps, one call of the change log, the wake-up.
const ENTRIES: u32 = 256;

const WAKE: u64 = u64::MAX;
const LOG: u64 = u64::MAX - 1;
const RETRY: u64 = u64::MAX - 2;

pub(super) struct Worker {
    shared: Arc<Shared>,
    image: Arc<Image>,
    log: Option<RawFd>,
    faults: Option<Arc<dyn Faults>>,
    ring: IoUring,
    steps: HashMap<u64, Step>,
    full: Full,
    update: Option<Update>,
    wake_armed: bool,
    /// Answers that faults gave in the system's place.
    struck: Vec<(u64, i32)>,
    /// A flush failed: what was lost is not known, so no flush will ever succeed again.
    sync_failed: Option<i32>,
}

impl Worker {
    pub(super) fn new(shared: Arc<Shared>, image: Arc<Image>, log: Option<RawFd>, faults: Option<Arc<dyn Faults>>) -> io::Result<Worker> {
        let ring = IoUring::builder().setup_coop_taskrun().setup_taskrun_flag().build(ENTRIES).or_else(|_| IoUring::new(ENTRIES))?;
        Ok(Worker {
            shared,
            image,
            log,
            faults,
            ring,
            steps: HashMap::new(),
            full: Full::new(),
            update: None,
            wake_armed: false,
            struck: Vec::new(),
            sync_failed: None,
        })
    }

    pub(super) fn run(mut self) {
        while self.begin() {
            if let Err(error) = self.turn() {
                tracing::error!(%error, "io_uring fails; the disk cannot be used any more");
                self.fail_all();
                return;
            }
        }
    }

    /// Takes from the queue what may go now and asks for it. `false`: the engine is to end, and nothing is in flight.
    fn begin(&mut self) -> bool {
        let mut new = Vec::new();
        let refused;
        let given_up;
        {
            let mut core = self.shared.lock();
            // What is held for want of space is none of the kernel's business.
            let under_way = self.steps.len() - self.full.held();
            while under_way + new.len() < STEPS {
                let Some(id) = core.queue.next_ready() else { break };
                if let Some(job) = core.waiting.remove(&id) {
                    new.push((id, job));
                }
            }
            refused = std::mem::take(&mut core.refused);
            if let (Some(fd), None, None) = (self.log, &self.update, core.log_failed)
                && let Some(sectors) = core.marks.as_mut().and_then(crate::changes::Marks::begin_update)
            {
                self.update = Some(Update::new(fd, sectors));
                core.updating = true;
            }
            given_up = if std::mem::take(&mut core.give_up_full) || core.stop { self.full.give_up(core.stop) } else { Vec::new() };
            if core.stop && core.queue.is_empty() && self.update.is_none() && refused.is_empty() {
                core.broken = true;
                return false;
            }
            core.awake = false;
        }
        // As if they had been asked once more.
        self.struck.extend(given_up.into_iter().map(|id| (id, -libc::ENOSPC)));
        for (job, errno) in refused {
            (job.reply)(Err(errno));
        }
        for (id, job) in new {
            let step = Step::new(job, &self.image);
            if step.is_nothing() {
                self.struck.push((id.0, 0));
            }
            self.steps.insert(id.0, step);
            if !self.struck.iter().any(|(struck, _)| *struck == id.0) {
                self.ask(id.0);
            }
        }
        self.ask_log();
        true
    }

    fn strike(&self, asked: Asked) -> Strike {
        self.faults.as_ref().map_or(Strike::Pass, |faults| faults.strike(asked))
    }

    fn ask(&mut self, id: u64) {
        let Some(step) = self.steps.get(&id) else { return };
        let asked = step.asked();
        if let (Some(errno), Asked::Sync) = (self.sync_failed, asked) {
            self.struck.push((id, -errno));
            return;
        }
        let strike = self.strike(asked);
        if let Strike::Fail(errno) = strike {
            self.struck.push((id, -errno));
            return;
        }
        let image = Arc::clone(&self.image);
        let Some(step) = self.steps.get_mut(&id) else { return };
        let entry = step.entry(&image, strike).user_data(id);
        self.push(&entry);
    }

    fn ask_log(&mut self) {
        let Some(update) = &self.update else { return };
        if update.in_flight {
            return;
        }
        if let Strike::Fail(errno) = self.strike(if update.is_sync() { Asked::LogSync } else { Asked::LogWrite }) {
            self.struck.push((LOG, -errno));
            // Asked once, like a call of the system: a second question would have its answer taken for that of the next.
            if let Some(update) = &mut self.update {
                update.in_flight = true;
            }
            return;
        }
        if let Some(entry) = self.update.as_mut().map(|update| update.entry().user_data(LOG)) {
            self.push(&entry);
        }
    }

    fn push(&mut self, entry: &squeue::Entry) {
        // SAFETY: what the entry points to is heap memory owned by a step, the update, or `full` (a constant that lives as long as the ring); it is neither moved nor freed nor touched until the completion has been
        // taken (steps leave the map in `finish`, after their last completion; `fail_all` leaks them).
        let mut pushed = unsafe { self.ring.submission().push(entry) };
        while pushed.is_err() {
            // The ring has more places than there can be calls at a time, so it is full only while the kernel has not taken them over.
            if self.ring.submit().is_err() {
                std::thread::yield_now();
            }
            // SAFETY: as above.
            pushed = unsafe { self.ring.submission().push(entry) };
        }
    }

    /// Submits, waits for at least one answer, and takes all that are there.
    fn turn(&mut self) -> io::Result<()> {
        if !self.wake_armed {
            self.wake_armed = true;
            let entry = opcode::PollAdd::new(types::Fd(self.shared.wake.as_raw_fd()), libc::POLLIN as u32).build().user_data(WAKE);
            self.push(&entry);
        }
        if self.full.held() > 0 && !self.full.armed {
            self.full.armed = true;
            let entry = opcode::Timeout::new(&raw const *self.full.period).build().user_data(RETRY);
            self.push(&entry);
        }
        let wait = usize::from(self.struck.is_empty());
        match self.ring.submit_and_wait(wait) {
            Ok(_) => {}
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)) => {}
            Err(error) => return Err(error),
        }
        let mut answers = std::mem::take(&mut self.struck);
        answers.extend(self.ring.completion().map(|answer| (answer.user_data(), answer.result())));
        let mut finished = Vec::new();
        for (id, result) in answers {
            match id {
                WAKE => {
                    self.wake_armed = false;
                    // Nothing to read is no news: the queue is looked at in any case.
                    let _ = self.shared.wake.read();
                }
                LOG => self.log_answer(result),
                RETRY => {
                    self.full.armed = false;
                    self.ask_again();
                }
                id => self.answer(id, result, &mut finished),
            }
        }
        self.finish(finished);
        Ok(())
    }

    fn answer(&mut self, id: u64, result: i32, finished: &mut Vec<(Id, Reply, Answer)>) {
        let Some(step) = self.steps.get_mut(&id) else { return };
        let took = if step.is_nothing() { Took::Done(Ok(None)) } else { step.took(result) };
        match took {
            Took::More => {
                self.shared.lock().queue.moved(Id(id));
                self.ask(id);
            }
            Took::Done(Err(errno)) if self.full.holds(id, step.asked(), errno) => {
                let mut core = self.shared.lock();
                core.queue.moved(Id(id));
                core.full_since.get_or_insert_with(Instant::now);
            }
            Took::Done(answer) => {
                // A hole may be the space that others wait for, and what was held and has found its own may not be the only one.
                let space = answer.is_ok() && matches!(step.asked(), Asked::Zero(..));
                if let (true, Err(errno)) = (step.is_sync(), &answer) {
                    self.sync_failed.get_or_insert(*errno);
                }
                if let Some(step) = self.steps.remove(&id) {
                    finished.push((Id(id), step.into_reply(), answer));
                }
                if self.full.finished(id) || space {
                    self.space();
                }
            }
        }
    }

    /// There may be space again.
    fn space(&mut self) {
        if self.full.is_empty() {
            self.shared.lock().full_since = None;
        } else {
            self.ask_again();
        }
    }

    fn ask_again(&mut self) {
        for id in self.full.ask_again() {
            self.ask(id);
        }
    }

    fn finish(&mut self, finished: Vec<(Id, Reply, Answer)>) {
        if finished.is_empty() {
            return;
        }
        {
            let mut core = self.shared.lock();
            finished.iter().for_each(|(id, _, _)| core.queue.complete(*id));
        }
        for (_, reply, answer) in finished {
            reply(answer);
        }
    }

    fn log_answer(&mut self, result: i32) {
        let Some(update) = self.update.as_mut() else { return };
        let went = update.took(result);
        {
            let mut core = self.shared.lock();
            core.log_answers += 1;
            core.updating = matches!(went, Went::More);
        }
        match went {
            Went::More => self.ask_log(),
            Went::Durable => {
                self.update = None;
                let mut core = self.shared.lock();
                if let Some(number) = core.marks.as_mut().map(crate::changes::Marks::update_durable) {
                    core.queue.marked(number);
                }
            }
            Went::Failed(errno) => {
                tracing::error!(error = %io::Error::from_raw_os_error(errno), "the change log cannot be written; nothing more is written to the disk");
                self.update = None;
                let mut core = self.shared.lock();
                core.log_failed = Some(errno);
                for id in core.queue.give_up_unmarked() {
                    if let Some(job) = core.waiting.remove(&id) {
                        core.refused.push((job, errno));
                    }
                }
            }
        }
    }

    /// Answers everything with EIO. The kernel may still use the memory of what it was asked: that is given up, not freed.
    fn fail_all(mut self) {
        let mut replies: Vec<Reply> = Vec::new();
        {
            let mut core = self.shared.lock();
            core.broken = true;
            replies.extend(core.waiting.drain().map(|(_, job)| job.reply));
            replies.extend(core.refused.drain(..).map(|(job, _)| job.reply));
        }
        for (_, step) in self.steps.drain() {
            replies.push(step.give_up());
        }
        std::mem::forget(self.update.take());
        for reply in replies {
            reply(Err(libc::EIO));
        }
    }
}
