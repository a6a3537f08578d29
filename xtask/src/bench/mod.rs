//! `cargo xtask bench`: measures the programs next to conntrackd, nft and the
//! kernel's helper. The measuring itself is the program `bench`; this builds
//! it, runs it here and in a VM, and puts the results together.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Result, bail};

use crate::cli::BenchArgs;
use crate::kernels;
use crate::shell::{cargo, command, is_root, output, run as run_command, step};
use crate::test::lab;
use crate::vm::{Job, Vm, quoted, show};
use crate::{deps, workspace};

mod count;
mod profile;

/// Programs that are measured, and what measures.
const PACKAGES: &[&str] = &["bench", "ctsync", "nft-ftp-helper", "nft-ftp-ruleset"];

/// What the VM's part may take, boot not included.
const LIMIT: Duration = Duration::from_secs(30 * 60);

/// Name of the group that runs in the VM.
const HELPER: &str = "helper";

/// Runs it; exit status 1 if a recorded count is exceeded.
pub fn run(args: &BenchArgs) -> Result<ExitCode> {
    if args.check || args.record {
        return count::run(args.record);
    }
    if !is_root() {
        bail!("network namespaces need root");
    }
    let vm = wanted(HELPER, args.filter.as_deref());
    deps::for_bench(vm)?;
    step("building with optimisation");
    let mut build = cargo(&["build", "--release", "--bins", "--locked"]);
    build.args(PACKAGES.iter().flat_map(|name| ["-p", name]));
    run_command(&mut build)?;
    let dir = workspace::target().join("bench");
    std::fs::create_dir_all(&dir)?;
    let (native, helper) = (dir.join("native.json"), dir.join("helper.json"));
    for old in [&native, &helper] {
        let _ = std::fs::remove_file(old);
    }
    if args.profile {
        deps::for_profile()?;
    }
    let samples = args.profile.then(|| dir.join("perf.data"));
    let mut profiles = Vec::new();
    if args.filter.as_deref() != Some(HELPER) {
        here(args, &native, samples.as_deref())?;
        if let Some(samples) = &samples {
            profiles.push(("here", output(&mut profile::text(samples))));
        }
    }
    if vm {
        profiles.extend(in_vm(args, &helper)?.map(|text| ("in the VM", Ok(text))));
    }
    let mut report = command(&program(), &["report"]);
    if let Some(json) = &args.json {
        report.arg("--json").arg(json);
    }
    if args.docs {
        let path = workspace::root().join("docs/performance.md");
        report.arg("--docs").arg(path);
    }
    run_command(report.args([&native, &helper]))?;
    for (place, text) in profiles {
        println!("\nSampled {place}");
        profile::print(&text?);
    }
    Ok(ExitCode::SUCCESS)
}

/// True if a group passes the filter.
fn wanted(group: &str, filter: Option<&str>) -> bool {
    filter.is_none_or(|filter| group.contains(filter))
}

fn release() -> PathBuf {
    workspace::target().join("release")
}

fn program() -> String {
    release().join("bench").display().to_string()
}

/// Arguments of `bench native` and `bench helper`.
fn options(task: &str, args: &BenchArgs, out: &Path) -> Vec<String> {
    let mut all = vec![task.to_owned(), "--out".into(), out.display().to_string()];
    if args.quick {
        all.push("--quick".into());
    }
    if let Some(rounds) = args.rounds {
        all.extend(["--rounds".into(), rounds.to_string()]);
    }
    if let Some(before) = &args.before {
        let before = std::path::absolute(before).unwrap_or_else(|_| before.clone());
        all.extend(["--before".into(), before.display().to_string()]);
    }
    all.extend(args.filter.clone());
    all
}

fn here(args: &BenchArgs, out: &Path, samples: Option<&Path>) -> Result<()> {
    let mut bench = match samples {
        Some(samples) => profile::sampled(&program(), samples),
        None => command(&program(), &[]),
    };
    bench
        .args(options("native", args, out))
        .env("LAB_BIN", release());
    run_command(&mut bench)
}

/// What was sampled there, if that was asked for.
fn in_vm(args: &BenchArgs, out: &Path) -> Result<Option<String>> {
    let mut environment = lab::environment(false)?;
    environment.retain(|(name, _)| *name != "LAB_BIN");
    environment.push(("LAB_BIN", release().display().to_string()));
    let kernel = kernels::get("6.1")?;
    step(&format!(
        "helpers in a VM with Debian's kernel {}; booting takes about 30 s",
        kernel.release
    ));
    // The guest can write nowhere else that lasts.
    let words = options("helper", args, Path::new("/tmp/helper.json"));
    let (mut bench, mut told) = (command(&program(), &[]), String::new());
    if args.profile {
        let samples = Path::new("/tmp/perf.data");
        bench = profile::sampled(&program(), samples);
        let text = line(&profile::text(samples));
        told = format!(" && {{ echo {MARK}; {text} || true; }}");
    }
    let job = Job {
        name: HELPER.to_owned(),
        limit: LIMIT,
        command: format!(
            "{} && echo {MARK} && cat /tmp/helper.json{told}",
            line(bench.args(words)),
        ),
    };
    let mut vm = Vm::boot(&kernel, &[job], &environment)?;
    let mut shown = 0;
    let outcome = vm.wait_for(HELPER, |output| {
        let end = output.find(MARK).unwrap_or(output.len());
        shown = show(output.get(..end).unwrap_or_default(), shown);
    })?;
    vm.finish()?;
    let mut parts = outcome.output.split(MARK).skip(1);
    match (outcome.code, parts.next()) {
        (Some(0), Some(json)) => std::fs::write(out, json)?,
        (code, _) => bail!("helpers in the VM: {code:?}\n{}", outcome.output),
    }
    Ok(parts.next().map(str::to_owned))
}

/// A command as a shell's line.
fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(|word| quoted(&word.to_string_lossy())).collect();
    words.join(" ")
}

/// Before the results in the VM's output, and before what was sampled.
const MARK: &str = "--- results";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_selects_groups_by_a_part_of_their_name() {
        assert!(wanted("helper", None));
        assert!(wanted("helper", Some("help")));
        assert!(!wanted("helper", Some("ctsync")));
    }
}
