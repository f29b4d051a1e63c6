//! Which copy may be started from, what a host that returns has to be given, and what is refused: each rule by itself, on real files.

mod common;

use common::*;
use disk_buffer::regions::Run;
use disk_buffer::{CopyState, DataId, DiskError, DiskOptions, Disks, FullReason, Plan, Refusal, plan};
use types::Epoch;
use types::block::{BlockError, BlockOp, DiskIndex};

const BYTES: u64 = 8 * MIB;

/// Two hosts, protected; everything durable on both sides and nothing marked.
fn settled(directory: &std::path::Path) -> (Medium, Medium, Host, Host) {
    let (one, two) = (Medium::new(directory, "one", BYTES), Medium::new(directory, "two", BYTES));
    let (primary, standby) = (one.open(), two.open());
    primary.disk.start_primary().unwrap();
    primary.write(MIB, 0x11, 4096);
    assert_eq!(protect(&primary, &standby), Plan::Full(FullReason::Empty));
    standby.wait_durable(1);
    primary.disk.peer_durable(Epoch(1));
    primary.wait_cleared();
    (one, two, primary, standby)
}

fn plan_of(primary: &Host, standby: &Host) -> Plan {
    plan(&primary.disk.identity().unwrap(), &standby.disk.identity().unwrap())
}

#[test]
fn a_standby_that_returns_is_given_the_changed_regions_alone() {
    let directory = tempfile::tempdir().unwrap();
    let (_, two, primary, standby) = settled(directory.path());
    drop(standby);
    primary.disk.struck_out().unwrap();
    primary.write(2 * MIB, 0x22, 512);
    primary.write(6 * MIB - 512, 0x33, 1024);
    let standby = two.open();
    let changed = vec![Run { first: 2, count: 1 }, Run { first: 5, count: 2 }];
    assert_eq!(plan_of(&primary, &standby), Plan::Regions(changed));
    protect(&primary, &standby);
    standby.disk.wait_applied(BOUND).unwrap();
    assert!(standby.content() == primary.content());
}

#[test]
fn nothing_is_copied_when_nothing_has_changed() {
    let directory = tempfile::tempdir().unwrap();
    let (_, _, primary, standby) = settled(directory.path());
    standby.disk.discard_uncommitted();
    primary.disk.struck_out().unwrap();
    assert_eq!(plan_of(&primary, &standby), Plan::Nothing);
    assert_eq!(protect(&primary, &standby), Plan::Nothing);
}

#[test]
fn an_old_primarys_uncommitted_writes_are_overwritten_before_its_copy_counts() {
    let directory = tempfile::tempdir().unwrap();
    let (one, _, primary, standby) = settled(directory.path());
    primary.write(3 * MIB, 0x44, 8192);
    drop(primary);
    standby.disk.activate(BOUND).unwrap();
    standby.write(4 * MIB, 0x55, 512);
    let old = one.open();
    assert_eq!(old.content()[3 * MIB as usize], 0x44);
    assert_eq!(protect(&standby, &old), Plan::Regions(vec![Run { first: 3, count: 2 }]));
    old.disk.wait_applied(BOUND).unwrap();
    assert!(old.content() == standby.content() && old.content()[3 * MIB as usize] == 0);
}

#[test]
fn a_region_is_cleared_only_when_both_hosts_have_it_durably() {
    let directory = tempfile::tempdir().unwrap();
    let (one, _, primary, standby) = settled(directory.path());
    // Everything was cleared. Now the primary's power fails, and all that it had not flushed is gone.
    drop(primary);
    one.lose_power(|| true);
    standby.disk.activate(BOUND).unwrap();
    let old = one.open();
    protect(&standby, &old);
    old.disk.wait_applied(BOUND).unwrap();
    assert!(old.content() == standby.content());
}

#[test]
fn no_guest_starts_from_a_standbys_copy_or_an_incomplete_one_but_from_an_activated_one() {
    let directory = tempfile::tempdir().unwrap();
    let (_, two, primary, standby) = settled(directory.path());
    drop(standby);
    let found = two.open();
    assert_eq!(found.disk.identity().unwrap().state, CopyState::Following);
    assert!(matches!(found.disk.check_start(), Err(DiskError::Unfit { .. })), "known before anything is taken from another host");
    assert!(matches!(found.disk.start_primary(), Err(DiskError::Unfit { .. })));

    let (_, copy) = {
        primary.disk.struck_out().unwrap();
        join(&primary, &found)
    };
    drop((copy, found));
    let found = two.open();
    assert_eq!(found.disk.identity().unwrap().state, CopyState::Copying);
    assert!(matches!(found.disk.start_primary(), Err(DiskError::Unfit { .. })));
    assert!(matches!(found.disk.activate(BOUND), Err(DiskError::Phase { .. })));

    primary.disk.unlink();
    protect(&primary, &found);
    drop(primary);
    found.disk.activate(BOUND).unwrap();
    while found.disk.identity().unwrap().state != CopyState::Consistent {
        std::thread::yield_now();
    }
    drop(found);
    let found = two.open();
    let before = found.disk.identity().unwrap();
    found.disk.check_start().unwrap();
    assert_eq!(found.disk.identity().unwrap(), before, "asking changes nothing");
    found.disk.start_primary().unwrap();
}

#[test]
fn a_standby_with_no_committed_epoch_is_not_activated() {
    let directory = tempfile::tempdir().unwrap();
    let (one, two) = (Medium::new(directory.path(), "one", BYTES), Medium::new(directory.path(), "two", BYTES));
    let (primary, standby) = (one.open(), two.open());
    primary.disk.start_primary().unwrap();
    let (_, mut copy) = join(&primary, &standby);
    hand_over(&mut copy, &standby);
    assert!(matches!(standby.disk.activate(BOUND), Err(DiskError::Unfit { .. })));
}

#[test]
fn copies_that_guests_ran_on_both_are_refused_until_one_is_given_up() {
    let directory = tempfile::tempdir().unwrap();
    let (one, mut two, primary, standby) = settled(directory.path());
    standby.disk.activate(BOUND).unwrap();
    standby.write(0, 0x66, 512);
    // Somebody starts the old host as a primary, although the guest runs elsewhere.
    drop(primary);
    let forced = one.open();
    assert_eq!(plan_of(&forced, &standby), Plan::Refuse(Refusal::StandbyIsNewer));
    forced.disk.start_primary().unwrap();
    forced.write(0, 0x77, 512);
    assert_eq!(plan_of(&forced, &standby), Plan::Refuse(Refusal::Diverged));
    assert_eq!(plan_of(&standby, &forced), Plan::Refuse(Refusal::Diverged));
    drop(standby);
    two.options.overwrite = true;
    let given_up = two.open();
    assert_eq!(protect(&forced, &given_up), Plan::Full(FullReason::Asked));
    given_up.disk.wait_applied(BOUND).unwrap();
    assert!(given_up.content() == forced.content());
    assert!(!given_up.disk.identity().unwrap().overwrite, "once in a process' life");
}

#[test]
fn unknown_content_is_never_overwritten_unasked() {
    let directory = tempfile::tempdir().unwrap();
    let (one, two) = (Medium::new(directory.path(), "one", BYTES), Medium::new(directory.path(), "two", BYTES));
    let mut content = vec![0; BYTES as usize];
    content[BYTES as usize - 1] = 1;
    std::fs::write(two.path(), &content).unwrap();
    let (primary, standby) = (one.open(), two.open());
    primary.disk.start_primary().unwrap();
    assert_eq!(plan_of(&primary, &standby), Plan::Refuse(Refusal::UnknownContent));
    let refused = Disks::plans(&[primary.disk.identity().unwrap()], &[standby.disk.identity().unwrap()]);
    assert!(matches!(refused, Err(DiskError::Refused { disk: DiskIndex(0), .. })));
    assert!(matches!(Disks::plans(&[], &[standby.disk.identity().unwrap()]), Err(DiskError::OtherNumber { primary: 0, standby: 1 })));
}

#[test]
fn the_same_content_brought_by_hand_is_still_copied_by_plan_and_not_by_chance() {
    let directory = tempfile::tempdir().unwrap();
    let (_, two, primary, standby) = settled(directory.path());
    drop(standby);
    std::fs::remove_file(directory.path().join("two.lockstep")).unwrap();
    assert_eq!(plan_of(&primary, &two.open()), Plan::Refuse(Refusal::UnknownContent));
}

#[test]
fn read_only_disks_must_hold_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let open = |name: &str, byte: u8, sparse: bool| {
        let path = image(directory.path(), name, BYTES);
        let mut content = vec![0; BYTES as usize];
        content[5000] = byte;
        if !sparse {
            std::fs::write(&path, content).unwrap();
        } else {
            use std::os::unix::fs::FileExt;
            std::fs::OpenOptions::new().write(true).open(&path).unwrap().write_all_at(&[byte], 5000).unwrap();
        }
        Host::open(&DiskOptions { read_only: true, ..options(&path) })
    };
    let (primary, standby, other) = (open("one", 7, true), open("two", 7, false), open("three", 8, true));
    primary.disk.start_primary().unwrap();
    assert_eq!(plan_of(&primary, &other), Plan::Refuse(Refusal::ContentDiffers));
    assert_eq!(protect(&primary, &standby), Plan::Nothing);
    let refused = primary.ask(BlockOp::Write { offset: 0, data: vec![1; 512].into() });
    assert_eq!(refused.result, Err(BlockError::ReadOnly));
    standby.disk.activate(BOUND).unwrap();
    let read = standby.ask(BlockOp::Read { offset: 4608, len: 512 }).result.unwrap().unwrap();
    assert_eq!((read[392], read.len()), (7, 512));
    assert!(!directory.path().join("one.lockstep").exists(), "nothing is written beside a read-only disk");
}

#[test]
fn a_new_disk_has_a_name_only_when_a_guest_has_run_on_it() {
    let directory = tempfile::tempdir().unwrap();
    let one = Medium::new(directory.path(), "one", BYTES);
    let host = one.open();
    assert_eq!(host.disk.identity().unwrap().id, DataId::NONE);
    host.disk.start_primary().unwrap();
    let named = host.disk.identity().unwrap();
    drop(host);
    let again = one.open();
    assert_eq!(again.disk.identity().unwrap().id, named.id);
    again.disk.start_primary().unwrap();
    assert_ne!(again.disk.identity().unwrap().current, named.current, "each cold start is a line of writes of its own");
}

#[test]
fn epochs_and_blocks_that_do_not_fit_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let (_, _, primary, standby) = settled(directory.path());
    assert!(matches!(primary.disk.seal(Epoch(5)), Err(DiskError::EpochOrder { expected: Epoch(2), .. })));
    assert!(matches!(standby.disk.stage(Epoch(5), vec![]), Err(DiskError::EpochOrder { expected: Epoch(2), .. })));
    assert!(matches!(standby.disk.commit(Epoch(2)), Err(DiskError::EpochOrder { .. })));
    assert!(matches!(standby.disk.sync_block(BYTES, None), Err(DiskError::OutOfRange { .. })));
    let beyond = types::block::DiskWrite {
        disk: DiskIndex(0),
        offset: u64::MAX - 511,
        change: types::block::DiskChange::Zeroes { len: 1024, may_unmap: false },
    };
    assert!(matches!(standby.disk.stage(Epoch(2), vec![beyond]), Err(DiskError::OutOfRange { .. })));
    assert!(matches!(primary.disk.stage(Epoch(2), vec![]), Err(DiskError::Phase { .. })));
}

#[test]
fn a_report_that_overtakes_its_epochs_commit_is_not_lost() {
    let directory = tempfile::tempdir().unwrap();
    let (one, two) = (Medium::new(directory.path(), "one", BYTES), Medium::new(directory.path(), "two", BYTES));
    let (primary, standby) = (one.open(), two.open());
    primary.disk.start_primary().unwrap();
    primary.write(MIB, 0x11, 4096);
    let (_, mut copy) = join(&primary, &standby);
    hand_over(&mut copy, &standby);
    copy.record(types::Generation(1)).unwrap();
    hand_over(&mut copy, &standby);
    let sealed = primary.disk.seal(Epoch(1)).unwrap();
    standby.disk.stage(Epoch(1), sealed.to_vec()).unwrap();
    standby.disk.commit(Epoch(1)).unwrap();
    standby.wait_durable(1);

    primary.disk.peer_durable(Epoch(1));
    primary.disk.release(&types::Commit::attest(types::Generation(1), Epoch(1)));

    // The guest writes nothing more, so nothing more is reported.
    primary.wait_cleared();
}

#[test]
fn a_log_is_not_believed_of_an_image_that_took_the_place_of_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let (_, mut two, primary, standby) = settled(directory.path());
    drop(standby);
    // As a restored backup: the same size, another file.
    let backup = directory.path().join("backup");
    std::fs::copy(two.path(), &backup).unwrap();
    std::fs::rename(&backup, two.path()).unwrap();
    let refused = disk_buffer::Disk::open(DiskIndex(0), &two.options);
    assert!(matches!(&refused, Err(DiskError::ImageReplaced { .. })), "{refused:?}");
    two.options.overwrite = true;
    primary.disk.struck_out().unwrap();
    assert_eq!(protect(&primary, &two.open()), Plan::Full(FullReason::Asked));
    drop(primary);
    // Moved with its log it is the same file still.
    two.options.overwrite = false;
    let moved = directory.path().join("moved");
    std::fs::rename(two.path(), &moved).unwrap();
    std::fs::rename(directory.path().join("two.lockstep"), directory.path().join("moved.lockstep")).unwrap();
    assert!(disk_buffer::Disk::open(DiskIndex(0), &DiskOptions { path: moved, ..two.options.clone() }).is_ok());
}

#[test]
fn two_names_of_one_image_have_one_log() {
    let directory = tempfile::tempdir().unwrap();
    let one = Medium::new(directory.path(), "one", BYTES);
    one.open().disk.start_primary().unwrap();
    let known = one.open().disk.identity().unwrap().id;
    let link = directory.path().join("link");
    std::os::unix::fs::symlink(one.path(), &link).unwrap();
    assert_eq!(Host::open(&options(&link)).disk.identity().unwrap().id, known);
    assert!(!directory.path().join("link.lockstep").exists());
}
