//! A guest that resets over and over: how often that is told, and how long it stands still before it boots again.
//!
//! Lives here: the counting, without a clock. Not here: the reset itself (`epoch.rs`), and who asks for it (`run/life.rs`). Guards S7: a guest that cannot
//! start costs its host neither a log without end nor a processor.

use std::time::Duration;

/// A guest that lives no longer than this has not started: the quickest boot to anything useful takes as long.
const QUICK_NS: u64 = Duration::from_secs(1).as_nanos() as u64;
/// Quick resets in a row after which it is told that the guest does not start: more than any firmware-like first stage makes on purpose.
const MANY: u32 = 10;
/// The first pause, at [`MANY`] quick resets; it doubles at each of those that follow.
const FIRST_PAUSE_NS: u64 = Duration::from_millis(100).as_nanos() as u64;
/// The longest pause: a guest that waits for something outside to come back starts within it.
const LONGEST_PAUSE_NS: u64 = Duration::from_secs(5).as_nanos() as u64;
/// Resets are told this often at most, with their number.
const TOLD_EVERY_NS: u64 = Duration::from_secs(1).as_nanos() as u64;

/// The reset that the guest has asked for.
#[derive(Clone, Copy, Debug)]
struct Asked {
    /// When it is to be carried out.
    at_ns: u64,
    /// Quick resets in a row, this one included.
    quick: u32,
}

/// What is known of a guest's resets. Times are CLOCK_MONOTONIC.
#[derive(Debug)]
pub(crate) struct Resets {
    booted_ns: u64,
    /// Quick ones in a row that were carried out.
    quick: u32,
    asked: Option<Asked>,
    untold: u64,
    told_ns: Option<u64>,
}

/// The answer to a guest that asks for a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    /// When to carry it out.
    pub(crate) at_ns: u64,
    /// So many quick ones in a row: to be told to an operator, now.
    pub(crate) warn: Option<u32>,
}

impl Resets {
    /// Of a guest that began to run at `now_ns`, here or, before a failover, on another host.
    pub(crate) fn new(now_ns: u64) -> Resets {
        Resets { booted_ns: now_ns, quick: 0, asked: None, untold: 0, told_ns: None }
    }

    /// The guest asks for a reset. Asked again before it is carried out (by another vCPU) the answer is the same.
    pub(crate) fn asked(&mut self, now_ns: u64) -> Reply {
        if let Some(Asked { at_ns, .. }) = self.asked {
            return Reply { at_ns, warn: None };
        }
        let quick = self.quick_at(now_ns);
        let pause_ns = match quick.checked_sub(MANY) {
            None => 0,
            Some(doublings) => FIRST_PAUSE_NS
                .checked_shl(doublings)
                .filter(|ns| ns >> doublings == FIRST_PAUSE_NS)
                .unwrap_or(u64::MAX)
                .min(LONGEST_PAUSE_NS),
        };
        let at_ns = now_ns.saturating_add(pause_ns);
        self.asked = Some(Asked { at_ns, quick });
        Reply { at_ns, warn: (quick == MANY).then_some(quick) }
    }

    fn quick_at(&self, now_ns: u64) -> u32 {
        if now_ns.saturating_sub(self.booted_ns) < QUICK_NS { self.quick.saturating_add(1) } else { 0 }
    }

    /// The guest boots again; the number of resets to tell, if one is due.
    pub(crate) fn done(&mut self, now_ns: u64) -> Option<u64> {
        // An order for an earlier reset may have come upon this one before it was heard of.
        self.quick = self.asked.take().map_or_else(|| self.quick_at(now_ns), |asked| asked.quick);
        self.booted_ns = now_ns;
        self.untold += 1;
        self.due(now_ns)
    }

    /// There was nothing to be done: another vCPU's reset was for all of them.
    pub(crate) fn void(&mut self) {
        self.asked = None;
    }

    /// How many resets are to be told now: those since the last telling, if there are any and that is long enough ago.
    pub(crate) fn due(&mut self, now_ns: u64) -> Option<u64> {
        let long_ago = self.told_ns.is_none_or(|told| now_ns.saturating_sub(told) >= TOLD_EVERY_NS);
        if self.untold == 0 || !long_ago {
            return None;
        }
        self.told_ns = Some(now_ns);
        Some(std::mem::take(&mut self.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// A guest that asks for a reset `life_ns` after each boot, `times` times: the pauses, what is told, and the warnings.
    fn played(resets: &mut Resets, start_ns: u64, life_ns: u64, times: u32) -> (Vec<u64>, Vec<u64>, Vec<u32>, u64) {
        let (mut pauses, mut told, mut warned, mut now) = (Vec::new(), Vec::new(), Vec::new(), start_ns);
        for _ in 0..times {
            now += life_ns;
            let reply = resets.asked(now);
            pauses.push(reply.at_ns - now);
            warned.extend(reply.warn);
            now = reply.at_ns;
            told.extend(resets.done(now));
        }
        (pauses, told, warned, now)
    }

    #[test]
    fn a_guest_that_reboots_now_and_then_is_told_each_time_and_never_waits() {
        let (pauses, told, warned, _) = played(&mut Resets::new(0), 0, QUICK_NS, 100);
        assert_eq!((pauses, told, warned), (vec![0; 100], vec![1; 100], vec![]));
    }

    #[test]
    fn a_guest_that_does_not_start_is_warned_of_once_and_pauses_ever_longer() {
        let (pauses, _, warned, _) = played(&mut Resets::new(0), 0, 30 * MS, 100);
        assert_eq!(pauses[..9], [0; 9]);
        assert_eq!(pauses[9..16], [100, 200, 400, 800, 1600, 3200, 5000].map(|ms| ms * MS));
        assert!(pauses[16..].iter().all(|pause| *pause == LONGEST_PAUSE_NS));
        assert_eq!(warned, [MANY]);
    }

    #[test]
    fn resets_are_told_once_a_second_at_most_and_none_is_left_out() {
        let mut resets = Resets::new(0);
        let (_, told, _, now) = played(&mut resets, 0, 30 * MS, MANY - 1);
        assert_eq!((told, resets.due(now)), (vec![1], None));
        assert_eq!(resets.due(30 * MS + TOLD_EVERY_NS), Some(u64::from(MANY) - 2));

        let (_, told, _, now) = played(&mut resets, now, 30 * MS, 60);
        let rest = resets.due(now + TOLD_EVERY_NS).unwrap_or(0);
        assert_eq!(told.iter().sum::<u64>() + rest, 60);
        assert_eq!(resets.due(now + 2 * TOLD_EVERY_NS), None);
    }

    #[test]
    fn one_good_boot_is_a_new_beginning() {
        let mut resets = Resets::new(0);
        let (_, _, _, now) = played(&mut resets, 0, 30 * MS, 20);
        let (pauses, _, warned, now) = played(&mut resets, now, QUICK_NS, 1);
        assert_eq!((pauses, warned), (vec![0], vec![]));
        let (pauses, _, warned, _) = played(&mut resets, now, 30 * MS, 10);
        assert_eq!((pauses[8], pauses[9], warned), (0, FIRST_PAUSE_NS, vec![MANY]));
    }

    #[test]
    fn several_vcpus_that_ask_are_one_reset() {
        let mut resets = Resets::new(0);
        for round in 1..=MANY as u64 * 2 {
            let now = round * QUICK_NS * 2;
            assert_eq!(resets.asked(now), resets.asked(now + MS));
            resets.done(now + MS);
            // The third vCPU's word comes late, and nothing is to be done.
            assert_eq!(resets.asked(now + 2 * MS), Reply { at_ns: now + 2 * MS, warn: None });
            resets.void();
        }
    }
}
