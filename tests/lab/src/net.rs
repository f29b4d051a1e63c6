//! The lab's networks: a namespace with three bridges, to which QEMU attaches the hosts' cards, and a namespace for the clients.
//!
//! ```text
//!            hN: eth0 management   eth1 replication    eth2 clients (in hN's bridge br0, with the guest's TAP)
//!                  |                  |                   |
//! switch:        m<N>               r<N>                c<N>
//!              mgmt 10.79.0.254   repl                lan -- lan-c --veth-- eth0 10.77.0.1 :clients
//! ```
//!
//! Both namespaces have no name: they vanish, with everything in them, when the last process that uses them is gone. Lives here: the topology and
//! the faults of wires seen from outside of the hosts. Not here: faults made inside a host ([`crate::fault`]).

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use lockstep::demo::namespace::Namespace;
use lockstep::demo::world::CLIENT_ADDRESS;

use crate::command::finish;
use crate::error::LabError;

/// A batch of `ip` takes milliseconds.
const BOUND: Duration = Duration::from_secs(10);
/// Maximum transfer unit of the replication network.
pub const REPLICATION_MTU: u32 = 9000;
const MANAGEMENT_ADDRESS: &str = "10.79.0.254/24";

/// One of a host's networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Net {
    /// How the harness reaches the host's agent. No faults are made here.
    Management,
    /// Between the hosts.
    Replication,
    /// To the clients.
    Clients,
}

impl Net {
    /// All of them, in the order of a host's cards.
    pub const ALL: [Net; 3] = [Net::Management, Net::Replication, Net::Clients];

    fn letter(self) -> char {
        match self {
            Net::Management => 'm',
            Net::Replication => 'r',
            Net::Clients => 'c',
        }
    }

    fn bridge(self) -> &'static str {
        match self {
            Net::Management => "mgmt",
            Net::Replication => "repl",
            Net::Clients => "lan",
        }
    }

    /// The card in a host.
    #[must_use]
    pub fn card(self) -> &'static str {
        match self {
            Net::Management => "eth0",
            Net::Replication => "eth1",
            Net::Clients => "eth2",
        }
    }

    /// Name of host `number`'s port at the switch.
    #[must_use]
    pub fn port(self, number: u8) -> String {
        format!("{}{number}", self.letter())
    }

    /// Hardware address of host `number`'s card.
    #[must_use]
    pub fn mac(self, number: u8) -> String {
        format!("52:54:00:{:02x}:00:{number:02x}", self as u8 + 8)
    }
}

/// Host `number`'s address on a network; on the client network hosts have none.
#[must_use]
pub fn address(net: Net, number: u8) -> Option<IpAddr> {
    let third = match net {
        Net::Management => 79,
        Net::Replication => 78,
        Net::Clients => return None,
    };
    Some(IpAddr::V4(Ipv4Addr::new(10, third, 0, number)))
}

/// The two namespaces.
#[derive(Debug)]
pub struct Network {
    /// Where the bridges and QEMU are.
    pub switch: Namespace,
    /// Where the clients are.
    pub clients: Namespace,
}

impl Network {
    /// Builds the networks with ports for hosts 1 to `hosts`.
    ///
    /// # Errors
    /// No right to make namespaces, or `ip` fails.
    pub fn new(hosts: u8) -> Result<Network, LabError> {
        let network = Network { switch: Namespace::new()?, clients: Namespace::new()? };
        let mut batch = String::from("link set lo up\n");
        for net in Net::ALL {
            let bridge = net.bridge();
            batch.push_str(&format!("link add {bridge} type bridge stp_state 0 forward_delay 0 mcast_snooping 0\n"));
            if net == Net::Replication {
                batch.push_str(&format!("link set {bridge} mtu {REPLICATION_MTU}\n"));
            }
            batch.push_str(&format!("link set {bridge} up\n"));
            for number in 1..=hosts {
                let port = net.port(number);
                batch.push_str(&format!("tuntap add dev {port} mode tap\n"));
                if net == Net::Replication {
                    batch.push_str(&format!("link set {port} mtu {REPLICATION_MTU}\n"));
                }
                batch.push_str(&format!("link set {port} master {bridge} up\n"));
            }
        }
        batch.push_str(&format!("addr add {MANAGEMENT_ADDRESS} dev mgmt\n"));
        batch
            .push_str(&format!("link add lan-c type veth peer name eth0 netns {}\nlink set lan-c master lan up\n", network.clients.path()));
        ip(&network.switch, &[&network.clients], &batch)?;
        ip(&network.clients, &[], &format!("link set lo up\naddr add {CLIENT_ADDRESS}/24 dev eth0\nlink set eth0 up\n"))?;
        Ok(network)
    }

    /// The networks of a lab that another process keeps.
    ///
    /// # Errors
    /// That process is gone.
    pub fn open(switch: &Path, clients: &Path) -> Result<Network, LabError> {
        Ok(Network { switch: Namespace::open(switch)?, clients: Namespace::open(clients)? })
    }

    /// Takes host `number`'s port out of its bridge, or puts it back: nothing arrives in either direction, and no carrier is lost.
    ///
    /// # Errors
    /// `ip` fails.
    pub fn set_plugged(&self, net: Net, number: u8, plugged: bool) -> Result<(), LabError> {
        let port = net.port(number);
        let wish = if plugged { format!("master {}", net.bridge()) } else { "nomaster".to_owned() };
        ip(&self.switch, &[], &format!("link set {port} {wish}\n"))
    }
}

/// Runs a batch of `ip` commands in `namespace`.
fn ip(namespace: &Namespace, others: &[&Namespace], batch: &str) -> Result<(), LabError> {
    let mut command = Command::new("/sbin/ip");
    command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = namespace.spawn_with(&mut command, others)?;
    // Far below a pipe's capacity: writing cannot block. A failure to write shows in ip's own answer.
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.write_all(batch.as_bytes());
    }
    finish(child, &format!("ip -batch ({})", batch.trim().replace('\n', "; ")), BOUND).map(drop)
}
