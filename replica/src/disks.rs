//! The standby's copies of the disks: whether they fit the primary's, and what is told to the primary of them.
//!
//! Lives here: the plans at the door, and the way of a disk's news to the primary and to the role thread. Not here: what a copy does (`disk-buffer`), when an epoch
//! is committed (`core`), applying (`apply.rs`). Guards S2 for disks: a primary whose disks cannot be followed is refused with the reason, before a byte of either
//! side changes.

use std::sync::{Arc, Mutex, PoisonError};

use checkpoint::codec;
use checkpoint::message::{self, Message};
use disk_buffer::{DiskEvent, Disks, Hooks, Identity, Plan};
use transport::ControlSender;
use types::event::NodeEventKind;

use crate::error::ReplicaError;
use crate::shared::{News, Shared};

/// Where news of the disks go: nowhere while there is no link.
#[derive(Default)]
pub(crate) struct Reporter(Mutex<Option<Arc<dyn ControlSender>>>);

impl Reporter {
    /// From now on to this link's primary; `None`: to nobody. When this returns, nothing more is said to the one before.
    pub(crate) fn point(&self, link: Option<Arc<dyn ControlSender>>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = link;
    }

    /// Tells the primary that this standby holds no copy any more, and why: it strikes it out at once.
    pub(crate) fn leave(&self, reason: &str) {
        self.say(&Message::Refuse { reason: reason.to_owned() });
    }

    /// Says something to the primary; what cannot be said is not missed: the link is failing then.
    fn say(&self, what: &Message) {
        let link = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(control) = link.as_ref() else { return };
        let sent = message::encode(what).map_err(|error| error.to_string());
        if let Err(error) = sent.and_then(|bytes| control.send(&bytes).map_err(|error| error.to_string())) {
            tracing::debug!(error, "news of a disk could not be sent");
        }
    }
}

/// Has the disks tell this standby's primary, and its role thread, what concerns them.
pub(crate) fn attach(shared: &Arc<Shared>) {
    for disk in shared.disks.iter() {
        let weak = Arc::downgrade(shared);
        disk.attach(Hooks {
            // A standby's guest does not run.
            room: Box::new(|| {}),
            pressure: Box::new(|| {}),
            waiting: Box::new(|| {}),
            event: Box::new(move |event| {
                let Some(shared) = weak.upgrade() else { return };
                match event {
                    // Of the generation that the copy was joined in: a newer primary, should it hear this, has other epochs of these numbers.
                    DiskEvent::Durable { disk, epoch, generation } => shared.reporter.say(&Message::Durable { generation, disk, epoch }),
                    DiskEvent::Failed { disk, error } => {
                        let reason = format!(
                            "{disk} of the standby failed: {error}; look at its host's kernel log (dmesg) and at the way to the storage, mend it, and start the standby again: it is then brought what has changed"
                        );
                        tracing::error!(reason, "this standby can follow no more");
                        shared.reporter.leave(&reason);
                        shared.tell(News::Spoilt { reason });
                    }
                    DiskEvent::Full { text, .. } => (shared.report)(NodeEventKind::Warning { text }),
                    // A primary's.
                    DiskEvent::GiveUp { .. } | DiskEvent::ShutOut { .. } | DiskEvent::Issued { .. } => {}
                }
            }),
        });
    }
}

/// What the primary says of its disks, and what has to be copied from each.
pub(crate) struct Agreed {
    pub(crate) primary: Vec<Identity>,
    pub(crate) plans: Vec<Plan>,
    /// This standby's identities, encoded: what the plans rest on.
    pub(crate) own: Vec<u8>,
}

/// Compares the primary's disks, as its Hello has them, with this standby's.
///
/// # Errors
/// Why they cannot be brought together, in words for the operators.
pub(crate) fn agree(disks: &Disks, hello: &[u8]) -> Result<Agreed, ReplicaError> {
    let primary: Vec<Identity> = codec::decode(hello)?;
    let own = disks.identities()?;
    let plans = Disks::plans(&primary, &own)?;
    Ok(Agreed { primary, plans, own: codec::encode(&own)? })
}
