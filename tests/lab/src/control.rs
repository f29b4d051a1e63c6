//! An interactive lab: a process in the background keeps it, other processes tell that one what to do over a Unix socket, one JSON line each way.
//!
//! Commands in hosts do not go through the keeper: whoever runs them enters the lab's network by itself ([`State`] says where).

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{LabError, chain};
use crate::fault::{Shape, Way};
use crate::host::READY_BOUND;
use crate::lab::Lab;
use crate::net::{Net, Network};

/// Name of the interactive lab's run.
pub const NAME: &str = "up";
/// How often the keeper looks whether it shall end.
const TICK: Duration = Duration::from_millis(50);
/// Longest a verb may take: starting a host.
const BOUND: Duration = READY_BOUND.saturating_add(Duration::from_secs(10));

/// How other processes find the lab: `state.json` in the run's directory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct State {
    /// The keeper.
    pub keeper: i32,
    /// The switch's namespace.
    pub switch: PathBuf,
    /// The clients' namespace.
    pub clients: PathBuf,
    /// How many hosts there are.
    pub hosts: u8,
}

/// What can be asked of the keeper.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "each is the host's method of the same name")]
pub enum Verb {
    Kill,
    Hang,
    Wake,
    Start,
    Carrier { net: NetName, up: bool },
    Plug { net: NetName, plugged: bool },
    Cut { net: NetName, way: Way },
    Shape { net: NetName, way: Way, delay_ms: f64, jitter_ms: f64, loss_percent: f64 },
    Heal { net: NetName },
}

/// A network by its name; the management network is not for faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
pub enum NetName {
    /// Between the hosts.
    Replication,
    /// To the clients.
    Clients,
}

impl From<NetName> for Net {
    fn from(name: NetName) -> Net {
        match name {
            NetName::Replication => Net::Replication,
            NetName::Clients => Net::Clients,
        }
    }
}

/// A request to the keeper.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// Which host.
    pub host: u8,
    /// What with it.
    pub verb: Verb,
}

fn file(directory: &Path, name: &str) -> PathBuf {
    directory.join(name)
}

/// The lab that is up in `runs`.
///
/// # Errors
/// None is.
pub fn state(runs: &Path) -> Result<State, LabError> {
    let path = file(&runs.join(NAME), "state.json");
    let none = || LabError::Found("no lab is up; start one: lockstep-lab up".into());
    let text = fs::read_to_string(path).map_err(|_| none())?;
    let state: State = serde_json::from_str(&text).map_err(|_| none())?;
    state.switch.exists().then_some(state).ok_or_else(none)
}

/// The networks of the lab that is up.
///
/// # Errors
/// Its keeper has ended.
pub fn network(state: &State) -> Result<Network, LabError> {
    Network::open(&state.switch, &state.clients)
}

/// Asks the keeper in `runs`.
///
/// # Errors
/// None is there, or what it was asked for failed.
pub fn ask(runs: &Path, request: Request) -> Result<(), LabError> {
    // That none is up is told as such, not as a socket that is missing or refuses.
    state(runs)?;
    let path = file(&runs.join(NAME), "control");
    let io = || LabError::io(|| format!("ask the lab at {}", path.display()));
    let mut stream = UnixStream::connect(&path).map_err(io())?;
    stream.set_read_timeout(Some(BOUND)).map_err(io())?;
    let line = serde_json::to_string(&request).unwrap_or_default();
    stream.write_all(format!("{line}\n").as_bytes()).map_err(io())?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).map_err(io())?;
    match answer.trim_end() {
        "ok" => Ok(()),
        other => Err(LabError::Found(other.to_owned())),
    }
}

/// Keeps `lab` until `end` is set.
///
/// # Errors
/// The socket or the state file cannot be made.
pub fn keep(mut lab: Lab, end: &AtomicBool) -> Result<(), LabError> {
    let directory = lab.directory().path().to_owned();
    let path = file(&directory, "control");
    let io = || LabError::io(|| format!("listen at {}", path.display()));
    let listener = UnixListener::bind(&path).map_err(io())?;
    listener.set_nonblocking(true).map_err(io())?;
    let me = nix::unistd::getpid().as_raw();
    // The descriptors stay open as long as the lab is kept.
    let held = |namespace: &lockstep::demo::namespace::Namespace| PathBuf::from(namespace.path().replace("self", &me.to_string()));
    let network = lab.network();
    let state = State { keeper: me, switch: held(&network.switch), clients: held(&network.clients), hosts: lab.hosts().len() as u8 };
    let text = serde_json::to_string(&state).unwrap_or_default();
    fs::write(file(&directory, "state.json"), text).map_err(io())?;
    while !end.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, _)) => serve(&mut lab, &stream),
            Err(_) => std::thread::sleep(TICK),
        }
    }
    Ok(())
}

fn serve(lab: &mut Lab, mut stream: &UnixStream) {
    // One that says nothing must not hold up the rest.
    let _ = stream.set_nonblocking(false);
    let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
    let mut line = String::new();
    let answer = match BufReader::new(stream).read_line(&mut line) {
        Ok(_) => match serde_json::from_str::<Request>(&line) {
            Ok(request) => carry_out(lab, request).map_or_else(|e| chain(&e).replace('\n', " | "), |()| "ok".to_owned()),
            Err(error) => format!("not a request: {error}"),
        },
        Err(error) => format!("no request: {error}"),
    };
    // The asker may have gone: then nobody wants to know.
    let _ = stream.write_all(format!("{answer}\n").as_bytes());
}

fn carry_out(lab: &mut Lab, request: Request) -> Result<(), LabError> {
    let host = lab.host(request.host)?;
    match request.verb {
        Verb::Kill => host.kill(),
        Verb::Hang => host.hang(),
        Verb::Wake => host.wake(),
        Verb::Start => host.start().and_then(|()| host.wait_ready(READY_BOUND)),
        Verb::Carrier { net, up } => host.set_carrier(net.into(), up),
        Verb::Plug { net, plugged } => host.set_plugged(net.into(), plugged),
        Verb::Cut { net, way } => host.cut(net.into(), way),
        Verb::Shape { net, way, delay_ms, jitter_ms, loss_percent } => {
            host.shape(net.into(), way, Shape { delay_ms, jitter_ms, loss_percent })
        }
        Verb::Heal { net } => host.heal(net.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_lab_a_verb_is_told_how_to_start_one() {
        let runs = tempfile::tempdir().expect("a directory");
        let request = Request { host: 1, verb: Verb::Kill };
        assert!(ask(runs.path(), request).expect_err("no lab").to_string().contains("no lab is up; start one: lockstep-lab up"));

        // What a keeper leaves that was killed.
        let run = runs.path().join(NAME);
        fs::create_dir_all(&run).expect("a run");
        let gone = State { keeper: 1, switch: "/proc/0/fd/3".into(), clients: "/proc/0/fd/4".into(), hosts: 2 };
        fs::write(run.join("state.json"), serde_json::to_string(&gone).expect("a state")).expect("written");
        assert!(ask(runs.path(), request).expect_err("no lab").to_string().contains("no lab is up; start one: lockstep-lab up"));
    }
}
