//! Any order of operations, against the simplest model there is: S1 (nothing before its commit), order per port, nothing lost or duplicated,
//! bounds kept.

use std::collections::BTreeMap;

use net_buffer::{Gate, Held, Limits, NetBuffer, StruckOut};
use proptest::prelude::*;
use types::{Commit, Epoch, Generation, Output, OutputPort};

#[derive(Clone, Debug)]
enum Step {
    Hold(u8, u8),
    Seal,
    /// Commit the sealed epoch that is this many behind the newest; take at most so many pieces of the batch.
    Release(u64, usize),
    Unseal(u64),
    Gate,
    Open(usize),
    Resume(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..4_u8, 1..40_u8).prop_map(|(port, len)| Step::Hold(port, len)),
        3 => Just(Step::Seal),
        3 => (0..4_u64, 0..40_usize).prop_map(|(behind, take)| Step::Release(behind, take)),
        1 => (0..4_u64).prop_map(Step::Unseal),
        2 => Just(Step::Gate),
        1 => (0..40_usize).prop_map(Step::Open),
        1 => (0..40_usize).prop_map(Step::Resume),
    ]
}

/// What the world should see, worked out from what was said to the buffer.
#[derive(Default)]
struct World {
    /// Bytes accepted per port, in order.
    said: BTreeMap<u8, Vec<u8>>,
    /// Bytes that reached the world per port.
    seen: BTreeMap<u8, Vec<u8>>,
    /// Per port: how many accepted bytes may be out.
    allowed: BTreeMap<u8, usize>,
    /// Bytes accepted per port at each seal that stands.
    at_seal: Vec<(u64, BTreeMap<u8, usize>)>,
}

fn key(port: OutputPort) -> u8 {
    match port {
        OutputPort::Net(n) => n,
        OutputPort::Console => 3,
    }
}

impl World {
    fn see(&mut self, output: &Output) {
        self.seen.entry(key(output.port)).or_default().extend(&output.bytes);
    }

    fn lengths(&self) -> BTreeMap<u8, usize> {
        self.said.iter().map(|(port, bytes)| (*port, bytes.len())).collect()
    }

    fn check(&self) {
        for (port, seen) in &self.seen {
            let said = self.said.get(port).map_or(&[][..], Vec::as_slice);
            assert!(seen.len() <= self.allowed.get(port).copied().unwrap_or(0), "port {port}: out before its commit");
            assert_eq!(&said[..seen.len()], &seen[..], "port {port}: lost, duplicated or reordered");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn any_order_of_operations_keeps_every_promise(steps in proptest::collection::vec(step(), 1..120)) {
        let limits = Limits { soft_frames: 8, hard_frames: 24, soft_bytes: 400, hard_bytes: 68 * 1024 };
        let buffer = NetBuffer::new(limits, || {}).unwrap();
        let mut world = World::default();
        let (mut generation, mut epoch, mut counter) = (0, 0, 0_u8);
        for step in steps {
            match step {
                Step::Hold(port, len) => {
                    let bytes: Vec<u8> = (0..len).map(|_| { counter = counter.wrapping_add(1); counter }).collect();
                    let output = Output { port: if port == 3 { OutputPort::Console } else { OutputPort::Net(port) }, bytes };
                    match buffer.hold(output.port, &output.bytes) {
                        Held::PassThrough(_pass) => {
                            world.said.entry(port).or_default().extend(&output.bytes);
                            world.allowed = world.lengths();
                            world.see(&output);
                        }
                        Held::Held { .. } => world.said.entry(port).or_default().extend(&output.bytes),
                        Held::Full => prop_assert_eq!(buffer.held().frames, 24),
                        Held::Shut => prop_assert!(false, "never shut here"),
                    }
                }
                Step::Seal => {
                    if let Ok(sealed) = buffer.seal(Epoch(epoch + 1)) {
                        epoch += 1;
                        drop(sealed);
                        world.at_seal.push((epoch, world.lengths()));
                    }
                }
                Step::Release(behind, take) => {
                    let target = epoch.saturating_sub(behind);
                    if let Ok(batch) = buffer.release(Commit::attest(Generation(generation), Epoch(target))) {
                        while world.at_seal.first().is_some_and(|(e, _)| *e <= target) {
                            world.allowed = world.at_seal.remove(0).1;
                        }
                        batch.take(take).for_each(|o| world.see(&o));
                    }
                }
                Step::Unseal(behind) => {
                    let target = epoch.saturating_sub(behind);
                    buffer.unseal(Epoch(target));
                    let released = world.at_seal.first().map_or(epoch, |(e, _)| e - 1);
                    world.at_seal.retain(|(e, _)| *e < target);
                    epoch = world.at_seal.last().map_or(released, |(e, _)| *e);
                }
                Step::Gate => {
                    // What is still outgoing would keep it waiting: a caller finishes its batch first.
                    buffer.resume_batch().for_each(|o| world.see(&o));
                    if buffer.gate_state() == Gate::Open {
                        world.allowed = world.lengths();
                        generation += 1;
                        buffer.gate(Generation(generation)).unwrap();
                        (epoch, world.at_seal) = (0, Vec::new());
                    }
                }
                Step::Open(take) => {
                    let batch = buffer.open_after_strike_out(StruckOut::attest(Generation(generation))).unwrap();
                    world.at_seal.clear();
                    world.allowed = world.lengths();
                    batch.take(take).for_each(|o| world.see(&o));
                }
                Step::Resume(take) => buffer.resume_batch().take(take).for_each(|o| world.see(&o)),
            }
            if buffer.gate_state() == Gate::Open {
                world.allowed = world.lengths();
            }
            world.check();
            prop_assert!(buffer.held().frames <= 24);
        }
        // In the end everything that was said has been seen.
        let batch = buffer.open_after_strike_out(StruckOut::attest(Generation(generation))).unwrap();
        batch.for_each(|o| world.see(&o));
        prop_assert_eq!(&world.seen, &world.said);
        prop_assert_eq!(buffer.held().bytes, 0);
    }
}
