//! A scenario's stage: a lab, a protected pair of nodes in it, and the moves that scenarios are made of.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lockstep::host::monotonic_ns;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use types::Generation;

use super::clients::{self, Load, Service};
use super::clock::{self, Clocks};
use super::node::{GuestSpec, NODE_BOUND, Node, PROTECTED_BOUND, Part};
use super::report::Row;
use super::steps::Steps;
use super::watch::{Reign, Watch, now_ns};
use crate::error::LabError;
use crate::host::{Host, READY_BOUND};
use crate::lab::Lab;
use crate::net::Network;

/// How long the clients may take for some more writes after a fault: longer than they bear to wait for one answer ([`super::clients::PATIENCE`]).
pub const SERVED_BOUND: Duration = Duration::from_secs(45);

/// A random wait below this lets a fault hit any phase of epochs, transactions and flushes with the same probability: several of the longest of these.
const ANY_PHASE_US: u64 = 300_000;

/// The stage.
#[derive(Debug)]
pub struct Course {
    // In this order they end.
    watch: Watch,
    /// The node that runs the guest.
    pub primary: Node,
    /// The node that protects it.
    pub standby: Node,
    /// The machines.
    pub lab: Lab,
    /// What runs on the nodes.
    pub guest: GuestSpec,
    shared: PathBuf,
    reigns: Vec<Reign>,
    turn: u32,
    random: StdRng,
    pauses: Vec<u32>,
    commits: Vec<u32>,
    compared: u64,
    stood_still: bool,
    /// A fault makes nodes stand still: that they did says nothing about the machine.
    made_stand_still: bool,
    /// The standby has taken over, and its place is held by the former primary, whose own takeover, if it was a standby once, is counted.
    vacant: bool,
    steps: Steps,
    clocks: Clocks,
}

impl Course {
    /// A primary on h1 and a standby on h2, protected and with a guest that answers when this returns. The logs of a failure are kept under `name`.
    ///
    /// # Errors
    /// A node does not come that far.
    pub fn begin(mut lab: Lab, guest: GuestSpec, seed: u64, name: &str, row: &mut Row) -> Result<Course, LabError> {
        let mut steps = Steps::new(lab.directory().path())?;
        let hosts = lab.hosts().len() as u8;
        let watch = Watch::start(lab.network(), hosts).map_err(LabError::trouble)?;
        let (primary, standby) = Course::pair(&mut lab, &guest, &mut steps, row).inspect_err(|_| drop(lab.keep_logs(name)))?;
        let (shared, reigns) = (lab.shared(), vec![(0, 1)]);
        let random = StdRng::seed_from_u64(seed);
        let (pauses, commits) = (Vec::new(), Vec::new());
        Ok(Course {
            watch,
            primary,
            standby,
            lab,
            guest,
            shared,
            reigns,
            turn: 1,
            random,
            pauses,
            commits,
            compared: 0,
            stood_still: false,
            made_stand_still: false,
            vacant: false,
            steps,
            clocks: Clocks::default(),
        })
    }

    fn pair(lab: &mut Lab, guest: &GuestSpec, steps: &mut Steps, row: &mut Row) -> Result<(Node, Node), LabError> {
        let shared = lab.shared();
        let begun = Instant::now();
        let mut primary = Node::start(lab.host(1)?, 2, Part::Primary, 1, guest, &shared)?;
        primary.until_ready()?;
        steps.done("primary ready");
        // A guest that is protected while it boots boots four times as long under emulation.
        drop(clients::connect(lab.network(), PROTECTED_BOUND)?);
        row.boot_ms = Some(begun.elapsed().as_secs_f64() * 1e3);
        for service in Service::of(guest) {
            if let Service::Ledger(journal) = service {
                clients::make_ledger(lab.network(), journal, NODE_BOUND)?;
            }
        }
        steps.done("the guest answers");
        let mut standby = Node::start(lab.host(2)?, 1, Part::Standby { first: true }, 1, guest, &shared)?;
        standby.until_ready()?;
        steps.done("standby ready");
        primary.until_protected()?;
        steps.done("protected");
        Ok((primary, standby))
    }

    /// Notes in the course's log that `what` has come about.
    pub fn step(&mut self, what: &str) {
        self.steps.done(what);
    }

    /// What it did last and when, and the ends of the nodes' logs: for whoever sees a failure without the logs that are kept.
    #[must_use]
    pub fn last_words(&self) -> String {
        let (primary, standby) = (self.primary.log_tail(), self.standby.log_tail());
        format!("the course's last steps:\n{}{}:\n{primary}\n{}:\n{standby}", self.steps.last(), self.primary.name, self.standby.name)
    }

    /// The networks, for those who must not hold on to the course.
    #[must_use]
    pub fn network(&self) -> Arc<Network> {
        Arc::clone(self.lab.network())
    }

    /// The host that runs the guest.
    ///
    /// # Errors
    /// None: it is one of the lab's.
    pub fn primary_host(&mut self) -> Result<&mut Host, LabError> {
        self.lab.host(self.primary.host())
    }

    /// The host that protects it.
    ///
    /// # Errors
    /// None: it is one of the lab's.
    pub fn standby_host(&mut self) -> Result<&mut Host, LabError> {
        self.lab.host(self.standby.host())
    }

    /// Lets the guest work for a random while.
    pub fn random_while(&mut self) {
        let ms = self.random.random_range(100..700);
        std::thread::sleep(Duration::from_millis(ms));
    }

    /// Sees to it that the pair is as the course takes it to be, right before a fault: on a machine too busy for heartbeats a standby may have taken over
    /// that nobody had asked. That is in order as long as nothing comes of it, and counted; the old primary must have stopped, and is started again as the
    /// standby.
    ///
    /// # Errors
    /// The pair is not protected in time, or the old primary goes on.
    pub fn settle(&mut self, load: &Load<'_>, row: &mut Row) -> Result<(), LabError> {
        while self.superseded()? {
            self.step("the standby has taken over, unasked");
            row.unasked_failovers += 1;
            let since = self.reigns.last().map_or(0, |(since, _)| *since);
            self.taken_over(since, load, row)?;
            self.standby.until_fenced()?;
            self.protect_again()?;
            if self.guest.stock.is_some() {
                self.clocks.again(clock::read(self.lab.network())?);
            }
        }
        Ok(())
    }

    /// Waits until the primary is protected, or its standby has taken over; whether it is the latter.
    fn superseded(&mut self) -> Result<bool, LabError> {
        let deadline = Instant::now() + PROTECTED_BOUND;
        loop {
            if self.standby.activation().is_some() {
                return Ok(true);
            }
            if self.primary.is_protected() {
                return Ok(false);
            }
            if Instant::now() >= deadline {
                let detail = format!("; the primary:\n{}\nthe standby:\n{}", self.primary.log_tail(), self.standby.log_tail());
                return Err(LabError::Late { what: "a protected guest".into(), bound: PROTECTED_BOUND, detail });
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// A fault happens now; since when the standby may take over because of it. That is earlier where it has already: it was quicker than whoever looks for the fault.
    pub fn fault(&mut self, faults_ns: &mut Vec<u64>) -> u64 {
        faults_ns.push(monotonic_ns());
        match self.standby.activation() {
            Some(_) => self.reigns.last().map_or(0, |(since, _)| *since),
            None => now_ns(),
        }
    }

    /// The standby takes over, because of a fault that happened at `since_ns`; the guest then serves, and the roles are exchanged. The standby's
    /// place is empty until [`Self::protect_again`].
    ///
    /// # Errors
    /// It does not.
    pub fn taken_over(&mut self, since_ns: u64, load: &Load<'_>, row: &mut Row) -> Result<Generation, LabError> {
        let generation = self.standby.until_activated()?;
        self.step("the standby has taken over");
        row.failovers += 1;
        row.disk_requests_at_failovers.extend(self.standby.disk_requests());
        self.reigns.push((since_ns, self.standby.host()));
        self.gather();
        self.compared += self.standby.memory_compared();
        std::mem::swap(&mut self.primary, &mut self.standby);
        self.vacant = true;
        load.until_more(SERVED_BOUND)?;
        self.step("the guest serves");
        Ok(generation)
    }

    /// From now on nodes are made to stand still on purpose.
    pub fn will_stand_still(&mut self) {
        self.made_stand_still = true;
    }

    /// Whether a host stood still that nobody had made to: then what did not come about in time, or came about unasked, says nothing about what was tested.
    pub fn hosts_stood_still(&mut self) -> bool {
        !self.made_stand_still && (self.stood_still || self.primary.stood_still() || self.standby.stood_still())
    }

    /// Takes what the primary has measured so far; called once for each node that was primary.
    fn gather(&mut self) {
        self.stood_still |= self.primary.stood_still();
        let (pauses, commits) = self.primary.samples();
        self.pauses.extend(pauses);
        self.commits.extend(commits);
    }

    /// Starts a standby on the host that has none, and waits until the guest is protected by it.
    ///
    /// # Errors
    /// It is not in time.
    pub fn protect_again(&mut self) -> Result<(), LabError> {
        self.turn += 1;
        let (host, peer) = (self.standby.host(), self.primary.host());
        self.standby = Node::start(self.lab.host(host)?, peer, Part::Standby { first: false }, self.turn, &self.guest, &self.shared)?;
        self.vacant = false;
        self.standby.until_ready()?;
        self.step("a standby is ready");
        // A standby that takes over as soon as it can is found by the next fault's `settle`.
        self.superseded()?;
        self.step("protected again");
        Ok(())
    }

    /// The primary's host dies at a random moment; the standby takes over; the host comes back and protects the new primary.
    ///
    /// # Errors
    /// Any of it does not come about.
    pub fn kill_round(&mut self, load: &Load<'_>, row: &mut Row, faults_ns: &mut Vec<u64>) -> Result<(), LabError> {
        self.random_while();
        self.clock_before()?;
        // The clock's last answer has just come out of a committed epoch: the death must not always follow that at the same distance.
        std::thread::sleep(Duration::from_micros(self.random.random_range(0..ANY_PHASE_US)));
        self.step("any while, and the clock read");
        self.settle(load, row)?;
        let since = self.fault(faults_ns);
        let host = self.primary_host()?;
        host.kill()?;
        row.kills += 1;
        // It boots while its peer finds out that it is gone.
        host.start()?;
        self.step("killed, and switched on again");
        self.taken_over(since, load, row)?;
        self.clock_after(faults_ns.len().saturating_sub(1))?;
        self.step("the clock read");
        self.standby_host()?.wait_ready(READY_BOUND)?;
        self.step("the host is back");
        self.protect_again()?;
        load.until_more(SERVED_BOUND)
    }

    /// Reads a stock guest's wall clock, to know its drift.
    ///
    /// # Errors
    /// The guest does not answer.
    pub fn read_clock(&mut self) -> Result<(), LabError> {
        if self.guest.stock.is_some() {
            self.clocks.quiet(clock::read(self.lab.network())?);
        }
        Ok(())
    }

    /// Reads a stock guest's wall clock, shortly before a fault.
    ///
    /// # Errors
    /// The guest does not answer.
    pub fn clock_before(&mut self) -> Result<(), LabError> {
        if self.guest.stock.is_some() {
            self.clocks.before(clock::read(self.lab.network())?);
        }
        Ok(())
    }

    /// And shortly after the failover that came of fault number `fault`.
    ///
    /// # Errors
    /// The guest does not answer.
    pub fn clock_after(&mut self, fault: usize) -> Result<(), LabError> {
        if self.guest.stock.is_some() {
            self.clocks.after(clock::read(self.lab.network())?, fault);
        }
        Ok(())
    }

    /// Judges the guest's wall clock over all failovers, once it is known how long clients had to wait at each.
    ///
    /// # Errors
    /// It was not right.
    pub fn judge_clock(&mut self, row: &mut Row) -> Result<(), LabError> {
        let judged = self.clocks.judged(&row.blackouts_ms);
        for (_, line) in &judged {
            self.step(line);
        }
        let wrong: Vec<String> = judged.iter().filter(|(right, _)| !right).map(|(_, line)| line.clone()).collect();
        if !judged.is_empty() {
            row.clock_ok = Some(row.clock_ok.unwrap_or(true) && wrong.is_empty());
        }
        if wrong.is_empty() { Ok(()) } else { Err(LabError::Found(format!("the guest's wall clock was wrong: {}", wrong.join("; ")))) }
    }

    /// Waits until one of the nodes has won the right to go on after `before`; whether it is the standby. The roles are not exchanged.
    ///
    /// # Errors
    /// Neither goes on.
    pub fn contest(&mut self, before: Generation) -> Result<bool, LabError> {
        let deadline = Instant::now() + NODE_BOUND;
        loop {
            if self.standby.activation().is_some() {
                return Ok(true);
            }
            if self.primary.alone(before).is_some() {
                return Ok(false);
            }
            if Instant::now() >= deadline {
                let detail = format!("; the primary:\n{}\nthe standby:\n{}", self.primary.log_tail(), self.standby.log_tail());
                return Err(LabError::Late { what: "one of the nodes going on".into(), bound: NODE_BOUND, detail });
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What the watch and the nodes have to say in the end, into `row`.
    pub fn conclude(&mut self, row: &mut Row) {
        // On a machine too busy for heartbeats a standby may have taken over that nobody had asked: in order, as long as only one spoke.
        if !self.vacant && self.standby.activation().is_some() {
            row.failovers += 1;
            row.unasked_failovers += 1;
            let since = self.reigns.last().map_or(0, |(since, _)| *since);
            self.reigns.push((since, self.standby.host()));
        }
        row.double_releases = super::watch::double_releases(&self.watch.seen(), &self.reigns);
        self.gather();
        row.memory_compared_pages = self.compared + self.standby.memory_compared();
        self.pauses.sort_unstable();
        self.commits.sort_unstable();
        let at = |sorted: &[u32], part: usize| sorted.get(sorted.len().saturating_sub(1) * part / 100).copied();
        (row.pause_us, row.pause_us_p99) = (at(&self.pauses, 50), at(&self.pauses, 99));
        row.commit_us = at(&self.commits, 50);
        row.blackout_ms = row.blackouts_ms.iter().copied().reduce(f64::max);
    }
}
