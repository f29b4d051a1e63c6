//! Things that are made once and kept: each a directory of the cache that is either complete or not there.
//!
//! It is made under another name and renamed; `complete` in it lists every file with its size and digest, so that what was damaged since is made
//! anew (the digest is looked at for files below [`DIGESTED`], the size always). One process at a time makes something: a lock on the cache.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use crate::error::LabError;

/// Name of the list in an artifact.
const MARKER: &str = "complete";
/// Larger files are known by their size alone: reading a root file system at every start would cost more than making it once in a while.
const DIGESTED: u64 = 8 << 20;

fn list(directory: &Path) -> Result<String, LabError> {
    let failed = LabError::io(|| format!("list {}", directory.display()));
    let mut lines = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)?.flatten() {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        let Ok(metadata) = entry.metadata() else { continue };
        if !metadata.is_file() || name == MARKER {
            continue;
        }
        let digest = if metadata.len() < DIGESTED {
            let bytes = fs::read(&path).map_err(LabError::io(|| format!("read {}", path.display())))?;
            format!("{:016x}", xxhash_rust::xxh3::xxh3_64(&bytes))
        } else {
            "-".to_owned()
        };
        lines.push(format!("{name} {} {digest}\n", metadata.len()));
    }
    lines.sort();
    Ok(lines.concat())
}

fn is_complete(directory: &Path) -> bool {
    let Ok(marked) = fs::read_to_string(directory.join(MARKER)) else { return false };
    list(directory).is_ok_and(|now| now == marked)
}

/// Takes the cache's lock; held until the value is dropped.
///
/// # Errors
/// The lock file cannot be made or locked.
pub fn lock(cache: &Path) -> Result<Flock<File>, LabError> {
    let path = cache.join("lock");
    let file = File::create(&path).map_err(LabError::io(|| format!("make {}", path.display())))?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, errno)| LabError::Io { what: format!("lock {}", path.display()), source: errno.into() })
}

/// The artifact `name`, made by `make` in an empty directory when it is not there or not complete. The cache must be locked.
///
/// # Errors
/// `make` fails, or the directory cannot be written.
pub fn ensure(cache: &Path, name: &str, make: impl FnOnce(&Path) -> Result<(), LabError>) -> Result<PathBuf, LabError> {
    let place = cache.join(name);
    if is_complete(&place) {
        return Ok(place);
    }
    let half = cache.join(format!("{name}.half"));
    let failed = |path: &Path| {
        let path = path.display().to_string();
        LabError::io(move || format!("write {path}"))
    };
    for old in [&half, &place] {
        if old.exists() {
            fs::remove_dir_all(old).map_err(failed(old))?;
        }
    }
    fs::create_dir_all(&half).map_err(failed(&half))?;
    make(&half)?;
    fs::write(half.join(MARKER), list(&half)?).map_err(failed(&half))?;
    fs::rename(&half, &place).map_err(failed(&place))?;
    Ok(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_complete_is_not_made_again_and_what_was_damaged_is() {
        let cache = tempfile::tempdir().expect("a directory");
        let made = std::cell::Cell::new(0);
        let make = || {
            ensure(cache.path(), "thing", |at| {
                made.set(made.get() + 1);
                fs::write(at.join("content"), b"good").map_err(LabError::io(|| "write".into()))
            })
            .expect("made")
        };
        let place = make();
        make();
        assert_eq!(made.get(), 1);

        fs::write(place.join("content"), b"evil").expect("written");
        make();
        assert_eq!((made.get(), fs::read(place.join("content")).expect("read")), (2, b"good".to_vec()));
    }

    #[test]
    fn what_could_not_be_made_is_not_there() {
        let cache = tempfile::tempdir().expect("a directory");
        let failed = ensure(cache.path(), "thing", |_| Err(LabError::Found("no".into())));
        assert!(failed.is_err() && !cache.path().join("thing").exists());
    }
}
