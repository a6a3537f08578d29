//! Carries out what the command line asks for.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::cli::{Cli, Command, Format};
use crate::ir::Ruleset;
use crate::policy::Policy;
use crate::{apply, lower, render};

/// Where the policy is unless told otherwise; it need not exist.
const DEFAULT_POLICY: &str = "/etc/nft-ftp/ruleset.toml";

/// What the command found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Done, or yes.
    Done,
    /// The answer is no.
    No,
}

/// Carries out one command.
///
/// # Errors
/// Why it could not be carried out.
pub fn run(cli: &Cli) -> anyhow::Result<Outcome> {
    let policy = policy(cli.config.as_deref())?;
    let ruleset = lower::lower(&policy);
    match &cli.command {
        Command::Generate { format, output } => generate(&ruleset, *format, output.as_ref())?,
        Command::Load => apply::load(&ruleset)?,
        Command::Unload => apply::unload(&ruleset.table)?,
        Command::Check => apply::check(&ruleset)?,
    }
    Ok(Outcome::Done)
}

fn policy(path: Option<&Path>) -> anyhow::Result<Policy> {
    let default = Path::new(DEFAULT_POLICY);
    let text = match fs::read_to_string(path.unwrap_or(default)) {
        Ok(text) => text,
        Err(error) if path.is_none() && error.kind() == io::ErrorKind::NotFound => {
            return Ok(Policy::default());
        }
        Err(error) => {
            let path = path.unwrap_or(default).display().to_string();
            return Err(error).context(format!("reading policy {path}"));
        }
    };
    Policy::parse(&text).with_context(|| path.unwrap_or(default).display().to_string())
}

fn generate(ruleset: &Ruleset, format: Format, output: Option<&PathBuf>) -> anyhow::Result<()> {
    let mut text = String::new();
    match format {
        Format::Nft => render::nft::render(ruleset, &mut text)?,
    }
    match output {
        Some(path) => fs::write(path, text).with_context(|| format!("writing {}", path.display())),
        None => io::stdout()
            .write_all(text.as_bytes())
            .context("writing to standard output"),
    }
}
