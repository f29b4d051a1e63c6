//! vCPU 0's loop: frames in, requests, replies, frames out, a step of work, and halting when there is nothing.
//!
//! There is no periodic tick: an idle guest sleeps until a frame or the next TCP timer, and dirties nothing meanwhile. Frames out are
//! queued during a round and the device is told once at its end.

use alloc::vec::Vec;

use guest::dirtier::{Plan, check};
use guest::disk::{Disk, DiskControl};
use guest::layout::Layout;
use guest::machine::{CheckError, Counters, Machine, StampStatus, Uptime};
use guest::parameters::Parameters;
use guest::store::Store;
use smoltcp::iface::{Config, Interface, PollIngressSingleResult, PollResult, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{EthernetAddress, IpCidr, Ipv4Address};

use crate::blk::Blk;
use crate::clock::{self, Monotonic};
use crate::connection::{Connection, Service};
use crate::net::Net;
use crate::region::{self, Memory};
use crate::smp::{self, Work};
use crate::{apic, cpu, serial};

/// Where clients connect.
const PORT: u16 = 6379;
/// Frames taken in before replies are made: a queue's worth would let the first client wait long.
const FRAMES_PER_ROUND: usize = 64;
/// Silent connections are probed, so that clients that vanished do not hold their sockets for ever.
const KEEP_ALIVE: Duration = Duration::from_secs(60);
/// A connection whose peer answers nothing for this long is given up; far above any failover.
const PEER_TIMEOUT: Duration = Duration::from_secs(300);
/// How far TCP's clock may move in a round besides the time slept: after a failover the guest's clock jumps forward, and a jump must not
/// look like a peer's silence.
const MOST_JUMP_NS: u64 = 1_000_000_000;
/// Sleep while the transmit queue is full: it also ends with an interrupt, this only bounds it.
const FULL_QUEUE_NS: u64 = 10_000_000;
/// The power management port, and the bit in it that ends the machine: where QEMU's machines and Lockstep's have it.
const POWER_PORT: u16 = 0x604;
const POWER_OFF: u16 = 1 << 13;
/// Time between SHUTDOWN's reply and the end, for the reply to be committed and released.
const SHUTDOWN_NS: u64 = 100_000_000;
/// An armed timer that fires this much before a later deadline is left alone: it costs less than setting it anew.
const EARLY_NS: u64 = 2_000_000_000;

/// The machine as the commands see it.
struct Guest {
    clock: Monotonic,
    counters: Counters,
    disks: Vec<Disk<Blk>>,
}

impl Guest {
    /// A step of the disks' streams; `false` when none had anything to do.
    fn step_disks(&mut self) -> bool {
        let mut progress = false;
        if !self.disks.is_empty() {
            let now = clock::raw_ns(0);
            for disk in &mut self.disks {
                progress |= disk.step(now);
            }
        }
        progress
    }

    /// Asks busy disks for interrupts before the vCPU halts; `false`: something has ended already.
    fn arm_disks(&mut self) -> bool {
        self.disks.iter_mut().filter(|disk| disk.is_busy()).all(|disk| disk.drive().arm())
    }

    fn disarm_disks(&mut self) {
        self.disks.iter_mut().filter(|disk| disk.is_busy()).for_each(|disk| disk.drive().disarm());
    }
}

impl Machine for Guest {
    fn uptime(&mut self) -> Uptime {
        Uptime { ns: self.clock.now(), backward_steps: self.clock.backward_steps() }
    }

    fn unix_micros(&mut self) -> u64 {
        (clock::wall_base_ns() + clock::raw_ns(0)) / 1000
    }

    fn dirty(&mut self, plan: Plan) -> bool {
        smp::change_plan(plan)
    }

    fn check(&mut self) -> Result<u64, CheckError> {
        match smp::stopped(|| check(&mut Memory, region::layout().region_pages())) {
            Some(result) => result.map_err(CheckError::Corrupt),
            None => Err(CheckError::Busy),
        }
    }

    fn burn(&mut self, percent: u8) {
        smp::change_burn(percent);
    }

    fn stamp_status(&mut self) -> StampStatus {
        let layout = region::layout();
        StampStatus {
            plan: smp::plan(),
            stamped: smp::stamped(),
            region_pages: layout.region_pages(),
            region_start: layout.page_address(0).unwrap_or(0),
        }
    }

    fn disks(&mut self) -> usize {
        self.disks.len()
    }

    fn disk(&mut self, index: usize) -> Option<&mut dyn DiskControl> {
        self.disks.get_mut(index).map(|disk| disk as &mut dyn DiskControl)
    }

    fn vcpus(&mut self) -> u32 {
        smp::cpus()
    }

    fn counters(&mut self) -> Counters {
        self.counters
    }
}

/// TCP's clock: the guest's, with jumps cut.
struct NetClock {
    last: u64,
    shown: u64,
}

impl NetClock {
    fn advance(&mut self, now: u64, slept: u64) -> Instant {
        self.shown += (now - self.last).min(slept.saturating_add(MOST_JUMP_NS));
        self.last = now;
        Instant::from_micros((self.shown / 1000) as i64)
    }
}

/// Serves until SHUTDOWN.
pub fn run(parameters: &Parameters, layout: &Layout, mut net: Net, disks: Vec<Disk<Blk>>) -> ! {
    let heap = layout.heap.len() as usize;
    let machine = Guest { clock: Monotonic::new(0), counters: Counters::default(), disks };
    // Half of the heap for data, an eighth for what connections hold aside; the rest is the allocator's slack.
    let mut service = Service::new(Store::new(heap / 2), machine, heap / 8);
    let mut config = Config::new(EthernetAddress(net.mac()).into());
    config.random_seed = cpu::tsc();
    let mut interface = Interface::new(config, &mut net, Instant::ZERO);
    let [a, b, c, d] = parameters.ip;
    interface.update_ip_addrs(|addresses| {
        let _ = addresses.push(IpCidr::new(Ipv4Address::new(a, b, c, d).into(), parameters.prefix));
    });
    let [a, b, c, d] = parameters.gateway;
    let _ = interface.routes_mut().add_default_ipv4_route(Ipv4Address::new(a, b, c, d));
    let mut sockets = SocketSet::new(Vec::new());
    let mut connections: Vec<Connection> = (0..layout.connections)
        .map(|index| {
            let (receive, send) = region::socket_buffers(index);
            let mut socket = Socket::new(SocketBuffer::new(receive), SocketBuffer::new(send));
            socket.set_nagle_enabled(false);
            socket.set_ack_delay(None);
            socket.set_keep_alive(Some(KEEP_ALIVE));
            socket.set_timeout(Some(PEER_TIMEOUT));
            Connection::new(sockets.add(socket))
        })
        .collect();

    let mut work = Work::new(0);
    let mut net_clock = NetClock { last: 0, shown: 0 };
    let mut slept = 0;
    let mut timer_at = 0;
    let mut shutdown_at = None;
    let mut acknowledged = cpu::interrupts(0);
    loop {
        let seen = cpu::interrupts(0);
        if seen != acknowledged {
            acknowledged = seen;
            net.acknowledge_interrupt();
            service.machine.disks.iter_mut().for_each(|disk| disk.drive().acknowledge_interrupt());
        }
        let now = service.machine.clock.now();
        let instant = net_clock.advance(now, core::mem::take(&mut slept));
        let mut progress = false;
        interface.poll_maintenance(instant);
        for _ in 0..FRAMES_PER_ROUND {
            if interface.poll_ingress_single(instant, &mut net, &mut sockets) == PollIngressSingleResult::None {
                break;
            }
            progress = true;
        }
        (service.machine.counters.frames_in, service.machine.counters.frames_out) = net.frames();
        service.machine.counters.commands = service.commands;
        let (mut open, mut listening) = (0, 0);
        for connection in &mut connections {
            let socket = sockets.get_mut::<Socket<'_>>(connection.handle);
            progress |= connection.serve(socket, PORT, &mut service);
            open += u64::from(socket.is_active());
            listening += u32::from(socket.is_listening());
        }
        service.machine.counters.connections = open;
        if listening == 0 {
            progress |= reclaim(&connections, &mut sockets);
        }
        progress |= interface.poll_egress(instant, &mut net, &mut sockets) == PollResult::SocketStateChanged;
        net.kick();
        progress |= work.step(&mut service.machine.clock);
        progress |= service.machine.step_disks();
        if service.machine.disks.iter_mut().any(|disk| disk.drive().take_timer_used()) {
            timer_at = 0;
        }

        if service.shutdown {
            let now = service.machine.clock.now();
            if now >= *shutdown_at.get_or_insert(now + SHUTDOWN_NS) {
                serial::out16(POWER_PORT, POWER_OFF);
                // A VMM without that port takes the keyboard controller's reset line for the end (QEMU's microvm with -no-reboot, Firecracker).
                serial::out8(0x64, 0xfe);
                cpu::stop();
            }
            continue;
        }
        if progress {
            continue;
        }
        let tcp = match interface.poll_delay(instant, &sockets) {
            Some(Duration::ZERO) if net.is_full() => Some(FULL_QUEUE_NS),
            Some(Duration::ZERO) => continue,
            Some(delay) => Some(delay.total_micros() * 1000),
            None => None,
        };
        let disks = service.machine.disks.iter().filter_map(Disk::wait_ns).min();
        let wait = [tcp, work.wait_ns(), disks].into_iter().flatten().min();
        if wait.is_some_and(|ns| ns < 1000) {
            continue;
        }
        let now = service.machine.clock.now();
        if let Some(ns) = wait {
            // A timer already set for a little earlier will do: it fires, and the loop comes back here.
            let armed = timer_at > now && timer_at <= now + ns && now + ns - timer_at <= EARLY_NS;
            if !armed {
                apic::set_timer(ns);
                timer_at = now + ns;
            }
        }
        if net.arm() && service.machine.arm_disks() {
            cpu::wait(seen);
            slept = wait.unwrap_or(u64::MAX);
        }
        net.disarm();
        service.machine.disarm_disks();
    }
}

/// Gives a connection that only waits for stray segments (TIME-WAIT) to new clients, when no socket listens any more.
fn reclaim(connections: &[Connection], sockets: &mut SocketSet<'_>) -> bool {
    for connection in connections {
        let socket = sockets.get_mut::<Socket<'_>>(connection.handle);
        if socket.state() == State::TimeWait {
            socket.abort();
            return true;
        }
    }
    false
}
