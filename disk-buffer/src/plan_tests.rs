//! The plan: every combination of identities, and each rule by itself.

use super::*;
use crate::DataId;
use crate::regions::REGION_BYTES;

fn identity(id: u64, current: u64, base: u64, joining: u64, changed: &[u32]) -> Identity {
    Identity {
        id: DataId(id),
        bytes: 100 * REGION_BYTES,
        mode: Mode::Mirror,
        read_only: false,
        serial: *b"disk0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        logical_block: 512,
        current: DataId(current),
        base: DataId(base),
        joining: DataId(joining),
        state: CopyState::Consistent,
        empty: false,
        overwrite: false,
        content: None,
        changed: changed.iter().map(|region| Run { first: *region, count: 1 }).collect(),
        device: None,
        place: None,
    }
}

fn regions(regions: &[u32]) -> Plan {
    Plan::Regions(regions.iter().map(|region| Run { first: *region, count: 1 }).collect())
}

#[test]
fn a_standby_that_was_protected_gets_what_either_log_has_marked() {
    let standby = identity(1, 10, 10, 0, &[7]);
    // The primary struck it out; or it did not come to it; or it does not know how far the copying before got.
    for primary in [identity(1, 11, 10, 0, &[3]), identity(1, 10, 5, 0, &[3]), identity(1, 11, 5, 10, &[3])] {
        assert_eq!(plan(&primary, &standby), regions(&[3, 7]));
    }
    assert_eq!(plan(&identity(1, 11, 10, 0, &[]), &identity(1, 10, 10, 0, &[])), Plan::Nothing);
}

#[test]
fn an_old_primary_that_comes_back_loses_what_it_had_not_committed() {
    let (taken_over, old) = (identity(1, 20, 10, 0, &[1]), identity(1, 10, 10, 0, &[5]));
    assert_eq!(plan(&taken_over, &old), regions(&[1, 5]));
    assert_eq!(plan(&old, &taken_over), Plan::Refuse(Refusal::StandbyIsNewer), "and never the other way round");
}

#[test]
fn guests_that_ran_on_both_copies_are_refused() {
    let (one, other) = (identity(1, 20, 10, 0, &[1]), identity(1, 30, 10, 0, &[5]));
    assert_eq!(plan(&one, &other), Plan::Refuse(Refusal::Diverged));
    assert_eq!(plan(&identity(1, 20, 10, 0, &[]), &identity(1, 30, 0, 10, &[])), Plan::Refuse(Refusal::Diverged));
}

#[test]
fn a_copy_of_a_forgotten_time_is_refused_unless_it_is_half_overwritten_anyway() {
    let primary = identity(1, 20, 10, 0, &[1]);
    let mut standby = identity(1, 5, 4, 0, &[]);
    assert_eq!(plan(&primary, &standby), Plan::Refuse(Refusal::UnknownGeneration));
    standby.state = CopyState::Copying;
    assert_eq!(plan(&primary, &standby), Plan::Full(FullReason::BrokenOff));
    standby.current = DataId::NONE;
    assert_eq!(plan(&primary, &standby), Plan::Full(FullReason::BrokenOff));
}

#[test]
fn a_copy_that_was_broken_off_goes_on_where_it_is_known_what_is_missing() {
    let mut standby = identity(1, 10, 0, 0, &[2]);
    standby.state = CopyState::Copying;
    assert_eq!(plan(&identity(1, 11, 10, 11, &[4]), &standby), regions(&[2, 4]));
}

#[test]
fn unknown_content_is_refused_and_an_empty_disk_filled() {
    let primary = identity(1, 20, 0, 0, &[1]);
    let mut standby = identity(0, 0, 0, 0, &[]);
    assert_eq!(plan(&primary, &standby), Plan::Refuse(Refusal::UnknownContent));
    standby.empty = true;
    assert_eq!(plan(&primary, &standby), Plan::Full(FullReason::Empty));
    let other = identity(2, 20, 0, 0, &[]);
    assert_eq!(plan(&primary, &other), Plan::Refuse(Refusal::OtherDisk));
}

#[test]
fn generations_that_are_none_never_match() {
    assert_eq!(plan(&identity(1, 20, 0, 0, &[]), &identity(1, 0, 0, 0, &[])), Plan::Refuse(Refusal::UnknownGeneration));
}

#[test]
fn one_medium_at_both_hosts_is_never_copied_over_itself_whatever_may_be_overwritten() {
    let name = |name: &str| Some(SharedDevice::Name(name.to_owned()));
    let primary = Identity { device: name("naa.600140512345"), place: Some(1), ..identity(1, 20, 10, 0, &[1]) };
    for (empty, overwrite) in [(true, false), (false, true), (false, false)] {
        for standby in [identity(0, 0, 0, 0, &[]), identity(1, 10, 0, 0, &[]), identity(1, 20, 10, 0, &[])] {
            let standby = Identity { empty, overwrite, ..standby };
            let lun = Identity { device: name("mpath-3600140512345"), place: Some(2), ..standby.clone() };
            let refusal = Refusal::OneDevice("mpath-3600140512345".into());
            assert!(refusal.to_string().contains("one disk") && refusal.to_string().contains("mode=shared"), "{refusal}");
            assert_eq!(plan(&primary, &lun), Plan::Refuse(refusal));
            let twin = Identity { place: Some(1), ..standby.clone() };
            assert!(matches!(plan(&primary, &twin), Plan::Refuse(Refusal::OneDevice(_))), "two nodes of one host");

            let known = plan(&Identity { device: None, place: None, ..primary.clone() }, &standby);
            for other in [(name("naa.600140512346"), Some(2)), (None, None)] {
                let other = Identity { device: other.0, place: other.1, ..standby.clone() };
                assert_eq!(plan(&primary, &other), known, "a device of its own changes nothing");
            }
        }
    }
    let image = Identity { read_only: true, content: Some(1), ..primary };
    assert_eq!(plan(&image, &image), Plan::Nothing, "what nobody writes to may be one");
}

#[test]
fn size_mode_and_kind_must_agree() {
    let primary = identity(1, 20, 10, 0, &[]);
    let same = identity(1, 10, 0, 0, &[]);
    let smaller = Identity { bytes: 512, ..same.clone() };
    assert!(matches!(plan(&primary, &smaller), Plan::Refuse(Refusal::OtherSize { standby: 512, .. })));
    let shared = Identity { mode: Mode::Shared, ..same.clone() };
    assert!(matches!(plan(&primary, &shared), Plan::Refuse(Refusal::OtherMode { .. })));
    assert!(matches!(plan(&shared, &shared), Plan::Refuse(Refusal::OtherDevice(_))), "which device it is is not known");
    let named = Identity { device: Some(SharedDevice::Name("naa.6001405".to_owned())), ..shared };
    assert_eq!(plan(&named, &named), Plan::Nothing);
    let read_only = |content| Identity { read_only: true, content, ..same.clone() };
    assert_eq!(plan(&primary, &read_only(None)), Plan::Refuse(Refusal::ReadOnlyDiffers));
    assert_eq!(plan(&read_only(Some(1)), &read_only(Some(1))), Plan::Nothing);
    assert_eq!(plan(&read_only(Some(1)), &read_only(Some(2))), Plan::Refuse(Refusal::ContentDiffers));
    assert_eq!(plan(&read_only(None), &read_only(None)), Plan::Refuse(Refusal::ContentDiffers));
}

/// All identities from a few generations, ids, states and flags.
fn all() -> Vec<Identity> {
    let mut all = Vec::new();
    for (id, current) in [(0, 0), (1, 0), (1, 10), (1, 20), (1, 30), (2, 10)] {
        for base in [0, 10, 20] {
            for joining in [0, 20, 30] {
                for state in [CopyState::Consistent, CopyState::Following, CopyState::Copying] {
                    for (empty, overwrite) in [(false, false), (true, false), (false, true)] {
                        for changed in [&[][..], &[3, 9]] {
                            all.push(Identity { state, empty, overwrite, ..identity(id, current, base, joining, changed) });
                        }
                    }
                }
            }
        }
    }
    all
}

#[test]
fn in_every_combination_nothing_is_skipped_and_nothing_overwritten_without_a_reason() {
    let all = all();
    let mut seen = 0;
    for primary in &all {
        for standby in &all {
            seen += 1;
            let known = standby.id.matches(primary.id)
                && [primary.current, primary.base, primary.joining].iter().any(|generation| generation.matches(standby.current));
            match plan(primary, standby) {
                Plan::Nothing => {
                    assert!(known && !standby.overwrite && primary.changed.is_empty() && standby.changed.is_empty());
                }
                Plan::Regions(runs) => {
                    assert!(known && !standby.overwrite);
                    let mut planned = RegionSet::new(primary.bytes);
                    planned.insert_runs(&runs);
                    let marked = primary.changed.iter().chain(&standby.changed);
                    assert!(marked.into_iter().all(|run| planned.contains(run.first)));
                }
                Plan::Full(FullReason::Asked) => assert!(standby.overwrite),
                Plan::Full(FullReason::Empty) => assert!(standby.empty && !standby.overwrite && !standby.id.matches(primary.id)),
                Plan::Full(FullReason::BrokenOff) => {
                    assert!(standby.state == CopyState::Copying && standby.id.matches(primary.id) && !known);
                }
                Plan::Refuse(Refusal::PrimaryIncomplete) => assert!(primary.state == CopyState::Copying),
                Plan::Refuse(refusal) => {
                    assert!(!standby.overwrite && !known && primary.state != CopyState::Copying, "{refusal}");
                }
            }
        }
    }
    assert!(seen > 100_000);
}

#[test]
fn what_the_guest_would_see_change_at_a_failover_is_refused_by_name_even_for_a_disk_that_may_be_overwritten() {
    let primary = identity(1, 10, 10, 0, &[]);
    let mut serial = primary.serial;
    serial[..5].copy_from_slice(b"other");
    let renamed = Identity { serial, overwrite: true, ..primary.clone() };
    let refusal = Refusal::OtherSerial(Box::new(["disk0".to_owned(), "other".to_owned()]));
    assert!(refusal.to_string().contains("\"disk0\" at the primary and \"other\" at the standby"), "{refusal}");
    assert_eq!(plan(&primary, &renamed), Plan::Refuse(refusal));
    let coarse = Identity { logical_block: 4096, ..primary.clone() };
    assert_eq!(plan(&primary, &coarse), Plan::Refuse(Refusal::OtherBlock { primary: 512, standby: 4096 }));
}
