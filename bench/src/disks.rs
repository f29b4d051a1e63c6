//! What a disk costs: writes through `disk_buffer::Disk`, alone and protected, beside direct writes (O_DIRECT) to a plain file on the same medium by as many threads as requests are in flight.
//!
//! The protected figure has both copies on one medium, so that every byte is written twice there: two hosts have a medium each. The standby's half happens in this process too.

use std::fs::{File, OpenOptions};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use disk_buffer::{Disk, DiskOptions, plan};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rand::Rng;
use types::block::{BlockOp, BlockRequest, DiskIndex};
use types::{Commit, Epoch, Generation};

use crate::error::BenchError;
use crate::report::{Goal, Report};
use crate::rig::Context;
use crate::stats::median;

/// Size of the images: larger than what a round writes sequentially.
const IMAGE_BYTES: u64 = 256 << 20;
/// Time of one measurement.
const ROUND: Duration = Duration::from_millis(1500);
/// An epoch of the protected disk.
const EPOCH: Duration = Duration::from_millis(10);
/// Buffers for direct writes are aligned to this.
const ALIGN: usize = 4096;

/// What is written.
#[derive(Clone, Copy)]
struct Load {
    name: &'static str,
    bytes: usize,
    depth: usize,
    random: bool,
    unit: &'static str,
}

const LOADS: [Load; 3] = [
    Load { name: "1 MiB sequential writes, 4 at a time", bytes: 1 << 20, depth: 4, random: false, unit: "MB/s" },
    Load { name: "4 KiB random writes, 16 at a time", bytes: 4096, depth: 16, random: true, unit: "MB/s" },
    Load { name: "4 KiB random writes, one at a time", bytes: 4096, depth: 1, random: true, unit: "MB/s" },
];

impl Load {
    fn offset(&self, number: u64) -> u64 {
        let places = IMAGE_BYTES / self.bytes as u64;
        (if self.random { rand::rng().random_range(0..places) } else { number % places }) * self.bytes as u64
    }

    fn speed(&self, writes: u64, seconds: f64) -> f64 {
        writes as f64 * self.bytes as f64 / 1e6 / seconds
    }
}

/// Adds the figures.
///
/// # Errors
/// A disk fails or the folder cannot be written to.
pub fn measure(context: &Context<'_>, report: &mut Report) -> Result<(), BenchError> {
    let folder = tempfile::tempdir_in(&context.out).map_err(BenchError::io("make a folder for the images"))?;
    for load in LOADS {
        let mut speeds = [Vec::new(), Vec::new(), Vec::new()];
        for _ in 0..context.rounds(3, 1) {
            context.go_on()?;
            speeds[0].push(plain(folder.path(), load)?);
            speeds[1].push(alone(folder.path(), load)?);
            speeds[2].push(protected(folder.path(), load)?);
        }
        let base = median(load.name, &speeds[0])?;
        report.add(&format!("disk alone, {}", load.name), median(load.name, &speeds[1])?, load.unit, Some(base), Goal::Informative);
        report.add(&format!("disk protected, {}", load.name), median(load.name, &speeds[2])?, load.unit, Some(base), Goal::Informative);
    }
    Ok(())
}

/// An image without holes, so that nothing measures the file system's allocation.
fn image(folder: &Path, name: &str) -> Result<std::path::PathBuf, BenchError> {
    let fail = || BenchError::io("make an image");
    let path = folder.join(name);
    let file = File::create(&path).map_err(fail())?;
    let piece = vec![1; 1 << 20];
    for number in 0..IMAGE_BYTES >> 20 {
        file.write_all_at(&piece, number << 20).map_err(fail())?;
    }
    file.sync_all().map_err(fail())?;
    Ok(path)
}

fn plain(folder: &Path, load: Load) -> Result<f64, BenchError> {
    let path = image(folder, "plain")?;
    let file = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(path).map_err(BenchError::io("open a plain file"))?;
    let begin = Instant::now();
    let writer = |thread: usize| -> std::io::Result<u64> {
        let memory = vec![2u8; load.bytes + ALIGN];
        let at = memory.as_ptr().align_offset(ALIGN);
        let mut writes = 0;
        while begin.elapsed() < ROUND {
            file.write_all_at(&memory[at..at + load.bytes], load.offset(writes * load.depth as u64 + thread as u64))?;
            writes += 1;
        }
        Ok(writes)
    };
    let writes = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..load.depth).map(|thread| scope.spawn(move || writer(thread))).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| BenchError::Thread)?.map_err(BenchError::io("write to a plain file")))
            .sum::<Result<u64, _>>()
    })?;
    Ok(load.speed(writes, begin.elapsed().as_secs_f64()))
}

fn open(folder: &Path, name: &str, overwrite: bool) -> Result<Disk, BenchError> {
    let path = image(folder, name)?;
    let log = folder.join(format!("{name}.log"));
    // Each round begins with a log of its own.
    let _ = std::fs::remove_file(&log);
    Ok(Disk::open(DiskIndex(0), &DiskOptions { path, log: Some(log), overwrite, ..DiskOptions::default() })?)
}

/// Writes for a round, with `depth` requests in flight, and calls `between` about once an epoch.
fn write(disk: &Disk, load: Load, mut between: impl FnMut() -> Result<(), BenchError>) -> Result<f64, BenchError> {
    let data: Arc<[u8]> = vec![3; load.bytes].into();
    let (mut number, mut in_flight, mut answered) = (0u64, 0, 0u64);
    let mut done = Vec::new();
    let begin = Instant::now();
    let mut epoch_at = begin;
    while begin.elapsed() < ROUND || in_flight > 0 {
        let mut full = false;
        while begin.elapsed() < ROUND && in_flight < load.depth && !full {
            let op = BlockOp::Write { offset: load.offset(number), data: Arc::clone(&data) };
            full = disk.submit(BlockRequest { tag: number, op }).is_err();
            if !full {
                number += 1;
                in_flight += 1;
            }
        }
        if full || epoch_at.elapsed() >= EPOCH {
            between()?;
            epoch_at = Instant::now();
        }
        if in_flight == 0 {
            continue;
        }
        // SAFETY: the disk keeps its eventfd open, and outlives this call.
        let event = unsafe { BorrowedFd::borrow_raw(disk.event()) };
        poll(&mut [PollFd::new(event, PollFlags::POLLIN)], PollTimeout::from(1000u16))
            .map_err(|e| BenchError::io("wait for a disk")(e.into()))?;
        disk.take_done(&mut done);
        in_flight -= done.len();
        answered += done.len() as u64;
        if done.drain(..).any(|answer| answer.result.is_err()) {
            return Err(BenchError::Broken("a disk answered a write with an error".to_owned()));
        }
    }
    Ok(load.speed(answered, begin.elapsed().as_secs_f64()))
}

fn alone(folder: &Path, load: Load) -> Result<f64, BenchError> {
    let disk = open(folder, "alone", false)?;
    disk.start_primary()?;
    write(&disk, load, || Ok(()))
}

fn protected(folder: &Path, load: Load) -> Result<f64, BenchError> {
    let (primary, standby) = (open(folder, "primary", false)?, open(folder, "standby", true)?);
    primary.start_primary()?;
    let (ours, theirs) = (primary.identity()?, standby.identity()?);
    let plan = plan(&ours, &theirs);
    standby.join(&plan, &ours, Generation(1))?;
    let mut copy = primary.begin_copy(&plan, &theirs)?;
    copy.record(Generation(1))?;
    while let Some(piece) = copy.next_piece()? {
        piece.blocks().try_for_each(|(number, content)| standby.sync_block(number * ALIGN as u64, content))?;
    }
    let mut epoch = Epoch::NONE;
    let mut end_epoch = || -> Result<(), BenchError> {
        epoch = epoch.next();
        let sealed = primary.seal(epoch)?;
        standby.stage(epoch, sealed.to_vec())?;
        primary.release(&Commit::attest(Generation(1), epoch));
        standby.commit(epoch)?;
        Ok(())
    };
    end_epoch()?;
    write(&primary, load, end_epoch)
}
