//! Command line entry point.

use std::process::ExitCode;

use clap::Parser;
use nft_ftp_ruleset::{Outcome, cli::Cli, run};

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::No) => ExitCode::from(1),
        Err(error) => {
            eprintln!("nft-ftp-ruleset: {error:#}");
            ExitCode::from(2)
        }
    }
}
