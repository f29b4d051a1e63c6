//! Where the lab keeps things: all of it under `target/lab`.
//!
//! ```text
//! cache/      kernels, initramfs, root file systems: kept (LOCKSTEP_LAB_CACHE: elsewhere)
//! run/NAME/   one running lab: consoles, control sockets, disks, shared/; removed with it
//! logs/NAME/  what a failed scenario left behind
//! report.json one row per scenario
//! ```

use std::path::{Path, PathBuf};

use crate::error::LabError;

/// The lab's directories. They are made when they are first asked for.
#[derive(Clone, Debug)]
pub struct Paths {
    root: PathBuf,
    programs: PathBuf,
}

impl Paths {
    /// Beside the running program: `TARGET/PROFILE/PROGRAM` or `TARGET/PROFILE/deps/PROGRAM` gives `TARGET/lab`.
    ///
    /// # Errors
    /// The program's own path is not known, or has no such parents.
    pub fn find() -> Result<Paths, LabError> {
        let program = std::env::current_exe().map_err(LabError::io(|| "find the running program".into()))?;
        let mut programs = program.parent();
        if programs.is_some_and(|p| p.ends_with("deps")) {
            programs = programs.and_then(Path::parent);
        }
        let target = programs.and_then(Path::parent);
        match (programs, target) {
            (Some(programs), Some(target)) => Ok(Paths { root: target.join("lab"), programs: programs.to_owned() }),
            _ => Err(LabError::Missing { what: "the target directory".into(), remedy: format!("{} is in none", program.display()) }),
        }
    }

    /// Everything below `root`; for tests.
    #[must_use]
    pub fn at(root: PathBuf) -> Paths {
        Paths { programs: root.clone(), root }
    }

    fn made(path: PathBuf) -> Result<PathBuf, LabError> {
        std::fs::create_dir_all(&path).map_err(LabError::io(|| format!("make the directory {}", path.display())))?;
        Ok(path)
    }

    /// What is prepared once.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn cache(&self) -> Result<PathBuf, LabError> {
        Paths::made(std::env::var_os("LOCKSTEP_LAB_CACHE").map_or_else(|| self.root.join("cache"), PathBuf::from))
    }

    /// Running labs.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn runs(&self) -> Result<PathBuf, LabError> {
        Paths::made(self.root.join("run"))
    }

    /// Where a failed scenario's logs go.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn logs(&self) -> Result<PathBuf, LabError> {
        Paths::made(self.root.join("logs"))
    }

    /// The report of the newest run of the suite.
    #[must_use]
    pub fn report(&self) -> PathBuf {
        self.root.join("report.json")
    }

    /// The `lockstep` program that was built beside this one.
    ///
    /// # Errors
    /// There is none.
    pub fn lockstep(&self) -> Result<PathBuf, LabError> {
        let program = self.programs.join("lockstep");
        if program.exists() {
            return Ok(program);
        }
        Err(LabError::Missing {
            what: program.display().to_string(),
            remedy: "build it in the same profile: cargo build -p lockstep".into(),
        })
    }
}
