//! The files a guest is booted from, held open: a guest that reboots weeks later finds the kernel it was started with, even if a new one has taken its
//! name in the meantime.
//!
//! Lives here: reading, and the digest by which two hosts know that they would boot the same. Not here: what is in the files.

use std::{
    borrow::Cow,
    fs::File,
    hash::Hasher as _,
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use xxhash_rust::xxh3::Xxh3;

use crate::{BootConfig, KernelImage, VmmError};

/// Bytes read at a time for the digest.
const PIECE: usize = 1 << 20;

enum Content {
    BuiltIn(&'static [u8]),
    File { path: PathBuf, file: File },
}

/// What a machine boots: the files of a [`BootConfig`], opened and readable. Made once when a node starts, used at every boot of its guest.
pub struct BootImages {
    kernel: Content,
    initramfs: Option<Content>,
    cmdline: String,
    digest: u64,
}

impl BootImages {
    /// Opens the files, and reads them through once.
    ///
    /// # Errors
    /// [`VmmError::ReadImage`] when one cannot be read.
    pub fn open(config: &BootConfig) -> Result<BootImages, VmmError> {
        let kernel = match &config.kernel {
            KernelImage::Path(path) => Content::open("kernel", path)?,
            KernelImage::Bytes(image) => Content::BuiltIn(image),
        };
        let initramfs = config.initramfs.as_ref().map(|path| Content::open("initramfs", path)).transpose()?;
        let digest = digest(&kernel, initramfs.as_ref(), &config.cmdline)?;
        Ok(BootImages { kernel, initramfs, cmdline: config.cmdline.clone(), digest })
    }

    /// A digest of kernel, initial RAM file system and command line: the two hosts of a guest should agree on it, or the guest would come up as another
    /// when it reboots after a failover: the standby warns of it.
    #[must_use]
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// Says so when a file is no longer what it was when it was opened: it was written over in its place.
    pub(crate) fn warn_if_changed(&self) {
        match digest(&self.kernel, self.initramfs.as_ref(), &self.cmdline) {
            Ok(now) if now == self.digest => {}
            Ok(_) => tracing::warn!(
                kernel = self.name(),
                "kernel or initramfs was written over since the start: the guest boots what is there now"
            ),
            Err(error) => tracing::warn!(%error, "kernel or initramfs cannot be read any more"),
        }
    }

    pub(super) fn name(&self) -> String {
        match &self.kernel {
            Content::BuiltIn(_) => "the built-in image".to_owned(),
            Content::File { path, .. } => path.display().to_string(),
        }
    }

    pub(super) fn built_in(&self) -> bool {
        matches!(self.kernel, Content::BuiltIn(_))
    }

    pub(super) fn cmdline(&self) -> &str {
        &self.cmdline
    }

    /// The kernel's bytes, if they could fit into `limit` bytes of guest memory.
    pub(super) fn kernel(&self, limit: u64) -> Result<Cow<'_, [u8]>, VmmError> {
        self.kernel.read("kernel", limit)
    }

    /// The initial RAM file system's bytes.
    pub(super) fn initramfs(&self, limit: u64) -> Result<Option<Cow<'_, [u8]>>, VmmError> {
        self.initramfs.as_ref().map(|content| content.read("initramfs", limit)).transpose()
    }
}

impl Content {
    fn open(what: &'static str, path: &Path) -> Result<Content, VmmError> {
        let failed = |source| VmmError::ReadImage { what, path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(failed(io::Error::other("it is not a regular file")));
        }
        Ok(Content::File { path: path.to_owned(), file })
    }

    fn read(&self, what: &'static str, limit: u64) -> Result<Cow<'_, [u8]>, VmmError> {
        match self {
            Content::BuiltIn(bytes) => Ok(Cow::Borrowed(bytes)),
            Content::File { path, file } => {
                let failed = |source| VmmError::ReadImage { what, path: path.clone(), source };
                let size = file.metadata().map_err(failed)?.len();
                if size > limit {
                    return Err(VmmError::DoesNotFit { what, bytes: size });
                }
                let mut bytes = vec![0; size as usize];
                file.read_exact_at(&mut bytes, 0).map_err(failed)?;
                Ok(Cow::Owned(bytes))
            }
        }
    }

    fn hash(&self, what: &'static str, into: &mut Xxh3) -> Result<(), VmmError> {
        match self {
            Content::BuiltIn(bytes) => into.update(bytes),
            Content::File { path, file } => {
                let mut piece = vec![0; PIECE];
                let mut at = 0;
                loop {
                    let count = file.read_at(&mut piece, at).map_err(|source| VmmError::ReadImage { what, path: path.clone(), source })?;
                    if count == 0 {
                        break;
                    }
                    into.update(&piece[..count]);
                    at += count as u64;
                }
                into.write_u64(at);
            }
        }
        Ok(())
    }
}

fn digest(kernel: &Content, initramfs: Option<&Content>, cmdline: &str) -> Result<u64, VmmError> {
    let mut hash = Xxh3::new();
    kernel.hash("kernel", &mut hash)?;
    if let Some(initramfs) = initramfs {
        initramfs.hash("initramfs", &mut hash)?;
    }
    hash.update(cmdline.as_bytes());
    Ok(hash.digest())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_tells_kernels_and_command_lines_apart() {
        let of = |kernel: &'static [u8], line: &str| {
            let config = BootConfig { kernel: KernelImage::Bytes(kernel), initramfs: None, cmdline: line.into() };
            BootImages::open(&config).expect("images").digest()
        };
        assert_eq!(of(b"a", "quiet"), of(b"a", "quiet"));
        assert_ne!(of(b"a", "quiet"), of(b"b", "quiet"));
        assert_ne!(of(b"a", "quiet"), of(b"a", "loud"));
    }

    #[test]
    fn a_directory_and_a_missing_file_are_refused_by_name() {
        for path in ["/nonexistent/vmlinuz", "/proc"] {
            let config = BootConfig { kernel: KernelImage::Path(path.into()), initramfs: None, cmdline: String::new() };
            let said = BootImages::open(&config).err().expect("must be refused").to_string();
            assert!(said.contains(path), "{said}");
        }
    }

    #[test]
    fn a_kernel_that_was_replaced_by_name_is_still_the_one_that_was_opened() {
        let folder = std::env::temp_dir().join(format!("lockstep-images-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let path = folder.join("vmlinuz");
        std::fs::write(&path, b"old").expect("written");
        let config = BootConfig { kernel: KernelImage::Path(path.clone()), initramfs: None, cmdline: String::new() };
        let images = BootImages::open(&config).expect("images");

        std::fs::write(folder.join("new"), b"newer").expect("written");
        std::fs::rename(folder.join("new"), &path).expect("renamed");

        assert_eq!(&*images.kernel(100).expect("read"), b"old");
        assert!(matches!(images.kernel(2), Err(VmmError::DoesNotFit { .. })));
        std::fs::remove_dir_all(folder).expect("removed");
    }
}
