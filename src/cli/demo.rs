//! `lockstep demo`: what must be there first, the run, and where its report goes.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use super::{Failure, code, log_filter, print, start_log};
use crate::config::{ConfigError, resolve};
use crate::demo::report::Report;
use crate::demo::{DemoOptions, namespace, room, scenario};
use crate::{host, signals};

/// A report file that could not be made or filled.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the report to {path}; choose another place with --report, or make room")]
struct ReportError {
    path: PathBuf,
    source: io::Error,
}

/// Where the report will go. A regular file appears, or is replaced, only when the report is complete.
enum ReportFile {
    Regular {
        path: PathBuf,
        partial: NamedTempFile,
    },
    /// A device or FIFO: written to as it is.
    Special {
        path: PathBuf,
        file: File,
    },
}

impl ReportFile {
    fn open(path: &Path) -> Result<ReportFile, ReportError> {
        let failed = |source| ReportError { path: path.to_owned(), source };
        match std::fs::metadata(path) {
            Ok(there) if there.is_dir() => Err(failed(io::ErrorKind::IsADirectory.into())),
            Ok(there) if !there.is_file() => {
                let file = OpenOptions::new().write(true).open(path).map_err(failed)?;
                Ok(ReportFile::Special { path: path.to_owned(), file })
            }
            _ => {
                let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
                let partial = NamedTempFile::new_in(directory).map_err(failed)?;
                Ok(ReportFile::Regular { path: path.to_owned(), partial })
            }
        }
    }

    fn fill(self, text: &str) -> Result<(), ReportError> {
        match self {
            ReportFile::Special { path, mut file } => file.write_all(text.as_bytes()).map_err(|source| ReportError { path, source }),
            ReportFile::Regular { path, mut partial } => {
                let written = partial.write_all(text.as_bytes()).and_then(|()| partial.as_file().sync_all());
                // A temporary file is for its owner's eyes only; a report is as public as any file its owner makes.
                let public = partial.as_file().set_permissions(Permissions::from_mode(0o644));
                written.and(public).and_then(|()| Ok(partial.persist(&path)?)).map(drop).map_err(|source| ReportError { path, source })
            }
        }
    }
}

/// Something that the demo needs is not there.
#[derive(Debug, thiserror::Error)]
#[error("the demo cannot run here:\n{}", missing.iter().map(|m| format!("  - {m}")).collect::<Vec<_>>().join("\n"))]
struct Missing {
    missing: Vec<String>,
}

pub(super) fn run(options: &DemoOptions) -> Result<u8, Failure> {
    let usage = |e: ConfigError| Failure::new(code::USAGE, e);
    let failed = |e: Box<dyn std::error::Error>| Failure { code: code::FAILED, error: e };
    let host_bytes = host::memory_total().map_err(|e| failed(format!("cannot read /proc/meminfo: {e}").into()))?;
    let memory = resolve::memory(options.memory, host_bytes).map_err(usage)?;
    let vcpus = resolve::vcpus(options.vcpus).map_err(usage)?;
    room::check(memory, options.clients).map_err(usage)?;
    // What only the nodes use is judged here as well: a wrong command line is no node that fails.
    resolve::heartbeat(None, options.detection_bound.map(|span| span.0)).map_err(usage)?;
    log_filter(&options.log)?;
    start_log(Some("warn"))?;
    // Before anything is started: a report that cannot be kept is no reason to have waited for it.
    let report_file = options.report.as_deref().map(ReportFile::open).transpose().map_err(|e| failed(e.into()))?;
    let missing = missing();
    if !missing.is_empty() {
        return Err(failed(Missing { missing }.into()));
    }
    if !nix::unistd::geteuid().is_root() {
        namespace::become_root_of_user_namespace().map_err(|e| failed(e.into()))?;
    }
    let shutdown = signals::shutdown_flag().map_err(|e| failed(format!("cannot catch signals: {e}").into()))?;
    let report = match scenario::run(options, memory, vcpus, shutdown) {
        Ok(report) => report,
        Err(error) => {
            let code = if error.is_interrupt() { code::INTERRUPTED } else { code::FAILED };
            return Err(Failure::new(code, error));
        }
    };
    let json = serde_json::to_string_pretty(&report).map_err(|e| failed(e.into()))? + "\n";
    let text = if options.json { json.clone() } else { report.to_string() };
    let printed = print(&text);
    if let Some(file) = report_file {
        file.fill(&json).map_err(|e| failed(e.into()))?;
    }
    printed?;
    Ok(verdict(&report))
}

fn verdict(report: &Report) -> u8 {
    match (report.broken_promises.is_empty(), report.proved_nothing.is_empty()) {
        (false, _) => code::BROKEN,
        (true, false) => code::PROVED_NOTHING,
        (true, true) => code::OK,
    }
}

/// What the demo needs and does not find, each with its remedy.
fn missing() -> Vec<String> {
    let mut missing = Vec::new();
    for (path, remedy) in [
        (
            "/dev/kvm",
            "run on a host with hardware virtualisation, and as root or as a member of the group that owns it (usermod -aG kvm USER)",
        ),
        ("/dev/net/tun", "load the driver (modprobe tun) and let your user open it, or run as root"),
    ] {
        if let Err(error) = OpenOptions::new().read(true).write(true).open(path) {
            missing.push(format!("{path}: {error}; {remedy}"));
        }
    }
    if let Err(error) = std::process::Command::new("ip").arg("-V").stdout(std::process::Stdio::null()).status() {
        missing.push(format!("the ip tool: {error}; apt-get install iproute2"));
    }
    missing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_that_is_never_finished_leaves_the_old_one() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("report.json");
        std::fs::write(&path, "old").expect("written");

        drop(ReportFile::open(&path).expect("opened"));
        assert_eq!(std::fs::read_to_string(&path).expect("read"), "old");

        ReportFile::open(&path).expect("opened").fill("new").expect("filled");
        assert_eq!(std::fs::read_to_string(&path).expect("read"), "new");
        assert_eq!(std::fs::read_dir(directory.path()).expect("listed").count(), 1);
    }

    #[test]
    fn a_full_disk_is_told_and_the_device_stays() {
        let full = Path::new("/dev/full");
        let error = ReportFile::open(full).expect("opened").fill("report").expect_err("no room");
        assert_eq!(error.source.raw_os_error(), Some(libc::ENOSPC));
        assert!(error.to_string().contains("/dev/full") && full.exists());
    }

    #[test]
    fn a_broken_promise_weighs_more_than_having_proved_nothing() {
        let broken = Report { broken_promises: vec!["x".into()], proved_nothing: vec!["y".into()], ..Report::default() };
        assert_eq!(verdict(&broken), code::BROKEN);
        assert_eq!(verdict(&Report { proved_nothing: vec!["y".into()], ..Report::default() }), code::PROVED_NOTHING);
        assert_eq!(verdict(&Report::default()), code::OK);
    }
}
