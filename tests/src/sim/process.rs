//! One process of a node: the cores and what the shell keeps around them.

use std::collections::VecDeque;

use failover::{Config, Detector, Node};
use net_buffer::{Limits, NetBuffer};
use primary::core::{Pipeline, Policy};
use replica::core::Standby;
use types::block::DiskWrite;
use types::{Epoch, Generation, Output};

use super::MS;
use super::faults::Plan;
use super::guest::{Guest, PAGES};
use super::messages::{Part, Todo, name};

/// A captured epoch that is not committed yet.
#[derive(Debug)]
pub(super) struct Capture {
    pub generation: Generation,
    pub epoch: Epoch,
    pub mask: u8,
    pub pages: [u64; PAGES],
    pub output: Vec<Output>,
    pub writes: Vec<DiskWrite>,
    /// The guest wrote to the shared disk in it.
    pub shared: bool,
}

/// The standby's shell, for one link.
#[derive(Debug)]
pub(super) struct Holding {
    pub link: usize,
    pub core: Standby,
    /// Guest memory.
    pub pages: [u64; PAGES],
    /// First parts of the epoch that is coming in.
    pub partial: Option<Part>,
    /// Committed and not applied.
    pub staged: VecDeque<(Epoch, [Part; 2])>,
    /// Output of the newest committed epochs, to be sent again on activation.
    pub resend: VecDeque<Vec<Output>>,
    /// Sabotage: what was committed at the decision to activate.
    pub frozen: Option<(Epoch, [u64; PAGES])>,
}

impl Holding {
    /// Puts a part's pages into guest memory.
    pub(super) fn put(pages: &mut [u64; PAGES], part: &Part) {
        for (at, page) in pages.iter_mut().enumerate() {
            if part.mask & 1 << at != 0 {
                *page = part.pages[at];
            }
        }
    }

    /// Guest memory with everything committed applied.
    pub(super) fn finished(&self) -> [u64; PAGES] {
        let mut pages = self.pages;
        for part in self.staged.iter().flat_map(|(_, parts)| parts) {
            Holding::put(&mut pages, part);
        }
        pages
    }
}

/// How a process stands in the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    Dead,
    Running,
    /// Until that time.
    Hung(u64),
}

#[derive(Debug)]
pub(super) struct Process {
    pub life: Life,
    pub instance: u64,
    pub node: Node,
    pub pipeline: Pipeline,
    pub buffer: NetBuffer,
    pub guest: Option<Guest>,
    /// The life of the VM that the guest belongs to.
    pub vm_life: u64,
    pub guest_held: bool,
    /// The gate is closed for a standby.
    pub gated: bool,
    pub captures: Vec<Capture>,
    /// The guest has written to the shared disk in the open epoch.
    pub held_shared: bool,
    /// The grant for which older owners are being shut out of the shared disk.
    pub fencing: Option<Generation>,
    /// The grant with which they were.
    pub fenced_in: Generation,
    /// The sender is busy until then.
    pub sender_free_ns: u64,
    pub holding: Option<Holding>,
    pub link: Option<usize>,
    pub detector: Option<Detector>,
    pub heartbeat_ns: u64,
    pub connect_ns: u64,
    pub checked_ns: u64,
    pub tick_at_ns: u64,
    pub todo: VecDeque<Todo>,
    /// The guest ended on purpose, here or at the primary that said so.
    pub ended: bool,
}

impl Process {
    pub(super) fn new(slot: usize, instance: u64, now_ns: u64, plan: &Plan) -> Process {
        let config = Config {
            request_timeout_ns: 12 * MS,
            backoff_first_ns: MS,
            backoff_max_ns: 8 * MS,
            watch_ns: 40 * MS,
            fence: plan.shared,
            ..Config::new(name(slot), instance)
        };
        Process {
            life: Life::Running,
            instance,
            node: Node::new(config),
            pipeline: Pipeline::new(policy()),
            buffer: buffer(plan.buffer_frames),
            guest: None,
            vm_life: 0,
            guest_held: false,
            gated: false,
            captures: Vec::new(),
            held_shared: false,
            fencing: None,
            fenced_in: Generation(0),
            sender_free_ns: 0,
            holding: None,
            link: None,
            detector: None,
            heartbeat_ns: 0,
            connect_ns: 0,
            checked_ns: now_ns,
            tick_at_ns: u64::MAX,
            todo: VecDeque::new(),
            ended: false,
        }
    }

    pub(super) fn runs(&self) -> bool {
        self.life == Life::Running
    }
}

/// The default policy on the simulation's scale: links are slower than real ones, and runs are short.
pub(super) fn policy() -> Policy {
    Policy { longest_ns: 8 * MS, sample_min_ns: 2 * MS, sample_max_ns: 30 * MS, max_in_flight: 3, ..Policy::default() }
}

pub(super) fn buffer(frames: usize) -> NetBuffer {
    let limits = Limits { soft_frames: frames.div_ceil(2), hard_frames: frames, ..Limits::default() };
    match NetBuffer::new(limits, || {}) {
        Ok(buffer) => buffer,
        Err(error) => panic!("the simulation's own limits are wrong: {error}"),
    }
}
