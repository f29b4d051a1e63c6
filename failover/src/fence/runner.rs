//! The thread that fences, again and again until it has worked, so that the role thread goes on with its heartbeats, the arbiter and its signals.
//!
//! Lives here: one thread for each grant, the pauses between attempts, its end when nobody waits for it any more. Not here: how older owners are shut out ([`Fence`]) and what follows ([`crate::core`]). Guards S3: nothing but an Ok of
//! the fence becomes [`FenceNews::Done`], and news of another grant are told apart by its generation.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, unbounded};
use types::{Generation, VmId};

use super::{Fence, FenceError, Grant, Owner, Predecessor};
use crate::arbiter::{Arbiter, Swap};
use crate::record::Record;

/// The first pause after an attempt that failed; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The longest pause: an operator who mends something waits no longer than this for it to be noticed.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// How long the end of a node waits for what it has under way: a command is killed within its own poll and a turn of the scheduler.
const LAST_WAIT: Duration = Duration::from_secs(1);
/// How often that wait looks.
const LAST_POLL: Duration = Duration::from_millis(2);
/// How often a pause looks whether it is still wanted.
const POLL: Duration = Duration::from_millis(20);

/// The generation of a VM's first grant.
const FIRST: Generation = Generation(1);

/// What the thread tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FenceNews {
    /// No older owner can write any more.
    Done {
        /// The grant that it was done for.
        generation: Generation,
    },
    /// An attempt failed.
    Failed {
        /// The grant that it was made for.
        generation: Generation,
        /// Why, and what to do.
        why: String,
        /// Whether no further attempt is made.
        gave_up: bool,
    },
}

/// Makes an arbiter of the fencing thread's own, so that neither waits for the other's question.
pub type ArbiterMaker = Arc<dyn Fn() -> Box<dyn Arbiter> + Send + Sync>;

/// Fences for one node.
pub struct FenceRunner {
    fence: Arc<dyn Fence>,
    vm: VmId,
    arbiter: ArbiterMaker,
    first_pause: Duration,
    tell: Sender<FenceNews>,
    news: Receiver<FenceNews>,
    wanted: Arc<AtomicBool>,
    /// The grant that was fenced for last, and whether it is known that there never was another owner.
    granted: Option<(Owner, bool)>,
    thread: Option<JoinHandle<()>>,
}

impl FenceRunner {
    /// With this fence; `arbiter` makes the arbiter that the grant is confirmed with.
    #[must_use]
    pub fn new(fence: Arc<dyn Fence>, vm: VmId, arbiter: ArbiterMaker) -> FenceRunner {
        let (tell, news) = unbounded();
        FenceRunner { fence, vm, arbiter, first_pause: FIRST_PAUSE, tell, news, wanted: Arc::default(), granted: None, thread: None }
    }

    /// With another first pause after a failure.
    #[must_use]
    pub fn with_first_pause(mut self, pause: Duration) -> FenceRunner {
        self.first_pause = pause;
        self
    }

    /// Where the news come. One [`FenceNews::Done`] at most for each grant, bounded by the attempts.
    #[must_use]
    pub fn news(&self) -> &Receiver<FenceNews> {
        &self.news
    }

    /// Starts to fence for the grant that `record` is; whatever was under way for an earlier one is given up.
    ///
    /// # Errors
    /// The host gives no thread.
    pub fn start(&mut self, record: Record, old: Vec<Predecessor>) -> std::io::Result<()> {
        self.stop();
        let wanted = Arc::new(AtomicBool::new(true));
        self.wanted = Arc::clone(&wanted);
        let me = Owner {
            vm: self.vm.clone(),
            node: record.owner.clone(),
            host: record.host,
            instance: record.instance,
            generation: record.generation,
        };
        // The first generation is granted once, and only where there was no record.
        let alone = record.generation == FIRST && old.is_empty();
        self.granted = Some((me.clone(), alone));
        let attempt = Attempts {
            fence: Arc::clone(&self.fence),
            me,
            grant: RecordGrant { arbiter: Arc::clone(&self.arbiter), record, wanted },
            old,
            first_pause: self.first_pause,
            tell: self.tell.clone(),
        };
        self.thread = Some(std::thread::Builder::new().name("fence".to_owned()).spawn(move || attempt.run())?);
        Ok(())
    }

    /// The event of the role machine that these news are.
    #[must_use]
    pub fn event(news: FenceNews) -> crate::core::Event {
        match news {
            FenceNews::Done { generation } => crate::core::Event::Fenced { generation },
            FenceNews::Failed { generation, why, .. } => crate::core::Event::FenceFailed { generation, why },
        }
    }

    /// Gives up what is under way.
    pub fn stop(&self) {
        self.wanted.store(false, Ordering::Release);
    }

    /// The guest has ended in good order, and the record names no standby that could still take it over: see [`Fence::release`].
    pub fn release(&self) {
        if let Some((me, alone)) = &self.granted {
            self.fence.release(me, *alone);
        }
    }
}

impl Drop for FenceRunner {
    /// Waits for the thread, so that no command outlives the node that started it; not for long, because a device that hangs must not keep the process from ending.
    fn drop(&mut self) {
        self.stop();
        let Some(thread) = self.thread.take() else { return };
        let until = Instant::now() + LAST_WAIT;
        while !thread.is_finished() && Instant::now() < until {
            std::thread::sleep(LAST_POLL);
        }
    }
}

struct Attempts {
    fence: Arc<dyn Fence>,
    me: Owner,
    grant: RecordGrant,
    old: Vec<Predecessor>,
    first_pause: Duration,
    tell: Sender<FenceNews>,
}

impl Attempts {
    fn run(self) {
        let generation = self.me.generation;
        types::fault::reach(types::fault::Point::BeforeFence);
        let mut pause = self.first_pause;
        while self.grant.wanted() {
            let started = Instant::now();
            match self.fence.shut_out(&self.old, &self.me, &self.grant) {
                Ok(()) => {
                    tracing::info!(%generation, ms = started.elapsed().as_millis(), "older owners are shut out of the shared disks");
                    let _ = self.tell.send(FenceNews::Done { generation });
                    return;
                }
                Err(error) => {
                    let gave_up = error.is_final();
                    tracing::error!(%generation, %error, "older owners are not shut out of the shared disks: nobody runs the guest");
                    let _ = self.tell.send(FenceNews::Failed { generation, why: error.to_string(), gave_up });
                    if gave_up {
                        return;
                    }
                }
            }
            self.wait(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn wait(&self, pause: Duration) {
        let until = Instant::now() + pause;
        while self.grant.wanted() && Instant::now() < until {
            std::thread::sleep(POLL.min(pause));
        }
    }
}

/// A grant as the arbiter's record has it.
struct RecordGrant {
    arbiter: ArbiterMaker,
    record: Record,
    wanted: Arc<AtomicBool>,
}

impl Grant for RecordGrant {
    /// By a swap of the record for itself, not by a read: storage may answer a read from a copy that is older than the question (NFS).
    fn confirm(&self) -> Result<(), FenceError> {
        match (self.arbiter)().swap(Some(&self.record), &self.record)? {
            Swap::Done => Ok(()),
            Swap::Lost(None) => Err(FenceError::NoRecord),
            Swap::Lost(Some(now)) => Err(FenceError::Over { owner: now.owner, generation: now.generation }),
        }
    }

    fn wanted(&self) -> bool {
        self.wanted.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests;
