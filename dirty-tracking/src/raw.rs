//! The KVM calls for dirty logging that kvm-ioctls lacks: all `unsafe` of this crate lives here and in nothing else.
//!
//! Not here: what the bits mean. Guards S5 through its bounds checks: a wrong length would let the kernel write past a buffer or leave pages out.

use std::{
    io,
    os::fd::{AsRawFd, RawFd},
    ptr::NonNull,
    sync::atomic::{AtomicU32, Ordering},
};

use kvm_bindings::{
    KVM_DIRTY_LOG_PAGE_OFFSET, KVM_MEM_LOG_DIRTY_PAGES, KVMIO, kvm_clear_dirty_log, kvm_clear_dirty_log__bindgen_ty_1, kvm_dirty_gfn,
    kvm_dirty_log, kvm_dirty_log__bindgen_ty_1, kvm_userspace_memory_region,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::{
    ioctl::{ioctl, ioctl_with_mut_ref, ioctl_with_ref},
    ioctl_io_nr, ioctl_iow_nr, ioctl_iowr_nr,
};

use crate::Slot;

ioctl_iow_nr!(KVM_GET_DIRTY_LOG, KVMIO, 0x42, kvm_dirty_log);
ioctl_iowr_nr!(KVM_CLEAR_DIRTY_LOG, KVMIO, 0xc0, kvm_clear_dirty_log);
ioctl_io_nr!(KVM_RESET_DIRTY_RINGS, KVMIO, 0xc7);

/// Flag of a ring entry: the kernel has filled it in (uapi `KVM_DIRTY_GFN_F_DIRTY`).
const ENTRY_DIRTY: u32 = 1;
/// Flag of a ring entry: we have taken it (uapi `KVM_DIRTY_GFN_F_RESET`).
const ENTRY_TAKEN: u32 = 2;

fn check(ret: libc::c_int) -> io::Result<libc::c_int> {
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(ret) }
}

/// Copies a slot's dirty bits into `words` without clearing them (under manual protect).
pub(crate) fn get_dirty_log(vm: &VmFd, slot: &Slot, words: &mut [u64]) -> io::Result<()> {
    assert!(words.len() as u64 * 64 >= slot.pages, "the kernel writes one bit for each page of the slot");
    let log = kvm_dirty_log {
        slot: slot.number,
        padding1: 0,
        __bindgen_anon_1: kvm_dirty_log__bindgen_ty_1 { dirty_bitmap: words.as_mut_ptr().cast() },
    };
    // SAFETY: the kernel writes ceil(pages / 64) words, for which `words` has room (asserted above); the buffer outlives the call.
    check(unsafe { ioctl_with_ref(vm, KVM_GET_DIRTY_LOG(), &log) }).map(drop)
}

/// Clears the bits given in `words`, which start at page `first_page` of the slot (a multiple of 64), and protects those pages again.
pub(crate) fn clear_dirty_log(vm: &VmFd, slot: &Slot, first_page: u64, words: &[u64]) -> io::Result<()> {
    assert!(first_page.is_multiple_of(64) && first_page < slot.pages, "the kernel takes whole words inside the slot");
    let pages = (words.len() as u64 * 64).min(slot.pages - first_page);
    let mut log = kvm_clear_dirty_log {
        slot: slot.number,
        num_pages: u32::try_from(pages).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?,
        first_page,
        __bindgen_anon_1: kvm_clear_dirty_log__bindgen_ty_1 { dirty_bitmap: words.as_ptr().cast_mut().cast() },
    };
    // SAFETY: the kernel only reads ceil(num_pages / 64) words, which is at most `words.len()`; the buffer outlives the call.
    check(unsafe { ioctl_with_mut_ref(vm, KVM_CLEAR_DIRTY_LOG(), &mut log) }).map(drop)
}

/// Protects again every page whose ring entry has been taken; answers how many there were.
pub(crate) fn reset_dirty_rings(vm: &VmFd) -> io::Result<u32> {
    // SAFETY: the call takes no argument; it changes only entries that are flagged as taken.
    check(unsafe { ioctl(vm, KVM_RESET_DIRTY_RINGS()) }).map(|count| count as u32)
}

/// Turns KVM's logging of a slot on or off.
pub(crate) fn set_logging(vm: &VmFd, slot: &Slot, on: bool) -> io::Result<()> {
    let region = kvm_userspace_memory_region {
        slot: slot.number,
        flags: if on { KVM_MEM_LOG_DIRTY_PAGES } else { 0 },
        guest_phys_addr: slot.first.address(),
        memory_size: slot.pages * types::PAGE_SIZE as u64,
        userspace_addr: slot.host_address,
    };
    // SAFETY: the slot exists with exactly this place, size and address (the machine made it from the same `Slot`); only its flags change.
    unsafe { vm.set_user_memory_region(region) }.map_err(|errno| io::Error::from_raw_os_error(errno.errno()))
}

/// One vCPU's dirty ring, shared with the kernel.
pub(crate) struct RingMap {
    entries: NonNull<kvm_dirty_gfn>,
    /// A power of two.
    len: u32,
    /// Entries taken since the ring was made; the next one to look at, modulo `len`.
    next: u32,
}

// SAFETY: the mapping belongs to this value alone (the kernel's side is ordered by the flags' acquire and release), and is not tied to a thread.
unsafe impl Send for RingMap {}

impl RingMap {
    /// Maps the ring of the vCPU behind `vcpu`; the VM's rings have `len` entries each.
    pub(crate) fn new(vcpu: RawFd, len: u32) -> io::Result<RingMap> {
        assert!(len.is_power_of_two(), "KVM's rings have a power of two entries");
        let bytes = len as usize * size_of::<kvm_dirty_gfn>();
        let offset = i64::from(KVM_DIRTY_LOG_PAGE_OFFSET) * types::PAGE_SIZE as i64;
        // SAFETY: a fresh shared mapping of a vCPU's file at the offset that the KVM API gives to the ring; nothing existing is replaced.
        let address = unsafe {
            libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, vcpu.as_raw_fd(), offset)
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let entries = NonNull::new(address.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        Ok(RingMap { entries, len, next: 0 })
    }

    fn flags(&self, index: u32) -> &AtomicU32 {
        // SAFETY: the index is brought into the mapping's `len` entries, `flags` is the first, aligned field, and both sides access it as an atomic.
        unsafe { AtomicU32::from_ptr(&raw mut (*self.entries.as_ptr().add((index & (self.len - 1)) as usize)).flags) }
    }

    fn is_dirty(&self, index: u32) -> bool {
        self.flags(index).load(Ordering::Acquire) & (ENTRY_DIRTY | ENTRY_TAKEN) == ENTRY_DIRTY
    }

    /// Takes the oldest entry: the slot and the page's offset in it.
    pub(crate) fn take(&mut self) -> Option<(u32, u64)> {
        if !self.is_dirty(self.next) {
            return None;
        }
        // SAFETY: inside the mapping as above; the acquire load of the dirty flag says that the kernel has finished writing the entry and
        // will not touch it until it has been taken and reset.
        let entry = unsafe { self.entries.as_ptr().add((self.next & (self.len - 1)) as usize).read_volatile() };
        self.flags(self.next).store(ENTRY_TAKEN, Ordering::Release);
        self.next = self.next.wrapping_add(1);
        Some((entry.slot, entry.offset))
    }

    /// Entries that wait to be taken. They are one run from the next entry on, so its end is found by bisection.
    pub(crate) fn waiting(&self) -> u32 {
        let (mut low, mut high) = (0, self.len);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.is_dirty(self.next.wrapping_add(middle)) { low = middle + 1 } else { high = middle }
        }
        low
    }
}

impl Drop for RingMap {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping made in `new`; nothing refers to it any more.
        unsafe { libc::munmap(self.entries.as_ptr().cast(), self.len as usize * size_of::<kvm_dirty_gfn>()) };
    }
}
