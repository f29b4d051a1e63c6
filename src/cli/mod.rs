//! The command line: verbs, and what each does with its typed input. Errors are printed with their whole chain; exit codes are in [`code`].

mod console;
mod demo;
mod node;

use std::error::Error;
use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::check::CheckOptions;
use crate::config::{NodeOptions, Verb, defaults};
use crate::demo::DemoOptions;

/// What the program's exit status says.
pub mod code {
    /// Done, or ended because it was told to.
    pub const OK: u8 = 0;
    /// Something failed; standard error says what and what to do.
    pub const FAILED: u8 = 1;
    /// The command line or the configuration is wrong.
    pub const USAGE: u8 = 2;
    /// The node lost the right to run the guest and stopped it.
    pub const FENCED: u8 = 3;
    /// `demo`: a promise was broken; `check`: this host cannot do it.
    pub const BROKEN: u8 = 4;
    /// `demo`: the run proved nothing.
    pub const PROVED_NOTHING: u8 = 5;
    /// `demo`: ended by Ctrl-C.
    pub const INTERRUPTED: u8 = 130;
}

const EXIT_CODES: &str = "Exit status: 0 done; 1 failed; 2 wrong command line or configuration; 3 fenced (another node runs the guest); \
4 a promise was broken (demo) or this host cannot do it (check); 5 the run proved nothing (demo); 130 interrupted (demo)";

/// A hypervisor that keeps a virtual machine running when the machine under it dies.
#[derive(Debug, Parser)]
#[command(name = "lockstep", version, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    verb: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a guest, protected by a standby when one is named
    #[command(after_help = concat!(
        "Examples:\n  lockstep run --net tap=tap0\n",
        "  lockstep run --net tap=tap0 --standby 10.78.0.2:7300 --arbiter file:/srv/shared/vm0\n",
        "  lockstep run --kernel vmlinuz --initramfs initrd.img --cmdline 'root=/dev/vda1 console=ttyS0' --memory 2G --vcpus 2 \\\n",
        "    --disk path=/srv/vm0.img --net tap=tap0 --cpu x86-64-v2 --console socket:/run/lockstep/vm0.console \\\n",
        "    --standby 10.78.0.2:7300 --arbiter file:/srv/shared/vm0\n",
        "  lockstep run --disk path=/dev/disk/by-id/wwn-0x600140512345,mode=shared --net tap=tap0 --standby 10.78.0.2:7300 --arbiter file:/srv/shared/vm0\n",
        "  lockstep run --config vm0.toml --events /run/lockstep/vm0.events\n\n",
        "Told to stop (SIGINT, SIGTERM), a primary ends its guest: the standby does not carry on. The power button of a guest with a --kernel is pressed\n",
        "first, and the guest has 60 s to shut itself down; told a second time, the primary stops it at once.\n",
        "Exit status: 0 the guest ended or the node was told to stop; 1 failed; 2 wrong command line or configuration; 3 fenced"
    ))]
    Run(RunArguments),
    /// Hold the copy of a guest that runs elsewhere, and carry on when its host dies
    #[command(after_help = concat!(
        "Examples:\n  lockstep standby --net tap=tap0 --listen 10.78.0.2:7300 --arbiter file:/srv/shared/vm0\n",
        "  lockstep standby --kernel vmlinuz --initramfs initrd.img --cmdline 'root=/dev/vda1 console=ttyS0' --memory 2G --vcpus 2 \\\n",
        "    --disk path=/srv/vm0.img --net tap=tap0 --cpu x86-64-v2 --console socket:/run/lockstep/vm0.console \\\n",
        "    --listen 10.78.0.2:7300 --arbiter file:/srv/shared/vm0\n\n",
        "A disk that this host has no copy of yet is given as an empty file of the same size (truncate -s): the primary fills it while the guest runs.\n",
        "The machine (memory, vCPUs, CPU model, bus, network ports, disks' sizes, kernel) must be described as on the primary.\n",
        "Exit status: 0 the guest ended or the node was told to stop; 1 failed; 2 wrong command line or configuration; 3 fenced"
    ))]
    Standby(NodeArguments),
    /// Sit at a guest's serial console
    #[command(after_help = concat!(
        "Examples:\n  lockstep run --console socket:/run/lockstep/vm0.console ...\n  lockstep console /run/lockstep/vm0.console\n",
        "  lockstep console --read-only /run/lockstep/vm0.console | tee boot.log\n\n",
        "The last 64 KiB are shown first. Several terminals may read; the one that connected last types. A standby's socket shows what is committed;\n",
        "after a failover the guest's console goes on there. Output appears when its epoch is committed, as all output does.\n",
        "What the guest writes reaches the terminal as it is: use it as you would a serial line to a machine you do not trust.\n",
        "Exit status: 0 left, or the node has ended; 1 there is no console; 2 wrong command line"
    ))]
    Console(console::ConsoleOptions),
    /// Say whether this host can run protected guests, and what to do if not
    #[command(
        after_help = "Examples:\n  lockstep check\n  lockstep check --disk /dev/disk/by-id/wwn-0x600140512345\n  lockstep check --json | jq '.items[] | select(.level == \"fail\")'\n\nExit status: 0 it can; 4 it cannot"
    )]
    Check(CheckOptions),
    /// Build two hosts on this machine, kill one, and prove that nothing was lost
    #[command(after_help = concat!(
        "Examples:\n  lockstep demo\n  lockstep demo --seconds 60 --memory 1G --vcpus 2 --clients 8 --dirty-rate 20000\n",
        "  lockstep demo --kill hang --seed 42 --json\n\n",
        "Exit status: 0 nothing was lost, broken or done twice; 1 the run could not be carried through; 2 wrong command line;\n",
        "4 a promise was broken; 5 the run proved nothing; 130 interrupted"
    ))]
    Demo(DemoOptions),
}

/// Options of a node with the file they may also come from.
#[derive(Debug, Args)]
struct NodeArguments {
    /// Read options from a TOML file; the same names as here, and what is given here wins
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    options: NodeOptions,
}

/// Options of a primary: those of a node, and what must never stay set in a file.
#[derive(Debug, Args)]
struct RunArguments {
    #[command(flatten)]
    node: NodeArguments,
    /// Start although the arbiter's record names another owner or a standby, giving up whatever guest they hold. Only when you know that neither runs
    #[arg(long, help_heading = "Replication")]
    abandon_standby: bool,
}

/// An error with the exit status it stands for.
struct Failure {
    code: u8,
    error: Box<dyn Error>,
}

impl Failure {
    fn new(code: u8, error: impl Into<Box<dyn Error>>) -> Failure {
        Failure { code, error: error.into() }
    }
}

/// Runs the program with the arguments of the process.
#[must_use]
pub fn main() -> ExitCode {
    let result = match Cli::parse().verb {
        Command::Run(arguments) => node::run(arguments.node, Verb::Run, arguments.abandon_standby),
        Command::Standby(arguments) => node::run(arguments, Verb::Standby, false),
        Command::Console(options) => console::run(&options),
        Command::Check(options) => check(&options),
        Command::Demo(options) => demo::run(&options),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            eprint!("{}", chain(failure.error.as_ref()));
            ExitCode::from(failure.code)
        }
    }
}

/// An error and everything that caused it, one line each; a cause that its parent already tells is left out.
fn chain(error: &dyn Error) -> String {
    let mut text = format!("error: {error}\n");
    let (mut told, mut cause) = (error.to_string(), error.source());
    while let Some(error) = cause {
        let this = error.to_string();
        if !told.contains(&this) {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "  because: {}", this.trim_end().replace('\n', "\n    "));
        }
        told = this;
        cause = error.source();
    }
    text
}

/// Prints to standard output and makes sure that it arrived.
fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|e| Failure::new(code::FAILED, format!("cannot write to standard output: {e}; nothing more is lost than this text")))
}

/// A log filter as it is written after `--log`.
fn log_filter(filter: &str) -> Result<EnvFilter, Failure> {
    EnvFilter::try_new(filter)
        .map_err(|e| Failure::new(code::USAGE, format!("--log {filter}: {e}; write for example info or primary=debug,info")))
}

/// Logs to standard error, filtered.
fn start_log(filter: Option<&str>) -> Result<(), Failure> {
    tracing_subscriber::fmt()
        .with_env_filter(log_filter(filter.unwrap_or(defaults::LOG))?)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .try_init()
        .map_err(|e| Failure::new(code::FAILED, format!("cannot start logging: {e}")))
}

fn check(options: &CheckOptions) -> Result<u8, Failure> {
    let report = crate::check::run(&options.disk);
    let text = if options.json {
        let json = serde_json::to_string_pretty(&report).map_err(|e| Failure::new(code::FAILED, e))?;
        format!("{json}\n")
    } else {
        report.to_string()
    };
    print(&text)?;
    Ok(if report.able { code::OK } else { code::BROKEN })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn every_verb_shows_an_example() {
        use clap::CommandFactory;
        for verb in Cli::command().get_subcommands_mut() {
            let help = verb.render_long_help().to_string();
            assert!(help.contains("Example") && help.contains("Exit status"), "{help}");
        }
    }

    #[test]
    fn an_error_is_told_with_its_causes_and_none_of_them_twice() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot start: {0}")]
        struct Outer(#[source] std::io::Error);
        let text = chain(&Outer(std::io::Error::other("no memory")));
        assert_eq!(text, "error: cannot start: no memory\n");

        #[derive(Debug, thiserror::Error)]
        #[error("cannot start")]
        struct Terse(#[source] std::io::Error);
        let text = chain(&Terse(std::io::Error::other("no memory")));
        assert_eq!(text, "error: cannot start\n  because: no memory\n");
    }
}
