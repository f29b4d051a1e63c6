//! A standby that does not see its primary's record could never take over: it is not let in, or shown not to protect, with the reason at both ends.

mod program;

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use lockstep::demo::world::Host;
use lockstep_tests::e2e::clients::{Clients, under_load};
use lockstep_tests::e2e::lab::{self, Guest, Lab};
use lockstep_tests::e2e::{Node, Spec, Watchdog};
use types::event::{NodeEventKind, Protection, Role};

/// Bound of a whole test here.
const TEST: Duration = Duration::from_secs(120);
/// Writes that must be acknowledged to show that things go on.
const SOME: u64 = 50;

fn file(path: &Path) -> Option<OsString> {
    let mut arbiter = OsString::from("file:");
    arbiter.push(path);
    Some(arbiter)
}

/// Waits until a primary tells that it has no standby, by a reason with all these words.
fn until_no_standby(node: &mut Node, words: &[&str]) {
    node.until(&words.join(", "), |e| match &e.what {
        NodeEventKind::NoStandby { reason } => words.iter().all(|words| reason.contains(words)).then_some(()),
        _ => None,
    });
}

/// How often the node has said that its guest is copied to a standby, or protected by one.
fn said_to_be_covered(node: &Node) -> usize {
    let covered = |what: &NodeEventKind| match what {
        NodeEventKind::State { role: Role::Standby, protection, .. } => *protection != Protection::Syncing,
        NodeEventKind::State { protection, .. } => *protection != Protection::Unprotected,
        _ => false,
    };
    node.events().iter().filter(|e| covered(&e.what)).count()
}

#[test]
fn a_standby_whose_arbiter_is_another_file_is_never_taken_for_protection() {
    if !lab::available() {
        return;
    }
    let _watchdog = Watchdog::new(TEST);
    let lab = Lab::new(program::lockstep(), Guest::default());
    let missing = lab.directory().join("not-mounted/record");
    let other = lab.directory().join("other-record");
    let mut a = lab.start(&Spec::primary(Host::A, "a"));
    a.until_ready();

    for (name, path, words) in [
        ("unmounted", &missing, ["cannot read the arbiter's record", "not-mounted of the arbiter's record does not exist"]),
        ("elsewhere", &other, ["this node finds no record", "same --arbiter"]),
    ] {
        let mut b = lab.start(&Spec { arbiter: file(path), ..Spec::standby(Host::B, name) });
        until_no_standby(&mut a, &words);
        b.until("turning the primary away", |e| match &e.what {
            NodeEventKind::PrimaryRefused { reason, .. } => words.iter().all(|words| reason.contains(words)).then_some(()),
            _ => None,
        });
        if name == "unmounted" {
            b.until_state("no primary is let in: the arbiter gives no answer");
        }
        assert_eq!((said_to_be_covered(&a), said_to_be_covered(&b)), (0, 0));
        b.kill();
    }

    // It was the arbiter that kept them apart.
    let _right = lab.start(&Spec::standby(Host::B, "b"));
    a.until_protected(0);
}

#[test]
fn a_standby_that_loses_sight_of_the_record_is_shown_at_both_ends_and_kept() {
    if !lab::available() {
        return;
    }
    let _watchdog = Watchdog::new(TEST);
    let lab = Lab::new(program::lockstep(), Guest::default());
    // The standby's own way to the storage, as a mount is.
    let mount = lab.directory().join("mount");
    std::os::unix::fs::symlink(lab.arbiter_directory(), &mount).expect("a link");
    let standby = Spec { arbiter: file(&mount.join("record")), ..Spec::standby(Host::B, "b") };
    let (mut a, mut b) = lab.pair(&Spec::primary(Host::A, "a"), &standby);
    let blind = |e: &types::event::NodeEvent| match &e.what {
        NodeEventKind::State { protection: Protection::Blind, reason, .. }
            if reason.contains("mount of the arbiter's record does not exist") =>
        {
            Some(e.at_ns)
        }
        _ => None,
    };

    under_load(&lab, Clients::default(), |load| {
        let generation = a.until_protected(0);
        std::fs::remove_file(&mount).expect("unmounted");
        let shown_ns = a.until("a standby that cannot take over", blind);
        b.until("a standby that cannot take over", blind);
        b.until("a warning", |e| {
            matches!(&e.what, NodeEventKind::Warning { text } if text.contains("failover would have to wait")).then_some(())
        });
        // Nothing else changes: it is not struck out, and output leaves with its commits.
        load.until_more(SOME);
        assert_eq!((a.peers_gone(), b.peers_gone()), (vec![], vec![]));

        std::os::unix::fs::symlink(lab.arbiter_directory(), &mount).expect("mounted again");
        assert_eq!(a.until_protected(shown_ns), generation);
        a.kill();
        assert_eq!(b.until_activated().generation, generation.next());
        load.until_more(SOME);
    });
}
