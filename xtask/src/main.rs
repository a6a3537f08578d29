//! Tasks of this repository: `cargo xtask demo`, `cargo xtask test`.
//!
//! Needs nothing but Rust and a Debian system; what a task needs besides, it
//! installs as root, or prints the one line that does.

mod bench;
mod cli;
mod deb;
mod demo;
mod deps;
mod fetch;
mod fuzz;
mod guard;
mod kernels;
mod machine;
mod older;
mod peers;
mod root;
mod sanitize;
mod shell;
mod soak;
mod test;
mod tools;
mod virtme;
mod vm;
mod workspace;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match cli::run(&cli::Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::from(2)
        }
    }
}
