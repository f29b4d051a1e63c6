//! Pausing stops every vCPU between two instructions, and a restored machine goes on exactly where the captured one stopped (S5).

mod support;

use std::time::Instant;

use dirty_tracking::{Choice, DirtySet};
use kvm_bindings::kvm_regs;
use support::{LCG_A, LCG_C, Program, READ_MMIO, STAMP_DRAWN, capture, capture_for_good, kvm_is_there, load, machine, read, wait_past};
use types::PAGE_SIZE;
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryBackend as _, GuestMemoryRegion as _};
use vmm::{Machine, MachineState, VmmError};

const MEMORY: u64 = 64 << 20;
const COUNTER: u64 = 0x20_0000;
const REGION: u64 = 0x40_0000;

/// The generator's `n`th number from 0.
fn generated(mut n: u64) -> u64 {
    let (mut factor, mut term, mut a, mut c) = (1u64, 0u64, LCG_A, LCG_C);
    while n > 0 {
        if n & 1 == 1 {
            (factor, term) = (factor.wrapping_mul(a), term.wrapping_mul(a).wrapping_add(c));
        }
        (a, c) = (a.wrapping_mul(a), c.wrapping_mul(a).wrapping_add(c));
        n >>= 1;
    }
    term
}

/// Registers and memory of the stamp program must be those of one moment of an undisturbed run.
fn assert_consistent(machine: &Machine, state: &MachineState) {
    let regs = state.vcpus[0].regs;
    let at = regs.rip & 0xfff;
    if (7..STAMP_DRAWN).contains(&at) {
        return; // between multiplication and addition
    }
    let counted = if at == 0 || at > 3 { read(machine, COUNTER) } else { read(machine, COUNTER) + 1 };
    assert_eq!(counted, regs.rax, "the count in memory is that in the register, at offset {at}");
    let drawn = if at == 0 || at >= STAMP_DRAWN { regs.rax } else { regs.rax - 1 };
    assert_eq!(regs.rcx, generated(drawn), "the generator has made as many numbers as there were turns, at offset {at}");
}

fn copy_memory(from: &Machine, to: &Machine) {
    for region in from.memory().iter() {
        let mut page = [0u8; PAGE_SIZE];
        for offset in (0..region.len()).step_by(PAGE_SIZE) {
            let at = GuestAddress(region.start_addr().0 + offset);
            from.memory().read_slice(&mut page, at).unwrap();
            if page.iter().any(|byte| *byte != 0) {
                to.memory().write_slice(&page, at).unwrap();
            }
        }
    }
}

#[test]
fn a_guest_paused_a_thousand_times_is_always_between_two_instructions() {
    if !kvm_is_there() {
        return;
    }
    let mut machine = machine(MEMORY, 1, Choice::Bitmap);
    load(&mut machine, &[Program::stamp(COUNTER, REGION, REGION, 64)]);
    machine.start().unwrap();
    wait_past(&machine, COUNTER, 0);
    let (mut pauses, mut captures, mut resumes) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..1000 {
        let before = read(&machine, COUNTER);
        let start = Instant::now();
        let mut paused = machine.pause().unwrap();
        pauses.push(start.elapsed());
        let start = Instant::now();
        let state = paused.capture().unwrap();
        captures.push(start.elapsed());
        assert_consistent(&machine, &state);
        let still = read(&machine, COUNTER);
        let start = Instant::now();
        paused.resume();
        resumes.push(start.elapsed());
        assert!(still >= before);
        wait_past(&machine, COUNTER, still);
    }
    for (name, mut times) in [("pause", pauses), ("capture", captures), ("resume", resumes)] {
        times.sort();
        println!("{name}: p50 {:?}, p99 {:?}, max {:?}", times[500], times[990], times[999]);
    }
}

#[test]
fn a_restored_machine_goes_on_exactly_where_the_captured_one_stopped() {
    if !kvm_is_there() {
        return;
    }
    let mut first = machine(MEMORY, 1, Choice::Bitmap);
    load(&mut first, &[Program::stamp(COUNTER, REGION, REGION, 64)]);
    first.start().unwrap();
    wait_past(&first, COUNTER, 1000);
    let state = capture_for_good(&first);

    let mut second = machine(MEMORY, 1, Choice::Ring);
    copy_memory(&first, &second);
    let start = Instant::now();
    second.restore(&state).unwrap();
    println!("restore: {:?}", start.elapsed());

    let restored = capture(&second);
    assert_eq!(restored.vcpus[0].regs, state.vcpus[0].regs);
    assert_eq!(restored.vcpus[0].sregs, state.vcpus[0].sregs);
    assert_eq!(restored.vcpus[0].xsave, state.vcpus[0].xsave);
    assert_eq!(restored.vcpus[0].events, state.vcpus[0].events);
    assert!(restored.vm.clock.clock > state.vm.clock.clock, "the guest's clock goes forward");

    second.start().unwrap();
    wait_past(&second, COUNTER, state.vcpus[0].regs.rax + 1000);
    // The guard must live until memory is read: the guest would be further by then.
    let mut paused = second.pause().unwrap();
    assert_consistent(&second, &paused.capture().unwrap());
    drop(paused);
    assert_eq!(read(&first, COUNTER) | 1, state.vcpus[0].regs.rax | 1, "the first machine stood still");
}

#[test]
fn two_vcpus_stop_and_go_on_together() {
    if !kvm_is_there() {
        return;
    }
    let programs =
        || [Program::stamp(COUNTER, REGION, REGION, 64), Program::stamp(COUNTER + 0x1000, REGION + 0x10_0000, REGION + 0x10_0000, 64)];
    let mut first = machine(MEMORY, 2, Choice::Ring);
    load(&mut first, &programs());
    first.start().unwrap();
    wait_past(&first, COUNTER, 1000);
    wait_past(&first, COUNTER + 0x1000, 1000);
    for _ in 0..100 {
        let mut paused = first.pause().unwrap();
        assert_consistent(&first, &paused.capture().unwrap());
    }
    let state = capture_for_good(&first);

    let mut second = machine(MEMORY, 2, Choice::Bitmap);
    copy_memory(&first, &second);
    second.restore(&state).unwrap();
    let restored = capture(&second);
    assert_eq!(restored.vcpus[0].tsc_offset, restored.vcpus[1].tsc_offset, "the TSCs are equal");
    second.start().unwrap();
    for (index, vcpu) in state.vcpus.iter().enumerate() {
        wait_past(&second, COUNTER + index as u64 * 0x1000, vcpu.regs.rax + 1000);
    }
    // The guard must live until memory is read: the guest would be further by then.
    let mut paused = second.pause().unwrap();
    assert_consistent(&second, &paused.capture().unwrap());
    drop(paused);
}

#[test]
fn an_access_to_mapped_io_that_straddles_pages_is_never_captured_half_done() {
    if !kvm_is_there() {
        return;
    }
    let program = || Program { code: READ_MMIO, regs: kvm_regs { rbx: COUNTER, rdi: vmm::MMIO_BASE + 0x1ffc, ..Default::default() } };
    let mut running = machine(MEMORY, 1, Choice::Bitmap);
    load(&mut running, &[program()]);
    running.start().unwrap();
    for _ in 0..20 {
        for _ in 0..20 {
            let mut paused = running.pause().unwrap();
            let state = paused.capture().unwrap();
            assert_eq!(state.vcpus[0].regs.rsi, 0, "every bit read as one");
        }
        wait_past(&running, COUNTER, read(&running, COUNTER));
        let state = capture_for_good(&running);
        let mut next = machine(MEMORY, 1, Choice::Bitmap);
        copy_memory(&running, &next);
        next.restore(&state).unwrap();
        next.start().unwrap();
        running = next;
    }
}

#[test]
fn state_travels_through_serde_unchanged() {
    if !kvm_is_there() {
        return;
    }
    let mut machine = machine(MEMORY, 1, Choice::Bitmap);
    load(&mut machine, &[Program::stamp(COUNTER, REGION, REGION, 64)]);
    let state = capture(&machine);
    let bytes = bincode::serde::encode_to_vec(&state, bincode::config::standard()).unwrap();
    let (again, read): (MachineState, usize) = bincode::serde::decode_from_slice(&bytes, bincode::config::standard()).unwrap();
    assert_eq!(read, bytes.len());
    assert_eq!(format!("{state:?}"), format!("{again:?}"));
    println!("state: {} bytes", bytes.len());
}

#[test]
fn a_state_of_another_shape_or_version_is_refused() {
    if !kvm_is_there() {
        return;
    }
    let state = capture(&machine(MEMORY, 1, Choice::Bitmap));
    let wrong_version = MachineState { version: state.version + 1, ..state.clone() };
    let refused = machine(MEMORY, 1, Choice::Bitmap).restore(&wrong_version).unwrap_err();
    assert!(refused.to_string().contains("version"), "{refused}");
    let refused = machine(MEMORY, 2, Choice::Bitmap).restore(&state).unwrap_err();
    assert!(refused.to_string().contains("vCPUs"), "{refused}");
}

#[test]
fn a_guard_dropped_resumes_and_one_told_to_stay_does_not() {
    if !kvm_is_there() {
        return;
    }
    let mut machine = machine(MEMORY, 1, Choice::Bitmap);
    assert!(matches!(machine.start(), Err(VmmError::WrongState { .. })));
    load(&mut machine, &[Program::stamp(COUNTER, REGION, REGION, 64)]);
    machine.start().unwrap();
    drop(machine.pause().unwrap());
    wait_past(&machine, COUNTER, read(&machine, COUNTER));
    machine.pause().unwrap().stay_stopped();
    let still = read(&machine, COUNTER);
    drop(machine.pause().unwrap());
    assert_eq!(read(&machine, COUNTER), still);
    machine.start().unwrap();
    wait_past(&machine, COUNTER, still);
    machine.stop();
    machine.stop();
    let stopped = read(&machine, COUNTER);
    assert!(machine.pause().is_ok_and(|mut paused| paused.capture().is_err()));
    assert_eq!(read(&machine, COUNTER), stopped);
    let _ = DirtySet::new(machine.slots());
}
