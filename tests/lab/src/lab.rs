//! A lab: networks, hosts, and the folder they share. Everything of it is gone when the value is dropped, or when the process ends in any other way.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;

use crate::error::LabError;
use crate::host::{Host, HostOptions, READY_BOUND};
use crate::net::Network;
use crate::paths::Paths;
use crate::prepare::{Bootable, Prepared};
use crate::run_dir::{RunDir, clean_stale};
use crate::spawner::Spawner;

/// Most hosts of a lab: each takes 400 MB and a good part of a core.
pub const MOST_HOSTS: u8 = 3;

/// What a lab is made of.
#[derive(Clone, Debug)]
pub struct LabOptions {
    /// Name of the run; no two labs of one name run at a time.
    pub name: String,
    /// Hosts, 1 to [`MOST_HOSTS`].
    pub hosts: u8,
    /// Each of them.
    pub host: HostOptions,
}

/// A running lab.
#[derive(Debug)]
pub struct Lab {
    // In this order they end: hosts, then what starts them, then the networks, then the directory.
    hosts: Vec<Host>,
    spawner: Arc<Spawner>,
    network: Arc<Network>,
    prepared: Arc<Prepared>,
    directory: RunDir,
    /// Where logs are kept.
    logs: PathBuf,
}

impl Lab {
    /// Builds the lab and starts its hosts, all at once; ready when this returns. What crashed labs have left is cleaned first.
    ///
    /// # Errors
    /// Something is missing on the real machine, or a host does not come up.
    pub fn start(paths: &Paths, prepared: Prepared, options: &LabOptions) -> Result<Lab, LabError> {
        Lab::start_unlike(paths, prepared, &options.name, &vec![options.host; usize::from(options.hosts)])
    }

    /// As [`Self::start`], with hosts that are not all alike.
    ///
    /// # Errors
    /// As there.
    pub fn start_unlike(paths: &Paths, prepared: Prepared, name: &str, hosts: &[HostOptions]) -> Result<Lab, LabError> {
        let count = u8::try_from(hosts.len()).ok().filter(|count| (1..=MOST_HOSTS).contains(count));
        let count = count.ok_or_else(|| LabError::Found(format!("a lab has 1 to {MOST_HOSTS} hosts, not {}", hosts.len())))?;
        let runs = paths.runs()?;
        clean_stale(&runs)?;
        let directory = RunDir::make(&runs, name)?;
        let (prepared, network, spawner) = (Arc::new(prepared), Arc::new(Network::new(count)?), Arc::new(Spawner::new()?));
        let mut lab = Lab { hosts: Vec::new(), spawner, network, prepared, directory, logs: paths.logs()? };
        lab.share_guest()?;
        lab.switch_on(hosts).inspect_err(|_| drop(lab.keep_logs(name)))?;
        Ok(lab)
    }

    fn switch_on(&mut self, hosts: &[HostOptions]) -> Result<(), LabError> {
        for (number, options) in (1..).zip(hosts) {
            let mut host = Host::new(number, *options, self.directory.path(), &self.network, &self.prepared, &self.spawner)?;
            host.start()?;
            self.hosts.push(host);
        }
        // Side by side: one that logs in at the storage waits for the one that is the storage.
        std::thread::scope(|scope| {
            let all: Vec<_> = self.hosts.iter_mut().map(|host| scope.spawn(|| host.wait_ready(READY_BOUND))).collect();
            let panicked = |_| Err(LabError::Found("the thread that waited for a host panicked".into()));
            all.into_iter().try_for_each(|one| one.join().unwrap_or_else(panicked))
        })
    }

    /// The stock guest's kernel and initramfs as hosts find them: `/shared/guest/{vmlinux,vmlinuz,initramfs}`.
    fn share_guest(&self) -> Result<(), LabError> {
        self.share_bootable(&self.prepared.guest, "guest")?;
        self.share_initiator()?;
        self.share_kernel(&self.prepared.guest)
    }

    /// The iSCSI initiator, in `/shared/open-iscsi`.
    fn share_initiator(&self) -> Result<(), LabError> {
        let from = &self.prepared.open_iscsi;
        let files = fs::read_dir(from).map_err(LabError::io(|| format!("list {}", from.display())))?;
        files.flatten().try_for_each(|file| self.share(&file.path(), &format!("open-iscsi/{}", file.file_name().to_string_lossy())))
    }

    /// A stock guest's kernel and initramfs where [`crate::scenario::guest::Stock`] looks for its series.
    ///
    /// # Errors
    /// They cannot be read or written.
    pub fn share_kernel(&self, guest: &Bootable) -> Result<(), LabError> {
        self.share_bootable(guest, guest.kernel.series.folder())
    }

    fn share_bootable(&self, guest: &Bootable, folder: &str) -> Result<(), LabError> {
        for (name, file) in [("vmlinux", &guest.kernel.vmlinux), ("vmlinuz", &guest.kernel.bzimage), ("initramfs", &guest.initramfs)] {
            self.share(file, &format!("{folder}/{name}"))?;
        }
        Ok(())
    }

    /// Puts a file of the real machine into `/shared/NAME` of all hosts.
    ///
    /// # Errors
    /// It cannot be read or written.
    pub fn share(&self, file: &Path, name: &str) -> Result<(), LabError> {
        share(&self.shared(), file, name)
    }

    /// The directory that hosts see as `/shared`.
    #[must_use]
    pub fn shared(&self) -> PathBuf {
        self.directory.path().join("shared")
    }

    /// Keeps consoles, logs and events under `target/lab/logs/NAME`, for somebody to see what went wrong.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn keep_logs(&self, name: &str) -> Result<(), LabError> {
        self.directory.keep_logs(&self.logs.join(name))
    }

    /// The run's directory: consoles and the like.
    #[must_use]
    pub fn directory(&self) -> &RunDir {
        &self.directory
    }

    /// The networks.
    #[must_use]
    pub fn network(&self) -> &Arc<Network> {
        &self.network
    }

    /// What the lab was made of.
    #[must_use]
    pub fn prepared(&self) -> &Prepared {
        &self.prepared
    }

    /// Host `number`, from 1.
    ///
    /// # Errors
    /// There is no such host.
    pub fn host(&mut self, number: u8) -> Result<&mut Host, LabError> {
        let none = || LabError::Found(format!("there is no host h{number}"));
        let index = usize::from(number).checked_sub(1).ok_or_else(none)?;
        self.hosts.get_mut(index).ok_or_else(none)
    }

    /// All hosts.
    pub fn hosts(&mut self) -> &mut [Host] {
        &mut self.hosts
    }

    /// Starts a process of the real machine in the client network; it ends with the lab.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn_client(&self, command: Command) -> Result<Child, LabError> {
        self.spawner.spawn(&self.network, |network| &network.clients, command)
    }
}

/// Puts `file` into the shared folder `shared` under `name`, replacing what was there.
///
/// # Errors
/// It cannot be read or written.
pub fn share(shared: &Path, file: &Path, name: &str) -> Result<(), LabError> {
    let place = shared.join(name);
    let io = || LabError::io(|| format!("put {} into {}", file.display(), place.display()));
    if let Some(parent) = place.parent() {
        fs::create_dir_all(parent).map_err(io())?;
    }
    if place.exists() {
        // Removed, not overwritten: a host may be running the old one.
        fs::remove_file(&place).map_err(io())?;
    }
    // A link costs nothing; between two file systems it has to be a copy.
    fs::hard_link(file, &place).or_else(|_| fs::copy(file, &place).map(drop)).map_err(io())
}
