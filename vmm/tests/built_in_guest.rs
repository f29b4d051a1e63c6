//! The built-in guest end to end on one machine and then on its restored copy: the same TCP connection goes on, and nothing that was acknowledged is gone
//! (S4, S5).
//!
//! Needs KVM, and the right to make a network namespace of its own with a bridge and TAPs in it.

mod support;

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::Command,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use dirty_tracking::{Choice, DirtySet};
use support::kvm_is_there;
use vm_memory::{Bytes as _, GuestAddress};
use vmm::{
    Backing, BootConfig, ConsoleSink, FrameSink, KernelImage, Machine, MachineConfig, MemoryConfig, NetConfig, SinkFull, Sinks, TapWriter,
};

const MEMORY: u64 = 128 << 20;
const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

/// Lets every frame out at once: an open gate.
#[derive(Default)]
struct Open {
    writer: OnceLock<TapWriter>,
}

impl FrameSink for Open {
    fn send(&self, _port: u8, frame: &[u8]) -> Result<(), SinkFull> {
        self.writer.get().ok_or(SinkFull)?.write_frame(frame);
        Ok(())
    }
}

impl ConsoleSink for Open {
    fn write(&self, bytes: &[u8]) {
        print!("{}", String::from_utf8_lossy(bytes));
    }
}

/// A network namespace for this thread with a bridge at 10.77.0.1 and two TAPs on it; false, loudly, where that is not allowed.
fn network() -> bool {
    let commands = [
        "link add br0 type bridge forward_delay 0",
        "addr add 10.77.0.1/24 dev br0",
        "tuntap add tapa mode tap",
        "tuntap add tapb mode tap",
        "link set tapa master br0",
        "link set tapb master br0",
        "link set tapa up",
        "link set tapb up",
        "link set br0 up",
    ];
    let in_namespace = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET);
    let made = in_namespace.is_ok()
        && commands.iter().all(|command| Command::new("ip").args(command.split(' ')).status().is_ok_and(|status| status.success()));
    if !made {
        eprintln!("SKIPPED, NOTHING TESTED: cannot make a network namespace with TAPs ({in_namespace:?})");
    }
    made
}

fn machine(tap: &str, vcpus: u8) -> Machine {
    let sink: Arc<Open> = Arc::default();
    let config = MachineConfig {
        memory: MemoryConfig { bytes: MEMORY, backing: Backing::Anonymous },
        vcpus,
        nets: vec![NetConfig { tap: tap.into(), mac: MAC }],
        rng: false,
        bus: vmm::Bus::Mmio,
        cpu: vmm::CpuModel::Host,
        dirty: Choice::Auto,
    };
    let machine = Machine::new(&config, Sinks { frames: sink.clone(), console: sink.clone(), disks: Vec::new() }).expect("a machine");
    assert!(sink.writer.set(machine.tap_writer(0).expect("port 0")).is_ok());
    machine
}

/// Sends one inline request and reads one line of answer.
fn ask(connection: &mut TcpStream, request: &str) -> String {
    connection.write_all(format!("{request}\r\n").as_bytes()).expect("send");
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n") {
        let mut byte = [0];
        connection.read_exact(&mut byte).expect("an answer");
        answer.push(byte[0]);
    }
    String::from_utf8_lossy(&answer).trim().to_owned()
}

fn connect(machine: &Machine) -> TcpStream {
    let guest: SocketAddr = "10.77.0.10:6379".parse().unwrap();
    let start = Instant::now();
    loop {
        if let Ok(connection) = TcpStream::connect_timeout(&guest, Duration::from_millis(500)) {
            connection.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            connection.set_nodelay(true).unwrap();
            return connection;
        }
        if let Ok(event) = machine.events().try_recv() {
            panic!("the guest ended: {event:?}");
        }
        assert!(start.elapsed() < Duration::from_secs(30), "the guest does not answer");
    }
}

fn failover(vcpus: u8) {
    if !kvm_is_there() || !network() {
        return;
    }
    let mut first = machine("tapa", vcpus);
    first.boot(&BootConfig { kernel: KernelImage::Bytes(guest::IMAGE), initramfs: None, cmdline: String::new() }).expect("boot");
    first.start().expect("start");
    let mut connection = connect(&first);
    assert_eq!(ask(&mut connection, "INCR turns"), ":1");

    // A standby is kept by dirty sets alone: everything once, then what changed, epoch by epoch.
    let mut second = machine("tapb", vcpus);
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
    let writer = second.tap_writer(0).unwrap();
    let announcements = second.announcements();
    assert!(!announcements.is_empty());
    for (_, frame) in announcements {
        writer.write_frame(&frame);
    }
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
