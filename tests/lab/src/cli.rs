//! The command line: an interactive lab, and the suite.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::{ArgAction, Args, Parser, Subcommand};
use lockstep::demo::world::GUEST_ADDRESS;
use lockstep_lab::agent::Agent;
use lockstep_lab::control::{self, NetName, Request, State, Verb};
use lockstep_lab::error::chain;
use lockstep_lab::fault::Way;
use lockstep_lab::host::SOFT_ROCE;
use lockstep_lab::prepare::kernel::Series;
use lockstep_lab::run_dir::{Identity, clean_stale, remove_all};
use lockstep_lab::scenario::reservations;
use lockstep_lab::scenario::suite::{self, SuiteOptions, Verdict};
use lockstep_lab::{HostOptions, Lab, LabError, LabOptions, Net, Paths, lab, net, prepare, storage};

const ABOUT: &str =
    "Two or three hosts under emulation, with stock Debian kernels, KVM and a stock Debian guest: to try and to break Lockstep on";
const EXAMPLES: &str = "\
A first lab:
  lockstep-lab up                       two hosts (h1, h2), ready in some 5 s (the first time ever: some minutes, to fetch and prepare things)
  lockstep-lab put target/debug/lockstep   into /shared of all hosts (up does it by itself with the lockstep beside it)
  lockstep-lab exec h1 -- /shared/lockstep check
  lockstep-lab exec h1 --timeout 60 -- /shared/lockstep run --net tap=tap0 --kernel /shared/guest/vmlinux --initramfs /shared/guest/initramfs \\
      --memory 256M --cmdline \"'console=ttyS0 lab.ip=10.77.0.10/24 lab.root=/dev/vda lab.services=redis,sqlite'\"
  lockstep-lab guest -- dmesg           a command in the stock guest
  lockstep-lab client -- redis-cli -h 10.77.0.10 ping     a command of this machine in the client network (10.77.0.1)
  lockstep-lab kill h1 ; lockstep-lab start h1
  lockstep-lab up --storage             a third host (h3) whose disk h1 and h2 have by iSCSI as /dev/lun0, with persistent reservations:
                                        --disk path=/dev/lun0,mode=shared
  lockstep-lab down

In a host: / is this machine's / (read-only, under an overlay in memory), /shared is one folder for all, /shared/guest has the stock guest's vmlinux,
vmlinuz and initramfs, /dev/vda is the host's copy of the guest's root disk (ext4), /data its own file system (both outlive the host), /arbiter a folder for all hosts whose locks
hold between them (for --arbiter file:/arbiter/vm; those of /shared do not), tap0 is for the
guest (in br0 with eth2, the client network), eth1 is the replication network: h1 is 10.78.0.1, h2 10.78.0.2. br0 has no address.
The guest's kernel command line: lab.ip=ADDRESS/PREFIX, lab.root=DEVICE (without: it stays in the initramfs), lab.services=redis,sqlite, lab.stamp=MIB.";

/// Exit status of a wrong command line: clap's own.
const USAGE: u8 = 2;
/// Exit status of a suite that found nothing wrong and could not run everything either.
const NOT_PROVED: u8 = 3;
/// Beyond it no bound on silence holds: a card is better cut.
const LONGEST_DELAY_MS: f64 = 60_000.0;

#[derive(Debug, Parser)]
#[command(name = "lockstep-lab", about = ABOUT, after_long_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    verb: Cmd,
}

#[derive(Debug, Args, Clone, Copy)]
struct Kernels {
    /// Kernel of the hosts
    #[arg(long, value_enum, default_value_t = Series::V6_12)]
    host_kernel: Series,
    /// Kernel of the stock guest
    #[arg(long, value_enum, default_value_t = Series::V6_12)]
    guest_kernel: Series,
}

#[derive(Debug, Args, Clone, Copy)]
struct UpOptions {
    /// How many hosts
    #[arg(default_value_t = 2)]
    hosts: u8,
    /// One more host, the last, whose disks the others have as /dev/lun0 (the guest's root) and /dev/lun1 by iSCSI, with reservations
    #[arg(long)]
    storage: bool,
    #[command(flatten)]
    kernels: Kernels,
    /// Memory of each host, MiB
    #[arg(long, default_value_t = 1024)]
    memory: u32,
    /// Virtual CPUs of each host
    #[arg(long, default_value_t = 1)]
    cpus: u8,
}

#[derive(Debug, Subcommand)]
enum Cmd {
    /// Fetch and prepare everything that a lab is made of
    Prepare {
        #[command(flatten)]
        kernels: Kernels,
        /// Take the newest kernels that Debian has, not those in the cache
        #[arg(long)]
        refresh: bool,
    },
    /// Start a lab and keep it up in the background
    Up(UpOptions),
    #[command(hide = true)]
    Keep(UpOptions),
    /// Run a command in a host; its output and exit status come back
    Exec {
        /// h1, h2 or h3
        #[arg(value_parser = host_number)]
        host: u8,
        /// Seconds it may take
        #[arg(long, default_value_t = 60)]
        timeout: u64,
        /// The command, for a shell
        #[arg(required = true, trailing_var_arg = true)]
        command: Vec<String>,
    },
    /// Give a host an RDMA device on the replication network, by soft RoCE (again after each start)
    SoftRoce {
        /// h1, h2 or h3
        #[arg(value_parser = host_number)]
        host: u8,
    },
    /// Run a command in the stock guest
    Guest {
        /// Seconds it may take
        #[arg(long, default_value_t = 60)]
        timeout: u64,
        /// The command, for a shell
        #[arg(required = true, trailing_var_arg = true)]
        command: Vec<String>,
    },
    /// What the stock guest's probes (memory stamps, clocks) have seen
    Probes,
    /// Run a command of this machine in the client network
    Client {
        /// The program and its arguments
        #[arg(required = true, trailing_var_arg = true)]
        command: Vec<String>,
    },
    /// Put files into /shared of all hosts
    Put {
        /// Files of this machine
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// The host dies (SIGKILL)
    Kill {
        /// h1, h2 or h3
        #[arg(value_parser = host_number)]
        host: u8,
    },
    /// The host stops in its tracks (SIGSTOP)
    Hang {
        /// h1, h2 or h3
        #[arg(value_parser = host_number)]
        host: u8,
    },
    /// A host that hangs goes on
    Wake {
        /// h1, h2 or h3
        #[arg(value_parser = host_number)]
        host: u8,
    },
    /// Start a dead host again, with the disks it had
    Start {
        /// h1, h2 or h3
        #[arg(value_parser = host_number)]
        host: u8,
    },
    /// Take a card's carrier away (off) or give it back (on)
    Carrier {
        /// h1, h2 or h3
        #[arg(value_parser = host_number)]
        host: u8,
        /// Which network
        net: NetName,
        /// on or off
        // Without the action a bool would be a flag, which takes no value.
        #[arg(value_parser = on_or_off, action = ArgAction::Set)]
        state: bool,
    },
    /// Take a card out of the switch silently (off) or put it back (on)
    Plug {
        /// h1, h2 or h3
        #[arg(value_parser = host_number)]
        host: u8,
        /// Which network
        net: NetName,
        /// on or off
        // Without the action a bool would be a flag, which takes no value.
        #[arg(value_parser = on_or_off, action = ArgAction::Set)]
        state: bool,
    },
    /// Cut a card silently in one direction or both; heal undoes it
    Cut {
        /// h1, h2 or h3
        #[arg(value_parser = host_number)]
        host: u8,
        /// Which network
        net: NetName,
        /// Which way
        #[arg(default_value = "both")]
        way: Way,
    },
    /// Delay and lose what a host sends, or what is sent to it; heal undoes it
    Delay {
        /// h1, h2 or h3
        #[arg(value_parser = host_number)]
        host: u8,
        /// Which network
        net: NetName,
        /// Milliseconds
        #[arg(value_parser = milliseconds, allow_negative_numbers = true)]
        delay: f64,
        /// Lost frames, per cent
        #[arg(default_value_t = 0.0, value_parser = per_cent, allow_negative_numbers = true)]
        loss: f64,
        /// Spread of the delay, milliseconds
        #[arg(long, default_value_t = 0.0, value_parser = milliseconds, allow_negative_numbers = true)]
        jitter: f64,
        /// Which way: from the host, to it, or both (each way has the whole delay)
        #[arg(long, default_value = "from")]
        way: Way,
    },
    /// Undo cut and delay
    Heal {
        /// h1, h2 or h3
        #[arg(value_parser = host_number)]
        host: u8,
        /// Which network
        net: NetName,
    },
    #[command(hide = true)]
    ShutOut { device: PathBuf },
    /// End the lab
    Down,
    /// Run the scenarios (LAB_FILTER=name,name picks some), write target/lab/report.json
    Test {
        /// Parts of the names of those to run, separated by commas [default: LAB_FILTER, or all]
        #[arg(long)]
        filter: Option<String>,
        /// Many more rounds
        #[arg(long)]
        soak: bool,
        /// Of all random choices
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// What all of them together may take, such as 15m; a scenario whose share is too small for its least number of rounds fails
        #[arg(long, value_parser = span, overrides_with = "budget")]
        budget: Option<Duration>,
        /// This many rounds of each, not the suite's
        #[arg(long)]
        rounds: Option<u32>,
        /// Keep the logs of scenarios that passed, too, in target/lab/logs
        #[arg(long)]
        keep_logs: bool,
    },
}

fn host_number(text: &str) -> Result<u8, String> {
    let number = text.strip_prefix('h').unwrap_or(text).parse::<u8>().map_err(|_| "h1, h2 or h3".to_owned())?;
    (1..=lab::MOST_HOSTS).contains(&number).then_some(number).ok_or_else(|| "h1, h2 or h3".to_owned())
}

/// `90s` or `15m`.
fn span(text: &str) -> Result<Duration, String> {
    let wrong = || "a number of seconds or minutes, such as 90s or 15m".to_owned();
    let (digits, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    match unit {
        "s" => Ok(Duration::from_secs(number)),
        "m" => number.checked_mul(60).map(Duration::from_secs).ok_or_else(wrong),
        _ => Err(wrong()),
    }
}

fn on_or_off(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("on or off".into()),
    }
}

/// A delay or its spread.
fn milliseconds(text: &str) -> Result<f64, String> {
    let within = |delay: &f64| (0.0..=LONGEST_DELAY_MS).contains(delay);
    text.parse().ok().filter(within).ok_or_else(|| format!("0 to {LONGEST_DELAY_MS} milliseconds"))
}

fn per_cent(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|part| (0.0..=100.0).contains(part)).ok_or_else(|| "0 to 100 per cent".to_owned())
}

pub fn main() -> ExitCode {
    match run(Cli::parse().verb) {
        Ok(code) => code,
        Err(error @ LabError::Usage(_)) => {
            eprintln!("error: {error}");
            ExitCode::from(USAGE)
        }
        Err(error) => {
            eprintln!("error: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn tell(text: &str) {
    eprintln!("{text}");
}

fn in_host(runs: &Path, host: u8, script: &str, timeout: u64) -> Result<ExitCode, LabError> {
    let state = control::state(runs)?;
    let Some(address) = net::address(Net::Management, host) else { return Ok(ExitCode::FAILURE) };
    remote(&state, |n| &n.switch, address, &format!("h{host}"), script, timeout)
}

fn run(verb: Cmd) -> Result<ExitCode, LabError> {
    let paths = Paths::find()?;
    let runs = paths.runs()?;
    let ask = |host: u8, verb: Verb| control::ask(&runs, Request { host, verb }).map(|()| ExitCode::SUCCESS);
    match verb {
        Cmd::Prepare { kernels, refresh } => {
            let prepared = prepare::prepare(&paths, kernels.host_kernel, kernels.guest_kernel, refresh, &tell)?;
            println!("{prepared:#?}");
            Ok(ExitCode::SUCCESS)
        }
        Cmd::Up(options) => up(&paths, options),
        Cmd::Keep(options) => keep(&paths, options),
        Cmd::Exec { host, timeout, command } => in_host(&runs, host, &command.join(" "), timeout),
        Cmd::SoftRoce { host } => in_host(&runs, host, SOFT_ROCE, 60),
        Cmd::Guest { timeout, command } => {
            remote(&control::state(&runs)?, |n| &n.clients, GUEST_ADDRESS, "the guest", &command.join(" "), timeout)
        }
        Cmd::Probes => {
            let network = control::network(&control::state(&runs)?)?;
            let agent = Agent { namespace: &network.clients, address: GUEST_ADDRESS, place: "the guest" };
            print!("{}", agent.status(Duration::from_secs(10))?);
            let (offset, trip) = agent.clock_offset_ns(Duration::from_secs(10))?;
            println!("clock_offset_us={}\nclock_uncertain_us={}", offset / 1000, trip / 2000);
            Ok(ExitCode::SUCCESS)
        }
        Cmd::Client { command } => client(&control::state(&runs)?, &command),
        Cmd::Put { files } => {
            control::state(&runs)?;
            for file in files {
                let name = file.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
                lab::share(&runs.join(control::NAME).join("shared"), &file, &name)?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Cmd::Kill { host } => ask(host, Verb::Kill),
        Cmd::Hang { host } => ask(host, Verb::Hang),
        Cmd::Wake { host } => ask(host, Verb::Wake),
        Cmd::Start { host } => ask(host, Verb::Start),
        Cmd::Carrier { host, net, state } => ask(host, Verb::Carrier { net, up: state }),
        Cmd::Plug { host, net, state } => ask(host, Verb::Plug { net, plugged: state }),
        Cmd::Cut { host, net, way } => ask(host, Verb::Cut { net, way }),
        Cmd::Delay { host, net, delay, loss, jitter, way } => {
            ask(host, Verb::Shape { net, way, delay_ms: delay, jitter_ms: jitter, loss_percent: loss })
        }
        Cmd::Heal { host, net } => ask(host, Verb::Heal { net }),
        Cmd::ShutOut { device } => Ok(reservations::shut_out(&device)),
        Cmd::Down => down(&paths),
        Cmd::Test { filter, soak, seed, budget, rounds, keep_logs } => {
            clean_up_when_interrupted()?;
            let filter = filter.or_else(|| std::env::var("LAB_FILTER").ok()).unwrap_or_default();
            Ok(match suite::run(&paths, &SuiteOptions { filter, soak, seed, budget, rounds, keep_logs }, &tell)? {
                Verdict::Passed => ExitCode::SUCCESS,
                Verdict::Found => ExitCode::FAILURE,
                Verdict::NotProved => ExitCode::from(NOT_PROVED),
            })
        }
    }
}

/// Ctrl-C ends everything that this process has started, then the process.
fn clean_up_when_interrupted() -> Result<(), LabError> {
    let end: &AtomicBool = lockstep::signals::shutdown_flag().map_err(LabError::io(|| "handle signals".into()))?;
    std::thread::spawn(move || {
        while !end.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(50));
        }
        eprintln!("interrupted");
        remove_all();
        std::process::exit(130);
    });
    Ok(())
}

/// Starts the keeper in the background and waits until its hosts are ready.
fn up(paths: &Paths, options: UpOptions) -> Result<ExitCode, LabError> {
    use std::os::unix::process::CommandExt;
    let runs = paths.runs()?;
    clean_stale(&runs)?;
    if let Ok(state) = control::state(&runs) {
        return Err(LabError::Found(format!("a lab is up already (process {}); lockstep-lab down ends it", state.keeper)));
    }
    let Kernels { host_kernel, guest_kernel } = options.kernels;
    // Here, where it can be watched; the keeper then finds it done.
    prepare::prepare(paths, host_kernel, guest_kernel, false, &tell)?;
    let log = paths.logs()?.join("up.log");
    let io = || LabError::io(|| format!("write {}", log.display()));
    let file = std::fs::File::create(&log).map_err(io())?;
    let program = std::env::current_exe().map_err(LabError::io(|| "find the running program".into()))?;
    let started = Instant::now();
    let mut keeper = Command::new(program);
    keeper.arg("keep").arg(options.hosts.to_string());
    keeper.args(["--host-kernel", host_kernel.name(), "--guest-kernel", guest_kernel.name()]);
    if options.storage {
        keeper.arg("--storage");
    }
    keeper.args(["--memory", &options.memory.to_string(), "--cpus", &options.cpus.to_string()]);
    keeper.stdin(Stdio::null()).stdout(file.try_clone().map_err(io())?).stderr(file).process_group(0);
    let mut child = keeper.spawn().map_err(LabError::io(|| "start the lab's keeper".into()))?;
    while control::state(&runs).is_err() {
        if let Ok(Some(_)) = child.try_wait() {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            return Err(LabError::Found(said.trim_start_matches("error: ").trim_end().to_owned()));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    println!(
        "{} hosts are up after {:.1} s. lockstep-lab --help says what can be done with them; lockstep-lab down ends them.",
        options.hosts + u8::from(options.storage),
        started.elapsed().as_secs_f64()
    );
    Ok(ExitCode::SUCCESS)
}

fn keep(paths: &Paths, options: UpOptions) -> Result<ExitCode, LabError> {
    let end: &AtomicBool = lockstep::signals::shutdown_flag().map_err(LabError::io(|| "handle signals".into()))?;
    // While hosts come up nothing looks at the flag.
    std::thread::spawn(move || {
        while !end.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(50));
        }
        std::thread::sleep(Duration::from_secs(10));
        remove_all();
        std::process::exit(1);
    });
    let prepared = prepare::prepare(paths, options.kernels.host_kernel, options.kernels.guest_kernel, false, &tell)?;
    let host = HostOptions { cpus: options.cpus, memory_mib: options.memory, ..HostOptions::default() };
    let lab = match options.storage {
        true => Lab::start_unlike(paths, prepared, control::NAME, &storage::with_target(options.hosts, host))?,
        false => Lab::start(paths, prepared, &LabOptions { name: control::NAME.into(), hosts: options.hosts, host })?,
    };
    if let Ok(lockstep) = paths.lockstep() {
        lab.share(&lockstep, "lockstep")?;
    }
    control::keep(lab, end)?;
    Ok(ExitCode::SUCCESS)
}

fn down(paths: &Paths) -> Result<ExitCode, LabError> {
    let runs = paths.runs()?;
    let state = control::state(&runs)?;
    let Some(keeper) = Identity::of(state.keeper) else {
        clean_stale(&runs)?;
        return Ok(ExitCode::SUCCESS);
    };
    let pid = nix::unistd::Pid::from_raw(state.keeper);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)
        .map_err(|errno| LabError::Io { what: format!("end process {pid}"), source: errno.into() })?;
    let bound = Duration::from_secs(20);
    let deadline = Instant::now() + bound;
    while keeper.is_alive() {
        if Instant::now() >= deadline {
            return Err(LabError::Late { what: "the lab's end".into(), bound, detail: String::new() });
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(ExitCode::SUCCESS)
}

fn remote(
    state: &State,
    place: fn(&net::Network) -> &lockstep::demo::namespace::Namespace,
    address: std::net::IpAddr,
    name: &str,
    script: &str,
    seconds: u64,
) -> Result<ExitCode, LabError> {
    let network = control::network(state)?;
    let agent = Agent { namespace: place(&network), address, place: name };
    let status = agent.stream(script, &[], Duration::from_secs(seconds), |kind, bytes| {
        // Whoever reads may have gone; the command runs to its end all the same.
        let _ = if kind == 1 {
            std::io::stdout().write_all(bytes).and_then(|()| std::io::stdout().flush())
        } else {
            std::io::stderr().write_all(bytes)
        };
    })?;
    if status == "timeout" {
        eprintln!("error: it took longer than {seconds} s (--timeout)");
    }
    Ok(ExitCode::from(status.parse::<u8>().unwrap_or(124)))
}

fn client(state: &State, command: &[String]) -> Result<ExitCode, LabError> {
    let network = control::network(state)?;
    let [program, arguments @ ..] = command else { return Ok(ExitCode::FAILURE) };
    let mut child = network.clients.spawn(Command::new(program).args(arguments))?;
    let status = child.wait().map_err(LabError::io(|| format!("wait for {program}")))?;
    Ok(ExitCode::from(status.code().and_then(|c| u8::try_from(c).ok()).unwrap_or(1)))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parsed(line: &str) -> Result<Cmd, clap::Error> {
        Cli::try_parse_from(["lockstep-lab"].into_iter().chain(line.split(' '))).map(|cli| cli.verb)
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_card_is_switched_on_and_off_by_word() {
        for (line, wanted) in [("carrier h1 replication off", false), ("carrier h1 replication on", true)] {
            assert!(matches!(parsed(line), Ok(Cmd::Carrier { host: 1, net: NetName::Replication, state }) if state == wanted), "{line}");
        }
        for (line, wanted) in [("plug 2 clients off", false), ("plug 2 clients on", true)] {
            assert!(matches!(parsed(line), Ok(Cmd::Plug { host: 2, net: NetName::Clients, state }) if state == wanted), "{line}");
        }
        assert!(parsed("carrier h1 replication maybe").is_err());
    }

    #[test]
    fn a_delay_or_loss_that_cannot_be_is_a_wrong_command_line() {
        assert!(matches!(parsed("delay h1 replication 5 0.5 --jitter 1 --way both"), Ok(Cmd::Delay { way: Way::Both, .. })));
        assert!(matches!(parsed("delay h1 clients 5"), Ok(Cmd::Delay { way: Way::From, .. })));
        for (line, told) in [
            ("delay h1 replication 5 200", "0 to 100 per cent"),
            ("delay h1 replication 5 -1", "0 to 100 per cent"),
            ("delay h1 replication 5 nan", "0 to 100 per cent"),
            ("delay h1 replication -5", "milliseconds"),
            ("delay h1 replication inf", "milliseconds"),
            ("delay h1 replication 5 --jitter -2", "milliseconds"),
        ] {
            let error = parsed(line).expect_err(line);
            assert!(error.to_string().contains(told), "{line}: {error}");
            assert_eq!(error.exit_code(), i32::from(USAGE), "{line}");
        }
    }
}
