//! A guest that writes to exactly N pages, scattered over its memory, again and again: the load under which a pause is measured.
//!
//! A few instructions in 64-bit ring 3, where every KVM back end runs them natively: a state captured from a machine that never ran is changed to that and
//! restored. The program reads the pages' addresses from a table, so nothing but those pages is ever written.

use std::sync::Arc;
use std::time::{Duration, Instant};

use dirty_tracking::Choice;
use kvm_bindings::{KVM_MP_STATE_RUNNABLE, kvm_dtable, kvm_mp_state, kvm_regs, kvm_segment};
use types::{Gfn, PAGE_SIZE};
use vm_memory::{Bytes, GuestAddress};
use vmm::{Backing, ConsoleSink, FrameSink, Machine, MachineConfig, MemoryConfig, SinkFull, Sinks, VcpuState};

use crate::error::BenchError;

/// Guest memory of the goal.
pub const MEMORY_BYTES: u64 = 256 << 20;

const PAGE_TABLES: u64 = 0x4000;
const CODE: u64 = 0x10_0000;
/// Addresses of the pages, 8 bytes each.
const TABLE: u64 = 0x20_0000;
/// The pages lie in the upper half of memory.
const REGION: u64 = MEMORY_BYTES / 2;
const REGION_PAGES: u64 = (MEMORY_BYTES - REGION) / PAGE_SIZE as u64;
/// Odd, so that it permutes the region's pages (a power of two of them); near the golden ratio, so that any number of them is spread evenly.
const SPREAD: u64 = 20_251;
/// Where in the first page the number of finished rounds stands.
const ROUNDS_AT: u64 = 2048;
/// A guest that finishes no round for so long is held to be stuck: the longest round takes about 10 ms.
const STUCK: Duration = Duration::from_secs(20);

/// RAX counts rounds, RSI is the table, R14 the number of pages, RBX where the finished rounds are told.
const PROGRAM: &[u8] = &[
    0x31, 0xc9, // xor ecx, ecx
    0x48, 0xff, 0xc0, // inc rax
    0x48, 0x8b, 0x14, 0xce, // mov rdx, [rsi + 8 * rcx]
    0x48, 0x89, 0x02, // mov [rdx], rax
    0x48, 0xff, 0xc1, // inc rcx
    0x4c, 0x39, 0xf1, // cmp rcx, r14
    0x72, 0xf1, // jb to the load from the table
    0x48, 0x89, 0x03, // mov [rbx], rax
    0xeb, 0xe7, // jmp to the start
];

struct Nowhere;

impl FrameSink for Nowhere {
    fn send(&self, _: u8, _: &[u8]) -> Result<(), SinkFull> {
        Ok(())
    }
}

impl ConsoleSink for Nowhere {
    fn write(&self, _: &[u8]) {}
}

/// A machine of the goal's size, empty, with its output going nowhere.
///
/// # Errors
/// No KVM.
pub fn machine() -> Result<Machine, BenchError> {
    let memory = MemoryConfig { bytes: MEMORY_BYTES, backing: Backing::Anonymous };
    let config = MachineConfig {
        memory,
        vcpus: 1,
        nets: Vec::new(),
        rng: false,
        bus: vmm::Bus::Mmio,
        cpu: vmm::CpuModel::Host,
        dirty: Choice::Auto,
    };
    Ok(Machine::new(&config, Sinks { frames: Arc::new(Nowhere), console: Arc::new(Nowhere), disks: Vec::new() })?)
}

/// The running guest.
pub struct WriterGuest {
    /// Its machine, with dirty tracking on.
    pub machine: Machine,
    rounds_at: GuestAddress,
}

/// The frames that a guest of `pages` pages writes to, ascending.
#[must_use]
pub fn frames(pages: u64) -> Vec<Gfn> {
    let mut frames: Vec<Gfn> = (0..pages).map(|n| Gfn(REGION / PAGE_SIZE as u64 + n * SPREAD % REGION_PAGES)).collect();
    frames.sort_unstable();
    frames
}

impl WriterGuest {
    /// Starts a guest that writes to `pages` pages, 1 to 32768.
    ///
    /// # Errors
    /// No KVM, or it refuses.
    pub fn start(pages: u64) -> Result<WriterGuest, BenchError> {
        let mut machine = machine()?;
        let frames = frames(pages);
        let first = frames.first().filter(|_| pages <= REGION_PAGES).ok_or_else(|| BenchError::Writer(format!("{pages} pages")))?;
        let rounds_at = first.address() + ROUNDS_AT;
        write_page_tables(&machine)?;
        for (index, frame) in frames.iter().enumerate() {
            put(&machine, TABLE + 8 * index as u64, frame.address())?;
        }
        machine.memory().write_slice(PROGRAM, GuestAddress(CODE)).map_err(|error| BenchError::Writer(error.to_string()))?;
        let mut state = machine.pause()?.capture()?;
        for vcpu in &mut state.vcpus {
            enter_ring_3(vcpu, kvm_regs { rip: CODE, rflags: 2, rbx: rounds_at, rsi: TABLE, r14: pages, ..Default::default() });
        }
        machine.restore(&state)?;
        machine.start_tracking()?;
        machine.start()?;
        Ok(WriterGuest { machine, rounds_at: GuestAddress(rounds_at) })
    }

    /// Waits until every page has been written since this was called.
    ///
    /// # Errors
    /// The guest makes no progress.
    pub fn await_all_written(&self) -> Result<(), BenchError> {
        let begin = Instant::now();
        let rounds = || -> Result<u64, BenchError> {
            self.machine.memory().read_obj(self.rounds_at).map_err(|error| BenchError::Writer(error.to_string()))
        };
        // The round that is under way may have passed a page already; the one after it has not.
        let enough = rounds()? + 2;
        while rounds()? < enough {
            if let Ok(event) = self.machine.events().try_recv() {
                return Err(BenchError::Writer(format!("it ended: {event:?}")));
            }
            if begin.elapsed() > STUCK {
                return Err(BenchError::Writer("it makes no progress".to_owned()));
            }
            std::thread::yield_now();
        }
        Ok(())
    }
}

fn put(machine: &Machine, at: u64, value: u64) -> Result<(), BenchError> {
    machine.memory().write_obj(value, GuestAddress(at)).map_err(|error| BenchError::Writer(error.to_string()))
}

/// Identity-maps the first GiB for ring 3 with 2 MiB pages.
fn write_page_tables(machine: &Machine) -> Result<(), BenchError> {
    // Present, writable, user, accessed; leaves also dirty and large.
    const TABLE_FLAGS: u64 = 0x27;
    const LEAF_FLAGS: u64 = 0xe7;
    put(machine, PAGE_TABLES, (PAGE_TABLES + 0x1000) | TABLE_FLAGS)?;
    put(machine, PAGE_TABLES + 0x1000, (PAGE_TABLES + 0x2000) | TABLE_FLAGS)?;
    (0..512).try_for_each(|index| put(machine, PAGE_TABLES + 0x2000 + index * 8, (index << 21) | LEAF_FLAGS))
}

fn segment(selector: u16, type_: u8, long: bool) -> kvm_segment {
    let (db, l) = (u8::from(!long), u8::from(long));
    kvm_segment { base: 0, limit: 0xffff_ffff, selector, type_, present: 1, dpl: 3, db, s: 1, l, g: 1, ..Default::default() }
}

/// Makes the state that of a CPU in 64-bit ring 3. No interrupt or exception is ever taken, so the tables they would need stay empty.
fn enter_ring_3(vcpu: &mut VcpuState, regs: kvm_regs) {
    vcpu.regs = regs;
    let sregs = &mut vcpu.sregs;
    sregs.cs = segment(0x33, 11, true);
    let data = segment(0x2b, 3, false);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment { limit: 0x67, type_: 11, present: 1, selector: 0x40, base: 0x3000, ..Default::default() };
    sregs.gdt = kvm_dtable { base: 0x1000, limit: 0x7f, ..Default::default() };
    sregs.idt = kvm_dtable { base: 0x2000, limit: 0xfff, ..Default::default() };
    (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (0x8005_0033, PAGE_TABLES, 0x620, 0xd01);
    vcpu.mp_state = kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_is_another_one_and_inside_memory() {
        for pages in [1, 16, 4096, REGION_PAGES] {
            let frames = frames(pages);
            assert!(frames.windows(2).all(|pair| pair[0] < pair[1]), "{pages}");
            assert!(frames.iter().all(|frame| (REGION..MEMORY_BYTES).contains(&frame.address())));
        }
    }

    #[test]
    fn the_program_jumps_to_instructions() {
        let target = |at: usize| (at as i64 + 2 + i64::from(PROGRAM[at + 1] as i8)) as usize;
        let (jb, jmp) = (18, PROGRAM.len() - 2);
        assert_eq!((PROGRAM[jb], PROGRAM[jmp]), (0x72, 0xeb));
        assert_eq!(target(jb), 5);
        assert_eq!(target(jmp), 0);
    }
}
