//! The start of a primary: the right to boot the guest, from the arbiter. Guards S3: nothing boots before the grant.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use failover::client::ArbiterClient;
use failover::core::{Action, Event, Node};
use types::clock::monotonic_ns;
use types::event::{NodeEventKind, Report};

/// How often the wait for an answer looks whether it is still wanted.
const POLL: Duration = Duration::from_millis(20);

/// What the arbiter said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// The guest may be booted.
    Granted,
    /// It may not, for this reason.
    Refused(String),
    /// `shutdown` was set first.
    Interrupted,
}

/// Asks for the right to boot until there is an answer; an arbiter that does not answer is asked again, with every failure reported.
pub fn start(node: &mut Node, arbiter: &ArbiterClient, abandon_standby: bool, report: &Report, shutdown: &AtomicBool) -> Start {
    let mut actions = Vec::new();
    node.handle(Event::StartPrimary { abandon_standby }, monotonic_ns(), &mut actions);
    while !shutdown.load(Ordering::Acquire) {
        let mut outcome = None;
        for action in actions.drain(..) {
            match action {
                Action::Arbiter { id, request } => arbiter.ask(id, request),
                Action::Report { role, protection, generation, reason } => {
                    tracing::info!(?role, ?protection, %generation, reason, "state");
                    report(NodeEventKind::State { role, protection, generation, reason });
                }
                Action::Boot { .. } => outcome = Some(Start::Granted),
                Action::Refused { reason } => outcome = Some(Start::Refused(reason)),
                other => tracing::debug!(?other, "not an action of a start"),
            }
        }
        if let Some(outcome) = outcome {
            return outcome;
        }
        if let Ok((id, answer)) = arbiter.answers().recv_timeout(POLL) {
            node.handle(Event::ArbiterReply { id, answer }, monotonic_ns(), &mut actions);
        } else {
            node.handle(Event::Tick, monotonic_ns(), &mut actions);
        }
    }
    Start::Interrupted
}
