//! One node of a lab: what it is started with, and the events tests wait for, each with its bound. Not here: the process itself
//! (`lockstep::demo::process`).

use std::ffi::OsString;
use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use lockstep::demo::process::{NodeProcess, ProcessError};
use lockstep::demo::world::{Host, TAP};
use types::event::{NodeEvent, NodeEventKind, Protection, Role};
use types::{Epoch, Generation};

/// Longest wait for anything a node does: all of it takes far below a second on an idle machine, and a test machine is not idle.
pub const BOUND: Duration = Duration::from_secs(30);

/// Waits here are never cancelled; the watchdog ends a test that hangs.
static NEVER: AtomicBool = AtomicBool::new(false);

/// Which node to start, and how it differs from the ordinary.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Where it runs.
    pub host: Host,
    /// Its name in the arbiter's record.
    pub name: String,
    /// `lockstep run` instead of `lockstep standby`.
    pub primary: bool,
    /// Where it looks for a standby once it runs the guest; [`None`]: nowhere.
    pub standby: Option<SocketAddr>,
    /// TAP device on its host.
    pub tap: String,
    /// `LOCKSTEP_FAULT`: the moment at which it dies.
    pub fault: Option<String>,
    /// The arbiter's file, if another than the lab's.
    pub arbiter: Option<OsString>,
    /// Values of `--disk`, in order.
    pub disks: Vec<String>,
    /// Values that replace the lab's own, by option.
    pub with: Vec<(String, String)>,
    /// Options without a value.
    pub flags: Vec<String>,
}

impl Spec {
    /// A primary on `host` that is protected by a standby on the other host.
    #[must_use]
    pub fn primary(host: Host, name: &str) -> Spec {
        Spec {
            host,
            name: name.to_owned(),
            primary: true,
            standby: Some(host.other().replication_address()),
            tap: TAP.to_owned(),
            fault: None,
            arbiter: None,
            disks: Vec::new(),
            with: Vec::new(),
            flags: Vec::new(),
        }
    }

    /// A standby on `host`, which after its activation looks for a standby on the other host.
    #[must_use]
    pub fn standby(host: Host, name: &str) -> Spec {
        Spec { primary: false, ..Spec::primary(host, name) }
    }

    /// Dies at the `turn`th time that `point` is reached (see `types::fault`).
    #[must_use]
    pub fn dying(self, point: &str, turn: u32) -> Spec {
        Spec { fault: Some(format!("{point}:{turn}")), ..self }
    }

    /// With this image as its next disk; `more` are further keys, each with a comma before it.
    #[must_use]
    pub fn disk(mut self, image: &super::Image, more: &str) -> Spec {
        self.disks.push(format!("path={}{more}", image.path().display()));
        self
    }

    /// With the option `--key`, which has no value.
    #[must_use]
    pub fn flag(mut self, key: &str) -> Spec {
        self.flags.push(format!("--{key}"));
        self
    }

    /// With the option `--key value` instead of the lab's.
    #[must_use]
    pub fn with(mut self, key: &str, value: &str) -> Spec {
        self.with.push((key.to_owned(), value.to_owned()));
        self
    }
}

/// A standby's activation, as it told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Activation {
    /// When, CLOCK_MONOTONIC nanoseconds.
    pub at_ns: u64,
    /// The new generation.
    pub generation: Generation,
    /// What it continues from.
    pub epoch: Epoch,
}

/// What one of two nodes in a contest came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The primary struck its standby out and goes on alone.
    WentOn,
    /// The standby took over.
    TookOver,
}

/// A running node. Killed when dropped.
#[derive(Debug)]
pub struct Node(pub(crate) NodeProcess);

impl Deref for Node {
    type Target = NodeProcess;
    fn deref(&self) -> &NodeProcess {
        &self.0
    }
}

impl DerefMut for Node {
    fn deref_mut(&mut self) -> &mut NodeProcess {
        &mut self.0
    }
}

/// A primary that runs its guest alone by the arbiter's word, and in which generation.
fn alone(event: &NodeEvent) -> Option<Generation> {
    match &event.what {
        NodeEventKind::State { role: Role::Primary, protection: Protection::Unprotected, generation, .. } => Some(*generation),
        _ => None,
    }
}

fn activation(event: &NodeEvent) -> Option<Activation> {
    match event.what {
        NodeEventKind::Activated { generation, epoch, .. } => Some(Activation { at_ns: event.at_ns, generation, epoch }),
        _ => None,
    }
}

impl Node {
    /// Waits for what `pick` finds.
    ///
    /// # Panics
    /// It did not come within [`BOUND`], or the node ended.
    pub fn until<T>(&mut self, awaited: &str, pick: impl FnMut(&NodeEvent) -> Option<T>) -> T {
        self.0.wait_for(awaited, BOUND, &NEVER, pick).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Waits until it listens, or its guest runs.
    pub fn until_ready(&mut self) {
        self.until("ready", |e| matches!(e.what, NodeEventKind::Ready).then_some(()));
    }

    /// Waits until it is a primary whose standby is committed and current, after `since_ns`; the generation.
    pub fn until_protected(&mut self, since_ns: u64) -> Generation {
        self.until("protected", |e| match e.what {
            NodeEventKind::State { role: Role::Primary, protection: Protection::Protected, generation, .. } if e.at_ns > since_ns => {
                Some(generation)
            }
            _ => None,
        })
    }

    /// Waits until it goes on alone in a generation above `above`; that generation.
    pub fn until_alone(&mut self, above: Generation) -> Generation {
        self.until("running alone", |e| alone(e).filter(|generation| *generation > above))
    }

    /// Waits until it says, as a standby or as a primary, that protection is held.
    pub fn until_held(&mut self) {
        self.until("holding output", |e| matches!(e.what, NodeEventKind::State { protection: Protection::Held, .. }).then_some(()));
    }

    /// Waits until it has taken over.
    pub fn until_activated(&mut self) -> Activation {
        self.until("activated", activation)
    }

    /// Waits until a state is told whose reason has `words` in it.
    pub fn until_state(&mut self, words: &str) {
        self.until(words, |e| match &e.what {
            NodeEventKind::State { reason, .. } if reason.contains(words) => Some(()),
            _ => None,
        });
    }

    /// Waits until it has lost the right to run and has ended for that: exit status 3.
    ///
    /// # Panics
    /// It ends with another status, or not.
    pub fn until_fenced(&mut self) {
        self.until("fenced", |e| matches!(e.what, NodeEventKind::Fenced { .. }).then_some(()));
        let status = self.0.wait_exit(BOUND, &NEVER).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(status.code(), Some(3), "a fenced node says so in its exit status: {status}");
    }

    /// Waits until it stands still at its fault point (`POINT:N:stop`).
    ///
    /// # Panics
    /// It ends instead.
    pub fn until_asleep(&mut self) {
        use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
        let status = waitpid(self.0.pid(), Some(WaitPidFlag::WUNTRACED)).expect("a process to wait for");
        assert!(matches!(status, WaitStatus::Stopped(..)), "it should have stopped at its fault point: {status:?}\n{}", self.0.log_tail());
    }

    /// Waits until it has died of SIGKILL (a fault point).
    ///
    /// # Panics
    /// It ends otherwise, or not.
    pub fn until_dead(&mut self) {
        use std::os::unix::process::ExitStatusExt;
        let status = self.0.wait_exit(BOUND, &NEVER).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(status.signal(), Some(nix::libc::SIGKILL), "it should have died at its fault point: {status}\n{}", self.0.log_tail());
    }

    /// Its exit status, when it has ended by itself.
    ///
    /// # Panics
    /// It does not.
    pub fn until_exit(&mut self) -> Option<i32> {
        self.0.wait_exit(BOUND, &NEVER).unwrap_or_else(|error| panic!("{error}")).code()
    }

    /// Kills it at once.
    ///
    /// # Panics
    /// It cannot be killed.
    pub fn kill(&mut self) -> u64 {
        self.0.crash().unwrap_or_else(|error| panic!("{error}"))
    }

    /// Every activation it told of.
    #[must_use]
    pub fn activations(&self) -> Vec<Activation> {
        self.0.events().iter().filter_map(activation).collect()
    }

    /// Why it held its peer to be gone, each time.
    #[must_use]
    pub fn peers_gone(&self) -> Vec<(u64, String)> {
        let gone = |e: NodeEvent| match e.what {
            NodeEventKind::PeerGone { cause } => Some((e.at_ns, cause)),
            _ => None,
        };
        self.0.events().into_iter().filter_map(gone).collect()
    }
}

/// Waits until one of `primary` and `standby` has won the right to go on after generation `before`; which, and its generation.
///
/// # Panics
/// Neither did.
pub fn contest(primary: &mut Node, standby: &mut Node, before: Generation) -> (Verdict, Generation) {
    let deadline = std::time::Instant::now() + BOUND;
    let turn = Duration::from_millis(50);
    loop {
        // Either wait only ends early with an event; that the other one is late is no failure here.
        if let Ok(won) = primary.0.wait_for("running alone", turn, &NEVER, |e| alone(e).filter(|g| *g > before)) {
            return (Verdict::WentOn, won);
        }
        match standby.0.wait_for("activated", turn, &NEVER, activation) {
            Ok(won) => return (Verdict::TookOver, won.generation),
            Err(error @ ProcessError::Ended { .. }) => panic!("{error}"),
            Err(error) => assert!(std::time::Instant::now() < deadline, "neither node goes on: {error}\n{}", primary.0.log_tail()),
        }
    }
}
