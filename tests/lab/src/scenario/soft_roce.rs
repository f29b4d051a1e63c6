//! Proves that hosts can have RDMA devices and that verbs work between them, with reliable connections over the replication network: what an RDMA
//! transport will be tested on. Not here: Lockstep, which has no such transport yet.

use std::time::Instant;

use super::Stage;
use super::node::NODE_BOUND;
use super::report::Row;
use super::turns::Turns;
use crate::error::LabError;
use crate::host::HostOptions;
use crate::lab::{Lab, LabOptions};
use crate::net::{Net, address};
use crate::prepare::packages;

/// There and back, pages, by the RoCEv2 address of IPv4 (index 1 of the device's table).
const PINGPONG: &str = "ibv_rc_pingpong -d rxe0 -g 1 -m 4096 -s 4096 -n 500";

/// The proof, on a lab of its own: both ways, and again after a host was started anew.
///
/// # Errors
/// No device comes about, or nothing passes.
pub fn prove(stage: &Stage<'_>, turns: &mut Turns, row: &mut Row) -> Result<(), LabError> {
    packages::install(packages::VERBS, &|_| {}).map_err(LabError::trouble)?;
    let host = HostOptions { memory_mib: 512, ..HostOptions::default() };
    let options = LabOptions { name: format!("test-{}", stage.name), hosts: 2, host };
    let mut lab = Lab::start(stage.paths, stage.prepared.clone(), &options).map_err(LabError::trouble)?;
    while turns.another()? {
        for (server, client) in [(1, 2), (2, 1)] {
            lab.host(server)?.soft_roce()?;
            lab.host(client)?.soft_roce()?;
            passed(&mut lab, server, client)?;
        }
        lab.host(1)?.kill()?;
        row.kills += 1;
        lab.host(1)?.start()?;
        lab.host(1)?.wait_ready(crate::host::READY_BOUND)?;
        lab.host(1)?.soft_roce()?;
        passed(&mut lab, 2, 1)?;
    }
    Ok(())
}

fn passed(lab: &mut Lab, server: u8, client: u8) -> Result<(), LabError> {
    let ip = address(Net::Replication, server).ok_or_else(|| LabError::Found("a host without an address".into()))?;
    lab.host(server)?.spawn(PINGPONG, "/run/pingpong.log")?;
    let deadline = Instant::now() + NODE_BOUND;
    loop {
        // Until the server listens, the client is refused at once.
        let said = lab.host(client)?.exec(&format!("{PINGPONG} {ip}"), NODE_BOUND)?;
        if said.ok() && said.text().contains("500 iters") {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let error = String::from_utf8_lossy(&said.err).into_owned();
            return Err(LabError::Found(format!("verbs from h{client} to h{server}: {}{error}", said.text())));
        }
    }
}
