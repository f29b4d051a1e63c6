//! Stamped memory: pages that are written over and over, each with its number and version in every word, and verified before each new write.
//! A page that was lost, torn or exchanged by a failover shows (S5).

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const WORDS: usize = 4096 / 8;
/// Pages written between two sleeps.
const BATCH: u64 = 64;
/// Sleep between two batches: at most 3200 pages a second, which a lab host's link carries.
const PAUSE: Duration = Duration::from_millis(20);

/// Pages verified so far.
static VERIFIED: AtomicU64 = AtomicU64::new(0);
/// Pages that were not what had been written.
static WRONG: AtomicU64 = AtomicU64::new(0);
static FIRST: Mutex<Option<String>> = Mutex::new(None);

/// The word at `index` of a page.
fn word(page: u64, version: u64, index: usize) -> u64 {
    (page ^ (version << 24)).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ index as u64
}

/// Stamps `mib` MiB for ever.
pub fn run(mib: usize) {
    let pages = (mib << 20) / 4096;
    let mut memory = vec![[0u64; WORDS]; pages];
    let mut versions = vec![0u64; pages];
    for (number, page) in memory.iter_mut().enumerate() {
        write(page, number as u64, 0);
    }
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    loop {
        for _ in 0..BATCH {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let number = (random % pages as u64) as usize;
            verify(&memory[number], number as u64, versions[number]);
            versions[number] += 1;
            write(&mut memory[number], number as u64, versions[number]);
        }
        std::thread::sleep(PAUSE);
    }
}

fn write(page: &mut [u64; WORDS], number: u64, version: u64) {
    for (index, place) in page.iter_mut().enumerate() {
        *place = word(number, version, index);
    }
}

fn verify(page: &[u64; WORDS], number: u64, version: u64) {
    VERIFIED.fetch_add(1, Ordering::Relaxed);
    // Not to be optimised away: the memory may have been changed by others than this program, which is what is looked for.
    let page = std::hint::black_box(page);
    if let Some(index) = (0..WORDS).find(|&index| page[index] != word(number, version, index)) {
        WRONG.fetch_add(1, Ordering::Relaxed);
        let mut first = FIRST.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        first.get_or_insert_with(|| format!("page {number} version {version} word {index}: {:#x}", page[index]));
    }
}

/// `key=value` lines.
pub fn status() -> String {
    let first = FIRST.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone().unwrap_or_default();
    format!("stamps_verified={}\nstamps_wrong={}\nstamps_first={first}\n", VERIFIED.load(Ordering::Relaxed), WRONG.load(Ordering::Relaxed))
}
