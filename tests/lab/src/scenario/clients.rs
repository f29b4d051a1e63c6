//! Clients under load while hosts die, in the lab's client network, and their judges. Two kinds: the demo's clients, which speak RESP (the built-in
//! guest's server and Redis are the same to them), and the ledger's ([`super::ledger`]), which do transactions in SQLite. A guest that has both
//! gets both loads at once.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use lockstep::demo::client::{self, Connection, SERVER_PORT, Server, Shared};
use lockstep::demo::history::{self, Answer, Findings};
use lockstep::demo::resp::Reply;
use lockstep::demo::world::GUEST_ADDRESS;

use super::guest::GuestSpec;
use super::ledger::judge::{self, Record};
use super::ledger::{self, Journal, client as ledger_client};
use super::report::{Row, Served};
use crate::error::LabError;
use crate::net::Network;

/// Clients at a time, of each service.
const CLIENTS: usize = 2;
/// Key-value writes that are awaited to see that the guest serves. Not many: those of a database on a shared disk wait for several commits each. The
/// clients write on while hosts boot and memory is copied.
const SOME: u64 = 4;
/// Longest wait for all that is in the ledger: some ten thousand entries and an integrity check, under emulation.
const DUMP_BOUND: Duration = Duration::from_secs(60);
const TICK: Duration = Duration::from_millis(5);
/// From the word that a fault happens to its having happened: a wire is pulled by a question to QEMU, and answers may come through it until then.
const TAKES_EFFECT_NS: u64 = 300_000_000;
/// Between two attempts to connect. Every attempt costs an emulated guest milliseconds, while it is still starting what is waited for.
const CONNECT_TICK: Duration = Duration::from_millis(200);
const ASK_BOUND: Duration = Duration::from_secs(10);
/// How long a client waits for one answer before its connection counts as broken. Of databases' clients, requests take a tenth of a second and more under emulation, so
/// that TCP sends again after half a second, then one, two, four, eight: on a machine where the guest is away for five, an answer may take ten. What it took is in the report.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What clients can ask a guest for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// The built-in guest's server, or Redis.
    KeyValue,
    /// SQLite.
    Ledger(Journal),
}

impl Service {
    /// Those of `guest` that there are clients for.
    #[must_use]
    pub fn of(guest: &GuestSpec) -> Vec<Service> {
        let Some(stock) = &guest.stock else { return vec![Service::KeyValue] };
        let known = |name| match name {
            "redis" => Some(Service::KeyValue),
            "sqlite" => Some(Service::Ledger(Journal::Rollback)),
            "sqlite-wal" => Some(Service::Ledger(Journal::Ahead)),
            _ => None,
        };
        stock.services.split(',').filter_map(known).collect()
    }

    /// For the report.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Service::KeyValue => "key-value",
            Service::Ledger(Journal::Rollback) => "sqlite",
            Service::Ledger(Journal::Ahead) => "sqlite-wal",
        }
    }

    /// How many of its writes stand for `count` of a key-value server's: a transaction is a dozen requests to the disk.
    fn worth(self, count: u64) -> u64 {
        match self {
            Service::KeyValue => count,
            Service::Ledger(_) => count.div_ceil(4),
        }
    }

    /// Where it is.
    #[must_use]
    pub fn address(self) -> SocketAddr {
        let port = match self {
            Service::KeyValue => SERVER_PORT,
            Service::Ledger(_) => ledger::PORT,
        };
        SocketAddr::new(GUEST_ADDRESS, port)
    }
}

/// Clients at work.
#[derive(Debug)]
pub struct Load<'a> {
    services: &'a [Service],
    /// One for each service.
    shared: &'a [Shared],
}

impl Load<'_> {
    /// Writes acknowledged so far.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.counts().iter().sum()
    }

    fn counts(&self) -> Vec<u64> {
        self.shared.iter().map(|shared| shared.acknowledged.load(Ordering::Relaxed)).collect()
    }

    /// Waits until each service of the guest has answered some more.
    ///
    /// # Errors
    /// As [`Self::until_so_many_more`].
    pub fn until_more(&self, bound: Duration) -> Result<(), LabError> {
        self.until_so_many_more(SOME, bound)
    }

    /// Waits until each service of the guest has acknowledged `count` more writes, or transactions that are worth as much.
    ///
    /// # Errors
    /// It does not within `bound`, or a connection broke.
    pub fn until_so_many_more(&self, count: u64, bound: Duration) -> Result<(), LabError> {
        let before = self.counts();
        let goals: Vec<u64> = self.services.iter().zip(&before).map(|(service, so_far)| so_far + service.worth(count)).collect();
        let deadline = Instant::now() + bound;
        while self.counts().iter().zip(&goals).any(|(now, goal)| now < goal) {
            if let Some(why) = self.shared.iter().find_map(Shared::first_break) {
                return Err(LabError::Found(format!("a client's connection broke: {why}; acknowledged so far: {:?}", self.counts())));
            }
            if Instant::now() >= deadline {
                let detail = format!(": from {before:?} to {:?}", self.counts());
                return Err(LabError::Late { what: "more acknowledged writes".into(), bound, detail });
            }
            std::thread::sleep(TICK);
        }
        Ok(())
    }
}

/// What a stock guest says about servers that do not answer.
fn inside(network: &Network) -> String {
    const ASK: &str = "cat /proc/uptime; tail -n 3 /var/log/redis.log; ps -eo pid,stat,time,wchan:20,args | grep -v ' \\[' | tail -n 12";
    match super::stock::agent(network).exec(ASK, ASK_BOUND) {
        Ok(output) => format!("in the guest: {}{}", output.text(), String::from_utf8_lossy(&output.err)),
        Err(error) => format!("nor does its agent tell why ({})", crate::error::chain(&error)),
    }
}

/// Tries `open` in the client network until it comes about.
fn opened<T>(network: &Network, what: &str, bound: Duration, mut open: impl FnMut() -> std::io::Result<T> + Send) -> Result<T, LabError>
where
    T: Send,
{
    let deadline = Instant::now() + bound;
    loop {
        match network.clients.run(&mut open)? {
            Ok(made) => return Ok(made),
            Err(error) if Instant::now() >= deadline => {
                let detail = format!(": {error}; {}", inside(network));
                return Err(LabError::Late { what: what.into(), bound, detail });
            }
            Err(_) => std::thread::sleep(CONNECT_TICK),
        }
    }
}

/// A connection to the guest's key-value server, once it answers.
///
/// # Errors
/// It does not within `bound`.
pub fn connect(network: &Network, bound: Duration) -> Result<Connection, LabError> {
    opened(network, "the guest's key-value server", bound, || {
        let mut connection = Connection::open(Service::KeyValue.address())?;
        // Redis answers while it still reads its journal, but not with what is asked for.
        match connection.ask(&[b"GET", b"nothing"])? {
            Reply::Bulk(None) => Ok(connection),
            other => Err(std::io::Error::other(format!("{other:?}"))),
        }
    })
}

/// Makes the ledger's tables, once its database answers. Once for each guest.
///
/// # Errors
/// It does not within `bound`, or does not take them.
pub fn make_ledger(network: &Network, journal: Journal, bound: Duration) -> Result<(), LabError> {
    let address = Service::Ledger(journal).address();
    let mut connection = opened(network, "the guest's database", bound, || ledger_client::Connection::open(address, journal))?;
    match connection.ask(&ledger::schema()) {
        Ok(line) if line == "ready" => Ok(()),
        other => Err(LabError::Found(format!("the tables of the ledger cannot be made: {other:?}"))),
    }
}

/// A client's thread, and what it comes back with.
enum Working<'scope> {
    KeyValue(ScopedJoinHandle<'scope, Result<client::Outcome, LabError>>),
    Ledger(ScopedJoinHandle<'scope, Result<ledger_client::Outcome, LabError>>),
}

/// What all clients came back with.
#[derive(Default)]
struct Outcomes {
    key_value: Vec<client::Outcome>,
    ledger: Vec<ledger_client::Outcome>,
}

fn work(network: &Network, services: &[Service], seed: u64, shared: &[Shared], course: impl FnOnce()) -> Result<Outcomes, LabError> {
    std::thread::scope(|scope| {
        let mut working = Vec::new();
        for (service, shared) in services.iter().zip(shared) {
            let address = service.address();
            working.extend((0..CLIENTS).map(|number| match service {
                Service::KeyValue => Working::KeyValue(scope.spawn(move || {
                    network.clients.enter()?;
                    Ok(client::run(number, seed, Server { address, patience: PATIENCE }, shared))
                })),
                Service::Ledger(journal) => Working::Ledger(scope.spawn(move || {
                    network.clients.enter()?;
                    Ok(ledger_client::run(number as u32, seed, (address, *journal), shared))
                })),
            }));
        }
        course();
        let mut outcomes = Outcomes::default();
        let panicked = |_| LabError::Found("a client panicked".into());
        for thread in working {
            match thread {
                Working::KeyValue(thread) => outcomes.key_value.push(thread.join().map_err(panicked)??),
                Working::Ledger(thread) => outcomes.ledger.push(thread.join().map_err(panicked)??),
            }
        }
        Ok(outcomes)
    })
}

/// What clients were told, for those who find their data elsewhere later.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// Of the run.
    pub seed: u64,
    /// What each of the key-value server's clients was told.
    pub key_value: Vec<Vec<history::Request>>,
    /// What the ledger's clients were told, where there is a ledger.
    pub ledger: Option<Record>,
}

/// Runs clients of `services` while `course` takes its way; then everything is read back over the same connections and judged into `row`.
///
/// # Errors
/// What `course` fails with. What the judges find is in the row only.
pub fn under_load(
    network: &Network,
    services: &[Service],
    seed: u64,
    row: &mut Row,
    faults_ns: &mut Vec<u64>,
    course: impl FnOnce(&Load<'_>, &mut Row, &mut Vec<u64>) -> Result<(), LabError>,
) -> Result<Told, LabError> {
    let shared: Vec<Shared> = services.iter().map(|_| Shared::default()).collect();
    let mut came = Ok(Ok(()));
    let outcomes = work(network, services, seed, &shared, || {
        came = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| course(&Load { services, shared: &shared }, row, faults_ns)));
        match &came {
            Ok(Ok(())) => shared.iter().for_each(|shared| shared.stop.store(true, Ordering::Relaxed)),
            // The guest may be gone: nothing is awaited from it.
            _ => shared.iter().for_each(Shared::abort),
        }
    });
    came.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    let mut outcomes = outcomes?;
    let mut told = Told { seed, ..Told::default() };
    for service in services {
        let served = match service {
            Service::KeyValue => judge_key_value(&outcomes.key_value, faults_ns, row)?,
            Service::Ledger(_) => {
                // The key-value server answers a hundred times while a transaction is done: where there is one, it tells how long the guest was away.
                let mut scratch = Row::default();
                let alone = !services.contains(&Service::KeyValue);
                let (served, record) = judge_ledger(&mut outcomes.ledger, seed, faults_ns, if alone { row } else { &mut scratch })?;
                told.ledger = Some(record);
                served
            }
        };
        if served.acknowledged == 0 {
            return Err(LabError::Found(format!("no write of {} was acknowledged, so nothing is proved", service.name())));
        }
        row.add(service.name(), served);
    }
    told.key_value = outcomes.key_value.into_iter().map(|outcome| outcome.history).collect();
    Ok(told)
}

/// What the times of a client's requests (sent, and answered if they were) show: the longest times without an answer around each fault go into `row`; at
/// how many of the faults a request was under way, and the longest wait for an answer, into `served`.
fn times(times: &[(u64, Option<u64>)], faults_ns: &[u64], row: &mut Row, served: &mut Served) {
    let waits = times.iter().filter_map(|(sent, answered)| Some(((*answered)? - sent) as f64 / 1e6));
    served.longest_answer_ms = waits.fold(served.longest_answer_ms, f64::max);
    for (index, fault) in faults_ns.iter().enumerate() {
        let answers = times.iter().filter_map(|(_, answered)| *answered);
        let gap = history::longest_gap_between_ns(answers, *fault, *fault + TAKES_EFFECT_NS).unwrap_or(0) as f64 / 1e6;
        match row.blackouts_ms.get_mut(index) {
            Some(longest) => *longest = longest.max(gap),
            None => row.blackouts_ms.push(gap),
        }
        served.under_way_at_faults +=
            u64::from(times.iter().any(|(sent, answered)| sent <= fault && answered.is_none_or(|answered| answered > *fault)));
    }
}

fn judge_key_value(outcomes: &[client::Outcome], faults_ns: &[u64], row: &mut Row) -> Result<Served, LabError> {
    let mut findings = Findings::default();
    let mut served = Served::default();
    for outcome in outcomes {
        findings.add(history::check(&outcome.history, &outcome.end));
        served.connections_broken += outcome.broken;
        let requests = outcome.history.iter().map(|r| (r.sent_ns, (r.answer != Answer::None).then_some(r.answered_ns)));
        times(&requests.collect::<Vec<_>>(), faults_ns, row, &mut served);
    }
    if findings.unverified > 0 {
        return Err(LabError::Found(format!("{} keys could not be read back, so nothing is proved about them", findings.unverified)));
    }
    served.acknowledged = findings.acknowledged;
    served.lost = findings.lost + findings.duplicated + findings.wrong_answers;
    if served.lost > 0 {
        served.examples.push(format!("{findings:?}"));
    }
    Ok(served)
}

fn judge_ledger(
    outcomes: &mut [ledger_client::Outcome],
    seed: u64,
    faults_ns: &[u64],
    row: &mut Row,
) -> Result<(Served, Record), LabError> {
    let mut served = Served::default();
    let mut record = Record { seed, ..Record::default() };
    let mut dump = None;
    for (number, outcome) in (0..).zip(outcomes) {
        served.connections_broken += outcome.broken;
        served.examples.extend(outcome.first_break.clone());
        let requests = outcome.history.iter().map(|r| (r.sent_ns, (r.answer != judge::Answer::None).then_some(r.answered_ns)));
        times(&requests.collect::<Vec<_>>(), faults_ns, row, &mut served);
        record.histories.insert(number, outcome.history.clone());
        // Over every one of the connections that outlived the faults; all must show the same.
        let Some(connection) = &mut outcome.connection else { continue };
        let shown = connection.dump(DUMP_BOUND).map_err(LabError::io(|| "read the ledger back".into()))?;
        if dump.get_or_insert_with(|| shown.clone()) != &shown {
            return Err(LabError::Found("two connections see two ledgers, though nobody writes any more".into()));
        }
    }
    let Some(dump) = dump else { return Err(LabError::Found("the ledger cannot be read back: no connection is left".into())) };
    let findings = judge::judge(&record, &dump);
    served.acknowledged = findings.acknowledged;
    served.lost = findings.wrong();
    served.examples.extend(findings.examples);
    Ok((served, record))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_of_a_guest_are_those_that_there_are_clients_for() {
        assert_eq!(Service::of(&GuestSpec::built_in()), [Service::KeyValue]);
        assert_eq!(Service::of(&GuestSpec::stock()), []);
        assert_eq!(Service::of(&GuestSpec::debian("d", "sqlite,redis,other")), [Service::Ledger(Journal::Rollback), Service::KeyValue]);
    }

    #[test]
    fn a_fault_is_under_a_request_from_its_sending_to_its_answer() {
        let (mut row, mut served) = (Row::default(), Served::default());
        times(&[(0, Some(10)), (20, Some(4_000_030)), (5_000_000, None)], &[5, 15, 25, 5_000_001], &mut row, &mut served);
        assert_eq!((served.under_way_at_faults, row.blackouts_ms.len()), (3, 4));
        assert!((served.longest_answer_ms - 4.0).abs() < 0.01);
    }
}
