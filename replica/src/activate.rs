//! Activation: from a grant to a running guest.
//!
//! Lives here: the steps, in their order. Not here: the right to take them (`failover::core`). Guards S2 (only from the activation point, wholly applied) and S5
//! (restore before start; the disks hold exactly what is committed; the machine moves its clock forward and signals every queue).
//!
//! In two halves, for S3: [`prepare`] takes a while (a slow disk), and the node may sleep in it while an operator starts the guest elsewhere by force; nothing of it can be seen outside. Then the role thread makes sure that the grant
//! still stands, and only then [`Prepared::start`] sends and starts, which takes no longer than any other turn of that thread.

use std::time::{Duration, Instant};

use crossbeam::channel::bounded;
use types::{Output, OutputPort};
use vmm::{Machine, MachineState};

use crate::apply::{Held, Job};
use crate::error::ReplicaError;
use crate::shared::Shared;

/// How long a disk may take to apply what is committed while it does something: far more than its backlog's bound takes on one that works. One that hangs fails before (`disk_buffer::disk::HANG_BOUND`).
const DISKS: Duration = Duration::from_secs(60);

/// What activation started from.
pub(crate) struct Started {
    pub(crate) epoch: types::Epoch,
    /// Committed frames that were sent again.
    pub(crate) resent: usize,
    /// Frames that the guest had received after the activation point and is given again.
    pub(crate) replayed: usize,
    /// What the guest waited for its disks, microseconds.
    pub(crate) disks_us: u64,
    /// Requests to disks that were in flight and are carried out anew.
    pub(crate) disk_requests: u32,
}

/// A machine at the activation point, of which nothing has left and nothing runs.
pub(crate) struct Prepared {
    held: Held,
    disks_us: u64,
    disk_requests: u32,
}

/// Brings the machine to the activation point.
pub(crate) fn prepare(shared: &Shared, machine: &mut Machine) -> Result<Prepared, ReplicaError> {
    types::fault::reach(types::fault::Point::MidActivation);
    let (answer, held) = bounded(1);
    // Everything committed was handed to the apply thread before: when this is answered, it is in guest memory.
    shared.apply(Job::Yield(answer));
    let held = held.recv().unwrap_or_default();
    let (point, ready, committed, applied) = {
        let staging = shared.staging();
        (staging.activation_point(), staging.ready(), staging.committed(), staging.applied())
    };
    if !ready || point != Some(held.epoch) {
        return Err(ReplicaError::NothingToActivate { committed, applied });
    }
    let state: MachineState =
        checkpoint::codec::decode(&held.machine).map_err(|source| ReplicaError::State { epoch: held.epoch, source })?;
    machine.restore_arrived(&state, held.arrived)?;
    // The disks were at it meanwhile. Before anything is given to the guest: its requests in flight are carried out anew when it starts.
    let waited = Instant::now();
    shared.disks.activate(DISKS).map_err(ReplicaError::Activation)?;
    let disks_us = waited.elapsed().as_micros() as u64;
    let disk_requests = u32::try_from(state.disk_requests()).unwrap_or(u32::MAX);
    Ok(Prepared { held, disks_us, disk_requests })
}

impl Prepared {
    /// Sends what may not have left the primary, and starts the machine.
    pub(crate) fn start(self, shared: &Shared, machine: &mut Machine) -> Result<Started, ReplicaError> {
        let Prepared { held, disks_us, disk_requests } = self;
        let input = shared.received().take(held.epoch);
        let replayed = machine.replay_input(input.into_iter().map(|frame| (frame.port, frame.bytes)));
        let resent = resend(machine, &held);
        machine.start()?;
        for (port, frame) in machine.announcements() {
            write(machine, port, &frame);
        }
        Ok(Started { epoch: held.epoch, resent, replayed, disks_us, disk_requests })
    }
}

/// Sends again what is committed and may not have left the primary. Duplicates are harmless to TCP; console bytes are not sent twice.
fn resend(machine: &Machine, held: &Held) -> usize {
    let frames = held.output.iter().filter_map(|output: &Output| match output.port {
        OutputPort::Net(port) => Some((port, &output.bytes)),
        OutputPort::Console => None,
    });
    frames.filter(|(port, frame)| write(machine, *port, frame)).count()
}

fn write(machine: &Machine, port: u8, frame: &[u8]) -> bool {
    machine.tap_writer(port).is_some_and(|tap| tap.write_frame(frame))
}
