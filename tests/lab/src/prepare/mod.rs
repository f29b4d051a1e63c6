//! Everything that is made or fetched once and kept in the cache: packages, kernels, initramfs, disks. Idempotent; a second call takes milliseconds.

pub mod artifact;
pub mod cpio;
pub mod guest_image;
pub mod initramfs;
pub mod kernel;
pub mod open_iscsi;
pub mod packages;

use std::path::PathBuf;

use crate::error::LabError;
use crate::paths::Paths;
use initramfs::Kind;
use kernel::{Kernel, Series};

/// A kernel with its initramfs.
#[derive(Clone, Debug)]
pub struct Bootable {
    /// The kernel.
    pub kernel: Kernel,
    /// Its initramfs.
    pub initramfs: PathBuf,
}

/// All that a lab is made of.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// What hosts boot.
    pub host: Bootable,
    /// What the stock guest boots.
    pub guest: Bootable,
    /// The stock guest's root disk.
    pub guest_image: PathBuf,
    /// A host's empty data disk.
    pub data_disk: PathBuf,
    /// Directory with the programs of the iSCSI initiator.
    pub open_iscsi: PathBuf,
}

/// Prepares hosts of kernel series `host` and guests of series `guest`; with `refresh` the newest kernels that Debian has.
///
/// # Errors
/// Something is missing and cannot be had.
pub fn prepare(paths: &Paths, host: Series, guest: Series, refresh: bool, tell: &dyn Fn(&str)) -> Result<Prepared, LabError> {
    packages::install_missing(tell)?;
    let cache = paths.cache()?;
    let _lock = artifact::lock(&cache)?;
    let bootable = |kind: Kind, series: Series| -> Result<Bootable, LabError> {
        let kernel = kernel::prepare(&cache, series, refresh, tell)?;
        let initramfs = initramfs::prepare(&cache, kind, &kernel)?;
        Ok(Bootable { kernel, initramfs })
    };
    Ok(Prepared {
        host: bootable(Kind::Host, host)?,
        guest: bootable(Kind::Guest, guest)?,
        guest_image: guest_image::prepare(&cache, tell)?,
        data_disk: guest_image::prepare_data_disk(&cache)?,
        open_iscsi: open_iscsi::prepare(&cache, tell)?,
    })
}
