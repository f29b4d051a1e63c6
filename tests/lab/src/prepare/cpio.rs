//! Writes an initramfs: a cpio archive in the "newc" format (kernel: Documentation/driver-api/early-userspace/buffer-format.rst).

/// An archive that grows in memory.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    /// Inode numbers, so that no two files look like links to one another.
    files: u32,
}

const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_000;

impl Archive {
    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.files += 1;
        let links = if mode == DIRECTORY { 2 } else { 1 };
        let name_bytes = path.len() + 1;
        // Magic, then: inode, mode, uid, gid, links, mtime, size, device (2), device of a node (2), bytes of the name, checksum (not used).
        let fields = [self.files, mode, 0, 0, links, 0, content.len() as u32, 0, 0, 0, 0, name_bytes as u32, 0];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    /// Header with name, and content, each end on a multiple of 4 bytes.
    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// Adds a directory; its parent must have been added before.
    pub fn directory(&mut self, path: &str) {
        self.entry(path, DIRECTORY, &[]);
    }

    /// Adds a file with the permissions `mode`.
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.entry(path, FILE | mode, content);
    }

    /// The whole archive.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_begins_on_a_multiple_of_four_bytes() {
        let mut archive = Archive::default();
        archive.directory("bin");
        archive.file("bin/x", 0o755, b"12345");
        let bytes = archive.finish();
        let starts: Vec<usize> = bytes.windows(6).enumerate().filter(|(_, w)| *w == b"070701").map(|(at, _)| at).collect();
        assert_eq!(starts.len(), 3);
        assert!(starts.iter().all(|at| at % 4 == 0), "{starts:?}");
        assert_eq!(&bytes[starts[1] + 54..starts[1] + 62], b"00000005", "the size of the content");
    }
}
