//! A policy with many addresses: this program from the policy, and nft from
//! the text that was generated before.
//!
//! Each run is a process of its own in a network namespace of its own. Time
//! is the program's from start to end, memory its peak (`ru_maxrss`).

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use lab::programs::built;
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{UsageWho, getrusage};

use crate::Plan;
use crate::book::{Book, Metric, Target, Who};
use crate::process::float;
use crate::sync::short;

/// Runs it for each size.
pub fn run(plan: &Plan, book: &mut Book) -> Result<()> {
    for count in [1000, 10_000, 100_000] {
        let dir = tempfile::tempdir()?;
        let program = built("nft-ftp-ruleset")?.display().to_string();
        let policy = write_policy(dir.path(), count)?;
        let text = dir.path().join("ruleset.nft").display().to_string();
        let generate = [&program, "generate", "--config", &policy, "-o", &text];
        let load = [&program, "load", "--config", &policy];
        let nft = ["nft", "-f", &text];
        let n = short(count);
        let row = |what: String, unit| Metric::less(what, unit).against("nft -f");
        let generated = row(format!("ruleset {n}: generate"), "ms");
        let time = row(format!("ruleset {n}: load"), "ms").target(Target::Peer(1.0));
        let peak = row(format!("ruleset {n}: load, peak memory"), "MiB").target(Target::Peer(1.0));
        for round in 0..plan.rounds {
            book.add(&generated, Who::Ours, once(&generate)?.0);
            let mut order = [(Who::Ours, &load[..]), (Who::Peer, &nft[..])];
            order.rotate_left(round % 2);
            for (who, command) in order {
                let (ms, mib) = once(command)?;
                book.add(&time, who, ms);
                book.add(&peak, who, mib);
            }
        }
    }
    Ok(())
}

/// Milliseconds and peak MiB of one run.
fn once(line: &[&str]) -> Result<(f64, f64)> {
    let output = Command::new(std::env::current_exe()?)
        .args(["measure", "--"])
        .args(line)
        .stderr(Stdio::inherit())
        .output()?;
    ensure!(output.status.success(), "{line:?}: {}", output.status);
    let text = String::from_utf8(output.stdout)?;
    let (nanoseconds, kib) = text.trim().split_once(' ').context("two numbers")?;
    let (nanoseconds, kib) = (nanoseconds.parse()?, kib.parse()?);
    Ok((float(nanoseconds) / 1e6, float(kib) / 1024.0))
}

/// `bench measure`: runs a command in a fresh namespace.
///
/// # Errors
/// If it fails; needs root.
pub fn measure(line: &[String]) -> Result<()> {
    let (program, args) = line.split_first().context("a command")?;
    unshare(CloneFlags::CLONE_NEWNET).context("a network namespace: needs root")?;
    let mut command = Command::new(program);
    command.args(args).stdout(Stdio::null());
    let start = Instant::now();
    let status = command.status().with_context(|| program.clone())?;
    let took = start.elapsed();
    ensure!(status.success(), "{line:?}: {status}");
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    println!("{} {}", took.as_nanos(), usage.max_rss());
    Ok(())
}

/// A policy with single IPv4 addresses, none next to another.
fn write_policy(dir: &Path, count: u32) -> Result<String> {
    let addresses: String = (0..count)
        .map(|n| format!("{}\n", Ipv4Addr::from(0x0a00_0000 + 2 * n)))
        .collect();
    std::fs::write(dir.join("servers.txt"), addresses)?;
    let policy = dir.join("policy.toml");
    let text = "[addresses.servers]\nfile = \"servers.txt\"\n\
                [[helper]]\ntype = \"ftp\"\nservers = \"servers\"\n";
    std::fs::write(&policy, text)?;
    Ok(policy.display().to_string())
}
