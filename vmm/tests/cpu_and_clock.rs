//! On KVM: the processor models as machines, and the clock of a restored machine whatever the two hosts' wall clocks say (S5).

mod support;

use std::time::{Duration, Instant};

use dirty_tracking::Choice;
use support::{Program, capture, capture_for_good, config, kvm_is_there, load, machine, read, sinks, wait_past};
use vmm::{CpuLevel, CpuModel, Machine, MachineState, VmmError};

const MEMORY: u64 = 64 << 20;
const COUNTER: u64 = 0x20_0000;
const REGION: u64 = 0x40_0000;
const MILLISECOND: u64 = 1_000_000;

fn of_model(cpu: CpuModel, vcpus: u8) -> Result<Machine, VmmError> {
    let config = vmm::MachineConfig { cpu, ..config(MEMORY, vcpus, Choice::Bitmap) };
    Machine::new(&config, sinks(&std::sync::Arc::default()))
}

#[test]
fn a_machine_of_a_baseline_runs_and_goes_on_elsewhere() {
    if !kvm_is_there() {
        return;
    }
    let model = CpuModel::Level(CpuLevel::V1);
    let mut first = of_model(model, 2).unwrap();
    load(&mut first, &[Program::stamp(COUNTER, REGION, REGION, 64)]);
    first.start().unwrap();
    wait_past(&first, COUNTER, 1000);
    let state = capture_for_good(&first);

    let mut second = of_model(model, 2).unwrap();
    assert_eq!(second.cpu().objection(&first.cpu()), None);
    for at in [0x4000, 0x5000, 0x6000, 0x10_0000, COUNTER] {
        let mut page = [0u8; types::PAGE_SIZE];
        vm_memory::Bytes::read_slice(&**first.memory(), &mut page, vm_memory::GuestAddress(at)).unwrap();
        vm_memory::Bytes::write_slice(&**second.memory(), &page, vm_memory::GuestAddress(at)).unwrap();
    }
    second.restore(&state).unwrap();
    assert_eq!(capture(&second).vcpus[0].regs, state.vcpus[0].regs);
    assert_eq!(second.cpu(), first.cpu());
}

#[test]
fn a_model_that_this_host_cannot_carry_is_refused_with_what_it_lacks() {
    if !kvm_is_there() {
        return;
    }
    let support = vmm::cpu::support(&vmm::open_kvm().unwrap()).unwrap();
    for (model, missing) in support {
        match of_model(model, 1) {
            Ok(machine) => {
                assert!(missing.is_empty(), "{model} was made without {missing:?}");
                assert_eq!(machine.cpu().model, model.name());
            }
            Err(error) => {
                let text = error.to_string();
                assert!(!missing.is_empty() && text.contains(model.name()) && missing.iter().all(|name| text.contains(name)), "{text}");
            }
        }
    }
}

#[test]
fn a_standby_of_another_model_says_so_and_names_what_it_lacks() {
    if !kvm_is_there() {
        return;
    }
    let (host, baseline) = (of_model(CpuModel::Host, 1).unwrap().cpu(), of_model(CpuModel::Level(CpuLevel::V1), 1).unwrap().cpu());
    let objection = baseline.objection(&host).unwrap();
    assert!(objection.contains("x86-64-v1 here and host at the peer") && objection.contains("lacks"), "{objection}");
    assert!(!host.objection(&baseline).unwrap().contains("lacks"), "a host has all that its baseline has");
}

/// A machine that stood still, with its state.
fn captured() -> MachineState {
    let mut machine = machine(MEMORY, 2, Choice::Bitmap);
    load(&mut machine, &[Program::stamp(COUNTER, REGION, REGION, 64)]);
    machine.start().unwrap();
    wait_past(&machine, COUNTER, 100);
    let state = capture_for_good(&machine);
    assert!(read(&machine, COUNTER) > 0);
    state
}

#[test]
fn the_clock_goes_on_by_the_time_that_passed_however_far_the_wall_clocks_are_apart() {
    if !kvm_is_there() {
        return;
    }
    let state = captured();
    for seconds_off in [-3600i64, -5, 0, 5, 3600] {
        let mut other = state.clone();
        let off = seconds_off * 1_000_000_000;
        other.vm.clock.realtime = other.vm.clock.realtime.wrapping_add_signed(off);
        other.vm.wall_ns = other.vm.wall_ns.wrapping_add_signed(off);
        let mut target = machine(MEMORY, 2, Choice::Bitmap);

        let start = Instant::now();
        let arrived = start.checked_sub(Duration::from_millis(50)).unwrap();
        target.restore_arrived(&other, Some(arrived)).unwrap();
        let restored = capture(&target);
        let took = start.elapsed().as_nanos() as u64;

        let passed = restored.vm.clock.clock.checked_sub(state.vm.clock.clock).expect("the clock never steps back");
        // The state of the first round was captured moments ago: the clock may not know of the 50 ms, which are made up.
        assert!((50 * MILLISECOND..=61 * MILLISECOND + took).contains(&passed), "{seconds_off} s apart: {passed} ns");
        assert_eq!(restored.vcpus[0].tsc_offset, restored.vcpus[1].tsc_offset, "the TSCs are equal");
    }
}

#[test]
fn without_a_time_of_arrival_a_wall_clock_that_is_behind_leaves_the_clock_where_it_was() {
    if !kvm_is_there() {
        return;
    }
    let mut state = captured();
    let then = state.vm.clock.clock;
    state.vm.clock.realtime += 3600 * 1_000_000_000;
    state.vm.wall_ns += 3600 * 1_000_000_000;
    let mut target = machine(MEMORY, 2, Choice::Bitmap);
    let start = Instant::now();
    target.restore(&state).unwrap();
    let passed = capture(&target).vm.clock.clock.checked_sub(then).expect("the clock never steps back");
    assert!(passed <= start.elapsed().as_nanos() as u64 + MILLISECOND, "{passed}");
}
