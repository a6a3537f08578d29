//! Instructions that small pieces of the hot paths take, counted by
//! callgrind: the figure that does not depend on who else uses the machine.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use crate::shell::{cargo, command, output, run as run_command, step};
use crate::{deps, workspace};

/// Each case runs so often and twice as often; the difference counts.
const TIMES: u32 = 20_000;

/// What may be added to a recorded count: another compiler lays code out
/// differently.
const TOLERANCE: f64 = 1.10;

/// Counts, and compares with what is recorded or records.
pub fn run(record: bool) -> Result<ExitCode> {
    deps::for_count()?;
    step("building with optimisation");
    let args = ["build", "--release", "-p", "bench", "--bin", "count"];
    run_command(cargo(&args).arg("--locked"))?;
    let counts = count_all()?;
    if record {
        let text = serde_json::to_string_pretty(&counts)? + "\n";
        std::fs::write(baseline(), text)?;
        println!("recorded in {}", baseline().display());
        return Ok(ExitCode::SUCCESS);
    }
    let text = std::fs::read_to_string(baseline()).context("benches/baseline.json")?;
    let recorded: BTreeMap<String, u64> = serde_json::from_str(&text)?;
    Ok(compare(&counts, &recorded))
}

fn baseline() -> PathBuf {
    workspace::root().join("benches/baseline.json")
}

/// Instructions of each case.
fn count_all() -> Result<BTreeMap<String, u64>> {
    let program = workspace::target().join("release/count");
    let program = program.display().to_string();
    let names = output(&mut command(&program, &[]))?;
    let mut counts = BTreeMap::new();
    for name in names.lines() {
        let (once, twice) = (
            instructions(&program, name, TIMES)?,
            instructions(&program, name, 2 * TIMES)?,
        );
        let each = twice.saturating_sub(once) / u64::from(TIMES);
        println!("{name:<30} {each:>8} instructions");
        counts.insert(name.to_owned(), each);
    }
    Ok(counts)
}

fn instructions(program: &str, name: &str, times: u32) -> Result<u64> {
    let args = ["--tool=callgrind", "--callgrind-out-file=/dev/null"];
    let mut valgrind = command("valgrind", &args);
    valgrind.args([program, name, &times.to_string()]);
    let ran = valgrind.output().context("valgrind")?;
    let text = String::from_utf8_lossy(&ran.stderr).into_owned();
    if !ran.status.success() {
        bail!("{name}: {}\n{text}", ran.status);
    }
    collected(&text).with_context(|| format!("no count in what valgrind said\n{text}"))
}

/// The number in `==PID== Collected : N`.
fn collected(text: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.contains("Collected : "))?;
    line.rsplit(' ').next()?.parse().ok()
}

/// Exit status 1 if one takes more than is recorded, or isn't recorded.
fn compare(counts: &BTreeMap<String, u64>, recorded: &BTreeMap<String, u64>) -> ExitCode {
    let wrong = complaints(counts, recorded);
    for line in &wrong {
        println!("{line}");
    }
    if wrong.is_empty() {
        println!("no case takes more than is recorded");
        return ExitCode::SUCCESS;
    }
    println!("if it must be so: cargo xtask bench --record");
    ExitCode::FAILURE
}

fn complaints(counts: &BTreeMap<String, u64>, recorded: &BTreeMap<String, u64>) -> Vec<String> {
    let float = |n: u64| u32::try_from(n).map_or(f64::INFINITY, f64::from);
    let gone = recorded.keys().filter(|name| !counts.contains_key(*name));
    let gone = gone.map(|name| format!("{name} is recorded and does not exist"));
    let more = counts.iter().filter_map(|(name, &now)| {
        let Some(&then) = recorded.get(name) else {
            return Some(format!("{name} is not recorded"));
        };
        let worse = float(now) > float(then) * TOLERANCE;
        worse.then(|| format!("{name} takes {now} instructions, recorded are {then}"))
    });
    gone.chain(more).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_found_in_what_valgrind_says() {
        let text = "==7== \n==7== Events    : Ir\n==7== Collected : 1234567\n==7==\n";
        assert_eq!(collected(text), Some(1_234_567));
        assert_eq!(collected("==7== I refs: 5"), None);
    }

    #[test]
    fn more_than_the_tolerance_and_what_is_unknown_is_complained_about() {
        let map = |all: &[(&str, u64)]| {
            let pairs = all.iter().map(|(name, n)| ((*name).to_owned(), *n));
            pairs.collect::<BTreeMap<_, _>>()
        };
        let recorded = map(&[("a", 1000), ("b", 1000), ("gone", 1)]);
        let wrong = complaints(&map(&[("a", 1099), ("b", 1101), ("new", 5)]), &recorded);
        assert_eq!(wrong.len(), 3, "{wrong:?}");
    }
}
