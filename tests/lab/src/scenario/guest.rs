//! A guest as a scenario describes it, and the node options that come of it. Not here: the node itself ([`super::node`]).

use lockstep::demo::world::GUEST_ADDRESS;

use crate::prepare::kernel::Series;

/// The hardware address of the guest's first card, by which the watch on the client network knows its frames. Further cards count on in the last byte.
pub const GUEST_MAC: [u8; 6] = [0x52, 0x54, 0, 0x77, 0, 0x10];

/// Memory of a guest with databases: all that is not zero is copied to each new standby, and a page costs 0.1 ms under emulation.
const DATABASE_MIB: u32 = 160;

/// `--verify-memory` of a guest with databases: as much of its memory is compared at each epoch, in turn. All of it once in 40 s at ten epochs a second.
const WINDOW: &str = "512K";
/// The same of the built-in guest: its 32 MiB once in five seconds. Every window makes pauses 1.5 ms longer.
const BUILT_IN_WINDOW: &str = "256K";

/// Boot parameters that spare a stock guest seconds (of self-tests and mitigations) under two layers of emulation. Memory that is free is zero: what the
/// initramfs was unpacked from is not copied to every standby.
const PARAMETERS: &str =
    "console=ttyS0 quiet panic=-1 random.trust_cpu=on mitigations=off audit=0 apparmor=0 cryptomgr.notests=1 init_on_free=1";

/// What runs on the nodes. Made from [`GuestSpec::built_in`] or [`GuestSpec::stock`], with whatever else is wanted set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestSpec {
    /// For the report.
    pub name: &'static str,
    /// Memory.
    pub memory_mib: u32,
    /// Virtual CPUs.
    pub cpus: u8,
    /// `--cpu`.
    pub model: Option<&'static str>,
    /// `--backing`.
    pub backing: Option<&'static str>,
    /// A stock kernel instead of the built-in guest.
    pub stock: Option<Stock>,
    /// Disks; a stock guest's root is the first of them.
    pub disks: Vec<Disk>,
    /// Network cards, on `tap0`, `tap1` and so on. Hosts come with `tap0`, which is in the client network.
    pub nets: u8,
    /// `--rng`.
    pub rng: Option<bool>,
    /// Where the console goes.
    pub console: Console,
    /// Silence after which a peer is held to be gone. Hosts under emulation on two busy cores may stand still for some hundred milliseconds; the boot of many vCPUs
    /// on one emulated processor keeps them longer.
    pub detection: &'static str,
    /// `--verify-memory`: its value.
    pub verify: Option<&'static str>,
    /// Further words on the guest kernel's command line.
    pub parameters: String,
    /// Further options of both nodes, without the dashes: `("transport", "tcp")`.
    pub options: Vec<(&'static str, String)>,
    /// Environment of every node: `("LOCKSTEP_FAULT", "before-issue:30:stop")`.
    pub environment: Vec<(&'static str, &'static str)>,
}

/// A stock Linux guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stock {
    /// Which kernel; [`crate::Lab::share_kernel`] puts it where it is looked for, the lab has done so with the one it was prepared with.
    pub series: Series,
    /// By which protocol it is booted.
    pub image: Image,
    /// Whether its root file system is on its first disk; else it stays in its initramfs.
    pub disk: bool,
    /// `lab.services=`.
    pub services: &'static str,
}

/// A kernel's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Image {
    /// ELF, booted by PVH.
    Vmlinux,
    /// bzImage, booted by Linux's 64-bit protocol.
    Vmlinuz,
}

/// A guest's disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// The host's file or device.
    pub path: String,
    /// The other keys of `--disk`, with a comma before each.
    pub more: String,
    /// Whether the first standby's copy may be overwritten whole: it has nothing in common with the primary's that either could know of.
    pub resync: bool,
}

impl Disk {
    /// A copy on each host: device or file `path`, its change log `/data/NAME.lockstep`.
    #[must_use]
    pub fn mirror(path: &str) -> Disk {
        let name = path.rsplit('/').next().unwrap_or(path);
        Disk { path: path.to_owned(), more: format!(",log=/data/{name}.lockstep"), resync: true }
    }

    /// One device that both hosts can open.
    #[must_use]
    pub fn shared(path: &str) -> Disk {
        Disk { path: path.to_owned(), more: ",mode=shared".to_owned(), resync: false }
    }

    /// The same with one more key: `with("readonly")`.
    #[must_use]
    pub fn with(mut self, key: &str) -> Disk {
        self.more.push(',');
        self.more.push_str(key);
        self
    }

    fn option(&self, first: bool) -> String {
        let resync = if first && self.resync { ",resync=full" } else { "" };
        format!("path={}{}{resync}", self.path.replace(',', ",,"), self.more)
    }
}

/// Where a node's console goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Console {
    /// `/shared/NODE.console.log`.
    Log,
    /// A socket in the host, `/run/NODE.console`, for `lockstep console`.
    Socket,
}

impl GuestSpec {
    /// The key-value server that comes with Lockstep.
    #[must_use]
    pub fn built_in() -> GuestSpec {
        GuestSpec {
            name: "built-in",
            memory_mib: 32,
            cpus: 1,
            model: None,
            backing: None,
            stock: None,
            disks: Vec::new(),
            nets: 1,
            rng: None,
            console: Console::Log,
            detection: "1s",
            verify: Some(BUILT_IN_WINDOW),
            parameters: String::new(),
            options: Vec::new(),
            environment: Vec::new(),
        }
    }

    /// The same with all memory compared at every epoch. Little memory: a digest of 64 MiB takes a second under emulation.
    #[must_use]
    pub fn verified() -> GuestSpec {
        GuestSpec { memory_mib: 16, verify: Some("all"), ..GuestSpec::built_in() }
    }

    /// Debian's kernel and the lab's agent, in the initramfs: no disk, no services. For scenarios that are not about detection.
    #[must_use]
    pub fn stock() -> GuestSpec {
        let stock = Stock { series: Series::V6_12, image: Image::Vmlinux, disk: false, services: "" };
        GuestSpec { name: "debian-6.12", memory_mib: 256, detection: "5s", verify: None, stock: Some(stock), ..GuestSpec::built_in() }
    }

    /// Debian on a mirrored disk, with `services`, its memory compared window by window. By its bzImage: a standby reads its kernel through when it starts, and an ELF image is five times as
    /// long.
    #[must_use]
    pub fn debian(name: &'static str, services: &'static str) -> GuestSpec {
        let stock = Stock { series: Series::V6_12, image: Image::Vmlinuz, disk: true, services };
        let disks = vec![Disk::mirror("/dev/vda")];
        GuestSpec {
            name,
            memory_mib: DATABASE_MIB,
            stock: Some(stock),
            disks,
            detection: "2s",
            verify: Some(WINDOW),
            ..GuestSpec::built_in()
        }
    }

    /// The options of a node that make its machine. `first`: the first standby of this guest; `node` names its console.
    #[must_use]
    pub fn node_options(&self, first: bool, node: &str) -> Vec<(&'static str, String)> {
        let mut options = vec![("memory", format!("{}M", self.memory_mib)), ("vcpus", self.cpus.to_string())];
        for card in 0..self.nets {
            let [a, b, c, d, e, last] = GUEST_MAC;
            let mac = [a, b, c, d, e, last + card].map(|b| format!("{b:02x}")).join(":");
            options.push(("net", format!("tap=tap{card},mac={mac}")));
        }
        options.extend(self.disks.iter().map(|disk| ("disk", disk.option(first))));
        let spaced = if self.parameters.is_empty() { String::new() } else { format!(" {}", self.parameters) };
        match &self.stock {
            None => options.push(("cmdline", format!("lockstep.ip={GUEST_ADDRESS}/24 lockstep.cpus={} lockstep.quiet{spaced}", self.cpus))),
            Some(stock) => {
                let root = if stock.disk { " lab.root=/dev/vda" } else { "" };
                let (folder, image) = (stock.series.folder(), if stock.image == Image::Vmlinux { "vmlinux" } else { "vmlinuz" });
                options.push(("kernel", format!("/shared/{folder}/{image}")));
                options.push(("initramfs", format!("/shared/{folder}/initramfs")));
                options.push(("cmdline", format!("{PARAMETERS} lab.ip={GUEST_ADDRESS}/24{root} lab.services={}{spaced}", stock.services)));
            }
        }
        options.extend(self.model.map(|model| ("cpu", model.to_owned())));
        options.extend(self.backing.map(|backing| ("backing", backing.to_owned())));
        options.push(match self.console {
            Console::Log => ("console", format!("file:/shared/{node}.console.log")),
            Console::Socket => ("console", format!("socket:/run/{node}.console")),
        });
        options.extend(self.options.iter().cloned());
        options
    }

    /// Options that are given as `--KEY=VALUE` or stand alone.
    #[must_use]
    pub fn node_flags(&self) -> String {
        let mut flags = self.rng.map_or_else(String::new, |on| format!(" --rng={on}"));
        if let Some(size) = self.verify {
            flags.push_str(&format!(" --verify-memory={size}"));
        }
        flags
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_standby_s_copies_may_be_overwritten_and_never_a_shared_disk() {
        let guest = GuestSpec { disks: vec![Disk::mirror("/dev/vda").with("serial=a"), Disk::shared("/dev/sda")], ..GuestSpec::stock() };
        let disks = |first| {
            let options = guest.node_options(first, "h1.1");
            options.into_iter().filter(|(key, _)| *key == "disk").map(|(_, value)| value).collect::<Vec<_>>()
        };

        assert_eq!(disks(true), ["path=/dev/vda,log=/data/vda.lockstep,serial=a,resync=full", "path=/dev/sda,mode=shared"]);
        assert_eq!(disks(false), ["path=/dev/vda,log=/data/vda.lockstep,serial=a", "path=/dev/sda,mode=shared"]);
    }
}
