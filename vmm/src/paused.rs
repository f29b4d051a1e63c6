//! A paused machine: the guard under which its state and dirty set are taken.
//!
//! Guards S5 (state can only be read through this guard) and S6 (however a checkpoint ends, dropping the guard lets the guest go on).

use std::sync::{MutexGuard, atomic::Ordering};

use dirty_tracking::{DirtySet, DirtyTracker as _};

use crate::{
    Machine, MachineState, VmmError,
    attach::Attached,
    devices::lock,
    machine::{Control, Phase},
    vcpu::seat::{self, Task},
    vm_state::{MACHINE_STATE_VERSION, VmState},
};

/// No vCPU runs and no device moves while this lives; dropping it resumes the machine.
#[must_use = "the machine resumes as soon as this is dropped"]
pub struct Paused<'a> {
    machine: &'a Machine,
    control: MutexGuard<'a, Control>,
    resume: bool,
}

impl<'a> Paused<'a> {
    pub(crate) fn new(machine: &'a Machine, control: MutexGuard<'a, Control>, resume: bool) -> Paused<'a> {
        Paused { machine, control, resume }
    }

    /// Reads the complete state of the machine but its memory: each vCPU on its own thread, the rest meanwhile on this one. Take it before the dirty
    /// set.
    ///
    /// # Errors
    /// When KVM refuses or a vCPU does not answer.
    pub fn capture(&mut self) -> Result<MachineState, VmmError> {
        Ok(self.capture_while(|_| ())?.0)
    }

    /// Reads the complete state and, while the vCPUs read theirs, takes the dirty set and has `work` read its pages: what both take of the pause is the
    /// longer of the two. Devices are read before the dirty set is taken; reading a vCPU's state writes no guest memory (what KVM writes there on a vCPU's
    /// behalf, clock and steal time, it writes on the way into `KVM_RUN` and out of it: kvm_steal_time_set_preempted in arch/x86/kvm/x86.c writes once an exit).
    ///
    /// # Errors
    /// When KVM refuses or a vCPU does not answer; what was found until then is in `into`.
    pub fn capture_with_dirty<R>(&mut self, into: &mut DirtySet, work: impl FnOnce(&DirtySet) -> R) -> Result<(MachineState, R), VmmError> {
        let (state, collected) = self.capture_while(|paused| {
            paused.collect_dirty(into)?;
            Ok::<R, VmmError>(work(into))
        })?;
        Ok((state, collected?))
    }

    fn capture_while<R>(&mut self, meanwhile: impl FnOnce(&mut Self) -> R) -> Result<(MachineState, R), VmmError> {
        let machine = self.machine;
        for seat in &machine.seats {
            seat.post(Task::Capture);
        }
        let vm = VmState::capture(&machine.vm, machine.tsc_khz.load(Ordering::Relaxed), machine.host_tsc_khz);
        let devices = machine.devices.iter().map(Attached::save).collect();
        let pci = machine.pci.as_ref().map(|root| root.save());
        let serial = lock(&machine.serial).save();
        let platform = lock(&machine.platform).save();
        let worked = meanwhile(self);
        // Whatever failed above, the vCPUs' answers are waited for: a task must not be left behind.
        seat::wait_done(&machine.seats, &machine.waiter)?;
        let gone = || Err(VmmError::WrongState { what: "capture the machine", why: "it has been stopped for good" });
        let vcpus = machine.seats.iter().map(|seat| lock(&seat.captured).take().unwrap_or_else(gone));
        let state = MachineState {
            version: MACHINE_STATE_VERSION,
            vcpus: vcpus.collect::<Result<_, _>>()?,
            vm: vm?,
            devices,
            pci,
            serial,
            platform,
        };
        Ok((state, worked))
    }

    /// The machine that is paused.
    pub(crate) fn machine(&self) -> &'a Machine {
        self.machine
    }

    /// Takes the pages dirtied since the last collect (device writes too) and re-arms the log.
    ///
    /// # Errors
    /// When KVM refuses; what was found until then is in `into`.
    pub fn collect_dirty(&mut self, into: &mut DirtySet) -> Result<(), VmmError> {
        lock(&self.machine.tracker).collect(into)?;
        for seat in &self.machine.seats {
            seat.ring_has_room();
        }
        Ok(())
    }

    /// Lets the machine run on, as dropping the guard does.
    pub fn resume(self) {
        drop(self);
    }

    /// Ends the guard without letting the machine run; `Machine::start` would.
    pub fn stay_stopped(mut self) {
        if self.resume {
            self.resume = false;
            self.control.phase = Phase::Stopped;
        }
    }
}

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        if self.resume {
            self.machine.resume(&mut self.control);
        }
    }
}
