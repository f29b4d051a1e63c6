//! Debian packages of the real machine that the lab needs: installed when missing, as root.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::command::run;
use crate::error::LabError;

/// Installing may have to download 100 MB.
const BOUND: Duration = Duration::from_secs(600);

/// A program that the lab runs on the real machine or in hosts (whose root is the real machine's), and its package.
const PROGRAMS: &[(&str, &str)] = &[
    ("/usr/bin/qemu-system-x86_64", "qemu-system-x86"),
    ("/usr/lib/qemu/virtiofsd", "qemu-system-common"),
    ("/usr/bin/qemu-img", "qemu-utils"),
    ("/usr/share/seabios/bios-256k.bin", "seabios"),
    ("/bin/busybox", "busybox-static"),
    ("/sbin/depmod", "kmod"),
    ("/usr/bin/zstd", "zstd"),
    ("/usr/bin/xz", "xz-utils"),
    ("/sbin/mke2fs", "e2fsprogs"),
    ("/usr/bin/mmdebstrap", "mmdebstrap"),
    ("/sbin/ip", "iproute2"),
];

/// What verbs are tried with in hosts that have soft RoCE.
pub const VERBS: &[(&str, &str)] =
    &[("/usr/bin/ibv_rc_pingpong", "ibverbs-utils"), ("/usr/lib/x86_64-linux-gnu/libibverbs/librxe-rdmav34.so", "ibverbs-providers")];

/// Installs what every lab needs and is missing.
///
/// # Errors
/// As [`install`].
pub fn install_missing(tell: &dyn Fn(&str)) -> Result<(), LabError> {
    install(PROGRAMS, tell)
}

/// Installs those of `programs` (a file, and the package that has it) that are missing.
///
/// # Errors
/// Not root, no apt, or a package cannot be installed.
pub fn install(programs: &[(&str, &str)], tell: &dyn Fn(&str)) -> Result<(), LabError> {
    let missing: Vec<&str> = programs.iter().filter(|(program, _)| !Path::new(program).exists()).map(|(_, package)| *package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    let lacking = |remedy: String| LabError::Missing { what: format!("packages {names}"), remedy };
    if !Path::new("/usr/bin/apt-get").exists() {
        return Err(lacking("install the programs by this system's package manager (this one has no apt)".into()));
    }
    if !nix::unistd::geteuid().is_root() {
        return Err(lacking(format!("as root: apt-get install {names}")));
    }
    tell(&format!("installing {names}"));
    update()?;
    let mut install = Command::new("apt-get");
    install.args(["install", "-y", "-qq", "--no-install-recommends"]).args(&missing).env("DEBIAN_FRONTEND", "noninteractive");
    run(&mut install, BOUND).map(drop)
}

/// Brings apt's lists up to date.
///
/// # Errors
/// They cannot be had.
pub fn update() -> Result<(), LabError> {
    run(Command::new("apt-get").args(["update", "-qq"]), BOUND).map(drop)
}
