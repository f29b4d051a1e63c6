//! Every page that changed is in the dirty set, whoever wrote it and whenever it is collected (S5).
//!
//! The guest stamps pages in an order that cannot be guessed. A copy of its memory is kept up to date from the dirty sets alone: after a collect under
//! pause it must equal guest memory, byte for byte.

mod support;

use dirty_tracking::{Choice, DirtySet, Kind};
use support::{Program, kvm_is_there, load, machine, read, wait_past};
use types::{Gfn, PAGE_SIZE};
use vm_memory::{Bytes as _, GuestAddress};
use vmm::{HIGH_MEMORY_START, Machine};

const COUNTER: u64 = 0x20_0000;
const REGION: u64 = 0x40_0000;
const PAGES: u64 = 1024;
/// Rounds of collecting while running, then under pause.
const ROUNDS: usize = 60;

/// The regions that the guest and the "device" write, page by page.
struct Copy {
    pages: Vec<(Gfn, [u8; PAGE_SIZE])>,
}

fn page(machine: &Machine, gfn: Gfn) -> [u8; PAGE_SIZE] {
    let mut page = [0; PAGE_SIZE];
    machine.memory().read_slice(&mut page, GuestAddress(gfn.address())).unwrap();
    page
}

impl Copy {
    fn of(machine: &Machine, starts: &[u64]) -> Copy {
        let gfns = starts.iter().flat_map(|start| (0..PAGES).map(move |index| Gfn(start / PAGE_SIZE as u64 + index)));
        Copy { pages: gfns.chain([Gfn(COUNTER / PAGE_SIZE as u64)]).map(|gfn| (gfn, page(machine, gfn))).collect() }
    }

    fn update(&mut self, machine: &Machine, dirty: &DirtySet) {
        for (gfn, copy) in self.pages.iter_mut().filter(|(gfn, _)| dirty.contains(*gfn)) {
            *copy = page(machine, *gfn);
        }
    }

    fn assert_equals(&self, machine: &Machine) {
        for (gfn, copy) in &self.pages {
            assert!(*copy == page(machine, *gfn), "page {gfn} changed and was in no dirty set");
        }
    }
}

/// Collects after which a page that is not written any more is named no more: twice the bitmap tracker's probation.
const RESTED_AFTER: u32 = 64;

/// Runs the rounds on a machine with memory of `bytes`, stamping at `REGION` and at `high`.
fn every_change_is_found(bytes: u64, vcpus: u8, high: u64, choice: Choice) {
    if !kvm_is_there() {
        return;
    }
    let mut machine = machine(bytes, vcpus, choice);
    let half = PAGES / u64::from(vcpus) * PAGE_SIZE as u64;
    let programs: Vec<_> = (0..u64::from(vcpus))
        .map(|index| Program::stamp(COUNTER + index * 8, REGION + index * half, high + index * half, PAGES / u64::from(vcpus)))
        .collect();
    load(&mut machine, &programs);
    machine.start().unwrap();
    wait_past(&machine, COUNTER, 1000);
    machine.start_tracking().unwrap();
    let mut copy = Copy::of(&machine, &[REGION, high]);
    let mut dirty = DirtySet::new(machine.slots());
    for round in 0..ROUNDS {
        let before = read(&machine, COUNTER);
        wait_past(&machine, COUNTER, before + 100);
        // A device writes, too.
        let device_page = high + (round as u64 * 7 % PAGES) * PAGE_SIZE as u64;
        machine.memory().write_obj(round as u64, GuestAddress(device_page + 2048)).unwrap();

        dirty.clear();
        machine.collect_dirty_running(&mut dirty).unwrap();
        copy.update(&machine, &dirty);
        assert!(dirty.contains(Gfn(device_page / PAGE_SIZE as u64)));

        wait_past(&machine, COUNTER, read(&machine, COUNTER) + 100);
        let mut paused = machine.pause().unwrap();
        let estimate = machine.dirty_estimate().unwrap();
        paused.capture().unwrap();
        dirty.clear();
        paused.collect_dirty(&mut dirty).unwrap();
        assert!(dirty.count() > 0 && estimate > 0);
        copy.update(&machine, &dirty);
        copy.assert_equals(&machine);
        if round + 1 == ROUNDS {
            // Pages that every round changed may be named without having changed, but only for a while.
            let rested = (0..RESTED_AFTER).any(|_| {
                dirty.clear();
                paused.collect_dirty(&mut dirty).unwrap();
                dirty.is_empty()
            });
            assert!(rested, "nothing changes while paused");
        }
        paused.resume();
    }
}

#[test]
fn bitmap_one_slot() {
    every_change_is_found(64 << 20, 1, REGION + PAGES * PAGE_SIZE as u64, Choice::Bitmap);
}

#[test]
fn ring_one_slot() {
    every_change_is_found(64 << 20, 1, REGION + PAGES * PAGE_SIZE as u64, Choice::Ring);
}

#[test]
fn bitmap_above_three_gib() {
    every_change_is_found(5 << 30, 1, HIGH_MEMORY_START + (900 << 20), Choice::Bitmap);
}

#[test]
fn ring_above_three_gib() {
    every_change_is_found(5 << 30, 1, HIGH_MEMORY_START + (900 << 20), Choice::Ring);
}

#[test]
fn bitmap_two_vcpus() {
    every_change_is_found(64 << 20, 2, REGION + PAGES * PAGE_SIZE as u64, Choice::Bitmap);
}

#[test]
fn ring_two_vcpus() {
    every_change_is_found(5 << 30, 2, HIGH_MEMORY_START, Choice::Ring);
}

#[test]
fn a_set_given_back_is_in_the_next_collect() {
    if !kvm_is_there() {
        return;
    }
    let machine = machine(64 << 20, 1, Choice::Auto);
    assert_eq!(machine.tracking_kind(), Kind::Bitmap);
    machine.start_tracking().unwrap();
    let mut failed = DirtySet::new(machine.slots());
    failed.insert(Gfn(77));
    machine.give_back(&failed);
    assert_eq!(machine.dirty_estimate().unwrap(), 1);
    let mut next = DirtySet::new(machine.slots());
    machine.collect_dirty_running(&mut next).unwrap();
    assert_eq!(next.iter().collect::<Vec<_>>(), [Gfn(77)]);
}

#[test]
fn tracking_starts_empty_each_time_and_can_be_started_again() {
    if !kvm_is_there() {
        return;
    }
    for choice in [Choice::Bitmap, Choice::Ring] {
        let mut machine = machine(64 << 20, 1, choice);
        load(&mut machine, &[Program::stamp(COUNTER, REGION, REGION, 64)]);
        machine.start().unwrap();
        for _ in 0..3 {
            machine.start_tracking().unwrap();
            wait_past(&machine, COUNTER, read(&machine, COUNTER) + 100);
            let mut dirty = DirtySet::new(machine.slots());
            machine.pause().unwrap().collect_dirty(&mut dirty).unwrap();
            assert!(dirty.contains(Gfn(COUNTER / PAGE_SIZE as u64)));
            machine.stop_tracking().unwrap();
            machine.memory().write_obj(1u8, GuestAddress(REGION + (40 << 20))).unwrap();
            wait_past(&machine, COUNTER, read(&machine, COUNTER) + 100);
            machine.pause().unwrap().stay_stopped();
            machine.start_tracking().unwrap();
            dirty.clear();
            machine.collect_dirty_running(&mut dirty).unwrap();
            assert!(dirty.is_empty(), "{choice:?}: {:?}", dirty.iter().collect::<Vec<_>>());
            machine.start().unwrap();
        }
    }
}

#[test]
fn a_full_ring_parks_its_vcpu_until_the_set_is_collected() {
    if !kvm_is_there() {
        return;
    }
    // More pages than the ring has entries: 65536 at most.
    let mut machine = machine(1 << 30, 1, Choice::Ring);
    load(&mut machine, &[Program::stamp(COUNTER, 256 << 20, 256 << 20, 1 << 17)]);
    machine.start_tracking().unwrap();
    machine.start().unwrap();
    let event = machine.events().recv_timeout(std::time::Duration::from_secs(60)).expect("an event");
    assert_eq!(event, vmm::MachineEvent::DirtyRingFull { vcpu: 0 });
    let stood_at = read(&machine, COUNTER);
    let mut dirty = DirtySet::new(machine.slots());
    machine.collect_dirty_running(&mut dirty).unwrap();
    assert!(dirty.count() > 50_000, "{}", dirty.count());
    wait_past(&machine, COUNTER, stood_at + 10);
}
