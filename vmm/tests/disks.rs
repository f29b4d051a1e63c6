//! Disks of the built-in guest on real KVM: what is written is read again, and whoever takes the guest over with requests in flight carries out each of them
//! exactly once (S4, S5).
//!
//! Needs KVM, and the right to make a network namespace of its own with a bridge and TAPs in it.

mod support;

use std::{
    net::TcpStream,
    sync::Arc,
    time::{Duration, Instant},
};

use dirty_tracking::DirtySet;
use support::{
    built_in::{announce, ask, boot, connect, machine, network},
    kvm_is_there,
    medium::Medium,
};
use types::block::DiskIndex;
use vm_memory::{Bytes as _, GuestAddress};
use vmm::{BlockBackend, Machine};

const DISK: usize = 40 << 20;

fn backends(disks: &[&Arc<Medium>]) -> Vec<Arc<dyn BlockBackend>> {
    disks.iter().map(|disk| Arc::clone(disk) as Arc<dyn BlockBackend>).collect()
}

/// A number of `DSTAT`.
fn stat(connection: &mut TcpStream, disk: usize, name: &str) -> u64 {
    let line = ask(connection, &format!("DSTAT {disk}"));
    let field = line.split(' ').find_map(|field| field.strip_prefix(name)?.strip_prefix(':'));
    field.unwrap_or_else(|| panic!("no {name} in {line}")).parse().unwrap_or_else(|_| panic!("{line}"))
}

/// Requests that ended, of all kinds.
fn ended(connection: &mut TcpStream) -> u64 {
    ["reads", "writes", "flushes"].map(|name| stat(connection, 0, name)).iter().sum()
}

#[test]
fn what_the_guest_writes_it_reads_again_under_load_too() {
    if !kvm_is_there() || !network() {
        return;
    }
    let disks = [Medium::new(vec![0; DISK], 1), Medium::new(vec![0; 1 << 20], 2)];
    let mut only = machine("tapa", 1, backends(&[&disks[0], &disks[1]]));
    boot(&mut only);
    let mut connection = connect(&only);
    assert_eq!(ask(&mut connection, "DISKS"), ":2");
    assert_eq!(stat(&mut connection, 0, "sectors"), DISK as u64 / 512);

    let start = Instant::now();
    for block in 0..200 {
        assert_eq!(ask(&mut connection, &format!("DWRITE 1 {block} {}", block + 1000)), "+OK");
    }
    println!("200 writes of 4 KiB, one after the other, each with its client's round trip: {:?}", start.elapsed());
    for block in 0..200 {
        assert_eq!(ask(&mut connection, &format!("DREAD 1 {block}")), format!(":{}", block + 1000));
    }
    assert_eq!(ask(&mut connection, "DREAD 1 255"), ":0");
    assert!(ask(&mut connection, "DREAD 1 256").starts_with("-ERR the disk ends"));
    assert_eq!(ask(&mut connection, "DFLUSH 1"), "+OK");
    assert_eq!(ask(&mut connection, "DCHECK 1"), ":1600");

    assert_eq!(ask(&mut connection, "DLOAD 0 20000 3"), "+OK");
    let start = Instant::now();
    while ended(&mut connection) < 5000 {
        assert!(start.elapsed() < Duration::from_secs(30), "the stream stands still");
    }
    println!("5000 requests of 512 bytes to 64 KiB in {:?}", start.elapsed());
    assert_eq!(ask(&mut connection, "DLOAD 0 0"), "+OK");
    let checked: u64 = ask(&mut connection, "DCHECK 0")[1..].parse().expect("a count");
    assert!(checked > 10_000, "{checked} sectors");
    assert_eq!(stat(&mut connection, 0, "errors"), 0);
    let counts = only.disk_metrics(DiskIndex(0)).unwrap().counts();
    assert!(counts.held_up > 0, "the disk took fewer than the guest had for it: {counts:?}");
    assert_eq!((counts.disk_errors, counts.refused, counts.ring_errors), (0, 0, 0));
    only.stop();
    disks.iter().for_each(|disk| disk.end());
}

/// Captures `from`, which stays stopped, and restores it into `to`, memory and all.
fn take_over(from: &Machine, to: &mut Machine) {
    let mut paused = from.pause().unwrap();
    let state = paused.capture().unwrap();
    let mut everything = DirtySet::new(from.slots());
    everything.insert_all();
    let mut page = [0u8; types::PAGE_SIZE];
    for gfn in everything.iter() {
        from.memory().read_slice(&mut page, GuestAddress(gfn.address())).unwrap();
        // Memory that both have never touched stays so.
        if page != [0; types::PAGE_SIZE] {
            to.memory().write_slice(&page, GuestAddress(gfn.address())).unwrap();
        }
    }
    paused.stay_stopped();
    to.restore(&state).unwrap();
}

#[test]
fn requests_in_flight_are_carried_out_once_by_whoever_takes_over() {
    if !kvm_is_there() || !network() {
        return;
    }
    let mut disk = Medium::new(vec![0; DISK], 7);
    let mut current = machine("tapa", 1, backends(&[&disk]));
    boot(&mut current);
    let mut connection = connect(&current);
    assert_eq!(ask(&mut connection, "DLOAD 0 5000 11"), "+OK");
    let mut written = 0;
    for round in 0..6u64 {
        while stat(&mut connection, 0, "writes") < written + 200 {}
        assert_eq!(ask(&mut connection, &format!("DWRITE 0 {} {}", 9000 + round, 500 + round)), "+OK");
        written = stat(&mut connection, 0, "writes");
        disk.hold(true);
        disk.wait_for_pending(8);
        // The ring holds more than the disk takes.
        while stat(&mut connection, 0, "in_flight") < 16 {}
        let (before, in_flight) = (ended(&mut connection), stat(&mut connection, 0, "in_flight"));

        let other = Medium::new(disk.copy_torn(), 100 + round);
        let mut next = machine(if round % 2 == 0 { "tapb" } else { "tapa" }, 1, backends(&[&other]));
        take_over(&current, &mut next);
        current.stop();
        disk.end();
        other.hold(true);
        next.start().unwrap();
        announce(&next);
        other.wait_for_pending(8);
        assert_eq!(ended(&mut connection), before, "nothing ends before a disk has carried it out");
        assert_eq!(ask(&mut connection, "DLOAD 0 0"), "+OK");
        assert_eq!(stat(&mut connection, 0, "in_flight"), in_flight);
        other.hold(false);

        let checked: u64 = ask(&mut connection, "DCHECK 0")[1..].parse().expect("a count");
        let counts = next.disk_metrics(DiskIndex(0)).unwrap().counts();
        assert!(checked > 0 && counts.repeated >= 8, "{counts:?}");
        assert_eq!(stat(&mut connection, 0, "in_flight"), 0);
        assert_eq!(stat(&mut connection, 0, "errors"), 0);
        // Each request that the device saw was ended once: what was in flight, and the check's own reads.
        let carried_out = other.carried_out();
        assert_eq!(ended(&mut connection), before + carried_out);
        for past in 0..=round {
            assert_eq!(ask(&mut connection, &format!("DREAD 0 {}", 9000 + past)), format!(":{}", 500 + past));
        }
        assert_eq!(ask(&mut connection, "DFLUSH 0"), "+OK");
        assert_eq!(ask(&mut connection, &format!("DLOAD 0 5000 {round}")), "+OK");
        (current, disk) = (next, other);
    }
    current.stop();
    disk.end();
}
