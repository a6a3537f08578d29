//! `cargo xtask sanitize`: unit tests under AddressSanitizer (and its search
//! for leaks), ThreadSanitizer and Miri, with the nightly toolchain.
//!
//! What calls into C or the kernel is beyond Miri, and that is all the
//! `unsafe` there is; it runs what surrounds it.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::shell::{command, output, step, succeeds};
use crate::workspace;

/// The long simulations say nothing more for being slower.
const LONG: [&str; 9] = [
    "--skip=history",
    "--skip=histories",
    "--skip=whatever_the_network",
    "--skip=burst",
    "--skip=any_order",
    "--skip=a_seed_replays",
    "--skip=random_dialogues",
    "--skip=proptest",
    // Reads all memory, of which a sanitizer maps terabytes.
    "--skip=is_in_memory",
];

/// One way to run the tests.
struct Stage {
    name: &'static str,
    /// Component of the toolchain that it needs besides.
    component: Option<&'static str>,
    cargo: &'static [&'static str],
    /// Flags of the compiler, or of Miri.
    flags: (&'static str, &'static str),
    packages: &'static [&'static str],
    /// Tests besides those in the libraries.
    tests: &'static [&'static str],
    skip: &'static [&'static str],
}

const STAGES: [Stage; 3] = [
    Stage {
        name: "AddressSanitizer",
        component: None,
        cargo: &["test"],
        flags: ("RUSTFLAGS", "-Zsanitizer=address"),
        packages: &[
            "netfilter",
            "daemon",
            "nft-ftp-ruleset",
            "nft-ftp-helper",
            "ctsync",
        ],
        tests: &["core", "handler", "golden", "kernel"],
        skip: &[],
    },
    Stage {
        name: "ThreadSanitizer",
        component: Some("rust-src"),
        cargo: &["test", "-Zbuild-std"],
        flags: ("RUSTFLAGS", "-Zsanitizer=thread"),
        packages: &["daemon", "nft-ftp-helper"],
        tests: &["handler"],
        skip: &[],
    },
    Stage {
        name: "Miri",
        component: Some("miri"),
        cargo: &["miri", "test"],
        flags: ("MIRIFLAGS", "-Zmiri-disable-isolation"),
        packages: &["netfilter"],
        tests: &["golden"],
        skip: &["--skip=socket", "--skip=flip", "--skip=prefix"],
    },
];

/// Runs them; exit status 0 if nothing was found. What can't be had is named,
/// and is a failure with `LAB=required`.
pub fn run() -> Result<ExitCode> {
    if !succeeds(&mut command("cargo", &["+nightly", "--version"])) {
        bail!("needs the nightly toolchain: rustup toolchain install nightly");
    }
    let (mut found, mut absent) = (Vec::new(), Vec::new());
    for stage in &STAGES {
        match stage.component.filter(|name| !is_installed(name)) {
            Some(component) => absent.push((stage.name, component)),
            None if stage.passes()? => {}
            None => found.push(stage.name),
        }
    }
    for name in &found {
        println!("failed: {name}");
    }
    for (name, component) in &absent {
        println!(
            "not run: {name}, for want of {component}: \
             rustup component add {component} --toolchain nightly"
        );
    }
    let required = crate::test::lab::is_required();
    let bad = !found.is_empty() || (required && !absent.is_empty());
    println!(
        "{} of {} ran and found nothing",
        STAGES.len() - found.len() - absent.len(),
        STAGES.len()
    );
    Ok(ExitCode::from(u8::from(bad)))
}

fn is_installed(component: &str) -> bool {
    let list = ["component", "list", "--toolchain", "nightly", "--installed"];
    let list = output(&mut command("rustup", &list)).unwrap_or_default();
    list.lines().any(|line| line.starts_with(component))
}

impl Stage {
    fn passes(&self) -> Result<bool> {
        step(&format!(
            "unit tests of {} under {}",
            self.packages.join(", "),
            self.name
        ));
        let status = self.command().status().context("starting cargo")?;
        Ok(status.success())
    }

    fn command(&self) -> Command {
        let mut test = command("cargo", &["+nightly"]);
        test.args(self.cargo).arg("--lib");
        for package in self.packages {
            test.args(["-p", package]);
        }
        for name in self.tests {
            test.args(["--test", name]);
        }
        // With a target of its own, build scripts are left alone.
        test.args(["--target", env!("XTASK_TARGET")]);
        let directory = workspace::target().join("sanitize").join(self.name);
        test.arg("--target-dir").arg(directory);
        test.arg("--").args(LONG).args(self.skip);
        test.current_dir(workspace::root())
            .env(self.flags.0, self.flags.1);
        for name in ["RUSTUP_TOOLCHAIN", "CARGO", "RUSTC"] {
            test.env_remove(name);
        }
        test
    }
}
