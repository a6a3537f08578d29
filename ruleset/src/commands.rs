//! Carries out what the command line asks for.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::path::PathBuf;

use anyhow::Context;

use crate::cli::{Cli, Command, Format};
use crate::input::{self, Input};
use crate::{apply, lower, render};

/// The commented policy that `example` prints.
pub const EXAMPLE: &str = include_str!("../../examples/ruleset.toml");

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
    if let Command::Example = cli.command {
        print(None, EXAMPLE)?;
        return Ok(Outcome::Done);
    }
    let input = input::read(cli.config.as_deref())?;
    match &cli.command {
        Command::Generate {
            format,
            snippet,
            output,
        } => {
            let text = if *snippet {
                snippet_text(&input)?
            } else {
                text(&input, *format)?
            };
            print(output.as_ref(), &text)?;
        }
        Command::Load => apply::load(&input.ruleset)?,
        Command::Unload => apply::unload(&input.ruleset.table)?,
        Command::Check => apply::check(&input.ruleset)?,
        Command::Example => {}
    }
    Ok(Outcome::Done)
}

fn text(input: &Input, format: Format) -> anyhow::Result<String> {
    let mut text = String::new();
    match format {
        Format::Nft => render::nft::render(&input.ruleset, &mut text)?,
        Format::Json => {
            text = serde_json::to_string_pretty(&render::json::render(&input.ruleset))?;
            text.push('\n');
        }
    }
    Ok(text)
}

fn snippet_text(input: &Input) -> anyhow::Result<String> {
    let mut text = String::from("# Data connections of FTP helpers, to unprivileged ports only.\n");
    for rule in lower::snippet(&input.policy) {
        writeln!(text, "{}", render::nft::rule(&rule))?;
    }
    Ok(text)
}

fn print(output: Option<&PathBuf>, text: &str) -> anyhow::Result<()> {
    match output {
        Some(path) => fs::write(path, text).with_context(|| format!("writing {}", path.display())),
        None => io::stdout()
            .write_all(text.as_bytes())
            .context("writing to standard output"),
    }
}
