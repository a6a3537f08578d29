//! The command line.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use crate::{bench, deb, demo, fuzz, sanitize, soak, test, vm};

/// Tasks of this repository.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
pub struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Show the programs at work with a real FTP server and client.
    Demo(DemoArgs),
    /// Run every check and test; the last line sums them up.
    Test(TestArgs),
    /// Run fuzz targets, with the nightly toolchain.
    Fuzz(FuzzArgs),
    /// Measure the programs next to conntrackd, nft and the kernel's helper.
    Bench(BenchArgs),
    /// Build the Debian package; the last line is its path.
    Deb(DebArgs),
    /// Run unit tests under AddressSanitizer, ThreadSanitizer and Miri, with nightly.
    Sanitize,
    /// Churn, FTP sessions and faults for a while.
    Soak(SoakArgs),
    /// Run one shell command in a VM, as root, this workspace in sight.
    Vm(VmArgs),
}

/// Options of `demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// In a VM, even if this kernel could do it.
    #[arg(long)]
    pub vm: bool,
    /// Kernel of the VM.
    #[arg(long, default_value = "6.1")]
    pub kernel: String,
    /// Only the failover, and with this instead of our programs.
    #[arg(long, value_name = "PROGRAM")]
    pub with: Option<Rival>,
}

/// Other software for the same job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Rival {
    /// conntrackd with its own FTP helper; Debian's package is installed.
    Conntrackd,
}

/// Options of `test`.
#[derive(Debug, Args)]
pub struct TestArgs {
    /// Every kernel and the whole matrix, not the subset that CI runs.
    #[arg(long)]
    pub full: bool,
    /// Only the tests that run in the VM.
    #[arg(long, conflicts_with_all = ["native", "no_vm"])]
    pub vm: bool,
    /// Only the tests that run in namespaces of this kernel.
    #[arg(long, conflicts_with = "no_vm")]
    pub native: bool,
    /// Everything but the VM.
    #[arg(long)]
    pub no_vm: bool,
    /// Kernels of the VM (6.1, 6.12, newest); all with --full, else 6.1.
    #[arg(long)]
    pub kernel: Vec<String>,
    /// Only tests whose name, or test binary's name, contains this; no other
    /// checks.
    pub filter: Option<String>,
}

/// Options of `fuzz`.
#[derive(Debug, Args)]
pub struct FuzzArgs {
    /// Which target; all of them, one after the other, if none is given.
    pub target: Option<String>,
    /// How long to run each.
    #[arg(long, default_value_t = 900)]
    pub seconds: u64,
    /// Write the inputs worth keeping to fuzz/corpus.
    #[arg(long)]
    pub keep: bool,
}

/// Options of `bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// One round, smaller tables and shorter measurements: everything in less
    /// than 3 minutes, building not included.
    #[arg(long)]
    pub quick: bool,
    /// Write the results to a file, too, as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Put the table into docs/performance.md.
    #[arg(long, conflicts_with = "filter")]
    pub docs: bool,
    /// Rounds instead of 5 (1 with --quick).
    #[arg(long)]
    pub rounds: Option<usize>,
    /// Count instructions with callgrind instead, and compare them with
    /// benches/baseline.json; exit status 1 if one is exceeded.
    #[arg(long)]
    pub check: bool,
    /// Count instructions and write benches/baseline.json.
    #[arg(long, conflicts_with = "check")]
    pub record: bool,
    /// Sample the processors meanwhile, and say where each program spends
    /// its time, in the VM too. It slows everything down.
    #[arg(long, conflicts_with_all = ["docs", "check", "record"])]
    pub profile: bool,
    /// Compare with this other build of nft-ftp-helper, too.
    #[arg(long, value_name = "PROGRAM")]
    pub before: Option<PathBuf>,
    /// Only groups whose name contains this: ruleset, ctsync-latency,
    /// ctsync-burst, ctsync-rejoin, ctsync-takeover, ctsync-churn, traffic,
    /// helper.
    pub filter: Option<String>,
}

/// Options of `deb`.
#[derive(Debug, Args)]
pub struct DebArgs {
    /// From programs of the debug profile: quicker, for tests.
    #[arg(long)]
    pub debug: bool,
}

/// Options of `soak`.
#[derive(Debug, Args)]
pub struct SoakArgs {
    /// How long.
    #[arg(long, default_value_t = 30)]
    pub minutes: u64,
}

/// Options of `vm`.
#[derive(Debug, Args)]
pub struct VmArgs {
    /// Kernel of the VM (6.1, 6.12, newest).
    #[arg(long, default_value = "6.1")]
    pub kernel: String,
    /// Seconds the command may take.
    #[arg(long, default_value_t = 600)]
    pub limit: u64,
    /// For sh(1), in the root of the workspace.
    pub command: String,
}

/// Carries out what was asked for.
pub fn run(cli: &Cli) -> Result<ExitCode> {
    match &cli.task {
        Task::Demo(args) => demo::run(args),
        Task::Test(args) => test::run(args),
        Task::Fuzz(args) => fuzz::run(args),
        Task::Bench(args) => bench::run(args),
        Task::Deb(args) => deb::run(args),
        Task::Sanitize => sanitize::run(),
        Task::Soak(args) => soak::run(args),
        Task::Vm(args) => vm::run(args),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
