//! The machine as its owner sees it.
#![allow(unused_variables, missing_docs)]
use std::sync::Arc;

use crossbeam::channel::Receiver;
use dirty_tracking::{DirtySet, Layout};

use crate::{BootConfig, GuestMemory, MachineConfig, MachineEvent, Sinks, VmmError};

/// A machine.
pub struct Machine {
    memory: Arc<GuestMemory>,
    layout: Layout,
    events: Receiver<MachineEvent>,
}

/// Complete machine state.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct MachineState {
    pub version: u32,
}

const UNDER_CONSTRUCTION: VmmError = VmmError::WrongState { what: "do this", why: "the machine is still being written" };

impl Machine {
    pub fn new(config: &MachineConfig, sinks: Sinks) -> Result<Machine, VmmError> {
        Err(UNDER_CONSTRUCTION)
    }
    pub fn boot(&mut self, boot: &BootConfig) -> Result<(), VmmError> {
        Err(UNDER_CONSTRUCTION)
    }
    pub fn restore(&mut self, state: &MachineState) -> Result<(), VmmError> {
        Err(UNDER_CONSTRUCTION)
    }
    pub fn start(&self) -> Result<(), VmmError> {
        Err(UNDER_CONSTRUCTION)
    }
    pub fn pause(&self) -> Result<Paused<'_>, VmmError> {
        Err(UNDER_CONSTRUCTION)
    }
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }
    /// Where guest memory lies; `DirtySet::new(machine.slots())` makes a set for it.
    pub fn slots(&self) -> &Layout {
        &self.layout
    }
    pub fn start_tracking(&self) -> Result<(), VmmError> {
        Err(UNDER_CONSTRUCTION)
    }
    pub fn stop_tracking(&self) -> Result<(), VmmError> {
        Err(UNDER_CONSTRUCTION)
    }
    pub fn collect_dirty_running(&self, into: &mut DirtySet) -> Result<(), VmmError> {
        Err(UNDER_CONSTRUCTION)
    }
    pub fn dirty_estimate(&self) -> Result<u64, VmmError> {
        Err(UNDER_CONSTRUCTION)
    }
    pub fn give_back(&self, set: &DirtySet) {}
    /// Writer for the TAP of `port` lives in devices::tap.
    pub fn announcements(&self) -> Vec<(u8, Vec<u8>)> {
        Vec::new()
    }
    pub fn retry_output(&self) {}
    pub fn events(&self) -> &Receiver<MachineEvent> {
        &self.events
    }
    pub fn console_input(&self, bytes: &[u8]) {}
    pub fn stop(&self) {}
}

/// A paused machine; resumes when dropped.
pub struct Paused<'a> {
    machine: &'a Machine,
}

impl Paused<'_> {
    pub fn capture(&mut self) -> Result<MachineState, VmmError> {
        Err(UNDER_CONSTRUCTION)
    }
    pub fn collect_dirty(&mut self, into: &mut DirtySet) -> Result<(), VmmError> {
        Err(UNDER_CONSTRUCTION)
    }
    pub fn resume(self) {}
    pub fn stay_stopped(self) {}
}
