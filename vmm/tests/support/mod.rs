//! What the machine's tests share: whether KVM is there, a tiny ring-3 guest, sinks that remember.
//!
//! The guest starts directly in 64-bit ring 3, where every KVM back end runs it natively: a state captured from a machine that never ran is changed to
//! that and restored.
#![allow(dead_code, reason = "each test file uses its part")]

pub mod built_in;
pub mod medium;

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use dirty_tracking::Choice;
use kvm_bindings::{KVM_MP_STATE_RUNNABLE, kvm_dtable, kvm_mp_state, kvm_regs, kvm_segment};
use vm_memory::{Bytes as _, GuestAddress};
use vmm::{Backing, ConsoleSink, FrameSink, Machine, MachineConfig, MachineState, MemoryConfig, SinkFull, Sinks};

/// Whether the tests can run. Loud when they cannot; a failure where LOCKSTEP_REQUIRE_KVM=1 says that they must.
pub fn kvm_is_there() -> bool {
    match vmm::open_kvm() {
        Ok(_) => true,
        Err(error) if std::env::var("LOCKSTEP_REQUIRE_KVM").is_ok_and(|value| value == "1") => panic!("{error}"),
        Err(error) => {
            eprintln!("SKIPPED, NOTHING TESTED: {error}");
            false
        }
    }
}

#[derive(Default)]
pub struct Remember {
    pub console: Mutex<Vec<u8>>,
    pub frames: Mutex<Vec<(u8, Vec<u8>)>>,
}

impl FrameSink for Remember {
    fn send(&self, port: u8, frame: &[u8]) -> Result<(), SinkFull> {
        self.frames.lock().unwrap().push((port, frame.to_vec()));
        Ok(())
    }
}

impl ConsoleSink for Remember {
    fn write(&self, bytes: &[u8]) {
        self.console.lock().unwrap().extend_from_slice(bytes);
    }
}

pub fn sinks(remember: &Arc<Remember>) -> Sinks {
    Sinks { frames: remember.clone(), console: remember.clone(), disks: Vec::new() }
}

pub fn config(bytes: u64, vcpus: u8, dirty: Choice) -> MachineConfig {
    MachineConfig {
        memory: MemoryConfig { bytes, backing: Backing::Anonymous },
        vcpus,
        nets: Vec::new(),
        rng: false,
        bus: vmm::Bus::Mmio,
        cpu: vmm::CpuModel::Host,
        dirty,
    }
}

pub fn machine(bytes: u64, vcpus: u8, dirty: Choice) -> Machine {
    Machine::new(&config(bytes, vcpus, dirty), sinks(&Arc::default())).expect("a machine")
}

const PAGE_TABLES: u64 = 0x4000;
const CODE: u64 = 0x10_0000;
const CODE_SPACING: u64 = 0x1000;

/// Multiplier and increment of the stamp program's page order (Knuth's MMIX generator).
pub const LCG_A: u64 = 6364136223846793005;
pub const LCG_C: u64 = 1442695040888963407;

/// Counts in RAX and at [RBX]; each turn writes the count to one page of the region at RDI and one of that at R8, in the order of the generator in RCX.
pub const STAMP: &[u8] = &[
    0x48, 0xff, 0xc0, // inc rax
    0x48, 0x89, 0x03, // mov [rbx], rax
    0x49, 0x0f, 0xaf, 0xcc, // imul rcx, r12
    0x4c, 0x01, 0xe9, // add rcx, r13
    0x48, 0x89, 0xca, // mov rdx, rcx
    0x48, 0xc1, 0xea, 0x21, // shr rdx, 33
    0x4c, 0x21, 0xf2, // and rdx, r14
    0x48, 0xc1, 0xe2, 0x0c, // shl rdx, 12
    0x48, 0x89, 0x04, 0x17, // mov [rdi + rdx], rax
    0x49, 0x89, 0x04, 0x10, // mov [r8 + rdx], rax
    0xeb, 0xdb, // jmp to the start
];
/// Offset in [`STAMP`] from which on the generator has made this turn's number.
pub const STAMP_DRAWN: u64 = 13;

/// Counts in RAX; each turn reads 8 bytes of memory-mapped I/O at RDI and gathers in RSI every bit that did not read as one.
pub const READ_MMIO: &[u8] = &[
    0x48, 0xff, 0xc0, // inc rax
    0x48, 0x8b, 0x17, // mov rdx, [rdi]
    0x48, 0xf7, 0xd2, // not rdx
    0x48, 0x09, 0xd6, // or rsi, rdx
    0x48, 0x89, 0x03, // mov [rbx], rax
    0xeb, 0xef, // jmp to the start
];

/// One vCPU's program: its code, and its registers but RIP.
pub struct Program {
    pub code: &'static [u8],
    pub regs: kvm_regs,
}

impl Program {
    /// Stamps pages of `low` and `high`, `pages` (a power of two) each, counting at `counter`.
    pub fn stamp(counter: u64, low: u64, high: u64, pages: u64) -> Program {
        assert!(pages.is_power_of_two());
        let regs = kvm_regs { rbx: counter, rdi: low, r8: high, r12: LCG_A, r13: LCG_C, r14: pages - 1, ..Default::default() };
        Program { code: STAMP, regs }
    }
}

fn segment(selector: u16, type_: u8, long: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        dpl: 3,
        db: u8::from(!long),
        s: 1,
        l: u8::from(long),
        g: 1,
        ..Default::default()
    }
}

/// Identity-maps the first 8 GiB for ring 3 with 2 MiB pages.
fn write_page_tables(machine: &Machine) {
    const LEAF: u64 = 0xe7;
    const TABLE: u64 = 0x27;
    let put = |at: u64, value: u64| machine.memory().write_obj(value, GuestAddress(at)).unwrap();
    put(PAGE_TABLES, (PAGE_TABLES + 0x1000) | TABLE);
    for gib in 0..8 {
        let directory = PAGE_TABLES + 0x2000 + gib * 0x1000;
        put(PAGE_TABLES + 0x1000 + gib * 8, directory | TABLE);
        for index in 0..512 {
            put(directory + index * 8, (gib << 30 | index << 21) | LEAF);
        }
    }
}

/// Puts the programs into an empty machine, one for each vCPU, ready to start.
pub fn load(machine: &mut Machine, programs: &[Program]) {
    write_page_tables(machine);
    let mut state = capture(machine);
    for (index, (program, vcpu)) in programs.iter().zip(&mut state.vcpus).enumerate() {
        let code = CODE + index as u64 * CODE_SPACING;
        machine.memory().write_slice(program.code, GuestAddress(code)).unwrap();
        vcpu.regs = kvm_regs { rip: code, rflags: 2, ..program.regs };
        let sregs = &mut vcpu.sregs;
        sregs.cs = segment(0x33, 11, true);
        let data = segment(0x2b, 3, false);
        (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
        sregs.tr = kvm_segment { limit: 0x67, type_: 11, present: 1, selector: 0x40, base: 0x3000, ..Default::default() };
        sregs.gdt = kvm_dtable { base: 0x1000, limit: 0x7f, ..Default::default() };
        sregs.idt = kvm_dtable { base: 0x2000, limit: 0xfff, ..Default::default() };
        sregs.cr0 = 0x8005_0033;
        sregs.cr3 = PAGE_TABLES;
        sregs.cr4 = 0x620;
        sregs.efer = 0xd01;
        vcpu.mp_state = kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE };
    }
    machine.restore(&state).expect("restore of the prepared state");
}

pub fn capture(machine: &Machine) -> MachineState {
    machine.pause().expect("pause").capture().expect("capture")
}

/// The state in which the machine stands still from now on.
pub fn capture_for_good(machine: &Machine) -> MachineState {
    let mut paused = machine.pause().expect("pause");
    let state = paused.capture().expect("capture");
    paused.stay_stopped();
    state
}

pub fn read(machine: &Machine, address: u64) -> u64 {
    machine.memory().read_obj(GuestAddress(address)).unwrap()
}

/// Waits until the counter at `address` has passed `value`; a guest that makes no progress for 20 s fails the test.
pub fn wait_past(machine: &Machine, address: u64, value: u64) {
    let start = Instant::now();
    while read(machine, address) <= value {
        if let Ok(event) = machine.events().try_recv() {
            panic!("the guest ended: {event:?}");
        }
        assert!(start.elapsed() < Duration::from_secs(20), "the guest makes no progress");
        std::thread::yield_now();
    }
}

/// Where [`image`] is loaded and entered.
pub const LOAD: u32 = 0x10_0000;

/// An x86-64 ELF image with one segment (`code`, entered by PVH at its start) and, if wanted, the note that says so.
pub fn image(code: &[u8], note: bool) -> Vec<u8> {
    let mut note_bytes = Vec::new();
    for word in [4u32, 4, 18] {
        note_bytes.extend(word.to_le_bytes());
    }
    note_bytes.extend(b"Xen\0");
    note_bytes.extend(LOAD.to_le_bytes());
    let code_at = 64 + 2 * 56;
    let note_at = code_at + code.len() as u64;
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    file.extend([2u16, 62].iter().flat_map(|half| half.to_le_bytes()));
    file.extend(1u32.to_le_bytes());
    file.extend([u64::from(LOAD), 64, 0].iter().flat_map(|word| word.to_le_bytes()));
    file.extend(0u32.to_le_bytes());
    file.extend([64u16, 56, 1 + u16::from(note), 64, 0, 0].iter().flat_map(|half| half.to_le_bytes()));
    let mut header = |kind: u32, offset: u64, address: u64, size: u64| {
        file.extend([kind, 7].iter().flat_map(|word| word.to_le_bytes()));
        file.extend([offset, address, address, size, size, 4].iter().flat_map(|word| word.to_le_bytes()));
    };
    header(1, code_at, u64::from(LOAD), code.len() as u64);
    header(4, note_at, 0, note_bytes.len() as u64);
    file.extend(code);
    file.extend(note_bytes);
    file
}
