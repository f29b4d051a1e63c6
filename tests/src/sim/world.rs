//! The loop: what happens next, to whom; the arbiter, the clients, the faults, and the end of a run.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use failover::{Action, Answer, Event, Request, RequestId};
use types::Generation;
use types::event::Role;

use super::disk::Disk;
use super::faults::{Fault, Plan, Sabotage, Target, When};
use super::guest::CLIENTS;
use super::messages::{Channel, Happening, Message, Todo, name, slot_of, stops};
use super::network::Link;
use super::operator::Forcing;
use super::oracle::{Oracle, Stats, Violation};
use super::process::{Life, Process};
use super::rng::Rng;
use super::shared::SharedDisk;
use super::{END_NS, HEAL_NS, MS, NODES};

/// Heartbeats in the simulation: faster than real ones, because the runs are short.
pub(super) const HEARTBEAT_NS: u64 = 3 * MS;
/// Silence that means gone, in the simulation.
pub(super) const SILENCE_NS: u64 = 15 * MS;
/// A client sends again after this.
const RETRANSMIT_NS: u64 = 6 * MS;
/// By how much the clients must have got on before the end, if somebody can serve them.
const PROGRESS_NS: u64 = 40 * MS;
/// More happenings than this in one run mean that something spins.
const MOST_HAPPENINGS: u64 = 200_000;

#[derive(Debug, Default)]
struct Client {
    acknowledged: u32,
    /// Which timer counts.
    turn: u64,
}

/// What waits to happen: first by time, then in the order in which it was decided.
#[derive(Debug)]
struct Waiting(u64, u64, Happening);

impl PartialEq for Waiting {
    fn eq(&self, other: &Waiting) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}
impl Eq for Waiting {}
impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Waiting) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Waiting {
    fn cmp(&self, other: &Waiting) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

/// One simulated cluster.
#[derive(Debug)]
pub struct World {
    pub(super) rng: Rng,
    pub(super) plan: Plan,
    pub(super) sabotage: Option<Sabotage>,
    pub(super) now: u64,
    queue: BinaryHeap<Reverse<Waiting>>,
    order: u64,
    steps: u64,
    pub(super) processes: Vec<Process>,
    pub(super) disks: Vec<Disk>,
    pub(super) shared: SharedDisk,
    pub(super) links: Vec<Link>,
    pub(super) isolated_until: [u64; NODES],
    arbiter_cut_until: [u64; NODES],
    pub(super) oracle: Oracle,
    clients: [Client; CLIENTS],
    pub(super) life: u64,
    next_instance: u64,
    pub(super) forcing: Forcing,
    acknowledged_late: u64,
    guest_ended: bool,
    violation: Option<Violation>,
    trace: bool,
    node_actions: Vec<Action>,
    pipeline_actions: Vec<primary::core::Action>,
}

impl World {
    /// The world of a seed, before anything happened.
    #[must_use]
    pub fn new(seed: u64, sabotage: Option<Sabotage>) -> World {
        let mut rng = Rng::new(seed);
        let plan = Plan::draw(&mut rng);
        let processes = (0..NODES).map(|slot| Process::new(slot, 1 + slot as u64, 0, &plan)).collect();
        let disks = (0..NODES).map(|_| Disk::new(rng.permille(plan.overwrite), sabotage == Some(Sabotage::ForgetMarks))).collect();
        World {
            rng,
            plan,
            sabotage,
            now: 0,
            queue: BinaryHeap::with_capacity(128),
            order: 0,
            steps: 0,
            processes,
            disks,
            shared: SharedDisk::default(),
            links: Vec::new(),
            isolated_until: [0; NODES],
            arbiter_cut_until: [0; NODES],
            oracle: Oracle::default(),
            clients: Default::default(),
            life: 0,
            next_instance: 1 + NODES as u64,
            forcing: Forcing::default(),
            acknowledged_late: 0,
            guest_ended: false,
            violation: None,
            trace: false,
            node_actions: Vec::new(),
            pipeline_actions: Vec::new(),
        }
    }

    /// Prints everything that happens to standard error.
    #[must_use]
    pub fn traced(mut self) -> World {
        self.trace = true;
        self
    }

    /// Runs to the end.
    ///
    /// # Errors
    /// The first thing seen that must not be.
    pub fn run(mut self) -> Result<Stats, Violation> {
        if self.trace {
            eprintln!("{:#?}", self.plan);
        }
        for fault in 0..self.plan.faults.len() {
            if let (When::At(at), _, _) = self.plan.faults[fault] {
                self.later(at, Happening::Strike { fault });
            }
        }
        self.node(0, Event::StartPrimary { abandon_standby: false });
        for slot in 1..NODES {
            self.node(slot, Event::StartStandby);
        }
        for slot in 0..NODES {
            self.carry_out(slot);
            self.schedule_tick(slot);
        }
        for client in 0..CLIENTS {
            self.client_turn(client, MS);
        }
        while let Some(Reverse(Waiting(at, _, happening))) = self.queue.pop() {
            if at > END_NS || self.violation.is_some() {
                break;
            }
            self.oracle.stats.happenings += 1;
            if self.oracle.stats.happenings > MOST_HAPPENINGS {
                self.violate("liveness", format!("{MOST_HAPPENINGS} things happened without an end; the last: {happening:?}"));
            }
            if self.now < HEAL_NS && at >= HEAL_NS {
                self.heal();
            }
            self.now = at;
            self.happens(happening);
        }
        if self.violation.is_none() {
            self.somebody_serves();
        }
        match self.violation {
            Some(violation) => Err(violation),
            None => Ok(self.oracle.stats),
        }
    }

    pub(super) fn violate(&mut self, property: &'static str, what: String) {
        if self.violation.is_none() {
            self.violation = Some(Violation { property, what: format!("at {:.3} ms: {what}", self.now as f64 / MS as f64) });
        }
    }

    pub(super) fn check(&mut self, checked: Result<(), Violation>) {
        if let Err(Violation { property, what }) = checked {
            self.violate(property, what);
        }
    }

    pub(super) fn later(&mut self, delay_ns: u64, happening: Happening) {
        self.at(self.now + delay_ns, happening);
    }

    pub(super) fn at(&mut self, at_ns: u64, happening: Happening) {
        self.order += 1;
        self.queue.push(Reverse(Waiting(at_ns.max(self.now), self.order, happening)));
    }

    pub(super) fn delay(&mut self) -> u64 {
        let most = self.plan.delay_ns;
        self.rng.between(20_000, most)
    }

    fn happens(&mut self, happening: Happening) {
        let at = self.now;
        let links = &self.links;
        let slot = happening.slot(|link, side| links[link].slots[side]);
        if let Some(slot) = slot {
            match self.processes[slot].life {
                Life::Dead => return,
                Life::Hung(until) if matches!(happening, Happening::Resume { instance, .. } if self.is(slot, instance)) && until <= at => {
                    self.processes[slot].life = Life::Running;
                }
                Life::Hung(until) => {
                    if let Happening::Tick { instance, .. } = happening
                        && instance == self.processes[slot].instance
                    {
                        self.processes[slot].tick_at_ns = until;
                    }
                    self.at(until, happening);
                    return;
                }
                Life::Running => {}
            }
        }
        if self.trace && !matches!(happening, Happening::Tick { .. }) {
            eprintln!("{:>11.3} {happening:?}", self.now as f64 / MS as f64);
        }
        self.dispatch(happening);
        if let Some(slot) = slot {
            self.carry_out(slot);
            self.schedule_tick(slot);
        }
    }

    fn is(&self, slot: usize, instance: u64) -> bool {
        self.processes[slot].instance == instance
    }

    fn dispatch(&mut self, happening: Happening) {
        match happening {
            Happening::Tick { slot, instance } if self.is(slot, instance) && self.processes[slot].tick_at_ns == self.now => self.tick(slot),
            Happening::Hello { slot, from, from_instance, generation, disk } => self.hello(slot, from, from_instance, generation, &disk),
            Happening::Newer { slot, instance, generation } if self.is(slot, instance) => {
                self.node(slot, Event::NewerGeneration { generation });
            }
            Happening::Deliver { link, side, message, channel, number } => self.deliver((link, side, channel), number, message),
            Happening::AtArbiter { slot, instance, id, request, reply_lost } => self.at_arbiter(slot, instance, id, &request, reply_lost),
            Happening::FromArbiter { slot, instance, id, answer } if self.is(slot, instance) => {
                if let Answer::Read(record) = &*answer {
                    self.vouch(slot, record.as_ref());
                }
                self.node(slot, Event::ArbiterReply { id, answer: *answer });
            }
            Happening::SyncNext { slot, instance, link, page } if self.is(slot, instance) => self.sync_next(slot, link, page),
            Happening::Capture { slot, instance, generation, epoch } if self.is(slot, instance) => self.capture(slot, generation, epoch),
            Happening::Send { slot, instance, generation, epoch } if self.is(slot, instance) => self.send_epoch(slot, generation, epoch),
            Happening::ApplyDone { slot, instance, link, epoch } if self.is(slot, instance) => self.applied(slot, link, epoch),
            Happening::Request { slot, instance, life, client, seq } if self.is(slot, instance) => self.serve(slot, life, client, seq),
            Happening::Settle { slot, instance, session } if self.is(slot, instance) => self.settle(slot, session),
            Happening::Clear { slot, instance, session, epoch } if self.is(slot, instance) && self.disks[slot].session == session => {
                self.disks[slot].clear(epoch);
            }
            Happening::Fence { slot, instance, generation, step } if self.is(slot, instance) => self.fence_step(slot, generation, step),
            Happening::Issue { slot, instance } if self.is(slot, instance) => self.issue(slot),
            Happening::LateGate { slot, instance } if self.is(slot, instance) => self.close_gate(slot),
            Happening::Reply { life, client, seq } => self.answered(life, client, seq),
            Happening::ClientTimer { client, turn } if self.clients[client].turn == turn => self.client_turn(client, 0),
            Happening::Strike { fault } => {
                let (_, target, fault) = self.plan.faults[fault];
                if let Some(slot) = self.struck(target) {
                    self.strike(slot, fault);
                }
            }
            Happening::Force { slot } => self.force(slot),
            Happening::Restart { slot, instance, primary } if self.is(slot, instance) => self.restart(slot, primary),
            // Resumed: the caller carries out what was left. The others: of a process that is no more, or a timer that was set anew.
            _ => {}
        }
    }

    pub(super) fn node(&mut self, slot: usize, event: Event) {
        let process = &mut self.processes[slot];
        process.node.handle(event, self.now, &mut self.node_actions);
        process.todo.extend(self.node_actions.drain(..).map(Todo::Node));
    }

    pub(super) fn pipeline(&mut self, slot: usize, event: primary::core::Event) {
        let process = &mut self.processes[slot];
        // The next tick is set anew after whatever happens (`schedule_tick`).
        let _ = process.pipeline.handle(event, self.now, &mut self.pipeline_actions);
        process.todo.extend(self.pipeline_actions.drain(..).map(Todo::Pipeline));
    }

    /// Carries out what the cores ordered, one action after the other; a fault may strike before each.
    fn carry_out(&mut self, slot: usize) {
        while self.processes[slot].runs() && self.violation.is_none() {
            let Some(todo) = self.processes[slot].todo.pop_front() else { return };
            self.steps += 1;
            if self.strikes_now(slot) {
                self.processes[slot].todo.push_front(todo);
                return;
            }
            if self.trace {
                eprintln!("            n{slot} {todo:?}");
            }
            match todo {
                Todo::Node(action) => self.node_action(slot, action),
                Todo::Pipeline(action) => self.pipeline_action(slot, action),
                Todo::Standby(action) => self.standby_action(slot, action),
            }
        }
    }

    fn node_action(&mut self, slot: usize, action: Action) {
        match action {
            Action::Arbiter { id, request } => self.ask(slot, id, request),
            Action::Report { .. } => {}
            Action::DropLink if self.goes_on_committing(slot) => {}
            Action::DropLink => self.drop_link(slot),
            Action::TellSight { trouble } => {
                let generation = self.processes[slot].node.generation();
                self.say(slot, Channel::Control, Message::Sight { generation, trouble });
            }
            Action::StopCommitting | Action::Activate { .. } | Action::StandDown { .. } => self.standby_order(slot, action),
            other => self.primary_order(slot, other),
        }
    }

    /// Faults that strike at this step. Says whether this process stops before its next action.
    fn strikes_now(&mut self, slot: usize) -> bool {
        for at in 0..self.plan.faults.len() {
            let (when, target, fault) = self.plan.faults[at];
            if when != When::Step(self.steps) || self.now >= HEAL_NS {
                continue;
            }
            if let Some(struck) = self.struck(target) {
                self.strike(struck, fault);
                if struck == slot && stops(fault) {
                    return true;
                }
            }
        }
        false
    }

    fn struck(&self, target: Target) -> Option<usize> {
        let owner = self.oracle.record.as_ref().map(slot_of);
        match target {
            Target::Owner => owner,
            Target::Peer => owner.and_then(|o| self.processes[o].link).map(|link| self.links[link].slots[1]),
            Target::Slot(slot) => Some(slot),
        }
    }

    fn strike(&mut self, slot: usize, fault: Fault) {
        if self.trace {
            eprintln!("            n{slot} <<< {fault:?}");
        }
        let until = |for_ns: u64| (self.now + for_ns).min(HEAL_NS);
        match fault {
            Fault::Crash { silent } => self.crash(slot, silent),
            Fault::Hang { for_ns } if self.processes[slot].runs() => {
                let until = until(for_ns);
                self.processes[slot].life = Life::Hung(until);
                // Order 0: before whatever else waits for the process.
                let resume = Happening::Resume { slot, instance: self.processes[slot].instance };
                self.queue.push(Reverse(Waiting(until, 0, resume)));
            }
            Fault::Hang { .. } => {}
            Fault::Partition { for_ns } => self.isolated_until[slot] = self.isolated_until[slot].max(until(for_ns)),
            Fault::BreakLink => self.break_link(slot),
            // Not in the middle of what a node does: it may be one of those that die of it.
            Fault::Force => self.later(0, Happening::Force { slot }),
            Fault::CutArbiter { for_ns } => self.arbiter_cut_until[slot] = until(for_ns),
            Fault::FailDisk => {
                if self.processes[slot].guest.is_some() && self.processes[slot].runs() {
                    self.node(slot, Event::DiskFailed { reason: "the medium failed".to_owned() });
                }
            }
            Fault::EndGuest => {
                if self.processes[slot].guest.is_some() && self.processes[slot].runs() {
                    self.guest_ended = true;
                    self.processes[slot].ended = true;
                    self.node(slot, Event::GuestEnded { reason: "powered off".to_owned() });
                }
            }
        }
    }

    fn crash(&mut self, slot: usize, silent: bool) {
        if self.processes[slot].life == Life::Dead {
            return;
        }
        if !silent {
            self.drop_link(slot);
        }
        self.die(slot);
        // A host that dies takes its page cache with it.
        self.disks[slot].crash(silent, &mut self.rng);
        let back = self.rng.permille(self.plan.come_back);
        let primary = self.rng.permille(self.plan.come_back_primary);
        if back {
            let after = self.rng.between(MS, 40 * MS);
            self.later(after, Happening::Restart { slot, instance: self.processes[slot].instance, primary });
        }
    }

    pub(super) fn die(&mut self, slot: usize) {
        let process = &mut self.processes[slot];
        process.life = Life::Dead;
        process.todo.clear();
        process.guest = None;
        process.holding = None;
        process.link = None;
        self.force_settled(slot);
    }

    fn restart(&mut self, slot: usize, primary: bool) {
        let primary = primary && self.disks[slot].is_fit();
        self.begin(slot, if primary { Event::StartPrimary { abandon_standby: false } } else { Event::StartStandby });
    }

    pub(super) fn new_instance(&mut self) -> u64 {
        self.next_instance += 1;
        self.next_instance - 1
    }

    /// A new process of the node.
    pub(super) fn begin(&mut self, slot: usize, start: Event) {
        self.drop_link(slot);
        self.disks[slot].crash(false, &mut self.rng);
        let instance = self.new_instance();
        self.processes[slot] = Process::new(slot, instance, self.now, &self.plan);
        self.node(slot, start);
        self.carry_out(slot);
        self.schedule_tick(slot);
    }

    /// Everything works from now on; the faults that have an end were given one before this.
    fn heal(&mut self) {
        let plan = &mut self.plan;
        for chance in [
            &mut plan.lose_request,
            &mut plan.lose_reply,
            &mut plan.late_request,
            &mut plan.corrupt,
            &mut plan.fail_capture,
            &mut plan.fail_send,
            &mut plan.lose_frame,
            &mut plan.fail_fence,
        ] {
            *chance = 0;
        }
    }

    fn ask(&mut self, slot: usize, id: RequestId, request: Request) {
        let instance = self.processes[slot].instance;
        let is_swap = matches!(request, Request::Swap { .. });
        if is_swap {
            self.has_vouched(slot);
        }
        let cut = self.now < self.arbiter_cut_until[slot];
        let request_lost = self.rng.permille(if cut { 500 } else { self.plan.lose_request });
        let reply_lost = !request_lost && (cut || self.rng.permille(self.plan.lose_reply));
        self.oracle.stats.unanswered_swaps += u64::from(is_swap && (request_lost || reply_lost));
        if request_lost || reply_lost {
            let told = self.rng.permille(500);
            let after = self.rng.between(MS / 2, 10 * MS);
            if self.sabotage == Some(Sabotage::UnansweredIsDone) && is_swap {
                self.later(after, Happening::FromArbiter { slot, instance, id, answer: Box::new(Answer::Done) });
            } else if told {
                let answer = Box::new(Answer::Failed { why: "no answer".to_owned() });
                self.later(after, Happening::FromArbiter { slot, instance, id, answer });
            }
        }
        if !request_lost {
            let late = self.rng.permille(if cut { 300 } else { self.plan.late_request });
            let travel = if late { self.rng.between(5 * MS, 60 * MS) } else { self.delay() };
            self.later(travel, Happening::AtArbiter { slot, instance, id, request: Box::new(request), reply_lost });
        }
    }

    /// A question to the arbiter from the fence, answered at once: whether the grant is still this process's.
    pub(super) fn confirms(&mut self, slot: usize, generation: Generation) -> Option<bool> {
        if self.now < self.arbiter_cut_until[slot] {
            return None;
        }
        let instance = self.processes[slot].instance;
        Some(self.oracle.record.as_ref().is_some_and(|r| r.generation == generation && r.is_owned_by(&name(slot), instance)))
    }

    fn at_arbiter(&mut self, slot: usize, instance: u64, id: RequestId, request: &Request, reply_lost: bool) {
        let answer = match request {
            Request::Read => Answer::Read(self.oracle.record.clone()),
            Request::Swap { expect, new } if *expect == self.oracle.record => {
                let checked = self.oracle.record_changes(new);
                self.check(checked);
                Answer::Done
            }
            Request::Swap { .. } => Answer::Lost(self.oracle.record.clone()),
        };
        if !reply_lost {
            let travel = self.delay();
            self.later(travel, Happening::FromArbiter { slot, instance, id, answer: Box::new(answer) });
        }
    }

    /// The client sends its next operation, or sends it again, to whoever seems to run the VM.
    fn client_turn(&mut self, client: usize, after_ns: u64) {
        self.clients[client].turn += 1;
        let turn = self.clients[client].turn;
        if after_ns > 0 {
            self.later(after_ns, Happening::ClientTimer { client, turn });
            return;
        }
        let seq = self.clients[client].acknowledged + 1;
        for slot in 0..NODES {
            if self.processes[slot].guest.is_some() && !self.rng.permille(self.plan.lose_frame) {
                let travel = self.delay();
                let request = Happening::Request { slot, instance: self.processes[slot].instance, life: self.life, client, seq };
                self.later(travel, request);
            }
        }
        self.later(RETRANSMIT_NS, Happening::ClientTimer { client, turn });
    }

    fn answered(&mut self, life: u64, client: usize, seq: u32) {
        if life == self.life && seq == self.clients[client].acknowledged + 1 {
            self.clients[client].acknowledged = seq;
            self.oracle.stats.acknowledged += 1;
            if self.now > END_NS - PROGRESS_NS {
                self.acknowledged_late += 1;
            }
            let think = self.rng.between(MS, 10 * MS);
            self.client_turn(client, think);
        }
    }

    /// The VM starts from nothing.
    pub(super) fn new_life(&mut self) {
        self.life += 1;
        self.oracle.new_life();
        for client in 0..CLIENTS {
            self.clients[client].acknowledged = 0;
            self.client_turn(client, MS);
        }
    }

    /// At the end: whoever holds the VM serves it, and whoever may take it over has done so.
    fn somebody_serves(&mut self) {
        let Some(record) = self.oracle.record.clone() else {
            if self.processes[0].instance == 1 && self.processes[0].runs() {
                self.violate("liveness", "the VM was never started".to_owned());
            }
            return;
        };
        if self.guest_ended {
            return;
        }
        let owner = &self.processes[slot_of(&record)];
        if owner.runs() && record.instance == owner.instance {
            if self.acknowledged_late == 0 {
                self.violate("liveness", format!("{record:?}: its owner lives, but no client was served at the end"));
            }
            return;
        }
        let heir = (0..NODES).find(|slot| record.standby == Some(name(*slot)));
        if let Some(heir) = heir
            && self.processes[heir].runs()
            && self.processes[heir].node.role() == Role::Standby
            && let Some(holding) = &self.processes[heir].holding
            && holding.core.generation() == record.generation
            && holding.core.committed().0 > 0
        {
            self.violate("liveness", format!("{record:?}: its owner is dead, and its standby has not taken over"));
        }
    }
}
