//! The programs of the kernel's iSCSI initiator, for hosts: Debian's packages, unpacked beside the real machine's own and not installed there, where
//! they would start a service.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::artifact::ensure;
use super::packages;
use crate::command::run;
use crate::error::LabError;

/// Half a megabyte is downloaded.
const BOUND: Duration = Duration::from_secs(120);
const PACKAGES: [&str; 3] = ["open-iscsi", "libopeniscsiusr", "libisns0"];
/// What is taken of them, and under which name: libraries are looked for by the names that are linked against.
const FILES: [(&str, &str); 4] = [
    ("sbin/iscsid", "iscsid"),
    ("sbin/iscsiadm", "iscsiadm"),
    ("usr/lib/x86_64-linux-gnu/libopeniscsiusr.so.0.2.0", "libopeniscsiusr.so.0.2.0"),
    ("usr/lib/x86_64-linux-gnu/libisns.so.0", "libisns.so.0"),
];

/// The directory with all of them. The cache must be locked.
///
/// # Errors
/// Debian's packages are out of reach, or not as expected.
pub fn prepare(cache: &Path, tell: &dyn Fn(&str)) -> Result<PathBuf, LabError> {
    let key = xxhash_rust::xxh3::xxh3_64(format!("{PACKAGES:?} {FILES:?}").as_bytes());
    ensure(cache, &format!("open-iscsi-{key:016x}"), |at| {
        tell("downloading Debian's iSCSI initiator");
        let io = |what: &str, path: &Path| {
            let what = format!("{what} {}", path.display());
            LabError::io(move || what)
        };
        let root = at.join("root");
        fs::create_dir_all(&root).map_err(io("make", &root))?;
        let download = || run(Command::new("apt-get").args(["download", "-qq"]).args(PACKAGES).current_dir(at), BOUND);
        download().or_else(|_| packages::update().and_then(|()| download()))?;
        for entry in fs::read_dir(at).map_err(io("list", at))?.flatten() {
            let package = entry.path();
            if package.extension().is_some_and(|e| e == "deb") {
                run(Command::new("dpkg-deb").arg("-x").arg(&package).arg(&root), BOUND)?;
                fs::remove_file(&package).map_err(io("remove", &package))?;
            }
        }
        for (from, to) in FILES {
            fs::rename(root.join(from), at.join(to)).map_err(io("find in Debian's packages", &root.join(from)))?;
        }
        fs::remove_dir_all(&root).map_err(io("remove", &root))
    })
}
