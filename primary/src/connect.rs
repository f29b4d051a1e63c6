//! Looking for the standby: connect, say hello, open the data connection; again and again until there is one.
//!
//! Lives here: one attempt and the thread that repeats it. Not here: when a standby is wanted (`run/link.rs`). Guards S7: every answer is bounded in time and size.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use checkpoint::message::{self, Hello, Message, PROTOCOL};
use checkpoint::{GuestShape, VerifyMemory, codec};
use crossbeam::channel::{Receiver, RecvTimeoutError};
use disk_buffer::{Disks, Identity as DiskIdentity, Plan};
use transport::{Geometry, PrimaryLink};
use types::{Generation, NodeId, VmId};

use crate::error::PrimaryError;
use crate::shared::{News, Shared};

/// How long one connection attempt may take.
const CONNECT: Duration = Duration::from_secs(2);
/// How long the answer to a Hello may take: the standby makes its staging then.
const ANSWER: Duration = Duration::from_secs(5);
/// Wait between attempts, so that a standby that comes up is found soon and an absent one costs nothing.
const AGAIN: Duration = Duration::from_millis(250);
/// Wait after a refusal: it needs an operator.
const AGAIN_REFUSED: Duration = Duration::from_secs(2);

/// What this node says of itself.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) vm: VmId,
    pub(crate) node: NodeId,
    pub(crate) shape: GuestShape,
    pub(crate) boot: u64,
    pub(crate) verify_memory: VerifyMemory,
}

/// A link that is ready.
pub(crate) struct Linked {
    pub(crate) node: NodeId,
    pub(crate) link: PrimaryLink,
    /// What has to be copied to the standby's disks, which it has made ready for it.
    pub(crate) plans: Vec<(Plan, DiskIdentity)>,
}

/// Connects once for every generation that comes through `wanted`, until that is closed.
pub(crate) fn run(shared: &Arc<Shared>, standby: SocketAddr, identity: &Identity, wanted: &Receiver<Generation>) {
    let mut last_reason = String::new();
    while let Ok(mut generation) = wanted.recv() {
        loop {
            let wait = match attempt(standby, identity, &shared.disks, generation) {
                Ok(linked) => {
                    last_reason.clear();
                    shared.tell(News::Linked(linked));
                    break;
                }
                Err(error) => {
                    let reason = error.to_string();
                    if reason != last_reason {
                        shared.tell(News::NoStandby { reason: reason.clone() });
                        last_reason = reason;
                    }
                    if matches!(error, PrimaryError::Refused { .. } | PrimaryError::Disk(_)) { AGAIN_REFUSED } else { AGAIN }
                }
            };
            match wanted.recv_timeout(wait) {
                Ok(newer) => generation = newer,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }
}

fn attempt(standby: SocketAddr, identity: &Identity, disks: &Disks, generation: Generation) -> Result<Linked, PrimaryError> {
    let peer = standby.to_string();
    let mut pending = transport::tcp::connect(standby, CONNECT)?;
    let own = disks.identities()?;
    let hello = Hello {
        protocol: PROTOCOL,
        vm: identity.vm.clone(),
        node: identity.node.clone(),
        generation,
        shape: identity.shape.clone(),
        boot: identity.boot,
        verify_memory: identity.verify_memory,
        disks: codec::encode(&own)?,
    };
    pending.control_tx.send(&message::encode(&Message::Hello(hello))?)?;
    let answer = pending
        .control_rx
        .receive(ANSWER)?
        .ok_or(transport::TransportError::TimedOut { what: "waiting for the standby's Welcome", after_ms: ANSWER.as_millis() as u64 })?;
    match message::decode(&answer)? {
        Message::Welcome(welcome) => {
            // The standby has come to the same plans from the same identities.
            let theirs: Vec<DiskIdentity> = codec::decode(&welcome.disks)?;
            let plans = Disks::plans(&own, &theirs)?.into_iter().zip(theirs).collect();
            let link = pending.open_data(Geometry { slots: welcome.slots, slot_bytes: welcome.slot_bytes })?;
            Ok(Linked { node: welcome.node, link, plans })
        }
        Message::Refuse { reason } => Err(PrimaryError::Refused { peer, reason }),
        other => Err(PrimaryError::UnexpectedAnswer { peer, what: other.name().to_owned() }),
    }
}
