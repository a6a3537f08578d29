//! Measures the programs of this workspace next to conntrackd, nft and the
//! kernel's own helper, in turns, and next to minimal loops of our own on the
//! same kernel interface. `cargo xtask bench` runs it.

mod book;
mod contender;
mod helper;
mod link;
mod load;
mod process;
mod ruleset;
mod sync;
mod traffic;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};

use book::Book;

#[derive(Debug, Parser)]
#[command(name = "bench")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// What runs in namespaces of this kernel.
    Native(Options),
    /// What needs a kernel with userspace helpers.
    Helper(Options),
    /// Puts the results of several runs together and prints the table.
    Report(Report),
    /// Puts connections into the kernel of this namespace, or deletes them.
    Inject(load::Inject),
    /// Runs a command in a namespace of its own; nanoseconds and peak KiB.
    #[command(hide = true)]
    Measure { command: Vec<String> },
}

/// What a run is told.
#[derive(Debug, Args)]
struct Options {
    /// Fewer rounds, smaller tables.
    #[arg(long)]
    quick: bool,
    /// Rounds instead of 5 (2 with --quick).
    #[arg(long)]
    rounds: Option<usize>,
    /// Where the results go.
    #[arg(long)]
    out: PathBuf,
    /// Only groups whose name contains this.
    filter: Option<String>,
}

#[derive(Debug, Args)]
struct Report {
    /// Where the results go, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Results of runs.
    results: Vec<PathBuf>,
}

/// A group of measurements.
struct Group {
    name: &'static str,
    run: fn(&Plan, &mut Book) -> Result<()>,
}

const NATIVE: &[Group] = &[
    Group {
        name: "ruleset",
        run: ruleset::run,
    },
    Group {
        name: "ctsync-latency",
        run: sync::latency::run,
    },
    Group {
        name: "ctsync-burst",
        run: sync::burst::run,
    },
    Group {
        name: "ctsync-rejoin",
        run: sync::rejoin::run,
    },
    Group {
        name: "ctsync-takeover",
        run: sync::takeover::run,
    },
    Group {
        name: "ctsync-churn",
        run: sync::churn::run,
    },
    Group {
        name: "traffic",
        run: traffic::run,
    },
];

const HELPER: &[Group] = &[Group {
    name: "helper",
    run: helper::run,
}];

/// How much is done.
struct Plan {
    quick: bool,
    rounds: usize,
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    match cli.task {
        Task::Native(options) => {
            let _limits = link::TableLimits::raise()?;
            groups(NATIVE, &options)
        }
        Task::Helper(options) => groups(HELPER, &options),
        Task::Report(report) => self::report(&report),
        Task::Inject(inject) => load::inject(&inject),
        Task::Measure { command } => ruleset::measure(&command),
    }
}

fn groups(all: &[Group], options: &Options) -> Result<()> {
    let plan = Plan {
        quick: options.quick,
        rounds: options.rounds.unwrap_or(if options.quick { 2 } else { 5 }),
    };
    let mut book = Book::default();
    for group in all {
        let wanted = options.filter.as_deref().unwrap_or_default();
        if group.name.contains(wanted) {
            eprintln!("==> {}", group.name);
            (group.run)(&plan, &mut book).with_context(|| group.name)?;
            // After each: a run that is broken off leaves what it has.
            book.write(&options.out)?;
        }
    }
    Ok(())
}

fn report(report: &Report) -> Result<()> {
    let mut book = Book::default();
    for path in report.results.iter().filter(|path| path.exists()) {
        book.append(Book::read(path)?);
    }
    print!("{}", book.table());
    report.json.as_deref().map_or(Ok(()), |path: &Path| {
        book.write(path).with_context(|| path.display().to_string())
    })
}
