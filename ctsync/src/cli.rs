//! Command line.

mod report;
mod show;
mod status;

use crate::config::{Config, DEFAULT_CONFIG, DEFAULT_CONTROL};
use crate::render::Select;
use crate::run::answer::{Ask, Page};
use crate::transport::key::Secret;
use anyhow::{Context, Result};
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use daemon::Client;
use report::report;
use serde_json::Value;
use show::{show, show_kernel};
use status::status;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Mirrors connections, expectations and helper state between firewalls
#[derive(Debug, Parser)]
#[command(name = "ctsync", version, max_term_width = 100)]
pub struct Cli {
    /// Control socket of the daemon
    ///
    /// Several daemons can run on one machine with different ones. Without the
    /// option: the variable CTSYNC_CONTROL, else /run/ctsync/control.sock. Only
    /// root and the daemon's own user are served.
    #[arg(long, global = true, value_name = "PATH", env = "CTSYNC_CONTROL")]
    control: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon in the foreground
    Run(ConfigArg),
    /// Show how it goes
    Status {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// List what a cache or the kernel has
    Show {
        /// Which
        cache: Cache,
        /// Expectations instead of connections
        #[arg(long)]
        expectations: bool,
        /// As JSON lines
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        select: Select,
    },
    /// Put the peers' entries into the kernel
    Commit {
        /// Only look whether it would be complete
        ///
        /// Helpers registered and enabled, a ruleset loaded, room in the table.
        #[arg(long)]
        dry_run: bool,
        /// Look into the kernel afterwards
        ///
        /// Dumps its tables and compares: NAT, helper, mark, labels, master, SYN
        /// proxy, protocol state, sequence adjustments, the helper's private
        /// data, status and timeout of each connection; master, flags, NAT,
        /// function, helper and timeout of each expectation. What traffic has
        /// changed since is no difference.
        #[arg(long)]
        verify: bool,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Exit 0 if this node is in sync with its peers, 1 if not
    Check,
    /// Take over: commit, own the states, announce it
    Primary(Json),
    /// Wait: give the states up to whoever takes over
    Backup(Json),
    /// Be out of order
    Fault(Json),
    /// Forget a cache
    Flush {
        /// Which
        cache: Side,
    },
    /// Compare the caches with the kernel and with the peers now
    Resync,
    /// Print what changes as it happens
    Monitor {
        /// As JSON lines
        #[arg(long)]
        json: bool,
    },
    /// Make a private key; prints the public key
    Keygen {
        /// File to write; standard output if not given
        file: Option<PathBuf>,
        /// Make a pre-shared key instead
        #[arg(long)]
        psk: bool,
    },
    /// Print the public key of a private one
    Pubkey {
        /// File with the private key
        file: PathBuf,
    },
    /// Read the configuration and say what is wrong with it
    CheckConfig(ConfigArg),
    /// Look for what keeps mirroring from working, and say what to do
    Doctor {
        /// Configuration file
        #[arg(long, value_name = "FILE", default_value = DEFAULT_CONFIG)]
        config: PathBuf,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Print completions for a shell
    Completions {
        /// Shell
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Args)]
struct ConfigArg {
    /// Configuration file
    #[arg(long, value_name = "FILE", default_value = DEFAULT_CONFIG)]
    config: PathBuf,
}

#[derive(Debug, Args)]
struct Json {
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Cache {
    /// What this node owns
    Internal,
    /// What its peers own
    External,
    /// What the kernel has
    Kernel,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Side {
    /// What this node owns
    Internal,
    /// What its peers own
    External,
}

/// Parses the arguments and runs the command. The exit code: 0 done, 1 the
/// answer is no, 2 it could not be carried out.
pub fn main() -> u8 {
    match execute(Cli::parse()) {
        Ok(true) => 0,
        Ok(false) => 1,
        Err(e) if is_broken_pipe(&e) => 0,
        Err(e) => {
            eprintln!("ctsync: {}", crate::errno::chain(e.as_ref()));
            2
        }
    }
}

fn is_broken_pipe(e: &anyhow::Error) -> bool {
    e.downcast_ref::<std::io::Error>()
        .is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}

fn execute(cli: Cli) -> Result<bool> {
    let control = cli.control;
    match cli.command {
        Command::Run(arg) => crate::run::run(&arg.config, control.as_deref()).map(|()| true),
        Command::CheckConfig(arg) => check_config(&arg.config),
        Command::Keygen { file, psk } => keygen(file.as_deref(), psk),
        Command::Pubkey { file } => {
            let secret = Secret::read(&file).with_context(|| file.display().to_string())?;
            say(&secret.public().to_string())
        }
        Command::Completions { shell } => {
            let mut out = std::io::stdout();
            clap_complete::generate(shell, &mut Cli::command(), "ctsync", &mut out);
            Ok(true)
        }
        Command::Doctor { config, json } => {
            let report = crate::doctor::run(&config, control.as_deref());
            let text = if json {
                report.json("ctsync", env!("CARGO_PKG_VERSION")).to_string()
            } else {
                report.text().trim_end().to_owned()
            };
            say(&text).map(|_| report.is_good())
        }
        Command::Show {
            cache: Cache::Kernel,
            expectations,
            json,
            select,
        } => show_kernel(expectations, json, select),
        command => {
            let path = control.unwrap_or_else(|| DEFAULT_CONTROL.into());
            let client = Client::connect(&path);
            let client = client.with_context(|| {
                format!(
                    "connecting to {} (is `ctsync run` running?)",
                    path.display()
                )
            })?;
            ask(client, command)
        }
    }
}

fn say(line: &str) -> Result<bool> {
    writeln!(std::io::stdout(), "{line}")?;
    Ok(true)
}

fn ask(mut client: Client, command: Command) -> Result<bool> {
    match command {
        Command::Status { json } => status(&mut client, json),
        Command::Show {
            cache,
            expectations,
            json,
            select,
        } => show(
            &mut client,
            Page {
                external: cache == Cache::External,
                expectations,
                json,
                select,
                from: (0, 0),
            },
        ),
        Command::Commit {
            dry_run,
            verify,
            json,
        } => {
            let ask = Ask::Commit { dry_run, verify };
            report(&mut client, &ask, json)
        }
        Command::Primary(j) => report(&mut client, &Ask::Primary, j.json),
        Command::Backup(j) => report(&mut client, &Ask::Backup, j.json),
        Command::Fault(j) => report(&mut client, &Ask::Fault, j.json),
        Command::Check => check(&mut client),
        Command::Flush { cache } => {
            let external = cache == Side::External;
            done(&client.request(&Ask::Flush { external })?)
        }
        Command::Resync => done(&client.request(&Ask::Resync)?),
        Command::Monitor { json } => monitor(&mut client, json),
        _ => Ok(true),
    }
}

fn done(answer: &Value) -> Result<bool> {
    fail_on_error(answer)?;
    Ok(at(answer, "ok") == true)
}

fn fail_on_error(answer: &Value) -> Result<()> {
    match at(answer, "error").as_str() {
        Some(e) => anyhow::bail!("{e}"),
        None => Ok(()),
    }
}

fn check(client: &mut Client) -> Result<bool> {
    let answer = client.request(&Ask::Check)?;
    fail_on_error(&answer)?;
    if at(&answer, "ok") == true {
        return say("in sync");
    }
    for why in at(&answer, "why").as_array().into_iter().flatten() {
        say(why.as_str().unwrap_or_default())?;
    }
    Ok(false)
}

fn monitor(client: &mut Client, json: bool) -> Result<bool> {
    client.send(&Ask::Monitor)?;
    while let Some(line) = client.receive()? {
        fail_on_error(&line)?;
        if json {
            say(&line.to_string())?;
        } else {
            let text = |name: &str| at(&line, name).as_str().unwrap_or_default().to_owned();
            say(&format!(
                "[{}] {:<8} {}",
                text("change"),
                text("cache"),
                text("entry")
            ))?;
        }
    }
    Ok(true)
}

fn keygen(file: Option<&Path>, psk: bool) -> Result<bool> {
    let secret = Secret::generate()?;
    match file {
        Some(path) => {
            let written = secret.write(path);
            written.with_context(|| format!("writing key {}", path.display()))?;
            if psk {
                return Ok(true);
            }
            say(&secret.public().to_string())
        }
        None => say(&secret.to_text()),
    }
}

fn check_config(path: &Path) -> Result<bool> {
    match Config::read(path) {
        Ok(config) => {
            for key in config.key_files() {
                Secret::read(key).with_context(|| format!("reading key {}", key.display()))?;
            }
            say(&format!(
                "{}: node {}, {} peers",
                path.display(),
                config.node,
                config.peers.len()
            ))
        }
        Err(e) => Err(e.into()),
    }
}

/// A member of an object; null if it is not there.
pub(crate) fn at<'a>(value: &'a Value, name: &str) -> &'a Value {
    value.get(name).unwrap_or(&Value::Null)
}
