//! Kills of a primary under light load: detection, activation, and what a client sees of it.
//!
//! What the guest had received when the primary died it is given again by the standby (the mirror). A frame that is sent into the few milliseconds in which nobody
//! is there is lost, until the client's TCP sends it again: Linux waits at least 200 ms before it does, unless its route says otherwise
//! (`ip route change .. rto_min 10ms`). So there are two kinds of clients, those of the demo, which always wait for an answer, and those that pause and then ask into
//! the gap; and every other kill is seen with such a route. How long the guest answers nobody is measured beside them.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lockstep::demo::client::Connection;
use lockstep::demo::resp::Reply;
use lockstep::demo::world::Place;
use types::clock::monotonic_ns;
use types::event::{NodeEvent, NodeEventKind};

use crate::chart::{self, Labels, Scale, Series};
use crate::error::BenchError;
use crate::probe;
use crate::report::{Goal, Report};
use crate::rig::{Context, Rig, ask_ok};
use crate::stats::{median, quantile};

const MEMORY_MIB: u32 = 1024;
/// Pages that the guest has written before the kill (384 MiB), so that the process that dies has memory to free and the standby has it in use.
const FILL_PAGES: u64 = 98_304;
/// Pages a second while filling: well below the stream's rate.
const FILL_RATE: u64 = 80_000;
/// Clients: those with an even number ask again at once, as the demo's do, the others a moment after each answer.
const CLIENTS: usize = 4;
const THINK: Duration = Duration::from_millis(1);
/// Load before the kill, and after the activation.
const BEFORE: Duration = Duration::from_millis(500);
const AFTER: Duration = Duration::from_millis(500);
const ACTIVATED_BOUND: Duration = Duration::from_secs(30);
/// The picture's stretch around the kill, milliseconds.
const PICTURE_MS: f64 = 250.0;
/// What the clients' TCP waits at least before it sends again, where they are told so.
const SHORT_RTO: &str = "10ms";

/// One answered request, CLOCK_MONOTONIC nanoseconds.
#[derive(Clone, Copy, Debug)]
struct Answered {
    sent_ns: u64,
    answered_ns: u64,
}

/// What one kill showed, milliseconds.
struct Kill {
    /// The clients send again soon.
    short_rto: bool,
    detection: f64,
    grant: f64,
    activation: f64,
    blackouts: Vec<f64>,
    /// Time in which nobody was answered ([`probe`]).
    silence: f64,
    /// A client's latency: (time since the kill, latency).
    latency: Vec<(f64, f64)>,
}

/// Adds the figures and draws `failover.svg`.
///
/// # Errors
/// A node or the guest fails, or a client's connection breaks or counts wrong: then the figures mean nothing.
pub fn measure(context: &Context<'_>, report: &mut Report) -> Result<(), BenchError> {
    let kills: Vec<Kill> = (0..context.rounds(22, 4))
        .map(|round| {
            context.go_on()?;
            eprint!("\r  kill {}", round + 1);
            kill_once(context, round % 2 == 1)
        })
        .collect::<Result<_, _>>()?;
    eprintln!();
    let all = |pick: fn(&Kill) -> f64| kills.iter().map(pick).collect::<Vec<f64>>();
    let (detection, activation, grant) = (all(|k| k.detection), all(|k| k.activation), all(|k| k.grant));
    let silence = all(|k| k.silence);
    let blackouts = |short_rto: bool, pausing: bool| -> Vec<f64> {
        let these = kills.iter().filter(|kill| kill.short_rto == short_rto);
        these.flat_map(|kill| kill.blackouts.iter().copied().enumerate()).filter(|(n, _)| pauses(*n) == pausing).map(|(_, ms)| ms).collect()
    };
    let (eager, pausing, short) = (blackouts(false, false), blackouts(false, true), blackouts(true, true));
    for (name, values, q, goal) in [
        ("crash of 1 GiB: detection, median", &detection, 0.5, Goal::AtMost(5.0)),
        ("crash of 1 GiB: detection, worst", &detection, 1.0, Goal::AtMost(5.0)),
        ("crash of 1 GiB: grant, median", &grant, 0.5, Goal::Informative),
        ("crash of 1 GiB: activation, median", &activation, 0.5, Goal::AtMost(10.0)),
        ("crash of 1 GiB: activation, worst", &activation, 1.0, Goal::AtMost(10.0)),
        ("crash of 1 GiB: no answer to anyone, p50", &silence, 0.5, Goal::Informative),
        ("crash of 1 GiB: no answer to anyone, worst", &silence, 1.0, Goal::Informative),
        ("crash of 1 GiB: client's blackout, p50", &eager, 0.5, Goal::AtMost(50.0)),
        ("crash of 1 GiB: client's blackout, worst", &eager, 1.0, Goal::Informative),
        ("  a client that asks into the gap, p50", &pausing, 0.5, Goal::Informative),
        ("  the same with rto_min 10 ms on its route, p50", &short, 0.5, Goal::Informative),
        ("  the same with rto_min 10 ms, worst", &short, 1.0, Goal::Informative),
    ] {
        report.add(name, quantile(name, values, q)?, "ms", None, goal);
    }
    picture(&context.out.join("failover.svg"), &kills)
}

/// Draws the two kills, one of each kind of client, whose blackout is the middle one.
fn picture(path: &Path, kills: &[Kill]) -> Result<(), BenchError> {
    let worst = |kill: &Kill| kill.blackouts.iter().copied().fold(0.0, f64::max);
    let middle = |short_rto: bool| {
        let these = || kills.iter().filter(move |kill| kill.short_rto == short_rto);
        let middle = median("client's blackout", &these().map(worst).collect::<Vec<f64>>())?;
        these().find(|kill| worst(kill) == middle).ok_or(BenchError::NothingMeasured("client's blackout"))
    };
    let labels = Labels {
        title: "Latency of a client's requests around a failover (1 GiB guest, primary killed at 0)",
        x: "answered, ms after the kill",
        y: "latency, ms",
        scale: Scale::Linear,
    };
    let series = [
        Series { name: "client as Linux makes it (TCP waits 200 ms or more)", points: &middle(false)?.latency },
        Series { name: "client with rto_min 10 ms on its route", points: &middle(true)?.latency },
    ];
    Ok(chart::lines(path, &labels, &series)?)
}

/// Sets what the clients' TCP waits at least before it sends again.
fn shorten_rto(rig: &Rig) -> Result<(), BenchError> {
    let mut command = Command::new("ip");
    command.args(["route", "change", "10.77.0.0/24", "dev", "lan", "scope", "link", "src", "10.77.0.1", "rto_min", SHORT_RTO]);
    let failed = BenchError::io("set rto_min on the clients' route");
    let status = rig.world().spawn(Place::Clients, &mut command)?.wait();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(failed(std::io::Error::other(format!("ip ended with {status}")))),
        Err(error) => Err(failed(error)),
    }
}

fn kill_once(context: &Context<'_>, short_rto: bool) -> Result<Kill, BenchError> {
    let mut rig = Rig::protected(context, MEMORY_MIB)?;
    if short_rto {
        shorten_rto(&rig)?;
    }
    let mut guest = rig.connect(context)?;
    fill(context, &mut guest)?;
    let mut connections = Vec::new();
    for _ in 0..CLIENTS {
        connections.push(rig.connect(context)?);
    }
    let streams = rig.streams(probe::CONNECTIONS)?;
    let stop = AtomicBool::new(false);
    let (course, histories, answers) = std::thread::scope(|scope| {
        let clients: Vec<_> = connections
            .into_iter()
            .enumerate()
            .map(|(number, connection)| {
                let stop = &stop;
                scope.spawn(move || converse(number, connection, stop))
            })
            .collect();
        let probe = scope.spawn(|| probe::ask(streams, &stop));
        let course = course(context, &mut rig);
        stop.store(true, Ordering::Relaxed);
        let histories: Vec<_> = clients.into_iter().map(|client| client.join().unwrap_or(Err(BenchError::Thread))).collect();
        (course, histories, probe.join().unwrap_or(Err(BenchError::Thread)))
    });
    let (killed_ns, events) = course?;
    let histories = histories.into_iter().collect::<Result<Vec<_>, _>>()?;
    let blackouts = histories.iter().map(|history| blackout_ms(history, killed_ns)).collect::<Option<Vec<f64>>>();
    let silence = probe::longest_gap_ms(&answers?, killed_ns).ok_or(BenchError::NothingMeasured("answers after the kill"))?;
    let (detection, grant, activation) = switch(&events, killed_ns)?;
    let latency = histories.get(1).map_or_else(Vec::new, |history| around(history, killed_ns));
    let blackouts = blackouts.ok_or(BenchError::NothingMeasured("client's blackout"))?;
    Ok(Kill { short_rto, detection, grant, activation, blackouts, silence, latency })
}

/// Has the guest write a good part of its memory once, and waits until that is committed.
fn fill(context: &Context<'_>, guest: &mut Connection) -> Result<(), BenchError> {
    let (rate, pages) = (FILL_RATE.to_string(), FILL_PAGES.to_string());
    ask_ok(guest, "DIRTY", &[b"DIRTY", rate.as_bytes(), b"seq", pages.as_bytes()])?;
    // A little longer than it takes by the rate; pauses slow the guest down.
    context.sleep(Duration::from_secs_f64(FILL_PAGES as f64 / FILL_RATE as f64 * 1.2))?;
    // The answer is released when its epoch, and so all before it, is committed.
    ask_ok(guest, "DIRTY", &[b"DIRTY", b"0"])
}

/// Load, kill, activation, load: when it was killed and what the standby told.
fn course(context: &Context<'_>, rig: &mut Rig) -> Result<(u64, Vec<NodeEvent>), BenchError> {
    context.sleep(BEFORE)?;
    let killed_ns = rig.primary.crash()?;
    let standby = rig.standby.as_mut().ok_or(BenchError::NothingMeasured("a standby"))?;
    standby.wait_for("activated", ACTIVATED_BOUND, context.cancelled, |event| {
        matches!(event.what, NodeEventKind::Activated { .. }).then_some(())
    })?;
    context.sleep(AFTER)?;
    Ok((killed_ns, standby.events()))
}

/// Counts over one connection until told to stop; every count must be the one after the last.
fn converse(number: usize, mut connection: Connection, stop: &AtomicBool) -> Result<Vec<Answered>, BenchError> {
    let key = format!("client:{number}");
    let mut history = Vec::new();
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        let sent_ns = monotonic_ns();
        let reply = connection.ask(&[b"INCR", key.as_bytes()]);
        let answered_ns = monotonic_ns();
        count += 1;
        match reply {
            Ok(Reply::Int(found)) if found == count => history.push(Answered { sent_ns, answered_ns }),
            Ok(other) => return Err(BenchError::Broken(format!("a counter that stood at {count} was told as {other:?}"))),
            Err(error) => return Err(BenchError::Broken(format!("a client's connection broke: {error}"))),
        }
        if pauses(number) {
            std::thread::sleep(THINK);
        }
    }
    Ok(history)
}

/// Whether the client with this number pauses between requests.
fn pauses(number: usize) -> bool {
    number % 2 == 1
}

fn ms(ns: u64) -> f64 {
    ns as f64 / 1e6
}

/// The longest time between two answers of which the later came after the kill; `None` when no answer did.
fn blackout_ms(history: &[Answered], killed_ns: u64) -> Option<f64> {
    let gaps = history.windows(2).filter(|pair| pair[1].answered_ns >= killed_ns);
    gaps.map(|pair| pair[1].answered_ns - pair[0].answered_ns).max().map(ms)
}

/// Detection, grant and activation in milliseconds, from the standby's events.
fn switch(events: &[NodeEvent], killed_ns: u64) -> Result<(f64, f64, f64), BenchError> {
    let gone = events.iter().find(|event| matches!(event.what, NodeEventKind::PeerGone { .. }) && event.at_ns >= killed_ns);
    let detection = gone.map(|event| ms(event.at_ns - killed_ns)).ok_or(BenchError::NothingMeasured("detection"))?;
    let activated = events.iter().find_map(|event| match event.what {
        NodeEventKind::Activated { activation_us, grant_us, .. } => Some((grant_us as f64 / 1e3, activation_us as f64 / 1e3)),
        _ => None,
    });
    let (grant, activation) = activated.ok_or(BenchError::NothingMeasured("activation"))?;
    Ok((detection, grant, activation))
}

/// Points of the picture: when each answer came, since the kill, and what it took.
fn around(history: &[Answered], killed_ns: u64) -> Vec<(f64, f64)> {
    let point = |answered: &Answered| {
        let at = (answered.answered_ns as f64 - killed_ns as f64) / 1e6;
        (at, ms(answered.answered_ns - answered.sent_ns))
    };
    history.iter().map(point).filter(|(at, _)| at.abs() <= PICTURE_MS).collect()
}

#[cfg(test)]
mod tests {
    use types::{Epoch, Generation};

    use super::*;

    fn answered(sent_ms: u64, answered_ms: u64) -> Answered {
        Answered { sent_ns: sent_ms * 1_000_000, answered_ns: answered_ms * 1_000_000 }
    }

    #[test]
    fn the_blackout_is_the_gap_that_reaches_past_the_kill() {
        let history = [answered(1, 2), answered(3, 90), answered(91, 99), answered(100, 130), answered(131, 132)];

        assert_eq!(blackout_ms(&history, 100_000_000), Some(31.0), "not the longer gap before the kill");
        assert_eq!(blackout_ms(&history[..3], 100_000_000), None, "no answer came after the kill");
    }

    #[test]
    fn detection_counts_from_the_kill() {
        let event = |at_ms: u64, what| NodeEvent { at_ns: at_ms * 1_000_000, what };
        let gone = || NodeEventKind::PeerGone { cause: "closed".into() };
        let activated =
            NodeEventKind::Activated { generation: Generation(2), epoch: Epoch(3), activation_us: 4000, grant_us: 2000, disk_requests: 0 };
        let events = [event(50, gone()), event(103, gone()), event(110, activated)];

        assert_eq!(switch(&events, 100_000_000).unwrap(), (3.0, 2.0, 4.0));
        assert!(switch(&events[..2], 100_000_000).is_err());
    }

    #[test]
    fn the_picture_shows_only_the_time_around_the_kill() {
        let history = [answered(1, 2), answered(998, 999), answered(1000, 1040), answered(5000, 5001)];
        assert_eq!(around(&history, 1_000_000_000), [(-1.0, 1.0), (40.0, 40.0)]);
    }
}
