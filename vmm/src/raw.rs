//! The few calls that neither kvm-ioctls nor the standard library has, each with a safe face: the shared page of a vCPU, kicking a thread out of
//! `KVM_RUN`, XSAVE2, SREGS2, vCPU attributes, and advice about memory.
//!
//! Not here: when to use them. Guards S5 through its size checks.

use std::{
    io,
    os::fd::{AsRawFd, RawFd},
    ptr::NonNull,
    sync::atomic::{AtomicI32, AtomicU8, Ordering},
};

use kvm_bindings::{KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, KVMIO, kvm_device_attr, kvm_run, kvm_sregs2, kvm_xsave};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::{
    ioctl::{ioctl_with_mut_ptr, ioctl_with_mut_ref, ioctl_with_ptr, ioctl_with_ref},
    ioctl_ior_nr, ioctl_iow_nr,
};

ioctl_ior_nr!(KVM_GET_XSAVE2, KVMIO, 0xcf, kvm_xsave);
ioctl_ior_nr!(KVM_GET_XSAVE, KVMIO, 0xa4, kvm_xsave);
ioctl_iow_nr!(KVM_SET_XSAVE, KVMIO, 0xa5, kvm_xsave);
ioctl_ior_nr!(KVM_GET_SREGS2, KVMIO, 0xcc, kvm_sregs2);
ioctl_iow_nr!(KVM_SET_SREGS2, KVMIO, 0xcd, kvm_sregs2);
ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);

/// Bytes that `KVM_GET_XSAVE` writes, and that `KVM_SET_XSAVE` reads at least.
pub(crate) const XSAVE_MIN: usize = 4096;

fn check(ret: libc::c_int) -> io::Result<libc::c_int> {
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(ret) }
}

/// A vCPU's extended state, `size` bytes of it (what `KVM_CAP_XSAVE2` answers on this VM; 0 where there is no such capability).
pub(crate) fn get_xsave(vcpu: &VcpuFd, size: usize) -> io::Result<Vec<u32>> {
    let bytes = size.max(XSAVE_MIN);
    let mut area = vec![0u32; bytes.div_ceil(4)];
    let request = if size > 0 { KVM_GET_XSAVE2() } else { KVM_GET_XSAVE() };
    // SAFETY: the kernel writes `size` bytes for XSAVE2 and 4096 for XSAVE; the buffer has room for both.
    check(unsafe { ioctl_with_mut_ptr(vcpu, request, area.as_mut_ptr()) })?;
    Ok(area)
}

/// Sets a vCPU's extended state; `size` as in [`get_xsave`], of the VM it is set into.
pub(crate) fn set_xsave(vcpu: &VcpuFd, size: usize, area: &[u32]) -> io::Result<()> {
    if area.len() * 4 < size.max(XSAVE_MIN) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: the kernel reads max(4096, what XSAVE2 says for this VM) bytes; the slice is that long, as checked above.
    check(unsafe { ioctl_with_ptr(vcpu, KVM_SET_XSAVE(), area.as_ptr()) }).map(drop)
}

/// Segment and control registers with the PAE page directory pointers.
pub(crate) fn get_sregs2(vcpu: &VcpuFd) -> io::Result<kvm_sregs2> {
    let mut sregs = kvm_sregs2::default();
    // SAFETY: the kernel fills exactly the structure given.
    check(unsafe { ioctl_with_mut_ref(vcpu, KVM_GET_SREGS2(), &mut sregs) })?;
    Ok(sregs)
}

/// Sets what [`get_sregs2`] gave.
pub(crate) fn set_sregs2(vcpu: &VcpuFd, sregs: &kvm_sregs2) -> io::Result<()> {
    // SAFETY: the kernel reads exactly the structure given.
    check(unsafe { ioctl_with_ref(vcpu, KVM_SET_SREGS2(), sregs) }).map(drop)
}

fn tsc_offset_attr(value: *mut u64) -> kvm_device_attr {
    kvm_device_attr { flags: 0, group: KVM_VCPU_TSC_CTRL, attr: u64::from(KVM_VCPU_TSC_OFFSET), addr: value as u64 }
}

/// What the vCPU's TSC adds to the host's (modulo 2^64).
pub(crate) fn get_tsc_offset(vcpu: &VcpuFd) -> io::Result<u64> {
    let mut value = 0u64;
    let attr = tsc_offset_attr(&raw mut value);
    // SAFETY: `addr` points at a u64 that outlives the call, which is what this attribute writes.
    check(unsafe { ioctl_with_ref(vcpu, KVM_GET_DEVICE_ATTR(), &attr) })?;
    Ok(value)
}

/// Sets what [`get_tsc_offset`] gave.
pub(crate) fn set_tsc_offset(vcpu: &VcpuFd, offset: u64) -> io::Result<()> {
    let mut value = offset;
    let attr = tsc_offset_attr(&raw mut value);
    // SAFETY: `addr` points at a u64 that outlives the call, which is what this attribute reads.
    check(unsafe { ioctl_with_ref(vcpu, KVM_SET_DEVICE_ATTR(), &attr) }).map(drop)
}

/// The host's time stamp counter.
pub(crate) fn host_tsc() -> u64 {
    // SAFETY: RDTSC has no precondition on x86-64 in user mode (Linux leaves CR4.TSD clear unless a process asks for it).
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// 16 random bytes.
pub(crate) fn random_id() -> io::Result<[u8; 16]> {
    let mut id = [0u8; 16];
    // SAFETY: the kernel writes at most the 16 bytes given; requests of up to 256 bytes are not cut short (getrandom(2)).
    let got = unsafe { libc::getrandom(id.as_mut_ptr().cast(), id.len(), 0) };
    if got == id.len() as isize { Ok(id) } else { Err(io::Error::last_os_error()) }
}

/// Asks for transparent huge pages; the answer does not matter, only speed does.
pub(crate) fn advise_huge_pages(address: *mut u8, bytes: usize) {
    // SAFETY: advice about a mapping that the caller owns; it changes no contents.
    unsafe { libc::madvise(address.cast(), bytes, libc::MADV_HUGEPAGE) };
}

/// The first page of a vCPU's `kvm_run`, mapped a second time, so that other threads can set `immediate_exit` for as long as they hold this.
pub(crate) struct RunPage {
    page: NonNull<kvm_run>,
}

// SAFETY: the mapping is owned by this value and is only accessed through an atomic.
unsafe impl Send for RunPage {}
// SAFETY: as above: every access is atomic.
unsafe impl Sync for RunPage {}

impl RunPage {
    pub(crate) fn new(vcpu: RawFd) -> io::Result<RunPage> {
        // SAFETY: a fresh shared mapping of one page at the start of a vCPU's file; nothing existing is replaced.
        let address = unsafe {
            libc::mmap(std::ptr::null_mut(), types::PAGE_SIZE, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, vcpu.as_raw_fd(), 0)
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(address.cast()).map(|page| RunPage { page }).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))
    }

    /// Makes `KVM_RUN` return at once (or run again): the flag that closes the window between looking at a request and entering the guest.
    pub(crate) fn set_immediate_exit(&self, on: bool) {
        // SAFETY: `immediate_exit` is a byte inside the mapping, which lives as long as `self`; all our accesses to it are atomic.
        let flag = unsafe { AtomicU8::from_ptr(&raw mut (*self.page.as_ptr()).immediate_exit) };
        flag.store(u8::from(on), Ordering::SeqCst);
    }
}

impl Drop for RunPage {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping made in `new`; nothing refers to it any more.
        unsafe { libc::munmap(self.page.as_ptr().cast(), types::PAGE_SIZE) };
    }
}

extern "C" fn nothing(_signal: libc::c_int) {}

/// Installs the empty handler for the kick signal: the signal only has to interrupt `KVM_RUN`.
pub(crate) fn install_kick_handler() -> io::Result<()> {
    // SAFETY: an all-zero sigaction is valid: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = nothing as *const () as usize;
    // SAFETY: the handler does nothing, so it is async-signal-safe; without SA_RESTART KVM_RUN returns EINTR.
    check(unsafe { libc::sigaction(libc::SIGRTMIN(), &action, std::ptr::null_mut()) }).map(drop)
}

/// The current thread's id, for [`kick`]; unblocks the kick signal in it.
pub(crate) fn register_for_kicks() -> i32 {
    // SAFETY: plain calls on a local signal set and the current thread's mask.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGRTMIN());
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut());
        libc::gettid()
    }
}

/// Interrupts the thread whose id is in `tid`, if it has registered and not ended.
pub(crate) fn kick(tid: &AtomicI32) {
    let tid = tid.load(Ordering::SeqCst);
    if tid != 0 {
        // SAFETY: sends a signal with an empty handler to a thread of this process; if the thread has ended the call fails, harmlessly.
        unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, libc::SIGRTMIN()) };
    }
}
