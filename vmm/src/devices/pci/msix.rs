//! MSI-X: a function's table of interrupt messages, which of them are masked, and which wait until they are not (PCI Local Bus 3.0, section 6.8.2).
//!
//! Lives here: table, pending bits, enable and function mask, and what they make of an interrupt. Not here: who raises which vector, nor the kernel's table of routes
//! ([`super::MsiRouter`]). Guards S5 (a masked vector's interrupt is kept in its pending bit, which is state; routes are rebuilt from the table) and S7 (a message may be
//! anything: one that is not for a LAPIC goes nowhere).
//!
//! Each vector has an irqfd on a line (GSI) of its own, for good. What a line does is its route in the kernel, set when a vector that may fire has another message than
//! its route. A masked vector's irqfd is not signalled, so its route can stay as it was: masking costs no call.

use std::{
    io,
    sync::{Arc, Mutex},
};

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{MsiMessage, MsiRouter};
use crate::devices::{DeviceError, lock};

/// Most vectors of one function: what one word of pending bits holds.
pub const VECTORS_MAX: usize = 64;
/// Bytes of a table entry.
pub const ENTRY_SIZE: usize = 16;

/// Bit of message control: messages are sent, and INTx is not used.
pub const CONTROL_ENABLE: u16 = 1 << 15;
/// Bit of message control: all vectors are masked.
pub const CONTROL_MASK_ALL: u16 = 1 << 14;

/// Bit of an entry's control word: this vector is masked.
const ENTRY_MASKED: u32 = 1;
/// Messages for LAPICs are written to 0xfeexxxxx (Intel SDM volume 3, 11.11.1).
const LAPIC_RANGE: u32 = 0xfee;

/// Saved state of the table. Enable and function mask are in configuration space.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsixState {
    /// Each entry: address low, address high, data, control.
    pub entries: Vec<[u32; 4]>,
    /// A bit for each vector that waits to be unmasked.
    pub pending: u64,
}

/// A vector's line into the kernel.
#[derive(Debug)]
struct Line {
    gsi: u32,
    irqfd: EventFd,
}

#[derive(Debug)]
struct Registers {
    enabled: bool,
    all_masked: bool,
    entries: Vec<[u32; 4]>,
    pending: u64,
    /// What each line does at present.
    routed: Vec<Option<MsiMessage>>,
    /// A message that no LAPIC would take was logged.
    complained: bool,
}

/// A function's MSI-X table. Shared by its transport (vCPU threads) and whoever raises its interrupts.
pub struct Msix {
    router: Arc<dyn MsiRouter>,
    lines: Vec<Line>,
    registers: Mutex<Registers>,
}

impl std::fmt::Debug for Msix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Msix").field("lines", &self.lines).field("registers", &self.registers).finish_non_exhaustive()
    }
}

impl Msix {
    /// A table of one vector for each line of `gsis`, 1 to [`VECTORS_MAX`]: disabled, every vector masked.
    ///
    /// # Errors
    /// [`DeviceError::EventFd`].
    pub fn new(router: Arc<dyn MsiRouter>, gsis: &[u32]) -> Result<Msix, DeviceError> {
        assert!((1..=VECTORS_MAX).contains(&gsis.len()), "a table size that its pending bits cannot hold");
        let line = |gsi: &u32| EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map(|irqfd| Line { gsi: *gsi, irqfd });
        let lines = gsis.iter().map(line).collect::<io::Result<Vec<_>>>();
        let lines = lines.map_err(|source| DeviceError::EventFd { purpose: "an MSI-X vector", source })?;
        let registers = Registers {
            enabled: false,
            all_masked: false,
            entries: vec![[0, 0, 0, ENTRY_MASKED]; gsis.len()],
            pending: 0,
            routed: vec![None; gsis.len()],
            complained: false,
        };
        Ok(Msix { router, lines, registers: Mutex::new(registers) })
    }

    /// Number of vectors.
    #[must_use]
    pub fn vectors(&self) -> usize {
        self.lines.len()
    }

    /// The eventfds to register as irqfds, each with its line.
    pub fn irqfds(&self) -> impl Iterator<Item = (u32, &EventFd)> {
        self.lines.iter().map(|line| (line.gsi, &line.irqfd))
    }

    /// Sends vector `vector`'s message, or notes it as pending while masked; a vector that does not exist has none. False when MSI-X is disabled: then nothing happens.
    pub fn fire(&self, vector: u16) -> bool {
        let mut registers = lock(&self.registers);
        if !registers.enabled {
            return false;
        }
        if let Some(line) = self.lines.get(usize::from(vector)) {
            if registers.may_fire(usize::from(vector)) { signal(line) } else { registers.pending |= 1 << vector }
        }
        true
    }

    /// Message control was written: its enable and function mask bits count.
    pub fn set_control(&self, control: u16) {
        let mut registers = lock(&self.registers);
        registers.enabled = control & CONTROL_ENABLE != 0;
        registers.all_masked = control & CONTROL_MASK_ALL != 0;
        self.settle(&mut registers);
    }

    /// Reads the table. Whole 32-bit words, as the specification demands; anything else reads as zeroes.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if !is_words(offset, data.len()) {
            return;
        }
        let registers = lock(&self.registers);
        for (index, word) in data.chunks_exact_mut(4).enumerate() {
            if let Some(value) = registers.entries.as_flattened().get(offset as usize / 4 + index) {
                word.copy_from_slice(&value.to_le_bytes());
            }
        }
    }

    /// Writes the table. Whole 32-bit words, as the specification demands; anything else changes nothing.
    pub fn write_table(&self, offset: u64, data: &[u8]) {
        if !is_words(offset, data.len()) {
            return;
        }
        let mut registers = lock(&self.registers);
        for (index, word) in data.chunks_exact(4).enumerate() {
            let at = offset as usize / 4 + index;
            if let (Some(value), Ok(word)) = (registers.entries.as_flattened_mut().get_mut(at), <[u8; 4]>::try_from(word)) {
                let word = u32::from_le_bytes(word);
                *value = if at % 4 == 3 { word & ENTRY_MASKED } else { word };
            }
        }
        self.settle(&mut registers);
    }

    /// Reads the pending bits.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        let bytes = lock(&self.registers).pending.to_le_bytes();
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset.checked_add(index)?)).copied().unwrap_or(0);
        }
    }

    /// Brings the routes of vectors that may fire up to date, then sends what waited for it.
    fn settle(&self, registers: &mut Registers) {
        let mut changes = Vec::new();
        for (vector, line) in self.lines.iter().enumerate() {
            let message = registers.message(vector);
            if registers.may_fire(vector) && registers.routed[vector] != message {
                changes.push((line.gsi, message));
                registers.routed[vector] = message;
                if message.is_none() && !std::mem::replace(&mut registers.complained, true) {
                    let [low, high, ..] = registers.entries[vector];
                    tracing::warn!(vector, low, high, "the guest's interrupt message is addressed to no LAPIC; it goes nowhere");
                }
            }
        }
        if !changes.is_empty()
            && let Err(error) = self.router.route(&changes)
        {
            // Not known any more: tried again at the next occasion.
            for (vector, line) in self.lines.iter().enumerate() {
                if changes.iter().any(|(gsi, _)| *gsi == line.gsi) {
                    registers.routed[vector] = None;
                }
            }
            tracing::error!(%error, "KVM refuses interrupt routes; the guest may wait for interrupts that do not come");
        }
        for (vector, line) in self.lines.iter().enumerate() {
            if registers.pending & 1 << vector != 0 && registers.may_fire(vector) {
                registers.pending &= !(1 << vector);
                signal(line);
            }
        }
    }

    /// The table's state. The machine is paused.
    #[must_use]
    pub fn save(&self) -> MsixState {
        let registers = lock(&self.registers);
        MsixState { entries: registers.entries.clone(), pending: registers.pending }
    }

    /// Puts a saved table and message control back and rebuilds the routes. Before the first start.
    ///
    /// # Errors
    /// [`DeviceError::StateMismatch`] if the table has another size or bits that no guest can have set.
    pub fn restore(&self, saved: &MsixState, control: u16) -> Result<(), DeviceError> {
        let vectors = self.lines.len();
        let mismatch = |reason: String| DeviceError::StateMismatch { device: "MSI-X table", reason };
        if saved.entries.len() != vectors {
            return Err(mismatch(format!("{} vectors saved, {vectors} here", saved.entries.len())));
        }
        if saved.entries.iter().any(|entry| entry[3] & !ENTRY_MASKED != 0) || (vectors < VECTORS_MAX && saved.pending >> vectors != 0) {
            return Err(mismatch("it has bits set that do not exist".into()));
        }
        {
            let mut registers = lock(&self.registers);
            registers.entries.clone_from(&saved.entries);
            registers.pending = saved.pending;
        }
        self.set_control(control);
        Ok(())
    }
}

impl Registers {
    fn may_fire(&self, vector: usize) -> bool {
        self.enabled && !self.all_masked && self.entries[vector][3] & ENTRY_MASKED == 0
    }

    /// The vector's message, if a LAPIC would take it.
    fn message(&self, vector: usize) -> Option<MsiMessage> {
        let [address, high, data, _] = self.entries[vector];
        (high == 0 && address >> 20 == LAPIC_RANGE).then_some(MsiMessage { address, data })
    }
}

fn is_words(offset: u64, len: usize) -> bool {
    offset.is_multiple_of(4) && matches!(len, 4 | 8) && offset < (VECTORS_MAX * ENTRY_SIZE) as u64
}

fn signal(line: &Line) {
    // The only error a write of 1 can meet is a counter at its limit: then the interrupt is pending anyway.
    if let Err(error) = line.irqfd.write(1) {
        tracing::trace!(%error, gsi = line.gsi, "interrupt already pending");
    }
}

#[cfg(test)]
#[path = "msix_tests.rs"]
mod tests;
