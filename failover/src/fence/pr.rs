//! The kernel's persistent reservation calls on a block device, with a safe face.
//!
//! Lives here: the ioctls of linux/pr.h and their numbers, and what their answers mean. Not here: which are made in which order ([`super::reservation`]). They work alike for SCSI disks, NVMe namespaces and device-mapper
//! devices over these. Read in the kernel: block/ioctl.c, drivers/scsi/sd.c, drivers/nvme/host/pr.c, drivers/md/dm.c.
//!
//! - An ioctl returns -1 and errno when the kernel refuses (no such calls: ENOTTY or EOPNOTSUPP; a partition or no right: EPERM), and the *device's* status as a positive number: `PR_STS_*` since Linux 6.3, SCSI's result
//!   word before. A reservation conflict is 0x18 in its lowest byte in both.
//! - A unit attention (after the first contact, or after this initiator lost a registration) comes back as status 2 before Linux 6.9; each call takes one of them away. Hence [`Answer::Again`].
//! - `IOC_PR_PREEMPT` hands `old_key` to the device as the key *of the one who preempts* and `new_key` as the key that is to go (sd.c, nvme/pr.c; nfsd relies on it), although Documentation/block/pr.rst tells it the other way
//!   round. Here both are always the same key.
//! - The kernel registers with APTPL/PTPL set: a reservation outlives the target's power.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

/// Write exclusive, registrants only (linux/pr.h: `PR_WRITE_EXCLUSIVE_REG_ONLY`; SPC-4 5.13.2): only registered nexuses may write, everybody may read.
const WRITE_EXCLUSIVE_REG_ONLY: u32 = 3;
/// linux/pr.h: `PR_FL_IGNORE_KEY`.
const IGNORE_KEY: u32 = 1;
/// SAM's RESERVATION CONFLICT, and linux/pr.h's `PR_STS_RESERVATION_CONFLICT`.
const CONFLICT: i32 = 0x18;

/// linux/pr.h: `struct pr_registration`.
#[repr(C)]
struct Registration {
    old_key: u64,
    new_key: u64,
    flags: u32,
    pad: u32,
}

/// linux/pr.h: `struct pr_reservation`.
#[repr(C)]
struct Reserve {
    key: u64,
    kind: u32,
    flags: u32,
}

/// linux/pr.h: `struct pr_preempt`.
#[repr(C)]
struct Preempt {
    old_key: u64,
    new_key: u64,
    kind: u32,
    flags: u32,
}

/// linux/pr.h: `struct pr_clear`.
#[repr(C)]
struct Clear {
    key: u64,
    flags: u32,
    pad: u32,
}

mod sys {
    use super::{Clear, Preempt, Registration, Reserve};

    nix::ioctl_write_ptr!(register, b'p', 200, Registration);
    nix::ioctl_write_ptr!(reserve, b'p', 201, Reserve);
    nix::ioctl_write_ptr!(release, b'p', 202, Reserve);
    nix::ioctl_write_ptr!(preempt_abort, b'p', 204, Preempt);
    nix::ioctl_write_ptr!(clear, b'p', 205, Clear);
}

/// What the device answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Answer {
    /// Done.
    Done,
    /// Reservation conflict.
    Conflict,
    /// Another status: a unit attention, a path that failed, or a refusal. May pass.
    Again(i32),
}

/// The operations on a device's persistent reservation, as this nexus does them. Key 0 means none.
pub trait PrOps {
    /// Registers this nexus with `key`, whatever it was registered with.
    ///
    /// # Errors
    /// The kernel refuses.
    fn register(&self, key: u64) -> io::Result<Answer>;

    /// Ends the reservation and removes all registrations, if this nexus is registered with `key`; a conflict if it is not. (Not the removal of this nexus's registration alone: some kernels' nvme makes that a registration
    /// with key 0.)
    ///
    /// # Errors
    /// The kernel refuses.
    fn clear(&self, key: u64) -> io::Result<Answer>;

    /// "Remove the registration with key 0": changes nothing whatever the device's state is. Done when this nexus is not registered, a conflict when it is (SPC-4 table 59); so both say that the device knows
    /// persistent reservations.
    ///
    /// # Errors
    /// The kernel refuses.
    fn touch(&self) -> io::Result<Answer>;

    /// "Release the reservation held with `key`", a key that nobody ever registers: changes nothing. For devices (NVMe) that take key 0 for a mistake.
    ///
    /// # Errors
    /// The kernel refuses.
    fn release_nothing(&self, key: u64) -> io::Result<Answer>;

    /// Reserves the device, write exclusive for registrants, for this nexus registered with `key`. Done also when this very nexus holds that reservation already; a conflict when another does.
    ///
    /// # Errors
    /// The kernel refuses.
    fn reserve(&self, key: u64) -> io::Result<Answer>;

    /// Takes the reservation from the nexus that holds it with `key`, removes every *other* nexus registered with `key`, and aborts the commands of those. Done also when this nexus itself holds the reservation. A conflict
    /// when this nexus is not registered with `key`.
    ///
    /// # Errors
    /// The kernel refuses.
    fn preempt_abort(&self, key: u64) -> io::Result<Answer>;
}

/// A block device, opened for its reservation calls only. No data goes this way.
#[derive(Debug)]
pub struct PrDevice {
    file: File,
}

impl PrDevice {
    /// Opens a block device. For writing, because the kernel lets a process without CAP_SYS_ADMIN reserve only then.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn open(path: &Path) -> io::Result<PrDevice> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        Ok(PrDevice { file })
    }
}

/// The device's status, as an answer.
fn answer(result: nix::Result<i32>) -> io::Result<Answer> {
    match result {
        Ok(0) => Ok(Answer::Done),
        Ok(status) if status & 0xff == CONFLICT => Ok(Answer::Conflict),
        Ok(status) => Ok(Answer::Again(status)),
        // How nvme maps a conflict on its multipath head in some versions.
        Err(nix::errno::Errno::EBADE) => Ok(Answer::Conflict),
        Err(errno) => Err(errno.into()),
    }
}

impl PrDevice {
    fn registration(&self, old_key: u64, new_key: u64, flags: u32) -> io::Result<Answer> {
        let argument = Registration { old_key, new_key, flags, pad: 0 };
        // SAFETY: the descriptor is open for as long as `self` lives; the argument is a live `struct pr_registration` of the size that the ioctl's number encodes, and the kernel only reads it.
        answer(unsafe { sys::register(self.file.as_raw_fd(), &raw const argument) })
    }
}

impl PrOps for PrDevice {
    fn register(&self, key: u64) -> io::Result<Answer> {
        self.registration(0, key, IGNORE_KEY)
    }

    fn clear(&self, key: u64) -> io::Result<Answer> {
        let argument = Clear { key, flags: 0, pad: 0 };
        // SAFETY: as in `registration`; the argument is a live `struct pr_clear`.
        answer(unsafe { sys::clear(self.file.as_raw_fd(), &raw const argument) })
    }

    fn touch(&self) -> io::Result<Answer> {
        self.registration(0, 0, 0)
    }

    fn release_nothing(&self, key: u64) -> io::Result<Answer> {
        let argument = Reserve { key, kind: WRITE_EXCLUSIVE_REG_ONLY, flags: 0 };
        // SAFETY: as in `registration`; the argument is a live `struct pr_reservation`.
        answer(unsafe { sys::release(self.file.as_raw_fd(), &raw const argument) })
    }

    fn reserve(&self, key: u64) -> io::Result<Answer> {
        let argument = Reserve { key, kind: WRITE_EXCLUSIVE_REG_ONLY, flags: 0 };
        // SAFETY: as in `registration`; the argument is a live `struct pr_reservation`.
        answer(unsafe { sys::reserve(self.file.as_raw_fd(), &raw const argument) })
    }

    fn preempt_abort(&self, key: u64) -> io::Result<Answer> {
        let argument = Preempt { old_key: key, new_key: key, kind: WRITE_EXCLUSIVE_REG_ONLY, flags: 0 };
        // SAFETY: as in `registration`; the argument is a live `struct pr_preempt`.
        answer(unsafe { sys::preempt_abort(self.file.as_raw_fd(), &raw const argument) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_those_of_linux_pr_h() {
        // _IOW('p', n, size): direction 1 in the top two bits, then 14 bits of size, type, number.
        let number = |n: u64, size: usize| 1 << 30 | (size as u64) << 16 | (u64::from(b'p')) << 8 | n;
        assert_eq!(number(200, size_of::<Registration>()), 0x4018_70c8);
        assert_eq!(number(201, size_of::<Reserve>()), 0x4010_70c9);
        assert_eq!(number(202, size_of::<Reserve>()), 0x4010_70ca);
        assert_eq!(number(204, size_of::<Preempt>()), 0x4018_70cc);
        assert_eq!(number(205, size_of::<Clear>()), 0x4010_70cd);
    }

    #[test]
    fn a_conflict_is_known_in_both_forms_of_a_status() {
        assert_eq!(answer(Ok(0)).unwrap(), Answer::Done);
        for status in [0x18, 0x0011_0018, 0x0118] {
            assert_eq!(answer(Ok(status)).unwrap(), Answer::Conflict, "{status:#x}");
        }
        for status in [0x2, 0x0800_0002, 0x1_0000] {
            assert_eq!(answer(Ok(status)).unwrap(), Answer::Again(status), "{status:#x}");
        }
        assert!(answer(Err(nix::errno::Errno::ENOTTY)).is_err());
    }

    #[test]
    fn a_file_has_no_reservations_and_says_so() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let device = PrDevice::open(file.path()).unwrap();
        assert!(device.touch().is_err());
    }
}
