//! Command line.

use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;
use std::time::Duration;

/// Userspace conntrack helper for FTP: parses control connections that a
/// ruleset assigns to it and creates expectations for their data connections.
#[derive(Debug, Parser)]
#[command(name = "nft-ftp-helper", version, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Register the helper, serve its queues, stay in the foreground
    Run(RunArgs),
    /// Register the helper, disabled, so that a ruleset can refer to it
    Register(HelperArgs),
    /// Disable the helper and delete it unless something refers to it
    Unregister(HelperArgs),
    /// Disable the helper: control connections pass, nothing is expected
    Disable(HelperArgs),
    /// List the userspace helpers of this machine
    List(OutputArgs),
    /// Show what the running daemon does
    Status {
        /// Daemon to ask
        #[command(flatten)]
        control: ControlArgs,
        /// Output
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Print expectations and refusals as they happen
    Watch {
        /// Daemon to ask for refusals
        #[command(flatten)]
        control: ControlArgs,
        /// Show expectations of this helper only
        #[arg(long, value_name = "NAME")]
        helper_name: Option<String>,
        /// Output
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Look for what keeps FTP from working, and say what to do
    Doctor(DoctorArgs),
    /// Check a configuration file and print what it means
    CheckConfig {
        /// Configuration file
        #[arg(long, value_name = "FILE", default_value = DEFAULT_CONFIG)]
        config: PathBuf,
    },
    /// Print completions for a shell
    Completions {
        /// Shell
        shell: clap_complete::Shell,
    },
}

/// Where the configuration is, if there is any.
pub const DEFAULT_CONFIG: &str = "/etc/nft-ftp/helper.toml";
/// Where the daemon listens.
pub const DEFAULT_CONTROL: &str = "/run/nft-ftp-helper/control";

/// Options of `run`. What is given here wins over the file.
#[derive(Debug, Clone, Default, Args)]
pub struct RunArgs {
    /// Which helper
    #[command(flatten)]
    pub helper: HelperArgs,
    /// Ports to open around an announced one: 0xffff is that port, 0xfffc the
    /// aligned block of four, down to 0xffc0
    ///
    /// Default: 0xffff.
    #[arg(long, value_name = "MASK", value_parser = parse_mask)]
    pub port_mask: Option<u16>,
    /// Expectations stay until their timeout and serve any number of
    /// connections
    #[arg(long)]
    pub permanent: bool,
    /// How long an expectation lives
    ///
    /// Such as 30s or 5m. Default: 300s.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub expect_timeout: Option<Duration>,
    /// Live expectations per control connection, 1 to 255
    ///
    /// One more evicts the oldest. Default: three blocks.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=255))]
    pub max_expected: Option<u32>,
    /// Follow addresses that are not the sender's
    ///
    /// For transfers between two servers.
    #[arg(long)]
    pub loose: bool,
    /// Control socket
    ///
    /// Only root and the daemon's own user are served. Default:
    /// /run/nft-ftp-helper/control.
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,
    /// Serve metrics at this loopback ADDRESS:PORT or Unix socket
    #[arg(long, value_name = "ADDRESS")]
    pub metrics: Option<String>,
    /// Log more: every expectation and refusal
    #[arg(long, short)]
    pub verbose: bool,
}

/// Which helper.
#[derive(Debug, Clone, Default, Args)]
pub struct HelperArgs {
    /// Configuration file; its absence is no error unless it is named
    ///
    /// See nft-ftp-helper.toml(5). Options win over the file. Default:
    /// /etc/nft-ftp/helper.toml.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Name of the helper, at most 15 bytes
    ///
    /// Default: nft-ftp.
    #[arg(long, value_name = "NAME")]
    pub helper_name: Option<String>,
    /// Queue, or range of queues with a helper and a thread for each
    ///
    /// The helpers are called NAME, NAME-1, NAME-2 and so on. Default: 121.
    #[arg(long, value_name = "N[-M]")]
    pub queue_num: Option<String>,
}

/// Options of `doctor`.
#[derive(Debug, Clone, Args)]
pub struct DoctorArgs {
    /// Which helper
    #[command(flatten)]
    pub helper: HelperArgs,
    /// Control socket
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,
    /// Output
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Which daemon.
#[derive(Debug, Clone, Args)]
pub struct ControlArgs {
    /// Control socket
    #[arg(long, value_name = "PATH", default_value = DEFAULT_CONTROL)]
    pub control: PathBuf,
}

/// How to print.
#[derive(Debug, Clone, Copy, Args)]
pub struct OutputArgs {
    /// JSON, one value a line
    #[arg(long)]
    pub json: bool,
}

/// A mask of the form 0xfffc, decimal also allowed.
fn parse_mask(text: &str) -> Result<u16, String> {
    let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
    let number = match digits {
        Some(hex) => u16::from_str_radix(hex, 16),
        None => text.parse(),
    };
    let mask = number.map_err(|_| format!("{text:?} is no 16-bit number"))?;
    crate::config::block_of_mask(mask)?;
    Ok(mask)
}
