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
    /// Is the least helper there can be.
    #[command(hide = true)]
    Accept,
    /// Runs a command in a namespace of its own; nanoseconds and peak KiB.
    #[command(hide = true)]
    Measure { command: Vec<String> },
}

/// What a run is told.
#[derive(Debug, Args)]
struct Options {
    /// One round, smaller tables, shorter measurements.
    #[arg(long)]
    quick: bool,
    /// Rounds instead of 5 (1 with --quick).
    #[arg(long)]
    rounds: Option<usize>,
    /// Where the results go.
    #[arg(long)]
    out: PathBuf,
    /// Another nft-ftp-helper to compare ours with.
    #[arg(long, value_name = "PROGRAM")]
    before: Option<PathBuf>,
    /// Only groups whose name contains this.
    filter: Option<String>,
}

#[derive(Debug, Args)]
struct Report {
    /// Where the results go, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// A document whose table is replaced.
    #[arg(long)]
    docs: Option<PathBuf>,
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
    before: Option<PathBuf>,
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
        Task::Accept => helper::least::run(),
        Task::Measure { command } => ruleset::measure(&command),
    }
}

fn groups(all: &[Group], options: &Options) -> Result<()> {
    let plan = Plan {
        quick: options.quick,
        rounds: options.rounds.unwrap_or(if options.quick { 1 } else { 5 }),
        before: options.before.clone(),
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
    if let Some(path) = &report.json {
        book.write(path)?;
    }
    report.docs.as_deref().map_or(Ok(()), |path| {
        refresh(path, &book.table()).with_context(|| path.display().to_string())
    })
}

/// Puts the table between the two marks.
fn refresh(path: &Path, table: &str) -> Result<()> {
    let text = std::fs::read_to_string(path)?;
    let parts = text
        .split_once(BEGIN)
        .and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let (before, after) = parts.context("no marks around a table")?;
    let text = format!("{before}{BEGIN}\n```text\n{table}```\n{END}{after}");
    Ok(std::fs::write(path, text)?)
}

const BEGIN: &str = "<!-- the table of `cargo xtask bench --docs` -->";
const END: &str = "<!-- end of the table -->";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_table_of_a_document_is_replaced() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = format!("before\n{BEGIN}\nold\n{END}\nafter\n");
        std::fs::write(file.path(), text).unwrap();
        refresh(file.path(), "new\n").unwrap();
        let text = std::fs::read_to_string(file.path()).unwrap();
        let wanted = format!("before\n{BEGIN}\n```text\nnew\n```\n{END}\nafter\n");
        assert_eq!(text, wanted);
        std::fs::write(file.path(), "no marks").unwrap();
        assert!(refresh(file.path(), "new\n").is_err());
    }
}
