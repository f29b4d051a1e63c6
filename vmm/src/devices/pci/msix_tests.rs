//! What a driver can rely on, and what no table content can do.

use std::sync::atomic::Ordering;

use proptest::prelude::*;

use super::*;
use crate::devices::pci::testing::FakeKvm;

const ON: u16 = CONTROL_ENABLE;

fn table(kvm: &Arc<FakeKvm>) -> Msix {
    Msix::new(Arc::clone(kvm) as _, &[24, 25, 26]).unwrap()
}

fn program(msix: &Msix, vector: u64, data: u32) {
    for (word, value) in [0xfee0_0000u32, 0, data, 0].into_iter().enumerate() {
        msix.write_table(vector * 16 + word as u64 * 4, &value.to_le_bytes());
    }
}

/// Signals of each vector since the last look.
fn fired(msix: &Msix) -> Vec<u64> {
    msix.irqfds().map(|(_, irqfd)| irqfd.read().unwrap_or(0)).collect()
}

fn pending(msix: &Msix) -> u64 {
    let mut bytes = [0; 8];
    msix.read_pending(0, &mut bytes);
    u64::from_le_bytes(bytes)
}

#[test]
fn a_vector_fires_on_the_route_that_the_driver_gave_it() {
    let kvm = Arc::default();
    let msix = table(&kvm);
    msix.set_control(ON);
    program(&msix, 1, 0x41);
    assert_eq!(*lock(&kvm.routes), [(25, MsiMessage { address: 0xfee0_0000, data: 0x41 })].into());
    assert!(msix.fire(1));
    assert_eq!(fired(&msix), [0, 1, 0]);
    assert_eq!(pending(&msix), 0);
}

#[test]
fn nothing_fires_while_disabled_and_the_caller_is_told() {
    let kvm = Arc::default();
    let msix = table(&kvm);
    program(&msix, 0, 0x41);
    assert!(!msix.fire(0));
    assert_eq!((fired(&msix), pending(&msix)), (vec![0; 3], 0));
    assert!(lock(&kvm.routes).is_empty(), "what cannot fire needs no route");
}

#[test]
fn a_masked_vector_waits_in_its_pending_bit_and_fires_once_when_unmasked() {
    let kvm = Arc::default();
    let msix = table(&kvm);
    msix.set_control(ON);
    assert!(msix.fire(2), "masked at reset");
    assert!(msix.fire(2));
    assert_eq!((fired(&msix), pending(&msix)), (vec![0; 3], 4));
    program(&msix, 2, 0x42);
    assert_eq!((fired(&msix), pending(&msix)), (vec![0, 0, 1], 0));
    assert_eq!(lock(&kvm.routes)[&26].data, 0x42, "the route is there before the interrupt");

    // All masked at once.
    msix.set_control(ON | CONTROL_MASK_ALL);
    msix.fire(2);
    assert_eq!((fired(&msix), pending(&msix)), (vec![0; 3], 4));
    msix.set_control(ON);
    assert_eq!((fired(&msix), pending(&msix)), (vec![0, 0, 1], 0));
}

#[test]
fn masking_costs_no_call_and_a_changed_message_costs_one() {
    let kvm: Arc<FakeKvm> = Arc::default();
    let msix = table(&kvm);
    msix.set_control(ON);
    program(&msix, 0, 1);
    let calls = kvm.route_calls.load(Ordering::SeqCst);
    for masked in [1u32, 0, 1, 0, 1] {
        msix.write_table(12, &masked.to_le_bytes());
    }
    assert_eq!(kvm.route_calls.load(Ordering::SeqCst), calls);
    // As Linux moves an interrupt to another CPU: masked, changed, unmasked.
    msix.write_table(0, &0xfee0_1000u32.to_le_bytes());
    msix.write_table(8, &2u32.to_le_bytes());
    assert_eq!(kvm.route_calls.load(Ordering::SeqCst), calls);
    msix.write_table(12, &0u32.to_le_bytes());
    assert_eq!(kvm.route_calls.load(Ordering::SeqCst), calls + 1);
    assert_eq!(lock(&kvm.routes)[&24], MsiMessage { address: 0xfee0_1000, data: 2 });
}

#[test]
fn a_message_for_no_lapic_goes_nowhere() {
    let kvm: Arc<FakeKvm> = Arc::default();
    let msix = table(&kvm);
    msix.set_control(ON);
    program(&msix, 0, 1);
    assert_eq!(lock(&kvm.routes).len(), 1);
    for (word, value) in [(0u64, 0x1000_0000u32), (4, 1)] {
        program(&msix, 0, 1);
        msix.write_table(word, &value.to_le_bytes());
        assert!(lock(&kvm.routes).is_empty(), "the old route must not stay");
        assert!(msix.fire(0));
    }
}

#[test]
fn a_route_that_was_refused_is_tried_again() {
    let kvm: Arc<FakeKvm> = Arc::default();
    let msix = table(&kvm);
    kvm.refuse.store(true, Ordering::SeqCst);
    msix.set_control(ON);
    program(&msix, 0, 1);
    assert!(lock(&kvm.routes).is_empty());
    kvm.refuse.store(false, Ordering::SeqCst);
    msix.write_table(12, &0u32.to_le_bytes());
    assert_eq!(lock(&kvm.routes).len(), 1);
}

#[test]
fn a_restored_table_has_its_routes_and_what_was_pending() {
    let kvm = Arc::default();
    let msix = table(&kvm);
    msix.set_control(ON);
    program(&msix, 0, 0x40);
    msix.fire(1);
    let state = msix.save();

    let other_kvm: Arc<FakeKvm> = Arc::default();
    let other = Msix::new(Arc::clone(&other_kvm) as _, &[40, 41, 42]).unwrap();
    other.restore(&state, ON).unwrap();
    assert_eq!(other.save(), state);
    assert_eq!(*lock(&other_kvm.routes), [(40, MsiMessage { address: 0xfee0_0000, data: 0x40 })].into());
    assert_eq!(other_kvm.route_calls.load(Ordering::SeqCst), 1);
    program(&other, 1, 0x41);
    assert_eq!(fired(&other), [0, 1, 0]);
}

#[test]
fn a_state_that_no_guest_can_have_made_is_refused() {
    let kvm = Arc::default();
    let good = table(&kvm).save();
    for change in [
        |state: &mut MsixState| state.entries.truncate(2),
        |state: &mut MsixState| state.entries[0][3] = 2,
        |state: &mut MsixState| state.pending = 8,
    ] {
        let mut bad = good.clone();
        change(&mut bad);
        assert!(matches!(table(&kvm).restore(&bad, 0), Err(DeviceError::StateMismatch { .. })));
    }
    // The widest table there may be has a bit for each vector.
    let widest = Msix::new(Arc::new(FakeKvm::default()), &(0..64).collect::<Vec<_>>()).unwrap();
    widest.set_control(ON);
    widest.fire(63);
    let state = widest.save();
    assert_eq!(state.pending, 1 << 63);
    widest.restore(&state, ON).unwrap();
}

#[derive(Clone, Debug)]
enum Step {
    Write(u64, Vec<u8>),
    Read(u64, usize),
    Control(u16),
    Fire(u16),
}

fn step() -> impl Strategy<Value = Step> {
    let offset = prop_oneof![0u64..64, any::<u64>()];
    prop_oneof![
        4 => (offset.clone(), prop_oneof![
            prop::collection::vec(any::<u8>(), 0..9),
            Just(0xfee0_0000u32.to_le_bytes().to_vec()),
            Just(vec![0; 4]),
            Just(vec![1, 0, 0, 0]),
        ]).prop_map(|(offset, data)| Step::Write(offset, data)),
        1 => (offset, 0usize..9).prop_map(|(offset, len)| Step::Read(offset, len)),
        2 => any::<u16>().prop_map(Step::Control),
        4 => prop_oneof![0u16..4, any::<u16>()].prop_map(Step::Fire),
    ]
}

proptest! {
    /// Every interrupt is either sent, or pending, or of a vector that cannot have one; the routes are those of the table; any state can be restored.
    #[test]
    fn no_interrupt_is_lost_whatever_is_written(steps in prop::collection::vec(step(), 0..80)) {
        let kvm: Arc<FakeKvm> = Arc::default();
        let msix = table(&kvm);
        let mut owed = [false; 3];
        let mut control = 0;
        for step in steps {
            match step {
                Step::Write(offset, data) => msix.write_table(offset, &data),
                Step::Read(offset, len) => {
                    msix.read_table(offset, &mut vec![0; len]);
                    msix.read_pending(offset, &mut vec![0; len]);
                }
                Step::Control(value) => {
                    control = value;
                    msix.set_control(value);
                }
                Step::Fire(vector) => {
                    let enabled = msix.fire(vector);
                    prop_assert_eq!(enabled, control & CONTROL_ENABLE != 0);
                    if let (true, Some(owed)) = (enabled, owed.get_mut(usize::from(vector))) {
                        *owed = true;
                    }
                }
            }
            let (sent, waiting) = (fired(&msix), pending(&msix));
            for vector in 0..3 {
                let registers = lock(&msix.registers);
                prop_assert!(!(waiting >> vector & 1 == 1 && registers.may_fire(vector)), "pending though it may fire");
                if registers.may_fire(vector) {
                    prop_assert_eq!(lock(&kvm.routes).get(&(24 + vector as u32)).copied(), registers.message(vector));
                }
                let delivered = sent[vector] > 0;
                prop_assert_eq!(owed[vector], delivered || waiting >> vector & 1 == 1);
                owed[vector] &= !delivered;
            }
        }
        let state = msix.save();
        let other = table(&Arc::default());
        other.restore(&state, control & !CONTROL_ENABLE).unwrap();
        prop_assert_eq!(other.save(), state);
    }
}
