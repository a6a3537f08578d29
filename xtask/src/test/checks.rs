//! Checks that look at the sources and dependencies, not at behaviour.

use std::process::Command;

use anyhow::Result;

use super::{lab, licences, msrv, tally::Tally};
use crate::shell::{self, cargo, is_root, step, succeeds};
use crate::{tools, workspace};

/// Runs them all, whatever fails; with `full`, and where nothing may be skipped
/// (`LAB=required`, as in CI), also those that take minutes and must fetch what
/// they need.
pub fn run(tally: &mut Tally, full: bool) {
    let full = full || lab::is_required();
    check(tally, "formatting", || {
        shell::run(&mut cargo(&["fmt", "--all", "--check"]))
    });
    check(tally, "clippy, warnings denied", || {
        let lint = ["clippy", "--workspace", "--all-targets", "--locked"];
        shell::run(cargo(&lint).args(["--", "-D", "warnings"]))
    });
    check(tally, "oldest compiler: dependencies", msrv::dependencies);
    check(tally, "oldest compiler: no let chains", msrv::no_let_chains);
    match msrv::toolchain() {
        Some(name) => check(tally, "oldest compiler: builds", || msrv::builds(&name)),
        None if full && is_root() => check(
            tally,
            "oldest compiler: builds in Debian",
            msrv::builds_in_debian,
        ),
        None => step("oldest compiler: not installed, so only the above was checked (try --full)"),
    }
    check(tally, "licences and sources", licences::check);
    cargo_deny(tally, full);
}

/// cargo-deny checks more (licence texts, duplicates), where it is installed;
/// with `full` it is built.
fn cargo_deny(tally: &mut Tally, full: bool) {
    if !full && !succeeds(&mut cargo(&["deny", "--version"])) {
        step("cargo-deny: not installed, so only our own licence check ran (try --full)");
        return;
    }
    check(tally, "cargo-deny", || {
        let what = ["check", "licenses", "bans", "sources"];
        if succeeds(&mut cargo(&["deny", "--version"])) {
            return shell::run(cargo(&["deny"]).args(what));
        }
        let program = tools::cargo_deny()?;
        let mut deny = Command::new(program);
        shell::run(deny.args(what).current_dir(workspace::root()))
    });
}

fn check(tally: &mut Tally, name: &str, check: impl FnOnce() -> Result<()>) {
    step(name);
    match check() {
        Ok(()) => tally.pass(),
        Err(error) => tally.fail(&format!("{name}: {error:#}")),
    }
}
