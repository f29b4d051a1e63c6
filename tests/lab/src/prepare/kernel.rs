//! Stock Debian kernels: the package as it is, its modules with their index, and the ELF image inside its bzImage (which a lab host boots 3 s
//! faster: no decompression under emulation).

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::artifact::ensure;
use super::packages;
use crate::command::run;
use crate::error::LabError;

/// A package of 70 to 100 MB is downloaded and unpacked.
const BOUND: Duration = Duration::from_secs(300);
const ELF: &[u8] = b"\x7fELF";
/// How a payload begins, and the program that unpacks it.
const PACKINGS: [(&[u8], &str); 2] = [(b"\x28\xb5\x2f\xfd", "zstd"), (b"\xfd7zXZ\x00", "xz")];

/// A line of Debian kernels of which the newest is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
pub enum Series {
    /// Debian 12's own kernel.
    #[value(name = "6.1")]
    #[serde(rename = "6.1")]
    V6_1,
    /// Debian 12's backport of Debian 13's kernel.
    #[value(name = "6.12")]
    #[serde(rename = "6.12")]
    V6_12,
}

impl Series {
    /// As it is written.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Series::V6_1 => "6.1",
            Series::V6_12 => "6.12",
        }
    }

    /// Where a lab's hosts find kernel and initramfs of a guest of this series, below `/shared`.
    #[must_use]
    pub fn folder(self) -> &'static str {
        match self {
            Series::V6_1 => "guest-6.1",
            Series::V6_12 => "guest-6.12",
        }
    }

    /// The version in a package's name, if it is of this series: the plain amd64 kernel, neither cloud nor real time nor debug.
    fn version(self, package: &str) -> Option<&str> {
        let version = package.strip_prefix("linux-image-")?;
        let numbers = match self {
            Series::V6_1 => version.strip_prefix("6.1.0-")?.strip_suffix("-amd64")?,
            Series::V6_12 => version.strip_prefix("6.12.")?.strip_suffix("+deb12-amd64")?,
        };
        numbers.bytes().all(|b| b.is_ascii_digit()).then_some(version)
    }
}

/// An unpacked kernel.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Its series.
    pub series: Series,
    /// `6.12.117+deb12-amd64`.
    pub version: String,
    /// The package's bzImage, as it is.
    pub bzimage: PathBuf,
    /// The ELF image in it.
    pub vmlinux: PathBuf,
    /// The directory that holds `VERSION/` with the modules.
    pub modules: PathBuf,
}

impl Kernel {
    fn at(place: &Path, series: Series, version: &str) -> Kernel {
        Kernel {
            series,
            version: version.to_owned(),
            bzimage: place.join("vmlinuz"),
            vmlinux: place.join("vmlinux"),
            modules: place.join("lib/modules"),
        }
    }
}

/// Digits of a version as numbers, so that 6.1.0-9 comes before 6.1.0-10.
fn order(version: &str) -> Vec<u32> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

fn newest(series: Series) -> Result<String, LabError> {
    let names = run(Command::new("apt-cache").args(["pkgnames", &format!("linux-image-{}", series.name())]), BOUND)?;
    let names = String::from_utf8_lossy(&names).into_owned();
    let newest = names.lines().filter_map(|name| series.version(name)).max_by_key(|version| order(version));
    newest.map(str::to_owned).ok_or_else(|| LabError::Missing {
        what: format!("a Debian kernel of series {}", series.name()),
        remedy: "the lab needs Debian 12's package lists (apt-get update)".into(),
    })
}

/// The kernel of `series`: the newest in the cache, or with `refresh` or an empty cache the newest that Debian has. The cache must be locked.
///
/// # Errors
/// Debian's packages are out of reach, or the package is not as expected.
pub fn prepare(cache: &Path, series: Series, refresh: bool, tell: &dyn Fn(&str)) -> Result<Kernel, LabError> {
    let kept = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        let version = series.version(name.strip_prefix("kernel-")?)?.to_owned();
        Some(version)
    };
    let cached = || fs::read_dir(cache).ok()?.flatten().filter_map(kept).max_by_key(|version| order(version));
    let version = match cached() {
        Some(version) if !refresh => version,
        _ => newest(series).or_else(|_| packages::update().and_then(|()| newest(series)))?,
    };
    let place = ensure(cache, &format!("kernel-linux-image-{version}"), |at| {
        tell(&format!("downloading Debian's kernel {version}"));
        unpack(at, series, &version)
    })?;
    Ok(Kernel::at(&place, series, &version))
}

fn unpack(at: &Path, series: Series, version: &str) -> Result<(), LabError> {
    let io = |what: String| LabError::io(move || what);
    // apt's own user does the download where it may write.
    run(Command::new("apt-get").args(["download", "-qq", &format!("linux-image-{version}")]).current_dir(at), BOUND)?;
    let package = fs::read_dir(at)
        .map_err(io(format!("list {}", at.display())))?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|e| e == "deb"))
        .ok_or_else(|| LabError::Missing {
            what: format!("the package linux-image-{version}"),
            remedy: "apt-get download left none".into(),
        })?;
    run(Command::new("dpkg-deb").arg("-x").arg(&package).arg(at), BOUND)?;
    fs::remove_file(&package).map_err(io(format!("remove {}", package.display())))?;
    run(Command::new("/sbin/depmod").arg("-b").arg(at).arg(version), BOUND)?;
    let kernel = Kernel::at(at, series, version);
    let packed = at.join("boot").join(format!("vmlinuz-{version}"));
    fs::rename(&packed, &kernel.bzimage).map_err(io(format!("find {}", packed.display())))?;
    let image = fs::read(&kernel.bzimage).map_err(io(format!("read {}", kernel.bzimage.display())))?;
    let elf = extract(&image).ok_or_else(|| LabError::Missing {
        what: format!("an ELF image in Debian's kernel {version}"),
        remedy: "its payload is packed in a way that is not known here".into(),
    })?;
    fs::write(&kernel.vmlinux, elf).map_err(io(format!("write {}", kernel.vmlinux.display())))
}

/// The ELF image in a bzImage: the first place that looks like a packed payload and unpacks to ELF.
fn extract(image: &[u8]) -> Option<Vec<u8>> {
    for (magic, program) in PACKINGS {
        let starts = image.windows(magic.len()).enumerate().filter(|(_, bytes)| *bytes == magic).map(|(at, _)| at);
        for start in starts {
            if let Some(elf) = unpacked(program, &image[start..]) {
                return Some(elf);
            }
        }
    }
    None
}

fn unpacked(program: &str, bytes: &[u8]) -> Option<Vec<u8>> {
    let mut child = Command::new(program).arg("-dcq").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().ok()?;
    let mut input = child.stdin.take()?;
    let output = std::thread::scope(|scope| {
        // What follows the payload is rubbish to the program: it ends early, with an error, after it has written everything.
        scope.spawn(move || drop(input.write_all(bytes)));
        child.wait_with_output()
    });
    output.ok().map(|o| o.stdout).filter(|elf| elf.starts_with(ELF))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_is_its_plain_kernels_only() {
        assert_eq!(Series::V6_12.version("linux-image-6.12.9+deb12-amd64"), Some("6.12.9+deb12-amd64"));
        assert_eq!(Series::V6_12.version("linux-image-6.12.9+deb12-cloud-amd64"), None);
        assert_eq!(Series::V6_12.version("linux-image-6.12-amd64"), None);
        assert_eq!(Series::V6_1.version("linux-image-6.1.0-49-amd64"), Some("6.1.0-49-amd64"));
        assert_eq!(Series::V6_1.version("linux-image-6.1.0-49-rt-amd64"), None);
        assert_eq!(Series::V6_1.version("linux-image-6.1.0-49-amd64-dbg"), None);
    }

    #[test]
    fn versions_are_ordered_by_number() {
        assert!(order("6.1.0-9-amd64") < order("6.1.0-10-amd64"));
        assert!(order("6.12.99+deb12-amd64") < order("6.12.117+deb12-amd64"));
    }
}
