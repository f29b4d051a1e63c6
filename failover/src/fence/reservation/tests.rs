//! The very steps of [`take_over`], explored over every interleaving of several owners that sleep, die and are superseded at any point, against a model of a device with persistent reservations.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;

use types::NodeId;

use super::*;

const KEY: u64 = 0xfeed;
/// Attempts of one owner before it counts as not getting there: one for each older owner that can come between, and one.
const ATTEMPTS_ALLOWED: usize = 4;

type Nexus = u8;

/// What an owner asks for next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Op {
    Register(u64),
    Reserve(u64),
    PreemptAbort(u64),
    Confirm,
}

/// A device as SPC-4 5.13 has it, for one type of reservation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Device {
    keys: BTreeMap<Nexus, u64>,
    holder: Option<Nexus>,
    /// Nexuses to be told that they lost their registration, at their next command.
    attention: BTreeSet<Nexus>,
    /// Writes accepted and not carried out yet, by process.
    under_way: Vec<usize>,
}

/// What is left out, each of which must be caught.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sabotage {
    Nothing,
    NoRegister,
    NoConfirm,
    NoPreempt,
    /// What Linux's target does for key 0 and all registrants.
    NoAbort,
    NoVerify,
    /// A process whose write was refused registers again and repeats it.
    ComesBack,
    /// A new process of a host does not wait for the old one's writes.
    NoLock,
    /// A guest's good end gives the reservation up although there were other owners.
    AlwaysRelease,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Phase {
    Waiting,
    Fencing { answers: Vec<Answer>, attempt: usize },
    Running { writes: u8 },
    Ending,
    Gone,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Process {
    nexus: Nexus,
    generation: u8,
    phase: Phase,
    /// Its `take_over` returned Ok once.
    fenced: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    device: Device,
    processes: Vec<Process>,
    /// The arbiter's record: generation and process.
    generation: u8,
    owner: Option<usize>,
    crashes: u8,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Grant(usize),
    Go(usize),
    Land(usize),
    Crash(usize),
    End(usize),
}

/// Answers from what was answered before; at its end it notes what is asked next and ends the attempt.
struct Script<'a> {
    answers: &'a [Answer],
    at: Cell<usize>,
    next: Cell<Option<Op>>,
}

impl Script<'_> {
    fn ask(&self, op: Op) -> io::Result<Answer> {
        let at = self.at.replace(self.at.get() + 1);
        self.answers.get(at).copied().ok_or_else(|| {
            self.next.set(Some(op));
            io::ErrorKind::WouldBlock.into()
        })
    }
}

impl PrOps for Script<'_> {
    fn register(&self, key: u64) -> io::Result<Answer> {
        self.ask(Op::Register(key))
    }

    fn reserve(&self, key: u64) -> io::Result<Answer> {
        self.ask(Op::Reserve(key))
    }

    fn preempt_abort(&self, key: u64) -> io::Result<Answer> {
        self.ask(Op::PreemptAbort(key))
    }

    fn clear(&self, _: u64) -> io::Result<Answer> {
        unreachable!("not a step of a takeover")
    }

    fn touch(&self) -> io::Result<Answer> {
        unreachable!("not a step of a takeover")
    }

    fn release_nothing(&self, _: u64) -> io::Result<Answer> {
        unreachable!("not a step of a takeover")
    }
}

impl Grant for Script<'_> {
    fn confirm(&self) -> Result<(), FenceError> {
        match self.ask(Op::Confirm) {
            Ok(Answer::Done) => Ok(()),
            Ok(_) => Err(FenceError::Over { owner: NodeId("newer".to_owned()), generation: types::Generation(9) }),
            Err(_) => Err(FenceError::NoRecord),
        }
    }

    fn wanted(&self) -> bool {
        true
    }
}

/// What the code does next after these answers: another question, or its result.
fn next(answers: &[Answer]) -> Result<Op, Result<(), FenceError>> {
    let script = Script { answers, at: Cell::new(0), next: Cell::new(None) };
    let result = take_over(&script, "disk", KEY, &script);
    script.next.take().ok_or(result)
}

impl Device {
    fn execute(&mut self, nexus: Nexus, op: Op, sabotage: Sabotage) -> Answer {
        if self.attention.remove(&nexus) {
            return Answer::Again(2);
        }
        match op {
            Op::Register(_) if sabotage == Sabotage::NoRegister => Answer::Done,
            Op::Register(key) => {
                self.keys.insert(nexus, key);
                Answer::Done
            }
            Op::Reserve(key) if self.keys.get(&nexus) == Some(&key) && self.holder.is_none_or(|holder| holder == nexus) => {
                self.holder = Some(nexus);
                Answer::Done
            }
            Op::PreemptAbort(_) if sabotage == Sabotage::NoPreempt => Answer::Done,
            Op::PreemptAbort(key) if self.keys.get(&nexus) == Some(&key) => {
                self.preempt(nexus, key, sabotage);
                Answer::Done
            }
            Op::Reserve(_) | Op::PreemptAbort(_) => Answer::Conflict,
            Op::Confirm => unreachable!("the arbiter's"),
        }
    }

    fn preempt(&mut self, nexus: Nexus, key: u64, sabotage: Sabotage) {
        // SPC-4 table 63: a key that is the holder's takes the reservation and spares the one who preempts; any other key removes its registrations, the preempting nexus's too.
        let takes = self.holder.is_some_and(|holder| self.keys.get(&holder) == Some(&key));
        let removed: Vec<Nexus> = self.keys.iter().filter(|(n, k)| **k == key && !(takes && **n == nexus)).map(|(n, _)| *n).collect();
        for lost in &removed {
            self.keys.remove(lost);
            if *lost != nexus {
                self.attention.insert(*lost);
            }
        }
        if takes {
            self.holder = Some(nexus);
        }
        if sabotage == Sabotage::NoAbort {
            return;
        }
        self.under_way.retain(|write| !removed.contains(&nexus_of(*write)));
    }

    fn accepts(&self, nexus: Nexus) -> bool {
        self.holder.is_none() || self.keys.contains_key(&nexus)
    }

    fn clear(&mut self, nexus: Nexus) {
        if self.keys.get(&nexus) == Some(&KEY) {
            self.keys.clear();
            self.holder = None;
        }
    }
}

/// A write under way is `process * 16 + nexus`.
fn nexus_of(write: usize) -> Nexus {
    (write % 16) as Nexus
}

fn process_of(write: usize) -> usize {
    write / 16
}

impl World {
    fn new(nexuses: &[Nexus], crashes: u8) -> World {
        let process = |nexus: &Nexus| Process { nexus: *nexus, generation: 0, phase: Phase::Waiting, fenced: false };
        World { device: Device::default(), processes: nexuses.iter().map(process).collect(), generation: 0, owner: None, crashes }
    }

    /// The lock of the host is free, and so is whatever was written under it.
    fn lock_is_free(&self, who: usize) -> bool {
        let nexus = self.processes[who].nexus;
        let others = self.processes.iter().enumerate().filter(|(other, p)| *other != who && p.nexus == nexus);
        let idle = |p: &Process| matches!(p.phase, Phase::Waiting | Phase::Gone);
        // A fence that has not begun holds no lock.
        let not_begun = |p: &Process| matches!(&p.phase, Phase::Fencing { answers, attempt: 0 } if answers.is_empty());
        let mut others = others.map(|(_, p)| p);
        others.all(|p| idle(p) || not_begun(p))
            && !self.device.under_way.iter().any(|write| nexus_of(*write) == nexus && process_of(*write) != who)
    }

    fn steps(&self, sabotage: Sabotage) -> Vec<Step> {
        let mut steps: Vec<Step> = (0..self.device.under_way.len()).map(Step::Land).collect();
        for (who, process) in self.processes.iter().enumerate() {
            let begins = matches!(&process.phase, Phase::Fencing { answers, attempt: 0 } if answers.is_empty());
            match process.phase {
                Phase::Waiting => steps.push(Step::Grant(who)),
                Phase::Fencing { .. } if begins && sabotage != Sabotage::NoLock && !self.lock_is_free(who) => {}
                Phase::Fencing { .. } | Phase::Ending => steps.push(Step::Go(who)),
                Phase::Running { writes } => {
                    if writes > 0 {
                        steps.push(Step::Go(who));
                    }
                    let alone = process.generation == 1 || sabotage == Sabotage::AlwaysRelease;
                    if alone && self.owner == Some(who) && !self.device.under_way.iter().any(|write| process_of(*write) == who) {
                        steps.push(Step::End(who));
                    }
                }
                Phase::Gone => continue,
            }
            if self.crashes > 0 && !matches!(process.phase, Phase::Waiting) {
                steps.push(Step::Crash(who));
            }
        }
        steps
    }

    /// The world after a step, or what went wrong.
    fn after(&self, step: Step, sabotage: Sabotage) -> Result<World, String> {
        let mut world = self.clone();
        match step {
            Step::Grant(who) => {
                world.generation += 1;
                world.owner = Some(who);
                world.processes[who].generation = world.generation;
                world.processes[who].phase = Phase::Fencing { answers: Vec::new(), attempt: 0 };
            }
            Step::Crash(who) => {
                world.crashes -= 1;
                world.processes[who].phase = Phase::Gone;
            }
            Step::End(who) => world.processes[who].phase = Phase::Ending,
            Step::Land(index) => {
                let writer = process_of(world.device.under_way.remove(index));
                let generation = self.processes[writer].generation;
                if self.processes.iter().any(|p| p.fenced && p.generation > generation) {
                    return Err(format!(
                        "a write of generation {generation} lands after a newer owner was told that it is alone: {self:?}"
                    ));
                }
            }
            Step::Go(who) => world.go(who, sabotage)?,
        }
        Ok(world)
    }

    fn go(&mut self, who: usize, sabotage: Sabotage) -> Result<(), String> {
        let nexus = self.processes[who].nexus;
        match self.processes[who].phase.clone() {
            Phase::Ending => {
                self.device.clear(nexus);
                self.processes[who].phase = Phase::Gone;
            }
            Phase::Running { writes } => {
                self.device.attention.remove(&nexus);
                if !self.device.accepts(nexus) && sabotage == Sabotage::ComesBack {
                    self.device.keys.insert(nexus, KEY);
                }
                if self.device.accepts(nexus) {
                    self.device.under_way.push(who * 16 + usize::from(nexus));
                    self.processes[who].phase = Phase::Running { writes: writes - 1 };
                } else {
                    self.processes[who].phase = Phase::Gone;
                }
            }
            Phase::Fencing { mut answers, attempt } => match next(&answers) {
                Ok(op) => {
                    let verify = answers.len() > 4 && matches!(op, Op::Reserve(_));
                    let answer = match op {
                        Op::Confirm if sabotage == Sabotage::NoConfirm || self.owner == Some(who) => Answer::Done,
                        Op::Confirm => Answer::Conflict,
                        _ if verify && sabotage == Sabotage::NoVerify => Answer::Done,
                        op => self.device.execute(nexus, op, sabotage),
                    };
                    answers.push(answer);
                    self.processes[who].phase = Phase::Fencing { answers, attempt };
                }
                Err(Ok(())) => {
                    self.processes[who].phase = Phase::Running { writes: 1 };
                    self.processes[who].fenced = true;
                }
                Err(Err(error)) if error.is_final() => self.processes[who].phase = Phase::Gone,
                Err(Err(error)) => {
                    let attempt = attempt + 1;
                    if attempt >= ATTEMPTS_ALLOWED && sabotage == Sabotage::NoConfirm {
                        // Two that take it from one another for ever: what is looked for is that both come to write.
                        self.processes[who].phase = Phase::Gone;
                        return Ok(());
                    }
                    if attempt >= ATTEMPTS_ALLOWED {
                        return Err(format!("process {who} does not get there: {error}: {self:?}"));
                    }
                    self.processes[who].phase = Phase::Fencing { answers: Vec::new(), attempt };
                }
            },
            Phase::Waiting | Phase::Gone => unreachable!("no step"),
        }
        Ok(())
    }
}

/// Walks through everything that can happen; the number of states, or the first thing that must not happen.
fn explore(nexuses: &[Nexus], crashes: u8, sabotage: Sabotage) -> Result<usize, String> {
    let mut seen = HashSet::new();
    let mut open = vec![World::new(nexuses, crashes)];
    while let Some(world) = open.pop() {
        if !seen.insert(world.clone()) {
            continue;
        }
        for step in world.steps(sabotage) {
            open.push(world.after(step, sabotage)?);
        }
    }
    Ok(seen.len())
}

#[test]
fn no_older_owner_writes_after_a_newer_one_was_told_that_it_is_alone() {
    // Each owner on a host of its own; the first one's host comes back with a new process; two processes a host.
    for (nexuses, crashes) in [(&[0, 1][..], 2), (&[0, 1, 2], 1), (&[0, 1, 0], 2), (&[0, 0], 2)] {
        let states = explore(nexuses, crashes, Sabotage::Nothing).unwrap_or_else(|wrong| panic!("{nexuses:?}: {wrong}"));
        println!("{nexuses:?}: {states} states");
        assert!(states > 100, "{nexuses:?}: only {states} states: nothing was explored");
    }
}

#[test]
fn the_newest_owner_gets_there() {
    // Nobody dies: whatever order things happen in, the last one granted ends up alone.
    let mut open = vec![World::new(&[0, 1, 2], 0)];
    let mut seen = HashSet::new();
    let mut ends = 0;
    while let Some(world) = open.pop() {
        if !seen.insert(world.clone()) {
            continue;
        }
        let steps = world.steps(Sabotage::Nothing);
        if steps.is_empty() {
            let newest = &world.processes[world.owner.expect("somebody was granted")];
            assert!(newest.fenced, "{world:?}");
            ends += 1;
        }
        open.extend(steps.into_iter().map(|step| world.after(step, Sabotage::Nothing).expect("nothing goes wrong")));
    }
    assert!(ends > 0);
}

#[test]
fn whatever_is_left_out_is_caught() {
    // A node that cannot shut others out runs nothing; one that believes wrongly that it has, is overwritten.
    const STUCK: &str = "does not get there";
    const LANDS: &str = "lands after a newer owner was told";
    for (sabotage, how) in [
        (Sabotage::NoRegister, STUCK),
        (Sabotage::NoConfirm, LANDS),
        (Sabotage::NoPreempt, STUCK),
        (Sabotage::NoAbort, LANDS),
        (Sabotage::NoVerify, LANDS),
        (Sabotage::ComesBack, LANDS),
        (Sabotage::AlwaysRelease, LANDS),
    ] {
        let found = explore(&[0, 1, 2], 1, sabotage);
        assert!(found.as_ref().is_err_and(|wrong| wrong.contains(how)), "{sabotage:?}: {found:?}");
    }
    let found = explore(&[0, 1, 0], 1, Sabotage::NoLock);
    assert!(found.as_ref().is_err_and(|wrong| wrong.contains(LANDS)), "a process that does not wait for its host's older one: {found:?}");
}

#[test]
fn a_device_that_a_stranger_holds_is_refused() {
    let mut device = Device { keys: [(9, 0xbad)].into(), holder: Some(9), ..Device::default() };
    let mut answers = Vec::new();
    let result = loop {
        match next(&answers) {
            Ok(Op::Confirm) => answers.push(Answer::Done),
            Ok(op) => answers.push(device.execute(0, op, Sabotage::Nothing)),
            Err(result) => break result,
        }
    };
    assert!(matches!(result, Err(FenceError::Foreign { .. })), "{result:?}");
    assert_eq!(device.holder, Some(9), "and is left to the stranger");
}

#[test]
fn a_unit_attention_is_no_refusal_and_a_status_that_stays_is() {
    // Arrange: two unit attentions before the first step is done.
    let answers = [Answer::Again(2), Answer::Again(2), Answer::Done];
    assert_eq!(next(&answers).ok(), Some(Op::Confirm));
    let stays = [Answer::Again(2); ATTEMPTS];
    let Err(Err(FenceError::Device { step: "register", status: 2, .. })) = next(&stays) else {
        panic!("a device that always refuses is an error")
    };
}

/// A device that answers the probe's two questions so.
struct Probed(io::Result<Answer>, io::Result<Answer>);

fn same(answer: &io::Result<Answer>) -> io::Result<Answer> {
    answer.as_ref().map(|answer| *answer).map_err(|error| io::Error::from_raw_os_error(error.raw_os_error().unwrap_or(5)))
}

impl PrOps for Probed {
    fn register(&self, _: u64) -> io::Result<Answer> {
        panic!("a probe registers nothing")
    }

    fn reserve(&self, _: u64) -> io::Result<Answer> {
        panic!("a probe reserves nothing")
    }

    fn preempt_abort(&self, _: u64) -> io::Result<Answer> {
        panic!("a probe preempts nobody")
    }

    fn clear(&self, _: u64) -> io::Result<Answer> {
        panic!("a probe clears nothing")
    }

    fn touch(&self) -> io::Result<Answer> {
        same(&self.0)
    }

    fn release_nothing(&self, key: u64) -> io::Result<Answer> {
        assert_ne!(key, KEY, "the VM's own key would release the reservation");
        same(&self.1)
    }
}

#[test]
fn a_probe_tells_devices_that_have_reservations_and_changes_nothing() {
    let unknown = || Err(io::Error::from_raw_os_error(nix::libc::ENOTTY));
    for able in [
        Probed(Ok(Answer::Done), unknown()),
        Probed(Ok(Answer::Conflict), unknown()),
        Probed(Err(io::Error::from_raw_os_error(nix::libc::EINVAL)), Ok(Answer::Conflict)),
    ] {
        assert!(probe(&able, "disk", KEY).is_ok());
    }
    for unable in [Probed(unknown(), unknown()), Probed(Ok(Answer::Again(2)), Ok(Answer::Again(2)))] {
        let error = probe(&unable, "disk", KEY).expect_err("not able").to_string();
        assert!(error.contains("--fence-command"), "{error}");
    }
}

#[test]
fn each_vm_has_its_own_key_and_it_never_changes() {
    assert_ne!(key(&VmId("a".to_owned())), key(&VmId("b".to_owned())));
    assert_eq!(key(&VmId("vm0".to_owned())), key(&VmId("vm0".to_owned())));
}
