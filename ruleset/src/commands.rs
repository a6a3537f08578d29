//! Carries out what the command line asks for.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::CommandFactory;

use crate::cli::{Cli, Command, Format};
use crate::input::{self, Input};
use crate::ir::{self, ObjectKind};
use crate::policy::Mistake;
use crate::{apply, diff, lower, render, show};

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
    match &cli.command {
        Command::Example => return print(None, EXAMPLE).map(|()| Outcome::Done),
        Command::Completions { shell } => return completions(*shell).map(|()| Outcome::Done),
        _ => {}
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
                warn_of_old_nft(&input, *format);
                text(&input, *format)?
            };
            print(output.as_ref(), &text)?;
        }
        Command::Load => asked(&input, apply::load(&input.ruleset))?,
        Command::Unload => apply::unload(&input.ruleset.table)?,
        Command::Check => asked(&input, apply::check(&input.ruleset))?,
        Command::Diff { json } => return compare(&input, *json),
        Command::Show { json } => return show(&input, *json),
        Command::Example | Command::Completions { .. } => {}
    }
    Ok(Outcome::Done)
}

/// Shows what the kernel refused beside the lines of the policy that asked
/// for it.
fn asked(input: &Input, result: Result<(), apply::Error>) -> anyhow::Result<()> {
    let refusals = match result {
        Err(apply::Error::Refused(refusals)) => refusals,
        other => return Ok(other?),
    };
    let mistakes: Vec<_> = refusals
        .iter()
        .map(|refusal| Mistake {
            message: refusal.message(),
            span: refusal.label.origin.0.clone(),
            help: refusal.hint(),
        })
        .collect();
    bail!(
        "the kernel refuses the ruleset\n{}",
        input.source.report(&mistakes)
    );
}

fn compare(input: &Input, json: bool) -> anyhow::Result<Outcome> {
    let live = apply::read(&input.ruleset.table)?;
    let diff = diff::diff(&live, &input.ruleset);
    if json {
        print(None, &(serde_json::to_string_pretty(&diff)? + "\n"))?;
    } else {
        print(None, &diff.to_string())?;
    }
    Ok(answer(diff.is_same()))
}

fn show(input: &Input, json: bool) -> anyhow::Result<Outcome> {
    let name = &input.ruleset.table;
    let live = apply::read(name)?;
    if json {
        let json = show::json(name, &live);
        print(None, &(serde_json::to_string_pretty(&json)? + "\n"))?;
    } else {
        print(None, &show::Text { name, live: &live }.to_string())?;
    }
    Ok(answer(live.table.is_some()))
}

fn answer(yes: bool) -> Outcome {
    if yes { Outcome::Done } else { Outcome::No }
}

fn completions(shell: clap_complete::Shell) -> anyhow::Result<()> {
    let mut script = Vec::new();
    let mut command = Cli::command();
    clap_complete::generate(shell, &mut command, "nft-ftp-ruleset", &mut script);
    print(None, &String::from_utf8(script)?)
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

/// nft can read its own listing in JSON only since 1.0.9 if there is a
/// `ct expectation` in it.
fn warn_of_old_nft(input: &Input, format: Format) {
    let expects = |object: &ir::Object| matches!(object.kind, ObjectKind::CtExpectation { .. });
    if format == Format::Json && input.ruleset.objects.iter().any(expects) {
        eprintln!(
            "nft-ftp-ruleset: warning: nft before 1.0.9 cannot read ct expectation objects \
             from JSON; use --format nft or load there"
        );
    }
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
