//! Everything that can go wrong with a machine, with what to do about it.

use std::{io, path::PathBuf};

/// Why an operation on a machine failed.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// `/dev/kvm` cannot be opened.
    #[error("cannot open /dev/kvm: {source}; {remedy}")]
    OpenKvm {
        /// The kernel's answer.
        source: io::Error,
        /// What to do.
        remedy: &'static str,
    },
    /// The host's KVM lacks something the machine needs.
    #[error("this host's KVM lacks {0}; use a newer kernel or another host (`lockstep check` lists what is needed)")]
    Missing(&'static str),
    /// This host's processor, or its KVM, is too weak for the CPU model.
    #[error("this host cannot carry the CPU model {model}: it lacks {missing}; use a weaker --cpu on every host, or another host")]
    CpuModel {
        /// The model.
        model: &'static str,
        /// Names of features.
        missing: String,
    },
    /// The configuration cannot be met.
    #[error("configuration: {0}")]
    Config(String),
    /// Guest memory cannot be had.
    #[error("cannot map {mib} MiB of guest memory: {reason}; {remedy}")]
    Memory {
        /// Size asked for.
        mib: u64,
        /// Why not.
        reason: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A KVM call failed.
    #[error("{what} failed: {source} (`lockstep check` says what this host's KVM lacks)")]
    Kvm {
        /// Which call, on what.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel image cannot be read.
    #[error("cannot read {what} {}: {source}; check the path and its permissions", path.display())]
    ReadImage {
        /// "kernel" or "initramfs".
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The kernel image is not one that can be booted.
    #[error(
        "{image} cannot be booted: {reason}; give a bzImage (vmlinuz) of a 64-bit kernel, or an x86-64 ELF image (vmlinux) with a PVH entry point"
    )]
    BadKernel {
        /// The file, or "built-in image".
        image: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The kernel image needs more memory than the guest has.
    #[error("{image} cannot be booted: {reason}; give the guest more memory (--memory)")]
    KernelTooLarge {
        /// The file, or "built-in image".
        image: String,
        /// How much it needs.
        reason: String,
    },
    /// Something does not fit into guest memory.
    #[error("{what} of {bytes} bytes does not fit into guest memory; give the guest more memory (--memory)")]
    DoesNotFit {
        /// What.
        what: &'static str,
        /// Its size.
        bytes: u64,
    },
    /// Dirty tracking failed.
    #[error(transparent)]
    Tracking(#[from] dirty_tracking::TrackingError),
    /// A device failed.
    #[error("device {device}: {reason}")]
    Device {
        /// Which device.
        device: String,
        /// Why.
        reason: String,
    },
    /// A machine's state cannot be set into this machine.
    #[error("cannot restore machine state: {0}")]
    Restore(String),
    /// The machine is not in a state in which this can be done.
    #[error("cannot {what}: {why}")]
    WrongState {
        /// What was asked.
        what: &'static str,
        /// Why it cannot be.
        why: &'static str,
    },
    /// A vCPU did not stop or answer in time.
    #[error("vCPU {vcpu} did not {what} within {limit_ms} ms; the host is badly overloaded or KVM is stuck")]
    VcpuTimeout {
        /// Which vCPU.
        vcpu: usize,
        /// "stop", "capture its state", ...
        what: &'static str,
        /// The bound that was passed.
        limit_ms: u64,
    },
}

impl VmmError {
    /// Wraps an errno of kvm-ioctls.
    pub(crate) fn kvm(what: &'static str) -> impl FnOnce(vmm_sys_util::errno::Error) -> VmmError {
        move |errno| VmmError::Kvm { what, source: io::Error::from_raw_os_error(errno.errno()) }
    }

    /// Wraps an I/O error of a raw ioctl.
    pub(crate) fn io(what: &'static str) -> impl FnOnce(io::Error) -> VmmError {
        move |source| VmmError::Kvm { what, source }
    }
}
