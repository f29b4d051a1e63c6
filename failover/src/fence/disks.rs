//! All shared disks of a VM, fenced together: by reservation where a device has that, by the command for the rest.
//!
//! Lives here: which way is taken for which disk. Not here: the ways. Guards S3 and S4: one disk that cannot be fenced is reason enough to say that nothing is certain.

use std::path::PathBuf;

use types::VmId;

use super::{Fence, FenceCommand, FenceError, Grant, Owner, Predecessor, Reservation};

/// The fence of a VM's shared disks.
pub struct DiskFences {
    reservations: Vec<Box<dyn Fence>>,
    /// Disks that cannot be reserved.
    others: Vec<String>,
    command: Option<FenceCommand>,
}

impl DiskFences {
    /// For the disks at these paths. A device that can be reserved is; for the others the command is needed.
    ///
    /// # Errors
    /// A disk that can be fenced in neither way; says what to do.
    pub fn of(vm: &VmId, paths: impl IntoIterator<Item = PathBuf>, command: Option<FenceCommand>) -> Result<DiskFences, FenceError> {
        let candidates = paths.into_iter().map(|path| {
            let reservation: Box<dyn Fence> = Box::new(Reservation::new(path.clone(), vm.clone()));
            (path.display().to_string(), reservation)
        });
        DiskFences::choose(candidates, command)
    }

    /// Whether a disk among them is fenced by the command.
    #[must_use]
    pub fn need_command(&self) -> bool {
        !self.others.is_empty()
    }

    fn choose(
        candidates: impl IntoIterator<Item = (String, Box<dyn Fence>)>,
        command: Option<FenceCommand>,
    ) -> Result<DiskFences, FenceError> {
        let (mut reservations, mut others) = (Vec::new(), Vec::new());
        for (name, reservation) in candidates {
            match (reservation.probe(), &command) {
                (Ok(()), _) => {
                    tracing::info!(disk = name, "shared, fenced by persistent reservation");
                    reservations.push(reservation);
                }
                (Err(error), Some(command)) => {
                    tracing::info!(disk = name, command = command.text(), "shared, cannot be reserved: fenced by the command");
                    tracing::debug!(disk = name, %error, "why it cannot be reserved");
                    others.push(name);
                }
                (Err(error), None) => return Err(error),
            }
        }
        Ok(DiskFences { reservations, others, command })
    }
}

impl Fence for DiskFences {
    fn shut_out(&self, old: &[Predecessor], me: &Owner, grant: &dyn Grant) -> Result<(), FenceError> {
        // Quick, and harmless where the command fails after it.
        for reservation in &self.reservations {
            reservation.shut_out(old, me, grant)?;
        }
        if self.others.is_empty() {
            return Ok(());
        }
        let command = self.command.as_ref().ok_or_else(|| FenceError::NoFence { disk: self.others.join(", ") })?;
        for old in old {
            // A grant that is over must not kill the host that has it now.
            grant.confirm()?;
            command.run(old, me, grant)?;
        }
        // And one that went to another meanwhile, whose host this one could not know of, must not be taken for certain.
        grant.confirm()
    }

    fn probe(&self) -> Result<(), FenceError> {
        self.reservations.iter().try_for_each(|reservation| reservation.probe())?;
        match &self.command {
            None if !self.others.is_empty() => Err(FenceError::NoFence { disk: self.others.join(", ") }),
            _ => Ok(()),
        }
    }

    fn release(&self, me: &Owner, alone: bool) {
        for reservation in &self.reservations {
            reservation.release(me, alone);
        }
    }
}

#[cfg(test)]
mod tests;
