//! The options of a node as they are written, on the command line or in a file: every one optional, none interpreted beyond its own syntax.
//!
//! The long names of the command line *are* the keys of the file, so there is one list of them. Turning options into a
//! [`super::NodeConfig`] is [`super::resolve`]'s work.

use std::fmt;
use std::path::PathBuf;

use serde::Deserialize;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{self, MapAccess, SeqAccess, Visitor};

use super::disk::DiskOption;
use super::units::{ByteSize, Span};
use super::{Backing, BusOption, CpuModel, DirtyTracking, TransportKind, VerifyOption};

/// Options of `lockstep run` and `lockstep standby`, and keys of the configuration file.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct NodeOptions {
    /// Name of the VM, the same on every host [default: vm0]
    #[arg(long, value_name = "NAME", help_heading = "Names")]
    pub vm: Option<String>,
    /// Name of this node in the arbiter's record, different on every host [default: the host's name]
    #[arg(long, value_name = "NAME", help_heading = "Names")]
    pub node: Option<String>,

    /// Kernel to boot: bzImage or ELF [default: the built-in key-value server]
    #[arg(long, value_name = "PATH", help_heading = "Machine")]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk, for a --kernel
    #[arg(long, value_name = "PATH", help_heading = "Machine")]
    pub initramfs: Option<PathBuf>,
    /// Kernel command line
    #[arg(long, value_name = "TEXT", help_heading = "Machine", allow_hyphen_values = true)]
    pub cmdline: Option<String>,
    /// Guest memory, in whole 2 MiB pieces [default: 256M]
    #[arg(long, value_name = "SIZE", help_heading = "Machine")]
    pub memory: Option<ByteSize>,
    /// Virtual CPUs, 1 to 32; tested with up to 16 [default: 1]
    #[arg(long, value_name = "N", help_heading = "Machine")]
    pub vcpus: Option<u32>,
    /// Network port (the built-in guest needs one): tap=NAME[,mac=52:54:..]; repeat for more ports [default MAC: made from the VM's name]
    #[arg(long, value_name = "tap=NAME,mac=MAC", help_heading = "Machine")]
    #[serde(deserialize_with = "one_or_many")]
    pub net: Vec<String>,
    /// Disk: path=FILE|DEVICE[,readonly][,serial=TEXT][,mode=mirror|shared][,log=FILE][,resync=changed|full]; repeat for more disks. A comma in a name is written twice. mirror: each host has a copy; shared: one device that both hosts see. resync=full lets this host's copy be overwritten whole
    #[arg(long, value_name = "path=FILE,...", help_heading = "Machine")]
    #[serde(deserialize_with = "one_or_many_disks")]
    pub disk: Vec<DiskOption>,
    /// Source of random numbers for the guest (virtio-rng) [default: on; off for the built-in guest]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true, help_heading = "Machine")]
    pub rng: Option<bool>,
    /// How virtio devices are attached; auto is mmio for the built-in guest, else pci [default: auto]
    #[arg(long, value_name = "KIND", help_heading = "Machine")]
    pub bus: Option<BusOption>,
    /// The processor that the guest sees, the same on every host: host needs equal processors, the levels let generations protect each other [default: host]
    #[arg(long, value_name = "MODEL", help_heading = "Machine")]
    pub cpu: Option<CpuModel>,
    /// What guest memory is made of [default: anonymous]
    #[arg(long, value_name = "KIND", help_heading = "Machine")]
    pub backing: Option<Backing>,
    /// Where the serial console goes: stdio, none, a file, or a socket for `lockstep console` [default: stdio; none when events go to stdout]
    #[arg(long, value_name = "stdio|none|file:PATH|socket:PATH", help_heading = "Machine")]
    pub console: Option<String>,

    /// Replication address of the standby to protect with (for a standby: after its activation)
    #[arg(long, value_name = "ADDR:PORT", help_heading = "Replication")]
    pub standby: Option<String>,
    /// Replication address on which a standby awaits its primary
    #[arg(long, value_name = "ADDR:PORT", help_heading = "Replication")]
    pub listen: Option<String>,
    /// Who decides which node may run the guest: file:PATH on storage that both hosts see
    #[arg(long, value_name = "file:PATH", help_heading = "Replication")]
    pub arbiter: Option<String>,
    /// For shared disks that have no persistent reservations: a command that makes sure that the host LOCKSTEP_FENCE_NODE is dead, run before this node takes its guest over (exit 0: it is certain; within 60 s). A host of this node's own name is told from this one by LOCKSTEP_FENCE_HOST and LOCKSTEP_HOST
    #[arg(long, value_name = "COMMAND", help_heading = "Replication", allow_hyphen_values = true)]
    pub fence_command: Option<String>,
    /// What carries the epochs [default: tcp]
    #[arg(long, value_name = "KIND", help_heading = "Replication")]
    pub transport: Option<TransportKind>,
    /// Time between two heartbeats [default: 20ms]
    #[arg(long, value_name = "DURATION", help_heading = "Replication")]
    pub heartbeat_interval: Option<Span>,
    /// Silence after which the peer is held to be gone, at least two intervals [default: 200ms]
    #[arg(long, value_name = "DURATION", help_heading = "Replication")]
    pub detection_bound: Option<Span>,

    /// Microseconds that output may wait for more of it while a commit is outstanding; else it ends its epoch at once [default: 200]
    #[arg(long, value_name = "US", help_heading = "Epochs")]
    pub output_wait_us: Option<u64>,
    /// Dirty memory at which an epoch is ended [default: 16M]
    #[arg(long, value_name = "SIZE", help_heading = "Epochs")]
    pub dirty_budget: Option<ByteSize>,
    /// The longest an epoch may last, in milliseconds [default: 50]
    #[arg(long, value_name = "MS", help_heading = "Epochs")]
    pub longest_interval_ms: Option<u64>,
    /// Epochs captured but not yet committed, at most [default: 4]
    #[arg(long, value_name = "N", help_heading = "Epochs")]
    pub max_in_flight: Option<u32>,
    /// How dirty pages are found [default: auto]
    #[arg(long, value_name = "KIND", help_heading = "Epochs")]
    pub dirty_tracking: Option<DirtyTracking>,
    /// Memory for previous page contents, to send deltas against; 0 sends none [default: 64M]
    #[arg(long, value_name = "SIZE", help_heading = "Epochs")]
    pub delta_cache: Option<ByteSize>,
    /// Compare guest memory at both ends: SIZE of it at every epoch, in turn (1M costs little), or with no value all of it (slow) [default: off]
    #[arg(long, value_name = "SIZE", num_args = 0..=1, default_missing_value = "all", require_equals = true, help_heading = "Epochs")]
    pub verify_memory: Option<VerifyOption>,

    /// Write events as JSON lines to PATH; `-` is standard output
    #[arg(long, value_name = "PATH", help_heading = "Output")]
    pub events: Option<String>,
    /// Log filter on standard error, such as info or primary=debug [default: info]
    #[arg(long, value_name = "FILTER", help_heading = "Output")]
    pub log: Option<String>,
}

/// `net = "tap=a"` and `net = ["tap=a", "tap=b"]` are both natural to write.
fn one_or_many<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a string such as \"tap=tap0\" or a list of them")]
    enum OneOrMany {
        One(String),
        Many(Vec<String>),
    }
    Ok(match OneOrMany::deserialize(deserializer)? {
        OneOrMany::One(one) => vec![one],
        OneOrMany::Many(many) => many,
    })
}

/// `[[disk]]`, one `[disk]`, or strings as on the command line.
fn one_or_many_disks<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<DiskOption>, D::Error> {
    struct Disks;

    impl<'de> Visitor<'de> for Disks {
        type Value = Vec<DiskOption>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("[[disk]] tables, or strings such as \"path=/var/lib/vm0.img\"")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
            Ok(vec![text.parse().map_err(E::custom)?])
        }

        fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
            Deserialize::deserialize(SeqAccessDeserializer::new(list))
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
            Ok(vec![Deserialize::deserialize(MapAccessDeserializer::new(map))?])
        }
    }

    deserializer.deserialize_any(Disks)
}

impl NodeOptions {
    /// These options where they are given, else those of `file`.
    #[must_use]
    pub fn or(self, file: NodeOptions) -> NodeOptions {
        NodeOptions {
            vm: self.vm.or(file.vm),
            node: self.node.or(file.node),
            kernel: self.kernel.or(file.kernel),
            initramfs: self.initramfs.or(file.initramfs),
            cmdline: self.cmdline.or(file.cmdline),
            memory: self.memory.or(file.memory),
            vcpus: self.vcpus.or(file.vcpus),
            net: if self.net.is_empty() { file.net } else { self.net },
            disk: if self.disk.is_empty() { file.disk } else { self.disk },
            rng: self.rng.or(file.rng),
            bus: self.bus.or(file.bus),
            cpu: self.cpu.or(file.cpu),
            backing: self.backing.or(file.backing),
            console: self.console.or(file.console),
            standby: self.standby.or(file.standby),
            listen: self.listen.or(file.listen),
            arbiter: self.arbiter.or(file.arbiter),
            fence_command: self.fence_command.or(file.fence_command),
            transport: self.transport.or(file.transport),
            heartbeat_interval: self.heartbeat_interval.or(file.heartbeat_interval),
            detection_bound: self.detection_bound.or(file.detection_bound),
            output_wait_us: self.output_wait_us.or(file.output_wait_us),
            dirty_budget: self.dirty_budget.or(file.dirty_budget),
            longest_interval_ms: self.longest_interval_ms.or(file.longest_interval_ms),
            max_in_flight: self.max_in_flight.or(file.max_in_flight),
            dirty_tracking: self.dirty_tracking.or(file.dirty_tracking),
            delta_cache: self.delta_cache.or(file.delta_cache),
            verify_memory: self.verify_memory.or(file.verify_memory),
            events: self.events.or(file.events),
            log: self.log.or(file.log),
        }
    }

    /// Every key there is: the long names of the command line.
    #[must_use]
    pub fn keys() -> Vec<String> {
        use clap::Args;
        let command = NodeOptions::augment_args(clap::Command::new("keys"));
        command.get_arguments().filter_map(|arg| arg.get_long().map(str::to_owned)).collect()
    }
}
