//! Kernels boot by PVH, see what the protocol promises, and files that are none are refused with a reason (S7).

mod support;

use std::{sync::Arc, time::Duration};

use dirty_tracking::Choice;
use support::{LOAD, Remember, config, image, kvm_is_there, machine, sinks};
use vmm::{BootConfig, KernelImage, Machine, MachineEvent, VmmError};

const MEMORY: u64 = 64 << 20;

fn boot_config(image: Vec<u8>) -> BootConfig {
    BootConfig { kernel: KernelImage::Bytes(image.leak()), initramfs: None, cmdline: "hello".into() }
}

/// 32-bit code that sends the first 5 bytes of the command line to the serial port and then asks for a reset.
fn talk_then_reset() -> Vec<u8> {
    let mut code = vec![0x8b, 0x73, 0x18]; // mov esi, [ebx + 24]: start_info.cmdline_paddr
    code.extend([0x66, 0xba, 0xf8, 0x03]); // mov dx, 0x3f8
    for _ in 0..5 {
        code.extend([0x8a, 0x06, 0xee, 0x46]); // mov al, [esi]; out dx, al; inc esi
    }
    code.extend([0xb0, 0xfe, 0xe6, 0x64]); // mov al, 0xfe; out 0x64, al
    code.extend([0xeb, 0xfe]); // jmp here
    code
}

#[test]
fn a_pvh_image_is_entered_with_its_start_info_and_talks_to_the_console() {
    if !kvm_is_there() {
        return;
    }
    let remember: Arc<Remember> = Arc::default();
    let mut machine = Machine::new(&config(MEMORY, 1, Choice::Auto), sinks(&remember)).unwrap();
    machine.boot(&boot_config(image(&talk_then_reset(), true))).unwrap();
    assert!(matches!(machine.boot(&boot_config(Vec::new())), Err(VmmError::WrongState { .. })));
    machine.start().unwrap();
    let event = machine.events().recv_timeout(Duration::from_secs(20)).expect("an event");
    assert_eq!(event, MachineEvent::Reset);
    assert_eq!(*remember.console.lock().unwrap(), b"hello");
    // The vCPU stands still for good, and pausing still works.
    drop(machine.pause().unwrap());
    machine.stop();
}

#[test]
fn a_guest_that_faults_three_times_asks_for_a_reset() {
    if !kvm_is_there() {
        return;
    }
    let mut machine = machine(MEMORY, 1, Choice::Auto);
    // lidt [an empty table]; ud2
    let mut code = vec![0x0f, 0x01, 0x1d];
    code.extend((LOAD + 9).to_le_bytes());
    code.extend([0x0f, 0x0b, 0, 0, 0, 0, 0, 0]);
    machine.boot(&boot_config(image(&code, true))).unwrap();
    machine.start().unwrap();
    let event = machine.events().recv_timeout(Duration::from_secs(20)).expect("an event");
    assert!(matches!(event, MachineEvent::Reset | MachineEvent::InternalError { .. }), "{event:?}");
}

fn refusal(boot: &BootConfig) -> String {
    machine(MEMORY, 1, Choice::Auto).boot(boot).expect_err("must be refused").to_string()
}

#[test]
fn files_that_are_no_kernel_are_refused() {
    if !kvm_is_there() {
        return;
    }
    let good = image(&talk_then_reset(), true);
    let mut other_machine = good.clone();
    other_machine[18] = 183;
    let mut outside = good.clone();
    outside[64 + 24..64 + 32].copy_from_slice(&(MEMORY + 4096).to_le_bytes());
    for (file, reason) in [
        (good[..good.len() - 30].to_vec(), "truncated"),
        (good[..40].to_vec(), "truncated"),
        (b"#!/bin/sh\n".to_vec(), "neither an ELF file nor a bzImage"),
        (other_machine, "another machine"),
        (outside, "outside"),
        (image(&talk_then_reset(), false), "PVH"),
    ] {
        let said = refusal(&boot_config(file));
        assert!(said.contains(reason) && said.contains("cannot be booted"), "{said}");
    }
    let missing = BootConfig { kernel: KernelImage::Path("/nonexistent/vmlinux".into()), initramfs: None, cmdline: String::new() };
    assert!(refusal(&missing).contains("/nonexistent/vmlinux"));
    let no_initramfs = BootConfig { initramfs: Some("/nonexistent/initrd".into()), ..boot_config(good.clone()) };
    assert!(refusal(&no_initramfs).contains("initramfs"));
    let long = BootConfig { cmdline: "x".repeat(5000), ..boot_config(good) };
    assert!(refusal(&long).contains("command line"));
}

#[test]
fn a_machine_that_cannot_be_is_refused_with_the_reason() {
    if !kvm_is_there() {
        return;
    }
    let refusal = |config| Machine::new(&config, sinks(&Arc::default())).err().expect("must be refused").to_string();
    assert!(refusal(config(MEMORY, 0, Choice::Auto)).contains("0 vCPUs"));
    assert!(refusal(config(0, 1, Choice::Auto)).contains("0 bytes"));
    let mut no_tap = config(MEMORY, 1, Choice::Auto);
    no_tap.nets.push(vmm::NetConfig { tap: "lsnosuchtap".into(), mac: [2, 0, 0, 0, 0, 1] });
    assert!(refusal(no_tap).contains("lsnosuchtap"));
}

#[test]
fn every_backing_boots() {
    if !kvm_is_there() {
        return;
    }
    for backing in [vmm::Backing::Anonymous, vmm::Backing::Memfd] {
        let mut shape = config(MEMORY, 1, Choice::Auto);
        shape.memory.backing = backing;
        let mut machine = Machine::new(&shape, sinks(&Arc::default())).unwrap();
        machine.boot(&boot_config(image(&talk_then_reset(), true))).unwrap();
        machine.start().unwrap();
        assert_eq!(machine.events().recv_timeout(Duration::from_secs(20)), Ok(MachineEvent::Reset), "{backing:?}");
    }
}
