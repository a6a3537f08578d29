//! Checks that look at the sources and dependencies, not at behaviour.

use anyhow::Result;

use super::{licences, msrv, tally::Tally};
use crate::shell::{self, cargo, step, succeeds};

/// Runs them all, whatever fails.
pub fn run(tally: &mut Tally) {
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
        None => step("oldest compiler: not installed, so only the above was checked"),
    }
    check(tally, "licences and sources", licences::check);
    cargo_deny(tally);
}

/// cargo-deny checks more (licence files, advisories), where it is installed.
fn cargo_deny(tally: &mut Tally) {
    if !succeeds(&mut cargo(&["deny", "--version"])) {
        step("cargo-deny: not installed, so only our own licence check ran");
        return;
    }
    check(tally, "cargo-deny", || {
        shell::run(&mut cargo(&[
            "deny", "check", "licenses", "bans", "sources",
        ]))
    });
}

fn check(tally: &mut Tally, name: &str, check: impl FnOnce() -> Result<()>) {
    step(name);
    match check() {
        Ok(()) => tally.pass(),
        Err(error) => tally.fail(&format!("{name}: {error:#}")),
    }
}
