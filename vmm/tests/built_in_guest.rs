//! The built-in guest end to end on one machine and then on its restored copy: the same TCP connection goes on, and nothing that was acknowledged is gone
//! (S4, S5).
//!
//! Needs KVM, and the right to make a network namespace of its own with a bridge and TAPs in it.

mod support;

use std::time::Instant;

use dirty_tracking::DirtySet;
use support::{
    built_in::{announce, ask, boot, connect, machine, network},
    kvm_is_there,
};
use vm_memory::{Bytes as _, GuestAddress};

fn failover(vcpus: u8) {
    if !kvm_is_there() || !network() {
        return;
    }
    let mut first = machine("tapa", vcpus, Vec::new());
    boot(&mut first);
    let mut connection = connect(&first);
    assert_eq!(ask(&mut connection, "INCR turns"), ":1");

    // A standby is kept by dirty sets alone: everything once, then what changed, epoch by epoch.
    let mut second = machine("tapb", vcpus, Vec::new());
    first.start_tracking().unwrap();
    let mut dirty = DirtySet::new(first.slots());
    dirty.insert_all();
    let copy = |dirty: &DirtySet| {
        let mut page = [0u8; types::PAGE_SIZE];
        for gfn in dirty.iter() {
            first.memory().read_slice(&mut page, GuestAddress(gfn.address())).unwrap();
            second.memory().write_slice(&page, GuestAddress(gfn.address())).unwrap();
        }
    };
    copy(&dirty);
    let mut state = None;
    for turn in 2..200 {
        assert_eq!(ask(&mut connection, "INCR turns"), format!(":{turn}"));
        let mut paused = first.pause().unwrap();
        state = Some(paused.capture().unwrap());
        dirty.clear();
        paused.collect_dirty(&mut dirty).unwrap();
        copy(&dirty);
        if turn == 199 {
            paused.stay_stopped();
        }
    }
    first.stop();

    let start = Instant::now();
    second.restore(&state.expect("captured")).unwrap();
    second.start().unwrap();
    println!("restored and started in {:?}", start.elapsed());
    announce(&second);
    for turn in 200..300 {
        assert_eq!(ask(&mut connection, "INCR turns"), format!(":{turn}"));
    }
    println!("first answer and 100 more after {:?}", start.elapsed());
}

#[test]
fn a_connection_outlives_the_machine_it_was_made_to() {
    failover(1);
}

#[test]
fn with_two_vcpus_too() {
    failover(2);
}
