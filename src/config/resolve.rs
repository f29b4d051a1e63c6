//! From options to [`NodeConfig`]: every bound checked, every name read, every contradiction refused with a remedy. Opens nothing but `/proc` (S7).

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use types::{NodeId, PAGE_SIZE, VmId};
use xxhash_rust::xxh3::xxh3_64;

use super::disk;
use super::options::NodeOptions;
use super::pairs::{pairs, unknown_key};
use super::units::ByteSize;
use super::{
    Arbiter, Backing, Bus, BusOption, Console, DirtyTracking, DiskMode, EpochConfig, GuestMemorySize, HeartbeatConfig, Kernel,
    MAX_MMIO_DEVICES, MAX_NETS, MAX_VCPUS, MachineConfig, NetConfig, NodeConfig, Peering, Sink, TransportKind, defaults,
};

/// Which verb the options were given to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// `lockstep run`.
    Run,
    /// `lockstep standby`.
    Standby,
}

/// Why options do not make a configuration. Every message says what was given, what is wrong and what to write.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A value outside its bounds.
    #[error("{key} {given}: {why}")]
    Value {
        /// The option's long name with dashes.
        key: &'static str,
        /// What was given.
        given: String,
        /// What is wrong, and what to write.
        why: String,
    },
    /// An option that is needed is not there.
    #[error("{key} is missing: {why}")]
    Missing {
        /// The option's long name with dashes.
        key: &'static str,
        /// Why it is needed, and what to write.
        why: &'static str,
    },
    /// Two options that cannot both be.
    #[error("{0}")]
    Conflict(&'static str),
    /// A fact about the host could not be read.
    #[error("cannot read {what}: {why}")]
    Host {
        /// What was looked for.
        what: &'static str,
        /// What the system said.
        why: String,
    },
}

pub(super) fn value(key: &'static str, given: impl ToString, why: impl Into<String>) -> ConfigError {
    ConfigError::Value { key, given: given.to_string(), why: why.into() }
}

/// Longest interval, bound or wait that makes sense; beyond a minute it is a typing error.
const LONGEST_SPAN: Duration = Duration::from_secs(60);
/// Shortest heartbeat interval: below it heartbeats cost more than they tell.
const SHORTEST_HEARTBEAT: Duration = Duration::from_millis(1);
/// Smallest dirty budget: below 64 pages an epoch is all overhead.
const SMALLEST_BUDGET: u64 = 64 * PAGE_SIZE as u64;
/// Most epochs under way: each may hold a whole capture arena.
const MOST_IN_FLIGHT: u32 = 64;
/// Longest name of a VM or node: it travels in the handshake and names the arbiter's key.
const LONGEST_NAME: usize = 64;
/// Longest kernel command line: one page, as Linux's own limit on x86 is 2048.
const LONGEST_CMDLINE: usize = 2048;
/// Longest path of a Unix socket: sockaddr_un has 108 bytes with the terminating NUL.
const LONGEST_SOCKET_PATH: usize = 107;

impl NodeOptions {
    /// The typed configuration that these options stand for, checked against this host.
    ///
    /// # Errors
    /// [`ConfigError`] names the option, what was given and what to write.
    pub fn resolve(self, verb: Verb) -> Result<NodeConfig, ConfigError> {
        let host_bytes = crate::host::memory_total().map_err(|e| ConfigError::Host { what: "/proc/meminfo", why: e.to_string() })?;
        let config = self.resolve_on(verb, host_bytes)?;
        disk::check_images(&config.machine.disks)?;
        Ok(config)
    }

    /// As [`Self::resolve`], on a host with `host_bytes` of memory, without a look at the disks' images.
    fn resolve_on(self, verb: Verb, host_bytes: u64) -> Result<NodeConfig, ConfigError> {
        let vm = name("--vm", self.vm.unwrap_or_else(|| defaults::VM.to_owned()))?;
        let node = match self.node {
            Some(node) => name("--node", node)?,
            None => name("--node", crate::host::name().map_err(|e| ConfigError::Host { what: "the host's name", why: e.to_string() })?)?,
        };
        let events = self.events.map(|e| if e == "-" { Sink::Stdout } else { Sink::File(PathBuf::from(e)) });
        let console = console(self.console, &events)?;
        let cmdline = self.cmdline.unwrap_or_default();
        if cmdline.len() > LONGEST_CMDLINE || cmdline.contains('\0') {
            return Err(value(
                "--cmdline",
                format!("({} bytes)", cmdline.len()),
                format!("at most {LONGEST_CMDLINE} bytes, none of them NUL"),
            ));
        }
        let kernel = self.kernel.map_or(Kernel::BuiltIn, Kernel::File);
        let built_in = kernel == Kernel::BuiltIn;
        if built_in && self.initramfs.is_some() {
            return Err(ConfigError::Conflict(
                "--initramfs is for a --kernel: the built-in guest takes none; give the kernel too, or leave it out",
            ));
        }
        let machine = MachineConfig {
            kernel,
            initramfs: self.initramfs,
            cmdline,
            memory: memory(self.memory.unwrap_or(ByteSize(defaults::MEMORY)), host_bytes)?,
            vcpus: vcpus(self.vcpus.unwrap_or(1))?,
            cpu: self.cpu.unwrap_or_default(),
            bus: match self.bus.unwrap_or_default() {
                BusOption::Auto if built_in => Bus::Mmio,
                BusOption::Auto | BusOption::Pci => Bus::Pci,
                BusOption::Mmio => Bus::Mmio,
            },
            nets: nets(&self.net, &vm)?,
            disks: disk::disks(self.disk)?,
            rng: self.rng.unwrap_or(!built_in),
            backing: self.backing.unwrap_or(Backing::Anonymous),
        };
        check_devices(&machine)?;
        let unreachable = built_in && machine.nets.is_empty();
        let peering = peering(verb, self.standby, self.listen, self.arbiter)?;
        if peering == Peering::Alone && machine.disks.iter().any(|disk| disk.mode == DiskMode::Shared) {
            return Err(ConfigError::Missing {
                key: "--arbiter",
                why: "a disk with mode=shared can be written by other hosts, and someone must decide which of them may; write --arbiter file:PATH on storage that all of them see",
            });
        }
        let heartbeat = heartbeat(self.heartbeat_interval.map(|s| s.0), self.detection_bound.map(|s| s.0))?;
        let epochs = epochs(self.output_wait_us, self.dirty_budget, self.longest_interval_ms, self.max_in_flight)?;
        let delta_cache_bytes = self.delta_cache.map_or(defaults::DELTA_CACHE, |s| s.0);
        if delta_cache_bytes > host_bytes {
            return Err(value(
                "--delta-cache",
                ByteSize(delta_cache_bytes),
                format!("the host has only {} MiB of memory", host_bytes >> 20),
            ));
        }
        // Last: whoever tries things out hears of everything else first.
        if unreachable {
            return Err(ConfigError::Missing {
                key: "--net",
                why: "the built-in guest is a server on the network and does not start without a port; write --net tap=NAME (an existing TAP device), or give a --kernel",
            });
        }
        Ok(NodeConfig {
            vm: VmId(vm),
            node: NodeId(node),
            machine,
            peering,
            fence_command: self.fence_command.map(fence_command).transpose()?,
            transport: self.transport.unwrap_or(TransportKind::Tcp),
            heartbeat,
            epochs,
            dirty_tracking: self.dirty_tracking.unwrap_or(DirtyTracking::Auto),
            delta_cache_bytes,
            verify_memory: self.verify_memory.unwrap_or_default().resolve()?,
            events,
            console,
        })
    }
}

fn name(key: &'static str, given: String) -> Result<String, ConfigError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if given.is_empty() || given.len() > LONGEST_NAME || !given.chars().all(allowed) {
        return Err(value(key, format!("{given:?}"), format!("a name is 1 to {LONGEST_NAME} letters, digits, '-', '_' or '.'")));
    }
    Ok(given)
}

/// Guest memory within its bounds on a host with `host_bytes`.
///
/// # Errors
/// Zero, too small, not in whole 2 MiB pieces, or more than the host has.
pub fn memory(given: ByteSize, host_bytes: u64) -> Result<GuestMemorySize, ConfigError> {
    let wrong = |why: String| Err(value("--memory", given, why));
    if given.0 == 0 {
        return wrong("a guest needs memory; write for example --memory 256M".into());
    }
    if given.0 < GuestMemorySize::MIN {
        return wrong(format!("too small to boot anything; the least is {} (did you forget the M?)", ByteSize(GuestMemorySize::MIN)));
    }
    if !given.0.is_multiple_of(GuestMemorySize::GRANULE) {
        let down = given.0 / GuestMemorySize::GRANULE * GuestMemorySize::GRANULE;
        let (down, up) = (ByteSize(down), ByteSize(down.saturating_add(GuestMemorySize::GRANULE)));
        return wrong(format!("guest memory comes in whole {} pieces; write {down} or {up}", ByteSize(GuestMemorySize::GRANULE)));
    }
    if given.0 > host_bytes {
        return wrong(format!("this host has only {} MiB of memory; give the guest less", host_bytes >> 20));
    }
    Ok(GuestMemorySize(given.0))
}

/// A number of vCPUs within its bounds.
///
/// # Errors
/// Zero, or more than [`MAX_VCPUS`].
pub fn vcpus(given: u32) -> Result<u8, ConfigError> {
    u8::try_from(given)
        .ok()
        .filter(|n| (1..=MAX_VCPUS).contains(n))
        .ok_or_else(|| value("--vcpus", given, format!("a machine has 1 to {MAX_VCPUS} vCPUs")))
}

/// Whether the bus has room for the devices, and the built-in guest can drive it.
fn check_devices(machine: &MachineConfig) -> Result<(), ConfigError> {
    if machine.kernel == Kernel::BuiltIn && machine.bus == Bus::Pci {
        return Err(value("--bus", "pci", "the built-in guest drives virtio-mmio only; leave --bus out, or give a --kernel"));
    }
    let devices = machine.nets.len() + machine.disks.len() + usize::from(machine.rng);
    if machine.bus == Bus::Mmio && devices > MAX_MMIO_DEVICES {
        return Err(value(
            "--bus",
            "mmio",
            format!("{devices} devices need {devices} interrupt lines, and {MAX_MMIO_DEVICES} are free; use --bus pci, or fewer devices"),
        ));
    }
    Ok(())
}

fn nets(given: &[String], vm: &str) -> Result<Vec<NetConfig>, ConfigError> {
    if given.len() > MAX_NETS {
        return Err(value("--net", format!("({} times)", given.len()), format!("a machine has at most {MAX_NETS} network ports")));
    }
    let mut nets: Vec<NetConfig> = Vec::with_capacity(given.len());
    for (index, text) in given.iter().enumerate() {
        let net = net(text, vm, index)?;
        if nets.iter().any(|other| other.tap == net.tap) {
            return Err(value("--net", text, format!("TAP {} is given to two ports; each port needs its own", net.tap)));
        }
        if nets.iter().any(|other| other.mac == net.mac) {
            return Err(value("--net", text, "two ports have this MAC address; each port needs its own"));
        }
        nets.push(net);
    }
    Ok(nets)
}

/// One `tap=NAME[,mac=MAC]`.
fn net(text: &str, vm: &str, index: usize) -> Result<NetConfig, ConfigError> {
    let wrong = |why: &str| value("--net", text, why);
    const KEYS: [&str; 2] = ["tap", "mac"];
    let (mut tap, mut mac) = (None, None);
    for (key, given) in pairs(text) {
        match (key.as_str(), given) {
            ("tap", Some(_)) if tap.is_some() => return Err(wrong("tap is given twice")),
            ("tap", Some(name)) => tap = Some(name),
            ("mac", Some(address)) => {
                mac = Some(parse_mac(&address).ok_or_else(|| {
                    wrong("the MAC address is six hexadecimal pairs, unicast and not all zero, such as 52:54:00:12:34:56")
                })?)
            }
            (key, Some(_)) => return Err(wrong(&unknown_key(key, &KEYS))),
            (_, None) => return Err(wrong("write tap=NAME, or tap=NAME,mac=52:54:00:12:34:56")),
        }
    }
    let tap = tap.ok_or_else(|| wrong("tap=NAME is missing"))?;
    // IFNAMSIZ is 16 with the terminating NUL.
    if tap.is_empty() || tap.len() > 15 || tap.contains(['/', ' ', '\0']) {
        return Err(wrong("the name of a network device is 1 to 15 bytes without '/' or spaces"));
    }
    Ok(NetConfig { tap, mac: mac.unwrap_or_else(|| derived_mac(vm, index)) })
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut pairs = text.split(':');
    for byte in &mut mac {
        let pair = pairs.next().filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()))?;
        *byte = u8::from_str_radix(pair, 16).ok()?;
    }
    (pairs.next().is_none() && mac != [0; 6] && mac[0] & 1 == 0).then_some(mac)
}

/// The same VM gets the same MAC on every host without being told.
fn derived_mac(vm: &str, index: usize) -> [u8; 6] {
    let hash = xxh3_64(format!("{vm}/{index}").as_bytes()).to_le_bytes();
    [0x52, 0x54, hash[0], hash[1], hash[2], hash[3]]
}

fn console(given: Option<String>, events: &Option<Sink>) -> Result<Console, ConfigError> {
    match (given.as_deref(), events) {
        (Some("stdio"), Some(Sink::Stdout)) => {
            Err(ConfigError::Conflict("--console stdio and --events - would share standard output: send one of them to a file"))
        }
        (None, Some(Sink::Stdout)) | (Some("none"), _) => Ok(Console::None),
        (None | Some("stdio"), _) => Ok(Console::Stdio),
        (Some(text), _) => {
            match text.split_once(':') {
                Some(("socket", path)) if path.len() > LONGEST_SOCKET_PATH => {
                    Err(value("--console", text, format!("the path of a socket has at most {LONGEST_SOCKET_PATH} bytes")))
                }
                Some(("socket", path)) if !path.is_empty() => Ok(Console::Socket(PathBuf::from(path))),
                Some(("file", path)) if !path.is_empty() => Ok(Console::File(PathBuf::from(path))),
                // A word that is none of ours is a typing error, before a colon too: a path has a slash before its colons.
                kind if kind.map_or(text, |(kind, _)| kind).contains('/') => Ok(Console::File(PathBuf::from(text))),
                _ => Err(value("--console", format!("{text:?}"), "write stdio, none, file:PATH or socket:PATH")),
            }
        }
    }
}

fn address(key: &'static str, given: &str) -> Result<SocketAddr, ConfigError> {
    let mut addresses =
        given.to_socket_addrs().map_err(|e| value(key, given, format!("{e}; write ADDRESS:PORT, such as 10.78.0.2:7300")))?;
    let address = addresses.next().ok_or_else(|| value(key, given, "this name has no address"))?;
    if address.port() == 0 {
        return Err(value(key, given, "port 0 cannot be connected to; choose one, such as 7300"));
    }
    Ok(address)
}

fn arbiter(given: &str) -> Result<Arbiter, ConfigError> {
    match given.strip_prefix("file:") {
        Some(path) if !path.is_empty() => Ok(Arbiter::File(PathBuf::from(path))),
        _ => Err(value("--arbiter", given, "write file:PATH with a path on storage that both hosts see")),
    }
}

fn peering(verb: Verb, standby: Option<String>, listen: Option<String>, given: Option<String>) -> Result<Peering, ConfigError> {
    let standby = standby.map(|a| address("--standby", &a)).transpose()?;
    let listen = listen.map(|a| address("--listen", &a)).transpose()?;
    let arbiter = given.map(|a| arbiter(&a)).transpose()?;
    match verb {
        Verb::Run if listen.is_some() => Err(ConfigError::Conflict("--listen is for a standby: use `lockstep standby`, or drop it")),
        Verb::Run => match (arbiter, standby) {
            (Some(arbiter), standby) => Ok(Peering::Primary { arbiter, standby }),
            (None, None) => Ok(Peering::Alone),
            (None, Some(_)) => Err(ConfigError::Missing {
                key: "--arbiter",
                why: "with a standby someone must decide which node may run the guest; write --arbiter file:PATH on storage that both hosts see",
            }),
        },
        Verb::Standby => {
            let listen =
                listen.ok_or(ConfigError::Missing { key: "--listen", why: "a standby awaits its primary; write --listen ADDR:PORT" })?;
            let arbiter = arbiter.ok_or(ConfigError::Missing {
                key: "--arbiter",
                why: "a standby may activate only with the arbiter's grant; write --arbiter file:PATH, the same file as the primary's",
            })?;
            Ok(Peering::Standby { arbiter, listen, standby })
        }
    }
}

fn fence_command(given: String) -> Result<String, ConfigError> {
    if given.trim().is_empty() || given.len() > LONGEST_CMDLINE || given.contains('\0') {
        let why = format!(
            "write a command of 1 to {LONGEST_CMDLINE} bytes, none of them NUL, that ends with exit status 0 when $LOCKSTEP_FENCE_NODE is certainly dead"
        );
        return Err(value("--fence-command", format!("{given:?}"), why));
    }
    Ok(given)
}

/// Failure detection within its bounds; what is not given is the default.
///
/// # Errors
/// An interval or a bound out of its bounds, or a bound of less than two intervals.
pub fn heartbeat(interval: Option<Duration>, bound: Option<Duration>) -> Result<HeartbeatConfig, ConfigError> {
    let interval = interval.unwrap_or(defaults::HEARTBEAT_INTERVAL);
    // An interval given alone keeps the default ratio when the default bound would be too short for it.
    let bound = bound.unwrap_or_else(|| defaults::DETECTION_BOUND.max(interval.saturating_mul(10)));
    if interval < SHORTEST_HEARTBEAT || interval > LONGEST_SPAN {
        return Err(value("--heartbeat-interval", format!("{interval:?}"), format!("between {SHORTEST_HEARTBEAT:?} and {LONGEST_SPAN:?}")));
    }
    if bound < interval * 2 {
        return Err(value(
            "--detection-bound",
            format!("{bound:?}"),
            format!("at least two heartbeat intervals, that is {:?}: one may be late", interval * 2),
        ));
    }
    if bound > LONGEST_SPAN * 10 {
        return Err(value("--detection-bound", format!("{bound:?}"), format!("at most {:?}", LONGEST_SPAN * 10)));
    }
    Ok(HeartbeatConfig { interval, bound })
}

fn epochs(
    output_wait_us: Option<u64>,
    budget: Option<ByteSize>,
    longest_ms: Option<u64>,
    in_flight: Option<u32>,
) -> Result<EpochConfig, ConfigError> {
    let output_wait = output_wait_us.map_or(defaults::OUTPUT_WAIT, Duration::from_micros);
    let longest_interval = longest_ms.map_or(defaults::LONGEST_INTERVAL, Duration::from_millis);
    let budget = budget.unwrap_or(ByteSize(defaults::DIRTY_BUDGET));
    let in_flight = in_flight.unwrap_or(u32::from(defaults::MAX_IN_FLIGHT));
    if longest_interval.is_zero() || longest_interval > LONGEST_SPAN {
        return Err(value("--longest-interval-ms", longest_interval.as_millis(), format!("between 1 and {}", LONGEST_SPAN.as_millis())));
    }
    if output_wait > LONGEST_SPAN {
        return Err(value("--output-wait-us", output_wait.as_micros(), format!("at most {}", LONGEST_SPAN.as_micros())));
    }
    if budget.0 < SMALLEST_BUDGET {
        return Err(value("--dirty-budget", budget, format!("at least {}, or an epoch is all overhead", ByteSize(SMALLEST_BUDGET))));
    }
    let max_in_flight = u8::try_from(in_flight)
        .ok()
        .filter(|n| (1..=MOST_IN_FLIGHT).contains(&u32::from(*n)))
        .ok_or_else(|| value("--max-in-flight", in_flight, format!("between 1 and {MOST_IN_FLIGHT}")))?;
    Ok(EpochConfig { output_wait, dirty_budget_pages: budget.0 / PAGE_SIZE as u64, longest_interval, max_in_flight })
}

#[cfg(test)]
#[path = "resolve_tests.rs"]
mod tests;
