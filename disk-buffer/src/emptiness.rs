//! Whether an image holds nothing but zeros, found out in the background: an empty disk has to be read to its end, and a large one outlasts any handshake.
//!
//! Begun when it is first asked for (a copy that Lockstep knows needs no look). What was found stays true: the image is locked, and it is asked only as long as Lockstep has never written to it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use types::block::DiskIndex;

use crate::error::DiskError;
use crate::image::Image;

/// How long an answer is waited for: the disks of a machine are asked one after the other, and all of them well within the time in which a standby must answer a Hello (5 s). Content is found near the start of most
/// disks, and holes are not read.
const ANSWER_BOUND: Duration = Duration::from_millis(200);
/// How long dropping waits for the thread: one piece is read in less, unless the medium hangs.
const STOP_BOUND: Duration = Duration::from_secs(2);

#[derive(Default)]
struct Look {
    begun: bool,
    ended: bool,
    stop: bool,
    found: Option<Result<bool, DiskError>>,
}

#[derive(Default)]
struct Shared {
    look: Mutex<Look>,
    changed: Condvar,
    /// Bytes looked at.
    read: AtomicU64,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Look> {
        self.look.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The look at one image.
#[derive(Default)]
pub(crate) struct Emptiness(Arc<Shared>);

impl Emptiness {
    /// Whether `image` is empty; begins to look, or looks again after an error.
    ///
    /// # Errors
    /// [`DiskError::Looking`] while it is not known; when it cannot be read, or there is no thread.
    pub(crate) fn ask(&self, disk: DiskIndex, image: &Arc<Image>) -> Result<bool, DiskError> {
        let until = Instant::now() + ANSWER_BOUND;
        let mut look = self.0.lock();
        if !std::mem::replace(&mut look.begun, true) {
            let (shared, image) = (Arc::clone(&self.0), Arc::clone(image));
            let body = move || run(&shared, image);
            let spawned = std::thread::Builder::new().name(format!("{disk}-look")).spawn(body);
            if let Err(source) = spawned {
                look.begun = false;
                return Err(DiskError::Thread { disk, source });
            }
        }
        loop {
            match &look.found {
                Some(Ok(empty)) => return Ok(*empty),
                Some(Err(_)) => {
                    let error = look.found.take();
                    *look = Look::default();
                    return error.unwrap_or(Ok(false));
                }
                None => {}
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let percent = self.0.read.load(Ordering::Relaxed) * 100 / image.bytes().max(1);
                return Err(DiskError::Looking { disk, percent });
            }
            look = self.0.changed.wait_timeout(look, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn run(shared: &Shared, image: Arc<Image>) {
    let found = image.is_empty_while(|offset| {
        shared.read.store(offset, Ordering::Relaxed);
        !shared.lock().stop
    });
    // Before it is said that this has ended: with it goes the image's lock.
    drop(image);
    let mut look = shared.lock();
    look.found = Some(found);
    look.ended = true;
    shared.changed.notify_all();
}

impl Drop for Emptiness {
    fn drop(&mut self) {
        let mut look = self.0.lock();
        look.stop = true;
        if look.begun {
            // It has the image, and with it the lock that the next one to open it needs.
            let _ = self.0.changed.wait_timeout_while(look, STOP_BOUND, |look| !look.ended);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Cache;

    fn image(content: &[u8]) -> (tempfile::NamedTempFile, Arc<Image>) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        let image = Image::open(file.path(), false, Cache::Buffered).unwrap();
        (file, Arc::new(image))
    }

    #[test]
    fn an_answer_that_is_not_there_in_time_is_an_error_and_comes_later() {
        let (_file, image) = image(&[0; 4096]);
        let asked = Emptiness::default();
        // As of a thread that has 1024 bytes behind it.
        asked.0.lock().begun = true;
        asked.0.read.store(1024, Ordering::Relaxed);

        let early = asked.ask(DiskIndex(3), &image);
        run(&asked.0, Arc::clone(&image));

        assert!(matches!(early, Err(DiskError::Looking { disk: DiskIndex(3), percent: 25 })), "{early:?}");
        assert!(asked.ask(DiskIndex(3), &image).unwrap());
    }

    #[test]
    fn content_and_its_absence_are_found_and_the_lock_goes_with_the_look() {
        for (byte, empty) in [(0, true), (7, false)] {
            let (file, image) = image(&vec![byte; 1 << 20]);
            let asked = Emptiness::default();
            assert_eq!(asked.ask(DiskIndex(0), &image).unwrap(), empty);
            drop((asked, image));
            Image::open(file.path(), false, Cache::Buffered).expect("nobody holds it any more");
        }
    }
}
