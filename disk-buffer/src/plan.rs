//! What has to be copied when a standby joins, decided from the two sides' identities. Pure, and never silent: whatever does not fit together is refused with its reason.
//!
//! Not here: the copying ([`crate::copy`]), the durable steps around it ([`crate::mirror`]).

use serde::{Deserialize, Serialize};

use crate::identity::{CopyState, Identity, SharedDevice};
use crate::medium;
use crate::options::Mode;
use crate::regions::{RegionSet, Run};

/// What has to be copied from the primary's disk to the standby's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Plan {
    /// The copies are the same (or there is one, shared).
    Nothing,
    /// These regions; everything else is the same.
    Regions(Vec<Run>),
    /// Everything; the standby makes its copy read as zeros first, so zeros need not be sent.
    Full(FullReason),
    /// It must not be done.
    Refuse(Refusal),
}

/// Why a standby's disk is copied as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FullReason {
    /// `resync=full`.
    Asked,
    /// The standby's disk holds nothing but zeros.
    Empty,
    /// The standby's copy of this disk was left half overwritten by a copy from elsewhere: there is nothing in it to lose.
    BrokenOff,
}

/// Why two copies of a disk cannot be brought together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// Sizes differ.
    #[error("the disk has {primary} bytes at the primary and {standby} at the standby; give both the same size")]
    OtherSize {
        /// At the primary.
        primary: u64,
        /// At the standby.
        standby: u64,
    },
    /// One says mirror, the other shared.
    #[error("the disk's mode is {primary} at the primary and {standby} at the standby; give both the same mode=")]
    OtherMode {
        /// At the primary.
        primary: Mode,
        /// At the standby.
        standby: Mode,
    },
    /// One may be written to, the other not.
    #[error("the disk is read-only at one host and not at the other; give `readonly` at both or at neither")]
    ReadOnlyDiffers,
    /// The guest would read another serial number after a failover: the primary's and the standby's.
    #[error("the disk's serial number is {:?} at the primary and {:?} at the standby; give both the same serial=", .0[0], .0[1])]
    OtherSerial(Box<[String; 2]>),
    /// The guest would find sectors of another size after a failover.
    #[error(
        "the disk has blocks of {primary} bytes at the primary and of {standby} at the standby; use the same version of Lockstep on both hosts"
    )]
    OtherBlock {
        /// At the primary.
        primary: u32,
        /// At the standby.
        standby: u32,
    },
    /// The hosts mean different devices: the primary's and the standby's.
    #[error(
        "the shared disk is {} at the primary and {} at the standby; both must be given the same device, or the same file of a file system that both hosts have mounted", .0[0], .0[1]
    )]
    OtherDevice(Box<[String; 2]>),
    /// Both hosts were given one medium for two copies: what it is.
    #[error(
        "both hosts were given one disk for two copies ({0}), and a copy would destroy what is on it: give mode=shared at both hosts, or each host a file or device of its own (clones need names of their own: a serial number, \
         vgimportclone)"
    )]
    OneDevice(Box<str>),
    /// Read-only disks with different content.
    #[error("the read-only disks of the two hosts have different content; copy one to the other by hand")]
    ContentDiffers,
    /// The copy that should be the source is none.
    #[error("the primary's own copy of the disk is incomplete")]
    PrimaryIncomplete,
    /// Never used by Lockstep, and not empty.
    #[error(
        "the standby's disk holds data that Lockstep knows nothing about (it has no change log); if it may be overwritten, start the standby with resync=full for \
         this disk"
    )]
    UnknownContent,
    /// A copy of another disk.
    #[error(
        "the standby's disk is a copy of another disk; check its path; if it may be overwritten, start the standby with resync=full for this disk"
    )]
    OtherDisk,
    /// The standby's copy has writes of a time after the primary's.
    #[error(
        "the standby's copy is newer: a guest ran on it after the primary's copy was last written; start the guest there, or, to lose what it wrote, start the standby \
         with resync=full for this disk"
    )]
    StandbyIsNewer,
    /// Both have writes that the other lacks.
    #[error(
        "guests ran on both copies of the disk since they were last the same; decide which one to keep, and start the host of the other as a standby with resync=full \
         for this disk"
    )]
    Diverged,
    /// The standby's copy is of a line of writes that the primary does not remember.
    #[error(
        "the standby's copy is from an earlier or other time than the primary remembers, so what has changed is not known; if it may be overwritten, start the \
         standby with resync=full for this disk"
    )]
    UnknownGeneration,
}

/// Decides what to copy.
#[must_use]
pub fn plan(primary: &Identity, standby: &Identity) -> Plan {
    match compare(primary, standby) {
        Ok(plan) => plan,
        Err(refusal) => Plan::Refuse(refusal),
    }
}

fn compare(primary: &Identity, standby: &Identity) -> Result<Plan, Refusal> {
    if primary.mode != standby.mode {
        return Err(Refusal::OtherMode { primary: primary.mode, standby: standby.mode });
    }
    if primary.bytes != standby.bytes {
        return Err(Refusal::OtherSize { primary: primary.bytes, standby: standby.bytes });
    }
    if primary.read_only != standby.read_only {
        return Err(Refusal::ReadOnlyDiffers);
    }
    // Before all that may be overwritten: an empty disk, and one that its operator gave up, would be filled with itself.
    if let (Mode::Mirror, false, Some(one)) = (primary.mode, primary.read_only, medium::shared_by(primary, standby)) {
        return Err(Refusal::OneDevice(one.into()));
    }
    if primary.serial != standby.serial {
        let text = |serial: &[u8]| String::from_utf8_lossy(serial).trim_end_matches('\0').to_owned();
        return Err(Refusal::OtherSerial(Box::new([text(&primary.serial), text(&standby.serial)])));
    }
    if primary.logical_block != standby.logical_block {
        return Err(Refusal::OtherBlock { primary: primary.logical_block, standby: standby.logical_block });
    }
    if primary.mode == Mode::Shared {
        return match (&primary.device, &standby.device) {
            (Some(mine), Some(theirs)) if mine.is(theirs) => Ok(Plan::Nothing),
            (mine, theirs) => {
                let text = |device: &Option<SharedDevice>| device.as_ref().map_or_else(|| "not known".to_owned(), ToString::to_string);
                Err(Refusal::OtherDevice(Box::new([text(mine), text(theirs)])))
            }
        };
    }
    if primary.read_only {
        let same = primary.content.is_some() && primary.content == standby.content;
        return if same { Ok(Plan::Nothing) } else { Err(Refusal::ContentDiffers) };
    }
    if primary.state == CopyState::Copying {
        return Err(Refusal::PrimaryIncomplete);
    }
    if standby.overwrite {
        return Ok(Plan::Full(FullReason::Asked));
    }
    if !standby.id.matches(primary.id) {
        return match (standby.empty, standby.id) {
            (true, _) => Ok(Plan::Full(FullReason::Empty)),
            (false, crate::DataId::NONE) => Err(Refusal::UnknownContent),
            (false, _) => Err(Refusal::OtherDisk),
        };
    }
    let known = [primary.current, primary.base, primary.joining].iter().any(|generation| generation.matches(standby.current));
    if known {
        let mut changed = RegionSet::new(primary.bytes);
        changed.insert_runs(&primary.changed);
        changed.insert_runs(&standby.changed);
        return Ok(if changed.is_empty() { Plan::Nothing } else { Plan::Regions(changed.runs()) });
    }
    if standby.state == CopyState::Copying {
        return Ok(Plan::Full(FullReason::BrokenOff));
    }
    let behind = [standby.base, standby.joining].iter().any(|generation| generation.matches(primary.current));
    if behind {
        return Err(Refusal::StandbyIsNewer);
    }
    let together =
        [primary.base, primary.joining].iter().any(|mine| [standby.base, standby.joining].iter().any(|theirs| mine.matches(*theirs)));
    Err(if together { Refusal::Diverged } else { Refusal::UnknownGeneration })
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
