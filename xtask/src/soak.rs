//! `cargo xtask soak`: churn, FTP sessions and faults for a while, in
//! namespaces of this kernel; prints what it came to.

use std::process::ExitCode;

use anyhow::Result;

use crate::cli::SoakArgs;
use crate::shell::{cargo, command, run as must, step, tee};
use crate::test::lab;
use crate::{deps, workspace};

/// Runs it; exit status 0 if nothing was lost.
pub fn run(args: &SoakArgs) -> Result<ExitCode> {
    deps::for_lab(false)?;
    // Optimized, as they are installed: the churn is to meet the daemons' own
    // limits.
    let build = ["build", "--release", "--bins", "--locked"];
    let packages = ["-p", "ctsync", "-p", "nft-ftp-ruleset", "-p", "lab"];
    must(cargo(&build).args(packages))?;
    let bin = workspace::target().join("release");
    let soak = bin.join("soak");
    let summary = workspace::target().join("soak-summary");
    let _ = std::fs::remove_file(&summary);
    step(&format!("soaking for {} minutes", args.minutes));
    let mut test = command(&soak.to_string_lossy(), &[]);
    test.current_dir(lab::tests_dir())
        .envs(lab::environment(false)?)
        .env("LAB_BIN", &bin)
        .env("LAB", "required")
        .env("LAB_SOAK_SECONDS", (args.minutes * 60).to_string())
        .env("LAB_SOAK_SUMMARY", &summary);
    let (status, _) = tee(&mut test)?;
    if let Ok(text) = std::fs::read_to_string(&summary) {
        print!("{text}");
    }
    Ok(ExitCode::from(u8::from(!status.success())))
}
