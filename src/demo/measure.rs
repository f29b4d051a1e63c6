//! From events and histories to the report's numbers. Pure.

use std::time::Duration;

use types::event::{NodeEvent, NodeEventKind};

use super::client::Outcome;
use super::history::{self, Answer, Findings};
use super::report::{Blackout, Distribution, Report};
use super::scenario::Death;

/// Fills in everything that was measured.
pub(super) fn fill(
    report: &mut Report,
    primary: &[NodeEvent],
    standby: &[NodeEvent],
    outcomes: &[Outcome],
    death: Option<Death>,
    blackout_tail: Duration,
) {
    let mut findings = Findings::default();
    for outcome in outcomes {
        findings.add(history::check(&outcome.history, &outcome.end));
        report.connections_broken += outcome.broken;
    }
    report.set_findings(findings);
    replication(report, primary);
    report.generation = generation(standby).max(generation(primary));
    report.failovers = standby.iter().filter(|e| matches!(e.what, NodeEventKind::Activated { .. })).count() as u64;
    latency(report, outcomes, death);
    if let Some(death) = death {
        failover(report, standby, death);
        blackout(report, outcomes, death, blackout_tail);
        if let Some((frames, fenced)) = death.stale {
            report.stale_frames = Some(frames);
            report.stale_fenced = Some(fenced);
        }
    }
}

fn replication(report: &mut Report, primary: &[NodeEvent]) {
    let (mut all_pages, mut all_bytes, mut pauses, mut commits) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut sending_ns = 0;
    for event in primary {
        if let NodeEventKind::Samples { pages, bytes, pause_us, commit_us, send_ns, .. } = &event.what {
            let widen = |from: &[u32], to: &mut Vec<u64>| to.extend(from.iter().map(|x| u64::from(*x)));
            widen(pages, &mut all_pages);
            widen(bytes, &mut all_bytes);
            widen(pause_us, &mut pauses);
            widen(commit_us, &mut commits);
            sending_ns += send_ns;
        }
    }
    report.epochs = all_pages.len() as u64;
    let sent: u64 = all_bytes.iter().sum();
    report.stream_mib_s = (sending_ns > 0).then(|| sent as f64 / (1 << 20) as f64 / (sending_ns as f64 / 1e9));
    report.pages_per_epoch = Distribution::of(all_pages);
    report.bytes_per_epoch = Distribution::of(all_bytes);
    report.pause_us = Distribution::of(pauses);
    report.commit_us = Distribution::of(commits);
}

fn generation(events: &[NodeEvent]) -> u64 {
    let told = events.iter().filter_map(|e| match e.what {
        NodeEventKind::State { generation, .. } | NodeEventKind::Activated { generation, .. } => Some(generation.0),
        _ => None,
    });
    told.max().unwrap_or(0)
}

fn latency(report: &mut Report, outcomes: &[Outcome], death: Option<Death>) {
    let answered = || outcomes.iter().flat_map(|o| &o.history).filter(|r| r.answer != Answer::None);
    let us = |ns: u64| ns / 1000;
    let until = death.map_or(u64::MAX, |d| d.at_ns);
    report.latency_us = Distribution::of(answered().filter(|r| r.answered_ns < until).map(|r| us(r.answered_ns - r.sent_ns)).collect());
    if let Some(death) = death {
        let after = answered().filter(|r| r.sent_ns > death.activated_ns);
        report.latency_unprotected_us = Distribution::of(after.map(|r| us(r.answered_ns - r.sent_ns)).collect());
    }
}

fn failover(report: &mut Report, standby: &[NodeEvent], death: Death) {
    let ms = |ns: u64| ns as f64 / 1e6;
    let gone = standby.iter().find(|e| matches!(e.what, NodeEventKind::PeerGone { .. }) && e.at_ns >= death.at_ns);
    report.detection_ms = gone.map(|e| ms(e.at_ns - death.at_ns));
    for event in standby {
        if let NodeEventKind::Activated { activation_us, grant_us, .. } = event.what {
            report.activation_ms = Some(activation_us as f64 / 1e3);
            report.grant_ms = Some(grant_us as f64 / 1e3);
        }
    }
}

fn blackout(report: &mut Report, outcomes: &[Outcome], death: Death, tail: Duration) {
    let until = death.activated_ns.max(death.at_ns) + tail.as_nanos() as u64;
    let gaps = outcomes.iter().filter_map(|o| history::longest_gap_ns(&o.history, death.at_ns, until));
    if let Some(spread) = Distribution::of(gaps.collect()) {
        report.blackout_ms = Some(Blackout { p50: spread.p50 as f64 / 1e6, max: spread.max as f64 / 1e6 });
    }
}

#[cfg(test)]
mod tests {
    use types::{Epoch, Generation};

    use super::super::history::{Ask, Final, Request};
    use super::*;

    fn at(at_ns: u64, what: NodeEventKind) -> NodeEvent {
        NodeEvent { at_ns, what }
    }

    fn samples(pages: &[u32], bytes: &[u32], send_ns: u64) -> NodeEvent {
        let (pages, bytes) = (pages.to_vec(), bytes.to_vec());
        at(1, NodeEventKind::Samples { committed: Epoch(1), pages, bytes, pause_us: vec![7], commit_us: vec![9], send_ns, held_frames: 0 })
    }

    fn incr(count: i64, sent_ms: u64, answered_ms: u64) -> Request {
        let (sent_ns, answered_ns) = (sent_ms * 1_000_000, answered_ms * 1_000_000);
        Request { ask: Ask::Incr, answer: Answer::Count(count), sent_ns, answered_ns }
    }

    #[test]
    fn a_failover_is_measured_from_both_nodes_and_the_clients() {
        let primary = [samples(&[10, 30], &[1 << 20, 1 << 20], 500_000_000), samples(&[20], &[0], 500_000_000)];
        let standby = [
            at(50_000_000, NodeEventKind::PeerGone { cause: "an earlier peer".into() }),
            at(103_000_000, NodeEventKind::PeerGone { cause: "connection closed".into() }),
            at(
                110_000_000,
                NodeEventKind::Activated {
                    generation: Generation(2),
                    epoch: Epoch(9),
                    activation_us: 4000,
                    grant_us: 2000,
                    disk_requests: 0,
                },
            ),
        ];
        let history = vec![incr(1, 97, 98), incr(2, 98, 99), incr(3, 99, 119), incr(4, 119, 121)];
        let end = Final { counter: Some(4), ..Final::default() };
        let outcomes = [Outcome { history, end, broken: 0, first_break: None }];
        let death = Death { at_ns: 100_000_000, activated_ns: 110_000_000, stale: None };
        let mut report = Report { kill: "crash", ..Report::default() };

        fill(&mut report, &primary, &standby, &outcomes, Some(death), Duration::from_secs(1));
        report.judge();

        assert!(report.passed(), "{report}");
        assert_eq!((report.epochs, report.failovers, report.generation, report.writes_acknowledged), (3, 1, 2, 4));
        assert_eq!(report.pages_per_epoch, Some(Distribution { p50: 20, p99: 30, max: 30 }));
        assert_eq!(report.stream_mib_s, Some(2.0));
        assert_eq!((report.detection_ms, report.activation_ms, report.grant_ms), (Some(3.0), Some(4.0), Some(2.0)));
        assert_eq!(report.blackout_ms, Some(Blackout { p50: 20.0, max: 20.0 }));
        assert_eq!(report.latency_us.map(|d| d.max), Some(1000), "only what was answered before the death");
        assert_eq!(report.latency_unprotected_us.map(|d| d.max), Some(2000));
    }
}
