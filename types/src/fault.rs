//! Fault points: places where a test can have the process die as if the host had, at the worst possible moment, or do one thing wrong that nothing outside can make it do.
//!
//! Armed only by the environment; unarmed a point costs one load. `LOCKSTEP_FAULT=point:n`: when the point is reached for the n-th time. `point:n:stop`: stop (SIGSTOP) there instead of dying, so that a test can wake the
//! process up when the world has gone on without it. Not here: any other kind of fault; tests make those from outside (signals, links, damaged bytes).

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::signal::{Signal, raise};

/// A place in an epoch's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// Primary: a part of the first copy was handed to the sender.
    MidSync,
    /// Primary: the guest is paused, its pages are copied, nothing is sealed.
    MidPause,
    /// Primary: an epoch's part is posted, perhaps not the last.
    MidSend,
    /// Primary: a commit has come, nothing of it is released.
    BeforeRelease,
    /// Primary: a commit has come, and none of that epoch's writes to a shared disk is issued.
    BeforeIssue,
    /// Granted, and older owners are not yet shut out of the shared disks.
    BeforeFence,
    /// Standby: a part of a committed epoch is in guest memory, perhaps not the last.
    MidApply,
    /// Standby: granted, nothing restored.
    MidActivation,
    /// Primary: granted, nothing of the guest started.
    BeforeStart,
    /// Primary: an epoch of many pages is captured. It does not die here: a page is left out ([`misbehave`]).
    MissPage,
}

impl Point {
    fn name(self) -> &'static str {
        match self {
            Point::MidSync => "mid-sync",
            Point::MidPause => "mid-pause",
            Point::MidSend => "mid-send",
            Point::BeforeRelease => "before-release",
            Point::BeforeIssue => "before-issue",
            Point::BeforeFence => "before-fence",
            Point::MidApply => "mid-apply",
            Point::MidActivation => "mid-activation",
            Point::BeforeStart => "before-start",
            Point::MissPage => "miss-page",
        }
    }
}

struct Armed {
    point: Point,
    left: AtomicU64,
    signal: Signal,
}

static ARMED: OnceLock<Option<Armed>> = OnceLock::new();

const ALL: [Point; 10] = [
    Point::MidSync,
    Point::MidPause,
    Point::MidSend,
    Point::BeforeRelease,
    Point::BeforeIssue,
    Point::BeforeFence,
    Point::MidApply,
    Point::MidActivation,
    Point::BeforeStart,
    Point::MissPage,
];

fn parse(text: &str) -> Option<Armed> {
    let (name, rest) = text.split_once(':')?;
    let (turns, signal) = match rest.split_once(':') {
        None => (rest, Signal::SIGKILL),
        Some((turns, "stop")) => (turns, Signal::SIGSTOP),
        Some(_) => return None,
    };
    let point = ALL.into_iter().find(|point| point.name() == name)?;
    Some(Armed { point, left: AtomicU64::new(turns.parse().ok().filter(|turns| *turns > 0)?), signal })
}

/// Dies (or stops) here if this is the armed point and its turn has come.
#[inline]
pub fn reach(point: Point) {
    if let Some(armed) = its_turn(point) {
        // Neither signal can be refused; should raising fail the test notices that nobody died.
        let _ = raise(armed.signal);
    }
}

/// Whether this is the armed point and its turn has come: then the caller does what the point's name says.
#[inline]
#[must_use]
pub fn misbehave(point: Point) -> bool {
    its_turn(point).is_some()
}

#[inline]
fn its_turn(point: Point) -> Option<&'static Armed> {
    let armed = ARMED.get_or_init(|| {
        let text = std::env::var("LOCKSTEP_FAULT").ok()?;
        let armed = parse(&text);
        if armed.is_none() {
            // A test with a typing error would test nothing.
            eprintln!("LOCKSTEP_FAULT={text} is not point:n or point:n:stop with one of {:?}", ALL.map(Point::name));
            std::process::exit(2);
        }
        armed
    });
    armed.as_ref().filter(|armed| armed.point == point && armed.left.fetch_sub(1, Ordering::Relaxed) == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_points_with_a_turn_are_armed() {
        assert!(parse("mid-send:3").is_some_and(|armed| armed.signal == Signal::SIGKILL));
        assert!(parse("before-issue:3:stop").is_some_and(|armed| armed.signal == Signal::SIGSTOP));
        for wrong in ["mid-send", "mid-send:", "mid-send:0", "mid-sent:3", "mid-send:3:", "mid-send:3:hang", "mid-send:3:stop:1", ""] {
            assert!(parse(wrong).is_none(), "{wrong}");
        }
    }
}
