//! Two hosts with a guest of their own choice, without clients: the stage of scenarios that look at the machine. Not here: load ([`super::course`]).

use std::time::{Duration, Instant};

use types::Generation;
use types::event::{NodeEventKind, Protection};

use super::node::{GuestSpec, NODE_BOUND, Node, Part};
use super::report::Row;
use super::{Stage, stock};
use crate::agent::Agent;
use crate::error::LabError;
use crate::host::{Host, HostOptions, READY_BOUND};
use crate::lab::Lab;
use crate::net::Network;
use crate::prepare::kernel::Series;
use crate::prepare::prepare;

/// The guest's agent answers within milliseconds; after a failover, within some retransmissions; a guest of many vCPUs on a busy machine has to be waited for.
pub const ASK: Duration = Duration::from_secs(60);
/// A stock guest is up 7 s after its start on a quiet machine; one of 16 vCPUs on one processor takes a minute.
pub const BOOT_BOUND: Duration = Duration::from_secs(150);
const TICK: Duration = Duration::from_millis(50);

/// Run in a host before a node is started in it, each time the host has been started: what the guest needs beside the usual.
pub type Equip = fn(&Host) -> Result<(), LabError>;

/// A lab of hosts that need not be alike, with `lockstep` in it.
///
/// # Errors
/// The lab does not come up.
pub fn lab(stage: &Stage<'_>, hosts: &[HostOptions]) -> Result<Lab, LabError> {
    let name = format!("test-{}", stage.name);
    let lab = Lab::start_unlike(stage.paths, stage.prepared.clone(), &name, hosts).map_err(LabError::trouble)?;
    lab.share(&stage.paths.lockstep()?, "lockstep")?;
    Ok(lab)
}

/// Puts the newest prepared kernel of `series` where guests look for it.
///
/// # Errors
/// It cannot be had.
pub fn share_kernel(stage: &Stage<'_>, lab: &Lab, series: Series) -> Result<(), LabError> {
    let prepared = prepare(stage.paths, stage.prepared.host.kernel.series, series, false, &|_| {}).map_err(LabError::trouble)?;
    lab.share_kernel(&prepared.guest)
}

/// Nothing beside the usual.
///
/// # Errors
/// None.
pub fn usual(_: &Host) -> Result<(), LabError> {
    Ok(())
}

/// The stage.
#[derive(Debug)]
pub struct Pair {
    /// The node that runs the guest.
    pub primary: Node,
    /// The node that protects it.
    pub standby: Node,
    /// What runs on them.
    pub guest: GuestSpec,
    /// The machines.
    pub lab: Lab,
    turn: u32,
    equip: Equip,
}

/// Waits until the agent of the guest on `node` answers, in a boot other than `before`; the guest's boot id.
fn booted(network: &Network, node: &Node, before: Option<&str>) -> Result<String, LabError> {
    let deadline = Instant::now() + BOOT_BOUND;
    loop {
        let said = stock::agent(network).must("cat /proc/sys/kernel/random/boot_id", Duration::from_secs(2));
        match said {
            Ok(id) if before != Some(id.trim()) => return Ok(id.trim().to_owned()),
            Ok(_) | Err(_) if Instant::now() < deadline => std::thread::sleep(TICK),
            last => {
                let detail = format!(": {last:?}; the end of its node's log:\n{}", node.log_tail());
                return Err(LabError::Late { what: "the guest".into(), bound: BOOT_BOUND, detail });
            }
        }
    }
}

impl Pair {
    /// A primary on h1, a standby on h2; the guest has booted and is protected when this returns.
    ///
    /// # Errors
    /// A node does not come that far.
    pub fn begin(mut lab: Lab, guest: GuestSpec, equip: Equip, name: &str) -> Result<Pair, LabError> {
        let begun = Pair::nodes(&mut lab, &guest, equip).inspect_err(|_| drop(lab.keep_logs(name)));
        let (primary, standby) = begun?;
        Ok(Pair { primary, standby, guest, lab, turn: 1, equip })
    }

    fn nodes(lab: &mut Lab, guest: &GuestSpec, equip: Equip) -> Result<(Node, Node), LabError> {
        let shared = lab.shared();
        for number in [2, 1] {
            equip(lab.host(number)?)?;
        }
        let mut primary = Node::start(lab.host(1)?, 2, Part::Primary, 1, guest, &shared)?;
        primary.until_ready()?;
        if guest.stock.is_some() {
            // A guest that is protected while it boots boots four times as long under emulation; one of 16 vCPUs takes minutes.
            booted(lab.network(), &primary, None)?;
        }
        let mut standby = Node::start(lab.host(2)?, 1, Part::Standby { first: true }, 1, guest, &shared)?;
        standby.until_ready()?;
        primary.until_protected()?;
        Ok((primary, standby))
    }

    /// Runs `course` on this stage and keeps the logs if it fails.
    ///
    /// # Errors
    /// What `course` fails with.
    pub fn play(mut self, stage: &Stage<'_>, course: impl FnOnce(&mut Pair) -> Result<(), LabError>) -> Result<(), LabError> {
        let came = course(&mut self);
        if came.is_err() || stage.keep_logs {
            // Logs that cannot be kept make no scenario fail.
            drop(self.lab.keep_logs(stage.name));
        }
        came
    }

    /// The guest's agent.
    #[must_use]
    pub fn agent(&self) -> Agent<'_> {
        stock::agent(self.lab.network())
    }

    /// Runs a script in the guest that must end well.
    ///
    /// # Errors
    /// The guest does not answer, or the script fails.
    pub fn guest(&self, script: &str) -> Result<String, LabError> {
        self.agent().must(script, ASK)
    }

    /// What the guest's probes and kernel have seen ([`stock::judge_probes`]).
    ///
    /// # Errors
    /// As there.
    pub fn judge_probes(&self, row: &mut Row) -> Result<(), LabError> {
        stock::judge_probes(self.lab.network(), self.guest.cpus, row)
    }

    /// Waits until the guest's agent answers; the guest's boot id.
    ///
    /// # Errors
    /// It does not in time.
    pub fn until_up(&mut self) -> Result<String, LabError> {
        self.until_up_since(None)
    }

    /// As [`Self::until_up`], of a boot other than `before`.
    ///
    /// # Errors
    /// As there.
    pub fn until_up_since(&mut self, before: Option<&str>) -> Result<String, LabError> {
        booted(self.lab.network(), &self.primary, before)
    }

    /// The host that runs the guest.
    ///
    /// # Errors
    /// None: it is one of the lab's.
    pub fn primary_host(&mut self) -> Result<&mut Host, LabError> {
        self.lab.host(self.primary.host())
    }

    /// The primary's host dies, the standby takes over, and the guest answers; the roles are exchanged.
    ///
    /// # Errors
    /// Any of it does not come about.
    pub fn fail_over(&mut self, row: &mut Row) -> Result<Generation, LabError> {
        self.primary.until_protected()?;
        self.primary_host()?.kill()?;
        row.kills += 1;
        let generation = self.standby.until_activated()?;
        row.failovers += 1;
        row.disk_requests_at_failovers.extend(self.standby.disk_requests());
        std::mem::swap(&mut self.primary, &mut self.standby);
        let asked = Instant::now();
        self.guest("true")?;
        row.blackouts_ms.push(asked.elapsed().as_secs_f64() * 1e3);
        Ok(generation)
    }

    /// The host that died comes back and protects the guest.
    ///
    /// # Errors
    /// Any of it does not come about.
    pub fn protect_again(&mut self) -> Result<(), LabError> {
        self.protect_again_begin()?;
        self.primary.until_protected().map(drop)
    }

    /// As [`Self::protect_again`], until the first copy has begun.
    ///
    /// # Errors
    /// As there.
    pub fn protect_again_begin(&mut self) -> Result<(), LabError> {
        let mark = self.primary.mark();
        let (host, peer) = (self.standby.host(), self.primary.host());
        let (equip, shared) = (self.equip, self.lab.shared());
        let dead = self.lab.host(host)?;
        if !dead.is_alive() {
            dead.start()?;
            dead.wait_ready(READY_BOUND)?;
            equip(dead)?;
        }
        self.turn += 1;
        self.standby = Node::start(self.lab.host(host)?, peer, Part::Standby { first: false }, self.turn, &self.guest, &shared)?;
        self.standby.until_ready()?;
        let copying = |event: &types::event::NodeEvent| matches!(event.what, NodeEventKind::Syncing { .. }).then_some(());
        self.primary.until("the first copy", mark, NODE_BOUND, copying)
    }

    /// Has the guest end by `how`, boot again and answer; its new boot id. The standby, if there is one, must have seen nothing but epochs.
    ///
    /// # Errors
    /// Any of it does not come about.
    pub fn boots_again(&mut self, how: &str, ask: impl FnOnce(&Pair) -> Result<(), LabError>) -> Result<String, LabError> {
        let before = self.until_up()?;
        let (mark, standby) = (self.primary.mark(), self.standby.mark());
        let protected = self.primary.find_last_protection() == Some(Protection::Protected);
        ask(self)?;
        let reset = |event: &types::event::NodeEvent| matches!(event.what, NodeEventKind::GuestReset { .. }).then_some(());
        self.primary.until(&format!("{how}: the guest's reset"), mark, NODE_BOUND, reset)?;
        let after = self.until_up_since(Some(&before))?;
        let lost = |event: &types::event::NodeEvent| match &event.what {
            NodeEventKind::State { protection, reason, .. } if *protection != Protection::Protected => Some(reason.clone()),
            NodeEventKind::PeerGone { cause } => Some(cause.clone()),
            _ => None,
        };
        if let (true, Some(reason)) = (protected, self.primary.find(mark, lost).or_else(|| self.standby.find(standby, lost))) {
            return Err(LabError::Found(format!("{how}: the guest's reset cost its protection: {reason}")));
        }
        Ok(after)
    }

    /// Has the node told to stop (SIGTERM), as by a person at the power button, and waits until its guest has shut itself down and it has ended.
    ///
    /// # Errors
    /// It does not end, or not because its guest stopped.
    pub fn press_power_button(&mut self) -> Result<(), LabError> {
        let (pid, mark) = (self.primary.pid(), self.primary.mark());
        self.primary_host()?.must(&format!("kill -TERM {pid}"))?;
        let stopped = |event: &types::event::NodeEvent| match &event.what {
            NodeEventKind::GuestStopped { reason } => Some(reason.clone()),
            _ => None,
        };
        self.primary.until("the guest's end at the power button", mark, NODE_BOUND, stopped)?;
        self.until_gone(pid)
    }

    /// Waits until process `pid` of the primary's host has ended.
    ///
    /// # Errors
    /// It does not.
    pub fn until_gone(&mut self, pid: u32) -> Result<(), LabError> {
        let deadline = Instant::now() + NODE_BOUND;
        while self.primary_host()?.exec(&format!("kill -0 {pid}"), ASK)?.ok() {
            if Instant::now() >= deadline {
                let detail = format!("; the end of its log:\n{}", self.primary.log_tail());
                return Err(LabError::Late { what: "the node's end".into(), bound: NODE_BOUND, detail });
            }
            std::thread::sleep(TICK);
        }
        Ok(())
    }
}
