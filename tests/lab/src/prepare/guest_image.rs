//! The stock guest's root disk: Debian 12 with Redis and SQLite in it, as Debian's own tools install them, on ext4. Made without mounting anything.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::artifact::ensure;
use crate::command::run;
use crate::error::LabError;

/// 60 s on an idle machine with a near mirror.
const BOUND: Duration = Duration::from_secs(900);
/// Size of the disk. The system takes 140 MiB of it; the rest is for the servers' data.
const SIZE: &str = "512M";
/// What is installed beside Debian's essential packages.
const PACKAGES: &str = "redis-server,redis-tools,sqlite3,iproute2,kmod,e2fsprogs,procps";
/// What no test looks at; without it the first copy between two hosts is half as long.
const LEFT_OUT: [&str; 4] = ["/usr/share/man/*", "/usr/share/locale/*", "/usr/share/doc/*", "/usr/share/info/*"];
/// Raised when what is installed changes in a way that the digest of the constants does not show.
const VERSION: u32 = 1;

/// The image. The cache must be locked.
///
/// # Errors
/// Debian's packages are out of reach, or this user may not install them into a directory.
pub fn prepare(cache: &Path, tell: &dyn Fn(&str)) -> Result<PathBuf, LabError> {
    let key = xxhash_rust::xxh3::xxh3_64(format!("{VERSION} {SIZE} {PACKAGES} {LEFT_OUT:?}").as_bytes());
    let place = ensure(cache, &format!("guest-{key:016x}"), |at| {
        tell("making the stock guest's root disk (Debian 12 with Redis and SQLite; about a minute)");
        let root = at.join("root");
        let mut strap = Command::new("mmdebstrap");
        strap.args(["--mode=root", "--variant=essential", &format!("--include={PACKAGES}")]);
        strap.args(LEFT_OUT.map(|path| format!("--dpkgopt=path-exclude={path}")));
        // Which apt lists it takes its packages from is this machine's business, as long as they are Debian 12's.
        run(strap.arg("bookworm").arg(&root), BOUND)?;
        let image = at.join("root.ext4");
        run(Command::new("/sbin/mke2fs").args(["-q", "-t", "ext4", "-L", "labroot", "-d"]).arg(&root).arg(&image).arg(SIZE), BOUND)?;
        fs::remove_dir_all(&root).map_err(LabError::io(|| format!("remove {}", root.display())))
    })?;
    Ok(place.join("root.ext4"))
}

/// An empty ext4 disk for a host's own files (change logs, images). The cache must be locked.
///
/// # Errors
/// It cannot be made.
pub fn prepare_data_disk(cache: &Path) -> Result<PathBuf, LabError> {
    let place = ensure(cache, "data-4G", |at| {
        run(Command::new("/sbin/mke2fs").args(["-q", "-t", "ext4", "-L", "data"]).arg(at.join("data.ext4")).arg("4G"), BOUND).map(drop)
    })?;
    Ok(place.join("data.ext4"))
}
