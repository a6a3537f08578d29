//! What commits and role changes have done, and how far they are.

use super::{at, fail_on_error, say};
use crate::run::answer::Ask;
use anyhow::Result;
use daemon::Client;
use serde_json::Value;
use std::io::{IsTerminal, Write};

/// Asks for something that takes a while; shows progress on a terminal.
pub(super) fn report(client: &mut Client, ask: &Ask, json: bool) -> Result<bool> {
    client.send(ask)?;
    let mut terminal = std::io::stderr();
    let bar = terminal.is_terminal() && !json;
    let mut drawn = false;
    while let Some(line) = client.receive()? {
        if let Some(progress) = line.get("progress") {
            if bar {
                drawn = true;
                draw(&mut terminal, progress)?;
            }
            continue;
        }
        if drawn {
            write!(terminal, "\r\x1b[K")?;
        }
        fail_on_error(&line)?;
        if json {
            say(&at(&line, "result").to_string())?;
        } else {
            print_report(at(&line, "result"))?;
        }
        return Ok(at(&line, "ok") == true);
    }
    anyhow::bail!(
        "the daemon closed the connection without an answer; only root and its own user are served"
    )
}

fn draw(terminal: &mut impl Write, progress: &Value) -> std::io::Result<()> {
    const WIDTH: u64 = 40;
    let number = |name: &str| at(progress, name).as_u64().unwrap_or(0);
    let (done, total) = (number("done"), number("total").max(1));
    let filled = usize::try_from(WIDTH * done.min(total) / total).unwrap_or(0);
    let rest = usize::try_from(WIDTH).unwrap_or(0) - filled;
    let (filled, rest) = ("#".repeat(filled), " ".repeat(rest));
    write!(terminal, "\r[{filled}{rest}] {done}/{total}")?;
    terminal.flush()
}

fn print_report(r: &Value) -> Result<bool> {
    if let Some(role) = at(r, "role").as_str() {
        say(&format!("role: {role} (epoch {})", at(r, "epoch")))?;
    }
    if r.get("flows").is_none() {
        return Ok(true);
    }
    if at(r, "dry_run") == true {
        return print_trial(r);
    }
    let seconds = at(r, "seconds").as_f64().unwrap_or(0.0);
    say(&format!("flows: {}", at(r, "flows")))?;
    say(&format!("expectations: {}", at(r, "expectations")))?;
    let failed = at(r, "failed").as_object();
    let total: u64 = failed
        .into_iter()
        .flatten()
        .filter_map(|(_, v)| v.as_u64())
        .sum();
    say(&format!("failed: {total}"))?;
    for (errno, n) in failed.into_iter().flatten() {
        say(&format!("  {errno}: {n}{}", hint(errno)))?;
    }
    for (what, text) in [
        ("updated", "were there and have been updated"),
        ("replaced", "were there otherwise and have been replaced"),
        (
            "without_master",
            "committed without their master, which is gone",
        ),
        ("skipped", "left out: this node owns newer ones"),
    ] {
        if let Some(n @ 1..) = at(r, what).as_u64() {
            say(&format!("  {n} {text}"))?;
        }
    }
    for (name, n) in at(r, "without_helper").as_object().into_iter().flatten() {
        let why = at(at(r, "helper_missing_because"), name);
        let why = why.as_str().unwrap_or("is not registered here");
        say(&format!(
            "  {n} committed without helper {name}, which {why}"
        ))?;
    }
    for (name, n) in at(r, "helper_lost").as_object().into_iter().flatten() {
        say(&format!(
            "  {n} have lost helper {name} again: this kernel takes it away when it sets up NAT"
        ))?;
    }
    for (errno, n) in at(r, "helper_data_failed")
        .as_object()
        .into_iter()
        .flatten()
    {
        say(&format!(
            "  {n} helpers without their private data: {errno}"
        ))?;
    }
    if let Some(v) = r.get("verified") {
        if let Some(e) = at(v, "error").as_str() {
            return say(&format!("not verified: {e}"));
        }
        say(&format!(
            "verified: {} good, {} missing",
            at(v, "good"),
            at(v, "missing")
        ))?;
        for (what, n) in at(v, "differ").as_object().into_iter().flatten() {
            say(&format!("  {n} differ in {what}"))?;
        }
    }
    say(&format!("seconds: {seconds:.3}"))
}

/// What the kernel means by an errno when it refuses an entry.
fn hint(errno: &str) -> &'static str {
    match errno {
        "ENOMEM" => " (no room: see net.netfilter.nf_conntrack_max)",
        "ENOENT" => " (expectations without their master)",
        "EEXIST" | "EBUSY" => " (something else is in the way)",
        "EOPNOTSUPP" | "EINVAL" => " (this kernel does not take it)",
        _ => "",
    }
}

fn print_trial(r: &Value) -> Result<bool> {
    say(&format!(
        "would commit {} connections and {} expectations",
        at(r, "flows"),
        at(r, "expectations")
    ))?;
    for (name, n) in at(r, "helpers").as_object().into_iter().flatten() {
        say(&format!("  {n} with helper {name}"))?;
    }
    let problems = at(r, "problems").as_array();
    for problem in problems.into_iter().flatten() {
        let problem = problem.as_str().unwrap_or_default();
        say(&format!("problem: {problem}"))?;
    }
    if problems.is_none_or(Vec::is_empty) {
        say("no problem found")?;
    }
    Ok(true)
}
