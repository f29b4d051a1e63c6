//! `--disk` and `[[disk]]`: what a virtual disk is made of, as it is written and as it is checked.
//!
//! Lives here: reading the keys, and what can be said about an image without opening it (its kind, its size, whether two disks are one file).
//! Not here: the engine and the change log (`disk-buffer`). Guards S7: an image that cannot be a disk is refused before the guest is made.

use std::fmt;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::de::{self, Deserializer, MapAccess, Visitor, value::MapAccessDeserializer};

use super::pairs::{pairs, unknown_key};
use super::resolve::ConfigError;

/// Most disks: with the network ports and the source of random numbers they fit into one PCI bus, and their numbers into the wire format's eight bits.
pub const MAX_DISKS: usize = 16;

/// Bytes of a virtio-blk serial number (virtio 1.2, 5.2.6.1: VIRTIO_BLK_ID_BYTES).
pub const SERIAL_BYTES: usize = 20;

/// A disk's unit: the guest reads and writes whole sectors.
pub const SECTOR: u64 = 512;

const KEYS: [&str; 6] = ["path", "serial", "readonly", "mode", "log", "resync"];

/// One `--disk`, checked as far as its words go; the image is not opened yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskConfig {
    /// Image file or block device of this host.
    pub path: PathBuf,
    /// What the guest sees as the disk's serial number (`/dev/disk/by-id/virtio-SERIAL`): 1 to [`SERIAL_BYTES`] printable ASCII characters.
    pub serial: String,
    /// The guest may not write.
    pub read_only: bool,
    /// How the standby comes to the same content.
    pub mode: DiskMode,
    /// Change log: which regions may differ from the peer's copy. Not given: beside the image's real name, which the disk-buffer finds.
    pub log: Option<PathBuf>,
    /// What to do with a copy that has nothing in common with the peer's.
    pub resync: Resync,
}

/// How the standby comes to a disk's content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DiskMode {
    /// Each host has a copy of its own; writes travel with their epoch.
    #[default]
    Mirror,
    /// Both hosts open one device; only the owner writes to it, and shuts the one before it out first.
    Shared,
}

/// What to do with a copy that has nothing in common with the peer's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Resync {
    /// Copy what is known to have changed; refuse unrelated content.
    #[default]
    Changed,
    /// The standby's copy may be overwritten whole.
    Full,
}

/// One `--disk` as it is written; nothing in it has been interpreted beyond its own syntax.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskOption {
    path: Option<PathBuf>,
    serial: Option<String>,
    read_only: bool,
    mode: DiskMode,
    log: Option<PathBuf>,
    resync: Resync,
}

impl DiskOption {
    /// Sets one key; the error says what to write.
    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        let choose = |known: &[&str]| Err(format!("{key}={value}: write {}", known.join(" or ")));
        match (key, value) {
            ("path" | "log", "") => return Err(format!("{key} is empty: write {key}=FILE")),
            ("path", path) => self.path = Some(path.into()),
            ("log", path) => self.log = Some(path.into()),
            ("serial", serial) => self.serial = Some(serial.to_owned()),
            ("readonly", "" | "true" | "on" | "yes") => self.read_only = true,
            ("readonly", "false" | "off" | "no") => self.read_only = false,
            ("readonly", _) => return choose(&["readonly", "readonly=false"]),
            ("mode", "mirror") => self.mode = DiskMode::Mirror,
            ("mode", "shared") => self.mode = DiskMode::Shared,
            ("mode", _) => return choose(&["mode=mirror", "mode=shared"]),
            ("resync", "full") => self.resync = Resync::Full,
            ("resync", "changed") => self.resync = Resync::Changed,
            ("resync", _) => return choose(&["resync=changed", "resync=full"]),
            (key, _) => return Err(unknown_key(key, &KEYS)),
        }
        Ok(())
    }

    fn from_pairs(given: impl IntoIterator<Item = (String, Option<String>)>) -> Result<DiskOption, String> {
        let mut option = DiskOption::default();
        let mut seen: Vec<String> = Vec::new();
        for (key, value) in given {
            if seen.contains(&key) {
                return Err(format!("{key} is given twice"));
            }
            match value {
                None if key != "readonly" && KEYS.contains(&key.as_str()) => return Err(format!("{key} needs a value: write {key}=...")),
                None if key.contains('/') => return Err(format!("write path={key}")),
                value => option.set(&key, &value.unwrap_or_default())?,
            }
            seen.push(key);
        }
        if option.path.is_none() {
            return Err("path is missing: write path=FILE[,readonly][,serial=TEXT][,mode=mirror|shared][,log=FILE][,resync=full]".into());
        }
        Ok(option)
    }
}

impl FromStr for DiskOption {
    type Err = String;

    fn from_str(text: &str) -> Result<DiskOption, String> {
        DiskOption::from_pairs(pairs(text))
    }
}

/// In a file a disk is a table (`[[disk]]`) with the same keys, or the same string as on the command line.
impl<'de> serde::Deserialize<'de> for DiskOption {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = DiskOption;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table with the key path, or a string such as \"path=/var/lib/vm0.img\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<DiskOption, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<DiskOption, A::Error> {
                let table: toml::Table = de::Deserialize::deserialize(MapAccessDeserializer::new(map))?;
                let pair = |(key, value): (String, toml::Value)| match value {
                    toml::Value::String(text) => Ok((key, Some(text))),
                    toml::Value::Boolean(on) if key == "readonly" => Ok((key, Some(on.to_string()))),
                    _ if !KEYS.contains(&key.as_str()) => Ok((key, None)),
                    other => Err(format!("disk: {key} = {other} is not {}", if key == "readonly" { "true or false" } else { "a string" })),
                };
                let pairs: Result<Vec<_>, String> = table.into_iter().map(pair).collect();
                pairs.and_then(DiskOption::from_pairs).map_err(de::Error::custom)
            }
        }

        deserializer.deserialize_any(Either)
    }
}

fn wrong(path: &Path, why: impl Into<String>) -> ConfigError {
    ConfigError::Value { key: "--disk", given: format!("path={}", path.display()), why: why.into() }
}

/// The disks that the options stand for; looks at no file.
pub(super) fn disks(given: Vec<DiskOption>) -> Result<Vec<DiskConfig>, ConfigError> {
    if given.len() > MAX_DISKS {
        let given = format!("({} times)", given.len());
        return Err(ConfigError::Value { key: "--disk", given, why: format!("a machine has at most {MAX_DISKS} disks") });
    }
    let mut disks: Vec<DiskConfig> = Vec::with_capacity(given.len());
    for (index, option) in given.into_iter().enumerate() {
        let disk = disk(option, index)?;
        if disks.iter().any(|other| other.path == disk.path) {
            return Err(wrong(&disk.path, "it is given to two disks; each needs an image of its own"));
        }
        if disks.iter().any(|other| other.serial == disk.serial) {
            return Err(wrong(&disk.path, format!("another disk has the serial number {:?}; each needs its own", disk.serial)));
        }
        if let Some(log) = disk.log_as_written()
            && disks.iter().any(|other| other.log_as_written().as_ref() == Some(&log))
        {
            return Err(wrong(&disk.path, format!("another disk has the change log {}; each needs its own", log.display())));
        }
        disks.push(disk);
    }
    for disk in &disks {
        if let Some(log) = disk.log_as_written().filter(|log| disks.iter().any(|other| other.path == *log)) {
            return Err(wrong(&disk.path, format!("its change log {} is a disk's image; write log=FILE", log.display())));
        }
    }
    Ok(disks)
}

fn disk(option: DiskOption, index: usize) -> Result<DiskConfig, ConfigError> {
    let path = option.path.unwrap_or_default();
    let serial = option.serial.unwrap_or_else(|| format!("disk{index}"));
    if serial.is_empty() || serial.len() > SERIAL_BYTES || !serial.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(wrong(&path, format!("serial={serial}: a serial number is 1 to {SERIAL_BYTES} ASCII characters without spaces")));
    }
    if option.mode == DiskMode::Shared && option.log.is_some() {
        return Err(wrong(&path, "a shared disk has one copy, and no change log; leave log= out"));
    }
    if option.mode == DiskMode::Shared && option.resync == Resync::Full {
        return Err(wrong(&path, "a shared disk has one copy, which nothing is copied over; leave resync= out"));
    }
    if option.read_only && option.log.is_some() {
        return Err(wrong(&path, "nothing changes on a read-only disk, and it has no change log; leave log= out, or readonly"));
    }
    if option.read_only && option.resync == Resync::Full {
        return Err(wrong(&path, "nothing is copied over a read-only disk: copy it to the other host by hand, and leave resync= out"));
    }
    Ok(DiskConfig { path, serial, read_only: option.read_only, mode: option.mode, log: option.log, resync: option.resync })
}

impl DiskConfig {
    /// Where the log is as far as the options tell, without a look at links: for finding mistakes in them. A shared disk has none.
    fn log_as_written(&self) -> Option<PathBuf> {
        (self.mode == DiskMode::Mirror).then(|| {
            self.log.clone().unwrap_or_else(|| {
                let mut name = self.path.clone().into_os_string();
                name.push(".lockstep");
                name.into()
            })
        })
    }
}

/// Why an image cannot be written to, and what to do about it.
fn unwritable(error: nix::errno::Errno) -> String {
    match error {
        nix::errno::Errno::EROFS => {
            "its file system is mounted read-only; mount it for writing (mount -o remount,rw), or add readonly".into()
        }
        nix::errno::Errno::EACCES | nix::errno::Errno::EPERM => "this user cannot write it; change its permissions, or add readonly".into(),
        error => format!("it cannot be written to ({}); look at the kernel's log (dmesg), or add readonly", error.desc()),
    }
}

/// Looks at the images on this host: there, a file or block device, whole sectors, writable where the guest may write, none of them twice.
pub(super) fn check_images(disks: &[DiskConfig]) -> Result<(), ConfigError> {
    let mut seen: Vec<((u64, u64), &Path)> = Vec::new();
    for disk in disks {
        let path = disk.path.as_path();
        let facts = std::fs::metadata(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                wrong(path, "there is no such file; make one with: truncate -s 10G FILE, then partition or format it")
            }
            _ => wrong(path, format!("{error}; check the path and its permissions")),
        })?;
        let kind = facts.file_type();
        if kind.is_dir() {
            return Err(wrong(path, "it is a directory; name an image file or a block device"));
        }
        if !kind.is_file() && !kind.is_block_device() {
            return Err(wrong(path, "it is neither a file nor a block device"));
        }
        if kind.is_file() && facts.len() == 0 {
            return Err(wrong(path, "it is empty; give it a size with: truncate -s 10G FILE (the same on both hosts)"));
        }
        if kind.is_file() && !facts.len().is_multiple_of(SECTOR) {
            let down = facts.len() / SECTOR * SECTOR;
            return Err(wrong(
                path,
                format!(
                    "its {} bytes are not whole sectors of {SECTOR}; raw images only, cut or grow it with: truncate -s {} FILE (or {})",
                    facts.len(),
                    down + SECTOR,
                    down
                ),
            ));
        }
        if kind.is_block_device() && disk.log_as_written().is_some_and(|log| log.parent() == path.parent()) {
            return Err(wrong(
                path,
                "the change log of a block device must outlive a restart of the host: write log=FILE on a file system",
            ));
        }
        if !disk.read_only
            && let Err(error) = nix::unistd::access(path, nix::unistd::AccessFlags::W_OK)
        {
            return Err(wrong(path, unwritable(error)));
        }
        // Two names of one file (a symbolic or hard link, another node of the same device) are one disk.
        let identity = if kind.is_block_device() { (u64::MAX, facts.rdev()) } else { (facts.dev(), facts.ino()) };
        if let Some((_, other)) = seen.iter().find(|(seen, _)| *seen == identity) {
            return Err(wrong(path, format!("it is the same file as {}; each disk needs an image of its own", other.display())));
        }
        seen.push((identity, path));
    }
    Ok(())
}

#[cfg(test)]
#[path = "disk_tests.rs"]
mod tests;
