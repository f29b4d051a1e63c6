//! The initramfs of hosts and of the stock guest: busybox, the agent, a first program, and the kernel's own modules in loading order, unpacked
//! beforehand (unpacking under emulation takes seconds).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::artifact::ensure;
use super::cpio::Archive;
use super::kernel::Kernel;
use crate::command::run;
use crate::error::LabError;

/// One module is unpacked well within this.
const BOUND: Duration = Duration::from_secs(30);
/// The agent, built with this program.
const AGENT: &[u8] = include_bytes!(env!("LOCKSTEP_LAB_AGENT"));

/// Whose initramfs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A lab host: reaches its root by 9p; KVM, TAP, bridge and disks.
    Host,
    /// The stock guest: what Lockstep's machine has in it, whichever way it is attached.
    Guest,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Host => "host",
            Kind::Guest => "guest",
        }
    }

    fn init(self) -> &'static str {
        match self {
            Kind::Host => include_str!("../init/host.sh"),
            Kind::Guest => include_str!("../init/guest.sh"),
        }
    }

    /// Modules and what they need; those with a question mark are left out where a kernel lacks them.
    fn modules(self) -> &'static [&'static str] {
        match self {
            Kind::Host => &[
                "virtio_pci",
                "9pnet_virtio",
                "9p",
                "virtio_net",
                "overlay",
                "virtio_blk",
                "crc32c_generic?",
                "ext4",
                "kvm_amd",
                "virtiofs",
                "tun",
                "bridge",
            ],
            Kind::Guest => &[
                "virtio_pci",
                "virtio_mmio",
                "virtio_net",
                "virtio_blk",
                "virtio_rng?",
                "crc32c_generic?",
                "ext4",
                "button?",
                "evdev?",
                "vmgenid?",
            ],
        }
    }

    fn directories(self) -> &'static [&'static str] {
        &["bin", "dev", "proc", "sys", "mnt", "lib", "lower", "rw", "run", "tmp", "root"]
    }
}

/// The initramfs of `kind` for `kernel`. The cache must be locked.
///
/// # Errors
/// A module is missing or cannot be unpacked, busybox is missing.
pub fn prepare(cache: &Path, kind: Kind, kernel: &Kernel) -> Result<PathBuf, LabError> {
    let busybox = fs::read("/bin/busybox").map_err(LabError::io(|| "read /bin/busybox (package busybox-static)".into()))?;
    let mut digest = xxhash_rust::xxh3::Xxh3::new();
    for part in [&busybox, AGENT, kind.init().as_bytes(), kind.modules().join(" ").as_bytes()] {
        digest.update(part);
    }
    let name = format!("initramfs-{}-{}-{:016x}", kind.name(), kernel.version, digest.digest());
    let place = ensure(cache, &name, |at| {
        let bytes = build(kind, kernel, &busybox)?;
        fs::write(at.join("cpio"), bytes).map_err(LabError::io(|| format!("write {}", at.display())))
    })?;
    Ok(place.join("cpio"))
}

fn build(kind: Kind, kernel: &Kernel, busybox: &[u8]) -> Result<Vec<u8>, LabError> {
    let mut archive = Archive::default();
    for directory in kind.directories() {
        archive.directory(directory);
    }
    archive.file("bin/busybox", 0o755, busybox);
    archive.file("agent", 0o755, AGENT);
    archive.file("init", 0o755, kind.init().as_bytes());
    let root = kernel.modules.join(&kernel.version);
    let mut order = String::new();
    for path in Index::read(&root)?.closure(kind.modules())? {
        let file = root.join(&path);
        let bytes = match file.extension().and_then(|e| e.to_str()) {
            Some("xz") => run(Command::new("xz").arg("-dc").arg(&file), BOUND)?,
            Some("zst") => run(Command::new("zstd").arg("-dcq").arg(&file), BOUND)?,
            _ => fs::read(&file).map_err(LabError::io(|| format!("read {}", file.display())))?,
        };
        let name = format!("{}.ko", module_name(&path));
        archive.file(&format!("lib/{name}"), 0o644, &bytes);
        order.push_str(&name);
        order.push('\n');
    }
    archive.file("modules", 0o644, order.as_bytes());
    Ok(archive.finish())
}

/// `kernel/fs/9p/9p.ko.xz` -> `9p`; dashes are underscores, as in the kernel.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

/// depmod's index of a kernel's modules.
struct Index {
    /// Path and paths of what must be loaded before (depmod lists the innermost last).
    modules: BTreeMap<String, (String, Vec<String>)>,
    builtin: BTreeSet<String>,
}

impl Index {
    fn read(root: &Path) -> Result<Index, LabError> {
        let read = |name: &str| {
            let path = root.join(name);
            fs::read_to_string(&path).map_err(LabError::io(|| format!("read {}", path.display())))
        };
        Ok(Index::parse(&read("modules.dep")?, &read("modules.builtin")?))
    }

    fn parse(dependencies: &str, builtin: &str) -> Index {
        let line = |line: &str| {
            let (path, needs) = line.split_once(':')?;
            Some((module_name(path), (path.to_owned(), needs.split_whitespace().map(str::to_owned).collect())))
        };
        Index { modules: dependencies.lines().filter_map(line).collect(), builtin: builtin.lines().map(module_name).collect() }
    }

    /// Paths of `wanted` and all they need, in an order in which they can be loaded.
    fn closure(&self, wanted: &[&str]) -> Result<Vec<String>, LabError> {
        let mut order: Vec<String> = Vec::new();
        for name in wanted {
            let (name, optional) = name.strip_suffix('?').map_or((*name, false), |name| (name, true));
            match self.modules.get(name) {
                Some((path, needs)) => {
                    for path in needs.iter().rev().chain([path]) {
                        if !order.contains(path) {
                            order.push(path.clone());
                        }
                    }
                }
                None if optional || self.builtin.contains(name) => {}
                None => {
                    return Err(LabError::Missing {
                        what: format!("the kernel's module {name}"),
                        remedy: "the lab does not know this kernel".into(),
                    });
                }
            }
        }
        Ok(order)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INDEX: &str = "k/ext4.ko.xz: k/crc16.ko.xz k/mbcache.ko.xz\nk/crc16.ko.xz:\nk/mbcache.ko.xz: k/crc16.ko.xz\nk/virtio-rng.ko:\n";

    #[test]
    fn what_a_module_needs_is_loaded_before_it_and_once() {
        let index = Index::parse(INDEX, "k/virtio.ko\n");
        let order = index.closure(&["crc16", "ext4", "virtio", "virtio_rng", "nothing?"]).expect("an order");
        assert_eq!(order, ["k/crc16.ko.xz", "k/mbcache.ko.xz", "k/ext4.ko.xz", "k/virtio-rng.ko"]);
    }

    #[test]
    fn a_module_that_is_missing_is_named() {
        let error = Index::parse(INDEX, "").closure(&["virtio_net"]).expect_err("missing").to_string();
        assert!(error.contains("virtio_net"), "{error}");
    }
}
