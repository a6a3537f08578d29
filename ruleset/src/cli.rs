//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

/// Nftables rulesets for FTP through a fault-tolerant firewall.
#[derive(Debug, Parser)]
#[command(name = "nft-ftp-ruleset", version)]
pub struct Cli {
    /// Policy file; without it /etc/nft-ftp/ruleset.toml, and without that the defaults.
    ///
    /// See nft-ftp-ruleset.toml(5).
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print the ruleset.
    Generate {
        /// Format of the output.
        #[arg(long, value_enum, default_value_t = Format::Nft)]
        format: Format,
        /// Only the rules that accept data connections, for a chain of your own.
        #[arg(long, conflicts_with = "format")]
        snippet: bool,
        /// Write to this file instead of standard output.
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Load the ruleset into the kernel, in one transaction.
    Load,
    /// Remove the table from the kernel.
    Unload,
    /// Validate the policy and ask the kernel, changing nothing.
    Check,
    /// Compare the kernel's table with the policy; exit status 1 if they differ.
    Diff {
        /// One JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Print the kernel's table: objects, handles, counters, rules.
    Show {
        /// One JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Print a commented policy.
    Example,
    /// Print a completion script for a shell.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

/// Format of `generate`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Text for `nft -f` and `include`.
    Nft,
    /// libnftables JSON for `nft -j -f`; `ct expectation` needs nft 1.0.9.
    Json,
}
