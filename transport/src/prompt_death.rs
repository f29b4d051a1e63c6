//! Makes the death of this process visible to its peer at once. Lives here: the holder. Not here: noticing a peer's death.
//!
//! Linux frees a dying process's memory before it closes its sockets, and destroys a virtual machine when it closes that one's descriptors, which may come before the
//! sockets too. With a guest of 512 MiB in small pages the peer sees the connection end 150 ms after the kill (measured; 230 ms for 1 GiB); destroying a machine
//! takes 16 to 21 ms. So a second process shares the memory and holds the machine's descriptors, and nothing else: the dying process is then not their last
//! user and goes on to close its sockets within 0.1 ms. Memory and machine are freed afterwards, when the holder ends.

use std::io;
use std::os::fd::RawFd;
use std::sync::OnceLock;

use crate::error::TransportError;
use crate::map::Map;

/// Stack of the holder: it makes a few system calls and sleeps.
const STACK_BYTES: usize = 64 * 1024;

/// The holder's stack, kept for the life of the process: the holder runs on it.
static STACK: OnceLock<Map> = OnceLock::new();

/// What the holder is told; lives as long as the process.
struct Told {
    parent: libc::pid_t,
    /// Descriptors that it keeps, ascending.
    keep: Vec<RawFd>,
}

/// Starts the holder, once per process; later calls do nothing. It keeps the memory and the descriptors in `keep` (those of the virtual machine) and closes its copies
/// of all others. Call it from the main thread, before the link's sockets exist. The holder is a child with all signals blocked.
///
/// # Errors
/// [`TransportError::Io`] when the process cannot be made; the link works without it, its end is only seen later.
pub fn hold(keep: &[RawFd]) -> Result<(), TransportError> {
    let mut error = None;
    STACK.get_or_init(|| {
        let stack = Map::new(STACK_BYTES);
        match stack.and_then(|stack| start(&stack, keep).map(|()| stack)) {
            Ok(stack) => stack,
            Err(e) => {
                error = Some(e);
                Map::empty()
            }
        }
    });
    error.map_or(Ok(()), Err)
}

fn start(stack: &Map, keep: &[RawFd]) -> Result<(), TransportError> {
    use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};
    let failed = |source: io::Error| TransportError::Io { what: "starting the process that holds the guest's memory".into(), source };
    let mut before = SigSet::empty();
    // The holder inherits the mask: with everything blocked no handler of this program ever runs in it.
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before)).map_err(|e| failed(e.into()))?;
    // SAFETY: the end of the mapping, page aligned: where a stack that grows down begins.
    let top = unsafe { stack.base().add(stack.len()) };
    let mut keep = keep.to_vec();
    keep.sort_unstable();
    // Never freed: the holder reads it at its start, whenever that is.
    let told: &'static Told = Box::leak(Box::new(Told { parent: std::process::id() as libc::pid_t, keep }));
    // SAFETY: `holder` runs on a stack of its own that is never unmapped, in a process that shares this one's memory. It only makes system calls (by `raw_syscall`,
    // which writes no errno: that would be this thread's), never returns, allocates nothing and takes no lock.
    let pid = unsafe { libc::clone(holder, top.cast(), libc::CLONE_VM, std::ptr::from_ref(told).cast_mut().cast()) };
    let started = if pid < 0 { Err(failed(io::Error::last_os_error())) } else { Ok(()) };
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None).map_err(|e| failed(e.into()))?;
    started
}

extern "C" fn holder(told: *mut libc::c_void) -> libc::c_int {
    // SAFETY: `start` passes a `Told` that is never freed or written.
    let told = unsafe { &*told.cast::<Told>() };
    let mut next: RawFd = 0;
    for keep in &told.keep {
        close_range(next, keep.wrapping_sub(1));
        next = keep.wrapping_add(1);
    }
    close_range(next, RawFd::MAX);
    // Readable when the parent's last thread is gone, after its files are closed. The parent-death signal would come when its main thread dies, and whichever thread
    // dies last would free the memory before it closes the files.
    let parent = raw_syscall(libc::SYS_pidfd_open, [told.parent as usize, 0, 0, 0]);
    if parent >= 0 {
        let mut fd = libc::pollfd { fd: parent as RawFd, events: libc::POLLIN, revents: 0 };
        if raw_syscall(libc::SYS_getppid, [0; 4]) == told.parent as isize {
            raw_syscall(libc::SYS_poll, [&raw mut fd as usize, 1, usize::MAX, 0]);
        }
        raw_syscall(libc::SYS_exit, [0; 4]);
    }
    // Before Linux 5.3: earlier than need be, but never too late.
    raw_syscall(libc::SYS_prctl, [libc::PR_SET_PDEATHSIG as usize, libc::SIGKILL as usize, 0, 0]);
    // Had the parent died before that, nobody would tell.
    if raw_syscall(libc::SYS_getppid, [0; 4]) != told.parent as isize {
        raw_syscall(libc::SYS_exit, [0; 4]);
    }
    loop {
        raw_syscall(libc::SYS_pause, [0; 4]);
    }
}

fn close_range(first: RawFd, last: RawFd) {
    if first <= last {
        raw_syscall(libc::SYS_close_range, [first as usize, last as usize, 0, 0]);
    }
}

/// A system call that leaves errno alone; the kernel's answer as it is.
fn raw_syscall(number: libc::c_long, arguments: [usize; 4]) -> isize {
    let [one, two, three, four] = arguments;
    let result: isize;
    // SAFETY: the x86-64 system call convention (Linux, Documentation/arch/x86/entry_64.rst; syscall(2)): number in rax, arguments in rdi, rsi, rdx, r10, answer in
    // rax, rcx and r11 lost. What the calls above do with their arguments is argued there; the one pointer among them is to a `pollfd` that outlives the call.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") one,
            in("rsi") two,
            in("rdx") three,
            in("r10") four,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack)
        );
    }
    result
}
