//! `lockstep-bench`: measures every figure, prints the table, writes the report and the pictures.
//!
//! Exit status: 0 when everything was measured, whether or not the goals were reached; with `--strict` 2 when one was missed; 1 when something could not be
//! measured; 130 after Ctrl-C.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, ValueEnum};
use lockstep::demo::namespace;
use lockstep::signals;
use lockstep_bench::error::BenchError;
use lockstep_bench::report::Report;
use lockstep_bench::rig::Context;
use lockstep_bench::{answers, crash, disks, idle, pause, stream, throughput};

/// Measures what Lockstep costs, each figure beside a baseline of the same run.
#[derive(Debug, Parser)]
#[command(name = "lockstep-bench")]
struct Options {
    /// Fewer and shorter rounds
    #[arg(long)]
    quick: bool,
    /// Measure only this; repeat for more
    #[arg(long, value_enum, value_name = "NAME")]
    only: Vec<Figure>,
    /// Where the rows go as JSON [default: report.json in --out]
    #[arg(long, value_name = "PATH")]
    json: Option<PathBuf>,
    /// Folder for the pictures
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    out: PathBuf,
    /// The program under test [default: lockstep beside this program]
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
    /// Exit with 2 when a goal is missed
    #[arg(long)]
    strict: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Figure {
    Pause,
    Answers,
    Throughput,
    Idle,
    Stream,
    Disks,
    Crash,
}

type Measure = fn(&Context<'_>, &mut Report) -> Result<(), BenchError>;

impl Figure {
    fn measure(self) -> Measure {
        match self {
            Figure::Pause => pause::measure,
            Figure::Answers => answers::measure,
            Figure::Throughput => throughput::measure,
            Figure::Idle => idle::measure,
            Figure::Stream => stream::measure,
            Figure::Disks => disks::measure,
            Figure::Crash => crash::measure,
        }
    }
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<ExitCode, Box<dyn Error>> {
    // Before any thread is started.
    if !nix::unistd::geteuid().is_root() {
        namespace::become_root_of_user_namespace()?;
    }
    let cancelled = signals::shutdown_flag()?;
    let program = match &options.program {
        Some(program) => program.clone(),
        None => std::env::current_exe()?.with_file_name("lockstep"),
    };
    if !program.is_file() {
        return Err(BenchError::NoProgram { path: program }.into());
    }
    std::fs::create_dir_all(&options.out)?;
    let context = Context { program, quick: options.quick, out: options.out.clone(), cancelled };
    let mut report = Report::default();
    let mut failed = false;
    for figure in Figure::value_variants().iter().filter(|figure| options.only.is_empty() || options.only.contains(figure)) {
        let begin = Instant::now();
        eprintln!("{figure:?} ...");
        match figure.measure()(&context, &mut report) {
            Ok(()) => eprintln!("{figure:?} done in {:.1} s", begin.elapsed().as_secs_f64()),
            Err(error) if error.is_interrupt() => {
                eprintln!("interrupted");
                return Ok(ExitCode::from(130));
            }
            Err(error) => {
                eprintln!("error: {figure:?} could not be measured: {}", chain(&error));
                failed = true;
            }
        }
    }
    print!("{}", report.table());
    let json = options.json.clone().unwrap_or_else(|| options.out.join("report.json"));
    report.write(&json)?;
    eprintln!("written: {} and the pictures in {}", json.display(), options.out.display());
    Ok(match (failed, options.strict && !report.all_met()) {
        (true, _) => ExitCode::FAILURE,
        (false, true) => ExitCode::from(2),
        (false, false) => ExitCode::SUCCESS,
    })
}

/// An error with its causes that it does not name itself.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}
