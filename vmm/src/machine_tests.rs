//! What can only be seen from inside a machine: orders to a vCPU that come faster than its thread looks.

use std::time::{Duration, Instant};

use dirty_tracking::Choice;
use kvm_bindings::kvm_regs;
use vm_memory::{Bytes as _, GuestAddress};

use super::*;
use crate::boot::entry;
use crate::{Backing, ConsoleSink, FrameSink, MemoryConfig, SinkFull};

const CODE: u64 = 0x10_0000;
const COUNTER: u64 = 0x20_0000;
/// 32-bit code: inc dword [COUNTER]; jmp to the start.
const COUNT: &[u8] = &[0xff, 0x05, 0x00, 0x00, 0x20, 0x00, 0xeb, 0xf8];

struct Nothing;

impl FrameSink for Nothing {
    fn send(&self, _port: u8, _frame: &[u8]) -> Result<(), SinkFull> {
        Ok(())
    }
}

impl ConsoleSink for Nothing {
    fn write(&self, _bytes: &[u8]) {}
}

/// A machine that counts; none, loudly, where there is no KVM and it is not required.
fn counting() -> Option<Machine> {
    if let Err(error) = crate::open_kvm() {
        assert!(!std::env::var("LOCKSTEP_REQUIRE_KVM").is_ok_and(|value| value == "1"), "{error}");
        eprintln!("SKIPPED, NOTHING TESTED: {error}");
        return None;
    }
    let config = MachineConfig {
        memory: MemoryConfig { bytes: 16 << 20, backing: Backing::Anonymous },
        vcpus: 1,
        nets: Vec::new(),
        rng: false,
        bus: crate::Bus::Mmio,
        cpu: crate::CpuModel::Host,
        dirty: Choice::Auto,
    };
    let machine =
        Machine::new(&config, Sinks { frames: Arc::new(Nothing), console: Arc::new(Nothing), disks: Vec::new() }).expect("a machine");
    machine.memory.write_slice(COUNT, GuestAddress(CODE)).expect("in memory");
    machine
        .on_vcpu(0, |vcpu| {
            let sregs = vcpu.fd.get_sregs().map_err(VmmError::kvm("KVM_GET_SREGS"))?;
            let (regs, sregs) = entry::registers(entry::Entry::Pvh { address: CODE }, sregs);
            vcpu.fd.set_sregs(&sregs).map_err(VmmError::kvm("KVM_SET_SREGS"))?;
            vcpu.fd.set_regs(&kvm_regs { rflags: 2, ..regs }).map_err(VmmError::kvm("KVM_SET_REGS"))
        })
        .expect("registers set");
    lock(&machine.control).phase = Phase::Booted;
    machine.start().expect("started");
    Some(machine)
}

fn count(machine: &Machine) -> u32 {
    machine.memory.read_obj(GuestAddress(COUNTER)).expect("in memory")
}

/// Whether the guest makes progress from here on.
fn counts_on(machine: &Machine) -> bool {
    let (from, start) = (count(machine), Instant::now());
    while count(machine).wrapping_sub(from) < 100 {
        if start.elapsed() > Duration::from_secs(10) {
            return false;
        }
        std::thread::yield_now();
    }
    true
}

#[test]
fn a_guest_goes_on_after_a_pause_that_gave_up_waiting_for_it() {
    let Some(machine) = counting() else { return };
    assert!(counts_on(&machine));
    for turn in 0..100 {
        for seat in &machine.seats {
            // As `pause` does when the vCPU does not stop in time; here it had no time at all.
            seat.order_stop(ORDER_PARK);
            seat.order_run();
        }
        assert!(counts_on(&machine), "the guest stands still after turn {turn}");
    }
    // And it can still be stopped.
    drop(machine.pause().expect("paused"));
    assert!(counts_on(&machine));
}
