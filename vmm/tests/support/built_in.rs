//! The built-in guest on a network of the test's own: a namespace with a bridge and TAPs, machines on them, and a client.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::Command,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use dirty_tracking::Choice;
use vmm::{
    Backing, BlockBackend, BootConfig, ConsoleSink, FrameSink, KernelImage, Machine, MachineConfig, MemoryConfig, NetConfig, SinkFull,
    Sinks, TapWriter,
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

/// A network namespace for this thread with a bridge at 10.77.0.1 and two TAPs on it, tapa and tapb; false, loudly, where that is not allowed.
pub fn network() -> bool {
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

/// A machine that has not been booted.
pub fn machine(tap: &str, vcpus: u8, disks: Vec<Arc<dyn BlockBackend>>) -> Machine {
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
    let machine = Machine::new(&config, Sinks { frames: sink.clone(), console: sink.clone(), disks }).expect("a machine");
    assert!(sink.writer.set(machine.tap_writer(0).expect("port 0")).is_ok());
    machine
}

/// Boots the built-in guest.
pub fn boot(machine: &mut Machine) {
    machine.boot(&BootConfig { kernel: KernelImage::Bytes(guest::IMAGE), initramfs: None, cmdline: String::new() }).expect("boot");
    machine.start().expect("start");
}

/// Tells the network where the guest is now.
pub fn announce(machine: &Machine) {
    let writer = machine.tap_writer(0).unwrap();
    let announcements = machine.announcements();
    assert!(!announcements.is_empty());
    for (_, frame) in announcements {
        writer.write_frame(&frame);
    }
}

fn line(connection: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n") {
        let mut byte = [0];
        connection.read_exact(&mut byte).expect("an answer");
        answer.push(byte[0]);
    }
    String::from_utf8_lossy(&answer).trim().to_owned()
}

/// Sends one inline request and reads its answer, which is one line or one bulk string.
pub fn ask(connection: &mut TcpStream, request: &str) -> String {
    connection.write_all(format!("{request}\r\n").as_bytes()).expect("send");
    let answer = line(connection);
    if answer.starts_with('$') { line(connection) } else { answer }
}

/// Connects once the guest answers.
pub fn connect(machine: &Machine) -> TcpStream {
    let guest: SocketAddr = "10.77.0.10:6379".parse().unwrap();
    let start = Instant::now();
    loop {
        if let Ok(connection) = TcpStream::connect_timeout(&guest, Duration::from_millis(500)) {
            connection.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
            connection.set_nodelay(true).unwrap();
            return connection;
        }
        if let Ok(event) = machine.events().try_recv() {
            panic!("the guest ended: {event:?}");
        }
        assert!(start.elapsed() < Duration::from_secs(30), "the guest does not answer");
    }
}
