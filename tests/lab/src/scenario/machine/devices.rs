//! Every kind of device at once, in a guest of Debian 12's own kernel as a bzImage: several disks and cards, random numbers, the console, the VM generation ID,
//! on huge pages, with a named CPU; before and after a failover.

use std::time::Duration;

use super::super::node::{Console, Disk, GuestSpec, Image, NODE_BOUND, Stock};
use super::super::pair::{ASK, Pair, lab, share_kernel};
use super::super::report::Row;
use super::super::turns::Turns;
use super::super::{Stage, stock};
use super::expect;
use crate::error::LabError;
use crate::host::{Host, HostOptions};
use crate::prepare::kernel::Series;

/// A file, a block device, a read-only file, a second TAP with an address at its host's end (the same on both), huge pages for the guest.
const EQUIP: &str = "set -e
modprobe loop
[ -e /data/raw.img ] || truncate -s 64M /data/raw.img
[ -e /data/device.img ] || truncate -s 32M /data/device.img
[ -e /data/fixed.img ] || yes lockstep | head -c 4194304 > /data/fixed.img
losetup /dev/loop0 /data/device.img
ip tuntap add tap1 mode tap
ip link set tap1 address 52:54:00:99:00:01 up
ip addr add 10.99.0.1/24 dev tap1
echo 132 > /proc/sys/vm/nr_hugepages
[ $(cat /proc/sys/vm/nr_hugepages) = 132 ]";

fn equip(host: &Host) -> Result<(), LabError> {
    host.must(EQUIP).map(drop)
}

/// The guest of this scenario.
#[must_use]
pub fn guest() -> GuestSpec {
    let fixed = Disk { path: "/data/fixed.img".into(), more: ",readonly,serial=fixed".into(), resync: false };
    GuestSpec {
        name: "debian-6.1",
        cpus: 2,
        model: Some("x86-64-v2"),
        backing: Some("hugepages"),
        stock: Some(Stock { series: Series::V6_1, image: Image::Vmlinuz, disk: false, services: "" }),
        disks: vec![Disk::mirror("/data/raw.img").with("serial=raw"), Disk::mirror("/dev/loop0"), fixed],
        nets: 2,
        rng: Some(true),
        console: Console::Socket,
        parameters: "lab.blocks=/dev/vda,/dev/vdb".into(),
        ..GuestSpec::stock()
    }
}

/// One failover with all of it.
///
/// # Errors
/// What is not as it should be.
pub fn play(stage: &Stage<'_>, turns: &mut Turns, row: &mut Row) -> Result<(), LabError> {
    while turns.another()? {
        let lab = lab(stage, &[HostOptions::default(); 2])?;
        share_kernel(stage, &lab, Series::V6_1)?;
        let pair = Pair::begin(lab, guest(), equip, stage.name)?;
        pair.play(stage, |pair| course(pair, row))?;
    }
    Ok(())
}

fn course(pair: &mut Pair, row: &mut Row) -> Result<(), LabError> {
    pair.until_up()?;
    pair.guest("ip link set eth1 up; ip addr add 10.99.0.10/24 dev eth1; ip neigh flush dev eth1; setsid sh -c 'exec sh </dev/ttyS0 >/dev/ttyS0 2>&1' &")?;
    processors(pair)?;
    let before = devices(pair)?;
    // So that there is something of each disk's to be found again.
    busy(pair)?;
    pair.fail_over(row)?;
    let after = devices(pair)?;
    expect(before.random != after.random, || format!("the guest was given the same random numbers by both hosts: {}", before.random))?;
    expect(before.fixed == after.fixed, || format!("the read-only disk was {} and is {}", before.fixed, after.fixed))?;
    processors(pair)?;
    busy(pair)?;
    // A failover is no rollback as the guest's world sees it (S1, S4), so the generation ID stays, and the guest was not told that it is another.
    let told = pair.guest("dmesg | grep -ci 'virtual machine fork' || true")?;
    expect(told.trim() == "0", || "the guest was told of a new VM generation".into())?;
    pair.judge_probes(row)?;
    pair.press_power_button()
}

/// Two of them, by the ids that the tables give, as the model says.
fn processors(pair: &Pair) -> Result<(), LabError> {
    let said = pair.guest(
        "nproc; sed -n 's/^apicid[^:]*: *//p' /proc/cpuinfo | tr '\\n' ,; echo; sed -n 's/^flags[^:]*: *//p' /proc/cpuinfo | head -1; uname -r; ls /sys/bus/acpi/drivers/vmgenid",
    )?;
    let mut lines = said.lines();
    let mut next = || lines.next().unwrap_or_default().to_owned();
    let (count, ids, flags, release) = (next(), next(), next(), next());
    expect(count == "2" && ids == "0,1,", || format!("{count} processors with the ids {ids}"))?;
    let has = |flag: &str| flags.split(' ').any(|f| f == flag);
    for flag in ["x2apic", "sse4_2", "popcnt", "cx16", "tsc_deadline_timer"] {
        expect(has(flag), || format!("x86-64-v2 without {flag}: {flags}"))?;
    }
    for flag in ["avx", "avx2", "xsave", "svm"] {
        expect(!has(flag), || format!("x86-64-v2 with {flag}: {flags}"))?;
    }
    expect(release.starts_with("6.1."), || format!("the kernel is {release}"))?;
    expect(said.contains("VMGENCTR") || said.contains("LOCKGEN") || said.lines().any(|line| line.contains(':')), || {
        format!("Linux's driver has not found the VM generation ID: {said}")
    })
}

/// What the devices say.
struct Seen {
    random: String,
    fixed: String,
}

fn devices(pair: &mut Pair) -> Result<Seen, LabError> {
    let disks =
        pair.guest("for d in vda vdb vdc; do echo $d $(cat /sys/block/$d/size) $(cat /sys/block/$d/ro) $(cat /sys/block/$d/serial); done")?;
    let expected = "vda 131072 0 raw\nvdb 65536 0 disk1\nvdc 8192 1 fixed\n";
    expect(disks == expected, || format!("the disks (name, sectors, read-only, serial number) are {disks}"))?;
    let refused = pair.agent().exec("dd if=/dev/zero of=/dev/vdc bs=512 count=1 conv=fsync", ASK)?;
    expect(!refused.ok(), || "the read-only disk was written".into())?;
    let fixed = pair.guest("head -c 262144 /dev/vdc | md5sum")?;
    let random = pair.guest("head -c 16 /dev/hwrng | hexdump -v -e '/1 \"%02x\"'")?;
    expect(random.len() == 32 && random.bytes().any(|b| b != b'0'), || format!("/dev/hwrng delivers {random:?}"))?;
    pair.guest("ping -c 2 -W 5 10.99.0.1")?;
    console(pair)?;
    Ok(Seen { random, fixed })
}

/// What is typed at the console reaches the guest's shell, and its answer comes back, on whichever host the guest runs.
fn console(pair: &mut Pair) -> Result<(), LabError> {
    let socket = format!("/run/{}.console", pair.primary.name);
    let script = format!("(sleep 0.3; echo 'echo con$((40+2))sole'; sleep 2) | timeout 8 /shared/lockstep console {socket}");
    let said = pair.primary_host()?.exec(&script, ASK)?.text();
    expect(said.contains("con42sole"), || format!("the console says {said:?}"))
}

/// Waits until the guest has done some more with its disks, all of it right.
fn busy(pair: &Pair) -> Result<(), LabError> {
    /// Of some twenty kinds and sizes.
    const SOME: u64 = 150;
    let read = || -> Result<(u64, String), LabError> {
        let probes = pair.agent().status(ASK)?;
        let wrong = stock::value(&probes, "blocks_wrong")?;
        expect(wrong == "0", || format!("what the guest wrote to its disks: {probes}"))?;
        Ok((stock::value(&probes, "blocks_done")?.parse().unwrap_or_default(), probes))
    };
    let goal = read()?.0 + SOME;
    let deadline = std::time::Instant::now() + NODE_BOUND;
    while read()?.0 < goal {
        if std::time::Instant::now() >= deadline {
            return Err(LabError::Late { what: "requests to the guest's disks".into(), bound: NODE_BOUND, detail: read()?.1 });
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}
