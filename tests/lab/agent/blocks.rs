//! Random requests to whole disks, 512 bytes to 1 MiB, one overlapping the other: reads that are compared with what was written last, direct and through the page
//! cache, discards, zeroes, flushes. `lab.blocks=/dev/vdb,/dev/vdc` names the disks, whose content is lost.
//!
//! Each disk has [`THREADS`] threads, each with a part of its own, so that what a read must find is certain and several requests are in flight.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::sys;

const SECTOR: usize = 512;
/// Sectors of a thread's part: 4 MiB.
const SECTORS: usize = 8192;
const THREADS: usize = 3;
/// Longest request, sectors: 1 MiB.
const LONGEST: u64 = 2048;
/// So that the rest of the guest gets its turn under emulation.
const PAUSE: Duration = Duration::from_millis(25);

/// What a sector holds: nothing known, or this.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Content {
    Unknown,
    Zeros,
    Stamp(u64),
}

static DONE: AtomicU64 = AtomicU64::new(0);
static WRONG: AtomicU64 = AtomicU64::new(0);
static FIRST: Mutex<Option<String>> = Mutex::new(None);

fn trouble(text: String) {
    WRONG.fetch_add(1, Ordering::Relaxed);
    FIRST.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get_or_insert(text);
}

/// Works on `device` for ever.
pub fn start(device: &str) {
    for number in 0..THREADS {
        let device = device.to_owned();
        std::thread::spawn(move || {
            if let Err(error) = work(&device, number) {
                trouble(format!("{device}: {error}"));
            }
        });
    }
}

/// `key=value` lines.
pub fn status() -> String {
    let first = FIRST.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone().unwrap_or_default();
    format!("blocks_done={}\nblocks_wrong={}\nblocks_first={first}\n", DONE.load(Ordering::Relaxed), WRONG.load(Ordering::Relaxed))
}

/// Bytes at an address that direct requests may use.
#[repr(align(4096))]
struct Aligned([u8; LONGEST as usize * SECTOR]);

fn fill(bytes: &mut [u8], stamp: u64) {
    for (index, word) in bytes.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&(stamp ^ index as u64).to_le_bytes());
    }
}

fn work(device: &str, number: usize) -> io::Result<()> {
    let direct = OpenOptions::new().read(true).write(true).custom_flags(sys::O_DIRECT).open(device)?;
    let cached = OpenOptions::new().read(true).write(true).open(device)?;
    let mut known = vec![Content::Unknown; SECTORS];
    let mut buffer = Box::new(Aligned([0; LONGEST as usize * SECTOR]));
    let mut random = 0x9e37_79b9_7f4a_7c15_u64 ^ (number as u64 + 1) << 32 ^ device.bytes().map(u64::from).sum::<u64>();
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    loop {
        let sectors = match next() % 10 {
            0..4 => 1,
            4..7 => 8,
            7..9 => 1 + next() % 64,
            _ => 1 + next() % LONGEST,
        };
        let first = (next() % (SECTORS as u64 - sectors)) as usize;
        let (count, offset) = (sectors as usize, ((number * SECTORS + first) * SECTOR) as u64);
        let bytes = &mut buffer.0[..count * SECTOR];
        let range = &mut known[first..first + count];
        match next() % 20 {
            0 => direct.sync_data()?,
            1 => {
                sys::discard(direct.as_raw_fd(), offset, bytes.len() as u64)?;
                range.fill(Content::Unknown);
            }
            2 => {
                sys::zero_out(direct.as_raw_fd(), offset, bytes.len() as u64)?;
                range.fill(Content::Zeros);
            }
            3 => {
                // The kernel drops what the page cache has of the range, as for the ioctls.
                sys::punch_hole(cached.as_raw_fd(), offset, bytes.len() as u64)?;
                range.fill(Content::Zeros);
            }
            choice @ 4..12 => {
                for (sector, content) in bytes.chunks_exact_mut(SECTOR).zip(range.iter_mut()) {
                    let stamp = next() | 1;
                    fill(sector, stamp);
                    *content = Content::Stamp(stamp);
                }
                // A direct write throws the page cache's copy out; one through the cache is written back before a direct read.
                let file: &File = if choice < 9 { &direct } else { &cached };
                file.write_all_at(bytes, offset)?;
            }
            choice => {
                let file: &File = if choice < 17 { &direct } else { &cached };
                file.read_exact_at(bytes, offset)?;
                compare(device, first, bytes, range);
            }
        }
        DONE.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(PAUSE);
    }
}

fn compare(device: &str, first: usize, bytes: &[u8], known: &[Content]) {
    let mut expected = [0; SECTOR];
    for (index, (sector, content)) in bytes.chunks_exact(SECTOR).zip(known).enumerate() {
        match content {
            Content::Unknown => continue,
            Content::Zeros => expected.fill(0),
            Content::Stamp(stamp) => fill(&mut expected, *stamp),
        }
        if sector != expected {
            trouble(format!("{device} sector {}: {:02x?} instead of {:02x?}", first + index, &sector[..8], &expected[..8]));
        }
    }
}
