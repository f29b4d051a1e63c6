//! How the time stamp counters and the clock of a restored machine go on. Arithmetic only.
//!
//! The rule (Documentation/virt/kvm/devices/vcpu.rst, 4.1): a guest's TSC now = its TSC at the capture + what has passed, and all its vCPUs keep the distances
//! they had. Every quantity below can be off only so that the guest's time goes on: what has passed is never negative, and a value is compared with one read
//! later, never earlier. Guards S5: neither the TSC nor kvmclock, hence no CLOCK_MONOTONIC that Linux makes of them, steps back.

use std::time::Duration;

/// Longest blackout that the clock makes up for. More than this says that a host's wall clock was set in between.
const LONGEST_BLACKOUT_NS: u64 = 24 * 3600 * 1_000_000_000;

/// How much longer ago than its arrival a state may have been captured before the wall clocks are thought to disagree: pause, copy, encoding and the wire.
/// Also the most by which wall clocks that disagree can put a guest's clock ahead.
const ON_THE_WAY_NS: u64 = 10_000_000;

/// How the TSCs go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TscPlan {
    /// Added to each vCPU's captured offset (modulo 2^64): makes up for the other host's counter and for the time that has passed.
    pub offset_delta: u64,
    /// Cycles that have passed since the capture, for hosts without the offset attribute.
    pub elapsed_cycles: u64,
}

/// What has passed between a capture and now, nanoseconds. `wall_then` is the other host's wall clock at the capture, `wall_now` this host's; `waited` is how long
/// the state has been here, by this host's monotonic clock.
///
/// The two wall clocks may disagree by seconds, and either may be set at any time. The state has certainly existed for as long as it has been here, and not much
/// longer: wall clocks are believed only within these bounds.
pub(crate) fn elapsed_ns(wall_then: u64, wall_now: u64, waited: Option<Duration>) -> u64 {
    let by_wall = wall_now.saturating_sub(wall_then).min(LONGEST_BLACKOUT_NS);
    match waited {
        None => by_wall,
        Some(waited) => {
            let waited = u64::try_from(waited.as_nanos()).unwrap_or(u64::MAX).min(LONGEST_BLACKOUT_NS);
            by_wall.clamp(waited, waited + ON_THE_WAY_NS)
        }
    }
}

/// Cycles of a counter of `khz` in `ns`.
pub(crate) fn cycles(ns: u64, khz: u32) -> u64 {
    (u128::from(ns) * u128::from(khz) / 1_000_000) as u64
}

/// Added to every offset where guest and host counters differ by nothing but the offset: host's counter then and now.
pub(crate) fn delta_by_counter(host_then: u64, host_now: u64, elapsed_cycles: u64) -> u64 {
    host_then.wrapping_add(elapsed_cycles).wrapping_sub(host_now)
}

/// Added to every offset where a host scales the guest's counter, so that host counters say nothing: one vCPU's counter at the capture, its offset then, and
/// what that vCPU's counter reads here now under some offset.
pub(crate) fn delta_by_value(then: Reading, now: Reading, elapsed_cycles: u64) -> u64 {
    let scaled_now = now.value.wrapping_sub(now.offset);
    let offset = then.value.wrapping_add(elapsed_cycles).wrapping_sub(scaled_now);
    offset.wrapping_sub(then.offset)
}

/// A vCPU's counter, and the offset under which it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reading {
    /// MSR 0x10 as the guest reads it.
    pub value: u64,
    /// KVM_VCPU_TSC_OFFSET.
    pub offset: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const WALL: u64 = 1_700_000_000 * SECOND;

    fn waited(ms: u64) -> Option<Duration> {
        Some(Duration::from_millis(ms))
    }

    #[test]
    fn wall_clocks_that_agree_are_believed() {
        // 250 ms here, 3 ms on the way.
        assert_eq!(elapsed_ns(WALL, WALL + 253_000_000, waited(250)), 253_000_000);
    }

    #[test]
    fn wall_clocks_that_disagree_by_seconds_move_the_guest_by_no_more_than_the_time_on_the_way() {
        for off in [-7200, -5, 5, 7200_i64] {
            let now = WALL.wrapping_add_signed(off * SECOND as i64) + 253_000_000;
            let elapsed = elapsed_ns(WALL, now, waited(250));
            assert!((250_000_000..=260_000_000).contains(&elapsed), "{off} s: {elapsed}");
        }
    }

    #[test]
    fn no_pair_of_clocks_makes_time_go_back_or_overflow() {
        for then in [0, WALL, u64::MAX] {
            for now in [0, WALL, u64::MAX] {
                for here in [None, Some(Duration::ZERO), Some(Duration::MAX)] {
                    let elapsed = elapsed_ns(then, now, here);
                    assert!(elapsed <= LONGEST_BLACKOUT_NS + ON_THE_WAY_NS, "{then} {now} {here:?}: {elapsed}");
                    assert!(here != Some(Duration::MAX) || elapsed >= LONGEST_BLACKOUT_NS);
                }
            }
        }
    }

    #[test]
    fn a_guest_s_counter_goes_on_by_what_has_passed_whatever_the_hosts_counters_say() {
        // The new host was started an hour ago, the old one a year.
        let (khz, old_host, new_host) = (2_600_000, 80_000_000_000_000_000u64, 9_000_000_000_000u64);
        let elapsed = cycles(SECOND, khz);
        for offset in [0, 12345u64.wrapping_neg(), 1 << 60] {
            let guest_then = old_host.wrapping_add(offset);
            let delta = delta_by_counter(old_host, new_host, elapsed);
            let guest_now = new_host.wrapping_add(offset.wrapping_add(delta));
            assert_eq!(guest_now.wrapping_sub(guest_then), 2_600_000_000);
        }
    }

    /// A host whose counter the guest sees through a ratio, as KVM computes it (kvm_scale_tsc: fixed point with 48 bits on VT-x, 32 on AMD-V).
    fn scaled(host: u64, ratio: u64, fraction: u32) -> u64 {
        ((u128::from(host) * u128::from(ratio)) >> fraction) as u64
    }

    #[test]
    fn a_scaled_counter_goes_on_from_its_value_on_every_vcpu() {
        let khz = 2_600_000u32;
        let (fraction, host_khz) = (32, 3_100_000u64);
        let ratio = (u64::from(khz) << fraction) / host_khz;
        let (old_host, new_host) = (80_000_000_000_000_000u64, 9_000_000_000_000u64);
        let offsets = [7u64, 7, 1_000_000u64.wrapping_neg()];
        let then = offsets.map(|offset| Reading { value: old_host.wrapping_add(offset), offset });
        let now = Reading { value: scaled(new_host, ratio, fraction).wrapping_add(99), offset: 99 };

        let delta = delta_by_value(then[0], now, cycles(SECOND, khz));

        for reading in then {
            let guest_now = scaled(new_host, ratio, fraction).wrapping_add(reading.offset.wrapping_add(delta));
            assert_eq!(guest_now.wrapping_sub(reading.value), 2_600_000_000);
        }
    }

    #[test]
    fn both_ways_agree_where_nothing_is_scaled() {
        let (old_host, new_host, offset) = (5_000_000_000u64, 3_000_000u64, 42u64);
        let then = Reading { value: old_host + offset, offset };
        let now = Reading { value: new_host + 17, offset: 17 };
        assert_eq!(delta_by_value(then, now, 1000), delta_by_counter(old_host, new_host, 1000));
    }

    #[test]
    fn a_year_at_five_gigahertz_does_not_overflow() {
        assert_eq!(cycles(LONGEST_BLACKOUT_NS * 365, 5_000_000), 24 * 3600 * 365 * 5_000_000_000);
    }
}
