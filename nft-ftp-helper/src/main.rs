//! Command line entry point.

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    match nft_ftp_helper::run(nft_ftp_helper::cli::Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("nft-ftp-helper: {error}");
            ExitCode::from(2)
        }
    }
}
