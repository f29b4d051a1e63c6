//! A lab host: a QEMU machine (TCG with emulated AMD-V) that runs a stock Debian kernel, with the real machine's root under an overlay in memory.
//!
//! `/arbiter` is common to all hosts too, by virtiofs, whose locks hold between hosts: the 9p server of QEMU grants every lock to everybody, so that a
//! compare-and-swap on `/shared` would be none.
//!
//! What it has: `/shared` (common to all hosts and to the real machine, every write seen at once), `/dev/vda` (its copy of the stock guest's root
//! disk), `/data` (its own file system), `br0` with `eth2`, and `tap0` in it for a guest. Disks outlive the host's death; memory does not.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::json;

use crate::agent::{Agent, Output};
use crate::command::{run, tail};
use crate::error::LabError;
use crate::net::{Net, Network, REPLICATION_MTU, address};
use crate::prepare::Prepared;
use crate::qmp;
use crate::run_dir::note_process;
use crate::spawner::Spawner;
use crate::storage::Storage;

/// A host is ready 3.5 s after its start on an idle machine; three at once on two busy cores take longer.
pub const READY_BOUND: Duration = Duration::from_secs(90);
/// Commands that do nothing heavy.
pub const EXEC_BOUND: Duration = Duration::from_secs(30);
/// The target needs 2 s, an initiator 4 on an idle machine, and waits for the target, which is started with it.
const STORAGE_BOUND: Duration = READY_BOUND;
/// Time limit of what QEMU's tools do with an image.
const IMAGE_BOUND: Duration = Duration::from_secs(20);
const TICK: Duration = Duration::from_millis(20);
/// Bytes of a console shown when a host does not come up.
const SHOWN: usize = 2000;
/// What the agent prints when it can be talked to.
const LISTENING: &str = "agent: listening";
/// Boot parameters that spare seconds under emulation and change nothing that is tested. `kvm_amd` without AVIC: QEMU emulates none.
const KERNEL_PARAMETERS: &str = "console=ttyS0 quiet mitigations=off tsc=reliable no_timer_check nokaslr audit=0 apparmor=0 panic=-1 8250.nr_uarts=1 \
     random.trust_cpu=on cryptomgr.notests=1";
/// Run once in a host that has come up: what Lockstep finds on a real host.
const SET_UP: &str = "ip tuntap add tap0 mode tap && ip link set tap0 master br0 up && test -c /dev/kvm && mountpoint -q /lib/modules && mountpoint -q /arbiter";

/// Makes the RDMA device rxe0 on the replication network (rdma-link(8)). Without the checksum modules the driver cannot make it.
pub const SOFT_ROCE: &str = "set -e; modprobe -a crc32_pclmul crc32_generic crc32c_generic rdma_rxe rdma_ucm
rdma link show rxe0/1 >/dev/null 2>&1 || rdma link add rxe0 type rxe netdev eth1
until rdma link show rxe0/1 | grep -q ACTIVE; do sleep 0.05; done; rdma link show rxe0/1";

/// What hosts are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostOptions {
    /// Virtual CPUs. One: with two hosts on two cores more only slow each other down.
    pub cpus: u8,
    /// Memory.
    pub memory_mib: u32,
    /// QEMU's `-cpu`. It must have AMD-V. Without ERMS: TCG carries out `rep movsb` byte by byte, and kernels and C libraries copy pages with it
    /// wherever a processor calls it fast.
    pub cpu: &'static str,
    /// What it is to the lab's storage.
    pub storage: Storage,
    /// Further words on its kernel's command line.
    pub parameters: &'static str,
}

impl Default for HostOptions {
    fn default() -> HostOptions {
        HostOptions { cpus: 1, memory_mib: 1024, cpu: "max,+svm,-erms", storage: Storage::None, parameters: "" }
    }
}

/// One host. Killed when dropped.
#[derive(Debug)]
pub struct Host {
    number: u8,
    name: String,
    options: HostOptions,
    directory: PathBuf,
    network: Arc<Network>,
    prepared: Arc<Prepared>,
    spawner: Arc<Spawner>,
    qemu: Option<Child>,
    /// Serves `/arbiter`; ends by itself when QEMU does.
    file_server: Option<Child>,
    /// How often it was started: consoles of earlier lives are kept.
    lives: u32,
}

impl Host {
    /// Host `number` of the lab in `directory`, with fresh disks; not started yet.
    ///
    /// # Errors
    /// Its disks cannot be made.
    pub fn new(
        number: u8,
        options: HostOptions,
        directory: &Path,
        network: &Arc<Network>,
        prepared: &Arc<Prepared>,
        spawner: &Arc<Spawner>,
    ) -> Result<Host, LabError> {
        let host = Host {
            number,
            name: format!("h{number}"),
            options,
            directory: directory.to_owned(),
            network: Arc::clone(network),
            prepared: Arc::clone(prepared),
            spawner: Arc::clone(spawner),
            qemu: None,
            file_server: None,
            lives: 0,
        };
        for (disk, image) in [("vda", &prepared.guest_image), ("vdb", &prepared.data_disk)] {
            let mut create = Command::new("qemu-img");
            create.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]).arg(image).arg(host.file(&format!("{disk}.qcow2")));
            run(&mut create, IMAGE_BOUND)?;
        }
        Ok(host)
    }

    /// 1, 2 or 3.
    #[must_use]
    pub fn number(&self) -> u8 {
        self.number
    }

    /// `h1`, `h2` or `h3`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it is made of.
    #[must_use]
    pub fn options(&self) -> HostOptions {
        self.options
    }

    fn file(&self, suffix: &str) -> PathBuf {
        self.directory.join(format!("{}.{suffix}", self.name))
    }

    /// What the host's kernel and agent have printed in this life.
    #[must_use]
    pub fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.file("console.log")).unwrap_or_default()).into_owned()
    }

    fn arguments(&self) -> Vec<String> {
        let (name, number, prepared) = (&self.name, self.number, &self.prepared);
        let share = |tag: &str, path: &Path, more: &str| {
            let path = path.display().to_string().replace(',', ",,");
            [
                "-fsdev".to_owned(),
                format!("local,id={tag},path={path},security_model=none{more}"),
                "-device".to_owned(),
                format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}"),
            ]
        };
        let mut arguments: Vec<String> = [
            "-name",
            name,
            "-machine",
            "q35,hpet=off,memory-backend=memory",
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            self.options.cpu,
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
            "-rtc",
            "base=utc,clock=host",
        ]
        .map(str::to_owned)
        .to_vec();
        arguments.extend(["-smp".into(), self.options.cpus.to_string(), "-m".into(), self.options.memory_mib.to_string()]);
        // What the file server works on must be shared memory.
        let memory = format!("memory-backend-memfd,id=memory,size={}M,share=on", self.options.memory_mib);
        arguments.extend([
            "-object".into(),
            memory,
            "-chardev".into(),
            format!("socket,id=arbiter,abstract=on,path={}", self.arbiter_socket()),
        ]);
        arguments.extend(["-device".into(), "vhost-user-fs-pci,chardev=arbiter,tag=arbiter".into()]);
        arguments.extend(["-kernel".into(), prepared.host.kernel.vmlinux.display().to_string()]);
        arguments.extend(["-initrd".into(), prepared.host.initramfs.display().to_string()]);
        arguments.extend([
            "-append".into(),
            format!("{KERNEL_PARAMETERS} lab.id={number} lab.mtu={REPLICATION_MTU} {}", self.options.parameters),
        ]);
        // Relative to the run's directory: a socket's path may only be 107 bytes long.
        arguments.extend([
            "-serial".into(),
            format!("file:{name}.console.log"),
            "-qmp".into(),
            format!("unix:{name}.qmp,server=on,wait=off"),
        ]);
        arguments.extend(share("root", Path::new("/"), ",readonly=on,multidevs=remap"));
        arguments.extend(share("kmod", &prepared.host.kernel.modules, ",readonly=on"));
        arguments.extend(share("shared", &self.directory.join("shared"), ""));
        for net in Net::ALL {
            let (port, mac) = (net.port(number), net.mac(number));
            arguments.extend(["-netdev".into(), format!("tap,id={port},ifname={port},script=no,downscript=no")]);
            let mtu = if net == Net::Replication { format!(",host_mtu={REPLICATION_MTU}") } else { String::new() };
            arguments.extend(["-device".into(), format!("virtio-net-pci,id=card-{port},netdev={port},mac={mac},romfile={mtu}")]);
        }
        for disk in ["vda", "vdb"] {
            // unsafe: a flush moves everything from QEMU to this machine's page cache, and no further. That is what a flush must do to outlive the host,
            // whose power cut is the end of its QEMU; a sync of this machine's disk would only make the guest wait for whatever else is going on here.
            let options = "format=qcow2,discard=unmap,cache=unsafe";
            arguments.extend(["-drive".into(), format!("if=none,id={disk},file={name}.{disk}.qcow2,{options}")]);
            arguments.extend(["-device".into(), format!("virtio-blk-pci,drive={disk},serial={disk}")]);
        }
        arguments
    }

    /// An abstract socket's name: it is known in the lab's own network namespace only.
    fn arbiter_socket(&self) -> String {
        format!("{}-arbiter", self.name)
    }

    /// Starts what serves `/arbiter`, on a socket that QEMU will connect to.
    fn start_file_server(&mut self) -> Result<(), LabError> {
        let io = |what: &str| {
            let what = format!("{what} for {}", self.name);
            LabError::io(move || what)
        };
        let source = self.directory.join("arbiter");
        fs::create_dir_all(&source).map_err(io("make the arbiter's directory"))?;
        let log = self.file("virtiofsd.log");
        let log = File::create(&log).map_err(io("make a log"))?;
        let bind = || SocketAddr::from_abstract_name(self.arbiter_socket()).and_then(|address| UnixListener::bind_addr(&address));
        let listener = self.network.switch.run(bind)?.map_err(io("listen on a socket"))?;
        let mut command = Command::new("/usr/lib/qemu/virtiofsd");
        command.args(["--fd=0", "-f", "-o", "flock", "-o", "cache=none", "-o", "sandbox=chroot", "-o", "log_level=warn", "-o"]);
        command.arg(format!("source={}", source.display())).stdin(OwnedFd::from(listener)).stdout(Stdio::null()).stderr(log);
        // One of an earlier life has ended with its QEMU; its remains are collected here.
        if let Some(mut earlier) = self.file_server.take() {
            let _ = earlier.kill();
            let _ = earlier.wait();
        }
        self.file_server = Some(self.spawner.spawn(&self.network, |network| &network.switch, command)?);
        Ok(())
    }

    /// Switches the host on. It has nothing of an earlier life but its disks.
    ///
    /// # Errors
    /// It runs already, or QEMU cannot be started.
    pub fn start(&mut self) -> Result<(), LabError> {
        self.switch_on().map_err(LabError::trouble)
    }

    fn switch_on(&mut self) -> Result<(), LabError> {
        if self.is_alive() {
            return Err(LabError::Found(format!("{} runs already", self.name)));
        }
        let console = self.file("console.log");
        if console.exists() {
            let earlier = self.file(&format!("console-{}.log", self.lives));
            fs::rename(&console, &earlier).map_err(LabError::io(|| format!("rename {}", console.display())))?;
        }
        self.lives += 1;
        self.start_file_server()?;
        let log = self.file("qemu.log");
        let log = File::create(&log).map_err(LabError::io(|| format!("make {}", log.display())))?;
        let mut command = Command::new("qemu-system-x86_64");
        command.args(self.arguments()).current_dir(&self.directory).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = self.spawner.spawn(&self.network, |network| &network.switch, command)?;
        note_process(&self.file("pid"), child.id() as i32)?;
        self.qemu = Some(child);
        Ok(())
    }

    /// Whether its QEMU runs (or hangs).
    pub fn is_alive(&mut self) -> bool {
        self.qemu.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    fn dead(&self) -> LabError {
        let said = fs::read_to_string(self.file("qemu.log")).unwrap_or_default();
        LabError::Dead { host: self.name.clone(), why: format!("{said}{}", tail(&self.console(), SHOWN)) }
    }

    /// Waits until commands can be run in it; its clock is then the real machine's.
    ///
    /// # Errors
    /// It ends, or is not ready in time: the end of its console is in the error.
    pub fn wait_ready(&mut self, bound: Duration) -> Result<(), LabError> {
        self.come_up(bound).map_err(LabError::trouble)
    }

    fn come_up(&mut self, bound: Duration) -> Result<(), LabError> {
        let deadline = Instant::now() + bound;
        while !self.console().contains(LISTENING) {
            if !self.is_alive() {
                return Err(self.dead());
            }
            if Instant::now() >= deadline {
                let detail = format!("; its console:\n{}", tail(&self.console(), SHOWN));
                return Err(LabError::Late { what: format!("{} being ready", self.name), bound, detail });
            }
            std::thread::sleep(TICK);
        }
        self.agent().must(SET_UP, EXEC_BOUND)?;
        self.agent().set_clock(EXEC_BOUND)?;
        self.options.storage.script().map_or(Ok(()), |script| self.agent().must(&script, STORAGE_BOUND).map(drop))
    }

    /// The host's agent.
    #[must_use]
    pub fn agent(&self) -> Agent<'_> {
        Agent {
            namespace: &self.network.switch,
            // Every host has one.
            address: address(Net::Management, self.number).unwrap_or(std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED)),
            place: &self.name,
        }
    }

    /// Runs a script for at most `bound`.
    ///
    /// # Errors
    /// The host does not answer, which is trouble of the lab's. How the script ends is no error.
    pub fn exec(&self, script: &str, bound: Duration) -> Result<Output, LabError> {
        self.agent().exec(script, bound).map_err(LabError::trouble)
    }

    /// Runs a script that must end well, for at most [`EXEC_BOUND`]; its standard output.
    ///
    /// # Errors
    /// The host does not answer, or the script fails.
    pub fn must(&self, script: &str) -> Result<String, LabError> {
        self.agent().must(script, EXEC_BOUND).map_err(|error| match error {
            // What a script finds is its writer's business.
            LabError::Remote { .. } => error,
            unanswered => unanswered.trouble(),
        })
    }

    /// Gives the host an RDMA device: soft RoCE on its replication network. Once for each time that it was started; does nothing the second time.
    ///
    /// # Errors
    /// Its kernel has none.
    pub fn soft_roce(&self) -> Result<(), LabError> {
        self.must(SOFT_ROCE).map(drop)
    }

    /// Starts `command` (a line for the shell) in the background, with its output in `log` (a path in the host); its process number there.
    ///
    /// # Errors
    /// The host does not answer.
    pub fn spawn(&self, command: &str, log: &str) -> Result<u32, LabError> {
        let said = self.must(&format!("setsid sh -c {} >>{log} 2>&1 </dev/null & echo $!", quoted(&format!("exec {command}"))))?;
        said.trim().parse().map_err(|_| LabError::Found(format!("{}: no process number but {said:?}", self.name)))
    }

    fn signal(&mut self, signal: Signal) -> Result<Pid, LabError> {
        let dead = || LabError::Dead { host: self.name.clone(), why: format!("it cannot be sent {signal}") }.trouble();
        // The child is ours and not reaped while this value has not seen it end, so the number cannot belong to another process.
        let pid = self.qemu.as_ref().map(|child| Pid::from_raw(child.id() as i32)).ok_or_else(dead)?;
        kill(pid, signal)
            .map_err(|errno| LabError::Io { what: format!("send {signal} to QEMU of {}", self.name), source: errno.into() })?;
        Ok(pid)
    }

    /// The host dies: SIGKILL, as by a power cut (what it has written to its disks stays). Reaped when this returns.
    ///
    /// # Errors
    /// It is not running.
    pub fn kill(&mut self) -> Result<(), LabError> {
        self.signal(Signal::SIGKILL)?;
        if let Some(mut child) = self.qemu.take() {
            child.wait().map_err(LabError::io(|| format!("wait for QEMU of {}", self.name)))?;
        }
        Ok(())
    }

    /// The host stops in its tracks (SIGSTOP), and stands still when this returns.
    ///
    /// # Errors
    /// It is not running.
    pub fn hang(&mut self) -> Result<(), LabError> {
        let pid = self.signal(Signal::SIGSTOP)?;
        match waitpid(pid, Some(WaitPidFlag::WUNTRACED)) {
            Ok(WaitStatus::Stopped(..)) => Ok(()),
            _ => Err(self.dead().trouble()),
        }
    }

    /// A host that hangs goes on as if nothing had happened.
    ///
    /// # Errors
    /// It is not running.
    pub fn wake(&mut self) -> Result<(), LabError> {
        self.signal(Signal::SIGCONT).map(drop)
    }

    /// Takes the carrier of one of its cards away, or gives it back. The other hosts' cards keep theirs.
    ///
    /// # Errors
    /// QEMU refuses.
    pub fn set_carrier(&self, net: Net, up: bool) -> Result<(), LabError> {
        let arguments = json!({"name": format!("card-{}", net.port(self.number)), "up": up});
        qmp::command(&self.name, &self.file("qmp"), "set_link", &arguments).map(drop).map_err(LabError::trouble)
    }

    /// A disk of the host, `vda` or `vdb`, answers nothing any more, for as long as this life lasts: its throughput is one byte a second.
    ///
    /// # Errors
    /// QEMU refuses.
    pub fn hang_disk(&self, disk: &str) -> Result<(), LabError> {
        self.throttle(disk, 1, 0)
    }

    /// A disk of the host takes no more than `requests` a second, for as long as this life lasts.
    ///
    /// # Errors
    /// QEMU refuses.
    pub fn slow_disk(&self, disk: &str, requests: u32) -> Result<(), LabError> {
        self.throttle(disk, 0, requests)
    }

    /// At most so many bytes and requests a second; 0: as many as there are.
    fn throttle(&self, disk: &str, bytes: u32, requests: u32) -> Result<(), LabError> {
        let arguments = json!({"device": disk, "bps": bytes, "bps_rd": 0, "bps_wr": 0, "iops": requests, "iops_rd": 0, "iops_wr": 0});
        qmp::command(&self.name, &self.file("qmp"), "block_set_io_throttle", &arguments).map(drop).map_err(LabError::trouble)
    }

    /// Takes one of its cards out of the switch, or puts it back: silence in both directions, and everybody keeps the carrier.
    ///
    /// # Errors
    /// `ip` fails.
    pub fn set_plugged(&self, net: Net, plugged: bool) -> Result<(), LabError> {
        self.network.set_plugged(net, self.number, plugged).map_err(LabError::trouble)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // These fail only for what has ended already.
        let _ = self.kill();
        if let Some(mut server) = self.file_server.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

/// `text` as one word for a shell.
#[must_use]
pub fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quoted_text_is_one_word() {
        let output = Command::new("sh").args(["-c", &format!("printf %s {}", quoted("a 'b' $c"))]).output().expect("sh");
        assert_eq!(output.stdout, b"a 'b' $c");
    }
}
