//! The machine as its owner sees it: boot or restore, start, pause, track dirty pages, stop.
//!
//! Lives here: the machine's phases and what may be done in each. Not here: how it is put together (`setup`), how state is read and set (`vcpu`,
//! `vm_state`). Guards S5 (only a paused machine can be captured) and S6 (a pause ends when its guard does).

use std::{
    os::fd::RawFd,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU32, Ordering},
    },
    thread::JoinHandle,
    time::Instant,
};

use crossbeam::channel::Receiver;
use dirty_tracking::{DirtySet, DirtyTracker as _, Kind, Layout, Merged};
use kvm_ioctls::VmFd;
use types::block::DiskIndex;
use types::cpu::{GuestCpu, same_tsc_frequency};

use crate::{
    GuestMemory, MachineConfig, MachineEvent, MachineState, Paused, Sinks, VcpuState, VmmError,
    acpi::events::Platform,
    attach::Attached,
    devices::{
        lock,
        pci::PciRoot,
        serial::SerialConsole,
        tap::TapWriter,
        virtio::{
            blk::{BlkDevice, BlkMetrics},
            net::{NetDevice, NetMetrics},
        },
        worker::{DeviceWorker, Quiesced, WorkerHandle},
    },
    setup,
    vcpu::{
        seat::{self, ORDER_PARK, ORDER_QUIT, Seat, Task, Waiter},
        state::{self, StateKit},
        thread::Vcpu,
        tsc::{self, Reading, TscPlan},
    },
    vm_state::MACHINE_STATE_VERSION,
};

/// What a machine is ready for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Made, with nothing in it.
    Empty,
    /// Booted.
    Booted,
    /// Holds a restored state whose devices have not been woken.
    Restored,
    /// Runs, or is paused under a guard.
    Running,
    /// Stands still until started again.
    Stopped,
}

pub(crate) struct Control {
    pub phase: Phase,
    /// Holds the devices still while the machine does not run.
    pub quiesced: Option<Quiesced>,
}

/// A network card as those need it who deal with frames; it is among the machine's devices too.
pub(crate) struct Net {
    pub card: Arc<Mutex<NetDevice>>,
    pub writer: TapWriter,
}

/// A virtual machine. Primary and standby make it the same way; then the primary boots and starts it, the standby restores and starts it.
///
/// All methods may be called from any thread. While a [`Paused`] guard lives, `start`, `pause`, `boot` and `restore` wait for it; dirty tracking, output
/// and `stop` do not.
pub struct Machine {
    pub(crate) vm: Arc<VmFd>,
    pub(crate) memory: Arc<GuestMemory>,
    pub(crate) layout: Layout,
    pub(crate) bytes: u64,
    pub(crate) kit: StateKit,
    /// Frequency of the guest's TSC: the host's own, or that of the host where the guest began.
    pub(crate) tsc_khz: AtomicU32,
    pub(crate) host_tsc_khz: u32,
    pub(crate) cpu: GuestCpu,
    pub(crate) seats: Vec<Arc<Seat>>,
    pub(crate) waiter: Arc<Waiter>,
    pub(crate) threads: Mutex<Vec<JoinHandle<()>>>,
    pub(crate) tracker: Mutex<Merged>,
    pub(crate) devices: Vec<Attached>,
    /// The PCI bus, if that is what virtio devices are on.
    pub(crate) pci: Option<Arc<PciRoot>>,
    pub(crate) nets: Vec<Net>,
    pub(crate) disks: Vec<Arc<Mutex<BlkDevice>>>,
    pub(crate) serial: Arc<Mutex<SerialConsole>>,
    pub(crate) platform: Arc<Mutex<Platform>>,
    /// The machine's own state before anything ran in it: what a reset goes back to.
    pub(crate) power_on: Option<Box<MachineState>>,
    pub(crate) worker_handle: WorkerHandle,
    pub(crate) worker: Mutex<Option<DeviceWorker>>,
    pub(crate) control: Mutex<Control>,
    pub(crate) events: Receiver<MachineEvent>,
    pub(crate) descriptors: Vec<RawFd>,
}

impl Machine {
    /// Makes a machine: VM, interrupt chips, memory (not touched yet), devices with their TAPs opened, vCPU threads parked.
    ///
    /// # Errors
    /// Names what cannot be had and what to do about it.
    pub fn new(config: &MachineConfig, sinks: Sinks) -> Result<Machine, VmmError> {
        let mut machine = setup::build(config, sinks)?;
        let power_on = machine.pause()?.capture()?;
        machine.power_on = Some(Box::new(power_on));
        Ok(machine)
    }

    /// Sets a captured state, the guest's clock moved forward by what has passed since. The memory must already be the captured machine's. For the
    /// standby, once, before `start`.
    ///
    /// # Errors
    /// When the state does not fit this machine or host; the machine must then not be started.
    pub fn restore(&mut self, state: &MachineState) -> Result<(), VmmError> {
        self.restore_arrived(state, None)
    }

    /// As [`Self::restore`], of a state that came to this host at `arrived`: the guest's clock is then right however far the two hosts' wall clocks are apart.
    ///
    /// # Errors
    /// As [`Self::restore`].
    pub fn restore_arrived(&mut self, state: &MachineState, arrived: Option<Instant>) -> Result<(), VmmError> {
        if lock(&self.control).phase != Phase::Empty {
            return Err(VmmError::WrongState { what: "restore the machine", why: "it holds a guest already" });
        }
        self.check_fits(state)?;
        // The clock first: the TSC offsets follow from it, and nothing may have run on the old one.
        let tsc = state.vm.restore_clock(&self.vm, arrived)?;
        self.restore_vcpus(state, tsc)?;
        state.vm.restore_chips(&self.vm)?;
        let failed = |device: String| move |error: crate::devices::DeviceError| VmmError::Device { device, reason: error.to_string() };
        if let (Some(root), Some(saved)) = (&self.pci, &state.pci) {
            root.restore(saved).map_err(failed("PCI bus".into()))?;
        }
        for (attached, saved) in self.devices.iter().zip(&state.devices) {
            attached.restore(saved).map_err(failed(attached.name.clone()))?;
        }
        lock(&self.serial).restore(&state.serial).map_err(failed("serial console".into()))?;
        lock(&self.platform).restore(&state.platform);
        lock(&self.control).phase = Phase::Restored;
        Ok(())
    }

    fn check_fits(&self, state: &MachineState) -> Result<(), VmmError> {
        let refuse = |reason: String| Err(VmmError::Restore(reason));
        if state.version != MACHINE_STATE_VERSION {
            let found = state.version;
            return refuse(format!(
                "it has version {found}, this program reads {MACHINE_STATE_VERSION}; run the same version on both hosts"
            ));
        }
        if state.vcpus.len() != self.seats.len() || state.devices.len() != self.devices.len() {
            return refuse(format!(
                "it has {} vCPUs and {} virtio devices, this machine {} and {}; both hosts must run the same machine configuration",
                state.vcpus.len(),
                state.devices.len(),
                self.seats.len(),
                self.devices.len()
            ));
        }
        if state.pci.is_some() != self.pci.is_some() {
            return refuse("one has a PCI bus and the other has none; both hosts must run the same machine configuration".into());
        }
        Ok(())
    }

    fn restore_vcpus(&self, state: &MachineState, mut tsc: TscPlan) -> Result<(), VmmError> {
        let khz = state.vm.tsc_khz;
        let scaled_here = !same_tsc_frequency(self.host_tsc_khz, khz);
        if scaled_here {
            self.scale_tscs(khz)?;
        }
        // The guest's nominal frequency is kept, so that small differences do not add up from host to host.
        if khz != 0 {
            self.tsc_khz.store(khz, Ordering::Relaxed);
        }
        let scaled_there = !same_tsc_frequency(state.vm.host_tsc_khz, khz);
        if let (true, Some(then)) = (scaled_here || scaled_there, state.vcpus.first().and_then(VcpuState::tsc))
            && let Some(now) = self.read_tsc()?
        {
            tsc.offset_delta = tsc::delta_by_value(then, now, tsc.elapsed_cycles);
        }
        for (seat, saved) in self.seats.iter().zip(&state.vcpus) {
            let (kit, saved) = (self.kit.clone(), Box::new(saved.clone()));
            seat.post(Task::Call(Box::new(move |vcpu| {
                state::restore(&vcpu.fd, &kit, &saved, tsc)?;
                vcpu.state_was_set();
                if let Some(ending) = saved.ending {
                    vcpu.end_as(ending);
                }
                // Tells the guest's watchdog that it stood still; EINVAL says that the guest has no kvmclock.
                match vcpu.fd.kvmclock_ctrl() {
                    Err(errno) if errno.errno() != libc::EINVAL => Err(VmmError::kvm("KVM_KVMCLOCK_CTRL")(errno)),
                    _ => Ok(()),
                }
            })));
        }
        self.all_answered()
    }

    /// Has every vCPU's TSC run at `khz`. Before any of them is set.
    fn scale_tscs(&self, khz: u32) -> Result<(), VmmError> {
        let here = self.host_tsc_khz;
        // Without scaling KVM would accept a faster TSC and imitate it by jumps (kvm_arch/x86: tsc_catchup): not what a clock should do.
        let refused = move || {
            VmmError::Restore(format!(
                "its TSC runs at {khz} kHz and this host's at {here} kHz, which cannot be scaled; use equal processors"
            ))
        };
        if !self.cpu.tsc_scaling {
            return Err(refused());
        }
        for seat in &self.seats {
            seat.post(Task::Call(Box::new(move |vcpu| vcpu.fd.set_tsc_khz(khz).map_err(|_| refused()))));
        }
        self.all_answered()
    }

    /// The first vCPU's TSC now.
    fn read_tsc(&self) -> Result<Option<Reading>, VmmError> {
        let read = Arc::new(Mutex::new(None));
        let into = Arc::clone(&read);
        self.on_vcpu(0, move |vcpu| {
            *lock(&into) = state::read_tsc(&vcpu.fd)?;
            Ok(())
        })?;
        Ok(*lock(&read))
    }

    fn all_answered(&self) -> Result<(), VmmError> {
        seat::wait_done(&self.seats, &self.waiter)?;
        self.seats.iter().try_for_each(|seat| taken_answer(seat))
    }

    /// Runs `call` on a parked vCPU's own thread.
    pub(crate) fn on_vcpu(
        &self,
        index: usize,
        call: impl FnOnce(&mut Vcpu) -> Result<(), VmmError> + Send + 'static,
    ) -> Result<(), VmmError> {
        let seat = &self.seats[index..=index];
        seat[0].post(Task::Call(Box::new(move |vcpu| {
            let answer = call(vcpu);
            vcpu.state_was_set();
            answer
        })));
        seat::wait_done(seat, &self.waiter)?;
        taken_answer(&seat[0])
    }

    /// Lets vCPUs and devices run. After `restore`, every queue is signalled and every device's interrupt raised first, since neither eventfds nor
    /// interrupts on their way are state. Does nothing when the machine runs.
    ///
    /// # Errors
    /// When there is nothing to run, or a device cannot be woken.
    pub fn start(&self) -> Result<(), VmmError> {
        let mut control = lock(&self.control);
        match control.phase {
            Phase::Empty => return Err(VmmError::WrongState { what: "start the machine", why: "nothing has been booted or restored" }),
            Phase::Running => return Ok(()),
            Phase::Restored => {
                for attached in &self.devices {
                    let woken = attached.activate();
                    woken.map_err(|error| VmmError::Device { device: attached.name.clone(), reason: error.to_string() })?;
                }
            }
            Phase::Booted | Phase::Stopped => {}
        }
        control.phase = Phase::Running;
        control.quiesced = None;
        for seat in &self.seats {
            seat.order_run();
        }
        Ok(())
    }

    /// Stops every vCPU between two instructions with no access half done, then holds the devices still. The guard resumes when dropped. On a machine
    /// that does not run it only keeps it so.
    ///
    /// # Errors
    /// When a vCPU does not stop in time; the machine then runs on.
    pub fn pause(&self) -> Result<Paused<'_>, VmmError> {
        let mut control = lock(&self.control);
        let running = control.phase == Phase::Running;
        if running {
            for seat in &self.seats {
                seat.order_stop(ORDER_PARK);
            }
            if let Err(error) = seat::wait_parked(&self.seats, &self.waiter) {
                self.seats.iter().for_each(|seat| seat.order_run());
                return Err(error);
            }
            // After the vCPUs: one that waited for a device's lock could not have stopped. Before any KVM state is read: a batch that is just ending
            // may raise an interrupt.
            control.quiesced = Some(self.worker_handle.quiesce());
        }
        Ok(Paused::new(self, control, running))
    }

    /// Ends a pause; called by the guard.
    pub(crate) fn resume(&self, control: &mut MutexGuard<'_, Control>) {
        control.quiesced = None;
        for seat in &self.seats {
            seat.order_run();
        }
    }

    /// Guest memory. Writes through it are noted as dirty.
    #[must_use]
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// Where guest memory lies; `DirtySet::new(machine.slots())` makes a set for it.
    #[must_use]
    pub fn slots(&self) -> &Layout {
        &self.layout
    }

    /// The CPU that the guest sees. A machine's state may only be restored where [`GuestCpu::objection`] has none.
    #[must_use]
    pub fn cpu(&self) -> GuestCpu {
        GuestCpu { tsc_khz: self.tsc_khz.load(Ordering::Relaxed), ..self.cpu.clone() }
    }

    /// How vCPUs' writes are tracked.
    #[must_use]
    pub fn tracking_kind(&self) -> Kind {
        lock(&self.tracker).vcpu_kind()
    }

    /// Starts dirty tracking with an empty log: writes after the return are logged.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn start_tracking(&self) -> Result<(), VmmError> {
        Ok(lock(&self.tracker).enable()?)
    }

    /// Stops dirty tracking; what was logged is dropped. vCPUs that waited for room in their ring go on.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn stop_tracking(&self) -> Result<(), VmmError> {
        lock(&self.tracker).disable()?;
        self.rings_have_room();
        Ok(())
    }

    /// Takes the dirty set while the guest runs and re-arms the log. Read the pages afterwards, never before: what is written after the return is logged
    /// again.
    ///
    /// # Errors
    /// When KVM refuses; what was found until then is in `into`.
    pub fn collect_dirty_running(&self, into: &mut DirtySet) -> Result<(), VmmError> {
        lock(&self.tracker).collect(into)?;
        self.rings_have_room();
        Ok(())
    }

    fn rings_have_room(&self) {
        for seat in &self.seats {
            seat.ring_has_room();
        }
    }

    /// About how many pages are dirty, without taking them.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn dirty_estimate(&self) -> Result<u64, VmmError> {
        Ok(lock(&self.tracker).estimate()?)
    }

    /// Takes back the dirty set of an epoch that could not be sent: the next collect includes it (S6).
    pub fn give_back(&self, set: &DirtySet) {
        lock(&self.tracker).give_back(set);
    }

    /// The way out to the host's network for frames of `port` that may be released; `None` where there is no such port.
    #[must_use]
    pub fn tap_writer(&self, port: u8) -> Option<TapWriter> {
        self.nets.get(usize::from(port)).map(|net| net.writer.clone())
    }

    /// Counters of the network card on `port`.
    #[must_use]
    pub fn net_metrics(&self, port: u8) -> Option<Arc<NetMetrics>> {
        self.nets.get(usize::from(port)).map(|net| lock(&net.card).metrics())
    }

    /// Counters of disk `index`.
    #[must_use]
    pub fn disk_metrics(&self, index: DiskIndex) -> Option<Arc<BlkMetrics>> {
        self.disks.get(usize::from(index.0)).map(|disk| lock(disk).metrics())
    }

    /// Frames, with their ports, that tell the network that the guest is here now: to be sent after activation.
    #[must_use]
    pub fn announcements(&self) -> Vec<(u8, Vec<u8>)> {
        let of_port = |(port, net): (usize, &Net)| {
            let frames = lock(&net.card).announcements();
            frames.into_iter().map(move |frame| (port as u8, frame))
        };
        self.nets.iter().enumerate().flat_map(of_port).collect()
    }

    /// Has the guest receive `frames` (each with its port) before anything from the network: what it had been given after the state that was restored.
    /// Before `start`. Returns how many there was room for.
    pub fn replay_input(&self, frames: impl IntoIterator<Item = (u8, Vec<u8>)>) -> usize {
        let give = |(port, frame): (u8, Vec<u8>)| self.nets.get(usize::from(port)).is_some_and(|net| lock(&net.card).replay(frame));
        frames.into_iter().map(give).filter(|taken| *taken).count()
    }

    /// Offers frames and disk requests again that a sink refused with `SinkFull`.
    pub fn retry_output(&self) {
        self.worker_handle.retry();
    }

    /// The descriptors of the virtual machine and its vCPUs: whoever else holds them keeps KVM from taking the machine apart when this process dies.
    #[must_use]
    pub fn descriptors(&self) -> &[RawFd] {
        &self.descriptors
    }

    /// What the machine has to tell. Each event but a full ring's means that its vCPU stands still for good.
    #[must_use]
    pub fn events(&self) -> &Receiver<MachineEvent> {
        &self.events
    }

    /// Number of virtio devices.
    #[must_use]
    pub fn devices(&self) -> usize {
        self.devices.len()
    }

    /// Names of the virtio devices that no driver of the guest has taken ("net0", "disk0", "rng").
    #[must_use]
    pub fn undriven_devices(&self) -> Vec<String> {
        self.devices.iter().filter(|device| !device.is_driven()).map(|device| device.name.clone()).collect()
    }

    /// Types at the guest's console. Returns how many bytes were taken: the rest found the console's buffer (4 KiB) full and can be offered again when the guest
    /// has read.
    pub fn console_input(&self, bytes: &[u8]) -> usize {
        lock(&self.serial).push_input(bytes)
    }

    /// Stops the machine for good and joins its threads. Nothing runs and nothing leaves afterwards. May be called again.
    pub fn stop(&self) {
        let threads = std::mem::take(&mut *lock(&self.threads));
        end_threads(&self.seats, threads);
        drop(lock(&self.worker).take());
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Tells vCPU threads to end and waits for them.
pub(crate) fn end_threads(seats: &[Arc<Seat>], threads: Vec<JoinHandle<()>>) {
    for seat in seats {
        seat.order_stop(ORDER_QUIT);
    }
    for thread in threads {
        if thread.join().is_err() {
            tracing::error!("a vCPU's thread ended in a panic");
        }
    }
}

fn taken_answer(seat: &Seat) -> Result<(), VmmError> {
    let gone = VmmError::WrongState { what: "use a vCPU", why: "the machine has been stopped for good" };
    lock(&seat.answered).take().unwrap_or(Err(gone))
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
