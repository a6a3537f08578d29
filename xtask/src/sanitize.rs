//! `cargo xtask sanitize`: unit tests of the crates that read hostile bytes
//! under AddressSanitizer, with the nightly toolchain.

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::shell::{command, run as must, step, succeeds};
use crate::workspace;

/// The long simulations say nothing more for being slower.
const SKIPPED: [&str; 6] = [
    "--skip",
    "history",
    "--skip",
    "whatever_the_network",
    "--skip",
    "burst",
];

/// Runs them; exit status 0 if nothing was found.
pub fn run() -> Result<ExitCode> {
    if !succeeds(&mut command("cargo", &["+nightly", "--version"])) {
        bail!("needs the nightly toolchain: rustup toolchain install nightly");
    }
    step("unit tests of netfilter and ctsync under AddressSanitizer");
    let mut test = command("cargo", &["+nightly", "test", "--lib"]);
    test.args(["-p", "netfilter", "-p", "ctsync"]);
    // With a target of its own, build scripts are left alone.
    test.args(["--target", env!("XTASK_TARGET")]);
    test.arg("--target-dir")
        .arg(workspace::target().join("sanitize"));
    test.arg("--").args(SKIPPED);
    test.current_dir(workspace::root())
        .env("RUSTFLAGS", "-Zsanitizer=address");
    for name in ["RUSTUP_TOOLCHAIN", "CARGO", "RUSTC"] {
        test.env_remove(name);
    }
    must(&mut test)?;
    Ok(ExitCode::SUCCESS)
}
