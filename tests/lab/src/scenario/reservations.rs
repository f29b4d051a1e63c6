//! Proves on a real target what shutting old owners out rests on: the product's own fence (`failover::fence`), run in the hosts, against the Linux
//! kernel's iSCSI target, without a guest (S3, S4 on shared disks).
//!
//! What must hold: who was shut out can read but not write, from the moment at which the fence returns; not even what it had under way lands after
//! that; neither its host's death and return nor the target's gives it its right back.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use failover::fence::{Fence, FenceError, Grant, Owner, Reservation};
use types::{Generation, NodeId, VmId};

use super::Stage;
use super::report::Row;
use super::turns::Turns;
use crate::error::LabError;
use crate::host::{EXEC_BOUND, Host, HostOptions, READY_BOUND};
use crate::lab::Lab;
use crate::storage::{self, LUN};

/// How long the slow disk takes for each write; a write is under way from the time at which it was seen to be until then.
const SLOW: Duration = Duration::from_secs(8);
/// The target's word on the slow disk, and a name for it in every host: LUN 2.
const SLOW_LUN: &str = "/dev/lun2";
/// Makes it, on the storage host: a device that delays writes, over a file.
const MAKE_SLOW: &str = "set -e; modprobe -a loop dm_delay; truncate -s 64M /data/slow; L=$(losetup -f --show /data/slow)
dmsetup create --noudevsync slow --table \"0 131072 delay $L 0 0 $L 0 8000\"; dmsetup mknodes
T=/sys/kernel/config/target; G=$T/iscsi/iqn.2026-01.test.lockstep:storage/tpgt_1; C=$T/core/iblock_0/slow
mkdir $C; printf udev_path=/dev/mapper/slow >$C/control; printf 10c5e90000000002 >$C/wwn/vpd_unit_serial; echo 1 >$C/enable
mkdir $G/lun/lun_2; ln -s $C $G/lun/lun_2/disk
for A in $G/acls/*; do mkdir $A/lun_2; ln -s $G/lun/lun_2 $A/lun_2/disk; done";
/// Finds it, in the others.
const FIND_SLOW: &str = "for s in /sys/class/scsi_host/host*/scan; do echo '- - -' >$s; done
until disk=$(ls -d /sys/class/iscsi_session/session*/device/target*/*:2/block/* 2>/dev/null); do sleep 0.05; done; ln -sf ${disk##*/} /dev/lun2";

/// The block that is written: past what the guest's file system holds of importance to its boot, and nothing boots here.
const BLOCK: u32 = 100_000;

struct Always;

impl Grant for Always {
    fn confirm(&self) -> Result<(), FenceError> {
        Ok(())
    }

    fn wanted(&self) -> bool {
        true
    }
}

/// Run in a host, by its name in the lab: shuts everybody else out of `device` as an owner of the VM `lab` would.
#[must_use]
pub fn shut_out(device: &Path) -> ExitCode {
    let vm = VmId("lab".into());
    let me = Owner { vm: vm.clone(), node: NodeId("this".into()), host: None, instance: 1, generation: Generation(1) };
    match Reservation::new(device, vm).shut_out(&[], &me, &Always) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn fence(host: &Host, device: &str) -> Result<(), LabError> {
    host.must(&format!("/shared/lockstep-lab shut-out {device}")).map(drop)
}

/// As a node does it: again after an error. The target answers nothing on a connection, not even pings, while it waits there for what it aborts; so
/// a slow device costs the new owner its session (status 0x10000), which is set up again.
fn fence_until_done(host: &Host, device: &str) -> Result<(), LabError> {
    let deadline = Instant::now() + READY_BOUND;
    loop {
        match fence(host, device) {
            Err(error @ LabError::Remote { .. }) if Instant::now() >= deadline => return Err(error),
            Err(LabError::Remote { .. }) => std::thread::sleep(Duration::from_millis(200)),
            other => return other,
        }
    }
}

fn write(device: &str, block: u32, byte: char) -> String {
    format!(
        "head -c 4096 /dev/zero | tr '\\0' {byte} | dd of={device} bs=4096 seek={block} count=1 iflag=fullblock oflag=direct conv=notrunc 2>&1"
    )
}

fn writes(host: &Host, device: &str, byte: char) -> Result<(), LabError> {
    host.must(&write(device, BLOCK, byte)).map(drop)
}

fn reads(host: &Host, device: &str, block: u32) -> Result<String, LabError> {
    host.must(&format!("dd if={device} bs=4096 skip={block} count=1 iflag=direct 2>/dev/null | head -c 1"))
}

/// EBADE, as the C library words it.
const REFUSED: &str = "Invalid exchange";

fn is_refused(host: &Host, when: &str) -> Result<(), LabError> {
    let output = host.exec(&write(LUN, BLOCK, 'x'), EXEC_BOUND)?;
    if output.text().contains(REFUSED) {
        return Ok(());
    }
    Err(LabError::Found(format!("{when}: {}'s write was not refused (status {}): {}", host.name(), output.status, output.text())))
}

fn expect(good: bool, what: impl FnOnce() -> String) -> Result<(), LabError> {
    if good { Ok(()) } else { Err(LabError::Found(what())) }
}

/// The whole proof, on a lab of its own.
///
/// # Errors
/// What must not be.
pub fn prove(stage: &Stage<'_>, turns: &mut Turns, row: &mut Row) -> Result<(), LabError> {
    let host = HostOptions { memory_mib: 512, ..HostOptions::default() };
    let hosts = storage::with_target(2, host);
    let mut lab =
        Lab::start_unlike(stage.paths, stage.prepared.clone(), &format!("test-{}", stage.name), &hosts).map_err(LabError::trouble)?;
    let me = std::env::current_exe().map_err(LabError::io(|| "find the running program".into()))?;
    lab.share(&me, "lockstep-lab")?;
    let proved = rounds(&mut lab, turns, row);
    if proved.is_err() || stage.keep_logs {
        // Logs that cannot be kept make no scenario fail.
        drop(lab.keep_logs(stage.name));
    }
    proved
}

fn rounds(lab: &mut Lab, turns: &mut Turns, row: &mut Row) -> Result<(), LabError> {
    while turns.another()? {
        owners_change(lab)?;
        under_way(lab)?;
        deaths(lab, row)?;
    }
    Ok(())
}

/// The one that fenced last writes, the other only reads.
fn owners_change(lab: &mut Lab) -> Result<(), LabError> {
    for (owner, other, byte) in [(1, 2, 'a'), (2, 1, 'b'), (1, 2, 'c'), (2, 1, 'd')] {
        fence(lab.host(owner)?, LUN)?;
        writes(lab.host(owner)?, LUN, byte)?;
        let other = lab.host(other)?;
        is_refused(other, "after the other had fenced")?;
        let seen = reads(other, LUN, BLOCK)?;
        expect(seen == byte.to_string(), || format!("{} reads {seen:?} where {byte:?} was written", other.name()))?;
    }
    Ok(())
}

/// A write that is under way when its owner is shut out has landed, or never will, when the fence returns.
fn under_way(lab: &mut Lab) -> Result<(), LabError> {
    if !lab.host(1)?.exec(&format!("test -e {SLOW_LUN}"), EXEC_BOUND)?.ok() {
        lab.storage()?.must(MAKE_SLOW)?;
        for number in [1, 2] {
            lab.host(number)?.must(FIND_SLOW)?;
        }
    }
    fence(lab.host(1)?, SLOW_LUN)?;
    let before = reads(lab.host(2)?, SLOW_LUN, 7)?;
    // Counted when a command arrives, long before the device has done it.
    let commands = "cat /sys/kernel/config/target/core/iblock_0/slow/statistics/scsi_lu/num_cmds";
    let before_it = lab.storage()?.must(commands)?;
    lab.host(1)?.spawn(&format!("sh -c {}", crate::host::quoted(&write(SLOW_LUN, 7, 'z'))), "/run/under-way.log")?;
    lab.storage()?.must(&format!("while [ $({commands}) = {} ]; do sleep 0.05; done", before_it.trim()))?;
    fence_until_done(lab.host(2)?, SLOW_LUN)?;
    let after = reads(lab.host(2)?, SLOW_LUN, 7)?;
    // Long enough for everything that the device had been given before.
    std::thread::sleep(SLOW + Duration::from_secs(1));
    let later = reads(lab.host(2)?, SLOW_LUN, 7)?;
    expect(after == later, || {
        format!("a dead owner's write landed after the fence had returned: {before:?}, then {after:?}, later {later:?}")
    })
}

/// Neither the death of a shut-out owner's host nor that of the target changes who may write. (Host 2 is the owner before and after.)
fn deaths(lab: &mut Lab, row: &mut Row) -> Result<(), LabError> {
    fence(lab.host(2)?, LUN)?;
    let out = lab.host(1)?;
    out.kill()?;
    out.start()?;
    out.wait_ready(READY_BOUND)?;
    is_refused(out, "after its host's death and return")?;
    let target = lab.storage()?;
    target.kill()?;
    row.kills += 2;
    target.start()?;
    target.wait_ready(READY_BOUND)?;
    for number in [1, 2] {
        let back = format!("until dd if={LUN} of=/dev/null bs=4096 count=1 iflag=direct 2>/dev/null; do sleep 0.1; done");
        lab.host(number)?.must(&back)?;
    }
    is_refused(lab.host(1)?, "after the target's death and return")?;
    writes(lab.host(2)?, LUN, 'e')?;
    // The slow disk went with the target: the sessions forget it.
    for number in [1, 2] {
        lab.host(number)?.must(&format!(
            "rm -f {SLOW_LUN}; for d in /sys/class/iscsi_session/session*/device/target*/*:2/delete; do [ ! -e $d ] || echo 1 >$d; done"
        ))?;
    }
    Ok(())
}
