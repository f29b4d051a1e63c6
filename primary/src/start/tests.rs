//! A start on a node with shared disks: nothing boots before older owners are shut out, and the wait can be ended.

use std::sync::{Arc, Mutex};

use crossbeam::channel::{Receiver, Sender, unbounded};
use failover::core::Config;
use failover::fence::{Fence, FenceError, Grant, Owner, Predecessor};
use failover::memory::MemoryArbiter;
use failover::{Arbiter, Record};
use types::event::Protection;
use types::{Generation, NodeId, VmId};

use super::*;

/// Does as it is told, attempt by attempt; says whom it was to shut out.
struct Told {
    orders: Receiver<Result<(), String>>,
    asked: Mutex<Vec<Vec<NodeId>>>,
}

impl Fence for Told {
    fn shut_out(&self, old: &[Predecessor], _: &Owner, grant: &dyn Grant) -> Result<(), FenceError> {
        self.asked.lock().unwrap().push(old.iter().map(|old| old.node.clone()).collect());
        grant.confirm()?;
        let order = loop {
            match self.orders.recv_timeout(Duration::from_millis(5)) {
                Ok(order) => break order,
                Err(_) if !grant.wanted() => return Err(FenceError::Unwanted),
                Err(_) => {}
            }
        };
        order.map_err(FenceError::NotReady)
    }

    fn probe(&self) -> Result<(), FenceError> {
        Ok(())
    }

    fn release(&self, _: &Owner, _: bool) {}
}

struct Bench {
    arbiter: MemoryArbiter,
    told: Arc<Told>,
    orders: Sender<Result<(), String>>,
    reports: Receiver<NodeEventKind>,
    report: Report,
    shutdown: AtomicBool,
}

fn name(name: &str) -> NodeId {
    NodeId(name.to_owned())
}

impl Bench {
    fn new(record: Option<Record>) -> Bench {
        let mut arbiter = MemoryArbiter::default();
        if let Some(record) = &record {
            arbiter.swap(None, record).unwrap();
        }
        let (orders, told) = unbounded();
        let (tell, reports) = unbounded();
        let report: Report = Arc::new(move |event| drop(tell.send(event)));
        let told = Arc::new(Told { orders: told, asked: Mutex::default() });
        Bench { arbiter, told, orders, reports, report, shutdown: AtomicBool::new(false) }
    }

    fn start(&self, abandon_standby: bool) -> Start {
        let arbiter = self.arbiter.clone();
        let mut node = Node::new(Config { watch_ns: 5_000_000, fence: true, ..Config::new(name("a"), 7) });
        let client = ArbiterClient::spawn(Box::new(arbiter.clone())).unwrap();
        let mut fence =
            FenceRunner::new(Arc::clone(&self.told) as Arc<dyn Fence>, VmId("vm0".to_owned()), Arc::new(move || Box::new(arbiter.clone())))
                .with_first_pause(Duration::from_millis(1));
        let asking = Asking { node: &mut node, arbiter: &client, fence: Some(&mut fence), report: &self.report };
        start(asking, abandon_standby, &self.shutdown)
    }

    /// Waits for a state of that protection whose reason contains these words.
    fn until_fencing(&self, words: &str) {
        loop {
            match self.reports.recv_timeout(Duration::from_secs(20)).expect("a report") {
                NodeEventKind::State { protection: Protection::Fencing, reason, .. } if reason.contains(words) => return,
                _ => {}
            }
        }
    }
}

fn record(generation: u64, owner: &str, instance: u64) -> Record {
    Record { generation: Generation(generation), owner: name(owner), host: None, instance, standby: None, unfenced: Vec::new() }
}

#[test]
fn nothing_boots_before_older_owners_are_shut_out() {
    let bench = Bench::new(None);
    std::thread::scope(|scope| {
        let starting = scope.spawn(|| bench.start(false));
        bench.until_fencing("shutting older owners out");
        for why in ["the first", "the second"] {
            bench.orders.send(Err(why.to_owned())).unwrap();
            bench.until_fencing(why);
        }
        assert!(!starting.is_finished());
        bench.orders.send(Ok(())).unwrap();
        assert!(matches!(starting.join().unwrap(), Start::Granted { .. }));
    });
    assert_eq!(*bench.told.asked.lock().unwrap(), [vec![], vec![], vec![]], "nobody else was there before");
}

#[test]
fn a_fence_that_hangs_can_be_ended() {
    let bench = Bench::new(None);
    std::thread::scope(|scope| {
        let starting = scope.spawn(|| bench.start(false));
        bench.until_fencing("shutting older owners out");
        bench.shutdown.store(true, Ordering::Release);
        assert_eq!(starting.join().unwrap(), Start::Interrupted);
    });
}

#[test]
fn a_grant_that_goes_to_another_ends_the_fencing() {
    let bench = Bench::new(None);
    let mut arbiter = bench.arbiter.clone();
    std::thread::scope(|scope| {
        let starting = scope.spawn(|| bench.start(false));
        bench.until_fencing("shutting older owners out");
        let mine = arbiter.read().unwrap();
        arbiter.swap(mine.as_ref(), &record(2, "b", 9)).unwrap();
        let Start::Refused(reason) = starting.join().unwrap() else { panic!("the grant is over") };
        assert!(reason.contains("b was granted generation 2"), "{reason}");
    });
}

#[test]
fn whoever_was_not_shut_out_by_an_earlier_grant_is_named() {
    // Arrange: `a` itself took over from `b` in generation 2 and died before `b` was shut out.
    let bench = Bench::new(Some(Record { unfenced: vec![Predecessor { node: name("b"), host: None }], ..record(2, "a", 1) }));
    bench.orders.send(Ok(())).unwrap();
    assert!(matches!(bench.start(false), Start::Granted { .. }));
    assert_eq!(*bench.told.asked.lock().unwrap(), [vec![name("b")]]);
}

/// A node with the grant, a client, and a report that nobody reads.
fn granted(arbiter: &MemoryArbiter) -> (Node, ArbiterClient, Report) {
    let mut node = Node::new(Config { watch_ns: 5_000_000, ..Config::new(name("a"), 7) });
    let client = ArbiterClient::spawn(Box::new(arbiter.clone())).unwrap();
    let report: Report = Arc::new(|_| {});
    let asking = Asking { node: &mut node, arbiter: &client, fence: None, report: &report };
    assert!(matches!(start(asking, false, &AtomicBool::new(false)), Start::Granted { .. }));
    (node, client, report)
}

#[test]
fn a_guest_is_not_started_after_a_sleep_unless_the_record_still_names_this_node() {
    const BOUND_NS: u64 = 50_000_000;
    for lost in [false, true] {
        let mut arbiter = MemoryArbiter::default();
        let (mut node, client, report) = granted(&arbiter);
        let mine = arbiter.read().unwrap();
        if lost {
            arbiter.swap(mine.as_ref(), &record(2, "c", 9)).unwrap();
        }
        let slept = monotonic_ns() - BOUND_NS - 1;

        let asking = Asking { node: &mut node, arbiter: &client, fence: None, report: &report };
        let sure = confirm(asking, slept, BOUND_NS, &AtomicBool::new(false));

        match sure {
            Start::Granted { looked_ns } if !lost => assert!(looked_ns > slept + BOUND_NS, "the sleep is over"),
            Start::Fenced(reason) if lost => assert!(reason.contains("c was granted generation 2"), "{reason}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_node_that_did_not_sleep_asks_nothing_more() {
    let arbiter = MemoryArbiter::default();
    let (mut node, client, report) = granted(&arbiter);
    let looked = monotonic_ns();
    let asking = Asking { node: &mut node, arbiter: &client, fence: None, report: &report };
    assert_eq!(confirm(asking, looked, u64::MAX, &AtomicBool::new(false)), Start::Granted { looked_ns: looked });
}
