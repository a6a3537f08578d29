//! `cargo xtask fuzz`: runs fuzz targets with the nightly toolchain.
//!
//! New inputs collect in `fuzz/target/corpus`; `--keep` writes the smallest
//! set that covers the same code to `fuzz/corpus`, which is committed and
//! which `cargo test -p fuzz-entry` replays on any toolchain.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::cli::FuzzArgs;
use crate::shell::{command, output, run as must, step, succeeds};
use crate::workspace;

/// Longest input; what is longer in reality is as long as a datagram or has
/// the same parts more often.
const MAX_LEN: &str = "-max_len=4096";

/// Runs one target, or each in turn. A finding ends the run; its input is in
/// `fuzz/artifacts`.
pub fn run(args: &FuzzArgs) -> Result<ExitCode> {
    install()?;
    let all = targets()?;
    let chosen = match &args.target {
        Some(name) if all.contains(name) => vec![name.clone()],
        Some(name) => bail!("no target {name:?}; there are {}", all.join(", ")),
        None => all,
    };
    for target in &chosen {
        step(&format!("fuzzing {target} for {} s", args.seconds));
        fuzz(target, args)?;
        if args.keep {
            keep(target)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn install() -> Result<()> {
    if !succeeds(&mut command("cargo", &["+nightly", "--version"])) {
        bail!("needs the nightly toolchain: rustup toolchain install nightly");
    }
    if succeeds(&mut command("cargo", &["fuzz", "--version"])) {
        return Ok(());
    }
    step("installing cargo-fuzz");
    must(&mut command(
        "cargo",
        &["install", "cargo-fuzz", "--locked"],
    ))
}

fn targets() -> Result<Vec<String>> {
    let list = output(&mut cargo_fuzz(&["list"]))?;
    let mut names: Vec<_> = list.lines().map(str::to_owned).collect();
    names.sort();
    Ok(names)
}

fn cargo_fuzz(args: &[&str]) -> Command {
    let mut cargo = command("nice", &["-n", "15", "cargo", "+nightly", "fuzz"]);
    cargo.args(args).current_dir(workspace::root());
    // What started us has set these for another toolchain.
    for name in ["RUSTUP_TOOLCHAIN", "CARGO", "RUSTC"] {
        cargo.env_remove(name);
    }
    cargo
}

fn fuzz(target: &str, args: &FuzzArgs) -> Result<()> {
    let (work, committed) = (work(target), committed(target));
    for directory in [&work, &committed] {
        fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    }
    let seeds = work.with_extension("seeds");
    must(&mut seed(target, &seeds))?;
    let mut fuzz = cargo_fuzz(&["run", target]);
    fuzz.args([&work, &committed, &seeds]);
    fuzz.args(["--", MAX_LEN, "-timeout=20", "-rss_limit_mb=4096"]);
    fuzz.arg("-print_final_stats=1");
    fuzz.arg(format!("-max_total_time={}", args.seconds));
    if let Some(words) = dictionary(target) {
        fuzz.arg(format!("-dict={}", words.display()));
    }
    must(&mut fuzz)
}

fn seed(target: &str, directory: &Path) -> Command {
    let run = ["run", "-q", "-p", "fuzz-entry", "--example", "seeds", "--"];
    let mut cargo = crate::shell::cargo(&run);
    cargo.arg(target).arg(directory);
    cargo
}

/// The smallest set of inputs that covers what all of them do.
fn keep(target: &str) -> Result<()> {
    let committed = committed(target);
    let old = work(target).with_extension("old");
    let _ = fs::remove_dir_all(&old);
    fs::rename(&committed, &old)?;
    fs::create_dir_all(&committed)?;
    let mut merge = cargo_fuzz(&["run", target]);
    merge.arg(&committed).arg(&old).arg(work(target));
    merge.arg(work(target).with_extension("seeds"));
    must(merge.args(["--", "-set_cover_merge=1", MAX_LEN]))
}

fn work(target: &str) -> PathBuf {
    let corpora = workspace::root().join("fuzz/target/corpus");
    corpora.join(target)
}

fn committed(target: &str) -> PathBuf {
    workspace::root().join("fuzz/corpus").join(target)
}

/// Words of the target's language, if there is a list.
fn dictionary(target: &str) -> Option<PathBuf> {
    let name = target.split('_').next().unwrap_or(target);
    let path = workspace::root().join(format!("fuzz/dictionaries/{name}.dict"));
    path.exists().then_some(path)
}
