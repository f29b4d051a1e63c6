//! What else a node needs of its host: devices, memory, limits, io_uring, namespaces, tools.

use std::fs::OpenOptions;
use std::io;
use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

use super::Item;
use crate::config::defaults;
use crate::config::units::ByteSize;
use crate::host;

/// Files a node opens: sockets, event descriptors, vCPUs, TAPs; a few per device and vCPU, far below this.
const ENOUGH_FILES: u64 = 1024;

/// Looks at the rest of the host.
pub(super) fn look() -> Vec<Item> {
    vec![
        tun(),
        identity(),
        memory(),
        huge_pages(),
        reserved_huge_pages(),
        locked_memory(),
        open_files(),
        real_time(),
        io_uring(),
        io_uring_disks(),
        namespaces(),
        iproute2(),
    ]
}

fn tun() -> Item {
    match OpenOptions::new().read(true).write(true).open("/dev/net/tun") {
        Ok(_) => Item::ok("/dev/net/tun", "can be opened"),
        Err(error) => Item::fail(
            "/dev/net/tun",
            error.to_string(),
            "load the driver (modprobe tun); run as root, or make the TAPs for your user: ip tuntap add tap0 mode tap user USER",
        ),
    }
}

/// By what a host is told from another of the same name.
fn identity() -> Item {
    match failover::host::this_host() {
        Some(host) => Item::ok("host identity", format!("{host}, from its machine-id; no other host may have it")),
        None => Item::warn(
            "host identity",
            "there is no /etc/machine-id: another host of the same name could not be told from this one",
            "mode=shared with --fence-command needs it: systemd-machine-id-setup, or 32 hexadecimal digits of its own for each host",
        ),
    }
}

fn memory() -> Item {
    match (host::memory_total(), host::memory_available()) {
        // A standby holds the guest and room to stage all of it.
        (Ok(_), Ok(free)) if free < 2 * defaults::MEMORY => Item::warn(
            "memory",
            format!("{} MiB available", free >> 20),
            "a standby holds the guest's memory and room to stage it, twice --memory: free some, or give the guest less",
        ),
        (Ok(total), Ok(free)) => Item::ok("memory", format!("{} MiB available of {} MiB", free >> 20, total >> 20)),
        (Err(error), _) | (_, Err(error)) => Item::fail("memory", error.to_string(), "mount /proc"),
    }
}

fn huge_pages() -> Item {
    const REMEDY: &str = "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled: switching the dirty log on is then 80 times cheaper";
    match std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled") {
        Ok(text) => {
            let chosen = text.split(['[', ']']).nth(1).unwrap_or("unknown").to_owned();
            if chosen == "never" {
                Item::warn("transparent huge pages", chosen, REMEDY)
            } else {
                Item::ok("transparent huge pages", chosen)
            }
        }
        Err(error) => Item::warn("transparent huge pages", error.to_string(), "use a kernel with transparent huge pages"),
    }
}

/// Only `--backing hugepages` needs them, so none is no fault.
fn reserved_huge_pages() -> Item {
    match host::huge_pages_free() {
        Ok(0) => Item::ok("reserved huge pages", "none; --backing hugepages needs some (sysctl vm.nr_hugepages)"),
        Ok(bytes) => Item::ok("reserved huge pages", format!("{} MiB free, for --backing hugepages", bytes >> 20)),
        Err(error) => Item::ok("reserved huge pages", format!("cannot be told: {error}")),
    }
}

fn limit(resource: Resource) -> io::Result<u64> {
    Ok(getrlimit(resource)?.0)
}

fn amount(bytes: u64) -> String {
    if bytes == libc::RLIM_INFINITY { "unlimited".into() } else { ByteSize(bytes).to_string() }
}

fn locked_memory() -> Item {
    const REMEDY: &str = "raise it (ulimit -l unlimited, LimitMEMLOCK=infinity): io_uring and RDMA register their buffers";
    match limit(Resource::RLIMIT_MEMLOCK) {
        Ok(bytes) if bytes >= 2 * defaults::MEMORY => Item::ok("locked memory", amount(bytes)),
        Ok(bytes) if nix::unistd::geteuid().is_root() => Item::ok("locked memory", format!("{}, which does not bind root", amount(bytes))),
        Ok(bytes) => Item::warn("locked memory", amount(bytes), REMEDY),
        Err(error) => Item::warn("locked memory", error.to_string(), REMEDY),
    }
}

fn open_files() -> Item {
    const REMEDY: &str = "raise it (ulimit -n 4096, LimitNOFILE=4096)";
    match limit(Resource::RLIMIT_NOFILE) {
        Ok(files) if files >= ENOUGH_FILES => {
            Item::ok("open files", if files == libc::RLIM_INFINITY { "unlimited".into() } else { files.to_string() })
        }
        Ok(files) => Item::warn("open files", files.to_string(), REMEDY),
        Err(error) => Item::warn("open files", error.to_string(), REMEDY),
    }
}

/// Asks for a real-time priority on a thread that ends at once.
fn real_time() -> Item {
    let asked = std::thread::Builder::new().name("rt-probe".into()).spawn(|| {
        let parameter = libc::sched_param { sched_priority: 1 };
        // SAFETY: `parameter` is a valid sched_param for the duration of the call; 0 means the calling thread, which ends after this.
        if unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameter) } == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    });
    match asked.map(std::thread::JoinHandle::join) {
        Ok(Ok(Ok(()))) => Item::ok("real-time priority", "granted"),
        Ok(Ok(Err(error))) => Item::warn(
            "real-time priority",
            error.to_string(),
            "run as root, or allow it (ulimit -r 10, LimitRTPRIO=10): on a busy host heartbeats and commits are late without",
        ),
        Ok(Err(_)) | Err(_) => Item::warn("real-time priority", "could not be asked for", "raise the limit on threads (ulimit -u)"),
    }
}

/// A ring made as the TCP transport makes it: its flags and a wait with a time limit are what older kernels lack.
fn io_uring() -> Item {
    const REMEDY: &str =
        "use a kernel of at least 5.19 and allow it: sysctl kernel.io_uring_disabled=0, and in a container's seccomp profile";
    let made: io::Result<io_uring::IoUring> = io_uring::IoUring::builder().setup_coop_taskrun().setup_taskrun_flag().build(8);
    match made {
        Ok(ring) if !ring.params().is_feature_ext_arg() => Item::fail("io_uring", "waits without a time limit only", REMEDY),
        Ok(_) => Item::ok("io_uring", "can be made as the replication link needs it"),
        Err(error) => Item::fail("io_uring", error.to_string(), REMEDY),
    }
}

/// The operations that disks are made of.
fn io_uring_disks() -> Item {
    use io_uring::{Probe, opcode};
    const REMEDY: &str = "use a kernel of at least 5.6: --disk reads, writes, syncs and punches holes through io_uring";
    let mut probe = Probe::new();
    let asked = io_uring::IoUring::new(8).and_then(|ring| ring.submitter().register_probe(&mut probe));
    let needed = [
        ("read", opcode::Read::CODE),
        ("write", opcode::Write::CODE),
        ("fsync", opcode::Fsync::CODE),
        ("fallocate", opcode::Fallocate::CODE),
        ("poll", opcode::PollAdd::CODE),
    ];
    let missing: Vec<&str> = needed.iter().filter(|(_, code)| !probe.is_supported(*code)).map(|(name, _)| *name).collect();
    match (asked, missing.as_slice()) {
        (Err(error), _) => Item::warn("io_uring for disks", error.to_string(), REMEDY),
        (Ok(()), []) => Item::ok("io_uring for disks", "has every operation"),
        (Ok(()), missing) => Item::warn("io_uring for disks", format!("lacks {}", missing.join(", ")), REMEDY),
    }
}

/// Tries, in a child that ends at once, whether network namespaces can be made; only the demo and the tests need them.
fn namespaces() -> Item {
    let root = nix::unistd::geteuid().is_root();
    let flags = if root { CloneFlags::CLONE_NEWNET } else { CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET };
    const REMEDY: &str = "only the demo and the tests need them: run those as root, or sysctl kernel.unprivileged_userns_clone=1, \
                          user.max_user_namespaces=10000, kernel.apparmor_restrict_unprivileged_userns=0 (where these exist)";
    // SAFETY: the child only makes a system call and ends by `_exit`; it touches no lock or memory that another thread may have held.
    let tried = match unsafe { fork() } {
        Ok(ForkResult::Child) => {
            let code = unshare(flags).map_or_else(|errno| errno as i32, |()| 0);
            // SAFETY: `_exit` runs no destructors and no handlers of the parent's.
            unsafe { libc::_exit(code) }
        }
        Ok(ForkResult::Parent { child }) => waitpid(child, None).map_err(io::Error::from),
        Err(errno) => Err(errno.into()),
    };
    let name = if root { "network namespaces" } else { "user namespaces" };
    match tried {
        Ok(WaitStatus::Exited(_, 0)) => Item::ok(name, "can be made"),
        Ok(WaitStatus::Exited(_, errno)) => Item::warn(name, io::Error::from_raw_os_error(errno).to_string(), REMEDY),
        Ok(other) => Item::warn(name, format!("{other:?}"), REMEDY),
        Err(error) => Item::warn(name, error.to_string(), REMEDY),
    }
}

fn iproute2() -> Item {
    match Command::new("ip").arg("-V").stdout(Stdio::piped()).stderr(Stdio::null()).output() {
        Ok(output) if output.status.success() => Item::ok("iproute2", String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        Ok(output) => Item::warn("iproute2", output.status.to_string(), "apt-get install iproute2 (only the demo and the tests need it)"),
        Err(error) => Item::warn("iproute2", error.to_string(), "apt-get install iproute2 (only the demo and the tests need it)"),
    }
}
