//! Disks of a lab's nodes: images, what the change log beside them says, and the guest's own word on what it wrote and reads.
//!
//! Not here: what a disk is to a node (`disk-buffer`), the guest's side of the commands (`guest`).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use disk_buffer::changes::format;
use disk_buffer::{Cache, DiskError};
use lockstep::demo::client::Connection;
use lockstep::demo::resp::Reply;
use rand::Rng;

use super::node::BOUND;

/// A block as `DWRITE` counts them.
pub const BLOCK: u64 = 4096;
/// Blocks of a region of the change log.
pub const REGION_BLOCKS: u64 = disk_buffer::regions::REGION_BYTES / BLOCK;
/// The guest's stream works before this block (32 MiB); what tests write goes behind it.
pub const FIRST_BLOCK: u64 = 8192;

/// Pause between two looks at something that tells nobody when it changes.
const TICK: Duration = Duration::from_millis(20);

/// A disk image of one host.
#[derive(Clone, Debug)]
pub struct Image(PathBuf);

impl Image {
    /// An image of so many zeros at `path`.
    ///
    /// # Panics
    /// It cannot be made.
    #[must_use]
    pub fn new(path: PathBuf, bytes: u64) -> Image {
        File::create(&path).and_then(|file| file.set_len(bytes)).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Image(path)
    }

    /// What is there already, for example a device.
    #[must_use]
    pub fn at(path: PathBuf) -> Image {
        Image(path)
    }

    /// Fills it with what nobody would take for zeros.
    ///
    /// # Panics
    /// It cannot be written.
    pub fn fill(&self) {
        let bytes = fs::metadata(&self.0).expect("an image").len();
        let file = File::options().write(true).open(&self.0).expect("an image");
        for block in 0..bytes / BLOCK {
            file.write_all_at(&[block as u8 | 1; BLOCK as usize], block * BLOCK).expect("an image that can be written");
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// How many regions its change log has marked.
    ///
    /// # Errors
    /// When it cannot be read at this moment.
    pub fn marked(&self) -> io::Result<u32> {
        let mut log = self.0.clone().into_os_string();
        log.push(".lockstep");
        let log = PathBuf::from(log);
        let content = format::read(&fs::read(&log)?, fs::metadata(&self.0)?.len(), &log).map_err(io::Error::other)?;
        Ok(content.set.count())
    }

    /// Waits until at most so many regions are marked: what was written before is the same on both hosts, durably, and known to be.
    ///
    /// # Panics
    /// It does not come to that.
    pub fn until_marked(&self, most: u32) {
        let deadline = Instant::now() + BOUND;
        while self.marked().map_or(true, |count| count > most) {
            assert!(Instant::now() < deadline, "{}: {:?} regions are marked, awaited {most}", self.0.display(), self.marked());
            std::thread::sleep(TICK);
        }
    }

    /// Waits until no process has it as a disk: after the end of one that had requests to it in flight, the kernel keeps it open until they are done.
    ///
    /// # Panics
    /// One keeps it.
    pub fn until_free(&self) {
        let deadline = Instant::now() + BOUND;
        while let Err(DiskError::InUse(_)) = disk_buffer::image::Image::open(&self.0, false, Cache::default()) {
            assert!(Instant::now() < deadline, "{} is in use", self.0.display());
            std::thread::sleep(TICK);
        }
    }

    /// Waits until both images hold the same, byte for byte: the standby applies after it has committed, and tells nobody.
    ///
    /// # Panics
    /// They do not.
    pub fn until_equals(&self, other: &Image) {
        let deadline = Instant::now() + BOUND;
        loop {
            let (ours, theirs) = (fs::read(&self.0).expect("an image"), fs::read(&other.0).expect("an image"));
            if ours == theirs {
                return;
            }
            let differ = ours.chunks(BLOCK as usize).zip(theirs.chunks(BLOCK as usize)).enumerate().filter(|(_, (a, b))| a != b);
            let blocks: Vec<usize> = differ.map(|(block, _)| block).collect();
            let (some, count) = (&blocks[..blocks.len().min(8)], blocks.len());
            assert!(Instant::now() < deadline, "{} and {} differ in {count} blocks: {some:?}", self.0.display(), other.0.display());
            std::thread::sleep(TICK);
        }
    }
}

/// Lets the guest write and read at `rate` operations a second on its disk 0, comparing what it reads; 0: no more.
///
/// # Panics
/// It refuses.
pub fn load(guest: &mut Connection, rate: u32) {
    let reply = guest.ask(&[b"DLOAD", b"0", rate.to_string().as_bytes()]).expect("an answer to DLOAD");
    assert!(matches!(reply, Reply::Status(_)), "DLOAD: {reply:?}");
}

/// Lets the guest read again all that it wrote to its disk 0; how many sectors that are.
///
/// # Panics
/// It reads something else.
pub fn prove_disk(guest: &mut Connection) -> i64 {
    guest.set_answer_timeout(BOUND).expect("an option");
    match guest.ask(&[b"DCHECK", b"0"]).expect("an answer to DCHECK") {
        Reply::Int(sectors) => sectors,
        other => panic!("the guest's disk does not hold what it wrote: {other:?}"),
    }
}

/// A client that writes stamps to blocks, one after the other, and remembers what it was told.
#[derive(Debug)]
pub struct Stamps {
    connection: Connection,
    written: BTreeMap<u64, u64>,
    stamp: u64,
}

impl Stamps {
    /// Over a connection of its own.
    ///
    /// # Panics
    /// It is no connection.
    #[must_use]
    pub fn new(mut connection: Connection) -> Stamps {
        connection.set_answer_timeout(BOUND).expect("an option");
        Stamps { connection, written: BTreeMap::new(), stamp: 0 }
    }

    /// Writes the next stamp to a block, and is told that it is written.
    ///
    /// # Panics
    /// It is told something else.
    pub fn write(&mut self, block: u64) {
        self.stamp += 1;
        let (number, stamp) = (block.to_string(), self.stamp.to_string());
        let reply = self.connection.ask(&[b"DWRITE", b"0", number.as_bytes(), stamp.as_bytes()]).expect("an answer to DWRITE");
        assert_eq!(reply, Reply::Status("OK".to_owned()), "block {block}, stamp {stamp}");
        self.written.insert(block, self.stamp);
    }

    /// Writes so many blocks behind [`FIRST_BLOCK`], any.
    ///
    /// # Panics
    /// As [`Stamps::write`].
    pub fn write_any(&mut self, count: u64, random: &mut impl Rng) {
        for _ in 0..count {
            self.write(FIRST_BLOCK + random.random_range(0..FIRST_BLOCK));
        }
    }

    /// Reads every block again that was written.
    ///
    /// # Panics
    /// One does not hold what it should.
    pub fn prove(&mut self) {
        for (block, stamp) in &self.written {
            let reply = self.connection.ask(&[b"DREAD", b"0", block.to_string().as_bytes()]).expect("an answer to DREAD");
            assert_eq!(reply, Reply::Int(*stamp as i64), "an acknowledged write of block {block} is not there");
        }
    }

    /// Writes acknowledged.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.stamp
    }
}
