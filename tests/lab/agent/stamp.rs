//! Stamped memory: pages that are written over and over, each with its number and version in every word, and verified before each new write.
//! A page that was lost, torn or exchanged by a failover shows (S5). One thread on every processor, each with memory of its own.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::sys::{self, MOST_CPUS};

const WORDS: usize = 4096 / 8;
/// Pages written between two sleeps.
const BATCH: u64 = 32;
/// Sleep between two batches, times the number of processors and the pace: at most a thousand pages a second from all. A lab host encodes and sends five thousand; each
/// epoch has some of them, and they do not set the time that a database's flushes take.
const PAUSE: Duration = Duration::from_millis(30);

/// Pages verified so far, by processor.
static VERIFIED: [AtomicU64; MOST_CPUS] = [const { AtomicU64::new(0) }; MOST_CPUS];
/// Pages that were not what had been written.
static WRONG: AtomicU64 = AtomicU64::new(0);
/// Where the stamped memory is: first address and pages, of each processor.
static PLACES: Mutex<Vec<(usize, usize)>> = Mutex::new(Vec::new());
/// An entry of /proc/PID/pagemap has the frame's number in its lower 55 bits (Documentation/admin-guide/mm/pagemap.rst).
const FRAME: u64 = (1 << 55) - 1;
/// The first frame above 4 GiB.
const HIGH: u64 = 1 << 20;
static FIRST: Mutex<Option<String>> = Mutex::new(None);

/// The word at `index` of a page.
fn word(page: u64, version: u64, index: usize) -> u64 {
    (page ^ (version << 24)).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ index as u64
}

/// Stamps `mib` MiB from processor `cpu` for ever, sleeping `pauses` times the usual between batches.
pub fn run(cpu: usize, pauses: u32, mib: usize) {
    if let Err(error) = sys::pin(cpu) {
        return println!("agent: cannot stamp from processor {cpu}: {error}");
    }
    let pages = (mib << 20) / 4096;
    let mut memory = vec![[0u64; WORDS]; pages];
    PLACES.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((memory.as_ptr() as usize, pages));
    let mut versions = vec![0u64; pages];
    for (number, page) in memory.iter_mut().enumerate() {
        write(page, name(cpu, number), 0);
    }
    let mut random = 0x2545_f491_4f6c_dd1d_u64 ^ (cpu as u64) << 40;
    loop {
        for _ in 0..BATCH {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let number = (random % pages as u64) as usize;
            verify(&memory[number], name(cpu, number), versions[number]);
            VERIFIED[cpu].fetch_add(1, Ordering::Relaxed);
            versions[number] += 1;
            write(&mut memory[number], name(cpu, number), versions[number]);
        }
        std::thread::sleep(PAUSE * pauses);
    }
}

/// What is stamped into page `number` of processor `cpu`'s: no two pages of the guest have the same.
fn name(cpu: usize, number: usize) -> u64 {
    (cpu as u64) << 20 | number as u64
}

fn write(page: &mut [u64; WORDS], number: u64, version: u64) {
    for (index, place) in page.iter_mut().enumerate() {
        *place = word(number, version, index);
    }
}

fn verify(page: &[u64; WORDS], number: u64, version: u64) {
    // Not to be optimised away: the memory may have been changed by others than this program, which is what is looked for.
    let page = std::hint::black_box(page);
    if let Some(index) = (0..WORDS).find(|&index| page[index] != word(number, version, index)) {
        WRONG.fetch_add(1, Ordering::Relaxed);
        let mut first = FIRST.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        first.get_or_insert_with(|| format!("page {number} version {version} word {index}: {:#x}", page[index]));
    }
}

/// `key=value` lines; what was verified is told for each processor, separated by commas.
pub fn status() -> String {
    let first = FIRST.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone().unwrap_or_default();
    let verified = crate::each_cpu(&VERIFIED);
    let wrong = WRONG.load(Ordering::Relaxed);
    let high = high().map_or_else(|error| error.to_string(), |count| count.to_string());
    format!("stamps_verified={verified}\nstamps_wrong={wrong}\nstamps_first={first}\nstamps_above_4g={high}\n")
}

/// Pages of stamped memory whose frames lie above 4 GiB of guest memory.
fn high() -> std::io::Result<usize> {
    use std::os::unix::fs::FileExt;
    let pagemap = std::fs::File::open("/proc/self/pagemap")?;
    let places = PLACES.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
    let mut high = 0;
    for (address, pages) in places {
        let mut entries = vec![0; pages * 8];
        pagemap.read_exact_at(&mut entries, (address / 4096 * 8) as u64)?;
        let frames = entries.chunks_exact(8).map(|entry| u64::from_le_bytes(entry.try_into().unwrap_or_default()) & FRAME);
        high += frames.filter(|frame| *frame >= HIGH).count();
    }
    Ok(high)
}
