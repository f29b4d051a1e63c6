//! The loop of a vCPU's thread: run the guest, answer its port and memory-mapped accesses, park on request, read or set its own state.
//!
//! Not here: who asks and why ([`super::seat`], the machine). Guards S5: the thread parks only when no access is half done (`KVM_RUN` is entered with
//! `immediate_exit` until it answers EINTR), so the registers are those of an instruction boundary.

use std::{
    fmt::Write as _,
    sync::{Arc, PoisonError, atomic::Ordering},
    thread,
    time::Instant,
};

use crossbeam::channel::Sender;
use kvm_bindings::KVM_EXIT_DIRTY_RING_FULL;
use kvm_ioctls::{SyncReg, VcpuExit, VcpuFd};

use super::{
    seat::{ORDER_QUIT, ORDER_RUN, SPIN, STATE_GONE, STATE_PARKED, STATE_RUNNING, Seat, Task},
    state::{Capturer, Ending, StateKit, VcpuState},
};
use crate::{MachineEvent, VmmError, acpi, devices::AddressSpace, raw};

/// The keyboard controller's command port, and the command that pulses the CPU's reset line: how a PC without ACPI restarts.
const I8042_COMMAND: u16 = 0x64;
const I8042_RESET: u8 = 0xfe;
/// The power management port that ends the machine when bit 13 is written (where QEMU's machines have it).
const POWER_PORT: u16 = 0x604;
const POWER_OFF: u16 = 1 << 13;

/// The machine's address spaces as vCPUs reach them; shared by all of them, read only.
#[derive(Default)]
pub(crate) struct Buses {
    pub ports: AddressSpace,
    pub memory: AddressSpace,
}

/// A vCPU as its own thread holds it.
pub(crate) struct Vcpu {
    pub fd: VcpuFd,
    pub capturer: Capturer,
    seat: Arc<Seat>,
    buses: Arc<Buses>,
    events: Sender<MachineEvent>,
    /// The shared page holds the registers of now: KVM_RUN has been left since they were last set.
    synced: bool,
}

/// What to do after an exit.
enum After {
    /// Enter the guest again. The access may be half done.
    Access,
    /// Enter the guest again.
    Continue,
    /// Finish the access, then do not run again.
    End(MachineEvent),
    /// Park until the ring has room.
    RingFull,
}

impl Vcpu {
    pub(crate) fn new(
        mut fd: VcpuFd,
        kit: StateKit,
        seat: Arc<Seat>,
        buses: Arc<Buses>,
        events: Sender<MachineEvent>,
    ) -> Result<Vcpu, VmmError> {
        if kit.sync_regs {
            for part in [SyncReg::Register, SyncReg::SystemRegister, SyncReg::VcpuEvents] {
                fd.set_sync_valid_reg(part);
            }
        }
        Ok(Vcpu { fd, capturer: Capturer::new(kit)?, seat, buses, events, synced: false })
    }

    /// The thread's whole life.
    pub(crate) fn serve(mut self) {
        self.seat.tid.store(raw::register_for_kicks(), Ordering::SeqCst);
        let _ = self.seat.thread.set(thread::current());
        // Whoever posted before the line above could not wake us: look once before sleeping, which the loop does.
        loop {
            if self.seat.posted.load(Ordering::SeqCst) != self.seat.done.load(Ordering::SeqCst) {
                self.do_task();
            }
            match self.seat.order.load(Ordering::SeqCst) {
                ORDER_QUIT => break,
                ORDER_RUN if self.may_run() => self.run(),
                _ => {}
            }
            self.wait_for_something();
        }
        self.seat.tid.store(0, Ordering::SeqCst);
        self.seat.state.store(STATE_GONE, Ordering::SeqCst);
        self.seat.waiter.notify();
    }

    /// The state was set from outside `KVM_RUN`: what the shared page and the caches say is old.
    pub(crate) fn state_was_set(&mut self) {
        self.synced = false;
        self.capturer.state_was_set();
    }

    fn may_run(&self) -> bool {
        !self.seat.has_ended() && !self.seat.ring_full.load(Ordering::SeqCst)
    }

    /// Looks for [`SPIN`], then sleeps: after a stop the next order (capture) comes within a few microseconds.
    fn wait_for_something(&self) {
        let start = Instant::now();
        loop {
            let order = self.seat.order.load(Ordering::SeqCst);
            let task = self.seat.posted.load(Ordering::SeqCst) != self.seat.done.load(Ordering::SeqCst);
            if task || order == ORDER_QUIT || (order == ORDER_RUN && self.may_run()) {
                return;
            }
            if start.elapsed() < SPIN { std::hint::spin_loop() } else { thread::park() }
        }
    }

    fn do_task(&mut self) {
        let task = self.seat.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        match task {
            Some(Task::Capture) => {
                let ending = self.seat.ending();
                let state = self.capturer.capture(&mut self.fd, self.synced).map(|state| VcpuState { ending, ..state });
                *self.seat.captured.lock().unwrap_or_else(PoisonError::into_inner) = Some(state);
            }
            Some(Task::Call(call)) => {
                let answer = call(self);
                *self.seat.answered.lock().unwrap_or_else(PoisonError::into_inner) = Some(answer);
            }
            None => {}
        }
        self.seat.done.fetch_add(1, Ordering::SeqCst);
        self.seat.waiter.notify();
    }

    /// Runs the guest until ordered otherwise.
    fn run(&mut self) {
        self.seat.state.store(STATE_RUNNING, Ordering::SeqCst);
        self.seat.page.set_immediate_exit(false);
        // Read after both writes: whoever changed the order before them relies on us to see it here.
        if self.seat.order.load(Ordering::SeqCst) == ORDER_RUN {
            self.run_until_stopped();
        }
        self.seat.state.store(STATE_PARKED, Ordering::SeqCst);
        self.seat.waiter.notify();
    }

    fn run_until_stopped(&mut self) {
        let mut ending = None;
        loop {
            let after = match self.fd.run() {
                Ok(exit) => answer(exit, &self.buses, self.seat.index as u8),
                Err(errno) if errno.errno() == libc::EINTR || errno.errno() == libc::EAGAIN => After::Continue,
                Err(errno) => After::End(MachineEvent::VcpuError { vcpu: self.seat.index as u8, detail: format!("KVM_RUN: {errno}") }),
            };
            self.synced = self.capturer.kit().sync_regs;
            let interrupted = matches!(after, After::Continue);
            let half_done = match after {
                After::Access => true,
                After::Continue => false,
                After::RingFull => {
                    self.seat.ring_full.store(true, Ordering::SeqCst);
                    self.tell(MachineEvent::DirtyRingFull { vcpu: self.seat.index as u8 });
                    return;
                }
                After::End(event) => {
                    // A port write that ends the machine must be finished like any other; a failed KVM_RUN must not be repeated.
                    let finish = matches!(event, MachineEvent::Reset | MachineEvent::Shutdown);
                    ending = Some(self.with_place(event));
                    finish
                }
            };
            if half_done && (ending.is_some() || self.seat.order.load(Ordering::SeqCst) != ORDER_RUN) {
                self.seat.page.set_immediate_exit(true);
                continue;
            }
            if let Some(event) = ending.take() {
                self.end(event);
                return;
            }
            if self.seat.order.load(Ordering::SeqCst) != ORDER_RUN {
                return;
            }
            // Ordered to stop and then to run before this thread looked: a pause that did not wait any longer. The flag would keep the guest out for good.
            // Cleared before the order is read again, so that whoever gives the next order sets it after this, or is seen here.
            if interrupted {
                self.seat.page.set_immediate_exit(false);
                if self.seat.order.load(Ordering::SeqCst) != ORDER_RUN {
                    return;
                }
            }
        }
    }

    /// Stands still and says why.
    fn end(&self, event: MachineEvent) {
        self.seat.end(match event {
            MachineEvent::Shutdown => Some(Ending::Shutdown),
            MachineEvent::Reset => Some(Ending::Reset),
            _ => None,
        });
        self.tell(event);
    }

    /// The state that was set is that of a vCPU whose guest had ended the machine's run: stands still as it did, and says so here too.
    pub(crate) fn end_as(&self, ending: Ending) {
        self.end(match ending {
            Ending::Shutdown => MachineEvent::Shutdown,
            Ending::Reset => MachineEvent::Reset,
        });
    }

    /// Adds where the guest was, for whoever has to find out why.
    fn with_place(&self, event: MachineEvent) -> MachineEvent {
        match event {
            MachineEvent::InternalError { vcpu, mut detail } => {
                if let Ok(regs) = self.fd.get_regs() {
                    let _ = write!(detail, " at rip {:#x}, rsp {:#x}, rflags {:#x}", regs.rip, regs.rsp, regs.rflags);
                }
                MachineEvent::InternalError { vcpu, detail }
            }
            other => other,
        }
    }

    /// Never blocks: the channel holds more events than the vCPUs can have outstanding, since each event parks its vCPU.
    fn tell(&self, event: MachineEvent) {
        tracing::debug!(?event, "machine event");
        if self.events.try_send(event).is_err() {
            tracing::warn!("a machine event was dropped: nobody reads them");
        }
    }
}

fn answer(exit: VcpuExit<'_>, buses: &Buses, vcpu: u8) -> After {
    match exit {
        VcpuExit::IoIn(port, data) => {
            buses.ports.read(u64::from(port), data);
            // The keyboard controller's status must not read as "busy" for ever: a guest waits for that before it resets.
            if port == I8042_COMMAND {
                data.fill(0);
            }
            After::Access
        }
        VcpuExit::IoOut(I8042_COMMAND, data) if data.contains(&I8042_RESET) => After::End(MachineEvent::Reset),
        VcpuExit::IoOut(POWER_PORT, &[low, high]) if u16::from_le_bytes([low, high]) & POWER_OFF != 0 => After::End(MachineEvent::Shutdown),
        VcpuExit::IoOut(port, data) if acpi::ending(port, data).is_some() => acpi::ending(port, data).map_or(After::Access, After::End),
        VcpuExit::IoOut(port, data) => {
            buses.ports.write(u64::from(port), data);
            After::Access
        }
        VcpuExit::MmioRead(address, data) => {
            buses.memory.read(address, data);
            After::Access
        }
        VcpuExit::MmioWrite(address, data) => {
            buses.memory.write(address, data);
            After::Access
        }
        // A triple fault: on a PC it pulses the reset line.
        VcpuExit::Shutdown => After::End(MachineEvent::Reset),
        VcpuExit::SystemEvent(kind, _) if kind == kvm_bindings::KVM_SYSTEM_EVENT_RESET => After::End(MachineEvent::Reset),
        VcpuExit::SystemEvent(kind, _) if kind == kvm_bindings::KVM_SYSTEM_EVENT_SHUTDOWN => After::End(MachineEvent::Shutdown),
        VcpuExit::Intr | VcpuExit::IrqWindowOpen | VcpuExit::SetTpr | VcpuExit::IoapicEoi(_) => After::Continue,
        VcpuExit::Unsupported(KVM_EXIT_DIRTY_RING_FULL) => After::RingFull,
        VcpuExit::FailEntry(reason, cpu) => {
            let detail = format!("the processor refused to enter the guest (reason {reason:#x}, host CPU {cpu})");
            After::End(MachineEvent::InternalError { vcpu, detail })
        }
        VcpuExit::InternalError => {
            let detail = "KVM internal error: an instruction that it cannot emulate".to_owned();
            After::End(MachineEvent::InternalError { vcpu, detail })
        }
        other => After::End(MachineEvent::InternalError { vcpu, detail: format!("unexpected exit from the guest: {other:?}") }),
    }
}
