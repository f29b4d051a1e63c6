//! Disks that two hosts keep a copy of each, when one of the hosts dies, returns, or has a disk that fails (S2, S4).
//!
//! `LOCKSTEP_DISK_KILLS=n`: so many kills instead of the default. `LOCKSTEP_DISK_SEED=n`: the first seed.

mod program;

use std::time::Duration;

use lockstep::demo::world::Host;
use lockstep_tests::asked_for;
use lockstep_tests::e2e::disks::{FIRST_BLOCK, REGION_BLOCKS, Stamps, load, prove_disk};
use lockstep_tests::e2e::lab::{self, Guest, Lab, dirty, prove_memory};
use lockstep_tests::e2e::{Image, Node, Spec, Watchdog};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use types::Generation;

/// Bound of a whole test here.
const TEST: Duration = Duration::from_secs(180);
/// Size of the disks: twice what the guest's stream works on.
const BYTES: u64 = 64 << 20;
/// What CI runs.
const KILLS: u64 = 10;
/// Operations a second of the guest's stream.
const RATE: u32 = 2000;

/// A lab with an image for each host.
fn with_images(guest: Guest) -> (Lab, Image, Image) {
    let lab = Lab::new(program::lockstep(), guest);
    let image = |name: &str| Image::new(lab.directory().join(name), BYTES);
    let (a, b) = (image("a.img"), image("b.img"));
    (lab, a, b)
}

#[test]
fn every_acknowledged_disk_write_survives_a_kill_and_the_old_primary_returns_with_the_same_content() {
    if !lab::available() {
        return;
    }
    let first = asked_for("LOCKSTEP_DISK_SEED").unwrap_or(1);
    let kills = asked_for("LOCKSTEP_DISK_KILLS").unwrap_or(KILLS);
    let _watchdog = Watchdog::new(TEST + Duration::from_secs(20 * kills));
    for seed in first..first + kills {
        eprintln!("LOCKSTEP_DISK_KILLS=1 LOCKSTEP_DISK_SEED={seed}");
        let mut random = StdRng::seed_from_u64(seed);
        let (lab, a_image, b_image) = with_images(Guest::any(&mut random));
        let (mut a, mut b) = lab.pair(&Spec::primary(Host::A, "a").disk(&a_image, ""), &Spec::standby(Host::B, "b").disk(&b_image, ""));
        let mut guest = lab.connect();
        let mut stamps = Stamps::new(lab.connect());
        load(&mut guest, RATE);
        dirty(&mut guest, [0, 2_000][random.random_range(0..2)]);
        a.until_protected(0);
        let blocks = random.random_range(1..400);
        stamps.write_any(blocks, &mut random);

        a.kill();
        assert_eq!(b.until_activated().generation, Generation(2));

        stamps.write_any(50, &mut random);
        stamps.prove();
        let mut again = lab.start(&Spec::standby(Host::A, "a-again").with("node", "a").disk(&a_image, ""));
        again.until_ready();
        b.until_protected(0);
        stamps.write_any(50, &mut random);
        load(&mut guest, 0);
        assert!(prove_disk(&mut guest) > 0);
        prove_memory(&mut guest);
        stamps.prove();
        a_image.until_equals(&b_image);
    }
}

#[test]
fn a_standby_that_was_away_is_brought_what_has_changed_and_no_more() {
    if !lab::available() {
        return;
    }
    let _watchdog = Watchdog::new(TEST);
    let (lab, a_image, b_image) = with_images(Guest::default());
    a_image.fill();
    let (mut a, mut b) = lab.pair(&Spec::primary(Host::A, "a").disk(&a_image, ""), &Spec::standby(Host::B, "b").disk(&b_image, ""));
    let mut stamps = Stamps::new(lab.connect());
    let first = a.until_protected(0);
    assert!(lab.blocks_sent("a") >= BYTES / 4096, "the first standby is brought everything");
    stamps.write(FIRST_BLOCK);
    a_image.until_equals(&b_image);
    // Until what was copied and written counts as the same.
    a_image.until_marked(1);

    let killed_ns = b.kill();
    a.until_alone(first);
    // One block in each of two regions.
    stamps.write(FIRST_BLOCK + 1);
    stamps.write(FIRST_BLOCK + 3 * REGION_BLOCKS);
    let mut again = lab.start(&Spec::standby(Host::B, "b-again").with("node", "b").disk(&b_image, ""));
    again.until_ready();
    a.until_protected(killed_ns);

    let sent = lab.blocks_sent("a");
    assert!((2 * REGION_BLOCKS..=3 * REGION_BLOCKS).contains(&sent), "{sent} blocks were sent for two regions");
    stamps.prove();
    a_image.until_equals(&b_image);
}

#[test]
fn a_chain_of_failovers_over_disks_loses_nothing() {
    if !lab::available() {
        return;
    }
    let _watchdog = Watchdog::new(TEST);
    let (lab, a_image, b_image) = with_images(Guest { vcpus: 2, ..Guest::default() });
    let images = [a_image, b_image];
    let (mut runner, mut standby) =
        lab.pair(&Spec::primary(Host::A, "n0").disk(&images[0], ""), &Spec::standby(Host::B, "n1").disk(&images[1], ""));
    let mut guest = lab.connect();
    let mut stamps = Stamps::new(lab.connect());
    load(&mut guest, RATE);
    let (mut host, mut since_ns) = (Host::A, 0);
    for failover in 0..3 {
        let before = runner.until_protected(since_ns);
        (0..100).for_each(|block| stamps.write(FIRST_BLOCK + block * 37 + failover));
        since_ns = runner.kill();
        assert_eq!(standby.until_activated().generation, before.next(), "failover {failover}");
        stamps.prove();
        // The host that died returns with the disk that it had.
        let image = &images[failover as usize % 2];
        let next = lab.start(&Spec::standby(host, &format!("n{}", failover + 2)).disk(image, ""));
        runner = std::mem::replace(&mut standby, next);
        host = host.other();
    }
    runner.until_protected(since_ns);
    load(&mut guest, 0);

    assert!(prove_disk(&mut guest) > 0);
    stamps.prove();
    images[0].until_equals(&images[1]);
}

/// Waits until the primary `a` is refused, for a reason with `words` in it, and shows that its guest does not mind.
fn refused(lab: &Lab, a: &Spec, b: &Spec, words: &str) -> (Node, Node) {
    let (a_node, b_node) = lab.pair(a, b);
    lab.until_logged(&a.name, words);
    let mut stamps = Stamps::new(lab.connect());
    stamps.write(FIRST_BLOCK);
    stamps.prove();
    (a_node, b_node)
}

#[test]
fn a_standby_with_a_disk_of_another_size_or_content_is_refused_with_the_reason() {
    if !lab::available() {
        return;
    }
    let _watchdog = Watchdog::new(TEST);
    let (lab, a_image, _) = with_images(Guest::default());
    let small = Image::new(lab.directory().join("small.img"), BYTES / 2);
    let other = Image::new(lab.directory().join("other.img"), BYTES);
    other.fill();
    let (mut a, mut b) = refused(
        &lab,
        &Spec::primary(Host::A, "a").disk(&a_image, ""),
        &Spec::standby(Host::B, "b").disk(&small, ""),
        "give both the same size",
    );
    b.kill();

    b = lab.start(&Spec::standby(Host::B, "b-other").with("node", "b").disk(&other, ""));
    b.until_ready();
    lab.until_logged("a", "Lockstep knows nothing about");
    b.kill();

    // Nothing of it was touched. Only when its operator says so it is overwritten.
    let before = std::fs::read(other.path()).expect("an image");
    assert!(before.chunks(4096).enumerate().all(|(block, bytes)| bytes.iter().all(|byte| *byte == block as u8 | 1)));
    let beside = |image: &Image| image.marked().err().map(|error| error.kind());
    assert_eq!([beside(&small), beside(&other)], [Some(std::io::ErrorKind::NotFound); 2], "nor is a change log left beside it");
    b = lab.start(&Spec::standby(Host::B, "b-full").with("node", "b").disk(&other, ",resync=full"));
    b.until_ready();
    a.until_protected(0);
    a_image.until_equals(&other);
}

/// A block device on a file; taken away when dropped.
struct Loop(std::path::PathBuf);

impl Loop {
    fn on(file: &std::path::Path) -> Option<Loop> {
        let made = std::process::Command::new("losetup").args(["--find", "--show"]).arg(file).output();
        match made {
            Ok(made) if made.status.success() => Some(Loop(String::from_utf8_lossy(&made.stdout).trim().into())),
            other => {
                assert!(std::env::var_os("LOCKSTEP_REQUIRE_KVM").is_none(), "no loop device can be made: {other:?}");
                eprintln!("SKIPPED: no loop device can be made: {other:?}");
                None
            }
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = std::process::Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

#[test]
fn two_ways_to_one_medium_are_never_made_a_mirror_of_itself_even_when_it_may_be_overwritten() {
    if !lab::available() {
        return;
    }
    let _watchdog = Watchdog::new(TEST);
    let (lab, image, _) = with_images(Guest::default());
    image.fill();
    let (Some(one), Some(two)) = (Loop::on(image.path()), Loop::on(image.path())) else { return };
    let log = |name: &str| format!(",log={}", lab.directory().join(name).display());
    let (one, two) = ((Image::at(one.0.clone()), one), (Image::at(two.0.clone()), two));

    let (mut a, mut b) = refused(
        &lab,
        &Spec::primary(Host::A, "a").disk(&one.0, &log("a.changes")),
        &Spec::standby(Host::B, "b").disk(&two.0, &format!("{},resync=full", log("b.changes"))),
        "both hosts were given one disk for two copies",
    );
    b.kill();
    a.kill();

    let content = std::fs::read(image.path()).expect("an image");
    let written = |block: usize| block == FIRST_BLOCK as usize;
    let kept = |(block, bytes): (usize, &[u8])| written(block) || bytes.iter().all(|byte| *byte == block as u8 | 1);
    assert!(content.chunks(4096).enumerate().all(kept), "nothing was copied over it");
    assert!(!lab.directory().join("b.changes").exists());
}

#[test]
fn a_host_whose_copy_no_guest_may_start_from_takes_the_guest_from_nobody() {
    if !lab::available() {
        return;
    }
    let _watchdog = Watchdog::new(TEST);
    let (lab, a_image, b_image) = with_images(Guest::default());
    let standby = |name: &str| Spec::standby(Host::B, name).with("node", "b").disk(&b_image, "");
    let (mut a, mut b) = lab.pair(&Spec::primary(Host::A, "a").disk(&a_image, ""), &standby("b"));
    a.until_protected(0);
    let killed_ns = b.kill();
    a.until_alone(Generation(0));

    // Its operator mistakes the standby's host for the one to start the guest on.
    let mut wrong = lab.start(&Spec::primary(Host::B, "b-wrong").with("node", "b").disk(&b_image, "").flag("abandon-standby"));
    assert!(wrong.until_exit().is_some_and(|code| code != 0));

    let mut stamps = Stamps::new(lab.connect());
    stamps.write(FIRST_BLOCK);
    stamps.prove();
    b = lab.start(&standby("b-again"));
    b.until_ready();
    a.until_protected(killed_ns);
}

/// A file system in memory that is soon full; unmounted when dropped.
struct Small(std::path::PathBuf);

impl Small {
    fn mount(lab: &Lab, bytes: u64) -> Option<Small> {
        let path = lab.directory().join("small");
        std::fs::create_dir(&path).expect("a directory");
        let size = format!("size={bytes}");
        match nix::mount::mount(Some("tmpfs"), &path, Some("tmpfs"), nix::mount::MsFlags::empty(), Some(size.as_str())) {
            Ok(()) => Some(Small(path)),
            Err(error) => {
                assert!(std::env::var_os("LOCKSTEP_REQUIRE_KVM").is_none(), "a small file system cannot be mounted: {error}");
                eprintln!("SKIPPED: a small file system cannot be mounted: {error}");
                None
            }
        }
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

/// A guest whose memory is not compared at every epoch: thousands of writes are acknowledged one after the other.
fn quick() -> Guest {
    Guest { verify: false, ..Guest::default() }
}

/// So much fits the small file system, in blocks.
const ROOM: u64 = (8 << 20) / 4096;

#[test]
fn a_standby_whose_file_system_is_full_says_so_and_the_guest_runs_on() {
    if !lab::available() {
        return;
    }
    let _watchdog = Watchdog::new(TEST);
    let (lab, a_image, _) = with_images(quick());
    let Some(small) = Small::mount(&lab, ROOM * 4096) else { return };
    let b_image = Image::new(small.0.join("b.img"), BYTES);
    let (mut a, b) = lab.pair(&Spec::primary(Host::A, "a").disk(&a_image, ""), &Spec::standby(Host::B, "b").disk(&b_image, ""));
    let mut stamps = Stamps::new(lab.connect());
    let protected = a.until_protected(0);

    (0..ROOM + 64).for_each(|block| stamps.write(FIRST_BLOCK + block));

    a.until_alone(protected);
    lab.until_logged("a", "disk0 of the standby failed: No space left on device");
    stamps.prove();
    assert_eq!(b.activations(), []);
}

#[test]
fn a_primary_whose_disk_fails_leaves_the_guest_to_its_standby_which_carries_the_request_out() {
    if !lab::available() {
        return;
    }
    let _watchdog = Watchdog::new(TEST);
    let (lab, _, b_image) = with_images(quick());
    let Some(small) = Small::mount(&lab, ROOM * 4096) else { return };
    let a_image = Image::new(small.0.join("a.img"), BYTES);
    let (mut a, mut b) = lab.pair(&Spec::primary(Host::A, "a").disk(&a_image, ""), &Spec::standby(Host::B, "b").disk(&b_image, ""));
    let mut stamps = Stamps::new(lab.connect());
    a.until_protected(0);

    // Each of them is answered, also the one that finds no room.
    (0..ROOM + 64).for_each(|block| stamps.write(FIRST_BLOCK + block));

    assert_eq!(b.until_activated().generation, Generation(2));
    assert_eq!(a.until_exit(), Some(1), "{}", lab.log("a"));
    assert!(lab.log("a").contains("No space left on device"), "{}", lab.log("a"));
    stamps.prove();
}
