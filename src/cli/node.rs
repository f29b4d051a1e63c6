//! `lockstep run` and `lockstep standby`: options and file to a configuration, then the node.

use super::{Failure, NodeArguments, code, start_log};
use crate::config::{Verb, file};
use crate::node::{self, Exit};
use crate::signals;

pub(super) fn run(arguments: NodeArguments, verb: Verb, abandon_standby: bool) -> Result<u8, Failure> {
    let usage = |error: Box<dyn std::error::Error>| Failure { code: code::USAGE, error };
    let options = match &arguments.config {
        Some(path) => arguments.options.or(file::read(path).map_err(|e| usage(e.into()))?),
        None => arguments.options,
    };
    start_log(options.log.as_deref())?;
    let config = options.resolve(verb).map_err(|e| usage(e.into()))?;
    let shutdown = signals::shutdown_flag().map_err(|e| Failure::new(code::FAILED, format!("cannot catch signals: {e}")))?;
    let exit = match verb {
        Verb::Run => node::run_primary(&config, abandon_standby, shutdown),
        Verb::Standby => node::run_standby(&config, shutdown),
    };
    match exit.map_err(|e| Failure::new(code::FAILED, e))? {
        Exit::GuestStopped { reason } => {
            tracing::info!(reason, "the guest has ended");
            Ok(code::OK)
        }
        Exit::Interrupted => {
            tracing::info!("told to stop");
            Ok(code::OK)
        }
        Exit::Fenced { reason } => {
            tracing::warn!(reason, "fenced: another node may run the guest, this one has stopped it");
            Ok(code::FENCED)
        }
        Exit::GaveUp { reason } => {
            tracing::error!(reason, "gave up: the standby takes over; mend this host and start it as the standby");
            Ok(code::FAILED)
        }
    }
}
