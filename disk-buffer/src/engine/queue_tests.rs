//! Order: whatever order the queue allows gives what the order of submission gives.

use proptest::prelude::*;

use super::*;

fn ready(queue: &mut Queue) -> Vec<u64> {
    std::iter::from_fn(|| queue.next_ready()).map(|id| id.0).collect()
}

#[test]
fn what_overlaps_goes_in_the_order_of_submission_and_the_rest_at_once() {
    let mut queue = Queue::new(512);
    queue.submit(Access::Write(0..1024), None);
    queue.submit(Access::Write(512..2048), None);
    queue.submit(Access::Read(0..512), None);
    queue.submit(Access::Read(4096..8192), None);
    queue.submit(Access::Read(4096..8192), None);
    assert_eq!(ready(&mut queue), [0, 3, 4]);
    queue.complete(Id(0));
    assert_eq!(ready(&mut queue), [1, 2]);
}

#[test]
fn requests_that_share_a_grain_count_as_overlapping() {
    let mut queue = Queue::new(4096);
    queue.submit(Access::Write(0..512), None);
    queue.submit(Access::Write(512..1024), None);
    queue.submit(Access::Write(4096..4608), None);
    assert_eq!(ready(&mut queue), [0, 2]);
}

#[test]
fn a_barrier_waits_for_every_change_before_it_and_holds_nothing_up() {
    let mut queue = Queue::new(512);
    queue.submit(Access::Write(0..512), None);
    queue.submit(Access::Read(4096..8192), None);
    queue.submit(Access::Barrier, None);
    queue.submit(Access::Write(1024..2048), None);
    assert_eq!(ready(&mut queue), [0, 1, 3]);
    queue.complete(Id(3));
    assert_eq!(ready(&mut queue), []);
    queue.complete(Id(0));
    assert_eq!(ready(&mut queue), [2]);
}

#[test]
fn a_request_waits_for_the_update_that_marks_its_regions() {
    let mut queue = Queue::new(512);
    queue.submit(Access::Write(0..512), Some(2));
    queue.submit(Access::Write(512..1024), Some(1));
    queue.marked(1);
    assert_eq!(ready(&mut queue), [1]);
    queue.marked(2);
    assert_eq!(ready(&mut queue), [0]);
}

#[test]
fn the_oldest_request_stays_the_same_exactly_while_nothing_comes_back_for_it() {
    let mut queue = Queue::new(512);
    assert_eq!(queue.oldest(), None);
    queue.submit(Access::Write(0..512), None);
    queue.submit(Access::Write(4096..8192), None);
    let first = queue.oldest();
    queue.moved(Id(1));
    queue.submit(Access::Barrier, None);
    assert_eq!(queue.oldest(), first);
    queue.moved(Id(0));
    assert_ne!(queue.oldest(), first, "a part of it is done");
    queue.complete(Id(0));
    assert_eq!(queue.oldest(), Some((Id(1), 1)));
}

#[test]
fn what_waits_for_a_log_that_failed_is_given_up_and_what_waits_for_that_may_go() {
    let mut queue = Queue::new(512);
    queue.submit(Access::Write(0..512), Some(1));
    queue.submit(Access::Read(0..512), None);
    assert_eq!(queue.give_up_unmarked(), [Id(0)]);
    assert_eq!(ready(&mut queue), [1]);
}

proptest! {
    #[test]
    fn any_order_that_the_queue_allows_gives_what_the_order_of_submission_gives(
        requests in prop::collection::vec((0usize..40, 1usize..12, 0u8..5), 1..60), order in prop::collection::vec(any::<prop::sample::Index>(), 400)
    ) {
        const CELLS: usize = 52;
        let mut queue = Queue::new(1);
        let (mut expected, mut disk) = ([0u64; CELLS], [0u64; CELLS]);
        // Cell `i` of a write gets the write's number; a read remembers what the order of submission would show it; a barrier which writes came before it.
        let mut reads = BTreeMap::new();
        let mut going: Vec<Id> = Vec::new();
        let mut unfinished_writes: Vec<u64> = Vec::new();
        let mut before_barrier: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        let mut order = order.into_iter();
        let mut requests = requests.into_iter();
        let mut spans = BTreeMap::new();
        loop {
            // Submit or finish, at random, until all is done.
            let submit = order.next().is_none_or(|index| index.index(2) == 0);
            if let (true, Some((start, len, kind))) = (submit, requests.next()) {
                let range = start as u64..(start + len) as u64;
                let access = match kind {
                    0 => Access::Read(range),
                    1 => Access::Barrier,
                    _ => Access::Write(range),
                };
                let id = queue.submit(access.clone(), None);
                match access {
                    Access::Read(_) => drop(reads.insert(id.0, expected[start..start + len].to_vec())),
                    Access::Write(_) => {
                        expected[start..start + len].fill(id.0 + 1);
                        unfinished_writes.push(id.0);
                    }
                    Access::Barrier => drop(before_barrier.insert(id.0, unfinished_writes.clone())),
                }
                spans.insert(id.0, (start, len, kind));
            } else if requests.len() == 0 && queue.is_empty() {
                break;
            }
            going.extend(std::iter::from_fn(|| queue.next_ready()));
            if let (false, Some(index)) = (going.is_empty(), order.next()) {
                let id = going.swap_remove(index.index(going.len()));
                let (start, len, kind) = spans[&id.0];
                match kind {
                    0 => prop_assert_eq!(&disk[start..start + len], &reads[&id.0][..]),
                    1 => prop_assert!(before_barrier[&id.0].iter().all(|write| !unfinished_writes.contains(write))),
                    _ => {
                        disk[start..start + len].fill(id.0 + 1);
                        unfinished_writes.retain(|write| *write != id.0);
                    }
                }
                queue.complete(id);
            } else if !going.is_empty() {
                let id = going.remove(0);
                let (start, len, kind) = spans[&id.0];
                if kind > 1 {
                    disk[start..start + len].fill(id.0 + 1);
                    unfinished_writes.retain(|write| *write != id.0);
                }
                queue.complete(id);
            }
        }
        prop_assert_eq!(disk, expected);
    }
}
