//! One disk that two hosts can open, when one of the hosts dies, returns, or loses its way to the disk (S2, S4).
//!
//! Both hosts are on this machine and the disk is a file, so the fencing command is what shuts an old owner out: it waits until nobody has the file locked for writing. That a reservation does the same on a real
//! device is the lab's business.
//!
//! `LOCKSTEP_SHARED_KILLS=n`: so many kills instead of the default. `LOCKSTEP_SHARED_SEED=n`: the first seed.

mod program;

use std::time::Duration;

use lockstep::demo::world::Host;
use lockstep_tests::asked_for;
use lockstep_tests::e2e::disks::{FIRST_BLOCK, Stamps, load, prove_disk};
use lockstep_tests::e2e::lab::{self, Guest, Lab, dirty, prove_memory};
use lockstep_tests::e2e::{Image, Node, Spec, Watchdog};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use types::Generation;
use types::event::NodeEventKind;

/// Bound of a whole test here.
const TEST: Duration = Duration::from_secs(180);
/// Size of the disk: twice what the guest's stream works on.
const BYTES: u64 = 64 << 20;
/// What CI runs.
const KILLS: u64 = 4;
/// Operations a second of the guest's stream.
const RATE: u32 = 2000;

/// A lab with the one image.
fn with_image(guest: Guest) -> (Lab, Image) {
    let lab = Lab::new(program::lockstep(), guest);
    let image = Image::new(lab.directory().join("shared.img"), BYTES);
    (lab, image)
}

/// A node with the shared disk, and a fencing command that kills the process whose number is in `NODE.pid`, and waits until it is gone.
fn sharing(lab: &Lab, spec: Spec, image: &Image) -> Spec {
    let directory = lab.directory().display().to_string();
    // Only if the number is still that of a node: a process that is gone may have left it to another.
    let command = format!(
        "pid=$(cat {directory}/$LOCKSTEP_FENCE_NODE.pid) || exit 1; \
         [ \"$(readlink /proc/$pid/exe)\" = \"{}\" ] && kill -9 $pid; \
         while [ \"$(readlink /proc/$pid/exe)\" = \"{}\" ]; do sleep 0.01; done; touch {directory}/fenced",
        program::lockstep().display(),
        program::lockstep().display()
    );
    let mut spec = spec.disk(image, ",mode=shared");
    spec.flags.extend(["--fence-command".to_owned(), command]);
    spec
}

/// Starts a node whose process the fencing command can find.
fn start(lab: &Lab, spec: &Spec, node: &str) -> Node {
    let started = lab.start(spec);
    std::fs::write(lab.directory().join(format!("{node}.pid")), started.pid().to_string()).expect("a file");
    started
}

fn pair(lab: &Lab, a: &Spec, b: &Spec) -> (Node, Node) {
    let mut b_node = start(lab, b, "b");
    b_node.until_ready();
    let mut a_node = start(lab, a, "a");
    a_node.until_ready();
    (a_node, b_node)
}

#[test]
fn every_acknowledged_write_to_a_shared_disk_survives_a_kill_and_another_standby_joins() {
    if !lab::available() {
        return;
    }
    let first = asked_for("LOCKSTEP_SHARED_SEED").unwrap_or(1);
    let kills = asked_for("LOCKSTEP_SHARED_KILLS").unwrap_or(KILLS);
    let _watchdog = Watchdog::new(TEST + Duration::from_secs(20 * kills));
    for seed in first..first + kills {
        eprintln!("LOCKSTEP_SHARED_KILLS=1 LOCKSTEP_SHARED_SEED={seed}");
        let mut random = StdRng::seed_from_u64(seed);
        let (lab, image) = with_image(Guest::any(&mut random));
        let a_spec = sharing(&lab, Spec::primary(Host::A, "a"), &image);
        let (mut a, mut b) = pair(&lab, &a_spec, &sharing(&lab, Spec::standby(Host::B, "b"), &image));
        let mut guest = lab.connect();
        let mut stamps = Stamps::new(lab.connect());
        load(&mut guest, RATE);
        dirty(&mut guest, [0, 2_000][random.random_range(0..2)]);
        a.until_protected(0);
        let blocks = random.random_range(1..200);
        stamps.write_any(blocks, &mut random);

        a.kill();
        assert_eq!(b.until_activated().generation, Generation(2));

        assert!(lab.directory().join("fenced").exists(), "the old owner was shut out");
        stamps.write_any(50, &mut random);
        stamps.prove();
        let again = sharing(&lab, Spec::standby(Host::A, "a-again").with("node", "a"), &image);
        let mut again = start(&lab, &again, "a");
        again.until_ready();
        b.until_protected(0);
        stamps.write_any(50, &mut random);
        load(&mut guest, 0);
        assert!(prove_disk(&mut guest) > 0);
        prove_memory(&mut guest);
        stamps.prove();
    }
}

/// The primary dies at `point` under load.
fn dies(point: &str, turn: u32) {
    if !lab::available() {
        return;
    }
    let _watchdog = Watchdog::new(TEST);
    let (lab, image) = with_image(Guest::default());
    let a_spec = sharing(&lab, Spec::primary(Host::A, "a"), &image).dying(point, turn);
    let (mut a, mut b) = pair(&lab, &a_spec, &sharing(&lab, Spec::standby(Host::B, "b"), &image));
    let mut guest = lab.connect();
    load(&mut guest, RATE);
    a.until_dead();

    b.until_activated();

    let mut stamps = Stamps::new(lab.connect());
    (0..50).for_each(|block| stamps.write(FIRST_BLOCK + block));
    load(&mut guest, 0);
    assert!(prove_disk(&mut guest) > 0);
    stamps.prove();
}

#[test]
fn a_primary_that_dies_between_a_commit_and_its_writes_leaves_them_to_its_standby() {
    dies("before-issue", 100);
}

#[test]
fn a_primary_that_dies_while_it_sends_leaves_nothing_on_the_disk_that_is_not_committed() {
    dies("mid-send", 300);
}

#[test]
fn a_guest_whose_standby_dies_goes_on_with_its_shared_disk() {
    if !lab::available() {
        return;
    }
    let _watchdog = Watchdog::new(TEST);
    let (lab, image) = with_image(Guest::default());
    let a_spec = sharing(&lab, Spec::primary(Host::A, "a"), &image);
    let (mut a, mut b) = pair(&lab, &a_spec, &sharing(&lab, Spec::standby(Host::B, "b"), &image));
    let mut guest = lab.connect();
    let mut stamps = Stamps::new(lab.connect());
    load(&mut guest, RATE);
    let protected = a.until_protected(0);
    (0..50).for_each(|block| stamps.write(FIRST_BLOCK + block));

    let killed_ns = b.kill();
    a.until_alone(protected);

    (0..50).for_each(|block| stamps.write(FIRST_BLOCK + 25 + block));
    stamps.prove();
    let mut again = start(&lab, &sharing(&lab, Spec::standby(Host::B, "b-again").with("node", "b"), &image), "b");
    again.until_ready();
    a.until_protected(killed_ns);
    (0..50).for_each(|block| stamps.write(FIRST_BLOCK + 50 + block));
    load(&mut guest, 0);
    assert!(prove_disk(&mut guest) > 0);
    stamps.prove();
}

#[test]
fn a_standby_that_means_another_disk_is_refused_with_the_reason() {
    if !lab::available() {
        return;
    }
    let _watchdog = Watchdog::new(TEST);
    let (lab, image) = with_image(Guest::default());
    let other = Image::new(lab.directory().join("other.img"), BYTES);
    let a_spec = sharing(&lab, Spec::primary(Host::A, "a"), &image);
    let (mut a, mut b) = pair(&lab, &a_spec, &sharing(&lab, Spec::standby(Host::B, "b"), &other));

    const WHY: &str = "both must be given the same device";
    a.until("the reason, at the primary", |e| matches!(&e.what, NodeEventKind::NoStandby { reason } if reason.contains(WHY)).then_some(()));
    b.until("the reason, at the standby", |e| {
        matches!(&e.what, NodeEventKind::PrimaryRefused { reason, .. } if reason.contains(WHY)).then_some(())
    });
    lab.until_logged("a", WHY);
}
