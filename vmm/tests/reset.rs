//! A machine that is reset is one that was just switched on, with its kernel loaded again; an end that the guest asked for is not lost with its host.

mod support;

use std::{sync::Arc, time::Duration};

use dirty_tracking::{Choice, DirtySet};
use support::{Remember, config, image, kvm_is_there, sinks};
use vm_memory::{Bytes as _, GuestAddress};
use vmm::{BootConfig, BootImages, Ending, KernelImage, Machine, MachineEvent};

const MEMORY: u64 = 64 << 20;
const LIMIT: Duration = Duration::from_secs(20);

fn images(code: &[u8]) -> BootImages {
    let kernel = KernelImage::Bytes(image(code, true).leak());
    BootImages::open(&BootConfig { kernel, initramfs: None, cmdline: "hello".into() }).expect("images")
}

fn machine(remember: &Arc<Remember>, vcpus: u8) -> Machine {
    Machine::new(&config(MEMORY, vcpus, Choice::Auto), sinks(remember)).expect("a machine")
}

/// 32-bit code that prints `byte`, spoils its own first instruction in memory, writes `value` to `port`, and stands still should that have no effect.
fn say_then(byte: u8, port: u16, value: u8) -> Vec<u8> {
    let mut code = vec![0x90];
    code.extend([0x66, 0xba, 0xf8, 0x03, 0xb0, byte, 0xee]); // mov dx, 0x3f8; mov al, byte; out dx, al
    code.extend([0xc6, 0x05, 0x00, 0x00, 0x10, 0x00, 0xf4]); // mov byte [0x100000], hlt
    code.extend([0x66, 0xba]);
    code.extend(port.to_le_bytes()); // mov dx, port
    code.extend([0xb0, value, 0xee, 0xeb, 0xfe]); // mov al, value; out dx, al; jmp here
    code
}

const ACPI_RESET: (u16, u8) = (0x602, 1);
const ACPI_OFF: (u16, u8) = (0x600, 0x34);
const KEYBOARD_RESET: (u16, u8) = (0x64, 0xfe);

#[test]
fn a_reset_guest_boots_again_from_a_fresh_copy_of_its_kernel_as_often_as_it_likes() {
    if !kvm_is_there() {
        return;
    }
    for (port, value) in [ACPI_RESET, KEYBOARD_RESET] {
        let remember: Arc<Remember> = Arc::default();
        let mut machine = machine(&remember, 2);
        let images = images(&say_then(b'x', port, value));
        machine.boot_images(&images).unwrap();
        machine.start().unwrap();
        for _ in 0..5 {
            assert_eq!(machine.events().recv_timeout(LIMIT), Ok(MachineEvent::Reset));
            let mut paused = machine.pause().unwrap();
            assert!(paused.reset_is_asked());
            paused.reset(&images).unwrap();
            assert!(!paused.reset_is_asked());
        }
        assert_eq!(machine.events().recv_timeout(LIMIT), Ok(MachineEvent::Reset));
        assert_eq!(*remember.console.lock().unwrap(), b"xxxxxx");
    }
}

#[test]
fn what_a_reset_writes_is_in_the_dirty_set() {
    if !kvm_is_there() {
        return;
    }
    let mut machine = machine(&Arc::default(), 1);
    let images = images(&say_then(b'x', ACPI_RESET.0, ACPI_RESET.1));
    machine.boot_images(&images).unwrap();
    machine.start().unwrap();
    assert_eq!(machine.events().recv_timeout(LIMIT), Ok(MachineEvent::Reset));
    machine.start_tracking().unwrap();
    let mut before = vec![0; MEMORY as usize];
    let mut paused = machine.pause().unwrap();
    machine.memory().read_slice(&mut before, GuestAddress(0)).unwrap();

    paused.reset(&images).unwrap();
    let mut dirty = DirtySet::new(machine.slots());
    paused.collect_dirty(&mut dirty).unwrap();

    let mut after = vec![0; MEMORY as usize];
    machine.memory().read_slice(&mut after, GuestAddress(0)).unwrap();
    let mut changed = 0;
    for (gfn, (old, new)) in before.chunks(4096).zip(after.chunks(4096)).enumerate() {
        if old != new {
            changed += 1;
            assert!(dirty.iter().any(|page| page.0 == gfn as u64), "page {gfn} was changed unseen");
        }
    }
    assert!(changed > 0, "the kernel's spoilt instruction, at least, is written again");
}

#[test]
fn registers_devices_and_clocks_of_a_reset_machine_are_those_of_a_new_one_but_time_goes_on() {
    if !kvm_is_there() {
        return;
    }
    let mut machine = machine(&Arc::default(), 2);
    let new = machine.pause().unwrap().capture().unwrap();
    let images = images(&say_then(b'x', ACPI_RESET.0, ACPI_RESET.1));
    machine.boot_images(&images).unwrap();
    machine.console_input(b"typed before the reset");
    machine.press_power_button();
    machine.start().unwrap();
    assert_eq!(machine.events().recv_timeout(LIMIT), Ok(MachineEvent::Reset));

    let mut paused = machine.pause().unwrap();
    let ran = paused.capture().unwrap();
    paused.reset(&images).unwrap();
    let reset = paused.capture().unwrap();

    assert_ne!(ran.serial, new.serial);
    assert_eq!((reset.serial, reset.devices), (new.serial, new.devices));
    let chips = |state: &vmm::VmState| serde_json::to_string(&state.irqchips).unwrap();
    assert_eq!(chips(&reset.vm), chips(&new.vm));
    assert!(reset.vm.clock.clock >= ran.vm.clock.clock, "kvmclock went back");
    for (index, (reset, (new, ran))) in reset.vcpus.iter().zip(new.vcpus.iter().zip(&ran.vcpus)).enumerate() {
        assert_eq!(reset.mp_state.mp_state, new.mp_state.mp_state, "vCPU {index}");
        assert_eq!(reset.tsc_offset, ran.tsc_offset, "vCPU {index}");
        assert_eq!(reset.ending, None);
        let msrs = |state: &vmm::VcpuState| state.msrs.iter().copied().filter(|(msr, _)| *msr != 0x10).collect::<Vec<_>>();
        assert_eq!(msrs(reset), msrs(new), "vCPU {index}");
    }
}

#[test]
fn an_end_that_was_asked_for_and_not_acted_on_is_told_by_the_machine_that_the_state_is_restored_to() {
    if !kvm_is_there() {
        return;
    }
    for ((port, value), event, ending) in
        [(ACPI_OFF, MachineEvent::Shutdown, Ending::Shutdown), (ACPI_RESET, MachineEvent::Reset, Ending::Reset)]
    {
        let mut primary = machine(&Arc::default(), 1);
        let images = images(&say_then(b'x', port, value));
        primary.boot_images(&images).unwrap();
        primary.start().unwrap();
        assert_eq!(primary.events().recv_timeout(LIMIT), Ok(event.clone()));
        let state = primary.pause().unwrap().capture().unwrap();
        assert_eq!(state.vcpus[0].ending, Some(ending));

        let remember: Arc<Remember> = Arc::default();
        let mut standby = machine(&remember, 1);
        let mut memory = vec![0; MEMORY as usize];
        primary.memory().read_slice(&mut memory, GuestAddress(0)).unwrap();
        standby.memory().write_slice(&memory, GuestAddress(0)).unwrap();
        standby.restore(&state).unwrap();
        standby.start().unwrap();
        assert_eq!(standby.events().recv_timeout(LIMIT), Ok(event));
        if ending == Ending::Reset {
            standby.pause().unwrap().reset(&images).unwrap();
            assert_eq!(standby.events().recv_timeout(LIMIT), Ok(MachineEvent::Reset));
            assert_eq!(*remember.console.lock().unwrap(), b"x");
        }
    }
}

#[test]
fn a_generation_id_is_new_at_each_cold_start_and_stays_over_a_reset_and_a_failover() {
    if !kvm_is_there() {
        return;
    }
    const GENERATION_ID: GuestAddress = GuestAddress(0xe_0040);
    let mut primary = machine(&Arc::default(), 1);
    let id = |machine: &Machine| machine.memory().read_obj::<[u64; 2]>(GENERATION_ID).unwrap();
    let images = images(&say_then(b'x', ACPI_RESET.0, ACPI_RESET.1));
    primary.boot_images(&images).unwrap();
    let first = id(&primary);
    assert_ne!(first, [0, 0]);

    primary.start().unwrap();
    assert_eq!(primary.events().recv_timeout(LIMIT), Ok(MachineEvent::Reset));
    // Whatever the guest did to its copy.
    primary.memory().write_obj([7u64, 7], GENERATION_ID).unwrap();
    primary.pause().unwrap().reset(&images).unwrap();
    assert_eq!(id(&primary), first);

    // A failover: memory and state on another machine, where a reset finds the same again.
    assert_eq!(primary.events().recv_timeout(LIMIT), Ok(MachineEvent::Reset));
    let state = primary.pause().unwrap().capture().unwrap();
    let mut standby = machine(&Arc::default(), 1);
    let mut memory = vec![0; MEMORY as usize];
    primary.memory().read_slice(&mut memory, GuestAddress(0)).unwrap();
    standby.memory().write_slice(&memory, GuestAddress(0)).unwrap();
    standby.restore(&state).unwrap();
    standby.start().unwrap();
    assert_eq!(id(&standby), first);
    standby.memory().write_obj([7u64, 7], GENERATION_ID).unwrap();
    standby.pause().unwrap().reset(&images).unwrap();
    assert_eq!(id(&standby), first);

    let mut later = machine(&Arc::default(), 1);
    later.boot_images(&images).unwrap();
    assert_ne!(id(&later), first);
}

/// 32-bit code that goes to real mode and jumps to the firmware's entry, as Linux does to reboot on reduced hardware without EFI.
fn jump_to_the_reset_vector() -> Vec<u8> {
    // A descriptor table (null, 16-bit code with base 0x10_0000) behind the code, at 0x10_0020.
    let mut code = vec![0x0f, 0x01, 0x15, 0x30, 0x00, 0x10, 0x00]; // lgdt [0x100030]
    code.extend([0xea, 0x10, 0x00, 0x00, 0x00, 0x08, 0x00]); // ljmp 8:0x10
    code.resize(0x10, 0x90);
    code.extend([0x0f, 0x20, 0xc0, 0x24, 0xfe, 0x0f, 0x22, 0xc0]); // mov eax, cr0; and al, 0xfe; mov cr0, eax (16-bit)
    code.extend([0xea, 0x00, 0x00, 0xff, 0xff]); // ljmp ffff:0000
    code.resize(0x20, 0x90);
    code.extend([0; 8]);
    code.extend([0xff, 0xff, 0x00, 0x00, 0x10, 0x9b, 0x00, 0x00]);
    code.extend([15, 0]);
    code.extend(0x10_0020u32.to_le_bytes());
    code
}

#[test]
fn a_jump_to_the_firmwares_entry_resets_the_machine() {
    if !kvm_is_there() {
        return;
    }
    let mut machine = machine(&Arc::default(), 1);
    machine.boot_images(&images(&jump_to_the_reset_vector())).unwrap();
    machine.start().unwrap();
    assert_eq!(machine.events().recv_timeout(LIMIT), Ok(MachineEvent::Reset));
}
