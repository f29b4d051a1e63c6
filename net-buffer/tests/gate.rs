//! The gate's promises, one by one; [`random`](./random.rs) tries them in any order.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use net_buffer::{BufferError, Gate, Held, Limits, NetBuffer, StruckOut};
use types::{Commit, Epoch, Generation, Output, OutputPort};

const G: Generation = Generation(3);
const NET: OutputPort = OutputPort::Net(0);

fn buffer() -> NetBuffer {
    NetBuffer::new(Limits::default(), || {}).unwrap()
}

fn gated() -> NetBuffer {
    let buffer = buffer();
    buffer.gate(G).unwrap();
    buffer
}

fn commit(epoch: u64) -> Commit {
    Commit::attest(G, Epoch(epoch))
}

fn bytes(batch: impl Iterator<Item = Output>) -> Vec<Vec<u8>> {
    batch.map(|o| o.bytes).collect()
}

#[test]
fn an_open_gate_lets_output_pass() {
    let buffer = buffer();
    assert!(matches!(buffer.hold(NET, b"x"), Held::PassThrough(_)));
    assert_eq!(buffer.held().frames, 0);
}

#[test]
fn the_first_output_of_each_epoch_is_announced_once() {
    let buffer = gated();
    let first = || matches!(buffer.hold(NET, b"x"), Held::Held { first: true, .. });
    assert!(first());
    assert!(!first());
    let _one = buffer.seal(Epoch(1)).unwrap();
    assert!(first());
}

#[test]
fn a_commit_releases_its_epoch_and_all_before_it_and_nothing_after_it() {
    let buffer = gated();
    for epoch in 1..=3_u64 {
        buffer.hold(NET, &[epoch as u8]);
        assert_eq!(buffer.seal(Epoch(epoch)).unwrap().output()[0].bytes, [epoch as u8]);
    }
    assert_eq!(bytes(buffer.release(commit(2)).unwrap()), [[1], [2]]);
    assert_eq!(bytes(buffer.release(commit(2)).unwrap()), Vec::<Vec<u8>>::new());
    assert_eq!(bytes(buffer.release(commit(3)).unwrap()), [[3]]);
}

#[test]
fn a_wrong_proof_releases_nothing() {
    let buffer = gated();
    buffer.hold(NET, b"x");
    let _sealed = buffer.seal(Epoch(1)).unwrap();
    let other = Commit::attest(Generation(2), Epoch(1));
    assert!(matches!(buffer.release(other), Err(BufferError::WrongGeneration { .. })));
    assert!(matches!(buffer.release(commit(2)), Err(BufferError::NotSealed { .. })));
    assert!(matches!(buffer.open_after_strike_out(StruckOut::attest(Generation(2))), Err(BufferError::WrongGeneration { .. })));
    assert_eq!(buffer.held().frames, 1);
}

#[test]
fn epochs_are_sealed_once_and_ascending() {
    let buffer = gated();
    let _one = buffer.seal(Epoch(1)).unwrap();
    assert!(matches!(buffer.seal(Epoch(1)), Err(BufferError::NotAscending { .. })));
    assert!(buffer.seal(Epoch(2)).is_ok());
}

#[test]
fn an_epoch_given_up_returns_its_output_to_the_front() {
    let buffer = gated();
    for epoch in 1..=3_u64 {
        buffer.hold(NET, &[epoch as u8]);
        let _sealed = buffer.seal(Epoch(epoch)).unwrap();
    }
    buffer.hold(NET, &[4]);
    assert_eq!(buffer.unseal(Epoch(2)), 3);
    assert!(matches!(buffer.release(commit(3)), Err(BufferError::NotSealed { .. })), "a late commit of it is worth nothing");
    let again = buffer.seal(Epoch(2)).unwrap();
    assert_eq!(bytes(again.output().iter().cloned()), [[2], [3], [4]]);
    assert_eq!(bytes(buffer.release(commit(2)).unwrap()), [[1], [2], [3], [4]]);
}

#[test]
fn a_soft_limit_asks_for_an_early_end_and_a_hard_one_takes_nothing_until_there_is_room() {
    let told = Arc::new(AtomicUsize::new(0));
    let on_room = Arc::clone(&told);
    let limits = Limits { soft_frames: 2, hard_frames: 3, ..Limits::default() };
    let buffer = NetBuffer::new(limits, move || {
        on_room.fetch_add(1, Ordering::Relaxed);
    })
    .unwrap();
    buffer.gate(G).unwrap();
    assert!(matches!(buffer.hold(NET, b"1"), Held::Held { pressure: false, .. }));
    assert!(matches!(buffer.hold(NET, b"2"), Held::Held { pressure: true, .. }));
    assert!(matches!(buffer.hold(NET, b"3"), Held::Held { .. }));
    assert!(matches!(buffer.hold(NET, b"4"), Held::Full));
    let _sealed = buffer.seal(Epoch(1)).unwrap();
    assert!(matches!(buffer.hold(NET, b"4"), Held::Full), "sealed output still counts");
    assert_eq!(told.load(Ordering::Relaxed), 0);
    assert_eq!(buffer.release(commit(1)).unwrap().write_each(|_| {}), 3);
    assert_eq!(told.load(Ordering::Relaxed), 1, "the starved device is told once");
    assert!(matches!(buffer.hold(NET, b"4"), Held::Held { .. }));
}

#[test]
fn console_bytes_join_and_frames_do_not() {
    let buffer = gated();
    for byte in b"hello" {
        buffer.hold(OutputPort::Console, &[*byte]);
    }
    buffer.hold(NET, b"a");
    buffer.hold(NET, b"b");
    let sealed = buffer.seal(Epoch(1)).unwrap();
    assert_eq!(bytes(sealed.output().iter().cloned()), [b"hello".to_vec(), b"a".to_vec(), b"b".to_vec()]);
}

#[test]
fn nothing_overtakes_the_batch_of_an_opening_gate() {
    let buffer = gated();
    buffer.hold(NET, &[1]);
    let _sealed = buffer.seal(Epoch(1)).unwrap();
    buffer.hold(NET, &[2]);
    let mut batch = buffer.open_after_strike_out(StruckOut::attest(G.next())).unwrap();
    assert_eq!(batch.next().unwrap().bytes, [1]);
    assert!(matches!(buffer.hold(NET, &[3]), Held::Held { first: false, .. }), "queues behind the batch");
    assert_eq!(bytes(batch), [[2], [3]]);
    assert!(matches!(buffer.hold(NET, &[4]), Held::PassThrough(_)));
}

#[test]
fn a_batch_dropped_early_loses_nothing() {
    let buffer = gated();
    (1..=3_u8).for_each(|i| drop(buffer.hold(NET, &[i])));
    let _sealed = buffer.seal(Epoch(1)).unwrap();
    let mut batch = buffer.release(commit(1)).unwrap();
    assert_eq!(batch.next().unwrap().bytes, [1]);
    drop(batch);
    assert_eq!(bytes(buffer.resume_batch()), [[2], [3]]);
}

#[test]
fn two_writers_never_share_the_turn() {
    let buffer = gated();
    (1..=2_u64).for_each(|epoch| {
        buffer.hold(NET, &[epoch as u8]);
        drop(buffer.seal(Epoch(epoch)).unwrap());
    });
    let first = buffer.release(commit(1)).unwrap();
    let second = buffer.release(commit(2)).unwrap();
    assert_eq!(bytes(second), Vec::<Vec<u8>>::new());
    assert_eq!(bytes(first), [[1], [2]], "the holder of the turn writes what the other released");
}

#[test]
fn closing_the_gate_waits_for_a_frame_that_is_passing() {
    let buffer = buffer();
    std::thread::scope(|scope| {
        let Held::PassThrough(pass) = buffer.hold(NET, b"x") else { panic!("open") };
        let gating = scope.spawn(|| {
            buffer.gate(G).unwrap();
            Instant::now()
        });
        while buffer.gate_state() == Gate::Open {
            std::thread::yield_now();
        }
        assert!(matches!(buffer.hold(NET, b"y"), Held::Held { .. }), "closed already for the next frame");
        let written = Instant::now();
        drop(pass);
        assert!(gating.join().unwrap() >= written);
    });
}

#[test]
fn a_shut_gate_discards_and_never_opens_again() {
    let buffer = gated();
    buffer.hold(NET, b"x");
    let _sealed = buffer.seal(Epoch(1)).unwrap();
    buffer.hold(NET, b"y");
    assert_eq!(buffer.shut().unwrap(), 2);
    assert!(matches!(buffer.hold(NET, b"z"), Held::Shut));
    assert!(matches!(buffer.release(commit(1)), Err(BufferError::WrongGate { .. })));
    assert!(matches!(buffer.open_after_strike_out(StruckOut::attest(G)), Err(BufferError::WrongGate { .. })));
    assert!(buffer.gate(G.next()).is_err());
    assert_eq!(buffer.resume_batch().count(), 0);
}

#[test]
fn limits_that_contradict_each_other_are_refused() {
    let refused = |limits| NetBuffer::new(limits, || {}).is_err();
    assert!(refused(Limits { soft_frames: 0, ..Limits::default() }));
    assert!(refused(Limits { soft_bytes: 64 << 20, ..Limits::default() }));
    assert!(refused(Limits { soft_bytes: 1, hard_bytes: 4096, ..Limits::default() }));
}
