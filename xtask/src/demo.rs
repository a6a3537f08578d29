//! `cargo xtask demo`.

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::cli::DemoArgs;

/// Runs it.
pub fn run(_args: &DemoArgs) -> Result<ExitCode> {
    bail!("the demo is not built yet")
}
