//! Userspace conntrack helper for FTP.
//!
//! [`core`] is the pure part: bytes in, actions out. The rest receives
//! packets from NFQUEUE, carries the actions out, and looks after the
//! registration in the kernel.

pub mod census;
pub mod cli;
pub mod config;
pub mod control;
pub mod core;
pub mod doctor;
pub mod handler;
pub mod kernel;
pub mod ledger;
pub mod present;
pub mod registry;
pub mod serve;
pub mod stats;
pub mod support;
pub mod watch;
pub mod worker;

use clap::CommandFactory;
use cli::{Cli, Command, HelperArgs, OutputArgs, RunArgs};
use netfilter::cthelper::HelperStatus;
use registry::{Registry, Spec};
use support::Failure;
use tracing::level_filters::LevelFilter;

/// Carries out a command. `false` means that the answer is no.
///
/// # Errors
/// The command could not be carried out.
pub fn run(cli: Cli) -> Result<bool, Failure> {
    match cli.command {
        Command::Run(args) => {
            daemon::log::init(LevelFilter::INFO);
            serve::run(&args).map(|()| true)
        }
        Command::Register(args) => {
            let spec = spec(args)?;
            let mut registry = Registry::open()?;
            registry
                .register(&spec, HelperStatus::Disabled)
                .map(|()| true)
        }
        Command::Unregister(args) => unregister(&spec(args)?),
        Command::Disable(args) => {
            let spec = spec(args)?;
            Registry::open()?.disable(&spec).map(|()| true)
        }
        Command::List(output) => list(output),
        Command::Status { control, output } => {
            let status = serve::request_status(&control.control)?;
            println!("{}", present::status_text(&status, output.json));
            Ok(true)
        }
        Command::Watch {
            control,
            helper_name,
            output,
        } => {
            let helper = helper_name
                .map(|name| name.parse())
                .transpose()
                .map_err(|e: netfilter::name::NameError| Failure::Config(e.to_string()))?;
            watch::run(&control.control, helper, output.json).map(|()| true)
        }
        Command::Doctor(args) => {
            let report = doctor::run(&args);
            if args.output.json {
                println!(
                    "{}",
                    report.json("nft-ftp-helper", env!("CARGO_PKG_VERSION"))
                );
            } else {
                print!("{}", report.text());
            }
            Ok(report.is_good())
        }
        Command::CheckConfig { config } => {
            let args = RunArgs {
                helper: HelperArgs {
                    config: Some(config),
                    ..HelperArgs::default()
                },
                ..RunArgs::default()
            };
            println!("{:#?}", config::resolve(&args)?);
            Ok(true)
        }
        Command::Completions { shell } => {
            let name = env!("CARGO_PKG_NAME");
            clap_complete::generate(shell, &mut Cli::command(), name, &mut std::io::stdout());
            Ok(true)
        }
    }
}

fn spec(helper: HelperArgs) -> Result<Spec, Failure> {
    let args = RunArgs {
        helper,
        ..RunArgs::default()
    };
    Ok(config::resolve(&args)?.spec)
}

fn unregister(spec: &Spec) -> Result<bool, Failure> {
    let gone = Registry::open()?.unregister(spec)?;
    if !gone {
        eprintln!(
            "nft-ftp-helper: helper {} is disabled, but a ruleset or a connection refers to it: \
             not deleted",
            spec.name
        );
    }
    Ok(gone)
}

fn list(output: OutputArgs) -> Result<bool, Failure> {
    for helper in Registry::open()?.list()? {
        if output.json {
            println!("{}", present::helper_json(&helper));
        } else {
            println!("{}", present::helper_line(&helper));
        }
    }
    Ok(true)
}
