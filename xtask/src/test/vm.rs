//! The laboratory's tests that run in a VM: one boot per kernel, one job per
//! test binary.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::lab::{Binary, tests_dir};
use super::tally::Tally;
use crate::kernels;
use crate::shell::step;
use crate::vm::{Job, Vm, quoted, show};
use crate::workspace;

/// What one binary may take.
const LIMIT: Duration = Duration::from_secs(15 * 60);
/// What one binary may take with the whole matrix.
const FULL_LIMIT: Duration = Duration::from_secs(120 * 60);

/// Runs the binaries on a kernel; what goes wrong is counted as failed.
pub fn run(
    tally: &mut Tally,
    kernel: &str,
    binaries: &[&Binary],
    filter: Option<&str>,
    environment: &[(&'static str, String)],
) {
    if let Err(error) = boot_and_run(tally, kernel, binaries, filter, environment) {
        tally.fail(&format!("VM with kernel {kernel}: {error:#}"));
    }
}

fn boot_and_run(
    tally: &mut Tally,
    kernel: &str,
    binaries: &[&Binary],
    filter: Option<&str>,
    environment: &[(&'static str, String)],
) -> Result<()> {
    let kernel = kernels::get(kernel)?;
    step(&format!("VM with kernel {}", kernel.release));
    let full = environment
        .iter()
        .any(|(name, _)| *name == super::lab::FULL);
    let limit = if full { FULL_LIMIT } else { LIMIT };
    let jobs: Vec<_> = binaries
        .iter()
        .map(|binary| job(binary, filter, limit))
        .collect();
    let mut vm = Vm::boot(&kernel, &jobs, environment)?;
    for job in &jobs {
        let mut shown = 0;
        let outcome = vm.wait_for(&job.name, |output| shown = show(output, shown))?;
        show(&outcome.output, shown);
        let runner = format!("{} (kernel {})", outcome.name, kernel.name);
        tally.add(&runner, &outcome.output, outcome.code == Some(0));
        let seconds = outcome.took.as_secs();
        step(&format!("{runner}: {}, {seconds} s", status(outcome.code)));
    }
    let skips = fs::read_to_string(vm.dir().join("skips")).unwrap_or_default();
    tally.add_skips(&format!("kernel {}", kernel.name), &skips);
    keep_results(&vm.dir().join("results"))?;
    vm.finish()
}

/// Adds what the guest recorded to what is kept of all runs.
fn keep_results(recorded: &Path) -> Result<()> {
    let Ok(lines) = fs::read(recorded) else {
        return Ok(());
    };
    let path = workspace::results();
    let file = OpenOptions::new().create(true).append(true).open(&path);
    file.and_then(|mut file| file.write_all(&lines))
        .with_context(|| path.display().to_string())
}

/// One test at a time: helper registrations are global to a kernel.
fn job(binary: &Binary, filter: Option<&str>, limit: Duration) -> Job {
    let dir = quoted(&tests_dir().display().to_string());
    let path = quoted(&binary.path.display().to_string());
    let filter = binary.filter(filter).map(quoted).unwrap_or_default();
    Job {
        name: binary.name.clone(),
        limit,
        command: format!("cd {dir} && exec {path} --test-threads=1 {filter}"),
    }
}

/// How a job ended, in words.
pub fn status(code: Option<i32>) -> String {
    match code {
        Some(0) => "passed".to_owned(),
        Some(124 | 137) => "out of time".to_owned(),
        Some(code) => format!("exit status {code}"),
        None => "lost with the VM".to_owned(),
    }
}
