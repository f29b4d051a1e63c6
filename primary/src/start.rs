//! The start of a primary: the right to boot the guest, from the arbiter. Guards S3: nothing boots before the grant, and, where disks are shared, before older owners are shut out of them; and nothing of the guest is started or sent
//! after a sleep before the record was read again ([`confirm`]).

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam::channel::never;
use failover::client::ArbiterClient;
use failover::core::{Action, Event, Node};
use failover::fence::{self, FenceRunner};
use types::clock::monotonic_ns;
use types::event::{NodeEventKind, Report};

/// How often the wait for an answer looks whether it is still wanted.
const POLL: Duration = Duration::from_millis(20);

/// A wait that took longer than this was a sleep. Nobody waits for this node's heartbeats yet, so a busy host may take its time.
const SLEPT_NS: u64 = 500_000_000;

/// What the arbiter said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// The guest may be booted.
    Granted {
        /// When this node last looked around and the grant stood, CLOCK_MONOTONIC: for [`confirm`], and for [`crate::Setup`].
        looked_ns: u64,
    },
    /// It may not, for this reason.
    Refused(String),
    /// It was granted, and the grant was over before the guest was started.
    Fenced(String),
    /// `shutdown` was set first.
    Interrupted,
}

/// Whom a start asks.
pub struct Asking<'a> {
    /// The role machine, not started.
    pub node: &'a mut Node,
    /// The arbiter.
    pub arbiter: &'a ArbiterClient,
    /// Shuts older owners out of the shared disks, where there are any.
    pub fence: Option<&'a mut FenceRunner>,
    /// Where events go.
    pub report: &'a Report,
}

/// Asks for the right to boot until there is an answer, and has older owners shut out of the shared disks; an arbiter that does not answer is asked again, with every failure reported, and so is the fence.
pub fn start(asking: Asking<'_>, abandon_standby: bool, shutdown: &AtomicBool) -> Start {
    until_settled(asking, Event::StartPrimary { abandon_standby }, monotonic_ns(), shutdown)
}

/// To be called when the machine is ready, just before anything of it is started or sent. Making it ready may take long, and this node may have slept in it while an operator started the guest elsewhere by force: if it last looked, at
/// `looked_ns`, longer than `bound_ns` ago, the record is read first. [`Start::Granted`] at once otherwise.
pub fn confirm(asking: Asking<'_>, looked_ns: u64, bound_ns: u64, shutdown: &AtomicBool) -> Start {
    let now = monotonic_ns();
    let gap_ns = now.saturating_sub(looked_ns);
    if gap_ns <= bound_ns {
        return Start::Granted { looked_ns };
    }
    until_settled(asking, Event::Confirm { gap_ns }, now, shutdown)
}

/// Raises an event of the role machine and lives on until it has come to something.
fn until_settled(asking: Asking<'_>, event: Event, mut looked_ns: u64, shutdown: &AtomicBool) -> Start {
    let Asking { node, arbiter, mut fence, report } = asking;
    let fenced = fence.as_ref().map_or_else(never, |fence| fence.news().clone());
    let mut actions = Vec::new();
    node.handle(event, looked_ns, &mut actions);
    while !shutdown.load(Ordering::Acquire) {
        let mut outcome = None;
        for action in actions.drain(..) {
            match action {
                Action::Arbiter { id, request } => arbiter.ask(id, request),
                Action::Report { role, protection, generation, reason } => {
                    tracing::info!(?role, ?protection, %generation, reason, "state");
                    report(NodeEventKind::State { role, protection, generation, reason });
                }
                Action::Fence { record, old } => {
                    if let Err(error) = fence::begin(fence.as_deref_mut(), record, old) {
                        outcome = Some(Start::Refused(error.to_string()));
                    }
                }
                Action::Boot { .. } | Action::ResumeRelease => outcome = Some(Start::Granted { looked_ns }),
                Action::Refused { reason } => outcome = Some(Start::Refused(reason)),
                Action::StopGuest { reason } => {
                    report(NodeEventKind::Fenced { reason: reason.clone() });
                    outcome = Some(Start::Fenced(reason));
                }
                other => tracing::debug!(?other, "not an action of a start"),
            }
        }
        if let Some(outcome) = outcome {
            return outcome;
        }
        let event = crossbeam::channel::select! {
            recv(arbiter.answers()) -> answer => answer.map_or(Event::Tick, |(id, answer)| Event::ArbiterReply { id, answer }),
            recv(fenced) -> news => news.map_or(Event::Tick, FenceRunner::event),
            default(POLL) => Event::Tick,
        };
        let now = monotonic_ns();
        let gap_ns = now.saturating_sub(looked_ns);
        looked_ns = now;
        if gap_ns > SLEPT_NS {
            // Before anything that came from before a sleep is believed: a grant may be over.
            node.handle(Event::Stalled { gap_ns }, now, &mut actions);
        }
        node.handle(event, now, &mut actions);
    }
    if let Some(fence) = fence {
        fence.stop();
    }
    Start::Interrupted
}

#[cfg(test)]
mod tests;
