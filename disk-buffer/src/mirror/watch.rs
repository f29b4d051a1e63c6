//! What only time tells of a mirror's medium: that it is full, and that it hangs.
//!
//! Lives here: the looks, once a second, on a thread that asks the medium for nothing itself and so is there when everything else waits for it; and what follows for whom. Not here: the arithmetic ([`crate::hang`]), what a failed copy is
//! ([`super::standby`]). Guards S2: a copy whose medium hangs is a copy that failed, by the same path, so no guest starts from it and nobody waits for it without a bound.
//!
//! | part | hangs | then |
//! |---|---|---|
//! | protected primary | nothing that the guest asked for was answered for the bound | gives up its role: the standby can serve |
//! | standby, or about to be one, or taking over | one request (of an epoch, of the copy, a flush), an update or the header of the change log was not completed for the bound | its copy has failed, as by an error of the medium |
//! | primary without a standby | | the guest waits, as for any disk |
//!
//! A standby is held to a stricter measure than a primary: one write that stays out keeps every epoch after it from counting as applied, whatever else the medium still does.

use std::io;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::{Inner, Phase, State};
use crate::engine::Awaited;
use crate::engine::queue::Id;
use crate::full::Fullness;
use crate::hang::{Patience, period};
use crate::hooks::DiskEvent;

/// What makes room for an image that is full.
const ROOM: &str = "make room on its file system (df, df -i, quotas), or make that larger";

/// What is watched.
#[derive(Debug)]
pub(super) struct Watch {
    /// Answers to requests of the guest.
    guest: Patience<u64>,
    request: Patience<(Id, u32)>,
    update: Patience<u64>,
    header: Patience<u64>,
    full: Fullness,
}

impl Watch {
    pub(super) fn new(bound: Duration) -> Watch {
        Watch {
            guest: Patience::new(bound),
            request: Patience::new(bound),
            update: Patience::new(bound),
            header: Patience::new(bound),
            full: Fullness::default(),
        }
    }

    /// Whether the guest waits for a medium that hangs, and whether the copy does.
    fn hangs(&mut self, now: Instant, guest: Option<u64>, engine: Awaited, header: Option<u64>) -> (bool, bool) {
        let guest = self.guest.hangs(now, guest);
        // Each of them looks, whatever the one before has found.
        let copy = [self.request.hangs(now, engine.request), self.update.hangs(now, engine.update), self.header.hangs(now, header)];
        (guest, copy.contains(&true))
    }
}

/// Until the disk is dropped.
pub(super) fn run(disk: &Arc<Inner>) {
    let period = period(disk.hang).min(disk.full);
    let mut watch = Watch::new(disk.hang);
    let mut state = disk.lock();
    while !state.stop {
        drop(state);
        disk.watch_full(&mut watch);
        disk.watch_hang(&mut watch);
        state = disk.lock();
        if !state.stop {
            state = disk.ended.wait_timeout(state, period).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl State {
    /// A standby's copy, or one that is about to be.
    pub(super) fn is_standbys(&self) -> bool {
        match self.phase {
            Phase::Standby(_) => true,
            Phase::Idle => self.turning,
            _ => false,
        }
    }
}

impl Inner {
    fn watch_hang(&self, watch: &mut Watch) {
        let (engine, header) = (self.engine.awaited(), self.log.awaited());
        let mut state = self.lock();
        let waiting = (state.guest > 0).then_some(state.answered);
        let (guest, copy) = watch.hangs(Instant::now(), waiting, engine, header);
        if copy && state.is_standbys() {
            drop(state);
            let error = format!("the medium hangs: it has not completed a request for {:?}", self.hang);
            return self.fail(io::Error::new(io::ErrorKind::TimedOut, error), "waiting for it");
        }
        // The requests stay in flight, as those that fail do.
        if guest && matches!(state.phase, Phase::Protected(_)) && !std::mem::replace(&mut state.hung, true) {
            tracing::error!(disk = %self.index, requests = state.guest, bound = ?self.hang, "the disk hangs while a standby can serve; this node gives up its role");
            drop(state);
            self.front.tell(DiskEvent::GiveUp { disk: self.index, error: Arc::new(io::Error::from_raw_os_error(libc::ETIMEDOUT)) });
        }
    }

    /// A medium that is full holds requests up; tells of it, and gives them up where another node's copy can serve instead.
    fn watch_full(&self, watch: &mut Watch) {
        let since = self.engine.full_since();
        let bound = match &*self.lock() {
            State { phase: Phase::Protected(_), .. } => Some(self.full * 2),
            State { phase: Phase::Standby(_), last: false, .. } => Some(self.full),
            State { phase: Phase::Shut | Phase::Failed(_), .. } => Some(Duration::ZERO),
            _ => None,
        };
        if let Some(event) = watch.full.look(since.is_some(), self.index, self.image.path(), ROOM) {
            self.front.tell(event);
        }
        if since.is_some_and(|since| bound.is_some_and(|bound| since.elapsed() >= bound)) {
            self.engine.give_up_full();
        }
    }

    /// Whether what waits for this medium waits for space and nothing else can be done about it.
    pub(super) fn waits_for_space(&self, state: &State) -> bool {
        state.last && self.engine.full_since().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const NOTHING: Awaited = Awaited { request: None, update: None };

    /// Looks once a second; the number of the look that finds that the copy's medium hangs.
    fn found(engine: impl Fn(u32) -> Awaited, header: impl Fn(u32) -> Option<u64>) -> Option<u32> {
        let (start, mut watch) = (Instant::now(), Watch::new(30 * SECOND));
        (0..100).find(|second| watch.hangs(start + *second * SECOND, None, engine(*second), header(*second)).1)
    }

    #[test]
    fn one_request_that_stays_out_is_a_hang_whatever_else_moves() {
        let request = |second: u32| Awaited { request: Some((Id(7), 0)), update: Some(second.into()) };
        assert_eq!(found(request, |second| Some(second.into())), Some(30));
        let update = |second: u32| Awaited { request: Some((Id(second.into()), 0)), update: Some(1) };
        assert_eq!(found(update, |_| None), Some(30));
        assert_eq!(found(|_| NOTHING, |_| Some(1)), Some(30));
    }

    #[test]
    fn a_request_that_is_answered_in_parts_or_asked_again_for_want_of_space_moves() {
        assert_eq!(found(|second| Awaited { request: Some((Id(7), second / 20)), update: None }, |_| None), None);
        assert_eq!(found(|_| NOTHING, |_| None), None);
    }

    #[test]
    fn what_the_guest_waits_for_is_another_question() {
        let (start, mut watch) = (Instant::now(), Watch::new(30 * SECOND));
        let found = (0..100).find_map(|second| match watch.hangs(start + second * SECOND, Some(3), NOTHING, None) {
            (false, false) => None,
            found => Some((second, found)),
        });
        assert_eq!(found, Some((30, (true, false))));
    }
}
