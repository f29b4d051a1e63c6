//! Network namespaces that leave nothing behind, and the user namespace that lets a normal user make them.
//!
//! A namespace is made by a throw-away thread and held by a file descriptor only. The kernel removes it, with every interface in it, when the
//! last process and descriptor that use it are gone: on a normal end, on Ctrl-C and on SIGKILL alike. No name is ever written anywhere.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};

use nix::sched::{CloneFlags, setns, unshare};

/// Why a namespace could not be made or used.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// The kernel refused a network namespace.
    #[error("cannot make a network namespace: {source}; run as root, or where unprivileged user namespaces are allowed")]
    Make {
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel refused a user namespace.
    #[error(
        "cannot make a user namespace: {source}; run as root, or let normal users make them: \
         sysctl kernel.unprivileged_userns_clone=1 (Debian), user.max_user_namespaces=10000, \
         kernel.apparmor_restrict_unprivileged_userns=0 (where these exist)"
    )]
    User {
        /// What the kernel said.
        source: io::Error,
    },
    /// This process's user could not be mapped to root in the new user namespace.
    #[error("cannot write {path} in the new user namespace: {source}; run as root")]
    Map {
        /// The file.
        path: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A thread or process could not be started in the namespace.
    #[error("cannot start {what} in a network namespace: {source}")]
    Start {
        /// What was to be started.
        what: String,
        /// What the system said.
        source: io::Error,
    },
}

/// A network namespace, alive as long as this value or a process in it.
#[derive(Debug)]
pub struct Namespace {
    fd: OwnedFd,
}

impl Namespace {
    /// Makes an empty network namespace with IPv6 off, so that nothing but what is put there ever speaks.
    ///
    /// # Errors
    /// No permission, or no thread or descriptor to be had.
    pub fn new() -> Result<Namespace, NamespaceError> {
        let made = std::thread::Builder::new()
            .name("make-netns".into())
            .spawn(|| -> io::Result<File> {
                unshare(CloneFlags::CLONE_NEWNET)?;
                for scope in ["all", "default"] {
                    // A kernel without IPv6 has nothing to switch off.
                    let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6"), "1");
                }
                File::open("/proc/thread-self/ns/net")
            })
            .map_err(|source| NamespaceError::Start { what: "a thread".into(), source })?
            .join();
        match made {
            Ok(Ok(file)) => Ok(Namespace { fd: file.into() }),
            Ok(Err(source)) => Err(NamespaceError::Make { source }),
            Err(_) => Err(NamespaceError::Make { source: io::Error::other("the thread that made it panicked") }),
        }
    }

    /// A namespace that another process holds, by a path such as `/proc/PID/fd/N`.
    ///
    /// # Errors
    /// The path cannot be opened.
    pub fn open(path: &Path) -> Result<Namespace, NamespaceError> {
        let failed = |source| NamespaceError::Start { what: format!("something by {}", path.display()), source };
        Ok(Namespace { fd: File::open(path).map_err(failed)?.into() })
    }

    /// Runs `work` on a thread in the namespace and waits for its answer.
    ///
    /// # Errors
    /// No thread, or the namespace cannot be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NamespaceError> {
        let failed = |source| NamespaceError::Start { what: "a thread".into(), source };
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new()
                .name("in-netns".into())
                .spawn_scoped(scope, || -> io::Result<T> {
                    setns(&self.fd, CloneFlags::CLONE_NEWNET)?;
                    Ok(work())
                })
                .map_err(failed)?;
            match thread.join() {
                Ok(answer) => answer.map_err(failed),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Moves the calling thread into the namespace for good; threads it starts later follow it.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn enter(&self) -> Result<(), NamespaceError> {
        setns(&self.fd, CloneFlags::CLONE_NEWNET).map_err(|e| NamespaceError::Start { what: "a thread".into(), source: e.into() })
    }

    /// Starts `command` in the namespace. The process is killed by the kernel when the thread that called this ends, however it ends; start
    /// what must last from a thread that lasts. It gets a process group of its own: Ctrl-C reaches the caller, who decides.
    ///
    /// # Errors
    /// The program is missing or cannot be started.
    pub fn spawn(&self, command: &mut Command) -> Result<Child, NamespaceError> {
        self.spawn_with(command, &[])
    }

    /// As [`Self::spawn`], with the namespaces `others` open in the process under the numbers that [`Self::path`] names.
    ///
    /// # Errors
    /// As [`Self::spawn`].
    pub fn spawn_with(&self, command: &mut Command, others: &[&Namespace]) -> Result<Child, NamespaceError> {
        let fd = self.fd.as_raw_fd();
        let inherited: Vec<RawFd> = others.iter().map(|n| n.fd.as_raw_fd()).collect();
        let parent = nix::unistd::getpid().as_raw();
        command.process_group(0);
        // SAFETY: between fork and exec the closure makes system calls only; it neither allocates nor takes locks (`inherited` was
        // allocated before), so it is safe in the child of a process with threads.
        unsafe {
            command.pre_exec(move || {
                if libc::setns(fd, libc::CLONE_NEWNET) != 0 {
                    return Err(io::Error::last_os_error());
                }
                for &fd in &inherited {
                    if libc::fcntl(fd, libc::F_SETFD, 0) != 0 {
                        return Err(io::Error::last_os_error());
                    }
                }
                if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                    return Err(io::Error::last_os_error());
                }
                // The parent may have died before the line above: then no signal will ever come.
                if libc::getppid() != parent {
                    libc::_exit(1);
                }
                Ok(())
            });
        }
        let what = || command.get_program().to_string_lossy().into_owned();
        let name = what();
        command.spawn().map_err(|source| NamespaceError::Start { what: name, source })
    }

    /// A path to the namespace for a process started by [`Self::spawn_with`] that has it among `others`.
    #[must_use]
    pub fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.fd.as_raw_fd())
    }
}

/// Makes the calling process root of a new user namespace, so that it may make network namespaces. Must be called before any thread is started.
///
/// # Errors
/// The kernel does not let this user make one, or there are threads already.
pub fn become_root_of_user_namespace() -> Result<(), NamespaceError> {
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    unshare(CloneFlags::CLONE_NEWUSER).map_err(|e| NamespaceError::User { source: e.into() })?;
    let write = |path: &'static str, text: String| std::fs::write(path, text).map_err(|source| NamespaceError::Map { path, source });
    write("/proc/self/setgroups", "deny".into())?;
    write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    write("/proc/self/gid_map", format!("0 {gid} 1"))
}
