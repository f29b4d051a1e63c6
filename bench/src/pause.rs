//! The pause that a guest feels of a checkpoint, against the floor: what its unavoidable parts take in the same run.
//!
//! floor(N) = stop and resume + capture + N x (dirty log, read and cleared, per page + memcpy of a scattered page). The parts are measured by plain loops
//! between the pauses, on the same machine under the same load. Not here: the pause itself (`primary::capture`), the guest ([`crate::writer_guest`]).

use std::path::Path;
use std::time::Instant;

use checkpoint::{GuestMap, VerifyMemory};
use dirty_tracking::DirtySet;
use primary::{CaptureBuffer, Order, capture};
use transport::Region;
use types::{Epoch, Generation, PAGE_SIZE};
use vm_memory::{GuestAddress, GuestMemoryBackend as _};

use crate::chart::{self, Labels, Scale, Series};
use crate::error::BenchError;
use crate::report::{Goal, Report};
use crate::rig::Context;
use crate::stats::{median, slope};
use crate::writer_guest::{MEMORY_BYTES, WriterGuest, frames};

const PAGES: [u64; 5] = [16, 64, 256, 1024, 4096];
/// Dirty pages of the pauses in which a window of memory is digested.
const WINDOW_DIRTY: u64 = 256;
/// Turns of each kind for each number of pages; the first are not counted.
const WARM_UP: usize = 10;

/// Times of one number of pages, microseconds, one for each turn.
#[derive(Default)]
struct Turns {
    pause: Vec<f64>,
    stop_resume: Vec<f64>,
    capture: Vec<f64>,
    log: Vec<f64>,
    copy: Vec<f64>,
}

/// Their medians.
struct Point {
    pages: u64,
    pause: f64,
    stop_resume: f64,
    capture: f64,
    log: f64,
    copy: f64,
}

impl Point {
    fn floor(&self, log_per_page: f64) -> f64 {
        self.stop_resume + self.capture + self.pages as f64 * log_per_page + self.copy
    }
}

/// Adds the figures and draws `pause.svg`.
///
/// # Errors
/// No KVM, or the machine fails.
pub fn measure(context: &Context<'_>, report: &mut Report) -> Result<(), BenchError> {
    let mut points = Vec::new();
    for pages in PAGES {
        eprint!("\r  {pages} pages");
        points.push(measure_point(context, pages)?);
    }
    eprintln!();
    let log_per_page = slope(&points.iter().map(|point| (point.pages as f64, point.log)).collect::<Vec<_>>());
    for point in &points {
        let name = format!("pause, {} dirty pages of 256 MiB (base: floor)", point.pages);
        report.add(&name, point.pause, "us", Some(point.floor(log_per_page)), Goal::RatioAtMost(1.5));
    }
    if let Some(last) = points.last() {
        report.add("  floor: stop and resume", last.stop_resume, "us", None, Goal::Informative);
        report.add("  floor: capture of machine state", last.capture, "us", None, Goal::Informative);
        report.add("  floor: dirty log, per page", log_per_page * 1e3, "ns", None, Goal::Informative);
        report.add("  floor: memcpy, per page of 4096", last.copy / last.pages as f64 * 1e3, "ns", None, Goal::Informative);
    }
    let (with, without) = measure_window(context)?;
    report.add(&format!("  with --verify-memory=1M, {WINDOW_DIRTY} pages (base: without)"), with, "us", Some(without), Goal::Informative);
    picture(&context.out.join("pause.svg"), &points, log_per_page)
}

/// Pauses with a window of 1 MiB digested in each, and without, in turn; medians.
fn measure_window(context: &Context<'_>) -> Result<(f64, f64), BenchError> {
    let guest = WriterGuest::start(WINDOW_DIRTY)?;
    let map = GuestMap::new(guest.machine.slots().slots().iter().map(|slot| slot.first.0..slot.first.0 + slot.pages));
    let mut set = DirtySet::new(guest.machine.slots());
    let mut buffer = CaptureBuffer::new(MEMORY_BYTES / PAGE_SIZE as u64, 0)?;
    let kinds = [VerifyMemory::Window { pages: 256 }, VerifyMemory::Off];
    let mut pauses = [Vec::new(), Vec::new()];
    for turn in 0..WARM_UP + context.rounds(300, 100) {
        context.go_on()?;
        for (verify, pauses) in kinds.iter().zip(&mut pauses) {
            guest.await_all_written()?;
            let (generation, epoch) = (Generation(1), Epoch(turn as u64 + 1));
            let verify = verify.window(&map, generation, epoch);
            let order = Order { machine: &guest.machine, output: None, disks: None, epoch, generation, verify };
            let captured = capture(&order, buffer, &mut set).map_err(|(error, _)| error)?;
            buffer = captured.buffer;
            if turn >= WARM_UP {
                pauses.push(captured.pause_ns as f64 / 1e3);
            }
        }
    }
    Ok((median("pause with a window", &pauses[0])?, median("pause", &pauses[1])?))
}

fn picture(path: &Path, points: &[Point], log_per_page: f64) -> Result<(), BenchError> {
    let line = |y: &dyn Fn(&Point) -> f64| points.iter().map(|point| (point.pages as f64, y(point))).collect::<Vec<_>>();
    let (pause, floor) = (line(&|point| point.pause), line(&|point| point.floor(log_per_page)));
    let labels = Labels {
        title: "Pause of a checkpoint, stop to resumed (1 vCPU, 256 MiB)",
        x: "dirty pages",
        y: "microseconds, median",
        scale: Scale::Log,
    };
    Ok(chart::lines(path, &labels, &[Series { name: "pause", points: &pause }, Series { name: "floor of this run", points: &floor }])?)
}

fn measure_point(context: &Context<'_>, pages: u64) -> Result<Point, BenchError> {
    let guest = WriterGuest::start(pages)?;
    let mut set = DirtySet::new(guest.machine.slots());
    let mut buffer = CaptureBuffer::new(MEMORY_BYTES / PAGE_SIZE as u64, 0)?;
    let copier = Copier::new(&guest, pages)?;
    // The same kind of memory as the capture's (huge pages where there are any), touched before it counts.
    let mut warm = Region::new(pages as usize * PAGE_SIZE)?.claim_all()?;
    warm.fill(1);
    let mut turns = Turns::default();
    for turn in 0..WARM_UP + context.rounds(200, 60) {
        context.go_on()?;
        let counted = turn >= WARM_UP;
        guest.await_all_written()?;
        let order = Order {
            machine: &guest.machine,
            output: None,
            disks: None,
            epoch: Epoch(turn as u64 + 1),
            generation: Generation(1),
            verify: None,
        };
        let captured = capture(&order, buffer, &mut set).map_err(|(error, _)| error)?;
        buffer = captured.buffer;
        // Until the guest has once run over its code and table, those are newly mapped, and may be reported with the rest.
        if counted && set.count() != pages {
            return Err(BenchError::Writer(format!("{} pages are dirty, not {pages}", set.count())));
        }

        guest.await_all_written()?;
        let begin = Instant::now();
        guest.machine.pause()?.resume();
        let stop_resume = begin.elapsed();

        guest.await_all_written()?;
        let mut paused = guest.machine.pause()?;
        set.clear();
        let begin = Instant::now();
        let state = paused.capture()?;
        let after_capture = Instant::now();
        paused.collect_dirty(&mut set)?;
        let after_log = Instant::now();
        copier.copy(&mut warm);
        let after_copy = Instant::now();
        drop(paused);
        drop(state);

        if counted {
            let us = |length: std::time::Duration| length.as_secs_f64() * 1e6;
            turns.pause.push(captured.pause_ns as f64 / 1e3);
            turns.stop_resume.push(us(stop_resume));
            turns.capture.push(us(after_capture - begin));
            turns.log.push(us(after_log - after_capture));
            turns.copy.push(us(after_copy - after_log));
        }
    }
    Ok(Point {
        pages,
        pause: median("pause", &turns.pause)?,
        stop_resume: median("stop and resume", &turns.stop_resume)?,
        capture: median("capture", &turns.capture)?,
        log: median("dirty log", &turns.log)?,
        copy: median("memcpy", &turns.copy)?,
    })
}

/// The plain loop: memcpy of one page after the other from known places to one buffer.
struct Copier<'a> {
    pages: Vec<*const u8>,
    _guest: &'a WriterGuest,
}

impl<'a> Copier<'a> {
    fn new(guest: &'a WriterGuest, pages: u64) -> Result<Copier<'a>, BenchError> {
        let host = |gfn: types::Gfn| {
            let found = guest.machine.memory().get_host_address(GuestAddress(gfn.address()));
            found.map(<*mut u8>::cast_const).map_err(|error| BenchError::Writer(error.to_string()))
        };
        Ok(Copier { pages: frames(pages).into_iter().map(host).collect::<Result<_, _>>()?, _guest: guest })
    }

    /// Copies every page to `to`, which has room for all of them. To be called while the guest is paused.
    fn copy(&self, to: &mut [u8]) {
        assert_eq!(to.len(), self.pages.len() * PAGE_SIZE);
        for (from, to) in self.pages.iter().zip(to.chunks_exact_mut(PAGE_SIZE)) {
            // SAFETY: `from` is the first byte of a page of guest memory, which the borrowed guest keeps mapped; `to` is a page of its own. Nothing
            // writes the page meanwhile: the guest's only writer, its vCPU, is paused.
            unsafe { std::ptr::copy_nonoverlapping(*from, to.as_mut_ptr(), PAGE_SIZE) };
        }
        std::hint::black_box(to);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_is_the_sum_of_its_parts() {
        let point = Point { pages: 100, pause: 0.0, stop_resume: 40.0, capture: 20.0, log: 99.0, copy: 25.0 };
        assert!((point.floor(0.05) - 90.0).abs() < 1e-9, "the log counts by its cost per page, the copy as it was measured");
    }
}
