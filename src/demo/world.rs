//! A small world on one machine: two hosts and a client network, each a network namespace, joined by wires that can be cut.
//!
//! ```text
//!   host A                       clients                      host B
//!   br0 { tap0, eth0 } --veth-- lan { lan-a, lan-b } --veth-- br0 { eth0, tap0 }
//!   repl0 10.78.0.1/24 --------------------veth------------- repl0 10.78.0.2/24
//! ```
//!
//! The demo, the end-to-end tests and the benchmarks build the same one. Needs `ip` (iproute2), /dev/net/tun and the right to make network
//! namespaces. Lives here: the topology and its faults. Not here: what runs in it.

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};

use super::namespace::{Namespace, NamespaceError};

/// The clients' address.
pub const CLIENT_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 1));
/// The address the guest is given; `lockstep.ip=10.77.0.10/24` is also the built-in guest's default.
pub const GUEST_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 10));
/// Name of the TAP device in either host.
pub const TAP: &str = "tap0";
/// Port on which a standby listens in this world.
pub const REPLICATION_PORT: u16 = 7300;

/// The wire between the hosts has known hardware addresses, so that a cut in one direction can be made and undone by a neighbour entry.
const REPLICATION_MAC: [&str; 2] = ["02:78:00:00:00:01", "02:78:00:00:00:02"];
/// A hardware address that nobody has: frames sent to it arrive and are ignored.
const NOBODY_MAC: &str = "02:78:00:00:00:ff";

/// One of the two hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    /// Where the primary starts.
    A,
    /// Where the standby starts.
    B,
}

impl Host {
    /// The other host.
    #[must_use]
    pub fn other(self) -> Host {
        match self {
            Host::A => Host::B,
            Host::B => Host::A,
        }
    }

    fn index(self) -> usize {
        match self {
            Host::A => 0,
            Host::B => 1,
        }
    }

    /// The host's address on the replication wire, with [`REPLICATION_PORT`].
    #[must_use]
    pub fn replication_address(self) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 78, 0, self.index() as u8 + 1)), REPLICATION_PORT)
    }
}

/// A place to run something in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The client network.
    Clients,
    /// A host.
    On(Host),
}

/// A wire of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// To the client network.
    Lan,
    /// To the other host.
    Replication,
}

/// Which way the replication wire is cut, without either end losing its carrier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// What A sends does not arrive.
    FromA,
    /// What B sends does not arrive.
    FromB,
    /// Nothing arrives.
    Both,
}

impl Cut {
    fn senders(self) -> &'static [Host] {
        match self {
            Cut::FromA => &[Host::A],
            Cut::FromB => &[Host::B],
            Cut::Both => &[Host::A, Host::B],
        }
    }
}

/// Why the world could not be built or changed.
#[derive(Debug, thiserror::Error)]
pub enum WorldError {
    /// A namespace could not be made or entered.
    #[error("cannot use a network namespace")]
    Namespace(#[from] NamespaceError),
    /// `ip` could not be run.
    #[error("cannot run ip: {source}; install iproute2 (apt-get install iproute2)")]
    NoIp {
        /// What the system said.
        source: io::Error,
    },
    /// `ip` refused.
    #[error("ip could not {what}: {said}")]
    Ip {
        /// The batch of commands.
        what: String,
        /// What ip printed.
        said: String,
    },
    /// An interface's counters could not be read.
    #[error("cannot read the counters of {interface} from /proc/net/dev: {why}")]
    Counters {
        /// The interface.
        interface: &'static str,
        /// What was wrong.
        why: String,
    },
}

/// The world. Vanishes when it is dropped and the processes in it have ended.
#[derive(Debug)]
pub struct World {
    clients: Namespace,
    hosts: [Namespace; 2],
}

impl World {
    /// Builds the two hosts, the client network and the wires; all are up when this returns.
    ///
    /// # Errors
    /// No right to make namespaces, no `ip`, no TUN driver.
    pub fn new() -> Result<World, WorldError> {
        let world = World { clients: Namespace::new()?, hosts: [Namespace::new()?, Namespace::new()?] };
        let [a, b] = &world.hosts;
        let bridge = |name: &str| format!("link add {name} type bridge stp_state 0 forward_delay 0 mcast_snooping 0\nlink set {name} up\n");
        ip(
            &world.clients,
            &[a, b],
            &format!(
                "link set lo up\n{}addr add {CLIENT_ADDRESS}/24 dev lan\n\
                 link add lan-a type veth peer name eth0 netns {}\nlink set lan-a master lan up\n\
                 link add lan-b type veth peer name eth0 netns {}\nlink set lan-b master lan up\n",
                bridge("lan"),
                a.path(),
                b.path()
            ),
        )?;
        ip(
            a,
            &[b],
            &format!(
                "link add repl0 address {} type veth peer name repl0 address {} netns {}\n",
                REPLICATION_MAC[0],
                REPLICATION_MAC[1],
                b.path()
            ),
        )?;
        for host in [Host::A, Host::B] {
            let address = host.replication_address().ip();
            ip(
                &world.hosts[host.index()],
                &[],
                &format!(
                    "link set lo up\n{}tuntap add dev {TAP} mode tap\nlink set {TAP} master br0 up\nlink set eth0 master br0 up\n\
                     addr add {address}/24 dev repl0\nlink set repl0 up\n",
                    bridge("br0")
                ),
            )?;
        }
        Ok(world)
    }

    fn namespace(&self, place: Place) -> &Namespace {
        match place {
            Place::Clients => &self.clients,
            Place::On(host) => &self.hosts[host.index()],
        }
    }

    /// Starts a process at `place`; it dies with the thread that called this (see [`Namespace::spawn`]).
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn spawn(&self, place: Place, command: &mut Command) -> Result<Child, WorldError> {
        Ok(self.namespace(place).spawn(command)?)
    }

    /// Runs `work` on a thread at `place` and waits for its answer; sockets made there stay there.
    ///
    /// # Errors
    /// No thread to be had.
    pub fn run<T: Send>(&self, place: Place, work: impl FnOnce() -> T + Send) -> Result<T, WorldError> {
        Ok(self.namespace(place).run(work)?)
    }

    /// Moves the calling thread to `place` for good.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn enter(&self, place: Place) -> Result<(), WorldError> {
        Ok(self.namespace(place).enter()?)
    }

    /// Plugs or unplugs a wire of `host`: both its ends see the carrier come or go.
    ///
    /// # Errors
    /// `ip` fails.
    pub fn set_wire(&self, host: Host, wire: Wire, plugged: bool) -> Result<(), WorldError> {
        let state = if plugged { "up" } else { "down" };
        match wire {
            Wire::Replication => ip(&self.hosts[host.index()], &[], &format!("link set repl0 {state}\n")),
            Wire::Lan => {
                let end = ["lan-a", "lan-b"][host.index()];
                ip(&self.clients, &[], &format!("link set {end} {state}\n"))
            }
        }
    }

    /// Cuts the replication wire silently: frames leave and never arrive, and no end is told.
    ///
    /// # Errors
    /// `ip` fails.
    pub fn cut_replication(&self, cut: Cut) -> Result<(), WorldError> {
        for host in cut.senders() {
            self.neighbour(*host, NOBODY_MAC)?;
        }
        Ok(())
    }

    /// Mends every silent cut of the replication wire.
    ///
    /// # Errors
    /// `ip` fails.
    pub fn heal_replication(&self) -> Result<(), WorldError> {
        for host in [Host::A, Host::B] {
            self.neighbour(host, REPLICATION_MAC[host.other().index()])?;
        }
        Ok(())
    }

    /// Tells `host` which hardware address the other host has.
    fn neighbour(&self, host: Host, mac: &str) -> Result<(), WorldError> {
        let peer = host.other().replication_address().ip();
        ip(&self.hosts[host.index()], &[], &format!("neigh replace {peer} lladdr {mac} dev repl0 nud permanent\n"))
    }

    /// Frames that `host` has ever sent to the client network: what its guest has released.
    ///
    /// # Errors
    /// The counters cannot be read.
    pub fn frames_released(&self, host: Host) -> Result<u64, WorldError> {
        const INTERFACE: &str = "eth0";
        // Columns of /proc/net/dev: eight for what was received (bytes, packets, ...), then bytes and packets sent.
        const SENT_PACKETS: usize = 9;
        let wrong = |why: String| WorldError::Counters { interface: INTERFACE, why };
        let table =
            self.run(Place::On(host), || std::fs::read_to_string("/proc/thread-self/net/dev"))?.map_err(|e| wrong(e.to_string()))?;
        table
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name.trim() == INTERFACE)
            .and_then(|(_, numbers)| numbers.split_whitespace().nth(SENT_PACKETS)?.parse().ok())
            .ok_or_else(|| wrong("no such line".into()))
    }
}

/// Runs a batch of `ip` commands in `namespace`, with `others` reachable under their [`Namespace::path`].
fn ip(namespace: &Namespace, others: &[&Namespace], batch: &str) -> Result<(), WorldError> {
    let mut command = Command::new("ip");
    command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = match namespace.spawn_with(&mut command, others) {
        Ok(child) => child,
        Err(NamespaceError::Start { source, .. }) => return Err(WorldError::NoIp { source }),
        Err(other) => return Err(other.into()),
    };
    // The batch is far below a pipe's capacity: writing it cannot block. A failure to write shows in ip's own answer.
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.write_all(batch.as_bytes());
    }
    let output = child.wait_with_output().map_err(|source| WorldError::NoIp { source })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    Err(WorldError::Ip { what: batch.trim().replace('\n', "; "), said })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};
    use std::time::Duration;

    use super::*;

    /// None where namespaces may not be made: then there is nothing to test.
    fn world() -> Option<World> {
        match World::new() {
            Ok(world) => Some(world),
            Err(WorldError::Namespace(NamespaceError::Make { .. })) if std::env::var_os("LOCKSTEP_REQUIRE_KVM").is_none() => None,
            Err(other) => panic!("{other}"),
        }
    }

    fn replication_sockets(world: &World) -> [UdpSocket; 2] {
        [Host::A, Host::B].map(|host| {
            let socket = world.run(Place::On(host), || UdpSocket::bind(host.replication_address())).expect("a thread").expect("a socket");
            socket.set_read_timeout(Some(Duration::from_millis(200))).expect("a time-out");
            socket
        })
    }

    fn arrives(from: &UdpSocket, to: &UdpSocket) -> bool {
        let token: [u8; 8] = rand::random();
        from.send_to(&token, to.local_addr().expect("an address")).expect("sent");
        let mut buffer = [0; 8];
        while to.recv(&mut buffer).is_ok() {
            if buffer == token {
                return true;
            }
        }
        false
    }

    #[test]
    fn a_silent_cut_stops_one_direction_and_healing_brings_it_back() {
        let Some(world) = world() else { return };
        let [a, b] = replication_sockets(&world);
        assert!(arrives(&a, &b) && arrives(&b, &a));

        world.cut_replication(Cut::FromA).expect("cut");
        assert!(!arrives(&a, &b) && arrives(&b, &a));
        world.cut_replication(Cut::Both).expect("cut");
        assert!(!arrives(&b, &a));

        world.heal_replication().expect("healed");
        assert!(arrives(&a, &b) && arrives(&b, &a));
    }

    #[test]
    fn hosts_release_nothing_by_themselves() {
        let Some(world) = world() else { return };
        assert_eq!(world.frames_released(Host::A).expect("counters"), 0);
        assert_eq!(world.frames_released(Host::B).expect("counters"), 0);
    }

    #[test]
    fn processes_run_where_they_are_put() {
        let Some(world) = world() else { return };
        let mut command = Command::new("ip");
        command.args(["-4", "-o", "addr", "show", "dev", "repl0"]).stdout(Stdio::piped());
        let output = world.spawn(Place::On(Host::B), &mut command).expect("started").wait_with_output().expect("ended");
        assert!(String::from_utf8_lossy(&output.stdout).contains("10.78.0.2/24"));
    }

    #[test]
    fn an_unplugged_wire_and_a_plugged_one_again() {
        let Some(world) = world() else { return };
        let [a, b] = replication_sockets(&world);
        world.set_wire(Host::A, Wire::Replication, false).expect("unplugged");
        assert!(a.send_to(b"x", b.local_addr().expect("an address")).is_err(), "the host knows that it has no carrier");
        world.set_wire(Host::A, Wire::Replication, true).expect("plugged");
        assert!(arrives(&b, &a));
    }

    #[test]
    fn the_client_network_is_reachable_in_its_namespace_only() {
        let Some(world) = world() else { return };
        let bind = || TcpListener::bind((CLIENT_ADDRESS, 0));
        assert!(world.run(Place::Clients, bind).expect("a thread").is_ok());
        assert!(world.run(Place::On(Host::A), bind).expect("a thread").is_err());
    }
}
