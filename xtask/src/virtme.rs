//! virtme-ng from PyPI, in a Python environment of its own.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::shell::{command, run, step};
use crate::workspace;

/// Pinned, so that a new release can't change what a test run does.
const VERSION: &str = "virtme-ng==1.42";

/// Directory with `vng` and `virtme-run`, installed unless it is there.
pub fn bin() -> Result<PathBuf> {
    let venv = workspace::lab().join("venv");
    let bin = venv.join("bin");
    if bin.join("vng").is_file() && bin.join("virtme-run").is_file() {
        return Ok(bin);
    }
    step("installing virtme-ng into its own Python environment");
    let venv = venv.to_string_lossy();
    // Debian's Python: a version manager's may come first on the path.
    run(&mut command("/usr/bin/python3", &["-m", "venv", &venv]))?;
    let pip = bin.join("pip");
    let args = ["-q", "install", "--disable-pip-version-check", VERSION];
    run(&mut command(&pip.to_string_lossy(), &args)).context("installing virtme-ng")?;
    Ok(bin)
}
