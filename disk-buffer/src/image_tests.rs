//! What may be a disk image and what may not, and what is found out about it.

use super::*;
use crate::disks::Disks;
use crate::options::DiskOptions;

fn sparse(directory: &Path, name: &str, bytes: u64) -> PathBuf {
    let path = directory.join(name);
    File::create(&path).unwrap().set_len(bytes).unwrap();
    path
}

fn open(path: &Path) -> Result<Image, DiskError> {
    Image::open(path, false, Cache::Direct)
}

#[test]
fn bad_images_are_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    assert!(matches!(open(&at.join("none")), Err(DiskError::Missing(_))));
    assert!(matches!(open(at), Err(DiskError::NotAnImage(_))));
    assert!(matches!(open(&sparse(at, "odd", 1000)), Err(DiskError::Size { bytes: 1000, .. })));
    assert!(matches!(open(&sparse(at, "nothing", 0)), Err(DiskError::Size { bytes: 0, .. })));
    assert!(matches!(open(Path::new("/dev/null")), Err(DiskError::NotAnImage(_))));
}

#[test]
fn an_image_is_one_processs() {
    let directory = tempfile::tempdir().unwrap();
    let path = sparse(directory.path(), "image", 4096);
    let held = open(&path).unwrap();
    assert!(matches!(open(&path), Err(DiskError::InUse(_))));
    assert!(matches!(Image::open(&path, true, Cache::Direct), Err(DiskError::InUse(_))));
    drop(held);
    let reader = Image::open(&path, true, Cache::Direct).unwrap();
    Image::open(&path, true, Cache::Direct).unwrap();
    assert!(matches!(open(&path), Err(DiskError::InUse(_))));
    drop(reader);
}

#[test]
fn two_disks_that_are_one_file_are_refused_whatever_they_are_called() {
    let directory = tempfile::tempdir().unwrap();
    let path = sparse(directory.path(), "image", 4096);
    let link = directory.path().join("link");
    std::fs::hard_link(&path, &link).unwrap();
    let soft = directory.path().join("soft");
    std::os::unix::fs::symlink(&path, &soft).unwrap();
    for other in [path.clone(), link, soft] {
        let options = [path.clone(), other].map(|path| DiskOptions { path, ..DiskOptions::default() });
        assert!(matches!(Disks::open(&options), Err(DiskError::SamePath { .. })));
    }
}

#[test]
fn emptiness_and_digest_see_zeros_and_holes_alike() {
    let directory = tempfile::tempdir().unwrap();
    let hole = open(&sparse(directory.path(), "hole", 3 << 20)).unwrap();
    let path = directory.path().join("zeros");
    std::fs::write(&path, vec![0; 3 << 20]).unwrap();
    let zeros = open(&path).unwrap();
    assert!(hole.is_empty().unwrap() && zeros.is_empty().unwrap());
    assert_eq!(hole.digest().unwrap(), zeros.digest().unwrap());
    let path = directory.path().join("data");
    let mut data = vec![0; 3 << 20];
    data[(3 << 20) - 1] = 1;
    std::fs::write(&path, &data).unwrap();
    let data = open(&path).unwrap();
    assert!(!data.is_empty().unwrap());
    assert_ne!(data.digest().unwrap(), zeros.digest().unwrap());
}

#[test]
fn holes_are_known_as_holes() {
    let directory = tempfile::tempdir().unwrap();
    let path = sparse(directory.path(), "image", 64 << 20);
    let image = open(&path).unwrap();
    assert_eq!(image.data_ranges().unwrap(), []);
    image.file.write_all_at(&[1; 4096], 32 << 20).unwrap();
    let ranges = image.data_ranges().unwrap();
    assert!(ranges.iter().any(|range| range.contains(&(32 << 20))));
    assert!(ranges.iter().map(|range| range.end - range.start).sum::<u64>() <= 2 << 20);
}

#[test]
fn zeros_are_told_from_anything_else() {
    for len in [0usize, 1, 2, 511, 4096] {
        assert!(is_zero(&vec![0; len]));
        for at in [0, len / 2, len.saturating_sub(1)] {
            let mut bytes = vec![0; len];
            if let Some(byte) = bytes.get_mut(at) {
                *byte = 1;
                assert!(!is_zero(&bytes), "{len} bytes, byte {at}");
            }
        }
        assert!(len == 0 || !is_zero(&vec![7; len]));
    }
}
