//! A running lab's directory: who owns it, and what to do with one whose owner is gone.
//!
//! QEMU dies with the process that started it and namespaces have no names, so all that a killed harness leaves is this directory; should a QEMU
//! have outlived it after all, it is found by its pid file and ended, if that pid is still the process that was started for this directory.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::error::LabError;

/// File with the owner's identity.
const OWNER: &str = "owner";

/// Directories of this process, for [`remove_all`].
static MINE: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// A process that cannot be mistaken for a later one of the same number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its number.
    pub pid: i32,
    /// When it was started, in clock ticks since boot (proc(5), stat, field 22).
    start: u64,
    /// Which boot.
    boot: String,
}

impl Identity {
    /// The process `pid`, if it runs (a zombie does not).
    #[must_use]
    pub fn of(pid: i32) -> Option<Identity> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name in brackets may hold anything; what is counted stands behind the last bracket, from field 3 on.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        if matches!(fields.first(), Some(&("Z" | "X"))) {
            return None;
        }
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.trim().to_owned();
        Some(Identity { pid, start: fields.get(19)?.parse().ok()?, boot })
    }

    /// Whether it still runs.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        Identity::of(self.pid).as_ref() == Some(self)
    }

    fn text(&self) -> String {
        format!("{} {} {}\n", self.pid, self.start, self.boot)
    }

    fn parse(text: &str) -> Option<Identity> {
        let mut words = text.split_whitespace();
        Some(Identity { pid: words.next()?.parse().ok()?, start: words.next()?.parse().ok()?, boot: words.next()?.to_owned() })
    }
}

/// A run's directory. Removed when it is dropped.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
}

impl RunDir {
    /// Makes the directory `name` below `runs` for this process.
    ///
    /// # Errors
    /// It belongs to a process that runs, or cannot be made.
    pub fn make(runs: &Path, name: &str) -> Result<RunDir, LabError> {
        let path = runs.join(name);
        if let Some(owner) = owner(&path).filter(Identity::is_alive) {
            return Err(LabError::Missing {
                what: format!("the lab {name}"),
                remedy: format!("process {} has it in {}", owner.pid, path.display()),
            });
        }
        remove(&path)?;
        let io = LabError::io(|| format!("make {}", path.display()));
        let me = Identity::of(nix::unistd::getpid().as_raw())
            .ok_or_else(|| LabError::Missing { what: "/proc".into(), remedy: "mount it".into() })?;
        fs::create_dir_all(path.join("shared")).and_then(|()| fs::write(path.join(OWNER), me.text())).map_err(io)?;
        MINE.lock().unwrap_or_else(PoisonError::into_inner).push(path.clone());
        Ok(RunDir { path })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Copies what tells of a failure (consoles, logs, events) to `place`, which is emptied before.
    ///
    /// # Errors
    /// `place` cannot be written.
    pub fn keep_logs(&self, place: &Path) -> Result<(), LabError> {
        let io = || LabError::io(|| format!("write {}", place.display()));
        if place.exists() {
            fs::remove_dir_all(place).map_err(io())?;
        }
        fs::create_dir_all(place).map_err(io())?;
        keep(&self.path, place).map_err(io())
    }
}

/// Copies the logs of `from` and of the directories in it.
fn keep(from: &Path, to: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(from)?.flatten() {
        let (path, kind) = (entry.path(), entry.file_type()?);
        if kind.is_dir() {
            let below = to.join(entry.file_name());
            fs::create_dir_all(&below)?;
            keep(&path, &below)?;
            // Empty directories tell nothing; removing one that is not empty fails, as it should.
            let _ = fs::remove_dir(&below);
        } else if kind.is_file() && path.extension().is_some_and(|e| e == "log" || e == "events" || e == "json") {
            fs::copy(&path, to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

impl Drop for RunDir {
    fn drop(&mut self) {
        // What cannot be removed now is removed by the next run.
        let _ = remove(&self.path);
        MINE.lock().unwrap_or_else(PoisonError::into_inner).retain(|path| *path != self.path);
    }
}

/// Ends and removes every lab of this process: for the moment before it ends in disorder (Ctrl-C).
pub fn remove_all() {
    for path in MINE.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
        // What cannot be removed now is removed by the next run.
        let _ = remove(&path);
    }
}

fn owner(path: &Path) -> Option<Identity> {
    Identity::parse(&fs::read_to_string(path.join(OWNER)).ok()?)
}

/// Ends what is left of a run whose owner is gone, and removes its directory.
fn remove(path: &Path) -> Result<(), LabError> {
    let Ok(entries) = fs::read_dir(path) else { return Ok(()) };
    for entry in entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "pid")) {
        let qemu = fs::read_to_string(&entry).ok().and_then(|text| Identity::parse(&text));
        if let Some(qemu) = qemu.filter(Identity::is_alive) {
            // An error means that it has ended in this moment.
            let _ = kill(Pid::from_raw(qemu.pid), Signal::SIGKILL);
        }
    }
    fs::remove_dir_all(path).map_err(LabError::io(|| format!("remove {}", path.display())))
}

/// Writes who the QEMU process `pid` is, so that it can be found should it outlive its harness.
///
/// # Errors
/// It has ended, or the file cannot be written.
pub fn note_process(file: &Path, pid: i32) -> Result<(), LabError> {
    let Some(identity) = Identity::of(pid) else { return Ok(()) };
    File::create(file)
        .and_then(|mut f| std::io::Write::write_all(&mut f, identity.text().as_bytes()))
        .map_err(LabError::io(|| format!("write {}", file.display())))
}

/// Removes the directories, and ends the processes, of labs whose owners are gone; the names of those.
///
/// # Errors
/// The directory of runs cannot be read.
pub fn clean_stale(runs: &Path) -> Result<Vec<String>, LabError> {
    let mut cleaned = Vec::new();
    for entry in fs::read_dir(runs).map_err(LabError::io(|| format!("list {}", runs.display())))?.flatten() {
        // A directory without an owner is one that is being made or removed in this moment, or was when its maker died: old ones go.
        let old = || entry.metadata().and_then(|m| m.modified()).is_ok_and(|t| t.elapsed().is_ok_and(|age| age.as_secs() > 60));
        if owner(&entry.path()).map_or_else(old, |owner| !owner.is_alive()) {
            remove(&entry.path())?;
            cleaned.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    Ok(cleaned)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_run_of_a_dead_owner_is_cleaned_with_its_processes_and_one_of_a_living_owner_is_not() {
        let runs = tempfile::tempdir().expect("a directory");
        let living = RunDir::make(runs.path(), "living").expect("made");
        let dead = runs.path().join("dead");
        fs::create_dir(&dead).expect("made");
        let mut owner = Command::new("true").spawn().expect("started");
        let identity = Identity::of(owner.id() as i32);
        owner.wait().expect("ended");
        let text = identity.map_or_else(|| "999999999 1 x\n".to_owned(), |i| i.text());
        fs::write(dead.join(OWNER), text).expect("written");
        let mut orphan = Command::new("sleep").arg("60").spawn().expect("started");
        note_process(&dead.join("h1.pid"), orphan.id() as i32).expect("noted");

        let cleaned = clean_stale(runs.path()).expect("cleaned");

        assert_eq!(cleaned, ["dead"]);
        assert!(!orphan.wait().expect("ended").success());
        assert!(living.path().exists() && !dead.exists());
    }

    #[test]
    fn a_lab_that_runs_is_not_started_again() {
        let runs = tempfile::tempdir().expect("a directory");
        let _lab = RunDir::make(runs.path(), "up").expect("made");
        assert!(RunDir::make(runs.path(), "up").is_err());
    }

    #[test]
    fn a_process_that_has_another_start_is_another() {
        let me = Identity::of(std::process::id() as i32).expect("alive");
        assert!(me.is_alive());
        assert!(!Identity { start: me.start + 1, ..me }.is_alive());
    }
}
