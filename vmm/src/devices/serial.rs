//! The serial console: a 16550A at the first COM port.
//!
//! Lives here: bytes out to the [`ConsoleSink`], a bounded input queue, saved state. Not here: who reads the console. Guards S1 (output
//! leaves only through the sink) and S5 (an interrupt that was pending when the state was saved is raised again).

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vm_superio::serial::{NoEvents, SerialState};
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{BusDevice, DeviceError};
use crate::ConsoleSink;

/// First I/O port.
pub const SERIAL_PORT: u64 = 0x3f8;
/// Number of I/O ports.
pub const SERIAL_PORTS: u64 = 8;
/// Interrupt line (GSI), edge-triggered.
pub const SERIAL_GSI: u32 = 4;

/// Input bytes waiting beyond the chip's own 64-byte buffer. Enough for a pasted screen; more is refused, since nobody may make the
/// machine's memory grow by typing.
pub const INPUT_MAX: usize = 4096;

/// Version of [`SerialConsoleState`]'s content.
pub const SERIAL_STATE_VERSION: u16 = 1;

const NAME: &str = "the serial console";

/// Everything about the console that must follow the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialConsoleState {
    /// [`SERIAL_STATE_VERSION`] of the program that wrote it.
    pub version: u16,
    baud_divisor: [u8; 2],
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
    chip_input: Vec<u8>,
    waiting_input: Vec<u8>,
}

struct Line(EventFd);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        match self.0.write(1) {
            // A counter at its limit: the interrupt is pending already.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            other => other,
        }
    }
}

struct Output(Arc<dyn ConsoleSink>);

impl io::Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The console. Behind a mutex, shared by vCPU threads and whoever types or saves.
pub struct SerialConsole {
    chip: Serial<Line, NoEvents, Output>,
    waiting: VecDeque<u8>,
    sink: Arc<dyn ConsoleSink>,
}

impl SerialConsole {
    /// A console at reset.
    ///
    /// # Errors
    /// [`DeviceError::EventFd`].
    pub fn new(sink: Arc<dyn ConsoleSink>) -> Result<SerialConsole, DeviceError> {
        let line = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)
            .map_err(|source| DeviceError::EventFd { purpose: "the serial console's interrupt", source })?;
        let chip = Serial::new(Line(line), Output(Arc::clone(&sink)));
        Ok(SerialConsole { chip, waiting: VecDeque::with_capacity(INPUT_MAX), sink })
    }

    /// The eventfd to register as irqfd on [`SERIAL_GSI`].
    #[must_use]
    pub fn irqfd(&self) -> &EventFd {
        &self.chip.interrupt_evt().0
    }

    /// Types `bytes` at the guest. Returns how many were taken; the rest is to be offered again when the guest has read.
    pub fn push_input(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(INPUT_MAX - self.waiting.len());
        self.waiting.extend(&bytes[..taken]);
        self.feed();
        taken
    }

    /// Moves waiting input into the chip as far as it has room.
    fn feed(&mut self) {
        let room = self.chip.fifo_capacity().min(self.waiting.len());
        if room == 0 {
            return;
        }
        let (first, _) = self.waiting.as_slices();
        let part = &first[..room.min(first.len())];
        match self.chip.enqueue_raw_bytes(part) {
            // Nothing is taken in loopback mode: it waits.
            Ok(taken) => drop(self.waiting.drain(..taken)),
            Err(error) => tracing::trace!(%error, "serial input waits"),
        }
    }

    /// The console's state. Only while no vCPU runs.
    #[must_use]
    pub fn save(&self) -> SerialConsoleState {
        let chip = self.chip.state();
        SerialConsoleState {
            version: SERIAL_STATE_VERSION,
            baud_divisor: [chip.baud_divisor_low, chip.baud_divisor_high],
            interrupt_enable: chip.interrupt_enable,
            interrupt_identification: chip.interrupt_identification,
            line_control: chip.line_control,
            line_status: chip.line_status,
            modem_control: chip.modem_control,
            modem_status: chip.modem_status,
            scratch: chip.scratch,
            chip_input: chip.in_buffer,
            waiting_input: self.waiting.iter().copied().collect(),
        }
    }

    /// Puts a saved state into this console, and raises its interrupt if one was pending. Before the first start, after the interrupt
    /// chip is set. The irqfd stays the same.
    ///
    /// # Errors
    /// [`DeviceError::StateVersion`], [`DeviceError::StateMismatch`] or [`DeviceError::EventFd`]; the console is unchanged then.
    pub fn restore(&mut self, state: &SerialConsoleState) -> Result<(), DeviceError> {
        if state.version != SERIAL_STATE_VERSION {
            return Err(DeviceError::StateVersion { device: NAME, found: state.version, known: SERIAL_STATE_VERSION });
        }
        if state.waiting_input.len() > INPUT_MAX {
            return Err(DeviceError::StateMismatch { device: NAME, reason: "more input is waiting than a console holds".to_owned() });
        }
        let line = self.irqfd().try_clone().map_err(|source| DeviceError::EventFd { purpose: "the serial console's interrupt", source })?;
        let chip = SerialState {
            baud_divisor_low: state.baud_divisor[0],
            baud_divisor_high: state.baud_divisor[1],
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: state.chip_input.clone(),
        };
        self.chip = Serial::from_state(&chip, Line(line), NoEvents, Output(Arc::clone(&self.sink)))
            .map_err(|error| DeviceError::StateMismatch { device: NAME, reason: error.to_string() })?;
        self.waiting.clear();
        self.waiting.extend(&state.waiting_input);
        Ok(())
    }
}

impl BusDevice for SerialConsole {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        // The chip's registers are bytes; a wider access sees the first and ones, as on hardware.
        data.fill(0xff);
        if let (Some(first), Ok(offset)) = (data.first_mut(), u8::try_from(offset)) {
            *first = self.chip.read(offset);
            if !self.waiting.is_empty() {
                self.feed();
            }
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (Some(first), Ok(offset)) = (data.first(), u8::try_from(offset))
            && let Err(error) = self.chip.write(offset, *first)
        {
            tracing::trace!(%error, "serial write");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::super::lock;
    use super::*;

    const DATA: u64 = 0;
    const INTERRUPT_ENABLE: u64 = 1;
    const LINE_STATUS: u64 = 5;
    const DATA_READY: u8 = 1;

    #[derive(Default)]
    struct Screen(Mutex<Vec<u8>>);

    impl ConsoleSink for Screen {
        fn write(&self, bytes: &[u8]) {
            lock(&self.0).extend_from_slice(bytes);
        }
    }

    fn console() -> (Arc<Screen>, SerialConsole) {
        let screen = Arc::new(Screen::default());
        let console = SerialConsole::new(screen.clone()).unwrap();
        (screen, console)
    }

    fn read(console: &mut SerialConsole, offset: u64) -> u8 {
        let mut data = [0];
        console.read(offset, &mut data);
        data[0]
    }

    fn read_all(console: &mut SerialConsole) -> Vec<u8> {
        let mut bytes = Vec::new();
        while read(console, LINE_STATUS) & DATA_READY != 0 {
            bytes.push(read(console, DATA));
        }
        bytes
    }

    #[test]
    fn what_the_guest_prints_reaches_the_sink_in_order() {
        let (screen, mut console) = console();
        for byte in b"boot ok\n" {
            console.write(DATA, &[*byte]);
        }
        assert_eq!(*lock(&screen.0), b"boot ok\n");
    }

    #[test]
    fn input_beyond_the_chip_waits_and_input_beyond_the_bound_is_refused() {
        let (_, mut console) = console();
        let typed: Vec<u8> = (0..=255u8).cycle().take(3 * INPUT_MAX).collect();
        let mut offered = 0;
        loop {
            let taken = console.push_input(&typed[offered..]);
            if taken == 0 {
                break;
            }
            offered += taken;
        }
        assert!((INPUT_MAX..INPUT_MAX + 128).contains(&offered));
        assert_eq!(read_all(&mut console), typed[..offered]);
    }

    #[test]
    fn a_restored_console_has_the_same_input_and_raises_a_pending_interrupt() {
        let (_, mut before) = console();
        before.write(INTERRUPT_ENABLE, &[1]);
        before.push_input(&[b'x'; 100]);
        let state = before.save();

        let (_, mut after) = console();
        after.restore(&state).unwrap();

        assert_eq!(after.save(), state);
        assert_eq!(after.irqfd().read().unwrap(), 1);
        assert_eq!(read_all(&mut after), [b'x'; 100]);
    }

    #[test]
    fn a_state_of_another_version_or_size_is_refused() {
        let (_, mut console) = console();
        let good = console.save();
        let other = SerialConsoleState { version: 2, ..good.clone() };
        assert!(matches!(console.restore(&other), Err(DeviceError::StateVersion { found: 2, .. })));
        let large = SerialConsoleState { chip_input: vec![0; 65], ..good.clone() };
        assert!(matches!(console.restore(&large), Err(DeviceError::StateMismatch { .. })));
        let larger = SerialConsoleState { waiting_input: vec![0; INPUT_MAX + 1], ..good };
        assert!(matches!(console.restore(&larger), Err(DeviceError::StateMismatch { .. })));
    }

    #[test]
    fn odd_accesses_are_survived() {
        let (_, mut console) = console();
        for offset in [0, 1, 7, 8, 255, 256, u64::MAX] {
            for width in [0, 1, 2, 4, 8] {
                console.write(offset, &vec![0xff; width]);
                console.read(offset, &mut vec![0; width]);
            }
        }
    }
}
