//! Proves that the lock of an arbiter file in `/arbiter` excludes between hosts, and goes with the host that holds it: everything that the scenarios
//! say about who may run rests on it (S3).
//!
//! Always `flock -n`, again and again where need be, as the arbiter's file does it: virtiofsd refuses to wait for a lock.

use std::time::{Duration, Instant};

use super::Stage;
use super::report::Row;
use super::turns::Turns;
use crate::error::LabError;
use crate::host::{EXEC_BOUND, Host, HostOptions, READY_BOUND};
use crate::lab::{Lab, LabOptions};

const LOCK: &str = "/arbiter/proof.lock";
const COUNT: &str = "/arbiter/proof.count";
/// What each host adds up to, one by one.
const EACH: u32 = 15;

/// Holds the lock until it is killed, and says when it has it.
fn hold(host: &Host) -> Result<u32, LabError> {
    host.must("rm -f /run/held")?;
    let pid = host.spawn(&format!("flock -n {LOCK} sh -c 'echo >/run/held; exec sleep 600'"), "/run/hold.log")?;
    host.must("until [ -e /run/held ]; do sleep 0.02; done")?;
    Ok(pid)
}

fn is_free(host: &Host) -> Result<bool, LabError> {
    Ok(host.exec(&format!("flock -n {LOCK} true"), EXEC_BOUND)?.ok())
}

fn expect(good: bool, what: &str) -> Result<(), LabError> {
    if good { Ok(()) } else { Err(LabError::Found(what.into())) }
}

/// The proof, on a lab of its own.
///
/// # Errors
/// What must not be.
pub fn prove(stage: &Stage<'_>, turns: &mut Turns, row: &mut Row) -> Result<(), LabError> {
    let host = HostOptions { memory_mib: 512, ..HostOptions::default() };
    let options = LabOptions { name: format!("test-{}", stage.name), hosts: 2, host };
    let mut lab = Lab::start(stage.paths, stage.prepared.clone(), &options).map_err(LabError::trouble)?;
    while turns.another()? {
        for (holder, other) in [(1, 2), (2, 1)] {
            let pid = hold(lab.host(holder)?)?;
            expect(!is_free(lab.host(other)?)?, "a lock that one host holds was granted to the other")?;
            // The process group: flock and what it has started.
            lab.host(holder)?.must(&format!("kill -KILL -{pid}"))?;
            freed(lab.host(other)?, "whose holder was killed")?;
        }
        counted(&mut lab)?;
        hold(lab.host(1)?)?;
        expect(!is_free(lab.host(2)?)?, "a lock that one host holds was granted to the other")?;
        lab.host(1)?.kill()?;
        row.kills += 1;
        freed(lab.host(2)?, "whose holder's host died")?;
        lab.host(1)?.start()?;
        lab.host(1)?.wait_ready(READY_BOUND)?;
    }
    Ok(())
}

fn freed(host: &Host, whose: &str) -> Result<(), LabError> {
    let bound = Duration::from_secs(10);
    let deadline = Instant::now() + bound;
    while !is_free(host)? {
        if Instant::now() >= deadline {
            return Err(LabError::Late { what: format!("the lock being free {whose}"), bound, detail: String::new() });
        }
    }
    Ok(())
}

/// Both hosts count in one file at the same time, each number read and written under the lock: none may be lost.
fn counted(lab: &mut Lab) -> Result<(), LabError> {
    let script = format!(
        "n=0; while [ $n -lt {EACH} ]; do until flock -n {LOCK} sh -c 'read c <{COUNT}; echo $((c+1)) >{COUNT}.new; mv {COUNT}.new {COUNT}'; do sleep 0.05; done; n=$((n+1)); done"
    );
    lab.host(1)?.must(&format!("echo 0 >{COUNT}"))?;
    std::thread::scope(|scope| {
        let both: Vec<_> = lab.hosts().iter().map(|host| scope.spawn(|| host.must(&script))).collect();
        let panicked = |_| Err(LabError::Found("the thread that counts panicked".into()));
        both.into_iter().try_for_each(|one| one.join().unwrap_or_else(panicked).map(drop))
    })?;
    let count = lab.host(2)?.must(&format!("cat {COUNT}"))?;
    expect(count.trim() == (2 * EACH).to_string(), &format!("two hosts counted to {} under one lock, not to {}", count.trim(), 2 * EACH))
}
