//! The courses that scenarios take under load: which fault, and what must come of it.

use std::time::Duration;

use types::Generation;

use super::Given;
use super::course::{Course, SERVED_BOUND};
use crate::error::LabError;
use crate::fault::{Shape, Way};
use crate::net::Net;

/// The host of the primary dies, again and again.
///
/// # Errors
/// What does not come about.
pub fn death(course: &mut Course, (load, row, faults): Given<'_, '_>) -> Result<(), LabError> {
    course.kill_round(load, row, faults)
}

/// The host of the primary hangs; the standby takes over; the host wakes up and its node must stop its guest and release nothing.
///
/// # Errors
/// What does not come about.
pub fn hang(course: &mut Course, (load, row, faults): Given<'_, '_>) -> Result<(), LabError> {
    course.random_while();
    course.settle(load, row)?;
    course.clock_before()?;
    let since = course.fault(faults);
    course.will_stand_still();
    course.primary_host()?.hang()?;
    course.taken_over(since, load, row)?;
    course.clock_after(faults.len().saturating_sub(1))?;
    course.standby_host()?.wake()?;
    // The node of the host that hung, in the standby's place since the roles were exchanged.
    course.standby.until_fenced()?;
    load.until_more(SERVED_BOUND)?;
    course.protect_again()?;
    load.until_more(SERVED_BOUND)?;
    Ok(())
}

/// One wire fault of the replication network: one node goes on, the other is out; after it is mended the guest is protected again.
fn one_goes_on(
    course: &mut Course,
    (load, row, faults): Given<'_, '_>,
    cut: impl FnOnce(&mut Course) -> Result<(), LabError>,
    mend: impl FnOnce(&mut Course) -> Result<(), LabError>,
) -> Result<(), LabError> {
    course.random_while();
    course.settle(load, row)?;
    let before: Generation = course.primary.until_protected()?;
    let since = course.fault(faults);
    cut(course)?;
    if course.contest(before)? {
        course.taken_over(since, load, row)?;
        course.standby.until_fenced()?;
        mend(course)?;
        course.protect_again()?;
    } else {
        load.until_more(SERVED_BOUND)?;
        if course.standby.activation().is_some() {
            return Err(LabError::Found("the standby took over although the primary had struck it out".into()));
        }
        mend(course)?;
        course.primary.until_protected()?;
    }
    load.until_more(SERVED_BOUND)
}

/// Nothing arrives on the replication network: both ways, from the primary, to the primary.
///
/// # Errors
/// What does not come about.
pub fn replication_cut(course: &mut Course, (load, row, faults): Given<'_, '_>) -> Result<(), LabError> {
    for way in [Way::Both, Way::From, Way::To] {
        course.settle(load, row)?;
        let cut_host = course.primary.host();
        one_goes_on(
            course,
            (load, row, faults),
            |course| course.lab.host(cut_host)?.cut(Net::Replication, way),
            |course| course.lab.host(cut_host)?.heal(Net::Replication),
        )?;
    }
    Ok(())
}

/// The standby's host loses its replication carrier; then the primary's.
///
/// # Errors
/// What does not come about.
pub fn carrier_loss(course: &mut Course, (load, row, faults): Given<'_, '_>) -> Result<(), LabError> {
    for of_standby in [true, false] {
        course.settle(load, row)?;
        let host = if of_standby { course.standby.host() } else { course.primary.host() };
        one_goes_on(
            course,
            (load, row, faults),
            |course| course.lab.host(host)?.set_carrier(Net::Replication, false),
            |course| course.lab.host(host)?.set_carrier(Net::Replication, true),
        )?;
    }
    Ok(())
}

/// The client network alone is cut at the primary's host: the pair goes on committing, nobody takes over, and clients go on where they were.
///
/// # Errors
/// What does not come about.
pub fn client_cut(course: &mut Course, (load, _, faults): Given<'_, '_>) -> Result<(), LabError> {
    /// Long enough for every detection to have had its chance (the nodes' bound is a second), and so short that TCP's third retransmission finds the wire again: after 3 s of silence the next tries of both ends are 6 and 12 s
    /// after the first, beyond the clients' patience.
    const CUT: Duration = Duration::from_secs(2);
    /// What is on its way when the wire is cut may still arrive.
    const ON_ITS_WAY: Duration = Duration::from_millis(100);
    /// Writes before and after, so that many requests of every kind are cut off or follow the cut.
    const ENOUGH: u64 = 100;
    let generation = course.primary.until_protected()?;
    load.until_so_many_more(ENOUGH, SERVED_BOUND)?;
    course.random_while();
    course.fault(faults);
    course.primary_host()?.set_plugged(Net::Clients, false)?;
    std::thread::sleep(ON_ITS_WAY);
    let (answered, committed) = (load.acknowledged(), course.primary.committed());
    std::thread::sleep(CUT);
    if load.acknowledged() != answered {
        return Err(LabError::Found("clients were answered through a wire that is cut".into()).trouble());
    }
    if course.primary.committed() <= committed {
        return Err(LabError::Found(format!("no epoch was committed while only the client network was cut; the newest is {committed:?}")));
    }
    course.primary_host()?.set_plugged(Net::Clients, true)?;
    load.until_so_many_more(ENOUGH, SERVED_BOUND)?;
    if course.primary.until_protected()? != generation || course.standby.activation().is_some() {
        let found = LabError::Found("protection was lost although only the client network was cut".into());
        return Err(if course.hosts_stood_still() { found.trouble() } else { found });
    }
    Ok(())
}

/// Replication with delay, jitter and loss: the guest stays protected and is served, and its host's death loses nothing.
///
/// # Errors
/// What does not come about.
pub fn slow_link(course: &mut Course, (load, row, faults): Given<'_, '_>) -> Result<(), LabError> {
    let shape = Shape { delay_ms: 2.0, jitter_ms: 1.0, loss_percent: 0.5 };
    for number in [1, 2] {
        course.lab.host(number)?.shape(Net::Replication, Way::From, shape)?;
    }
    load.until_more(SERVED_BOUND)?;
    // A lost frame may cost a retransmission longer than the bound on silence: that is a strike-out, after which a standby joins again.
    course.primary.until_protected()?;
    course.kill_round(load, row, faults)?;
    for number in [1, 2] {
        course.lab.host(number)?.heal(Net::Replication)?;
    }
    Ok(())
}
