//! Kernels in both of Debian 12's series, both ways in, little memory, many processors, and one without its drivers. No standby.

use std::time::Duration;

use types::event::NodeEventKind;

use super::super::node::{GuestSpec, Image, NODE_BOUND, Node, Part, Stock};
use super::super::pair::{ASK, BOOT_BOUND, Pair, lab, share_kernel, usual};
use super::super::report::Row;
use super::super::turns::Turns;
use super::super::{Stage, stock};
use super::expect;
use crate::error::LabError;
use crate::host::HostOptions;
use crate::lab::Lab;
use crate::prepare::kernel::Series;

fn of(series: Series, image: Image) -> Stock {
    Stock { series, image, disk: false, services: "" }
}

/// The smallest machine that Debian's kernels fit into: they unpack themselves at 16 MiB and take 55 MiB from there on.
const LITTLE_MIB: u32 = 96;

/// Each kernel by each protocol, on little memory.
///
/// # Errors
/// One does not boot.
pub fn all(stage: &Stage<'_>, turns: &mut Turns, _: &mut Row) -> Result<(), LabError> {
    while turns.another()? {
        let mut lab = lab(stage, &[HostOptions::default()])?;
        let mut turn = 0;
        let mut each = || -> Result<(), LabError> {
            for series in [Series::V6_1, Series::V6_12] {
                share_kernel(stage, &lab, series)?;
                for image in [Image::Vmlinux, Image::Vmlinuz] {
                    turn += 1;
                    let guest = GuestSpec { stock: Some(of(series, image)), memory_mib: LITTLE_MIB, ..GuestSpec::stock() };
                    let release = alone(&mut lab, &guest, turn)?;
                    expect(release.starts_with(&format!("{}.", series.name())), || {
                        format!("{series:?} {image:?}: the kernel is {release}")
                    })?;
                }
            }
            Ok(())
        };
        let came = each();
        if came.is_err() || stage.keep_logs {
            drop(lab.keep_logs(stage.name));
        }
        came?;
    }
    Ok(())
}

/// Boots `guest` without a standby and has it shut itself down; its kernel's release.
fn alone(lab: &mut Lab, guest: &GuestSpec, turn: u32) -> Result<String, LabError> {
    let shared = lab.shared();
    let mut node = Node::start(lab.host(1)?, 2, Part::Primary, turn, guest, &shared)?;
    node.until_ready()?;
    let agent = stock::agent(lab.network());
    let deadline = std::time::Instant::now() + BOOT_BOUND;
    let release = loop {
        match agent.must("uname -r", Duration::from_secs(2)) {
            Ok(release) => break release,
            Err(_) if std::time::Instant::now() < deadline => std::thread::sleep(Duration::from_millis(50)),
            Err(error) => {
                let console = std::fs::read(shared.join(format!("{}.console.log", node.name))).unwrap_or_default();
                let detail = format!(": {error}; the guest's console: {}", String::from_utf8_lossy(&console));
                return Err(LabError::Late { what: format!("{guest:?}"), bound: BOOT_BOUND, detail });
            }
        }
    };
    agent.power_off(ASK)?;
    node.until("the guest's end", 0, NODE_BOUND, |e| matches!(e.what, NodeEventKind::GuestStopped { .. }).then_some(()))?;
    Ok(release)
}

/// How much less often each of sixteen vCPUs looks at its clock and stamps: at the usual pace they make eight thousand timer interrupts a second, more than the one
/// emulated processor under them can take, and epochs of seconds.
const PACE: u32 = 8;

/// Sixteen vCPUs, all online, with their ids, protected, and failed over.
///
/// # Errors
/// What is not as it should be.
pub fn sixteen(stage: &Stage<'_>, turns: &mut Turns, row: &mut Row) -> Result<(), LabError> {
    while turns.another()? {
        // Not v3: Linux finds the emulated host's XSAVE sizes inconsistent and goes without AVX (QEMU 7.2's TCG does not intercept XSETBV).
        let parameters = format!("lab.pace={PACE}");
        let guest = GuestSpec { cpus: 16, model: Some("x86-64-v2"), parameters, ..GuestSpec::stock() };
        let pair = Pair::begin(lab(stage, &[HostOptions::default(); 2])?, guest, usual, stage.name)?;
        pair.play(stage, |pair| {
            for _ in 0..2 {
                let said = pair.guest("cat /sys/devices/system/cpu/online; sed -n 's/^apicid[^:]*: *//p' /proc/cpuinfo | tr '\\n' ,; grep -c sse4_2 /proc/cpuinfo")?;
                expect(said == "0-15\n0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16\n", || format!("processors, ids, those with SSE 4.2: {said}"))?;
                if row.failovers == 0 {
                    pair.fail_over(row)?;
                }
            }
            pair.judge_probes(row)?;
            pair.press_power_button()
        })?;
    }
    Ok(())
}

/// A kernel that loads no drivers is spoken of, with the drivers' names.
///
/// # Errors
/// It is not.
pub fn without_drivers(stage: &Stage<'_>, turns: &mut Turns, _: &mut Row) -> Result<(), LabError> {
    /// The node looks after a minute.
    const LOOK: Duration = Duration::from_secs(90);
    while turns.another()? {
        let mut lab = lab(stage, &[HostOptions::default()])?;
        // Its first program does nothing, so no module is loaded.
        let guest = GuestSpec { parameters: "rdinit=/bin/busybox -- sleep 1000".into(), rng: Some(true), ..GuestSpec::stock() };
        let shared = lab.shared();
        let mut node = Node::start(lab.host(1)?, 2, Part::Primary, 1, &guest, &shared)?;
        let told = node.until("a word about the missing drivers", 0, LOOK, |event| match &event.what {
            NodeEventKind::Warning { text } if text.contains("driver") => Some(text.clone()),
            _ => None,
        });
        if told.is_err() || stage.keep_logs {
            drop(lab.keep_logs(stage.name));
        }
        let told = told?;
        expect(told.contains("virtio_pci, virtio_net, virtio_rng"), || told.clone())?;
    }
    Ok(())
}
