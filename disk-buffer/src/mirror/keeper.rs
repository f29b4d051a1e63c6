//! A disk's work in the background, once a second: a standby's copy is made durable and the primary told; a protected primary clears the regions that both hosts hold durably; a copy that was just
//! activated is made durable and counts as consistent.
//!
//! Not here: any decision that a guest or a commit waits for.

use std::io;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, PoisonError};

use types::Epoch;

use super::{Inner, Phase, State};
use crate::changes::format::Header;
use crate::engine::{Op, Way};
use crate::hooks::DiskEvent;
use crate::identity::{CopyState, DataId};

/// With more regions marked than this, recently written ones are cleared too: what a host that returns has to copy stays within a gigabyte and what is not durable.
const HOT_REGIONS: u32 = 1024;

/// What there is to do now.
enum Task {
    Settle { applied: Epoch, first: bool, id: DataId, current: DataId },
    Activated,
    Clear { epoch: Epoch, first: bool },
}

pub(crate) fn run(disk: &Arc<Inner>) {
    loop {
        let session;
        let task = {
            let mut state = disk.lock();
            if state.stop {
                return;
            }
            // An activated copy and a standby's first epoch do not wait for the period.
            if !urgent(&state) {
                state = wait(disk, state);
            }
            if state.stop {
                return;
            }
            state.ticks += 1;
            // With the task, and not when it begins: what the disk has become in between is none of its business.
            session = state.session;
            match &state.phase {
                _ if state.turning => None,
                Phase::Alone | Phase::Copying(_) | Phase::Recording(_) | Phase::Protected(_) if state.unsettled => Some(Task::Activated),
                Phase::Standby(following)
                    if following.touched > following.settled || following.settled == Epoch::NONE && following.applied > Epoch::NONE =>
                {
                    let first = following.settled == Epoch::NONE;
                    (following.applied > following.settled).then_some(Task::Settle {
                        applied: following.applied,
                        first,
                        id: following.id,
                        current: following.current,
                    })
                }
                Phase::Protected(record) if state.peer_durable.min(record.released()) > state.peer_settled => {
                    let epoch = state.peer_durable.min(record.released());
                    Some(Task::Clear { epoch, first: state.peer_settled == Epoch::NONE })
                }
                // What was too hot to be cleared the last time may have cooled.
                Phase::Protected(_)
                    if state.peer_settled > Epoch::NONE
                        && !state.last_written.is_empty()
                        && state.ticks.is_multiple_of(disk.hot_ticks.max(1)) =>
                {
                    Some(Task::Clear { epoch: state.peer_settled, first: false })
                }
                _ => None,
            }
        };
        let done = match task {
            None => Ok(()),
            Some(Task::Settle { applied, first, id, current }) => settle(disk, session, applied, first.then_some((id, current))),
            Some(Task::Activated) => activated(disk),
            Some(Task::Clear { epoch, first }) => clear(disk, session, epoch, first),
        };
        if let Err(error) = done {
            tracing::warn!(disk = %disk.index, %error, "the disk could not be made durable");
        }
    }
}

/// There is something that does not wait for the period.
fn urgent(state: &State) -> bool {
    let first = matches!(&state.phase, Phase::Standby(following) if following.settled == Epoch::NONE && following.applied > Epoch::NONE);
    !state.turning && (state.unsettled || first)
}

/// Until the period is over or the disk is dropped; earlier when something begins that does not wait.
fn wait<'a>(disk: &'a Inner, state: std::sync::MutexGuard<'a, State>) -> std::sync::MutexGuard<'a, State> {
    let waited = disk.changed.wait_timeout_while(state, disk.settle, |state| !state.stop && !urgent(state));
    waited.unwrap_or_else(PoisonError::into_inner).0
}

/// `None`: it is not answered yet, and what it was for is over (`still`). Without a bound of its own: this thread has nothing to do that needs no medium, and whether that hangs is the watch's question.
fn flush(disk: &Inner, still: impl Fn(&State) -> bool) -> Option<io::Result<()>> {
    let (answer, wait) = sync_channel(1);
    // An engine that has ended gives the reply back: dropped, it hangs up.
    drop(disk.engine.submit(Op::Flush, Way { direct: false, mark: false }, Box::new(move |result| drop(answer.send(result)))));
    loop {
        match wait.recv_timeout(disk.settle) {
            Ok(result) => return Some(result.map(drop).map_err(io::Error::from_raw_os_error)),
            Err(RecvTimeoutError::Disconnected) => return Some(Err(io::Error::from_raw_os_error(libc::EIO))),
            Err(RecvTimeoutError::Timeout) if still(&disk.lock()) => {}
            Err(RecvTimeoutError::Timeout) => return None,
        }
    }
}

fn settle(disk: &Arc<Inner>, session: u64, applied: Epoch, first: Option<(DataId, DataId)>) -> io::Result<()> {
    match flush(disk, |state| state.session == session) {
        None => return Ok(()),
        Some(Ok(())) => {}
        Some(Err(error)) => {
            disk.fail(io::Error::from_raw_os_error(error.raw_os_error().unwrap_or(libc::EIO)), "making it durable");
            return Err(error);
        }
    }
    if let Some((id, current)) = first {
        // Under the log's lock, so that an activation cannot come in between: after it this generation is a thing of the past.
        let mut log = disk.log.lock();
        if disk.lock().session != session {
            return Ok(());
        }
        if let Some(log) = log.as_mut()
            && let Err(error) = disk.log.write(log, |header| {
                header.id = id;
                header.current = current;
                header.base = current;
                header.joining = DataId::NONE;
                header.state = CopyState::Following;
            })
        {
            drop_failed(disk, &error.to_string());
            return Err(io::Error::other(error));
        }
        // The primary has marked them too, and clears them when it knows that all of this is durable.
        disk.engine.clear_marks(|_| true);
    }
    let generation = {
        let mut state = disk.lock();
        let same = state.session == session;
        match &mut state.phase {
            Phase::Standby(following) if same => {
                following.settled = applied;
                following.generation
            }
            _ => return Ok(()),
        }
    };
    disk.front.tell(DiskEvent::Durable { disk: disk.index, epoch: applied, generation });
    Ok(())
}

fn drop_failed(disk: &Inner, error: &str) {
    disk.fail(io::Error::other(error.to_owned()), "its change log");
}

fn activated(disk: &Arc<Inner>) -> io::Result<()> {
    // Once: a flush that fails has told the guest, or will.
    disk.lock().unsettled = false;
    // Whatever becomes of the node's part: it is of every part's interest.
    if let Some(Err(error)) = flush(disk, |_| true) {
        // Unless it only waits for space.
        disk.lock().unsettled = disk.engine.full_since().is_some();
        return Err(error);
    }
    disk.update_header(|header| header.state = CopyState::Consistent).map_err(io::Error::other)
}

fn clear(disk: &Arc<Inner>, session: u64, epoch: Epoch, first: bool) -> io::Result<()> {
    // What was written for that epoch and is not carried out here, or not durable, must stay marked: a loss of power here would lose what the other host has.
    match flush(disk, |state| state.session == session) {
        None => return Ok(()),
        Some(flushed) => flushed?,
    }
    if first {
        let mut log = disk.log.lock();
        if disk.lock().session != session {
            return Ok(());
        }
        if let Some(log) = log.as_mut() {
            // From here on regions are marked with regard to the copy that the standby has now, and to nothing else.
            let counts = |header: &mut Header| {
                header.base = header.current;
                header.joining = DataId::NONE;
            };
            disk.log.write(log, counts).map_err(io::Error::other)?;
        }
    }
    let mut state = disk.lock();
    if state.session != session {
        return Ok(());
    }
    state.peer_settled = state.peer_settled.max(epoch);
    let now = state.ticks;
    let marked = disk.engine.marked().map_or(0, |set| set.count());
    let last_written = &state.last_written;
    let mut cleared = Vec::new();
    let left = disk.engine.clear_marks(|region| {
        let clear =
            last_written.get(&region).is_none_or(|(last, ticks)| *last <= epoch && (marked > HOT_REGIONS || ticks + disk.hot_ticks < now));
        cleared.extend(clear.then_some(region));
        clear
    });
    for region in cleared {
        state.last_written.remove(&region);
    }
    tracing::debug!(disk = %disk.index, %epoch, marked, left, "change log cleared");
    Ok(())
}
