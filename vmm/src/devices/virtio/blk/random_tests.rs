//! A good driver, a disk that answers in any order and sometimes fails, and failovers at any moment: every request ends exactly once, with the right answer,
//! and the disk holds what the guest was told.

use std::collections::BTreeMap;

use proptest::prelude::*;
use types::block::BlockError;

use super::testing::*;
use crate::devices::lock;
use crate::devices::worker::WorkerDevice;

/// Blocks that requests are about; no two in flight are about the same one, as a guest's file system sees to.
const BLOCKS: u64 = 64;
const BLOCK: usize = 4096;

#[derive(Clone, Debug)]
enum Step {
    Write(u64),
    Read(u64),
    Flush,
    Answer(usize),
    Fail(usize),
    Run,
    Retry,
    Capacity(usize),
    /// Another host takes over; of what was in flight these (by bit) had reached its disk.
    Failover(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..BLOCKS).prop_map(Step::Write),
        4 => (0..BLOCKS).prop_map(Step::Read),
        1 => Just(Step::Flush),
        8 => any::<usize>().prop_map(Step::Answer),
        1 => any::<usize>().prop_map(Step::Fail),
        6 => Just(Step::Run),
        1 => Just(Step::Retry),
        1 => (1usize..20).prop_map(Step::Capacity),
        1 => any::<u64>().prop_map(Step::Failover),
    ]
}

#[derive(Clone, Copy, Debug)]
enum Asked {
    /// Block, seed of its new content.
    Write(u64, u64),
    Read(u64),
    Flush,
}

struct Model {
    guest: Guest,
    /// What the guest knows each block to hold: the seed of its pattern, 0 for zeroes; `None` after a failed write.
    known: BTreeMap<u64, Option<u64>>,
    asked: BTreeMap<u16, Asked>,
    seed: u64,
}

impl Model {
    fn free_head(&self) -> Option<u16> {
        (0..40).find(|head| !self.asked.contains_key(head))
    }

    fn is_busy(&self, block: u64) -> bool {
        self.asked.values().any(|asked| matches!(asked, Asked::Write(other, ..) | Asked::Read(other) if *other == block))
    }

    fn content(seed: u64) -> Vec<u8> {
        if seed == 0 { vec![0; BLOCK] } else { pattern(seed, BLOCK) }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Write(block) | Step::Read(block) if self.is_busy(block) => {}
            Step::Write(block) => {
                if let Some(head) = self.free_head() {
                    self.seed += 1;
                    self.guest.driver.put(data_at(head), &pattern(self.seed, BLOCK));
                    self.guest.offer(head, T_OUT, block * 8, &[(data_at(head), BLOCK as u32)]);
                    self.asked.insert(head, Asked::Write(block, self.seed));
                }
            }
            Step::Read(block) => {
                if let Some(head) = self.free_head() {
                    self.guest.driver.put(data_at(head), &[0xcc; BLOCK]);
                    self.guest.offer(head, T_IN, block * 8, &[(data_at(head), 1000), (data_at(head) + 1000, 3096)]);
                    self.asked.insert(head, Asked::Read(block));
                }
            }
            Step::Flush => {
                if let Some(head) = self.free_head() {
                    self.guest.offer(head, T_FLUSH, 0, &[]);
                    self.asked.insert(head, Asked::Flush);
                }
            }
            Step::Answer(index) | Step::Fail(index) => {
                let pending = self.guest.disk.pending().len();
                if pending > 0 && matches!(step, Step::Fail(_)) {
                    self.guest.disk.answer_with(index % pending, Err(BlockError::Io(libc::EIO)));
                } else if pending > 0 {
                    self.guest.disk.answer(index % pending);
                }
            }
            Step::Run => {
                self.guest.driver.run();
            }
            Step::Retry => lock(&self.guest.driver.device).retry(),
            Step::Capacity(capacity) => self.guest.disk.set_capacity(capacity),
            Step::Failover(reached) => {
                for index in 0..self.guest.disk.pending().len() {
                    if reached >> (index % 64) & 1 == 1 {
                        self.guest.disk.carry_out(index);
                    }
                }
                let seen = self.guest.driver.seen();
                self.guest = self.guest.taken_over(self.guest.disk.mirror());
                self.guest.driver.set_seen(seen);
            }
        }
        self.look();
    }

    /// Looks at what the device has used.
    fn look(&mut self) {
        for (head, length) in self.guest.driver.used() {
            let asked = self.asked.remove(&head).unwrap_or_else(|| panic!("{head} was answered twice"));
            let status = self.guest.status_of(head);
            match (asked, status) {
                (Asked::Write(block, seed), 0) => {
                    assert_eq!(length, 1);
                    self.known.insert(block, Some(seed));
                }
                (Asked::Write(block, ..), 1) => {
                    self.known.insert(block, None);
                }
                (Asked::Read(block), 0) => {
                    assert_eq!(length, BLOCK as u32 + 1);
                    if let Some(seed) = self.known.get(&block).copied().unwrap_or(Some(0)) {
                        assert!(self.guest.driver.bytes(data_at(head), BLOCK) == Model::content(seed), "block {block} was read wrong");
                    }
                }
                (Asked::Read(_), 1) => assert_eq!(self.guest.driver.bytes(data_at(head), BLOCK), [0xcc; BLOCK]),
                (Asked::Flush, 0 | 1) => {}
                (asked, status) => panic!("{asked:?} ended with {status}"),
            }
        }
    }

    fn end(mut self) {
        self.guest.disk.set_capacity(usize::MAX);
        lock(&self.guest.driver.device).retry();
        for _ in 0..20 {
            self.guest.driver.run_all();
            self.guest.disk.answer_all();
        }
        self.guest.driver.run_all();
        self.look();
        assert!(self.asked.is_empty(), "never answered: {:?}", self.asked);
        for (block, seed) in self.known {
            if let Some(seed) = seed {
                assert!(self.guest.disk.content(block * BLOCK as u64, BLOCK) == Model::content(seed), "block {block} is lost");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(80))]

    #[test]
    fn every_request_ends_once_and_rightly_whatever_order_errors_and_failovers(steps in prop::collection::vec(step(), 1..300)) {
        let mut model = Model { guest: Guest::running(ALL), known: BTreeMap::new(), asked: BTreeMap::new(), seed: 0 };
        for step in steps {
            model.step(step);
        }
        model.end();
    }
}
