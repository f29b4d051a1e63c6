//! Hosts with unlike processors: what both can carry is protected, and everything else is refused by the features' names. With the built-in guest: none of
//! it is the kernel's business.

use super::super::Stage;
use super::super::node::{GuestSpec, NODE_BOUND, Node, Part};
use super::super::pair::lab;
use super::super::report::Row;
use super::super::turns::Turns;
use super::expect;
use crate::error::LabError;
use crate::host::HostOptions;
use crate::lab::Lab;

/// No AVX and nothing that came with or after it.
const LESSER: &str = "max,+svm,-erms,-avx,-avx2,-bmi1,-bmi2,-fma,-f16c,-movbe,-xsave,-xsaveopt,-xsavec,-xgetbv1";
/// The kernel is told that its counter runs at half its speed or so, and has no better clock that would tell it otherwise by more than the one percent that it believes.
const OTHER_TSC: &str = "tsc_early_khz=1500000";

/// Unlike features, and unlike counters.
///
/// # Errors
/// What is not as it should be.
pub fn unlike(stage: &Stage<'_>, turns: &mut Turns, row: &mut Row) -> Result<(), LabError> {
    while turns.another()? {
        let lesser = HostOptions { cpu: LESSER, memory_mib: 768, ..HostOptions::default() };
        let full = HostOptions { memory_mib: 768, ..HostOptions::default() };
        let other = HostOptions { parameters: OTHER_TSC, ..full };
        let mut hosts = lab(stage, &[full, lesser, other])?;
        let came = features(&mut hosts, row).and_then(|()| counters(&mut hosts));
        if came.is_err() || stage.keep_logs {
            drop(hosts.keep_logs(stage.name));
        }
        came?;
    }
    Ok(())
}

/// Why a primary has no standby, as it says itself.
fn refusal(node: &Node) -> Result<String, LabError> {
    node.until_logged(&["no standby", "refused", "the machines differ"])
}

fn features(lab: &mut Lab, row: &mut Row) -> Result<(), LabError> {
    let shared = lab.shared();
    let of = |model| GuestSpec { model: Some(model), ..GuestSpec::built_in() };
    // Everything that h1 has: more than h2 can carry.
    let guest = of("host");
    let mut standby = Node::start(lab.host(2)?, 1, Part::Standby { first: true }, 1, &guest, &shared)?;
    standby.until_ready()?;
    let primary = Node::start(lab.host(1)?, 2, Part::Primary, 1, &guest, &shared)?;
    let told = refusal(&primary)?;
    for feature in ["avx", "bmi1", "fma"] {
        expect(told.to_lowercase().contains(feature), || format!("the refusal does not name {feature}: {told}"))?;
    }
    stop(lab, &[&primary, &standby])?;
    // A level that h2 does not reach is refused where the machine would be made.
    let machine = "/shared/lockstep run --memory 32M --cpu x86-64-v3 --net tap=tap0 --console none";
    let said = lab.host(2)?.exec(machine, NODE_BOUND)?;
    let text = String::from_utf8_lossy(&said.err).to_lowercase();
    expect(!said.ok() && text.contains("avx2") && text.contains("x86-64-v3"), || format!("x86-64-v3 on a lesser host: {text}"))?;
    // What both have protects, and fails over from the one to the other.
    let guest = of("x86-64-v2");
    let mut standby = Node::start(lab.host(2)?, 1, Part::Standby { first: true }, 2, &guest, &shared)?;
    standby.until_ready()?;
    let mut primary = Node::start(lab.host(1)?, 2, Part::Primary, 2, &guest, &shared)?;
    primary.until_protected()?;
    let pid = primary.pid();
    lab.host(1)?.must(&format!("kill -KILL {pid}"))?;
    standby.until_activated()?;
    row.failovers += 1;
    stop(lab, &[&standby])
}

fn stop(lab: &mut Lab, nodes: &[&Node]) -> Result<(), LabError> {
    for node in nodes {
        lab.host(node.host())?.must(&format!("kill -KILL {}; rm -f /arbiter/lab*", node.pid()))?;
    }
    Ok(())
}

fn counters(lab: &mut Lab) -> Result<(), LabError> {
    let shared = lab.shared();
    let guest = GuestSpec { model: Some("x86-64-v2"), ..GuestSpec::built_in() };
    let mut standby = Node::start(lab.host(3)?, 1, Part::Standby { first: true }, 3, &guest, &shared)?;
    standby.until_ready()?;
    let primary = Node::start(lab.host(1)?, 3, Part::Primary, 3, &guest, &shared)?;
    let told = refusal(&primary)?;
    expect(told.contains("TSC") && told.contains("kHz"), || format!("the refusal does not name the counters: {told}"))?;
    stop(lab, &[&primary, &standby])
}
