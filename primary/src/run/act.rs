//! What the core decides, done: each action finished before the next is begun.
//!
//! Lives here: the gate, the mode of the pipeline, what the standby is told. Guards S3: the two orders (gate, then record; strike out, then ungate) are the order
//! in which the core gives its actions.

use checkpoint::message::{self, Message};
use failover::core::Action as Role;
use net_buffer::StruckOut;
use types::event::{NodeEventKind, Protection};

use super::{End, RoleThread};
use crate::core::{Event, Mode};
use crate::error::PrimaryError;
use crate::shared::News;

impl RoleThread {
    pub(super) fn act(&mut self, action: Role) {
        match action {
            Role::Arbiter { id, request } => self.setup.arbiter.ask(id, request),
            Role::Report { role, protection, generation, reason } => {
                match protection {
                    Protection::Blind => tracing::warn!(?role, ?protection, %generation, reason, "state"),
                    _ => tracing::info!(?role, ?protection, %generation, reason, "state"),
                }
                (self.shared.report)(NodeEventKind::State { role, protection, generation, reason });
            }
            Role::Gate => self.gate(),
            Role::TellRecorded { generation } => self.say(&Message::Recorded { generation }),
            Role::Protect => self.mode(Mode::Protected),
            Role::Hold => self.mode(Mode::Held),
            Role::Ungate { generation } => {
                // First: whatever is said from here on may rest on writes that the standby never gets to know. Bounded: a disk that hangs must not keep the guest's output for ever. No link
                // misses a heartbeat meanwhile; a signal waits.
                if let Err(error) = self.shared.disks.struck_out() {
                    tracing::error!(%error, "a disk's change log cannot tell that the standby is struck out; the guest will see errors of that disk");
                }
                self.gated = false;
                match self.shared.output.open(StruckOut::attest(generation)) {
                    Ok(()) => self.mode(Mode::Unprotected),
                    Err(error) => self.broken = Some(format!("held output cannot be released: {error}")),
                }
                self.hold_release(false);
            }
            Role::HoldRelease => self.hold_release(true),
            Role::ResumeRelease => self.hold_release(false),
            Role::TellShutdown { reason } => self.say(&Message::Shutdown { reason }),
            Role::ShutGate => {
                self.shared.output.shut();
                self.shared.disks.shut();
            }
            Role::StopGuest { reason } => {
                self.setup.machine.stop();
                (self.shared.report)(NodeEventKind::Fenced { reason: reason.clone() });
                self.end = Some(End::Fenced(reason));
            }
            Role::GiveUp { reason } => {
                self.setup.machine.stop();
                (self.shared.report)(NodeEventKind::GaveUp { reason: reason.clone() });
                self.end = Some(End::GaveUp(reason));
            }
            Role::Finished if self.give_up_ns.is_some() => {
                self.end.get_or_insert(End::Interrupted);
            }
            Role::Finished => {
                let reason = self.machine_ended.clone().unwrap_or_default();
                self.end.get_or_insert(End::GuestStopped(reason));
            }
            Role::DropLink => self.drop_link(),
            // Start and takeover are over before a primary lives here.
            Role::Fence { .. }
            | Role::Boot { .. }
            | Role::Refused { .. }
            | Role::Activate { .. }
            | Role::StopCommitting
            | Role::TellSight { .. }
            | Role::StandDown { .. } => {}
        }
    }

    fn gate(&mut self) {
        let generation = self.setup.node.generation();
        self.gated = true;
        // A frame that hangs in a port for longer than the bound is tried again: the record must not be written before it is out.
        for _ in 0..3 {
            match self.shared.output.gate(generation) {
                Ok(()) => {
                    self.shared.output.mirror_to(self.mirror.take());
                    return self.mode(Mode::Gated);
                }
                Err(error) => tracing::warn!(%error, "closing the output gate"),
            }
        }
        self.broken = Some("the output gate cannot be closed".to_owned());
    }

    pub(super) fn mode(&mut self, mode: Mode) {
        let generation = self.setup.node.generation();
        self.shared.raise(Event::Mode { mode, generation });
    }

    fn hold_release(&mut self, hold: bool) {
        self.shared.raise(Event::HoldRelease(hold));
    }

    pub(super) fn say(&mut self, message: &Message) {
        let Some(link) = &self.link else { return };
        let sent = message::encode(message).map_err(PrimaryError::from).and_then(|bytes| Ok(link.control.send(&bytes)?));
        if let Err(error) = sent {
            let (link, cause) = (link.number, error.to_string());
            self.shared.tell(News::LinkLost { link, cause });
        }
    }
}
